//! Groups of managers on real raft, with disks that lose what was not synced.

use skep_sim::group::{Scenario, flip, run};
use std::sync::atomic::{AtomicU64, Ordering};

/// Half a minute of two cores, as `make test` builds it; `make sim GROUP=1` runs more.
const SEEDS: u64 = 50;

fn in_threads(work: impl Fn() + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(&work);
        }
    });
}

#[test]
fn whatever_happens_to_managers_and_their_disks_what_was_acknowledged_stays() {
    let next = AtomicU64::new(0);
    in_threads(|| {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                return;
            }
            let outcome = run(&Scenario::of_seed(seed), None, true);
            if let Some(verdict) = outcome.verdict {
                next.store(SEEDS, Ordering::Relaxed);
                outcome.lines.iter().rev().take(200).rev().for_each(|line| println!("{line}"));
                panic!("seed {seed}: {}: {}; make sim GROUP=1 SEED={seed} tells more", verdict.name, verdict.words);
            }
        }
    });
}

#[test]
fn damage_on_the_disk_is_refused_or_does_no_harm() {
    let next = AtomicU64::new(0);
    let (refused, harmless) = (AtomicU64::new(0), AtomicU64::new(0));
    in_threads(|| {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= 8 {
                return;
            }
            let damaged = flip::run(seed, 40, None);
            refused.fetch_add(damaged.refused, Ordering::Relaxed);
            harmless.fetch_add(damaged.harmless, Ordering::Relaxed);
            if let Some(verdict) = damaged.verdict {
                panic!("seed {seed}: {}: {}", verdict.name, verdict.words);
            }
        }
    });
    assert!(refused.into_inner() > 40 && harmless.into_inner() > 40, "both kinds of damage were there");
}

/// What is left to chance is the order in which tokio wakes those who wait for one value at the same moment.
#[test]
fn most_seeds_give_the_same_run_again() {
    let same = |seed: &u64| {
        let scenario = Scenario::of_seed(*seed);
        run(&scenario, None, false).digest == run(&scenario, None, false).digest
    };
    assert!((0..12).any(|seed| same(&seed)), "not one of twelve seeds gives the same run twice");
}
