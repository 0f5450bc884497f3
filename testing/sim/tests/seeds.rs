//! Some seeds, and every scenario that failed once.

mod group; // managers and their disks

use skep_sim::{Scenario, run};
use std::sync::atomic::{AtomicU64, Ordering};

/// Two minutes of two cores, as `make test` builds it; `make sim` runs more.
const SEEDS: u64 = 2_000;

fn broken(scenario: &Scenario, name: &str) -> Option<String> {
    let verdict = run(scenario, None, false).verdict?;
    Some(format!("{name}: {}: {}; make sim SEED={} tells more", verdict.name, verdict.words, scenario.seed))
}

#[test]
fn whatever_happens_to_a_cluster_what_must_hold_holds() {
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                return;
            }
            if let Some(words) = broken(&Scenario::of_seed(seed), &format!("seed {seed}")) {
                // The others need not go on.
                next.store(SEEDS, Ordering::Relaxed);
                panic!("{words}");
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
}

#[test]
fn what_failed_once_holds_now() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    for path in paths {
        let scenario = Scenario::from_text(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(broken(&scenario, &path.display().to_string()), None);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2, 3] {
        let scenario = Scenario::of_seed(seed);
        let (one, two) = (run(&scenario, None, true), run(&scenario, None, true));
        let differs = one.lines.iter().zip(&two.lines).find(|(one, two)| one != two);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((one.events, one.revision, one.simulated), (two.events, two.revision, two.simulated));
    }
}
