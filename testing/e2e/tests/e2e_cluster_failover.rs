//! Managers that die, hang, are cut off or have bad disks: writes go on, nothing acknowledged is lost, tasks notice nothing.

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Journal, Record, Scenario, eventually};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);
/// The promise for a leader that is killed. The tests are not optimised and share two cores with all hosts, so they print
/// what they see and refuse only what is far off.
const FAR_OFF: Duration = Duration::from_secs(4);

type Pids = BTreeSet<(Option<usize>, i32)>;

fn web(cluster: &Cluster, replicas: usize) -> Result<Pids> {
    let count = replicas.to_string();
    let flags = ["service", "create", "-d", "--name", "web", "--replicas", &count, "--restart-delay", "0s", "--update-monitor", "100ms"];
    cluster.ctl(0, &[&flags[..], &["--constraint", "node.role==worker", "whoami"]].concat())?.success()?;
    cluster.wait_running(0, "web", replicas)
}

/// Everything acknowledged is on every manager that runs.
fn nothing_lost(cluster: &Cluster, record: &Record) -> Result<()> {
    let managers: Vec<usize> = cluster.replicas().iter().map(|replica| replica.host).collect();
    cluster.wait_converged(managers.clone(), SOON)?;
    managers.into_iter().try_for_each(|manager| record.all_in(&cluster.api(manager)?.configs()?))
}

fn report(what: &str, record: &Record, at: Instant) -> Result<Duration> {
    let next = record.next_after(at).with_context(|| format!("{what}: nothing was acknowledged any more: {:?}", record.problems()))?;
    eprintln!(
        "{what}: next write after {next:?}, longest silence {:?}; {} acknowledged, {} failed {:?}",
        record.longest_silence(),
        record.acknowledged(),
        record.failed(),
        record.problems()
    );
    Ok(next)
}

/// Rounds of killing whoever leads.
fn kill_leaders(cluster: &mut Cluster, rounds: u64) -> Result<()> {
    let before = web(cluster, 2)?;
    let mut nexts = Vec::new();
    for round in 0..rounds {
        let leader = cluster.wait_leader(SOON)?;
        let others = cluster.managers().filter(|host| *host != leader);
        let journal = Journal::start(&cluster.sockets(others), 2)?;
        std::thread::sleep(Duration::from_millis(500 + 137 * (round % 7)));
        let killed = Instant::now();
        cluster[leader].kill_skepd();
        std::thread::sleep(Duration::from_secs(3));
        let record = journal.end()?;
        nexts.push(report("a killed leader", &record, killed)?);
        cluster[leader].start_skepd()?;
        nothing_lost(cluster, &record)?;
        ensure!(cluster.pids(cluster.leader()?, "web")? == before, "tasks were touched");
    }
    nexts.sort();
    eprintln!("after SIGKILL of the leader the next write was acknowledged within {nexts:?}");
    ensure!(nexts.iter().all(|next| *next < FAR_OFF), "{nexts:?}");
    Ok(())
}

#[test]
fn writes_go_on_when_the_leader_is_killed_and_tasks_do_not_notice() -> Result<()> {
    Scenario::new("leader killed", 3, 1).run(|cluster| kill_leaders(cluster, 3))
}

#[test]
fn writes_go_on_when_leaders_are_killed_again_and_again() -> Result<()> {
    Scenario::new("leaders killed again and again", 3, 1).long().run(|cluster| kill_leaders(cluster, 25))
}

#[test]
fn a_leader_that_is_stopped_hands_over_first() -> Result<()> {
    Scenario::new("leader stopped", 3, 0).run(|cluster| {
        let mut nexts = Vec::new();
        for _ in 0..3 {
            let leader = cluster.wait_leader(SOON)?;
            let others = cluster.managers().filter(|host| *host != leader);
            let journal = Journal::start(&cluster.sockets(others), 2)?;
            std::thread::sleep(Duration::from_millis(500));
            let told = Instant::now();
            cluster[leader].stop_skepd()?;
            std::thread::sleep(Duration::from_secs(1));
            let record = journal.end()?;
            nexts.push(report("a stopped leader", &record, told)?);
            cluster[leader].start_skepd()?;
            nothing_lost(cluster, &record)?;
        }
        ensure!(nexts.iter().all(|next| *next < Duration::from_millis(1500)), "{nexts:?}");
        Ok(())
    })
}

#[test]
fn a_follower_that_was_cut_off_does_not_depose_the_leader_when_it_returns() -> Result<()> {
    Scenario::new("follower cut off", 3, 0).run(|cluster| {
        let leader = cluster.leader()?;
        let cut = cluster.managers().find(|host| *host != leader).context("a follower")?;
        let term = cluster.replica(leader)?.term;
        let journal = Journal::start(&cluster.sockets([leader]), 2)?;
        cluster.cut(cut)?;
        std::thread::sleep(Duration::from_secs(6));
        let alone = cluster.replica(cut)?;
        ensure!(alone.term == term && !alone.leads, "cut off in term {term}, it is in {alone:?}");
        let refusal = cluster.ctl(cut, &["service", "create", "-d", "--name", "lost", "--replicas", "0", "whoami"])?;
        ensure!(refusal.status != 0, "a manager without a majority took a write");
        cluster.heal()?;
        std::thread::sleep(Duration::from_secs(3));
        let record = journal.end()?;
        ensure!(record.failed() == 0, "{:?}", record.problems());
        nothing_lost(cluster, &record)?;
        ensure!(cluster.leader()? == leader && cluster.term()? == term, "term {term} became {}", cluster.term()?);
        Ok(())
    })
}

#[test]
fn a_cable_that_works_in_one_direction_only_does_not_stop_the_cluster() -> Result<()> {
    Scenario::new("one-way cuts", 3, 0).long().run(|cluster| {
        for leaders_words_are_lost in [true, false] {
            let leader = cluster.wait_leader(SOON)?;
            let follower = cluster.managers().find(|host| *host != leader).context("a follower")?;
            let term = cluster.term()?;
            let journal = Journal::start(&cluster.sockets(cluster.managers()), 2)?;
            let (from, to) = if leaders_words_are_lost { (leader, follower) } else { (follower, leader) };
            let at = Instant::now();
            cluster.cut_one_way(from, to)?;
            std::thread::sleep(Duration::from_secs(8));
            let meanwhile = cluster.term()?;
            cluster.heal()?;
            std::thread::sleep(Duration::from_secs(2));
            let record = journal.end()?;
            report(&format!("one way lost, the leader's words: {leaders_words_are_lost}"), &record, at)?;
            ensure!(meanwhile <= term + 2, "term {term} rose to {meanwhile}");
            nothing_lost(cluster, &record)?;
        }
        // The leader hears everybody and nobody hears it: another one takes over.
        let leader = cluster.wait_leader(SOON)?;
        let others: Vec<usize> = cluster.managers().filter(|host| *host != leader).collect();
        let journal = Journal::start(&cluster.sockets(others.clone()), 2)?;
        let at = Instant::now();
        for other in &others {
            cluster.cut_one_way(leader, *other)?;
        }
        std::thread::sleep(Duration::from_secs(8));
        cluster.heal()?;
        let record = journal.end()?;
        let next = report("a leader that nobody hears", &record, at)?;
        ensure!(next < Duration::from_secs(12));
        nothing_lost(cluster, &record)
    })
}

#[test]
fn a_leader_that_hangs_for_half_a_minute_is_replaced_and_follows_afterwards() -> Result<()> {
    Scenario::new("leader hangs", 3, 1).long().run(|cluster| {
        let before = web(cluster, 2)?;
        let leader = cluster.leader()?;
        let others: Vec<usize> = cluster.managers().filter(|host| *host != leader).collect();
        let journal = Journal::start(&cluster.sockets(others.clone()), 2)?;
        std::thread::sleep(Duration::from_millis(500));
        let at = Instant::now();
        cluster[leader].pause_skepd()?;
        std::thread::sleep(Duration::from_secs(30));
        let term = cluster.term()?;
        cluster[leader].resume_skepd()?;
        std::thread::sleep(Duration::from_secs(3));
        let record = journal.end()?;
        // A hanging process keeps its connections: whoever waits for its answer has to lose patience.
        let next = report("a leader that hangs", &record, at)?;
        ensure!(next < Duration::from_secs(12), "{next:?}");
        nothing_lost(cluster, &record)?;
        ensure!(cluster.term()? == term, "the one that came back raised the term from {term} to {}", cluster.term()?);
        ensure!(cluster.pids(cluster.leader()?, "web")? == before, "tasks were touched");
        Ok(())
    })
}

#[test]
fn two_of_five_managers_may_die_and_be_cut_off() -> Result<()> {
    Scenario::new("two of five", 5, 0).long().run(|cluster| {
        for cut in [false, true] {
            let leader = cluster.wait_leader(SOON)?;
            let other = cluster.managers().find(|host| *host != leader).context("a follower")?;
            let rest: Vec<usize> = cluster.managers().filter(|host| *host != leader && *host != other).collect();
            let journal = Journal::start(&cluster.sockets(rest.clone()), 2)?;
            std::thread::sleep(Duration::from_millis(500));
            let at = Instant::now();
            for host in [leader, other] {
                if cut { cluster.cut(host)? } else { cluster[host].kill_skepd() }
            }
            std::thread::sleep(Duration::from_secs(8));
            let term = cluster.replica(rest[0])?.term;
            if cut {
                let minority = cluster.ctl(other, &["service", "create", "-d", "--name", "minority", "--replicas", "0", "whoami"])?;
                ensure!(minority.status != 0, "two of five took a write");
            }
            let record = journal.end()?;
            let next = report("two of five", &record, at)?;
            ensure!(next < Duration::from_secs(8), "{next:?}");
            if cut {
                cluster.heal()?;
            } else {
                cluster[leader].start_skepd()?;
                cluster[other].start_skepd()?;
            }
            cluster.wait_converged(cluster.managers(), SOON)?;
            nothing_lost(cluster, &record)?;
            ensure!(cluster.term()? <= term + 1, "those that returned raised the term from {term} to {}", cluster.term()?);
        }
        Ok(())
    })
}

#[test]
fn a_follower_with_a_slow_or_full_disk_holds_nobody_up() -> Result<()> {
    Scenario::new("slow and full disk", 3, 0).long().unformed().run(|cluster| {
        // The last one's data is on a small disk of its own.
        let sick = 2;
        cluster[sick].stop_skepd()?;
        std::fs::remove_dir_all(cluster[sick].data_dir())?;
        cluster[sick].put_data_on_a_disk(256)?;
        cluster[sick].start_skepd()?;
        cluster.form(&[])?;
        ensure!(cluster.leader()? != sick, "a joining manager leads");
        let healthy = cluster.sockets([0, 1]);

        let journal = Journal::start(&healthy, 2)?;
        std::thread::sleep(Duration::from_secs(5));
        let alone = journal.end()?;
        let term = cluster.term()?;
        let stall = cluster[sick].stall_disk(Duration::from_millis(900), Duration::from_millis(50))?;
        let probe = Instant::now();
        std::fs::write(cluster[sick].data_dir().join("probe"), "x")?;
        ensure!(probe.elapsed() > Duration::from_millis(100), "the disk is not slow");
        let journal = Journal::start(&healthy, 2)?;
        std::thread::sleep(Duration::from_secs(10));
        let slowed = journal.end()?;
        drop(stall);
        eprintln!(
            "acknowledged per second: {:.0} before, {:.0} beside a slow disk; longest silence {:?}, then {:?}",
            alone.acknowledged() as f64 / 5.0,
            slowed.acknowledged() as f64 / 10.0,
            alone.longest_silence(),
            slowed.longest_silence()
        );
        ensure!(slowed.failed() == 0, "{:?}", slowed.problems());
        ensure!(slowed.longest_silence() < Duration::from_secs(2), "{:?}", slowed.longest_silence());
        cluster.wait_converged(cluster.managers(), SOON)?;
        ensure!(cluster.term()? == term, "a slow follower's disk caused an election: term {term} became {}", cluster.term()?);

        cluster[sick].fill_disk()?;
        let journal = Journal::start(&healthy, 2)?;
        std::thread::sleep(Duration::from_secs(10));
        let full = journal.end()?;
        ensure!(full.failed() == 0, "{:?}", full.problems());
        cluster[sick].free_disk()?;
        if !cluster[sick].runs() {
            eprintln!("the manager with the full disk had ended; it is started again");
            cluster[sick].kill_skepd();
            cluster[sick].start_skepd()?;
        }
        for record in [&alone, &slowed, &full] {
            nothing_lost(cluster, record)?;
        }
        cluster.wait_converged(cluster.managers(), SOON)?;
        Ok(())
    })
}

#[test]
fn a_clock_that_jumps_changes_nothing() -> Result<()> {
    Scenario::new("clock jumps", 3, 1).long().unformed().run(|cluster| {
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
        let before = web(cluster, 2)?;
        let term = cluster.term()?;
        let leader = cluster.leader()?;
        let follower = cluster.managers().find(|host| *host != leader).context("a follower")?;
        let journal = Journal::start(&cluster.sockets(cluster.managers()), 2)?;
        let (hour, year) = (3600, 365 * 24 * 3600);
        for (host, seconds) in [(leader, hour), (leader, -hour), (follower, hour), (follower, -hour), (leader, 0), (follower, 0)] {
            cluster[host].set_clock(seconds)?;
            std::thread::sleep(Duration::from_secs(3));
        }
        let record = journal.end()?;
        ensure!(record.failed() == 0, "{:?}", record.problems());
        let hours: BTreeSet<String> = cluster[leader].log().lines().filter_map(|line| Some(line.get(..13)?.to_owned())).collect();
        ensure!(hours.iter().filter(|hour| hour.starts_with("20")).count() >= 3, "the leader's clock was not moved: {hours:?}");
        ensure!(cluster.term()? == term, "a clock caused an election: term {term} became {}", cluster.term()?);
        ensure!(cluster.pids(leader, "web")? == before, "tasks were touched");
        // A clock that is years off makes certificates invalid: the others go on, and it comes back when it is right.
        cluster[follower].set_clock(-10 * year)?;
        let rest: Vec<usize> = cluster.managers().filter(|host| *host != follower).collect();
        let journal = Journal::start(&cluster.sockets(rest), 2)?;
        std::thread::sleep(Duration::from_secs(5));
        let years = journal.end()?;
        ensure!(years.failed() == 0, "{:?}", years.problems());
        cluster[follower].set_clock(0)?;
        cluster.wait_converged(cluster.managers(), SOON)?;
        nothing_lost(cluster, &record)?;
        nothing_lost(cluster, &years)
    })
}

#[test]
fn a_leader_killed_during_a_rolling_update_leaves_an_update_that_ends() -> Result<()> {
    Scenario::new("leader killed during an update", 3, 1).long().run(|cluster| {
        web(cluster, 4)?;
        for round in 0..5u64 {
            let old = cluster.pids(cluster.leader()?, "web")?;
            let leader = cluster.wait_leader(SOON)?;
            let through = cluster.follower()?;
            let mark = format!("ROUND={round}");
            cluster.ctl(through, &["service", "update", "-d", "--update-parallelism", "1", "--env-add", &mark, "web"])?.success()?;
            std::thread::sleep(Duration::from_millis(150 + 230 * round));
            cluster[leader].kill_skepd();
            let through = cluster.wait_leader(SOON)?;
            eventually(Duration::from_secs(60), "the update ends", || {
                let now = cluster.pids(through, "web")?;
                ensure!(now.len() == 4 && now.is_disjoint(&old), "{now:?} after {old:?}");
                cluster.no_slot_runs_twice(through)
            })?;
            cluster[leader].start_skepd()?;
            cluster.wait_converged(cluster.managers(), SOON)?;
        }
        Ok(())
    })
}

#[test]
fn a_leader_killed_during_a_join_storm_lets_everybody_in() -> Result<()> {
    Scenario::new("leader killed during a join storm", 3, 6).long().unformed().run(|cluster| {
        let address = cluster.address(0);
        cluster.ctl(0, &["cluster", "init", "--advertise-addr", &address])?.success()?;
        cluster.join(1, "manager")?;
        cluster.join(2, "manager")?;
        cluster.wait_converged(cluster.managers(), SOON)?;
        let token = cluster.token(0, "worker")?;
        let leader = cluster.leader()?;
        let managers: Vec<String> = cluster.managers().map(|host| format!("{}:2377", cluster.address(host))).collect();
        let sockets: Vec<_> = cluster.workers().map(|host| cluster[host].socket()).collect();
        let swarmctl = skep_kit::binary("swarmctl")?;
        let outcomes = std::thread::scope(|scope| -> Result<Vec<_>> {
            let joins: Vec<_> = sockets
                .iter()
                .map(|socket| {
                    let mut arguments = vec!["60".to_owned(), swarmctl.to_string_lossy().into_owned(), "--socket".to_owned()];
                    arguments.push(socket.to_string_lossy().into_owned());
                    arguments.extend(["cluster", "join", "--token", &token].map(str::to_owned));
                    arguments.extend(managers.iter().cloned());
                    scope.spawn(move || skep_kit::run("timeout", &arguments.iter().map(String::as_str).collect::<Vec<_>>()))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(120));
            cluster[leader].kill_skepd();
            Ok(joins.into_iter().map(|join| join.join().expect("no panic")).collect())
        })?;
        for (host, outcome) in cluster.workers().zip(outcomes) {
            let outcome = outcome?;
            if outcome.status != 0 {
                eprintln!("{} has to ask again: {}", cluster[host].name(), outcome.stderr.trim());
                let through = cluster.wait_leader(SOON)?;
                cluster.join_through(host, "worker", through)?;
            }
        }
        cluster[leader].start_skepd()?;
        cluster.wait_converged(cluster.managers(), SOON)?;
        cluster.wait_ready(Duration::from_secs(60))
    })
}
