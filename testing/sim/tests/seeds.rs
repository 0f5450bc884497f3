//! Some seeds, and every scenario that failed once.

use skep_sim::{Scenario, run};

/// As many as a debug build runs in half a minute; `make sim` runs more.
const SEEDS: u64 = 100;

fn holds(scenario: &Scenario, name: &str) {
    let outcome = run(scenario, None, false);
    if let Some(verdict) = outcome.verdict {
        panic!("{name}: {}: {}; make sim SEED={} tells more", verdict.name, verdict.words, scenario.seed);
    }
}

#[test]
fn whatever_happens_to_a_cluster_what_must_hold_holds() {
    (0..SEEDS).for_each(|seed| holds(&Scenario::of_seed(seed), &format!("seed {seed}")));
}

#[test]
fn what_failed_once_holds_now() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    for path in paths {
        let scenario = Scenario::from_text(&std::fs::read_to_string(&path).unwrap()).unwrap();
        holds(&scenario, &path.display().to_string());
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
