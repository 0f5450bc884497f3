//! Fewer operations, the same failure: whoever has to understand it reads less.

use crate::mutant::Mutant;
use crate::run::run;
use crate::scenario::Scenario;

/// Drops what is not needed for the same invariant to fail: first large parts, then single operations, until nothing more can go.
#[must_use]
pub fn shrink(scenario: &Scenario, mutant: Option<Mutant>, name: &str) -> Scenario {
    let fails = |candidate: &Scenario| run(candidate, mutant, false).verdict.is_some_and(|verdict| verdict.name == name);
    let mut best = scenario.clone();
    let mut size = (best.ops.len() / 2).max(1);
    loop {
        let mut dropped = false;
        let mut at = 0;
        while at < best.ops.len() {
            let mut candidate = best.clone();
            let end = (at + size).min(candidate.ops.len());
            candidate.ops.drain(at..end);
            if fails(&candidate) {
                best = candidate;
                dropped = true;
            } else {
                at += size;
            }
        }
        match size {
            1 if !dropped => return best,
            1 => {}
            _ => size /= 2,
        }
    }
}
