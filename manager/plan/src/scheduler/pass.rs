//! Placing the tasks of one group: which node is next.

use super::class::{Class, Leaf};
use super::hash::ByNumber;
use super::load::{Load, Standing};
use super::log::{Log, Number};
use super::need::Need;
use super::node::Place;
use skep_types::GenericResource;
use std::collections::{BTreeSet, btree_set};
use std::ops::Bound;

/// One run over the candidates of a group. All its tasks need the same, so a node that has no room for one is not asked again.
pub(crate) struct Pass<'a> {
    places: &'a mut [Place],
    load: &'a mut Load,
    class: &'a Class,
    standing: &'a mut Standing,
    need: &'a Need,
    log: &'a mut Log,
    failing: &'a ByNumber<usize>,
    leaves: Vec<LeafPass<'a>>,
    /// Per branch: its open children by tasks of the service.
    tree: Vec<BTreeSet<(u64, usize)>>,
    totals: Vec<u64>,
}

struct LeafPass<'a> {
    /// Nodes without tasks of the service come from here, in order.
    empty: Option<btree_set::Iter<'a, (u32, Number)>>,
    /// How far the nodes with tasks of the service have been refused.
    refused: Option<(u32, u32, Number)>,
    /// Nodes where the service fails a lot, the best one last; `None` = not asked yet.
    last_resort: Option<Vec<Number>>,
}

impl<'a> Pass<'a> {
    pub fn new(
        places: &'a mut [Place],
        load: &'a mut Load,
        class: &'a Class,
        standing: &'a mut Standing,
        need: &'a Need,
        log: &'a mut Log,
        failing: &'a ByNumber<usize>,
    ) -> Self {
        let of_leaf = |(leaf, standing): (&'a Leaf, &BTreeSet<_>)| {
            // If every candidate has a task of the service, there is nothing to find among the empty ones.
            let empty = (standing.len() < leaf.nodes.len()).then(|| leaf.nodes.iter());
            LeafPass { empty, refused: None, last_resort: None }
        };
        let leaves = class.leaves.iter().zip(&standing.leaves).map(of_leaf).collect();
        let mut this = Self { places, load, class, standing, need, log, failing, leaves, tree: Vec::new(), totals: Vec::new() };
        if class.branches.len() > 1 {
            this.plant();
        }
        this
    }

    /// The next task goes to this node, with these generic resources; `None` = no node has room.
    pub fn next(&mut self) -> Option<(Number, Vec<GenericResource>)> {
        let (leaf, number) = if self.class.branches.len() > 1 { self.descend()? } else { (0, self.next_in(0)?) };
        let given = self.places[number as usize].claim(self.need);
        self.load.add(number);
        self.standing.refresh(number, self.class, self.places, &self.load.here);
        self.log.push(number, false);
        if !self.tree.is_empty() {
            self.count(self.class.leaves[leaf].branch);
        }
        Some((number, given))
    }

    fn has_room(&self, number: Number, here: u32) -> bool {
        self.places[number as usize].has_room(self.need, here)
    }

    fn next_in(&mut self, leaf: usize) -> Option<Number> {
        if self.leaves.get(leaf)?.last_resort.is_none() {
            while let Some((_, number)) = self.leaves[leaf].empty.as_mut().and_then(Iterator::next) {
                if self.load.count(*number) == 0 && !self.failing.contains_key(number) && self.has_room(*number, 0) {
                    return Some(*number);
                }
            }
            loop {
                let from = self.leaves[leaf].refused.map_or(Bound::Unbounded, Bound::Excluded);
                let Some(key) = self.standing.leaves[leaf].range((from, Bound::Unbounded)).next().copied() else { break };
                if !self.standing.is_right(key, self.places) {
                    self.standing.refresh(key.2, self.class, self.places, &self.load.here);
                    continue;
                }
                if !self.failing.contains_key(&key.2) && self.has_room(key.2, key.0) {
                    return Some(key.2);
                }
                self.leaves[leaf].refused = Some(key);
            }
            let class = self.class;
            let failing = self.failing.keys().copied().filter(|number| class.is_member(*number) && class.leaf_of(*number) == Some(leaf));
            self.leaves[leaf].last_resort = Some(failing.collect());
        }
        self.last_resort(leaf)
    }

    /// Where the service failed a lot: fewest failures first, then as always. Few nodes, so they are simply searched.
    fn last_resort(&self, leaf: usize) -> Option<Number> {
        let nodes = self.leaves[leaf].last_resort.iter().flatten().copied();
        let with_room = nodes.filter(|number| self.has_room(*number, self.load.count(*number)));
        with_room.min_by_key(|number| (self.failing[number], self.load.count(*number), self.places[*number as usize].active, *number))
    }

    fn plant(&mut self) {
        let branches = &self.class.branches;
        self.totals = vec![0; branches.len()];
        for (leaf, total) in self.class.leaves.iter().zip(&self.standing.totals) {
            let mut branch = leaf.branch;
            loop {
                self.totals[branch] += total;
                if branch == 0 {
                    break;
                }
                branch = branches[branch].parent;
            }
        }
        self.tree = branches.iter().map(|branch| branch.children().map(|child| (self.totals[child], child)).collect()).collect();
    }

    /// Down the branches with the fewest tasks of the service; a branch without room is taken out.
    fn descend(&mut self) -> Option<(usize, Number)> {
        loop {
            let mut branch = 0;
            while let Some((_, child)) = self.tree[branch].first() {
                branch = *child;
            }
            if let Some(leaf) = self.class.branches[branch].leaf
                && let Some(number) = self.next_in(leaf)
            {
                return Some((leaf, number));
            }
            if branch == 0 {
                return None;
            }
            let parent = self.class.branches[branch].parent;
            let total = self.totals[branch];
            self.tree[parent].remove(&(total, branch));
        }
    }

    /// One more task of the service below `branch`.
    fn count(&mut self, mut branch: usize) {
        while branch != 0 {
            let parent = self.class.branches[branch].parent;
            let total = self.totals[branch];
            if self.tree[parent].remove(&(total, branch)) {
                self.tree[parent].insert((total + 1, branch));
            }
            self.totals[branch] += 1;
            branch = parent;
        }
    }
}
