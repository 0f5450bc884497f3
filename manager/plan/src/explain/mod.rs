//! Why services, tasks and nodes are as they are, in sentences for people.
//!
//! Everything is read from a view: what the scheduler would say now, what agents reported, what the service asks for. Cost: one pass over all
//! nodes and tasks of the cluster, so this is for people who ask, not for loops.

mod dry_run; // where a new service's tasks would go
mod node; // one node
mod remedy; // what helps against what was said
mod service; // one service
mod task; // one task
mod waiting; // why no node takes a task, and what would help

pub use dry_run::{Placed, Placement, plan_placement};
pub use node::explain_node;
pub use service::explain_service;
pub use task::explain_task;

use skep_types::{ClusterView, NodeId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// So many nodes are named; the rest is counted.
const NAMED: usize = 10;

/// How good or bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// As asked for, but perhaps not as expected.
    Note,
    Wrong,
}

/// Nodes that say the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeGroup {
    pub reason: String,
    pub count: usize,
    /// The first few.
    pub names: Vec<String>,
}

/// One thing to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub verdict: Verdict,
    pub text: String,
    pub nodes: Vec<NodeGroup>,
    /// What would help, the nearest first.
    pub cures: Vec<String>,
}

impl Finding {
    fn new(verdict: Verdict, text: impl Into<String>) -> Self {
        Self { verdict, text: text.into(), nodes: Vec::new(), cures: Vec::new() }
    }

    fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cures.push(cure.into());
        self
    }
}

/// `1 task`, `3 tasks`.
fn count(number: usize, word: &str) -> String {
    if number == 1 { format!("1 {word}") } else { format!("{number} {word}s") }
}

/// One unit is enough to know.
fn about(length: Duration) -> String {
    match length.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn ago(now: Timestamp, then: Timestamp) -> String {
    format!("{} ago", about(now.since(then)))
}

fn name_of(view: &dyn ClusterView, node: &NodeId) -> String {
    view.node(node).map_or_else(|| node.to_string(), |node| node.display_name().to_owned())
}

/// `node1 (2), node2`: how often each is there.
fn tally(names: impl IntoIterator<Item = String>) -> String {
    let mut counts = BTreeMap::<String, usize>::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let rest = counts.len().saturating_sub(NAMED);
    let mut parts: Vec<String> =
        counts.into_iter().take(NAMED).map(|(name, count)| if count == 1 { name } else { format!("{name} ({count})") }).collect();
    if rest > 0 {
        parts.push(format!("{rest} more"));
    }
    parts.join(", ")
}
