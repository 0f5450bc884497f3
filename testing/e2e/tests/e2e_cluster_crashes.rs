//! `kill -9` at every fail-point on the way of nodes, keys and backups through a cluster: what was begun is finished, or can be done
//! again.

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Scenario, eventually, fail_points};
use skep_proto::v1::NodeRole;
use std::collections::BTreeSet;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const WORKER: i32 = NodeRole::Worker as i32;

/// What died where, for the end.
#[derive(Default)]
struct Deaths {
    died: BTreeSet<String>,
    not_reached: BTreeSet<String>,
}

impl Deaths {
    /// Whether skepd on the host died at the point that it was started for; if not, it is killed.
    fn note(&mut self, cluster: &mut Cluster, host: usize, point: &str) {
        let died = cluster[host].skepd_died(Duration::from_millis(500));
        eprintln!("{point}: {}", if died { "died" } else { "not reached" });
        if died { &mut self.died } else { &mut self.not_reached }.insert(point.to_owned());
        cluster[host].kill_skepd();
    }

    fn at_least(self, count: usize) -> Result<()> {
        eprintln!("died at {} points: {:?}\nnot reached: {:?}", self.died.len(), self.died, self.not_reached);
        ensure!(self.died.len() >= count, "died at {} points only: {:?}", self.died.len(), self.died);
        Ok(())
    }
}

/// The points that skepd on the host comes by while `work` is done, as far as their names begin so.
fn passed(cluster: &mut Cluster, host: usize, beginnings: &[&str], work: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<Vec<String>> {
    let trace = cluster[host].dir().join("trace");
    let _ = std::fs::remove_file(&trace);
    cluster[host].kill_skepd();
    cluster[host].set_environment(vec![("SKEP_FAILPOINT_TRACE".to_owned(), trace.to_string_lossy().into_owned())]);
    cluster[host].start_skepd()?;
    cluster.wait_leader(SOON)?;
    work(cluster)?;
    cluster[host].arm(None)?;
    let names = std::fs::read_to_string(&trace)?;
    Ok(names.lines().filter(|name| beginnings.iter().any(|beginning| name.starts_with(beginning))).map(str::to_owned).collect())
}

fn write(cluster: &Cluster, through: usize, name: &str) -> Result<()> {
    cluster.ctl(through, &["service", "create", "-d", "--name", name, "--replicas", "0", "whoami"])?.success()?;
    cluster.ctl(through, &["service", "rm", name])?.success()?;
    Ok(())
}

/// The second host joins, runs tasks, is promoted, sees a new root, is demoted, leaves and is removed. The only other manager may die
/// in the middle of it: then what follows fails.
fn life_of_a_node(cluster: &mut Cluster) -> Result<()> {
    eventually(SOON, "it leads, or is dead", || if cluster[0].is_alive() { cluster.leader().map(drop) } else { Ok(()) })?;
    cluster.join(1, "worker")?;
    let id = cluster.node_id(1)?;
    let flags = ["service", "create", "-d", "--name", "web", "--replicas", "2", "whoami", "lines", "3"];
    cluster.ctl(0, &flags)?.success()?;
    eventually(Duration::from_secs(20), "its lines are read", || {
        ensure!(cluster[0].is_alive(), "the manager is dead");
        ensure!(cluster.ctl(0, &["service", "logs", "web"])?.success()?.contains("out 2"));
        Ok(())
    })?;
    cluster.ctl(0, &["node", "promote", &id])?.success()?;
    cluster.ctl(0, &["cluster", "ca", "--rotate", "-q"])?.success()?;
    cluster.ctl(0, &["node", "demote", &id])?.success()?;
    cluster.ctl(0, &["service", "rm", "web"])?.success()?;
    cluster.ctl(1, &["cluster", "leave"])?.success()?;
    cluster.ctl(0, &["node", "rm", "--force", &id])?.success()?;
    Ok(())
}

/// Whatever had become of the second host: it can be made to leave, and one manager is left that works.
fn back_to_one(cluster: &Cluster) -> Result<()> {
    if let Ok(id) = cluster.node_id(1) {
        // Its role is not what was wished yet, or it does not know yet what it has become.
        eventually(SOON, "the second node is a worker or gone", || {
            let nodes = cluster.api(0)?.nodes()?;
            let Some(node) = nodes.iter().find(|node| node.id == id) else { return Ok(()) };
            let manages = cluster.replica(1).is_ok();
            if node.role != WORKER || manages {
                cluster.ctl(0, &["node", "demote", "--detach", &id])?.success()?;
            }
            ensure!(node.role == WORKER && !manages, "its role is {}, it manages: {manages}", node.role);
            Ok(())
        })?;
        cluster.ctl(1, &["cluster", "leave", "--force"])?.success()?;
    }
    let _ = cluster.ctl(0, &["service", "rm", "web"])?;
    let own = cluster.node_id(0)?;
    eventually(SOON, "one node is left, and it is ready", || {
        for node in cluster.api(0)?.nodes()?.iter().filter(|node| node.id != own) {
            cluster.ctl(0, &["node", "rm", "--force", &node.id])?.success()?;
        }
        let status = cluster.ctl(0, &["node", "ls", "--format", "{{.Status}}"])?.success()?;
        ensure!(status.trim() == "Ready", "{status}");
        Ok(())
    })?;
    eventually(SOON, "it works", || write(cluster, 0, "still"))
}

#[test]
fn a_manager_killed_anywhere_in_the_life_of_a_node_goes_on() -> Result<()> {
    Scenario::new("manager crashes in a node's life", 1, 1).long().unformed().run(|cluster| {
        let address = cluster.address(0);
        cluster.ctl(0, &["cluster", "init", "--advertise-addr", &address])?.success()?;
        cluster.load_image()?;
        let mut points = passed(cluster, 0, &["manager.", "skepd.", "ca."], |cluster| {
            life_of_a_node(cluster)?;
            back_to_one(cluster)
        })?;
        points.sort();
        let mut deaths = Deaths::default();
        for point in &points {
            if cluster[0].arm(Some(point))? {
                let _ = life_of_a_node(cluster);
            }
            deaths.note(cluster, 0, point);
            cluster[0].arm(None)?;
            back_to_one(cluster).with_context(|| format!("after a kill at {point}"))?;
        }
        deaths.at_least(points.len() * 3 / 4)
    })
}

#[test]
fn a_recovery_killed_anywhere_can_be_done_again() -> Result<()> {
    Scenario::new("crashes while recovering", 2, 0).long().run(|cluster| {
        let mut deaths = Deaths::default();
        for point in fail_points(&["skepd.recover.", "store.recover."])? {
            cluster.ctl(0, &["service", "create", "-d", "--name", &point.replace('.', "-"), "--replicas", "0", "whoami"])?.success()?;
            cluster.wait_converged(cluster.managers(), SOON)?;
            cluster[1].kill_skepd();
            if cluster[0].arm(Some(&point))? {
                let _ = cluster.ctl(0, &["cluster", "recover", "--yes"])?;
            }
            deaths.note(cluster, 0, &point);
            cluster[0].arm(None)?;
            eventually(SOON, "it works alone", || {
                let done = write(cluster, 0, "alone");
                if done.is_err() {
                    cluster.ctl(0, &["cluster", "recover", "--yes"])?.success()?;
                }
                done
            })
            .with_context(|| format!("after a kill at {point}"))?;
            let listed = cluster.ctl(0, &["service", "ls", "--format", "{{.Name}}"])?.success()?;
            ensure!(listed.contains(&point.replace('.', "-")), "{point}: {listed}");
            cluster[1].wipe()?;
            cluster[1].start_skepd()?;
            cluster.join_through(1, "manager", 0)?;
            cluster.wait_converged(cluster.managers(), SOON)?;
        }
        deaths.at_least(3)
    })
}

#[test]
fn a_restoration_killed_anywhere_can_be_done_again() -> Result<()> {
    Scenario::new("crashes while restoring", 1, 1).long().unformed().run(|cluster| {
        let (address, other) = (cluster.address(0), cluster.address(1));
        cluster.ctl(0, &["cluster", "init", "--advertise-addr", &address])?.success()?;
        cluster.ctl(0, &["service", "create", "-d", "--name", "kept", "--replicas", "0", "whoami"])?.success()?;
        let (file, key) = (cluster[0].dir().join("backup"), cluster[0].dir().join("backup.key"));
        let (file, key) = (file.to_string_lossy().into_owned(), key.to_string_lossy().into_owned());
        cluster.ctl(0, &["cluster", "backup", &file, "--key-file", &key])?.success()?;
        // The old manager is gone for good.
        cluster.cut(0)?;
        let restore = ["cluster", "restore", &file, "--key-file", &key, "--advertise-addr", &other];
        let mut deaths = Deaths::default();
        for point in fail_points(&["skepd.restore.", "store.restore."])? {
            if cluster[1].arm(Some(&point))? {
                let _ = cluster.ctl(1, &restore)?;
            }
            deaths.note(cluster, 1, &point);
            cluster[1].arm(None)?;
            if cluster.api(1)?.status(false)?.node_id.is_empty() {
                cluster.ctl(1, &restore)?.success().with_context(|| format!("again after a kill at {point}"))?;
            }
            let listed =
                eventually(SOON, "what was saved is there", || cluster.ctl(1, &["service", "ls", "--format", "{{.Name}}"])?.success())?;
            ensure!(listed == "kept\n", "after a kill at {point}: {listed:?}");
            eventually(SOON, "it works", || write(cluster, 1, "after"))?;
            cluster.ctl(1, &["cluster", "leave", "--force"])?.success()?;
        }
        cluster.heal()?;
        deaths.at_least(3)
    })
}

#[test]
fn a_new_unlock_key_reaches_a_manager_killed_anywhere() -> Result<()> {
    Scenario::new("crashes while sealing", 3, 0).long().run(|cluster| {
        let key_file = cluster[0].dir().join("key");
        let mut deaths = Deaths::default();
        // Of all rounds: one that is killed again before it heard of the last change still opens with the key before.
        let mut keys = Vec::new();
        cluster.ctl(0, &["cluster", "update", "--autolock"])?.success()?;
        for point in fail_points(&["skepd.reseal.", "store.reseal.", "store.rotate."])? {
            let leader = cluster.wait_leader(SOON)?;
            let hit = cluster.managers().find(|host| *host != leader).context("a follower")?;
            keys.insert(0, cluster.ctl(leader, &["cluster", "unlock-key", "-q"])?.success()?);
            cluster[hit].kill_skepd();
            let up = cluster[hit].arm(Some(&point))?;
            if up {
                open(cluster, hit, &key_file, &keys)?;
                cluster.wait_converged(cluster.managers(), SOON)?;
                keys.insert(0, cluster.ctl(leader, &["cluster", "unlock-key", "--rotate", "-q"])?.success()?);
                // It hears of it, and seals its files anew.
                cluster[hit].skepd_died(Duration::from_secs(10));
            }
            deaths.note(cluster, hit, &point);
            cluster[hit].arm(None)?;
            open(cluster, hit, &key_file, &keys).with_context(|| format!("after a kill at {point}"))?;
            cluster.wait_converged(cluster.managers(), SOON).with_context(|| format!("after a kill at {point}"))?;
        }
        let leader = cluster.wait_leader(SOON)?;
        cluster.ctl(leader, &["cluster", "update", "--autolock=false"])?.success()?;
        deaths.at_least(2)
    })
}

/// Unlocks a manager that is locked with the key before or after a change, whichever it had got to.
fn open(cluster: &Cluster, host: usize, key_file: &std::path::Path, keys: &[String]) -> Result<()> {
    eventually(SOON, "a key opens it", || {
        for key in keys {
            if !cluster.api(host)?.status(false)?.locked {
                return Ok(());
            }
            std::fs::write(key_file, key)?;
            let _ = cluster.ctl(host, &["cluster", "unlock", "--key-file", &key_file.to_string_lossy()])?;
        }
        ensure!(!cluster.api(host)?.status(false)?.locked, "it is locked");
        Ok(())
    })
}
