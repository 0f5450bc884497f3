//! Some faults put in on purpose, each with a seed that finds it soon; `make sim-mutants` tries all.

use skep_sim::{Mutant, Scenario, run};

#[test]
fn what_is_wrong_on_purpose_is_found_by_the_invariant_it_breaks() {
    let known = [
        (Mutant::LostAssignment, 0, "I8"),
        (Mutant::FollowerSkips, 0, "I20"),
        (Mutant::StatusBack, 0, "I6"),
        (Mutant::SurgeOffByOne, 1, "I7"),
        (Mutant::EagerReaper, 1, "I6"),
        (Mutant::AddressTwice, 3, "I11"),
        (Mutant::EarlyRelease, 3, "I4"),
        (Mutant::DeafToWishes, 1, "I5"),
    ];
    for (mutant, seed, name) in known {
        let verdict = run(&Scenario::of_seed(seed), Some(mutant), false).verdict;
        assert_eq!(verdict.map(|verdict| verdict.name).as_deref(), Some(name), "{mutant:?} with seed {seed}");
    }
}
