//! Some faults put in on purpose, which few seeds find; `make sim-mutants` tries all.

use skep_sim::{Mutant, Scenario, run};

/// As many seeds as may be needed.
const SEEDS: u64 = 30;

#[test]
fn what_is_wrong_on_purpose_is_found_by_the_invariant_it_breaks() {
    let known = [
        (Mutant::LostAssignment, "I8"),
        (Mutant::FollowerSkips, "I20"),
        (Mutant::StatusBack, "I6"),
        (Mutant::SurgeOffByOne, "I7"),
        (Mutant::EagerReaper, "I6"),
        (Mutant::AddressTwice, "I11"),
        (Mutant::EarlyRelease, "I4"),
        (Mutant::ClearsEarly, "I13"),
        (Mutant::DeafToWishes, "I5"),
    ];
    for (mutant, name) in known {
        let finds = |seed| run(&Scenario::of_seed(seed), Some(mutant), false).verdict.is_some_and(|verdict| verdict.name == name);
        assert!((0..SEEDS).any(finds), "{mutant:?} is not found by {name}");
    }
}
