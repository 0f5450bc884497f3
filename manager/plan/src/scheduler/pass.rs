//! Placing the tasks of one group: which node is next.

use super::class::Class;
use super::hash::ByNumber;
use super::load::{Load, Standing};
use super::log::{Log, Number};
use super::need::Need;
use super::node::Place;
use super::order::{Cursor, Order};
use skep_types::GenericResource;

/// One run over the candidates of a group. All its tasks need the same, so a node that has no room for one is not asked again.
pub(crate) struct Pass<'a> {
    places: &'a mut [Place],
    load: &'a mut Load,
    class: &'a Class,
    standing: &'a mut Standing,
    need: &'a Need,
    log: &'a mut Log,
    notes: &'a mut Notes,
}

/// What a pass remembers; it is passed on to the next one for its memory.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Nodes that come last, and how often tasks failed there lately; to be set before the pass.
    pub failing: ByNumber<usize>,
    leaves: Vec<LeafPass>,
    /// Per branch: its open children by tasks of the service. None if there is one branch only.
    tree: Vec<Order<(u64, usize)>>,
    totals: Vec<u64>,
}

#[derive(Debug)]
struct LeafPass {
    /// Nodes without tasks of the service come from here, in order.
    empty: Option<Cursor>,
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
        notes: &'a mut Notes,
    ) -> Self {
        notes.leaves.clear();
        notes.leaves.extend(class.leaves.iter().zip(&standing.leaves).map(|(leaf, standing)| {
            // If every candidate has a task of the service, there is nothing to find among the empty ones.
            let empty = (standing.len() < leaf.nodes.len()).then(Cursor::default);
            LeafPass { empty, refused: None, last_resort: None }
        }));
        notes.tree.iter_mut().for_each(Order::clear);
        notes.totals.clear();
        let mut this = Self { places, load, class, standing, need, log, notes };
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
        if self.class.branches.len() > 1 {
            self.count(self.class.leaves[leaf].branch);
        }
        Some((number, given))
    }

    fn has_room(&self, number: Number, here: u32) -> bool {
        self.places[number as usize].has_room(self.need, here)
    }

    fn next_in(&mut self, leaf: usize) -> Option<Number> {
        if self.notes.leaves.get(leaf)?.last_resort.is_none() {
            let nodes = &self.class.leaves[leaf].nodes;
            while let Some((_, number)) = self.notes.leaves[leaf].empty.as_mut().and_then(|cursor| nodes.next(cursor)) {
                if self.load.count(*number) == 0 && !self.notes.failing.contains_key(number) && self.has_room(*number, 0) {
                    return Some(*number);
                }
            }
            loop {
                let standing = &self.standing.leaves[leaf];
                let key = self.notes.leaves[leaf].refused.map_or_else(|| standing.first(), |refused| standing.after(&refused));
                let Some(key) = key.copied() else { break };
                if !self.standing.is_right(key, self.places) {
                    self.standing.refresh(key.2, self.class, self.places, &self.load.here);
                    continue;
                }
                if !self.notes.failing.contains_key(&key.2) && self.has_room(key.2, key.0) {
                    return Some(key.2);
                }
                self.notes.leaves[leaf].refused = Some(key);
            }
            let class = self.class;
            let here = |number: &Number| class.is_member(*number) && class.leaf_of(*number) == Some(leaf);
            let failing = self.notes.failing.keys().copied().filter(here).collect();
            self.notes.leaves[leaf].last_resort = Some(failing);
        }
        self.last_resort(leaf)
    }

    /// Where the service failed a lot: fewest failures first, then as always. Few nodes, so they are simply searched.
    fn last_resort(&self, leaf: usize) -> Option<Number> {
        let nodes = self.notes.leaves[leaf].last_resort.iter().flatten().copied();
        let with_room = nodes.filter(|number| self.has_room(*number, self.load.count(*number)));
        with_room.min_by_key(|number| (self.notes.failing[number], self.load.count(*number), self.places[*number as usize].active, *number))
    }

    fn plant(&mut self) {
        let branches = &self.class.branches;
        let Notes { tree, totals, .. } = &mut *self.notes;
        totals.resize(branches.len(), 0);
        for (leaf, total) in self.class.leaves.iter().zip(&self.standing.totals) {
            let mut branch = leaf.branch;
            loop {
                totals[branch] += total;
                if branch == 0 {
                    break;
                }
                branch = branches[branch].parent;
            }
        }
        tree.resize_with(branches.len(), Order::default);
        for (open, branch) in tree.iter_mut().zip(branches) {
            for child in branch.children() {
                open.insert((totals[child], child));
            }
        }
    }

    /// Down the branches with the fewest tasks of the service; a branch without room is taken out.
    fn descend(&mut self) -> Option<(usize, Number)> {
        loop {
            let mut branch = 0;
            while let Some((_, child)) = self.notes.tree[branch].first() {
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
            let total = self.notes.totals[branch];
            self.notes.tree[parent].remove(&(total, branch));
        }
    }

    /// One more task of the service below `branch`.
    fn count(&mut self, mut branch: usize) {
        while branch != 0 {
            let parent = self.class.branches[branch].parent;
            let Notes { tree, totals, .. } = &mut *self.notes;
            if tree[parent].remove(&(totals[branch], branch)) {
                tree[parent].insert((totals[branch] + 1, branch));
            }
            totals[branch] += 1;
            branch = parent;
        }
    }
}
