//! What was said to agents lately, so that one that comes from another leader hears only what it missed. Pure.
//!
//! Every manager keeps it, whether it leads or not: whoever is elected can then go on where the last leader stopped. An agent
//! offers the last message it applied; our messages' names hold a revision (see [`Name`]), up to which the agent then knows
//! everything about its node. If no later step of *its node* was let go of, the steps behind that revision
//! are all it can have missed. A node where nothing happens keeps its place for ever, whatever happens elsewhere.
//!
//! Agents take the names for opaque, genuine ones included, and an agent that offers nothing gets everything.

use super::assignments::{Needs, concerns_agent, same_but_status};
use skep_store::{Commit, RaftId};
use skep_types::{Change, NodeId, Object, Task, TaskId, TaskState, Version};
use std::collections::{HashMap, VecDeque};
use std::fmt;

/// Steps kept for all nodes together; about 150 bytes each.
const KEPT_STEPS: usize = 32_768;

/// Something that an agent was or has to be told about one of its tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub version: Version,
    pub task: TaskId,
    /// The task itself is to be told, not only that what it needed is free.
    pub told: bool,
    /// An agent that did not hear of this step may lack what the task needs.
    pub new_needs: bool,
    /// What the task needed before or after.
    pub needs: Needs,
}

/// The steps of all nodes since a revision, as far as they are kept.
#[derive(Debug)]
pub struct Trail {
    /// Nothing is known of what was before.
    floor: Version,
    nodes: HashMap<NodeId, NodeTrail>,
    /// All steps, the oldest first.
    order: VecDeque<(Version, NodeId)>,
    limit: usize,
}

#[derive(Debug, Default)]
struct NodeTrail {
    /// Steps up to this one were let go of.
    floor: Version,
    steps: VecDeque<Step>,
}

impl Trail {
    /// Begins at a revision.
    pub fn new(at: Version) -> Self {
        Self { floor: at, nodes: HashMap::new(), order: VecDeque::new(), limit: KEPT_STEPS }
    }

    /// Takes a commit in; commits come in order and without gaps.
    pub fn add(&mut self, commit: &Commit) {
        for change in &commit.changes {
            match change {
                Change::Created(Object::Task(task)) => self.came_or_went(commit.version, task),
                Change::Removed(Object::Task(task)) => self.came_or_went(commit.version, task),
                Change::Updated { old: Object::Task(old), new: Object::Task(new) } => self.changed(commit.version, old, new),
                Change::Removed(Object::Node(node)) => drop(self.nodes.remove(&node.id)),
                _ => {}
            }
        }
        self.trim();
    }

    fn came_or_went(&mut self, version: Version, task: &Task) {
        if let Some(node) = seen_by(task) {
            self.push(node, Step { version, task: task.id.clone(), told: true, new_needs: true, needs: Needs::of(task) });
        }
    }

    fn changed(&mut self, version: Version, old: &Task, new: &Task) {
        let (before, after) = (seen_by(old), seen_by(new));
        if before != after {
            self.came_or_went(version, old);
            self.came_or_went(version, new);
        } else if let Some(node) = after
            && concerns_agent(old, new)
        {
            let same = same_but_status(old, new);
            let (mut needs, after) = (Needs::of(old), Needs::of(new));
            let new_needs = needs != after;
            needs.add(after);
            let told = !same || new.status.state <= TaskState::Assigned;
            self.push(node, Step { version, task: new.id.clone(), told, new_needs, needs });
        }
    }

    fn push(&mut self, node: &NodeId, step: Step) {
        self.order.push_back((step.version, node.clone()));
        match self.nodes.get_mut(node) {
            Some(trail) => trail.steps.push_back(step),
            None => drop(self.nodes.insert(node.clone(), NodeTrail { floor: self.floor, steps: VecDeque::from([step]) })),
        }
    }

    fn trim(&mut self) {
        while self.order.len() > self.limit {
            let Some((version, node)) = self.order.pop_front() else { return };
            // The node may have been removed, and come back with steps that are newer.
            if let Some(trail) = self.nodes.get_mut(&node)
                && trail.steps.front().is_some_and(|step| step.version <= version)
            {
                trail.steps.pop_front();
                trail.floor = version;
            }
        }
    }

    /// What a node that knows everything up to `known` has missed; `None` if nobody can say any more.
    pub fn since(&self, node: &NodeId, known: Version) -> Option<Vec<Step>> {
        if known < self.floor {
            return None;
        }
        let Some(trail) = self.nodes.get(node) else { return Some(Vec::new()) };
        if known < trail.floor {
            return None;
        }
        let first = trail.steps.partition_point(|step| step.version <= known);
        Some(trail.steps.range(first..).cloned().collect())
    }
}

/// The node whose agent is told of the task.
fn seen_by(task: &Task) -> Option<&NodeId> {
    task.node_id.as_ref().filter(|_| task.status.state >= TaskState::Assigned)
}

/// The name of a message: after it the agent knows everything about its node up to `revision`.
///
/// Revisions may come again with other content when a cluster is restored from a backup or recovered without quorum. Such a
/// group begins with raft ids that are new, so a leader of another history is not among those seen in this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// Of the messages of one stream.
    pub counter: u64,
    pub revision: Version,
    /// Whose message it is.
    pub leader: RaftId,
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}.{:x}", self.counter, self.revision.0, self.leader)
    }
}

impl Name {
    /// `None`: it is not one of ours, such as a genuine manager's.
    pub fn parse(text: &str) -> Option<Self> {
        let (counter, rest) = text.split_once('@')?;
        let (revision, leader) = rest.split_once('.')?;
        let leader = RaftId::from_str_radix(leader, 16).ok()?;
        Some(Self { counter: counter.parse().ok()?, revision: Version(revision.parse().ok()?), leader })
    }
}

#[cfg(test)]
mod tests {
    use super::super::assignments::tests::{World, node, task_id};
    use super::*;

    /// A trail that has seen everything since the world's beginning.
    fn trail_of(world: &World, limit: usize) -> Trail {
        let mut trail = Trail { limit, ..Trail::new(Version(0)) };
        world.commits.iter().for_each(|commit| trail.add(commit));
        trail
    }

    fn tasks(steps: Option<Vec<Step>>) -> Option<Vec<TaskId>> {
        steps.map(|steps| steps.into_iter().map(|step| step.task).collect())
    }

    #[test]
    fn names_are_read_back_and_those_of_others_are_not() {
        let name = Name { counter: 3, revision: Version(77), leader: 0xabc };
        assert_eq!(name.to_string(), "3@77.abc");
        assert_eq!(Name::parse("3@77.abc"), Some(name));
        for foreign in ["", "1", "@", "1@", "@7.1", "a@7.1", "1@b.1", "1@2@3.1", "1@7", "1@7.", "1@7.xyz"] {
            assert_eq!(Name::parse(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn only_steps_behind_what_is_known_are_missed() {
        let mut world = World::new();
        world.add(1, &[], TaskState::Assigned);
        let known = world.version();
        world.report(1, TaskState::Running);
        world.add(2, &[], TaskState::Assigned);
        let trail = trail_of(&world, 100);
        assert_eq!(tasks(trail.since(&node(), known)), Some(vec![task_id(2)]), "progress of a task is no step");
        assert_eq!(tasks(trail.since(&node(), world.version())), Some(Vec::new()));
        assert_eq!(tasks(trail.since(&NodeId::for_test(9), known)), Some(Vec::new()));
    }

    #[test]
    fn what_was_let_go_of_counts_for_its_own_node_only() {
        let mut world = World::new();
        let before = world.version();
        world.add(1, &[], TaskState::Assigned);
        let quiet = world.version();
        for number in 2..=20 {
            world.add_on(NodeId::for_test(2), number, &[], TaskState::Assigned);
        }
        let trail = trail_of(&world, 5);
        assert_eq!(tasks(trail.since(&node(), quiet)), Some(Vec::new()), "nothing happened there since");
        assert_eq!(tasks(trail.since(&node(), before)), None);
        assert_eq!(tasks(trail.since(&NodeId::for_test(2), quiet)), None);
        assert_eq!(trail.order.len(), 5);
    }

    #[test]
    fn nobody_knows_what_was_before_the_beginning() {
        let trail = Trail::new(Version(10));
        assert_eq!(trail.since(&node(), Version(9)), None);
        assert_eq!(trail.since(&node(), Version(10)), Some(Vec::new()));
    }
}
