//! How a service's tasks are spread over the nodes, and where they failed.

use super::class::Class;
use super::hash::ByNumber;
use super::log::{Log, Number};
use super::node::Place;
use super::order::Order;
use skep_types::{Timestamp, Version};
use std::collections::HashMap;
use std::time::Duration;

/// A node with this many failures in [`FAILURE_WINDOW`] comes last (`SK/manager/scheduler/scheduler.go`).
const MANY_FAILURES: usize = 5;
const FAILURE_WINDOW: Duration = Duration::from_secs(5 * 60);

/// Below this many nodes it is cheaper to sort anew than to keep the order. Debug builds always keep it, so that tests with few nodes
/// go that way too.
const WORTH_KEEPING: usize = if cfg!(debug_assertions) { 1 } else { 256 };

#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Active tasks of the service by node.
    pub here: ByNumber<u32>,
    failures: HashMap<(Option<Version>, Number), Vec<Timestamp>>,
    standing: Option<(usize, Standing)>,
    /// Nodes where `here` changed since `standing` was used; empty without one.
    moved: Vec<Number>,
}

impl Load {
    pub fn count(&self, node: Number) -> u32 {
        self.here.get(&node).copied().unwrap_or(0)
    }

    pub fn add(&mut self, node: Number) {
        *self.here.entry(node).or_default() += 1;
        self.note_move(node);
    }

    pub fn subtract(&mut self, node: Number) {
        if let Some(count) = self.here.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                self.here.remove(&node);
            }
            self.note_move(node);
        }
    }

    fn note_move(&mut self, node: Number) {
        if self.standing.is_none() {
            return;
        }
        self.moved.push(node);
        if self.moved.len() > self.here.len() + WORTH_KEEPING {
            // Sorting anew is cheaper by now.
            self.drop_standing();
        }
    }

    pub fn is_idle(&self) -> bool {
        self.here.is_empty() && self.failures.is_empty()
    }

    pub fn note_failure(&mut self, version: Option<Version>, node: Number, when: Timestamp) {
        let all = self.failures.entry((version, node)).or_default();
        all.push(when);
        if all.len() > 4 * MANY_FAILURES {
            all.remove(0);
        }
    }

    pub fn forget_node(&mut self, node: Number) {
        self.failures.retain(|(_, at), _| *at != node);
    }

    /// Nodes that come last, with how often the tasks of this version failed there lately.
    pub fn failing_nodes(&mut self, version: Option<Version>, now: Timestamp) -> ByNumber<usize> {
        let mut failing = ByNumber::default();
        self.failures.retain(|(of, node), times| {
            times.retain(|time| now.since(*time) <= FAILURE_WINDOW);
            if *of == version && times.len() >= MANY_FAILURES {
                failing.insert(*node, times.len());
            }
            !times.is_empty()
        });
        failing
    }

    /// The nodes that have tasks of the service, in order. To be given back by [`Load::put_standing`]. `spare` is made into it if there is
    /// none.
    pub fn take_standing(&mut self, class_id: usize, class: &Class, places: &[Place], log: &Log, spare: &mut Standing) -> Standing {
        match self.standing.take().filter(|(of, _)| *of == class_id) {
            Some((_, mut standing)) => {
                standing.catch_up(class, places, &self.here, log, &mut self.moved);
                self.moved.clear();
                standing
            }
            None => {
                self.moved.clear();
                let mut standing = std::mem::take(spare);
                standing.build(class, places, &self.here, log);
                standing
            }
        }
    }

    pub fn put_standing(&mut self, class_id: usize, standing: Standing, spare: &mut Standing) {
        if self.here.len() >= WORTH_KEEPING {
            self.standing = Some((class_id, standing));
        } else {
            *spare = standing;
        }
    }

    pub fn drop_standing(&mut self) {
        self.standing = None;
        self.moved = Vec::new();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    count: u32,
    active: u32,
    leaf: usize,
    is_member: bool,
}

/// The order among the nodes that already run tasks of a service: by those, then by all tasks.
///
/// Tasks that other services got meanwhile are not looked for: a node may stand further to the front than it should, never further
/// back. Whoever takes the first asks [`Standing::is_right`], and puts it in its place with [`Standing::refresh`]. So a service on all
/// nodes does not pay for every task of the others.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    known: ByNumber<Known>,
    /// Per leaf: (tasks of the service, all tasks, node).
    pub leaves: Vec<Order<(u32, u32, Number)>>,
    /// Per leaf: all tasks of the service there, also on nodes that take no new ones.
    pub totals: Vec<u64>,
    position: u64,
}

impl Standing {
    /// Anew, whatever it was of.
    fn build(&mut self, class: &Class, places: &[Place], here: &ByNumber<u32>, log: &Log) {
        self.known.clear();
        self.leaves.iter_mut().for_each(Order::clear);
        self.leaves.truncate(class.leaves.len());
        self.totals.clear();
        self.position = log.end();
        self.grow(class);
        for number in here.keys() {
            self.refresh(*number, class, places, here);
        }
    }

    fn grow(&mut self, class: &Class) {
        self.leaves.resize_with(class.leaves.len(), Order::default);
        self.totals.resize(class.leaves.len(), 0);
    }

    /// Nodes where something ended may stand too far back, and so may those where the service itself came or went; a node that does not
    /// suit any more, or does again, is logged as one that gained.
    fn catch_up(&mut self, class: &Class, places: &[Place], here: &ByNumber<u32>, log: &Log, moved: &mut Vec<Number>) {
        let gained = log.since(self.position).map(|news| news.filter(|(_, gained)| *gained).map(|(number, _)| number));
        let is_known = gained.map(|gained| moved.extend(gained)).is_some();
        if !is_known || moved.len() > here.len() {
            return self.build(class, places, here, log);
        }
        self.grow(class);
        for number in moved.iter() {
            self.refresh(*number, class, places, here);
        }
        self.position = log.end();
    }

    /// Whether a node stands where it should.
    pub fn is_right(&self, (_, active, number): (u32, u32, Number), places: &[Place]) -> bool {
        places[number as usize].active == active
    }

    pub fn refresh(&mut self, number: Number, class: &Class, places: &[Place], here: &ByNumber<u32>) {
        let count = here.get(&number).copied().unwrap_or(0);
        let leaf = class.leaf_of(number).filter(|_| count > 0);
        let new = leaf.map(|leaf| Known { count, active: places[number as usize].active, leaf, is_member: class.is_member(number) });
        let old = match new {
            Some(new) => self.known.insert(number, new),
            None => self.known.remove(&number),
        };
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.totals[old.leaf] -= u64::from(old.count);
            if old.is_member {
                self.leaves[old.leaf].remove(&(old.count, old.active, number));
            }
        }
        if let Some(new) = new {
            self.totals[new.leaf] += u64::from(new.count);
            if new.is_member {
                self.leaves[new.leaf].insert((new.count, new.active, number));
            }
        }
    }
}
