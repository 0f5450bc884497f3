//! A worker without managers: what runs goes on, what crashes is restarted by its own policy, and all is told afterwards.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_kit::{Cluster, Scenario, eventually};
use std::collections::BTreeMap;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const WORKER: usize = 1;

/// Containers that run on the worker, by containerd's word: id and process.
fn running(cluster: &Cluster) -> Result<BTreeMap<String, i32>> {
    let text = cluster[WORKER].ctr(&["tasks", "ls"])?.success()?;
    let words =
        text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|words| words.get(2) == Some(&"RUNNING"));
    Ok(words.filter_map(|words| Some((words.first()?.to_string(), words.get(1)?.parse().ok()?))).collect())
}

fn crash(pid: i32) -> Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
}

/// Waits until a container runs whose process is not `old`.
fn restarted(cluster: &Cluster, old: i32) -> Result<(String, i32)> {
    eventually(SOON, "the crashed task runs again", || {
        let now = running(cluster)?;
        let new = now.into_iter().find(|(_, pid)| *pid != old);
        new.context("it does not")
    })
}

fn create(cluster: &Cluster, flags: &[&str]) -> Result<()> {
    let all = [&["service", "create", "-d", "--constraint", "node.role==worker"][..], flags, &["whoami"]].concat();
    cluster.ctl(0, &all)?.success()?;
    Ok(())
}

#[test]
fn an_isolated_worker_keeps_its_tasks_restarts_crashed_ones_and_reports_when_it_is_back() -> Result<()> {
    Scenario::new("isolated worker", 1, 1).run(|cluster| {
        let port = "published=8080,target=8080,mode=host";
        create(cluster, &["--name", "web", "--publish", port, "--restart-delay", "0s"])?;
        cluster.wait_running(0, "web", 1)?;
        let (task, first) = running(cluster)?.into_iter().next().context("nothing runs")?;
        let url = format!("http://{}:8080/", cluster.address(WORKER));
        cluster.cut(WORKER)?;
        eventually(SOON, "it knows that it is alone", || {
            ensure!(!cluster.api(WORKER)?.status(false)?.connected, "connected");
            Ok(())
        })?;
        ensure!(running(cluster)? == BTreeMap::from([(task.clone(), first)]), "what ran was touched");
        ensure!(cluster.curl(&url)?.contains("host="));

        crash(first)?;
        let (again, second) = restarted(cluster, first)?;
        eprintln!("task {task} goes on in container {again}");
        eventually(SOON, "it answers again", || cluster.curl(&url))?;

        // The daemon itself may go away meanwhile.
        cluster[WORKER].kill_skepd();
        ensure!(running(cluster)?.values().any(|pid| *pid == second), "the task ended with skepd");
        cluster[WORKER].start_skepd()?;
        eventually(SOON, "the task is adopted", || {
            ensure!(running(cluster)?.values().any(|pid| *pid == second), "{:?}", running(cluster)?);
            Ok(())
        })?;
        std::thread::sleep(Duration::from_secs(2));
        crash(second)?;
        let (_, third) = restarted(cluster, second)?;
        eventually(SOON, "it answers once more", || cluster.curl(&url))?;

        cluster.heal()?;
        cluster.wait_ready(SOON)?;
        // If the manager took the node for dead meanwhile, another task has the slot now; else it is the same one. Never two.
        let settled = eventually(SOON, "one task runs, and the manager knows its process", || {
            let here = running(cluster)?;
            let known = cluster.pids(0, "web")?;
            ensure!(here.len() == 1 && known.len() == 1, "{here:?}, {known:?}");
            ensure!(known.iter().next().map(|(_, pid)| *pid) == here.values().next().copied(), "{here:?}, {known:?}");
            Ok(here)
        })?;
        eprintln!("it is {}", if settled.values().any(|pid| *pid == third) { "the one that ran alone" } else { "another one" });
        eventually(SOON, "it answers in the end", || cluster.curl(&url))?;
        Ok(())
    })
}

#[test]
fn an_isolated_worker_obeys_the_restart_policy() -> Result<()> {
    Scenario::new("isolated worker obeys its policy", 1, 1).long().run(|cluster| {
        create(cluster, &["--name", "never", "--restart-condition", "none"])?;
        create(cluster, &["--name", "twice", "--restart-delay", "0s", "--restart-max-attempts", "2"])?;
        cluster.wait_running(0, "never", 1)?;
        cluster.wait_running(0, "twice", 1)?;
        let pid = |service: &str| -> Result<i32> { Ok(cluster.pids(0, service)?.iter().next().context("it does not run")?.1) };
        let (never, mut twice) = (pid("never")?, pid("twice")?);
        cluster.cut(WORKER)?;
        eventually(SOON, "it knows that it is alone", || {
            ensure!(!cluster.api(WORKER)?.status(false)?.connected, "connected");
            Ok(())
        })?;
        crash(never)?;
        for _ in 0..2 {
            crash(twice)?;
            twice = eventually(SOON, "it runs again", || {
                running(cluster)?.into_values().find(|pid| *pid != never && *pid != twice).context("it does not")
            })?;
        }
        crash(twice)?;
        std::thread::sleep(Duration::from_secs(5));
        ensure!(running(cluster)?.is_empty(), "restarted against the policy: {:?}", running(cluster)?);
        cluster.heal()?;
        cluster.wait_ready(SOON)?;
        eventually(SOON, "the manager knows", || {
            let tasks = cluster.tasks(0, "never")?;
            ensure!(tasks.iter().all(|task| !task.runs()), "{tasks:#?}");
            Ok(())
        })
    })
}
