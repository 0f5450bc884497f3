//! Rounds: everybody does the same, one after the other, there and back again, so that a slow minute hits all alike.

use crate::contender::{Contender, Marks};
use crate::cpu::{Reading, Spent};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Duration;

/// What is measured. The rest of a cycle (start before a stop, stop after a start) happens outside of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Start(usize),
    Remove(usize),
    /// One task of so many dies.
    Heal(usize),
    /// New tasks in the place of so many, one after the other.
    Update(usize),
}

/// After an operation its daemons still write, report and tidy up: that is part of its cost, for everybody the same time.
const SETTLE: Duration = Duration::from_millis(500);
/// Before the clocks are read nothing of the contender before should be going on.
const QUIET: Duration = Duration::from_millis(300);
const BASELINE: Duration = Duration::from_secs(5);

/// One measurement of one contender.
#[derive(Debug, Clone)]
pub struct Sample {
    pub contender: String,
    pub round: usize,
    pub marks: Marks,
    /// CPU seconds of its processes, over what they use when idle.
    pub tree: f64,
    /// CPU seconds of the kernel's own threads, over what they use when idle.
    pub kernel: f64,
    /// The machine's share that others used meanwhile.
    pub foreign: f64,
}

/// What everybody uses when nothing happens, in CPU seconds a second.
#[derive(Debug, Clone, Default)]
pub struct Idle {
    pub trees: Vec<f64>,
    pub kernel: f64,
}

fn measure(groups: &[PathBuf], work: impl FnOnce() -> Result<Option<Marks>>) -> Result<(Option<Marks>, Spent)> {
    std::thread::sleep(QUIET);
    let before = Reading::take(groups);
    let marks = work()?;
    std::thread::sleep(SETTLE);
    Ok((marks, before.until(&Reading::take(groups))))
}

fn once(contender: &mut dyn Contender, operation: Operation) -> Result<Option<(Marks, Spent)>> {
    let groups = contender.tree();
    let (marks, spent) = match operation {
        Operation::Start(count) => {
            let measured = measure(&groups, || contender.start(count).map(Some))?;
            contender.remove()?;
            measured
        }
        Operation::Remove(count) => {
            contender.start(count)?;
            measure(&groups, || contender.remove().map(Some))?
        }
        Operation::Heal(count) => {
            contender.start(count)?;
            let measured = measure(&groups, || contender.heal());
            contender.remove()?;
            measured?
        }
        Operation::Update(count) => {
            contender.start(count)?;
            let measured = measure(&groups, || contender.update());
            contender.remove()?;
            measured?
        }
    };
    Ok(marks.map(|marks| (marks, spent)))
}

/// Measures everybody's idle use, over the same seconds.
#[must_use]
pub fn idle(contenders: &[Box<dyn Contender>]) -> Idle {
    let trees: Vec<Vec<PathBuf>> = contenders.iter().map(|contender| contender.tree()).collect();
    let before: Vec<f64> = trees.iter().map(|groups| crate::cpu::tree_seconds(groups)).collect();
    let start = Reading::take(&[]);
    std::thread::sleep(BASELINE);
    let spent = start.until(&Reading::take(&[]));
    let trees = trees.iter().zip(before).map(|(groups, before)| (crate::cpu::tree_seconds(groups) - before) / spent.wall).collect();
    Idle { trees, kernel: spent.kernel / spent.wall }
}

/// So many rounds of A-B-C-C-B-A. Everybody does the operation once before, unmeasured. dockerd, which takes many times as
/// long as all others together, takes part in every `slow`th round only.
///
/// # Errors
/// If an operation of anybody fails, naming it.
pub fn rounds(contenders: &mut [Box<dyn Contender>], operation: Operation, rounds: usize, slow: usize, idle: &Idle) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let there = 0..contenders.len();
    let order: Vec<usize> = there.clone().chain(there.rev()).collect();
    for contender in contenders.iter_mut() {
        once(contender.as_mut(), operation).with_context(|| format!("{}: {operation:?}", contender.name()))?;
    }
    for round in 0..rounds {
        eprint!("\r{operation:?}: round {} of {rounds} ", round + 1);
        for index in &order {
            let contender = contenders[*index].as_mut();
            if contender.name().starts_with("dockerd") && round % slow != 0 {
                continue;
            }
            let Some((marks, spent)) = once(contender, operation).with_context(|| format!("{}: {operation:?}", contender.name()))? else {
                continue;
            };
            samples.push(Sample {
                contender: contender.name().to_owned(),
                round,
                marks,
                tree: spent.tree - idle.trees[*index] * spent.wall,
                kernel: spent.kernel - idle.kernel * spent.wall,
                foreign: spent.foreign_share(),
            });
        }
    }
    eprintln!();
    Ok(samples)
}
