//! D2 and D3: `run --rm IMAGE true` and `exec CONTAINER true`.

use super::runners::{Runner, image};
use crate::cpu::{Reading, tree_seconds};
use crate::field::Field;
use crate::report::{Report, compared, cpu, mark, tree_cpu};
use crate::round::Sample;
use anyhow::{Context as _, Result};
use std::time::{Duration, Instant};

/// Commands of one measurement.
const TIMES: usize = 5;
const QUIET: Duration = Duration::from_millis(300);
/// What daemons do after the client's end is part of its cost.
const SETTLE: Duration = Duration::from_millis(500);
const BASELINE: Duration = Duration::from_secs(5);

const SETUP: &str = "busybox's true from the same image; 20.10's client for dockerd and us, ctr for containerd. CPU: client, daemons, shims, container and \
     kernel threads until 0.5 s after the end, less what is used when idle. ctr has an empty network namespace, no logs and no records; dockerd and we \
     have a bridge";

/// # Errors
/// If somebody fails to run a container.
pub fn run(field: &Field, count: usize) -> Result<Report> {
    let dir = tempfile::tempdir_in("/var/tmp")?;
    let mut runners = Runner::all(field, &image(dir.path())?)?;
    let samples = rounds(&mut runners, count, Runner::run_true)?;
    let mut report = Report::new("D2", "docker run --rm IMAGE true");
    report.rounds = count;
    report.heard(&samples);
    report.rows = vec![
        compared(&samples, ("run --rm, client included", "ms CPU"), "ctr", Some(1.5), "none", &cpu),
        compared(&samples, ("run --rm, without kernel threads", "ms CPU"), "ctr", None, "none", &tree_cpu),
        compared(&samples, ("run --rm, daemons and containers alone", "ms CPU"), "dockerd", None, "none", &mark("daemons")),
        compared(&samples, ("run --rm", "ms wall"), "dockerd", Some(0.67), "none", &mark("wall")),
    ];
    report.remarks.push(SETUP.into());
    Ok(report)
}

/// # Errors
/// If somebody fails to begin a process.
pub fn exec(field: &Field, count: usize) -> Result<Report> {
    let dir = tempfile::tempdir_in("/var/tmp")?;
    let mut runners = Runner::all(field, &image(dir.path())?)?;
    let outcome = runners.iter().try_for_each(Runner::stay).and_then(|()| rounds(&mut runners, count, Runner::exec_true));
    runners.iter().for_each(Runner::end_stay);
    let samples = outcome?;
    let mut report = Report::new("D3", "docker exec CONTAINER true");
    report.rounds = count;
    report.heard(&samples);
    report.rows = vec![
        compared(&samples, ("exec, client included", "ms CPU"), "ctr", Some(1.3), "none", &cpu),
        compared(&samples, ("exec, without kernel threads", "ms CPU"), "ctr", None, "none", &tree_cpu),
        compared(&samples, ("exec, daemons and containers alone", "ms CPU"), "dockerd", None, "none", &mark("daemons")),
        compared(&samples, ("exec", "ms wall"), "ctr", Some(1.3), "none", &mark("wall")),
    ];
    report.remarks.push(SETUP.into());
    Ok(report)
}

/// Everybody's turns, there and back again.
fn rounds(runners: &mut [Runner], count: usize, work: fn(&mut Runner) -> Result<()>) -> Result<Vec<Sample>> {
    let idle = baseline(runners);
    let order: Vec<usize> = (0..runners.len()).chain((0..runners.len()).rev()).collect();
    for runner in runners.iter_mut() {
        work(runner).with_context(|| format!("{}, for the first time", runner.name()))?;
    }
    let mut samples = Vec::new();
    for round in 0..count {
        eprint!("\rround {} of {count} ", round + 1);
        for index in &order {
            crate::interrupt::check()?;
            samples.push(measure(&mut runners[*index], round, idle[*index], work)?);
        }
    }
    eprintln!();
    Ok(samples)
}

/// What daemons and the kernel use when nothing happens, a second.
fn baseline(runners: &[Runner]) -> Vec<(f64, f64)> {
    let before: Vec<f64> = runners.iter().map(|runner| tree_seconds(runner.daemons())).collect();
    let start = Reading::take(&[]);
    std::thread::sleep(BASELINE);
    let spent = start.until(&Reading::take(&[]));
    let used = runners.iter().zip(before).map(|(runner, before)| (tree_seconds(runner.daemons()) - before) / spent.wall);
    used.map(|used| (used, spent.kernel / spent.wall)).collect()
}

/// Mean of some commands.
fn measure(runner: &mut Runner, round: usize, (idle, kernel): (f64, f64), work: fn(&mut Runner) -> Result<()>) -> Result<Sample> {
    std::thread::sleep(QUIET);
    let groups = runner.groups();
    let (before, daemons) = (Reading::take(&groups), tree_seconds(runner.daemons()));
    let began = Instant::now();
    for _ in 0..TIMES {
        work(runner)?;
    }
    let wall = began.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let spent = before.until(&Reading::take(&groups));
    let daemons = tree_seconds(runner.daemons()) - daemons - idle * spent.wall;
    let each = TIMES as f64;
    Ok(Sample {
        contender: runner.name().to_owned(),
        round,
        marks: vec![("wall", wall / each), ("daemons", daemons / each)],
        tree: (spent.tree - idle * spent.wall) / each,
        kernel: (spent.kernel - kernel * spent.wall) / each,
        foreign: spent.foreign_share(),
    })
}
