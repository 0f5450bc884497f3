//! B5: what placing a task costs in memory, from `sched_bench` of the plan crate, against SwarmKit's own benchmark.

use crate::report::{Goal, Report, Row};
use crate::stats::{Estimate, exponent, median};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// SwarmKit's `BenchmarkScheduler` on this class of machine: microseconds of CPU a task with 1,000 nodes (spec/peers.md 5,
/// anchors 0). Constants, because its figures need a Go tool chain.
const SWARMKIT_1K_CPU: f64 = 430.0;
/// The same in wall time, with 1,000 and with 100,000 nodes.
const SWARMKIT_1K_WALL: f64 = 250.0;
const SWARMKIT_100K_WALL: f64 = 41_100.0;
/// Allocations a task of the same benchmark, with 1,000 nodes.
const SWARMKIT_ALLOCATIONS: f64 = 1_229.0;
const REPEATS: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    name: String,
    nodes: u64,
    tasks: u64,
}

/// Microseconds of CPU a task for each shape, a value for each line.
fn parse(text: &str) -> Result<BTreeMap<Shape, Vec<f64>>> {
    let mut all: BTreeMap<Shape, Vec<f64>> = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let row: Value = serde_json::from_str(line).with_context(|| format!("in {line}"))?;
        let number = |key: &str| row[key].as_u64().with_context(|| format!("{key} is missing in {line}"));
        let shape = Shape { name: row["shape"].as_str().unwrap_or("?").to_owned(), nodes: number("nodes")?, tasks: number("tasks")? };
        let cost = row["schedule_us"].as_f64().context("schedule_us is missing")? + row["observe_us"].as_f64().unwrap_or(0.0);
        all.entry(shape).or_default().push(cost);
    }
    ensure!(!all.is_empty(), "sched_bench printed no figure");
    Ok(all)
}

/// Calls of the allocator a task, without those that the finished task itself takes, for each shape that is a steady state.
fn allocations(text: &str) -> BTreeMap<Shape, f64> {
    let told = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let one = |row: Value| {
        let shape = Shape { name: row["shape"].as_str()?.to_owned(), nodes: row["nodes"].as_u64()?, tasks: row["tasks"].as_u64()? };
        let calls = row["schedule_allocations"].as_f64()? + row["observe_allocations"].as_f64()? - row["kept"].as_f64()?;
        (!shape.name.contains("catching up")).then_some((shape, calls))
    };
    told.filter_map(one).collect()
}

/// # Errors
/// If `sched_bench` was not built or fails.
pub fn sched() -> Result<Report> {
    let mut report = Report::new("B5", "sched: placing tasks, in memory");
    report.rounds = REPEATS;
    let program = skep_kit::binary("examples/sched_bench").context("cargo build --release -p skep-plan --example sched_bench")?;
    let mut text = String::new();
    for _ in 0..REPEATS {
        text += &skep_kit::run(&program.to_string_lossy(), &[])?.success()?;
    }
    let costs = parse(&text)?;
    report.rows = rows(&costs);
    for (shape, calls) in allocations(&text) {
        let metric = format!("{}: {} tasks, {} nodes, beside the finished task", shape.name, shape.tasks, shape.nodes);
        let row = Row::plain(metric, "allocations a task", Some(calls), Some(Goal::Value(0.0)));
        report.rows.push(if shape.nodes == 1_000 { row.peer("SwarmKit", SWARMKIT_ALLOCATIONS) } else { row });
    }
    report.remarks.push("exponents are of CPU time: where the steps stay the same, data that no longer fits the CPU's caches still makes each of them dearer".into());
    report.remarks.push("ours is CPU time of deciding and of taking the committed result back in; SwarmKit's figures are constants of the same machine class, not of this run".into());
    Ok(report)
}

fn rows(costs: &BTreeMap<Shape, Vec<f64>>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (shape, values) in costs {
        let Some(ours) = median(values) else { continue };
        let mut row =
            Row::plain(format!("{}: {} tasks, {} nodes", shape.name, shape.tasks, shape.nodes), "us CPU a task", Some(ours), None);
        let yardstick = match shape.nodes {
            1_000 => Some(("SwarmKit, CPU", SWARMKIT_1K_CPU)),
            100_000 => Some(("SwarmKit, wall", SWARMKIT_100K_WALL)),
            _ => None,
        };
        if let Some((name, theirs)) = yardstick {
            row = row.peer(name, theirs);
            if shape.nodes == 1_000 {
                row = row.peer("SwarmKit, wall", SWARMKIT_1K_WALL);
            }
            let ratios: Vec<f64> = values.iter().map(|value| value / theirs).collect();
            let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let high = ratios.iter().copied().fold(0.0, f64::max);
            row.ratio = median(&ratios).map(|median| Estimate { median, low, high });
            row.against = Some(name.to_owned());
            row.goal = Some(Goal::Times { against: "SwarmKit", at_least: 20.0 });
        }
        rows.push(row);
    }
    let cost = |name: &str, tasks: u64, nodes: u64| costs.get(&Shape { name: name.into(), nodes, tasks }).and_then(|values| median(values));
    let in_tasks: Vec<(f64, f64)> =
        [1_000, 10_000, 100_000].iter().filter_map(|tasks| Some((*tasks as f64, *tasks as f64 * cost("plain", *tasks, 1_000)?))).collect();
    rows.push(Row::plain("growth of the whole with tasks, 1,000 nodes", "exponent", exponent(&in_tasks), Some(Goal::Value(1.05))));
    let by_nodes = |name: &str, tasks: [u64; 3]| -> Vec<(f64, f64)> {
        [1_000, 10_000, 100_000].iter().zip(tasks).filter_map(|(nodes, tasks)| Some((*nodes as f64, cost(name, tasks, *nodes)?))).collect()
    };
    for (name, tasks) in
        [("plain", [10_000, 10_000, 100_000]), ("services of ten", [10_000; 3]), ("one more of a large service", [1_000; 3])]
    {
        let points = by_nodes(name, tasks);
        rows.push(Row::plain(format!("growth of a task's cost with nodes: {name}"), "exponent", exponent(&points), Some(Goal::Value(0.1))));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_become_ratios_and_exponents() {
        let line = |tasks: u64, nodes: u64, cost: f64| {
            format!(r#"{{"bench":"sched","shape":"plain","tasks":{tasks},"nodes":{nodes},"schedule_us":{cost},"observe_us":0.0}}"#)
        };
        let text = [line(1_000, 1_000, 4.3), line(10_000, 1_000, 4.3), line(100_000, 1_000, 4.3), line(10_000, 10_000, 8.6)].join("\n");
        let rows = rows(&parse(&text).unwrap());
        let first = &rows[0];
        assert_eq!((first.held(), (first.ratio.unwrap().median * 1e4).round()), (Some(true), 100.0));
        let growth = rows.iter().find(|row| row.metric.contains("whole with tasks")).unwrap();
        assert!((growth.ours.unwrap() - 1.0).abs() < 1e-9 && growth.held() == Some(true));
        let nodes = rows.iter().find(|row| row.metric.ends_with("nodes: plain")).unwrap();
        assert_eq!(nodes.held(), Some(false), "twice the cost at ten times the nodes is an exponent of 0.3");
    }

    #[test]
    fn what_the_finished_task_takes_is_not_held_against_the_decision() {
        let line = |shape: &str| {
            format!(r#"{{"shape":"{shape}","tasks":10,"nodes":5,"schedule_allocations":3.25,"observe_allocations":0.25,"kept":3.0}}"#)
        };
        let told = allocations(&format!("{}\n{}\n", line("plain"), line("a large service catching up")));
        assert_eq!(told.values().collect::<Vec<_>>(), [&0.5]);
        assert!(allocations("warming up\n").is_empty());
    }

    #[test]
    fn no_figure_is_an_error() {
        assert!(parse("warming up\n").is_err());
    }
}
