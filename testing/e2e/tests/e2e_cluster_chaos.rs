//! Faults of all kinds in random order and at random moments. `SKEP_SEED` repeats a run, `SKEP_ROUNDS` makes it longer.

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Journal, Scenario};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

/// Marsaglia's xorshift64: the same numbers for the same seed, whatever else changes.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn host(&mut self, hosts: &std::ops::Range<usize>) -> usize {
        hosts.start + usize::try_from(self.roll(hosts.len() as u64)).expect("few hosts")
    }

    fn milliseconds(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.roll(most))
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One fault, for a while, and its end.
fn suffer(cluster: &mut Cluster, dice: &mut Dice) -> Result<String> {
    let managers = cluster.managers();
    let everybody = 0..cluster.workers().end;
    // Half of the time it is the leader's turn.
    let manager = if dice.roll(2) == 0 { cluster.leader()? } else { dice.host(&managers) };
    let any = if dice.roll(2) == 0 { manager } else { dice.host(&everybody) };
    let other = (manager + 1) % managers.len();
    let pause = dice.milliseconds(4000);
    Ok(match dice.roll(8) {
        0 | 1 => {
            cluster[any].kill_skepd();
            std::thread::sleep(pause);
            cluster[any].start_skepd()?;
            format!("{} killed for {pause:?}", cluster[any].name())
        }
        2 => {
            cluster[any].stop_skepd()?;
            std::thread::sleep(pause);
            cluster[any].start_skepd()?;
            format!("{} stopped for {pause:?}", cluster[any].name())
        }
        3 => {
            cluster[any].pause_skepd()?;
            std::thread::sleep(pause);
            cluster[any].resume_skepd()?;
            format!("{} hung for {pause:?}", cluster[any].name())
        }
        4 => {
            cluster.cut(any)?;
            std::thread::sleep(pause);
            cluster.heal()?;
            format!("{} cut off for {pause:?}", cluster[any].name())
        }
        5 => {
            cluster.cut_one_way(manager, other)?;
            std::thread::sleep(pause);
            cluster.heal()?;
            format!("{} not heard by {} for {pause:?}", cluster[manager].name(), cluster[other].name())
        }
        6 => {
            cluster.lose(any, 4)?;
            std::thread::sleep(pause);
            cluster.heal()?;
            format!("every fourth packet of {} lost for {pause:?}", cluster[any].name())
        }
        _ => {
            cluster[any].kill_containerd();
            std::thread::sleep(pause);
            cluster[any].start_containerd()?;
            format!("containerd of {} killed for {pause:?}", cluster[any].name())
        }
    })
}

#[test]
fn whatever_happens_nothing_acknowledged_is_lost_and_no_task_is_touched() -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.subsec_nanos();
    let seed = number("SKEP_SEED").unwrap_or_else(|| u64::from(now) | 1);
    let rounds = number("SKEP_ROUNDS").unwrap_or(40);
    Scenario::new("random faults", 3, 2).long().run(|cluster| {
        eprintln!("SKEP_SEED={seed} SKEP_ROUNDS={rounds}");
        let mut dice = Dice(seed);
        let flags = ["service", "create", "-d", "--name", "web", "--replicas", "4", "--constraint", "node.role==worker", "whoami"];
        cluster.ctl(0, &flags)?.success()?;
        let tasks = cluster.wait_running(0, "web", 4)?;
        for round in 0..rounds {
            let journal = Journal::start(&cluster.sockets(cluster.managers()), 2)?;
            let began = Instant::now();
            std::thread::sleep(dice.milliseconds(300));
            let what = suffer(cluster, &mut dice).with_context(|| format!("round {round}"))?;
            cluster.wait_leader(SOON).with_context(|| what.clone())?;
            std::thread::sleep(Duration::from_millis(500));
            let record = journal.end()?;
            eprintln!(
                "{round}: {what}: {} acknowledged, {} failed, longest silence {:?} of {:?}",
                record.acknowledged(),
                record.failed(),
                record.longest_silence(),
                began.elapsed()
            );
            let leader = cluster.wait_converged(cluster.managers(), SOON).with_context(|| what.clone())?;
            for manager in cluster.managers() {
                record.all_in(&cluster.api(manager)?.configs()?).with_context(|| format!("{what}, on {}", cluster[manager].name()))?;
            }
            cluster.wait_ready(SOON).with_context(|| what.clone())?;
            let now = cluster.pids(leader.host, "web")?;
            ensure!(now == tasks, "{what}: tasks {tasks:?} became {now:?}");
        }
        Ok(())
    })
}
