//! Managers that the network cuts off, both ways and one way, and minorities that die: the majority goes on, and nobody else does.

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Dice, Journal, Scenario};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

fn web(cluster: &Cluster) -> Result<BTreeSet<(Option<usize>, i32)>> {
    let flags = ["service", "create", "-d", "--name", "web", "--replicas", "2", "--constraint", "node.role==worker", "whoami"];
    cluster.ctl(0, &flags)?.success()?;
    cluster.wait_running(0, "web", 2)
}

/// A write that only a majority may take.
fn write(cluster: &Cluster, through: usize, name: &str) -> Result<i32> {
    Ok(cluster.ctl(through, &["service", "create", "-d", "--name", name, "--replicas", "0", "whoami"])?.status)
}

#[test]
fn a_follower_that_was_cut_off_does_not_depose_the_leader_when_it_returns() -> Result<()> {
    Scenario::new("follower cut off", 3, 0).run(|cluster| {
        let mut seen = Vec::new();
        // On a starved machine there are elections that nobody caused; one at every return is no accident.
        for attempt in 0..3 {
            let leader = cluster.wait_leader(SOON)?;
            let cut = cluster.managers().find(|host| *host != leader).context("a follower")?;
            let term = cluster.replica(cut)?.term;
            let journal = Journal::start(&cluster.sockets([leader]), 2)?;
            cluster.cut(cut)?;
            std::thread::sleep(Duration::from_secs(6));
            let alone = cluster.replica(cut)?;
            ensure!(alone.term == term && !alone.leads, "cut off in term {term}, it is in {alone:?}");
            ensure!(write(cluster, cut, &format!("lost{attempt}"))? != 0, "a manager without a majority took a write");
            let (leader, term) = (cluster.wait_leader(SOON)?, cluster.term()?);
            cluster.heal()?;
            std::thread::sleep(Duration::from_secs(3));
            let record = journal.end()?;
            let after = cluster.aftermath(cluster.managers(), &[&record])?;
            if (after.host, after.term) == (leader, term) && record.failed() == 0 {
                return Ok(());
            }
            seen.push(format!("term {term} led by {leader} became {} led by {}; {:?}", after.term, after.host, record.problems()));
        }
        anyhow::bail!("each time it returned there was an election: {seen:#?}")
    })
}

#[test]
fn one_of_three_managers_may_be_killed_or_cut_off_at_any_moment() -> Result<()> {
    Scenario::new("one of three", 3, 1).long().run(|cluster| {
        let mut dice = Dice::cast("one of three");
        let before = web(cluster)?;
        for round in Dice::rounds(12) {
            let (hit, cut) = (dice.one_of(cluster.managers()), dice.coin());
            let led = cluster.wait_leader(SOON)? == hit;
            let what = format!("round {round}: manager {hit}, leads: {led}, {}", if cut { "cut off" } else { "killed" });
            // Clients of all of them, of the one that is hit, too: what it acknowledges must be true.
            let journal = Journal::start(&cluster.sockets(cluster.managers()), 3)?;
            dice.pause(100..1500);
            let at = Instant::now();
            if cut {
                cluster.cut(hit)?
            } else {
                cluster[hit].kill_skepd()
            }
            dice.pause(1000..9000);
            if cut {
                cluster.heal()?
            } else {
                cluster[hit].start_skepd()?
            }
            std::thread::sleep(Duration::from_secs(1));
            let record = journal.end()?;
            record.told(&what, at)?;
            let leader = cluster.aftermath(cluster.managers(), &[&record]).with_context(|| what.clone())?;
            ensure!(cluster.pids(leader.host, "web")? == before, "{what}: tasks were touched");
        }
        Ok(())
    })
}

#[test]
fn two_of_five_managers_may_die_or_be_cut_off() -> Result<()> {
    Scenario::new("two of five", 5, 0).long().run(|cluster| {
        let mut dice = Dice::cast("two of five");
        for round in Dice::rounds(8) {
            let leader = cluster.wait_leader(SOON)?;
            // In most rounds the leader is one of them.
            let first = if dice.roll(4) == 0 { dice.one_of(cluster.managers()) } else { leader };
            let second = dice.one_of(cluster.managers().filter(|host| *host != first));
            let cuts = [dice.coin(), dice.coin()];
            let rest: Vec<usize> = cluster.managers().filter(|host| *host != first && *host != second).collect();
            let what = format!("round {round}: managers {first} and {second} of which {leader} led, cut off: {cuts:?}");
            let journal = Journal::start(&cluster.sockets(rest.clone()), 2)?;
            dice.pause(200..1000);
            let at = Instant::now();
            for (host, cut) in [first, second].into_iter().zip(cuts) {
                if cut {
                    cluster.cut(host)?
                } else {
                    cluster[host].kill_skepd()
                }
                dice.pause(0..600);
            }
            std::thread::sleep(Duration::from_secs(8));
            for (host, _) in [first, second].into_iter().zip(cuts).filter(|(_, cut)| *cut) {
                ensure!(write(cluster, host, &format!("minority{round}"))? != 0, "{what}: a minority took a write");
            }
            let record = journal.end()?;
            record.told(&what, at)?;
            cluster.heal()?;
            for (host, _) in [first, second].into_iter().zip(cuts).filter(|(_, cut)| !*cut) {
                cluster[host].start_skepd()?;
            }
            cluster.aftermath(cluster.managers(), &[&record]).with_context(|| what)?;
        }
        Ok(())
    })
}

#[test]
fn cables_that_work_in_one_direction_only_do_not_stop_the_cluster() -> Result<()> {
    Scenario::new("one-way cuts", 3, 1).long().run(|cluster| {
        let mut dice = Dice::cast("one-way cuts");
        let before = web(cluster)?;
        for round in Dice::rounds(9) {
            let leader = cluster.wait_leader(SOON)?;
            let others: Vec<usize> = cluster.managers().filter(|host| *host != leader).collect();
            let follower = dice.one_of(others.clone());
            let (ways, what) = match round % 4 {
                0 => (vec![(leader, follower)], "a follower does not hear the leader"),
                1 => (vec![(follower, leader)], "the leader does not hear a follower"),
                2 => (others.iter().map(|other| (leader, *other)).collect(), "nobody hears the leader"),
                _ => (vec![(others[0], others[1])], "a follower does not hear the other"),
            };
            let term = cluster.term()?;
            let journal = Journal::start(&cluster.sockets(cluster.managers()), 3)?;
            dice.pause(100..1000);
            let at = Instant::now();
            for (from, to) in ways {
                cluster.cut_one_way(from, to)?;
            }
            dice.pause(6000..10_000);
            let meanwhile = cluster.term()?;
            cluster.heal()?;
            std::thread::sleep(Duration::from_secs(2));
            let record = journal.end()?;
            let next = record.told(&format!("round {round}: {what}"), at)?;
            ensure!(next < Duration::from_secs(20), "{what}: {next:?}");
            // Managers that keep deposing each other would raise it about once a second.
            ensure!(meanwhile <= term + 4, "{what}: term {term} rose to {meanwhile}");
            let now = cluster.aftermath(cluster.managers(), &[&record]).with_context(|| format!("round {round}: {what}"))?;
            ensure!(cluster.pids(now.host, "web")? == before, "{what}: tasks were touched");
        }
        Ok(())
    })
}
