//! `skep-sim --group`: runs seeds and mutants, and tells what came of them.

use super::{Mutant, Outcome, Scenario, lock, run};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// So many lines of a run that fails.
const LAST: usize = 200;

/// Does `work` in so many threads.
fn in_threads(jobs: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(&work);
        }
    });
}

/// One seed, told in full; whether all held.
#[must_use]
pub fn one(seed: u64, mutant: Option<Mutant>, lines: usize) -> bool {
    let scenario = Scenario::of_seed(seed);
    let outcome = run(&scenario, mutant, true);
    let skipped = outcome.lines.len().saturating_sub(lines);
    outcome.lines.iter().skip(skipped).for_each(|line| println!("{line}"));
    println!(
        "{} managers, seed {seed}: {:.0} s of its time, digest {:016x}",
        scenario.managers,
        outcome.simulated.as_secs_f64(),
        outcome.digest
    );
    match outcome.verdict {
        None => println!("all held"),
        Some(ref verdict) => println!("{}: {}", verdict.name, verdict.words),
    }
    outcome.verdict.is_none()
}

/// Many seeds; whether all held. Without `go_on` the first failure is the last.
#[must_use]
pub fn many(from: u64, seeds: u64, jobs: usize, go_on: bool) -> bool {
    let began = Instant::now();
    let next = AtomicU64::new(from);
    let sum: Mutex<(Vec<Outcome>, u64)> = Mutex::default();
    in_threads(jobs, || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds || (!go_on && lock(&sum).1 > 0) {
                return;
            }
            // Not every run can be repeated to the letter: what happened in one that fails is told now or never.
            let mut outcome = run(&Scenario::of_seed(seed), None, true);
            let lines = std::mem::take(&mut outcome.lines);
            let mut sum = lock(&sum);
            if let Some(verdict) = &outcome.verdict {
                lines.iter().skip(if go_on { lines.len() } else { lines.len().saturating_sub(LAST) }).for_each(|line| println!("{line}"));
                println!("seed {seed}: {}: {}; make sim GROUP=1 SEED={seed} tells more", verdict.name, verdict.words);
                sum.1 += 1;
            }
            sum.0.push(outcome);
        }
    });
    let (outcomes, failed) = &*lock(&sum);
    let total = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    println!(
        "{} seeds, {failed} failed: {:.1} hours of their time, {} writes acknowledged, {} reads, {} crashes in {:.0} s",
        outcomes.len(),
        outcomes.iter().map(|outcome| outcome.simulated.as_secs_f64()).sum::<f64>() / 3_600.0,
        total(|outcome| outcome.writes),
        total(|outcome| outcome.reads),
        total(|outcome| outcome.crashes),
        began.elapsed().as_secs_f64()
    );
    *failed == 0
}

/// The first of so many seeds that finds a fault and holds without it: which it is, and what does not hold.
#[must_use]
pub fn find(mutant: Mutant, from: u64, seeds: u64) -> Option<(u64, String)> {
    (from..from + seeds).find_map(|seed| {
        let scenario = Scenario::of_seed(seed);
        let verdict = run(&scenario, Some(mutant), false).verdict?;
        run(&scenario, None, false).verdict.is_none().then_some((seed, verdict.name))
    })
}

/// Each fault has to be found by one of the seeds; whether all were.
#[must_use]
pub fn mutants(from: u64, seeds: u64, jobs: usize, only: Option<&str>) -> bool {
    let wanted: Vec<Mutant> = Mutant::ALL.into_iter().filter(|mutant| only.is_none_or(|name| format!("{mutant:?}") == name)).collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    in_threads(jobs, || {
        while let Some(mutant) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            let what = find(*mutant, from, seeds);
            lock(&found).insert(*mutant, what);
        }
    });
    let found = &*lock(&found);
    println!("| fault | found by | seeds |\n|---|---|---|");
    for (mutant, what) in found {
        match what {
            Some((seed, name)) => println!("| {mutant:?}: {} | {name} | {} |", mutant.words(), seed - from + 1),
            None => println!("| {mutant:?}: {} | **nothing** | |", mutant.words()),
        }
    }
    found.values().all(Option::is_some)
}
