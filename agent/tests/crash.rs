//! `kill -9` at every fail-point on the way of a task, then a new start: the task runs, and nothing is left in the end.
#![cfg(feature = "failpoints")]

mod support;

use skep_agent::{Assign, ContainerdConfig, NodeFacts};
use skep_types::{Mount, MountType, SecretReference, TaskId, TaskState};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Containerd, Node, container, shell, skip};

#[test]
#[ignore = "started by the other tests as a process of its own"]
fn log_writer_process() {
    if let Some(dir) = std::env::var_os("SKEP_TEST_LOG_WRITER") {
        skep_agent::run_log_writer(std::path::Path::new(&dir)).unwrap();
    }
}

/// Not a test: an agent that runs one task, stops it and leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the other tests as a process of its own"]
async fn agent_process() {
    let Ok(dir) = std::env::var("SKEP_TEST_AGENT") else { return };
    let dir = PathBuf::from(dir);
    let id: TaskId = std::env::var("SKEP_TEST_TASK").unwrap().parse().unwrap();
    let facts = NodeFacts { id: "node1".into(), hostname: "alpha".into(), os: "linux".into(), architecture: "x86_64".into() };
    let mut config = ContainerdConfig::new(dir.join("c.sock"), dir.join("data"), dir.join("run"), facts);
    config.cgroup_parent = format!("/{}", dir.file_name().unwrap().to_str().unwrap());
    let node = Node::start_at(config, std::env::var("SKEP_TEST_CHAIN").unwrap(), |_| {}).await;
    let mut task = shell(1, "echo up; exec sleep 1000");
    task.id = id;
    container(&mut task, |spec| {
        spec.stop_grace_period = Some(std::time::Duration::from_millis(200));
        let volume = Mount { kind: MountType::Volume, target: "/data".into(), ..Mount::default() };
        // One that is a mount, by options of its driver.
        let options = [("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=64k")];
        let options = options.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let driver = Some(skep_types::Driver { name: "local".into(), options });
        let volume_options = Some(skep_types::VolumeOptions { driver, ..Default::default() });
        let mounted = Mount { kind: MountType::Volume, target: "/small".into(), volume: volume_options, ..Mount::default() };
        spec.mounts = vec![volume, mounted];
        let target = skep_types::FileTarget { name: "s".into(), mode: 0o444, ..Default::default() };
        spec.secrets = vec![SecretReference { secret_id: "secret1".parse().unwrap(), secret_name: "s".into(), file: Some(target) }];
    });
    let secret = skep_types::Secret {
        id: "secret1".parse().unwrap(),
        meta: Default::default(),
        spec: skep_types::SecretSpec { data: skep_types::Sensitive(b"x".to_vec()), ..Default::default() },
        internal: false,
    };
    node.engine.payloads.put_secret(secret);
    node.engine.assign.send(Assign::Complete(vec![task.clone()])).await.unwrap();
    let known = node.engine.reports.newest(&task.id).map(|status| status.state);
    if known.is_none_or(|state| state <= TaskState::Running) {
        // A task whose stop was interrupted goes on being stopped.
        let begin = std::time::Instant::now();
        loop {
            let state = node.engine.reports.newest(&task.id).map(|status| status.state).unwrap_or_default();
            assert!(state != TaskState::Rejected && state != TaskState::Failed, "{:?}", node.engine.reports.newest(&task.id));
            if state >= TaskState::Running {
                break;
            }
            assert!(begin.elapsed().as_secs() < 60, "{state}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        node.desire(&mut task, TaskState::Shutdown).await;
    }
    node.wait(&task, TaskState::Shutdown).await;
    node.leave().await;
    node.end().await;
}

fn agent(containerd: &Containerd, task: u64, failpoint: Option<&str>, trace: &Path) -> std::process::Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["agent_process", "--exact", "--ignored", "--nocapture"]);
    command.env("SKEP_TEST_AGENT", containerd.dir.path()).env("SKEP_TEST_CHAIN", &containerd.chain_id);
    command.env("SKEP_TEST_TASK", TaskId::for_test(u64::from(std::process::id()) * 1_000_000 + task).as_str());
    command.env("SKEP_FAILPOINT_TRACE", trace);
    if let Some(name) = failpoint {
        command.env("SKEP_FAILPOINT", name);
    }
    command.output().unwrap()
}

#[test]
fn a_kill_at_any_point_is_mended_by_the_next_start() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let trace = containerd.path("trace");
    let first = agent(&containerd, 0, None, &trace);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stdout));
    assert_eq!(containerd.audit(), Vec::<String>::new());
    let mut points: Vec<String> = std::fs::read_to_string(&trace).unwrap().lines().map(str::to_owned).collect();
    // The log writer of the first run is still there, so nobody starts another one.
    points.retain(|point| point.starts_with("agent.") && point != "agent.logs.writer_spawned");
    assert!(points.len() >= 25, "{points:?}");
    for (number, point) in points.iter().enumerate() {
        let killed = agent(&containerd, number as u64 + 1, Some(point), &trace);
        assert!(!killed.status.success(), "{point} did not kill");
        let mended = agent(&containerd, number as u64 + 1, None, &trace);
        assert!(
            mended.status.success(),
            "after {point}: {}{}",
            String::from_utf8_lossy(&mended.stdout),
            String::from_utf8_lossy(&mended.stderr)
        );
        let left = containerd.audit();
        assert!(left.is_empty(), "after {point}: {left:?}");
    }
    eprintln!("{} points", points.len());
}
