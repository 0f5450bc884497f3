//! Nodes that give their tasks up, and nodes that are lost with theirs.

use super::SOON;
use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Scenario, Task, eventually};
use skep_proto::v1::TaskState;
use std::collections::BTreeSet;

/// Hosts of the scenarios: m1 manages and takes no tasks by the constraint, w1 and w2 work.
const W1: usize = 1;
const W2: usize = 2;

fn create(cluster: &Cluster, name: &str, flags: &[&str]) -> Result<()> {
    let all = [
        "service",
        "create",
        "-d",
        "--name",
        name,
        "--constraint",
        "node.role==worker",
        "--restart-delay",
        "0s",
        "--stop-grace-period",
        "2s",
    ];
    cluster.ctl(0, &[&all[..], flags, &["whoami"]].concat())?.success()?;
    Ok(())
}

/// Tasks that a process may be of, on this host.
fn on_host(cluster: &Cluster, service: &str, host: usize) -> Result<Vec<Task>> {
    let is_there = |task: &Task| task.host == Some(host) && (TaskState::Assigned..=TaskState::Running).contains(&task.state);
    Ok(cluster.tasks(0, service)?.into_iter().filter(is_there).collect())
}

fn activate(cluster: &Cluster, host: &str) -> Result<()> {
    cluster.ctl(0, &["node", "update", "--availability", "active", host])?.success()?;
    Ok(())
}

#[test]
fn a_drain_waits_starts_first_where_it_may_and_names_what_blocks_it() -> Result<()> {
    Scenario::new("drains", 1, 2).named().run(|cluster| {
        cluster.ctl(0, &["node", "update", "--availability", "pause", "w2"])?.success()?;
        create(cluster, "web", &["--replicas", "2", "--update-order", "start-first"])?;
        create(cluster, "db", &[])?;
        create(cluster, "stays", &["--update-order", "start-first", "--constraint", "node.hostname==w1"])?;
        for (service, count) in [("web", 2), ("db", 1), ("stays", 1)] {
            let running = cluster.wait_running(0, service, count)?;
            ensure!(running.iter().all(|(host, _)| *host == Some(W1)), "{service}: {running:?}");
        }
        let kept = cluster.pids(0, "stays")?;
        activate(cluster, "w2")?;

        // Start first: two slots are served all the time, db stops first, and what fits nowhere else goes on and is named.
        cluster.ctl(0, &["node", "drain", "--order", "start-first", "-d", "w1"])?.success()?;
        eventually(SOON, "web runs on w2", || {
            let web = cluster.tasks(0, "web")?;
            let served: BTreeSet<u64> = web.iter().filter(|task| task.runs()).map(|task| task.slot).collect();
            assert_eq!(served.len(), 2, "a slot of web is not served: {web:#?}");
            ensure!(on_host(cluster, "web", W1)?.is_empty() && on_host(cluster, "db", W1)?.is_empty(), "not yet");
            Ok(())
        })?;
        let blocked = cluster.ctl(0, &["node", "drain", "--order", "start-first", "--timeout", "2s", "w1"])?;
        for words in ["is not empty", "stays.1", "still runs there", "constraints not satisfied"] {
            ensure!(blocked.status != 0 && blocked.stderr.contains(words), "no {words:?}: {blocked:?}");
        }
        ensure!(cluster.pids(0, "stays")? == kept, "it was touched");
        let told = cluster.ctl(0, &["explain", "node", "w1"])?.success()?;
        ensure!(told.contains("the drain starts first: 1 task serves here until others run in their place: stays"), "{told}");

        // Stop first: the same service stops, and its next task is what is named.
        let blocked = cluster.ctl(0, &["node", "drain", "--timeout", "4s", "w1"])?;
        for words in ["is not empty", "stays.1", "is pending and not yet running elsewhere", "constraints not satisfied"] {
            ensure!(blocked.status != 0 && blocked.stderr.contains(words), "no {words:?}: {blocked:?}");
        }
        eventually(SOON, "it stopped", || {
            ensure!(on_host(cluster, "stays", W1)?.is_empty());
            Ok(())
        })?;
        cluster.ctl(0, &["service", "rm", "stays"])?.success()?;
        cluster.ctl(0, &["node", "drain", "w1"])?.success()?;

        // And back, waiting: when the command returns, all of it has happened.
        activate(cluster, "w1")?;
        let told = cluster.ctl(0, &["node", "drain", "--order", "start-first", "w2"])?;
        ensure!(told.status == 0 && told.stderr.contains("db stops first: its --update-order is stop-first"), "{told:?}");
        ensure!(!told.stderr.contains("web stops first"), "{told:?}");
        for (service, count) in [("web", 2), ("db", 1)] {
            ensure!(on_host(cluster, service, W2)?.is_empty(), "{service} is on w2");
            ensure!(cluster.pids(0, service)?.iter().filter(|(host, _)| *host == Some(W1)).count() == count, "{service} is not on w1");
        }
        let wrong = cluster.ctl(0, &["node", "drain", "--order", "sideways", "w2"])?;
        ensure!(wrong.status == 2 && wrong.stderr.contains("stop-first or start-first"), "{wrong:?}");
        Ok(())
    })
}

#[test]
fn tasks_of_a_lost_node_are_unknown_replaced_once_and_gone_with_the_node() -> Result<()> {
    Scenario::new("lost node", 1, 2).named().run(|cluster| {
        create(cluster, "web", &["--replicas", "2"])?;
        let before = cluster.wait_running(0, "web", 2)?;
        ensure!(before.iter().map(|(host, _)| *host).collect::<BTreeSet<_>>().len() == 2, "one on each: {before:?}");
        let lost = on_host(cluster, "web", W2)?.pop().context("nothing is on w2")?;
        cluster.cut(W2)?;
        let text = eventually(SOON, "the task is unknown", || {
            let text = cluster
                .ctl(0, &["service", "ps", "web", "--no-trunc", "--format", "{{.ID}} {{.DesiredState}} {{.CurrentState}}"])?
                .success()?;
            ensure!(text.contains(&format!("{} Shutdown Unknown since ", lost.id)) && text.contains("ago (was Running)"), "{text}");
            Ok(text)
        })?;
        eprintln!("{text}");
        cluster.wait_running(0, "web", 2)?;
        let of_slot =
            |cluster: &Cluster| -> Result<usize> { Ok(cluster.tasks(0, "web")?.iter().filter(|task| task.slot == lost.slot).count()) };
        ensure!(of_slot(cluster)? == 2, "the slot was not replaced once: {:#?}", cluster.tasks(0, "web")?);

        // Its container runs on; when the node is back it is ended, and nothing is replaced again.
        cluster.heal()?;
        cluster.wait_ready(SOON)?;
        eventually(SOON, "it ended on the node that is back", || {
            ensure!(on_host(cluster, "web", W2)?.is_empty());
            Ok(())
        })?;
        ensure!(of_slot(cluster)? == 2, "{:#?}", cluster.tasks(0, "web")?);

        // A node that is thrown out while it is up is gone with what the cluster knew of its tasks; others come in their place. What
        // still runs there ends when it leaves, which is asked of every host in the end.
        let id = cluster.node_id(W1)?;
        let there = on_host(cluster, "web", W1)?;
        ensure!(there.len() == 2, "{there:#?}");
        let refused = cluster.ctl(0, &["node", "rm", "w1"])?;
        ensure!(refused.status != 0 && refused.stderr.contains("not down"), "{refused:?}");
        cluster.ctl(0, &["node", "rm", "--force", "w1"])?.success()?;
        cluster.wait_running(0, "web", 2)?;
        ensure!(on_host(cluster, "web", W2)?.len() == 2, "{:#?}", cluster.tasks(0, "web")?);
        ensure!(on_host(cluster, "web", W1)?.is_empty(), "it is said to run: {:#?}", cluster.tasks(0, "web")?);
        let known = cluster.ctl(0, &["node", "ls", "--format", "{{.ID}}"])?.success()?;
        ensure!(!known.contains(&id), "{known}");
        Ok(())
    })
}
