//! Roots, certificates and unlock keys change while the cluster works.

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Dice, Journal, Scenario, eventually, run};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Who signed the certificate that the host has now.
fn issuer(cluster: &Cluster, host: usize) -> Result<String> {
    let file = cluster[host].data_dir().join("identity/swarm-node.crt");
    run("openssl", &["x509", "-noout", "-ext", "authorityKeyIdentifier", "-in", &file.to_string_lossy()])?.success()
}

fn all(cluster: &Cluster) -> std::ops::Range<usize> {
    0..cluster.workers().end
}

/// Rounds of a new root; with dice, the leader is killed at some moment of each.
fn rotate(cluster: &mut Cluster, rounds: u64, mut kill_the_leader: Option<Dice>) -> Result<()> {
    let flags = ["service", "create", "-d", "--name", "web", "--publish", "published=8080,target=8080,mode=host"];
    cluster.ctl(0, &[&flags[..], &["--constraint", "node.role==worker", "whoami"]].concat())?.success()?;
    let worker = cluster.workers().start;
    let before = cluster.wait_running(0, "web", 1)?;
    let term = cluster.term()?;
    let journal = Journal::start(&cluster.sockets(cluster.managers()), 2)?;
    for round in 0..rounds {
        let through = cluster.wait_leader(SOON)?;
        let (old_root, old_token) = (cluster.ctl(through, &["cluster", "ca"])?.success()?, cluster.token(through, "worker")?);
        let issuers: Vec<String> = all(cluster).map(|host| issuer(cluster, host)).collect::<Result<_>>()?;
        cluster.ctl(through, &["cluster", "ca", "--rotate", "--detach"])?.success().context("ca --rotate")?;
        if let Some(dice) = &mut kill_the_leader {
            let into = dice.pause(0..3000);
            eprintln!("round {round}: the leader is killed {into:?} into the rotation");
            cluster[through].kill_skepd();
            cluster.wait_leader(SOON)?;
            cluster[through].start_skepd()?;
        }
        let asked = cluster.wait_leader(SOON)?;
        eventually(Duration::from_secs(90), "the rotation ends", || {
            let root = cluster.ctl(asked, &["cluster", "ca"])?.success()?;
            ensure!(root != old_root, "the root is the old one");
            Ok(())
        })?;
        ensure!(cluster.token(asked, "worker")? != old_token, "the token is the old one");
        for (host, old) in all(cluster).zip(&issuers) {
            ensure!(issuer(cluster, host)? != *old, "{} still has a certificate of the old root", cluster[host].name());
        }
        cluster.wait_ready(SOON)?;
        ensure!(cluster.pids(asked, "web")? == before, "tasks were touched");
        cluster.curl(&format!("http://{}:8080/", cluster.address(worker)))?;
    }
    let record = journal.end()?;
    eprintln!("{} writes while roots changed, {} failed: {:?}", record.acknowledged(), record.failed(), record.problems());
    let now = cluster.aftermath(cluster.managers(), &[&record])?;
    // A write that was under way when the leader changed may fail: on a starved machine that happens without a kill, too.
    ensure!(record.failed() == 0 || now.term != term, "{:?}", record.problems());
    // What was issued by the last root is enough for a restart of everybody.
    for host in all(cluster) {
        cluster[host].kill_skepd();
    }
    for host in all(cluster) {
        cluster[host].spawn_skepd()?;
    }
    cluster.wait_leader(SOON)?;
    cluster.wait_ready(SOON)
}

#[test]
fn the_root_is_replaced_under_load_and_everybody_follows() -> Result<()> {
    Scenario::new("root rotation", 3, 1).run(|cluster| rotate(cluster, 1, None))
}

#[test]
fn a_root_rotation_survives_its_leader_and_can_be_repeated() -> Result<()> {
    let scenario = "root rotation, leader killed";
    Scenario::new(scenario, 3, 1).long().run(|cluster| rotate(cluster, Dice::rounds(8).end, Some(Dice::cast(scenario))))
}

#[test]
fn a_worker_that_was_away_during_a_rotation_holds_it_up_until_it_is_back() -> Result<()> {
    Scenario::new("rotation with a node away", 1, 1).long().run(|cluster| {
        let root = cluster.ctl(0, &["cluster", "ca"])?.success()?;
        cluster[1].stop_skepd()?;
        cluster.ctl(0, &["cluster", "ca", "--rotate", "--detach"])?.success()?;
        std::thread::sleep(Duration::from_secs(10));
        ensure!(cluster.ctl(0, &["cluster", "ca"])?.success()? == root, "the rotation left a node behind");
        cluster[1].start_skepd()?;
        eventually(Duration::from_secs(60), "the rotation ends", || {
            ensure!(cluster.ctl(0, &["cluster", "ca"])?.success()? != root);
            Ok(())
        })?;
        cluster.wait_ready(SOON)
    })
}

#[test]
fn a_locked_manager_waits_for_its_key_and_no_other_opens_it() -> Result<()> {
    Scenario::new("autolock", 3, 0).run(|cluster| {
        let key_file = cluster[0].dir().join("key");
        let unlock = |cluster: &Cluster, host: usize, key: &str| {
            std::fs::write(&key_file, format!("{key}\n"))?;
            cluster.ctl(host, &["cluster", "unlock", "--key-file", &key_file.to_string_lossy()])
        };
        let node_key = |cluster: &Cluster, host: usize| -> Result<String> {
            Ok(std::fs::read_to_string(cluster[host].data_dir().join("identity/swarm-node.key"))?)
        };
        // Managers seal their keys anew when they hear of a change.
        let heard = |cluster: &Cluster, hosts: &[usize], old: &[String], sealed: bool| {
            eventually(SOON, "the keys are sealed anew", || {
                for (host, old) in hosts.iter().zip(old) {
                    let now = node_key(cluster, *host)?;
                    ensure!(now != *old && now.contains("SEALED") == sealed, "{}'s is not", cluster[*host].name());
                }
                Ok(())
            })?;
            // In the middle of a change two keys open it.
            std::thread::sleep(Duration::from_millis(500));
            Ok::<_, anyhow::Error>(())
        };
        let restart = |cluster: &mut Cluster, host: usize, locked: bool| -> Result<()> {
            cluster[host].kill_skepd();
            cluster[host].start_skepd()?;
            ensure!(cluster.api(host)?.status(false)?.locked == locked, "locked should be {locked}");
            Ok(())
        };
        let managers: Vec<usize> = cluster.managers().collect();
        let keys = |cluster: &Cluster| cluster.managers().map(|host| node_key(cluster, host)).collect::<Result<Vec<_>>>();
        let bare = keys(cluster)?;
        cluster.ctl(0, &["cluster", "update", "--autolock"])?.success()?;
        let first = cluster.ctl(1, &["cluster", "unlock-key", "-q"])?.success()?.trim().to_owned();
        ensure!(first.starts_with("SWMKEY-1-"), "{first:?}");
        let wrong = {
            let last = if first.ends_with('A') { 'Q' } else { 'A' };
            format!("{}{last}", &first[..first.len() - 1])
        };
        heard(cluster, &managers, &bare, true)?;
        let follower = cluster.follower()?;
        restart(cluster, follower, true)?;
        let said = cluster.ctl(follower, &["cluster", "status"])?.success()?;
        ensure!(said.contains("locked") && said.contains("unlock"), "{said}");
        let refused = cluster.ctl(follower, &["node", "ls"])?;
        ensure!(refused.status != 0 && refused.stderr.contains("unlock"), "{refused:?}");
        let refused = unlock(cluster, follower, &wrong)?;
        ensure!(refused.status != 0, "a wrong key opened it");
        unlock(cluster, follower, &first)?.success()?;
        cluster.wait_converged(cluster.managers(), SOON)?;

        // Another key: the old one opens nothing any more, once the managers heard of it.
        let sealed = keys(cluster)?;
        let second = cluster.ctl(0, &["cluster", "unlock-key", "--rotate", "-q"])?.success()?.trim().to_owned();
        ensure!(second != first);
        heard(cluster, &managers, &sealed, true)?;
        restart(cluster, follower, true)?;
        ensure!(unlock(cluster, follower, &first)?.status != 0, "the old key opened it");
        unlock(cluster, follower, &second)?.success()?;
        cluster.wait_converged(cluster.managers(), SOON)?;

        // All at once: the cluster is there again when a majority is unlocked.
        for host in cluster.managers() {
            cluster[host].kill_skepd();
        }
        for host in cluster.managers() {
            cluster[host].start_skepd()?;
        }
        for host in cluster.managers() {
            unlock(cluster, host, &second)?.success()?;
        }
        cluster.wait_converged(cluster.managers(), SOON)?;
        for host in cluster.managers() {
            for (what, secret) in [("unlock key", &second), ("unlock key", &first)] {
                let bare = secret.trim_start_matches("SWMKEY-1-");
                let found = run(
                    "grep",
                    &["-rlF", bare, &cluster[host].data_dir().to_string_lossy(), &cluster[host].dir().join("skepd.log").to_string_lossy()],
                )?;
                // Files come and go meanwhile, which grep calls an error.
                ensure!(found.status != 0 && found.stdout.is_empty(), "the {what} is on disk: {}", found.stdout);
            }
        }

        let sealed = keys(cluster)?;
        cluster.ctl(0, &["cluster", "update", "--autolock=false"])?.success()?;
        heard(cluster, &managers, &sealed, false)?;
        restart(cluster, follower, false)?;
        cluster.wait_converged(cluster.managers(), SOON)?;
        Ok(())
    })
}
