//! Scenarios in files: what failed once is run again by every test (`testing/sim/seeds`).
//!
//! A line of JSON an operation, its time in milliseconds before it; lines that begin with `#` tell what was wrong.

use crate::scenario::{Op, Scenario};
use std::fmt::Write as _;

/// Why a text is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum BadScenario {
    #[error("line {0} is not understood")]
    Line(usize, #[source] Option<serde_json::Error>),
    #[error("the text does not begin with `seed N managers N nodes N`")]
    Head,
}

impl Scenario {
    /// The text of a file. `why`: what did not hold.
    #[must_use]
    pub fn to_text(&self, why: &str) -> String {
        let mut text = String::new();
        for line in why.lines() {
            let _ = writeln!(text, "# {line}");
        }
        let _ = writeln!(text, "seed {} managers {} nodes {}", self.seed, self.managers, self.nodes);
        for (at, op) in &self.ops {
            let op = serde_json::to_string(op).unwrap_or_default();
            let _ = writeln!(text, "{at} {op}");
        }
        text
    }

    /// Reads [`Scenario::to_text`] back.
    ///
    /// # Errors
    /// The line that is not understood.
    pub fn from_text(text: &str) -> Result<Self, BadScenario> {
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty());
        let (_, head) = lines.next().ok_or(BadScenario::Head)?;
        let words: Vec<&str> = head.split_whitespace().collect();
        let ["seed", seed, "managers", managers, "nodes", nodes] = words[..] else { return Err(BadScenario::Head) };
        let mut ops = Vec::new();
        for (number, line) in lines {
            let (at, op) = line.split_once(' ').ok_or(BadScenario::Line(number + 1, None))?;
            let op: Op = serde_json::from_str(op).map_err(|error| BadScenario::Line(number + 1, Some(error)))?;
            ops.push((at.parse().map_err(|_| BadScenario::Line(number + 1, None))?, op));
        }
        let head = |word: &str| word.parse().map_err(|_| BadScenario::Head);
        Ok(Self { seed: seed.parse().map_err(|_| BadScenario::Head)?, managers: head(managers)?, nodes: head(nodes)?, ops })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_reads_back_as_it_was_written() {
        for seed in 0..20 {
            let scenario = Scenario::of_seed(seed);
            assert_eq!(Scenario::from_text(&scenario.to_text("why\nand why")).unwrap(), scenario);
        }
        assert!(Scenario::from_text("seed 1 managers 1 nodes 1\n5 {\"Nothing\":1}").is_err());
    }
}
