//! Faults of all kinds in random order and at random moments.

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Dice, Journal, Scenario};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

/// One fault, for a while, and its end.
fn suffer(cluster: &mut Cluster, dice: &mut Dice) -> Result<String> {
    let managers = cluster.managers();
    let everybody = 0..cluster.workers().end;
    // Half of the time it is the leader's turn.
    let manager = if dice.coin() { cluster.wait_leader(SOON)? } else { dice.one_of(managers.clone()) };
    let any = if dice.coin() { manager } else { dice.one_of(everybody) };
    let other = (manager + 1) % managers.len();
    let pause = dice.moment(0..4000);
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
    Scenario::new("random faults", 3, 2).long().run(|cluster| {
        let mut dice = Dice::cast("random faults");
        let flags = ["service", "create", "-d", "--name", "web", "--replicas", "4", "--constraint", "node.role==worker", "whoami"];
        cluster.ctl(0, &flags)?.success()?;
        let tasks = cluster.wait_running(0, "web", 4)?;
        for round in Dice::rounds(40) {
            let journal = Journal::start(&cluster.sockets(cluster.managers()), 2)?;
            let began = Instant::now();
            dice.pause(0..300);
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
            let leader = cluster.aftermath(cluster.managers(), &[&record]).with_context(|| what.clone())?;
            cluster.wait_ready(SOON).with_context(|| what.clone())?;
            let now = cluster.pids(leader.host, "web")?;
            ensure!(now == tasks, "{what}: tasks {tasks:?} became {now:?}");
        }
        Ok(())
    })
}
