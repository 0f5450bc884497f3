//! When the majority or everything is lost: backup, restore, recovery from one survivor.

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Journal, Scenario, eventually};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(40);

fn web(cluster: &Cluster) -> Result<()> {
    let flags = ["service", "create", "-d", "--name", "web", "--replicas", "2", "--constraint", "node.role==worker", "whoami"];
    cluster.ctl(0, &flags)?.success()?;
    cluster.wait_running(0, "web", 2)?;
    Ok(())
}

fn services(cluster: &Cluster, through: usize) -> Result<String> {
    cluster.ctl(through, &["service", "ls", "--format", "{{.Name}}"])?.success()
}

#[test]
fn a_cluster_that_lost_all_managers_comes_back_from_its_backup_and_tasks_do_not_notice() -> Result<()> {
    Scenario::new("backup and restore", 2, 1).run(|cluster| {
        web(cluster)?;
        let before = cluster.pids(0, "web")?;
        let (file, key) = (cluster[0].dir().join("backup"), cluster[0].dir().join("backup.key"));
        let (file, key) = (file.to_string_lossy().into_owned(), key.to_string_lossy().into_owned());
        cluster.ctl(1, &["cluster", "backup", &file, "--key-file", &key])?.success()?;
        let sealed = std::fs::read(&file)?;
        ensure!(!sealed.windows(6).any(|bytes| bytes == b"whoami"), "the backup can be read without its key");
        cluster.ctl(0, &["service", "create", "-d", "--name", "later", "--replicas", "0", "whoami"])?.success()?;

        // Beside the living cluster it is refused.
        cluster[1].wipe()?;
        cluster[1].start_skepd()?;
        let address = cluster.address(1);
        let refused = cluster.ctl(1, &["cluster", "restore", &file, "--key-file", &key, "--advertise-addr", &address])?;
        ensure!(refused.status != 0, "a stale backup came to life beside its cluster: {refused:?}");
        ensure!(cluster.api(1)?.status(false)?.node_id.is_empty(), "half restored");

        cluster[0].wipe()?;
        cluster[0].start_skepd()?;
        let address = cluster.address(0);
        let wrong = cluster[0].dir().join("wrong.key");
        std::fs::write(&wrong, "SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n")?;
        let refused = cluster.ctl(0, &["cluster", "restore", &file, "--key-file", &wrong.to_string_lossy()])?;
        ensure!(refused.status != 0, "a wrong key opened the backup");
        let restored = cluster.ctl(0, &["cluster", "restore", &file, "--key-file", &key, "--advertise-addr", &address])?.success()?;
        eprintln!("{restored}");
        let listed = eventually(SOON, "the services are there", || services(cluster, 0))?;
        ensure!(listed == "web\n", "{listed:?}");
        // The worker's certificate is of the same root and the manager is where it was: it comes back by itself.
        eventually(SOON, "the worker's tasks are known again, and are the same", || {
            let now = cluster.pids(0, "web")?;
            ensure!(now == before, "{before:?} became {now:?}");
            Ok(())
        })?;
        cluster.join_through(1, "manager", 0)?;
        cluster.wait_converged(cluster.managers(), SOON)?;
        Ok(())
    })
}

#[test]
fn one_survivor_becomes_the_cluster_and_the_other_half_never_joins_it_again() -> Result<()> {
    Scenario::new("recover", 3, 1).run(|cluster| {
        web(cluster)?;
        let before = cluster.pids(0, "web")?;
        let journal = Journal::start(&cluster.sockets(cluster.managers()), 2)?;
        std::thread::sleep(Duration::from_secs(2));
        let record = journal.end()?;
        cluster.wait_converged(cluster.managers(), SOON)?;
        let old = cluster.replica(0)?;
        cluster[1].kill_skepd();
        cluster[2].kill_skepd();
        let refused = cluster.ctl(0, &["service", "create", "-d", "--name", "nobody", "--replicas", "0", "whoami"])?;
        ensure!(refused.status != 0, "one of three took a write");

        let report = cluster.ctl(0, &["cluster", "recover", "--yes"])?.success()?;
        eprintln!("{report}");
        eventually(SOON, "it takes writes", || {
            cluster.ctl(0, &["service", "create", "-d", "--name", "alone", "--replicas", "0", "whoami"])?.success()
        })?;
        let alone = cluster.replica(0)?;
        ensure!(alone.raft_id != old.raft_id, "the same member of the group: the halves could merge");
        record.all_in(&cluster.api(0)?.configs()?)?;
        eventually(SOON, "the worker is back and its tasks were not touched", || {
            let now = cluster.pids(0, "web")?;
            ensure!(now == before, "{before:?} became {now:?}");
            Ok(())
        })?;

        // The others come back and are a majority of the old group: two clusters, which do not mix.
        cluster[1].start_skepd()?;
        cluster[2].start_skepd()?;
        std::thread::sleep(Duration::from_secs(8));
        ensure!(cluster.replica(0)?.raft_id == alone.raft_id);
        ensure!(services(cluster, 0)?.contains("alone"));
        let theirs: Vec<String> = [1, 2].iter().filter_map(|host| services(cluster, *host).ok()).collect();
        ensure!(theirs.iter().all(|listed| !listed.contains("alone")), "the halves mixed: {theirs:?}");
        let _ = cluster.ctl(1, &["service", "create", "-d", "--name", "theirs", "--replicas", "0", "whoami"]);
        std::thread::sleep(Duration::from_secs(2));
        ensure!(!services(cluster, 0)?.contains("theirs"), "the halves mixed");

        // What is left of the old half is wiped and joins anew.
        for host in [1, 2] {
            cluster[host].wipe()?;
            cluster[host].start_skepd()?;
            cluster.join_through(host, "manager", 0)?;
        }
        cluster.wait_converged(cluster.managers(), SOON)?;
        record.all_in(&cluster.api(2)?.configs()?)?;
        let listed = services(cluster, 2).context("a new manager answers")?;
        ensure!(listed.contains("alone") && !listed.contains("theirs"), "{listed}");
        Ok(())
    })
}

#[test]
fn all_managers_killed_at_once_come_back_with_everything_acknowledged() -> Result<()> {
    Scenario::new("power cut", 3, 1).run(|cluster| {
        web(cluster)?;
        let before = cluster.pids(0, "web")?;
        for round in 0..3 {
            let journal = Journal::start(&cluster.sockets(cluster.managers()), 3)?;
            std::thread::sleep(Duration::from_millis(1500 + 211 * round));
            for host in cluster.managers() {
                cluster[host].kill_skepd();
            }
            let record = journal.end()?;
            for host in cluster.managers() {
                cluster[host].spawn_skepd()?;
            }
            cluster.wait_leader(SOON)?;
            let leader = cluster.wait_converged(cluster.managers(), SOON)?;
            record.all_in(&cluster.api(leader.host)?.configs()?)?;
            eprintln!("{} acknowledged writes survived", record.acknowledged());
        }
        let leader = cluster.wait_leader(SOON)?;
        eventually(SOON, "the tasks are the same", || {
            let now = cluster.pids(leader, "web")?;
            ensure!(now == before, "{before:?} became {now:?}");
            Ok(())
        })
    })
}
