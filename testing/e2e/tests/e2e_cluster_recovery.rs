//! When the majority or everything is lost: backup, restore, recovery from one survivor.

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Dice, Journal, Scenario, eventually};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

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

/// The survivor becomes a cluster of one, the two others come back as the majority of the old one, and in the end they join it anew.
fn halves(cluster: &mut Cluster, survivor: usize, dice: &mut Dice) -> Result<()> {
    let others: Vec<usize> = cluster.managers().filter(|host| *host != survivor).collect();
    let mark = cluster.replica(survivor)?.raft_id;
    let (alone_writes, their_writes) = (format!("alone-{mark:x}"), format!("theirs-{mark:x}"));
    let before = cluster.pids(survivor, "web")?;
    let journal = Journal::start(&cluster.sockets(cluster.managers()), 2)?;
    dice.pause(500..2500);
    let record = journal.end()?;
    cluster.wait_converged(cluster.managers(), SOON)?;
    for other in &others {
        cluster[*other].kill_skepd();
        dice.pause(0..500);
    }
    let create = |cluster: &Cluster, through: usize, name: &str| {
        cluster.ctl(through, &["service", "create", "-d", "--name", name, "--replicas", "0", "whoami"])
    };
    let refused = create(cluster, survivor, "nobody")?;
    ensure!(refused.status != 0, "one of three took a write");

    let report = cluster.ctl(survivor, &["cluster", "recover", "--yes"])?.success()?;
    eprintln!("{report}");
    eventually(SOON, "it takes writes", || create(cluster, survivor, &alone_writes)?.success())?;
    let alone = cluster.replica(survivor)?;
    ensure!(alone.raft_id != mark, "the same member of the group: the halves could merge");
    record.all_in(&cluster.api(survivor)?.configs()?)?;
    eventually(SOON, "the worker is back and its tasks were not touched", || {
        let now = cluster.pids(survivor, "web")?;
        ensure!(now == before, "{before:?} became {now:?}");
        Ok(())
    })?;

    // The others come back and are a majority of the old group: two clusters, which do not mix.
    for other in &others {
        cluster[*other].start_skepd()?;
    }
    dice.pause(5000..10_000);
    ensure!(cluster.replica(survivor)?.raft_id == alone.raft_id);
    ensure!(services(cluster, survivor)?.contains(&alone_writes));
    let theirs: Vec<String> = others.iter().filter_map(|host| services(cluster, *host).ok()).collect();
    ensure!(theirs.iter().all(|listed| !listed.contains(&alone_writes)), "the halves mixed: {theirs:?}");
    let _ = create(cluster, others[0], &their_writes);
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!services(cluster, survivor)?.contains(&their_writes), "the halves mixed");

    // What is left of the old half is wiped and joins anew.
    for host in &others {
        cluster[*host].wipe()?;
        cluster[*host].start_skepd()?;
        cluster.join_through(*host, "manager", survivor)?;
    }
    cluster.aftermath(cluster.managers(), &[&record])?;
    let listed = services(cluster, others[1]).context("a new manager answers")?;
    ensure!(listed.contains(&alone_writes) && !listed.contains(&their_writes), "{listed}");
    Ok(())
}

#[test]
fn one_survivor_becomes_the_cluster_and_the_other_half_never_joins_it_again() -> Result<()> {
    Scenario::new("recover", 3, 1).run(|cluster| {
        web(cluster)?;
        halves(cluster, 0, &mut Dice::of_seed(1))
    })
}

#[test]
fn whichever_manager_survives_the_halves_never_merge() -> Result<()> {
    Scenario::new("recover again and again", 3, 1).long().run(|cluster| {
        let mut dice = Dice::cast("recover again and again");
        web(cluster)?;
        for round in Dice::rounds(5) {
            let survivor = dice.one_of(cluster.managers());
            halves(cluster, survivor, &mut dice).with_context(|| format!("round {round}: manager {survivor} survives"))?;
        }
        Ok(())
    })
}

#[test]
fn a_stale_backup_beside_its_living_cluster_changes_nothing_in_it() -> Result<()> {
    Scenario::new("stale backup", 3, 1).long().run(|cluster| {
        let mut dice = Dice::cast("stale backup");
        web(cluster)?;
        for round in Dice::rounds(6) {
            // Cut off, it cannot see that its cluster lives.
            let (hit, cut) = (dice.one_of(cluster.managers()), round % 2 == 1);
            stale_backup(cluster, hit, cut, &mut dice).with_context(|| format!("round {round}: on manager {hit}, cut off: {cut}"))?;
        }
        Ok(())
    })
}

/// Takes a backup while the cluster is written to, sets a manager up anew with it later, and looks what that does.
fn stale_backup(cluster: &mut Cluster, hit: usize, cut: bool, dice: &mut Dice) -> Result<()> {
    let others: Vec<usize> = cluster.managers().filter(|host| *host != hit).collect();
    let (through, old) = (others[0], cluster.node_id(hit)?);
    let before = cluster.pids(through, "web")?;
    let stale_writes = format!("stale-{}", cluster.replica(hit)?.revision);
    let (file, key) = (cluster[hit].dir().join("backup"), cluster[hit].dir().join("backup.key"));
    let _ = std::fs::remove_file(&file);
    let (file, key) = (file.to_string_lossy().into_owned(), key.to_string_lossy().into_owned());
    let journal = Journal::start(&cluster.sockets(others.clone()), 2)?;
    dice.pause(200..2000);
    cluster.ctl(through, &["cluster", "backup", &file, "--key-file", &key])?.success()?;
    dice.pause(200..3000);
    if cut {
        cluster.cut(hit)?;
    }
    cluster[hit].wipe()?;
    cluster[hit].start_skepd()?;
    let address = cluster.address(hit);
    let restored = cluster.ctl(hit, &["cluster", "restore", &file, "--key-file", &key, "--advertise-addr", &address])?;
    if cut {
        eprintln!("cut off from its cluster: status {}: {}{}", restored.status, restored.stdout.trim(), restored.stderr.trim());
    } else {
        ensure!(restored.status != 0, "a stale backup came to life beside its cluster: {restored:?}");
        ensure!(cluster.api(hit)?.status(false)?.node_id.is_empty(), "half restored");
    }
    if restored.status == 0 {
        let create = ["service", "create", "-d", "--name", &stale_writes, "--replicas", "0", "whoami"];
        eventually(SOON, "the restored one takes writes", || cluster.ctl(hit, &create)?.success())?;
        cluster.heal()?;
        dice.pause(3000..8000);
    }
    cluster.heal()?;
    let record = journal.end()?;
    let leader = cluster.aftermath(others.clone(), &[&record])?;
    ensure!(others.contains(&leader.host), "the restored one leads the living");
    ensure!(!services(cluster, through)?.contains(&stale_writes), "a stale cluster's write is in the living one");
    ensure!(cluster.pids(through, "web")? == before, "tasks were touched");

    cluster[hit].wipe()?;
    cluster[hit].start_skepd()?;
    cluster.ctl(through, &["node", "demote", "--detach", &old])?.success()?;
    eventually(SOON, "the wiped manager can be removed", || cluster.ctl(through, &["node", "rm", "--force", &old])?.success())?;
    cluster.join_through(hit, "manager", through)?;
    cluster.aftermath(cluster.managers(), &[&record])?;
    Ok(())
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
