//! The candidates for tasks with the same fixed needs: nodes that suit, ordered by how much runs on them.

use super::log::{Log, Number};
use super::need::Fixed;
use super::node::Place;
use super::order::Order;
use crate::constraint::Constraints;
use std::collections::BTreeMap;

const NONE: u32 = u32::MAX;

/// What a class knows of one node.
#[derive(Debug, Clone, Copy)]
struct Entry {
    epoch: u32,
    /// Its order in its leaf: active tasks; `NONE` = the node does not suit.
    key: u32,
    leaf: u32,
}

/// A branch of the tree of spread preferences.
#[derive(Debug, Default)]
pub(crate) struct Branch {
    pub parent: usize,
    children: BTreeMap<String, usize>,
    /// Set at the lowest level.
    pub leaf: Option<usize>,
}

impl Branch {
    pub fn children(&self) -> impl Iterator<Item = usize> + '_ {
        self.children.values().copied()
    }
}

#[derive(Debug)]
pub(crate) struct Leaf {
    pub branch: usize,
    /// (active tasks, node)
    pub nodes: Order<(u32, Number)>,
}

#[derive(Debug)]
pub(crate) struct Class {
    pub fixed: Fixed,
    pub constraints: Constraints,
    entries: Vec<Entry>,
    pub leaves: Vec<Leaf>,
    /// The first is the root.
    pub branches: Vec<Branch>,
    position: u64,
    /// When it was last used, in passes of the scheduler.
    pub used: u64,
}

impl Class {
    pub fn new(fixed: Fixed, placement_constraints: Constraints) -> Self {
        Self {
            fixed,
            constraints: placement_constraints,
            entries: Vec::new(),
            leaves: Vec::new(),
            branches: vec![Branch::default()],
            position: u64::MAX,
            used: 0,
        }
    }

    /// Whether the node is ready and suits.
    pub fn is_member(&self, node: Number) -> bool {
        self.entries.get(node as usize).is_some_and(|entry| entry.key != NONE)
    }

    /// The leaf that the node's labels put it in, also if it does not suit.
    pub fn leaf_of(&self, node: Number) -> Option<usize> {
        self.entries.get(node as usize).filter(|entry| entry.leaf != NONE).map(|entry| entry.leaf as usize)
    }

    /// Takes into account what happened to the nodes since the last use.
    pub fn catch_up(&mut self, places: &[Place], log: &Log) {
        let news = if self.position == u64::MAX { None } else { log.since(self.position) };
        match news {
            Some(news) if news.len() <= places.len() / 4 + 16 => {
                for (number, _) in news {
                    self.refresh(number, places);
                }
            }
            _ => self.rebuild(places),
        }
        self.position = log.end();
    }

    fn refresh(&mut self, number: Number, places: &[Place]) {
        let (before, after) = self.evaluate(number, places);
        let before = before.filter(|before| Some(*before) != after);
        if let Some((leaf, key)) = before {
            self.leaves[leaf as usize].nodes.remove(&(key, number));
        }
        if let Some((leaf, key)) = after {
            self.leaves[leaf as usize].nodes.insert((key, number));
        }
    }

    fn rebuild(&mut self, places: &[Place]) {
        let mut members: Vec<Vec<(u32, Number)>> = Vec::new();
        for number in 0..places.len() as u32 {
            if let (_, Some((leaf, key))) = self.evaluate(number, places) {
                if members.len() <= leaf as usize {
                    members.resize_with(leaf as usize + 1, Vec::new);
                }
                members[leaf as usize].push((key, number));
            }
        }
        members.resize_with(self.leaves.len(), Vec::new);
        for (leaf, mut nodes) in self.leaves.iter_mut().zip(members) {
            nodes.sort_unstable();
            leaf.nodes.refill(nodes);
        }
    }

    /// Brings the entry of a node up to date; returns (leaf, key) before and after.
    fn evaluate(&mut self, number: Number, places: &[Place]) -> (Option<(u32, u32)>, Option<(u32, u32)>) {
        let index = number as usize;
        if self.entries.len() <= index {
            self.entries.resize(index + 1, Entry { epoch: 0, key: NONE, leaf: NONE });
        }
        let place = &places[index];
        let old = self.entries[index];
        let mut new = old;
        if old.epoch != place.epoch {
            new.epoch = place.epoch;
            new.leaf = place.node.as_ref().map_or(NONE, |node| self.leaf_for(node) as u32);
            let suits = place.is_ready && place.node.as_ref().is_some_and(|node| self.fixed.check(&self.constraints, node).is_ok());
            new.key = if suits { place.active } else { NONE };
        } else if old.key != NONE {
            new.key = place.active;
        }
        self.entries[index] = new;
        let position = |entry: Entry| (entry.key != NONE).then_some((entry.leaf, entry.key));
        (position(old), position(new))
    }

    fn leaf_for(&mut self, node: &skep_types::Node) -> usize {
        let mut branch = 0;
        for descriptor in &self.fixed.spread {
            let name = descriptor.branch(node);
            branch = match self.branches[branch].children.get(name) {
                Some(child) => *child,
                None => {
                    self.branches.push(Branch { parent: branch, ..Branch::default() });
                    let child = self.branches.len() - 1;
                    self.branches[branch].children.insert(name.to_owned(), child);
                    child
                }
            };
        }
        let leaves = &mut self.leaves;
        *self.branches[branch].leaf.get_or_insert_with(|| {
            leaves.push(Leaf { branch, nodes: Order::default() });
            leaves.len() - 1
        })
    }
}
