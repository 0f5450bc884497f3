//! Machines of managers that are sick: disks that are slow or full, clocks that jump.

use anyhow::{Result, ensure};
use skep_kit::{Cluster, Dice, Journal, Scenario};
use skep_proto::v1;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

/// Makes sure that the host follows: a leader that is asked to stop hands over.
fn let_follow(cluster: &mut Cluster, host: usize) -> Result<()> {
    while cluster.wait_leader(SOON)? == host {
        cluster[host].stop_skepd()?;
        cluster.wait_leader(SOON)?;
        cluster[host].start_skepd()?;
        cluster.wait_converged(cluster.managers(), SOON)?;
    }
    Ok(())
}

#[test]
fn a_follower_with_a_slow_or_full_disk_holds_nobody_up() -> Result<()> {
    Scenario::new("slow and full disk", 3, 0).long().unformed().run(|cluster| {
        let mut dice = Dice::cast("slow and full disk");
        // The last one's data is on a small disk of its own.
        let sick = 2;
        cluster[sick].stop_skepd()?;
        std::fs::remove_dir_all(cluster[sick].data_dir())?;
        cluster[sick].put_data_on_a_disk(256)?;
        cluster[sick].start_skepd()?;
        cluster.form(&[])?;
        let healthy = cluster.sockets([0, 1]);
        let rounds = Dice::rounds(5);
        let mut disturbed = Vec::new();
        for round in rounds.clone() {
            let_follow(cluster, sick)?;
            let term = cluster.term()?;
            let stop = dice.moment(500..1200);
            let stall = cluster[sick].stall_disk(stop, Duration::from_millis(50))?;
            let probe = Instant::now();
            std::fs::write(cluster[sick].data_dir().join("probe"), "x")?;
            ensure!(probe.elapsed() > Duration::from_millis(100), "the disk is not slow");
            let journal = Journal::start(&healthy, 2)?;
            dice.pause(8000..12_000);
            let slowed = journal.end()?;
            drop(stall);
            slowed.told(&format!("round {round}: a disk that stops for {stop:?}"), probe)?;
            let after_slow = cluster.aftermath(cluster.managers(), &[&slowed])?;

            let journal = Journal::start(&healthy, 2)?;
            dice.pause(200..1500);
            let at = Instant::now();
            cluster[sick].fill_disk()?;
            dice.pause(8000..12_000);
            let full = journal.end()?;
            full.told(&format!("round {round}: a full disk"), at)?;
            cluster[sick].free_disk()?;
            if !cluster[sick].runs() {
                eprintln!("the manager with the full disk had ended; it is started again");
                cluster[sick].kill_skepd();
                cluster[sick].start_skepd()?;
            }
            let after_full = cluster.aftermath(cluster.managers(), &[&slowed, &full])?;
            if slowed.failed() + full.failed() > 0 || slowed.longest_silence() > Duration::from_secs(2) || after_full.term != term {
                disturbed.push(format!(
                    "round {round}: term {term}, slow: {} {:?} {:?}; full: {} {:?}",
                    after_slow.term,
                    slowed.longest_silence(),
                    slowed.problems(),
                    after_full.term,
                    full.problems()
                ));
            }
        }
        // On a starved machine there are elections that nobody caused; one beside every sick disk is no accident.
        eprintln!("elections, failed writes or long silence: {disturbed:?}");
        ensure!((disturbed.len() as u64) < rounds.end, "a follower's disk held the others up: {disturbed:#?}");
        Ok(())
    })
}

#[test]
fn clocks_that_jump_change_nothing() -> Result<()> {
    Scenario::new("clock jumps", 3, 1).long().unformed().run(|cluster| {
        let mut dice = Dice::cast("clock jumps");
        for host in cluster.managers() {
            cluster[host].stop_skepd()?;
            if !cluster[host].fake_clock()? {
                ensure!(std::env::var("SKEP_REQUIRE_REAL").is_err(), "libfaketime is not installed; scripts/setup test does it");
                eprintln!("SKIPPED: clock jumps: libfaketime is not installed");
                return Ok(());
            }
            cluster[host].start_skepd()?;
        }
        cluster.form(&[])?;
        let flags = ["service", "create", "-d", "--name", "web", "--replicas", "2", "--constraint", "node.role==worker", "whoami"];
        cluster.ctl(0, &flags)?.success()?;
        let before = cluster.wait_running(0, "web", 2)?;
        let rounds = Dice::rounds(6);
        let mut disturbed = Vec::new();
        for round in rounds.clone() {
            let (leader, term) = (cluster.wait_leader(SOON)?, cluster.term()?);
            let journal = Journal::start(&cluster.sockets(cluster.managers()), 2)?;
            let at = Instant::now();
            for _ in 0..4 {
                let host = if dice.coin() { leader } else { dice.one_of(cluster.managers()) };
                // Certificates are valid for an hour before they are made.
                let seconds = i64::try_from(dice.roll(7000))? - 3500;
                cluster[host].set_clock(seconds)?;
                dice.pause(500..4000);
            }
            for host in cluster.managers() {
                cluster[host].set_clock(0)?;
            }
            let record = journal.end()?;
            record.told(&format!("round {round}: clocks that jump"), at)?;
            let now = cluster.aftermath(cluster.managers(), &[&record])?;
            if record.failed() > 0 || now.term != term {
                disturbed.push(format!("round {round}: term {term} became {}: {:?}", now.term, record.problems()));
            }
            ensure!(cluster.pids(now.host, "web")? == before, "tasks were touched");
        }
        // Whoever leads says when a config was made.
        let request = v1::ListConfigsRequest::default();
        let configs = cluster.api(0)?.ask(|mut control| async move { control.list_configs(request).await })?.configs;
        let made = configs.into_iter().filter_map(|config| Some(config.meta?.created_at?.seconds)).collect::<BTreeSet<i64>>();
        let spread = made.last().zip(made.first()).map_or(0, |(last, first)| last - first);
        ensure!(spread > 20 * 60, "no clock was moved: all was made within {spread} s");
        // On a starved machine there are elections that nobody caused; one in every round is no accident.
        eprintln!("elections or failed writes: {disturbed:?}");
        ensure!((disturbed.len() as u64) < rounds.end, "clocks caused elections: {disturbed:#?}");

        // A clock that is years off makes certificates invalid: the others go on, and it comes back when it is right.
        let leader = cluster.wait_leader(SOON)?;
        let off = dice.one_of(cluster.managers().filter(|host| *host != leader));
        let year = 365 * 24 * 3600;
        cluster[off].set_clock(-10 * year)?;
        let rest: Vec<usize> = cluster.managers().filter(|host| *host != off).collect();
        let journal = Journal::start(&cluster.sockets(rest), 2)?;
        let at = Instant::now();
        std::thread::sleep(Duration::from_secs(5));
        let years = journal.end()?;
        years.told("a clock that is ten years off", at)?;
        cluster[off].set_clock(0)?;
        cluster.aftermath(cluster.managers(), &[&years])?;
        Ok(())
    })
}
