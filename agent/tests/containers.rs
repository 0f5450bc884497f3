//! Real containers: a private containerd, runc, our log writer.

mod support;

use skep_types::{HealthConfig, Mount, MountType, TaskState};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::{Containerd, NAMESPACE, Node, container, init_program, memory_limit, output, output_with, pid_exists, shell, skip, task};

/// Not a test: this program, started again as the log writer.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn log_writer_process() {
    if let Some(dir) = std::env::var_os("SKEP_TEST_LOG_WRITER") {
        skep_agent::run_log_writer(std::path::Path::new(&dir)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_runs_writes_and_ends() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let begin = Instant::now();
    let good = shell(1, "echo out; echo err >&2; echo $FROM; printf last");
    node.assign(&good).await;
    let status = node.wait(&good, TaskState::Complete).await;
    eprintln!("run to the end took {:?}", begin.elapsed());
    assert_eq!(status.container.as_ref().map(|c| c.exit_code), Some(0));
    let bad = shell(2, "exit 3");
    node.assign(&bad).await;
    let status = node.wait(&bad, TaskState::Failed).await;
    assert_eq!(status.err, "task: non-zero exit (3)");
    node.leave_and_check(&containerd, &good, "out\n", "err\n").await;
}

impl Node {
    async fn leave_and_check(&self, containerd: &Containerd, task: &skep_types::Task, one: &str, two: &str) {
        let begin = Instant::now();
        loop {
            let text = output(containerd, task).await;
            if [one, two, "image\n", "last"].iter().all(|part| text.contains(part)) {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "{text:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.leave().await;
        assert_eq!(containerd.audit(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let mut image = shell(1, "true");
    container(&mut image, |spec| spec.image = "nosuch:1".into());
    let mut command = shell(2, "true");
    container(&mut command, |spec| spec.command = vec!["nosuch".into()]);
    let mut absolute = shell(3, "true");
    container(&mut absolute, |spec| spec.command = vec!["/no/such".into()]);
    let mut mount = shell(4, "true");
    let bind = Mount { kind: MountType::Bind, source: "/no/such".into(), target: "/d".into(), ..Mount::default() };
    container(&mut mount, |spec| spec.mounts = vec![bind]);
    let mut denied = shell(5, "true");
    container(&mut denied, |spec| spec.command = vec!["/etc/passwd".into()]);
    let mut user = shell(6, "true");
    container(&mut user, |spec| spec.user = "nobody".into());
    let cases = [
        (&image, TaskState::Rejected, "no such image: nosuch:1"),
        (&command, TaskState::Failed, "executable file not found: \"nosuch\""),
        (&absolute, TaskState::Failed, "executable file not found: \"/no/such\""),
        (&mount, TaskState::Rejected, "mount source /no/such does not exist"),
        (&denied, TaskState::Failed, "permission denied: \"/etc/passwd\" cannot be executed"),
        (&user, TaskState::Rejected, "user \"nobody\": no such user in the image's /etc/passwd"),
    ];
    for (task, ..) in &cases {
        node.assign(task).await;
    }
    for (task, state, words) in cases {
        let status = node.wait(task, state).await;
        assert!(status.err.starts_with(words), "{words}: {}", status.err);
    }
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_out_of_memory_is_seen_as_such() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let mut hungry = shell(1, "exec dd if=/dev/zero of=/dev/null bs=200M");
    memory_limit(&mut hungry, 32 << 20);
    node.assign(&hungry).await;
    let status = node.wait(&hungry, TaskState::Failed).await;
    assert!(status.err.starts_with("out of memory: the container was killed at its memory limit"), "{}", status.err);
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_gives_the_signal_then_the_grace_period_then_kills() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let mut polite = shell(1, "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done");
    let mut stubborn = shell(2, "trap '' TERM; echo up; while :; do sleep 1; done");
    container(&mut stubborn, |spec| spec.stop_grace_period = Some(Duration::from_secs(1)));
    for task in [&polite, &stubborn] {
        node.assign(task).await;
    }
    for task in [&polite, &stubborn] {
        node.wait(task, TaskState::Running).await;
        output_with(&containerd, task, "up").await;
    }
    let begin = Instant::now();
    node.desire(&mut polite, TaskState::Shutdown).await;
    let status = node.wait(&polite, TaskState::Shutdown).await;
    eprintln!("a polite one stopped after {:?}", begin.elapsed());
    // Killed, it would have ended with 137.
    assert_eq!(status.container.map(|c| c.exit_code), Some(0));
    output_with(&containerd, &polite, "bye").await;
    node.desire(&mut stubborn, TaskState::Shutdown).await;
    let status = node.wait(&stubborn, TaskState::Shutdown).await;
    assert_eq!(status.container.map(|c| c.exit_code), Some(137));
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_decides_when_a_task_runs_and_when_it_fails() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let check = |script: &str| HealthConfig {
        test: vec!["CMD-SHELL".into(), script.into()],
        interval: Some(Duration::from_millis(300)),
        timeout: Some(Duration::from_secs(5)),
        retries: 2,
        ..HealthConfig::default()
    };
    let mut healthy = shell(1, "sleep 1; touch /tmp/ok; sleep 1000");
    container(&mut healthy, |spec| {
        spec.healthcheck = Some(HealthConfig {
            start_period: Some(Duration::from_secs(20)),
            start_interval: Some(Duration::from_millis(200)),
            // It prints more than a pipe holds.
            ..check("yes | head -c 300000; test -e /tmp/ok")
        });
        spec.stop_signal = "KILL".into();
    });
    let mut sick = shell(2, "sleep 1000");
    container(&mut sick, |spec| {
        spec.healthcheck = Some(check("echo no answer from the database; exit 1"));
        spec.stop_signal = "KILL".into();
    });
    let begin = Instant::now();
    node.assign(&healthy).await;
    node.assign(&sick).await;
    node.wait(&healthy, TaskState::Running).await;
    assert!(begin.elapsed() > Duration::from_secs(1));
    let status = node.wait(&sick, TaskState::Failed).await;
    assert!(status.err.contains("health check ended with exit code 1, 2 times in a row: no answer from the database"), "{}", status.err);
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_tasks_are_adopted_with_the_same_process_and_no_line_is_lost() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let mut counter = shell(1, "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done");
    container(&mut counter, |spec| spec.stop_signal = "KILL".into());
    node.assign(&counter).await;
    let pid = node.wait(&counter, TaskState::Running).await.container.unwrap().pid;
    node.end().await;
    assert!(pid_exists(pid));
    tokio::time::sleep(Duration::from_millis(300)).await;

    let node = Node::start(&containerd).await;
    assert_eq!(node.wait(&counter, TaskState::Running).await.container.unwrap().pid, pid);
    let begin = Instant::now();
    while output(&containerd, &counter).await.lines().count() <= 10 {
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not count");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The end of an adopted process is seen.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let status = node.wait(&counter, TaskState::Failed).await;
    assert_eq!(status.err, "task: non-zero exit (137)");
    let lines: Vec<u32> = output(&containerd, &counter).await.lines().map(|line| line.parse().unwrap()).collect();
    assert!(lines.len() > 10 && lines.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{lines:?}");
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}

/// An agent that is killed while a health check is being started leaves its pipe without a reader: the shim waits for one, and
/// containerd cannot tell meanwhile how the container is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_health_check_was_being_started_is_adopted() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let task = shell(1, "exec sleep 1000");
    node.assign(&task).await;
    let pid = node.wait(&task, TaskState::Running).await.container.unwrap().pid;
    node.end().await;
    let pipe = containerd.path("run").join("tasks").join(task.id.as_str()).join("probe-1-0");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let check = tokio::spawn(start_process(containerd.socket(), task.id.to_string(), pipe.clone()));
    let begin = Instant::now();
    while !containerd.ctr(&["task", "ls"]).contains("UNKNOWN") {
        assert!(begin.elapsed() < Duration::from_secs(60), "the shim waits for nobody");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let node = Node::start(&containerd).await;
    assert_eq!(node.wait(&task, TaskState::Running).await.container.unwrap().pid, pid);
    assert!(pid_exists(pid) && !pipe.exists());
    check.await.unwrap();
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}

/// Another process in a container, with its output into a pipe. Whether it could be started is not asked.
async fn start_process(socket: PathBuf, container: String, pipe: PathBuf) {
    use containerd_client::services::v1::tasks_client::TasksClient;
    use containerd_client::services::v1::{ExecProcessRequest, StartRequest};
    let mut tasks = TasksClient::new(containerd_client::connect(socket).await.unwrap());
    fn named<T>(message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().unwrap());
        request
    }
    let process = r#"{"args":["true"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}"#;
    let spec = prost_types::Any { type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(), value: process.into() };
    let exec_id = "probe-1-0".to_owned();
    let stdout = pipe.display().to_string();
    let added =
        ExecProcessRequest { container_id: container.clone(), stdout, spec: Some(spec), exec_id: exec_id.clone(), ..Default::default() };
    tasks.exec(named(added)).await.unwrap();
    let _ = tasks.start(named(StartRequest { container_id: container, exec_id })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_may_be_killed_and_exits_are_still_seen() {
    if skip().is_some() {
        return;
    }
    let mut containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let one = shell(1, "exec sleep 1000");
    let two = shell(2, "exec sleep 1000");
    node.assign(&one).await;
    node.assign(&two).await;
    let pid = node.wait(&one, TaskState::Running).await.container.unwrap().pid;
    let other = node.wait(&two, TaskState::Running).await.container.unwrap().pid;
    containerd.kill();
    assert!(pid_exists(pid) && pid_exists(other));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    // Assigned while containerd is away: waits and starts later.
    let late = shell(3, "exec sleep 1000");
    node.assign(&late).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    containerd.start();
    let status = node.wait(&one, TaskState::Failed).await;
    assert_eq!(status.err, "task: non-zero exit (137)");
    node.wait(&late, TaskState::Running).await;
    assert_eq!(node.wait(&two, TaskState::Running).await.container.unwrap().pid, other);
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_end_is_told_the_log_is_whole() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    for number in 1..=5 {
        let counter = shell(number, "seq 1 5000");
        node.assign(&counter).await;
        node.wait(&counter, TaskState::Complete).await;
        let lines: Vec<u32> = output(&containerd, &counter).await.lines().map(|line| line.parse().unwrap()).collect();
        assert!(lines.into_iter().eq(1..=5000));
    }
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_mounts_and_limits_are_as_asked() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let mut probe = task(1, Default::default());
    container(&mut probe, |spec| {
        spec.command = vec!["sh".into(), "-c".into()];
        spec.args = vec!["id; cat /vol/sub/file; touch /vol/new && echo written; touch /x || echo readonly; ls /tmpfs; hostname 2>/dev/null; echo $NODE; cat /proc/self/status | head -60; touch /host/y || echo hostro".into()];
        spec.user = "app".into();
        spec.read_only = true;
        spec.env = vec!["NODE={{.Node.Hostname}}-{{.Task.Slot}}".into()];
        spec.mounts = vec![
            Mount { kind: MountType::Volume, source: "v1".into(), target: "/vol".into(), ..Mount::default() },
            Mount { kind: MountType::Tmpfs, target: "/tmpfs".into(), ..Mount::default() },
            Mount {
                kind: MountType::Bind,
                source: containerd.path("image").display().to_string(),
                target: "/host".into(),
                read_only: true,
                ..Mount::default()
            },
        ];
    });
    let volume = containerd.path("data/agent/volumes/v1/_data");
    // The image has its files at /data; a volume there is filled from it.
    container(&mut probe, |spec| spec.mounts[0].target = "/data".into());
    container(&mut probe, |spec| spec.args[0] = spec.args[0].replace("/vol", "/data"));
    node.assign(&probe).await;
    let status = node.wait(&probe, TaskState::Complete).await;
    let text = output_with(&containerd, &probe, "hostro").await;
    assert!(status.container.is_some(), "{status:?}");
    assert!(
        text.contains("uid=1000(app) gid=1001 groups=44(extra)")
            || text.contains("uid=1000(app) gid=1001 groups=1001,44(extra)")
            || text.contains("uid=1000(app)"),
        "{text}"
    );
    assert!(text.contains("from the image"), "{text}");
    assert!(text.contains("readonly"), "{text}");
    assert!(text.contains("alpha-1"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"), "{text}");
    assert!(volume.join("sub/file").exists());
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
    assert!(volume.join("sub/file").exists(), "a named volume outlives its tasks");
}

/// What `/proc/<pid>/stat` says behind the name: state, parent, process group, session, terminal, group in its foreground.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// Children of a process: those that run, those that are zombies.
fn children(parent: i32) -> (Vec<i32>, Vec<i32>) {
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own: Vec<i32> = all.filter(|pid| stat(*pid).is_some_and(|stat| stat[1] == parent.to_string())).collect();
    own.into_iter().partition(|pid| stat(*pid).is_some_and(|stat| stat[0] != "Z"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_process_reaps_orphans_and_passes_the_stop_signal_on() {
    if skip().is_some() {
        return;
    }
    if !init_program().is_file() {
        let why = format!("{} is not built; run scripts/static debug", init_program().display());
        assert!(std::env::var_os("SKEP_REQUIRE_REAL").is_none(), "real tests are required: {why}");
        eprintln!("SKIPPED: {why}");
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    // The inner shell loses its parent at once; the outer becomes a program that neither reaps nor heeds SIGTERM as process 1.
    let script = "(sleep 0.3 &); exec sleep 1000";
    let mut with = shell(1, script);
    container(&mut with, |spec| (spec.init, spec.read_only, spec.user) = (Some(true), true, "app".into()));
    let mut without = shell(2, script);
    container(&mut without, |spec| spec.stop_grace_period = Some(Duration::from_secs(1)));
    let mut missing = shell(3, "true");
    container(&mut missing, |spec| (spec.init, spec.command) = (Some(true), vec!["nosuch".into()]));
    let mut terminal = shell(4, "exec sleep 1000");
    container(&mut terminal, |spec| (spec.init, spec.tty) = (Some(true), true));
    for task in [&with, &without, &missing, &terminal] {
        node.assign(task).await;
    }
    let pid = node.wait(&with, TaskState::Running).await.container.unwrap().pid;
    let bare = node.wait(&without, TaskState::Running).await.container.unwrap().pid;
    let begin = Instant::now();
    let line = || std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    // For a moment after its start it is still runc's.
    while !line().starts_with(b"/sbin/docker-init\0--\0sh\0-c\0") {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", String::from_utf8_lossy(&line()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let counts = |pid| (children(pid).0.len(), children(pid).1.len());
    while counts(bare) != (0, 1) || counts(pid) != (1, 0) {
        assert!(begin.elapsed() < Duration::from_secs(60), "with {:?}, without {:?}", children(pid), children(bare));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // On a terminal the command is the group in the foreground: what is typed reaches it, and once.
    let pid = node.wait(&terminal, TaskState::Running).await.container.unwrap().pid;
    let leads_in_foreground =
        |pid: &i32| stat(*pid).is_some_and(|fields| fields[2] == pid.to_string() && fields[5] == fields[2] && fields[4] != "0");
    while !children(pid).0.iter().any(leads_in_foreground) {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", children(pid).0.into_iter().map(stat).collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (task, code) in [(&mut with, 143), (&mut without, 137), (&mut terminal, 143)] {
        let begin = Instant::now();
        node.desire(task, TaskState::Shutdown).await;
        let status = node.wait(task, TaskState::Shutdown).await;
        assert_eq!(status.container.map(|c| c.exit_code), Some(code));
        eprintln!("stopped with {code} in {:?}", begin.elapsed());
    }
    let status = node.wait(&missing, TaskState::Failed).await;
    assert_eq!(status.err, "task: non-zero exit (127)");
    output_with(&containerd, &missing, "skep-init: executable file not found: \"nosuch\"").await;
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_the_init_process_says_where_it_belongs() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let mut config = containerd.config();
    config.init = vec!["/no/such/skep-init".into()];
    let node = Node::start_at(config, containerd.chain_id.clone(), |_| {}).await;
    let mut task = shell(1, "true");
    container(&mut task, |spec| spec.init = Some(true));
    node.assign(&task).await;
    let status = node.wait(&task, TaskState::Rejected).await;
    assert!(status.err.contains("looked for at /no/such/skep-init; copy skep-init"), "{}", status.err);
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}

/// CPU seconds of this process and of all that it waited for.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<f64> = text.lines().next().unwrap().split_whitespace().skip(1).map(|field| field.parse().unwrap()).collect();
    (fields[0] + fields[1] + fields[2]) / 100.0
}

/// A burst, for people: `cargo test -p skep-agent --test containers burst -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn burst() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let sleeper = |number| {
        let mut task = shell(number, "exec sleep 1000");
        container(&mut task, |spec| {
            spec.command = vec!["sleep".into(), "1000".into()];
            spec.stop_signal = "KILL".into();
        });
        task
    };
    let mut warm = sleeper(99);
    node.assign(&warm).await;
    node.wait(&warm, TaskState::Running).await;
    node.desire(&mut warm, TaskState::Shutdown).await;
    node.wait(&warm, TaskState::Shutdown).await;
    for count in [1, 1, 1, 10, 50] {
        let mut tasks: Vec<_> = (0..count).map(sleeper).collect();
        let (begin, before) = (Instant::now(), cpu());
        for task in &tasks {
            node.assign(task).await;
        }
        for task in &tasks {
            node.wait(task, TaskState::Running).await;
        }
        let (started, cpu_start) = (begin.elapsed(), cpu() - before);
        let (begin, before) = (Instant::now(), cpu());
        for task in &mut tasks {
            node.desire(task, TaskState::Shutdown).await;
        }
        for task in &tasks {
            node.wait(task, TaskState::Shutdown).await;
        }
        eprintln!("{count}: start {started:?} (machine's CPU {cpu_start:.2} s), stop {:?} (CPU {:.2} s)", begin.elapsed(), cpu() - before);
    }
    for count in [1usize, 1, 10, 50] {
        let (begin, before) = (Instant::now(), cpu());
        let ids: Vec<String> = (0..count).map(|n| format!("ctr-{}-{n}-{count}", std::process::id())).collect();
        let socket = containerd.socket();
        for pair in ids.chunks(2) {
            let children: Vec<_> = pair
                .iter()
                .map(|id| {
                    std::process::Command::new("ctr")
                        .args([
                            "--address",
                            socket.to_str().unwrap(),
                            "--namespace",
                            "skep",
                            "run",
                            "-d",
                            "--net-host",
                            "docker.io/library/box:1",
                            id,
                            "sleep",
                            "1000",
                        ])
                        .stdout(std::process::Stdio::null())
                        .spawn()
                        .unwrap()
                })
                .collect();
            for mut child in children {
                child.wait().unwrap();
            }
        }
        let (started, cpu_start) = (begin.elapsed(), cpu() - before);
        let (begin, before) = (Instant::now(), cpu());
        for pair in ids.chunks(2) {
            let children: Vec<_> = pair.iter().map(|id| {
                let line = format!("ctr --address {s} -n skep task kill -s KILL {id}; ctr --address {s} -n skep task rm {id}; ctr --address {s} -n skep container rm {id}", s = socket.display());
                std::process::Command::new("sh").args(["-c", &line]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
            }).collect();
            for mut child in children {
                child.wait().unwrap();
            }
        }
        eprintln!(
            "ctr {count}: start {started:?} (machine's CPU {cpu_start:.2} s), stop {:?} (CPU {:.2} s)",
            begin.elapsed(),
            cpu() - before
        );
    }
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_log_writer_is_replaced_and_the_container_never_notices() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let node = Node::start(&containerd).await;
    let mut counter = shell(1, "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done");
    container(&mut counter, |spec| spec.stop_signal = "KILL".into());
    node.assign(&counter).await;
    let pid = node.wait(&counter, TaskState::Running).await.container.unwrap().pid;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let run_dir = containerd.path("run").display().to_string();
    let writer =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("log_writer_process") && String::from_utf8_lossy(&env).contains(&run_dir)
        });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(writer.unwrap()), nix::sys::signal::Signal::SIGKILL).unwrap();
    let count = |text: String| text.lines().filter_map(|line| line.parse::<u32>().ok()).collect::<Vec<_>>();
    let before = count(output(&containerd, &counter).await).len();
    let begin = Instant::now();
    while count(output(&containerd, &counter).await).len() < before + 100 {
        assert!(begin.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(pid_exists(pid));
    let lines = count(output(&containerd, &counter).await);
    // What the dead writer had read and not yet written is the most that may be lost.
    let missing = lines.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count();
    assert!(missing <= 1, "{lines:?}");
    node.leave().await;
    assert_eq!(containerd.audit(), Vec::<String>::new());
}
