//! B1, B2, B3: starting, starting many, stopping and removing.

use crate::contender::Contender;
use crate::field::Field;
use crate::peers::Network;
use crate::report::{Goal, Report, Row, compared, cpu, mark, tree_cpu};
use crate::round::{Operation, Sample, idle, rounds};
use crate::stats::median;
use anyhow::{Context, Result};
use skep_kit::Inventory;

const HOST_NET: &str = "dockerd host net";
const BRIDGE: &str = "dockerd bridge";
const CTR: &str = "ctr";
const FLOOR: &str = "runc";
const WALL: &str = "ms wall";
const CPU: &str = "ms CPU";

const SETUP: &str = "same image, seccomp profile and bind mount for all; own network namespace: ours made by netlb, dockerd bridge \
     with its veth, ctr and runc new and empty, dockerd host net none. dockerd: image local, never asks a registry, restart delay 0, dnsrr. \
     CPU: all processes of the contender from the call until 0.5 s after the end, plus the kernel's threads, less what is used when idle; \
     the client that polls is in nobody's";

/// # Errors
/// If anybody fails to start or remove a task.
pub fn start_one(field: &Field, count: usize) -> Result<Report> {
    let mut report = Report::new("B1", "start-one: API create of 1 replica -> running");
    let mut contenders = field.contenders(&[Network::Host, Network::Bridge], 1, 1)?;
    let quiet = idle(&contenders);
    let samples = rounds(&mut contenders, Operation::Start(1), count, 1, &quiet)?;
    report.rounds = count;
    report.heard(&samples);
    let mut row = |metric: &str, unit, against, at_most, value: &dyn Fn(&Sample) -> Option<f64>| {
        report.rows.push(compared(&samples, (metric, unit), against, at_most, FLOOR, value));
    };
    row("create -> RUNNING", WALL, HOST_NET, Some(0.6), &mark("running"));
    row("create -> RUNNING, like with like", WALL, BRIDGE, None, &mark("running"));
    row("create -> first instruction", WALL, HOST_NET, Some(0.6), &mark("first instruction"));
    row("start one", CPU, CTR, Some(1.15), &cpu);
    row("start one, without kernel threads", CPU, CTR, None, &tree_cpu);
    row("start one, to dockerd", CPU, BRIDGE, None, &cpu);
    report.remarks.push(SETUP.into());
    Ok(report)
}

/// # Errors
/// If anybody fails to start or remove a task.
pub fn start_burst(field: &Field, sizes: &[usize], count: usize) -> Result<Report> {
    let mut report = Report::new("B2", "start-burst: many tasks of one service at once");
    let (best, tried) = best_parallelism(field, sizes[0])?;
    report.remarks.push(format!("ctr's best parallelism is {best}, of {tried} for {} tasks", sizes[0]));
    let mut contenders = field.contenders(&[Network::Bridge], best, 2)?;
    let quiet = idle(&contenders);
    report.rounds = count;
    for size in sizes {
        let samples = rounds(&mut contenders, Operation::Start(*size), count, 3, &quiet)?;
        report.heard(&samples);
        let mut row = |metric: String, unit, against, at_most, value: &dyn Fn(&Sample) -> Option<f64>| {
            report.rows.push(compared(&samples, (metric, unit), against, at_most, FLOOR, value));
        };
        row(format!("{size} tasks, all RUNNING"), WALL, CTR, Some(1.1), &mark("running"));
        row(format!("{size} tasks, all RUNNING, to dockerd"), WALL, BRIDGE, None, &mark("running"));
        row(format!("{size} tasks, last one's first instruction"), WALL, CTR, None, &mark("first instruction"));
        row(format!("{size} tasks"), CPU, CTR, Some(1.1), &cpu);
        row(format!("{size} tasks, without kernel threads"), CPU, CTR, None, &tree_cpu);
    }
    report.remarks.push(SETUP.into());
    Ok(report)
}

/// Which parallelism is quickest for a loop of `ctr`, and what all of them took.
fn best_parallelism(field: &Field, size: usize) -> Result<(usize, String)> {
    let choices = [1, 2, 4, 8];
    let mut contenders = Vec::new();
    for choice in choices {
        contenders.push(Box::new(field.ctr(choice)?) as Box<dyn Contender>);
    }
    let quiet = idle(&contenders);
    let samples = rounds(&mut contenders, Operation::Start(size), 1, 1, &quiet)?;
    let wall = mark("running");
    let walls: Vec<(usize, f64)> = choices
        .iter()
        .filter_map(|choice| {
            let name = format!("ctr x{choice}");
            let values: Vec<f64> = samples.iter().filter(|sample| sample.contender == name).filter_map(&wall).collect();
            Some((*choice, median(&values)?))
        })
        .collect();
    let best = walls.iter().min_by(|a, b| a.1.total_cmp(&b.1)).context("ctr was not measured")?.0;
    Ok((best, walls.iter().map(|(choice, wall)| format!("{choice}: {wall:.0} ms")).collect::<Vec<_>>().join(", ")))
}

/// # Errors
/// If anybody fails to start or remove a task.
pub fn stop_and_remove(field: &Field, sizes: &[usize], count: usize, cycles: usize) -> Result<Report> {
    let mut report = Report::new("B3", "stop-and-remove: until every kernel object is gone; healing");
    let mut contenders = field.contenders(&[Network::Bridge], 2, 2)?;
    let quiet = idle(&contenders);
    report.rounds = count;
    for size in sizes {
        let slow = if *size > 10 { 3 } else { 1 };
        let samples = rounds(&mut contenders, Operation::Remove(*size), count, slow, &quiet)?;
        report.heard(&samples);
        let mut row = |metric: String, unit, against, at_most, value: &dyn Fn(&Sample) -> Option<f64>| {
            report.rows.push(compared(&samples, (metric, unit), against, at_most, FLOOR, value));
        };
        row(format!("rm of {size}, all gone"), WALL, CTR, Some(1.2), &mark("gone"));
        row(format!("rm of {size}, all gone, to dockerd"), WALL, BRIDGE, None, &mark("gone"));
        row(format!("rm of {size}"), CPU, CTR, Some(1.2), &cpu);
        row(format!("rm of {size}, without kernel threads"), CPU, CTR, None, &tree_cpu);
    }
    drop(contenders);
    if field.has_ours() {
        report.rows.push(leaks(field, cycles)?);
    }
    let samples = heal(field, count)?;
    report.heard(&samples);
    let healed = "kill -9 -> replacement RUNNING";
    report.rows.push(compared(&samples, (healed, WALL), HOST_NET, Some(0.6), "none", &mark("healed")));
    report.rows.push(compared(&samples, (healed, CPU), BRIDGE, None, "none", &cpu));
    report.remarks.push(SETUP.into());
    Ok(report)
}

/// # Errors
/// If anybody's update does not end.
pub fn rolling_update(field: &Field, size: usize, count: usize) -> Result<Report> {
    let mut report = Report::new("B17", "rolling-update: a new task for each, one at a time, stop first");
    let mut contenders = field.contenders(&[Network::Host, Network::Bridge], 1, 1)?;
    contenders.retain(|contender| !contender.name().starts_with(FLOOR));
    let quiet = idle(&contenders);
    let samples = rounds(&mut contenders, Operation::Update(size), count, 3, &quiet)?;
    report.rounds = count;
    report.heard(&samples);
    let mut row = |metric: String, unit, against, at_most, value: &dyn Fn(&Sample) -> Option<f64>| {
        report.rows.push(compared(&samples, (metric, unit), against, at_most, "none", value));
    };
    row(format!("update of {size}, all new ones RUNNING"), WALL, CTR, Some(1.1), &mark("updated"));
    row(format!("update of {size}, to dockerd with host network"), WALL, HOST_NET, None, &mark("updated"));
    row(format!("update of {size}, to dockerd"), WALL, BRIDGE, None, &mark("updated"));
    row(format!("update of {size}"), CPU, CTR, None, &cpu);
    report.remarks.push(SETUP.into());
    report.remarks.push("from the call until the last new task is RUNNING; an update's monitor window after that is nobody's. ctr stops and starts one after the other, which is replicas / parallelism x (stop + start)".into());
    Ok(report)
}

fn heal(field: &Field, count: usize) -> Result<Vec<Sample>> {
    let mut contenders = field.contenders(&[Network::Host, Network::Bridge], 1, 1)?;
    // Nobody replaces the tasks of ctr and runc.
    contenders.retain(|contender| !contender.name().starts_with(CTR) && !contender.name().starts_with(FLOOR));
    let quiet = idle(&contenders);
    rounds(&mut contenders, Operation::Heal(1), count, 1, &quiet)
}

/// So many tasks started and removed, 50 at a time; then nothing may be there that was not before.
fn leaks(field: &Field, cycles: usize) -> Result<Row> {
    const BATCH: usize = 50;
    let mut ours = field.ours()?;
    ours.start(1)?;
    ours.remove()?;
    let before = Inventory::take(&field.lab)?;
    let mut done = 0;
    while done < cycles {
        let batch = BATCH.min(cycles - done);
        ours.start(batch)?;
        ours.remove()?;
        done += batch;
        eprint!("\rcycles: {done} of {cycles} ");
    }
    eprintln!();
    // Records and log files of removed tasks go with the history, shortly after.
    let mut leaked = Vec::new();
    let clean = skep_kit::eventually(std::time::Duration::from_secs(20), "nothing leaked", || {
        leaked = Inventory::take(&field.lab)?.leaked_since(&before);
        anyhow::ensure!(leaked.is_empty());
        Ok(())
    });
    let note = if clean.is_ok() { String::new() } else { format!("such as {:?}", &leaked[..leaked.len().min(5)]) };
    Ok(Row::plain(format!("objects leaked in {done} cycles"), "objects", Some(leaked.len() as f64), Some(Goal::Value(0.0))).note(note))
}
