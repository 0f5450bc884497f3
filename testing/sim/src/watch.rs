//! What must always hold, by its name in the list of invariants, looked at after every event that could break it.
//!
//! | name | what is looked at here |
//! |---|---|
//! | I1 | what a user was told to be written is in the log; nobody but users, and a rollback, changes a service's spec |
//! | I3 | an agent stops and starts nothing that no manager's committed wish asks it to |
//! | I4 | no slot is let run while its last task may still run, or has two tasks that are wanted; two never run on one node, nor for long on
//! | | two that are in touch |
//! | I5 | once faults stop, the cluster gets as it should be ([`desired`](mod@crate::desired)); silent nodes are called down, drained ones emptied |
//! | I6 | observed states move along the table of transitions, wishes never back, nor before their delay; nodes suit what is put on them |
//! | I7 | an update begins no more slots at once than it may, and there are no more slots than replicas; a rollback goes to the spec before; |
//! | | a drain that starts first stops nothing before another one of its slot serves |
//! | I8 | after a message of revision r an agent knows exactly what the store had for it at r |
//! | I11 | no address and no port is given twice, in the store or among containers that run; none is given again while a node in touch has it
//! | | as another task's |
//! | I13 | no task is sent SIGTERM while a node in touch leads new connections to it, or begins to, unless the task waited 20 s or that
//! | | node could not do what it was told for longer than leaders wait; no node leads to a task before it is healthy |
//! | I18 | clocks that jump, elections and late followers alone stop no task and take no node down |
//! | I20 | after the same entries all managers have the same tables |

mod drains; // what serves on drained nodes
mod leader; // what one who leads comes to do
mod nodes; // what really runs
mod owners; // who has which address and port
mod slots; // whose turn it is
mod stored; // what is written, told, acknowledged

use crate::limits::Memory;
use crate::numbered::ByNode;
use crate::queue::Moment;
use crate::raft::{Done, Proposer, short};
use crate::transitions::{allows, may_be_born, may_be_deleted};
pub use drains::outstays;
pub use leader::Patience;
use owners::Owners;
use skep_plan::Constraints;
use skep_store::View;
use skep_types::{
    Change, ClusterView as _, FailureAction, NodeId, NodeState, Object, Service, ServiceId, Task, TaskId, TaskState, UpdateOrder,
    UpdateState, Version,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A node that was in touch for so long, in seconds, is not called down.
const HEARD_OF: u32 = 17;

/// A task that was sent SIGTERM for the first time.
pub struct Signalled {
    pub node: NodeId,
    /// Of the store then.
    pub revision: Version,
    /// Nodes that had not to be waited for.
    pub without: BTreeSet<NodeId>,
}

pub struct Watch {
    /// The first thing that did not hold, and how.
    pub violation: Option<(&'static str, String)>,
    calm: bool,
    /// Nothing happens any more but what a drain does.
    undisturbed: bool,
    /// Services whose tasks may overlap by the wish of a user.
    start_first: BTreeSet<ServiceId>,
    /// Services with their spec versions that were ever in the log, and what users were told is there.
    written: BTreeSet<(ServiceId, Option<Version>)>,
    acknowledged: BTreeSet<(ServiceId, Option<Version>)>,
    overlaps: BTreeMap<(ServiceId, u64), u32>,
    /// Tasks that were healthy once, or run without a check: connections may be led to them.
    pub fit: BTreeSet<TaskId>,
    /// Tasks that were sent SIGTERM when nobody led to them who had to be waited for.
    pub signalled: BTreeMap<TaskId, Signalled>,
    in_touch: ByNode<u32>,
    /// Tasks as agents were told of them and as they were stored: found to be the same.
    compared: BTreeMap<TaskId, (Arc<Task>, Arc<Task>)>,
    owners: Owners,
    pub memory: Memory,
    pub patience: Patience,
}

impl Watch {
    #[must_use]
    pub fn new(calm: bool) -> Self {
        Self {
            violation: None,
            calm,
            undisturbed: false,
            start_first: BTreeSet::new(),
            written: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            overlaps: BTreeMap::new(),
            fit: BTreeSet::new(),
            signalled: BTreeMap::new(),
            in_touch: ByNode::default(),
            compared: BTreeMap::new(),
            owners: Owners::default(),
            memory: Memory::default(),
            patience: Patience::default(),
        }
    }

    pub fn fail(&mut self, name: &'static str, words: String) {
        self.violation.get_or_insert((name, words));
    }

    /// What the log said last is gone.
    pub fn rewound(&mut self, view: &View) {
        self.owners = Owners::of(view);
    }

    /// An entry was committed: `done` by whom, between two views of the log.
    pub fn committed(&mut self, done: &[Done], before: &View, after: &View, now: Moment) {
        for Done { by, at, seen, commits } in done {
            let first = self.memory.count();
            for change in commits.iter().flat_map(|commit| &commit.changes) {
                self.memory.note(change, (first, before), (*at, now));
                match change {
                    Change::Created(Object::Task(task)) => self.born(task, *by),
                    Change::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                        self.moved(old, new, *by);
                        self.placed(old, new, before);
                    }
                    Change::Removed(Object::Task(task)) => self.deleted(task, before, after),
                    Change::Created(Object::Service(service)) => self.service(None, service, *by),
                    Change::Updated { old: Object::Service(old), new: Object::Service(new) } => self.service(Some(old), new, *by),
                    Change::Removed(Object::Service(service)) if !matches!(by, Proposer::User { .. }) => {
                        self.fail("I1", format!("service {} was removed by {by:?}", service.name()));
                    }
                    Change::Updated { old: Object::Node(old), new: Object::Node(new) } => {
                        self.node(old.status.state, new.status.state, &new.id);
                        if old.spec != new.spec && !matches!(by, Proposer::User { .. }) {
                            self.fail("I1", format!("the spec of node {} was changed by {by:?}", short(new.id.as_str())));
                        }
                    }
                    _ => {}
                }
                self.owners.note(change);
            }
            let seen = seen.as_ref().unwrap_or(before);
            if matches!(by, Proposer::Driver { .. }) {
                commits.iter().for_each(|commit| self.drains(&commit.changes, (seen, after)));
            }
            if matches!(by, Proposer::Driver { .. }) && done.len() == 1 {
                self.releases(commits, (seen, before, after), now);
                self.update_steps(commits, (seen, before, after), now);
                self.limits(*by, commits, (seen, before, after), now);
            }
        }
        self.unique();
    }

    fn born(&mut self, task: &Task, by: Proposer) {
        if !may_be_born(task.status.state) || !matches!(by, Proposer::Driver { .. }) {
            self.fail("I6", format!("task {} was born {} by {by:?}", task.id, task.status.state));
        }
    }

    fn moved(&mut self, old: &Task, new: &Task, by: Proposer) {
        if !allows(old.status.state, new.status.state, by) {
            self.fail("I6", format!("task {} went from {} to {} by {by:?}", new.id, old.status.state, new.status.state));
        }
        if new.desired_state < old.desired_state || (new.desired_state != old.desired_state && !matches!(by, Proposer::Driver { .. })) {
            self.fail("I6", format!("the wish for task {} went from {} to {} by {by:?}", new.id, old.desired_state, new.desired_state));
        }
        if old.node_id.is_some() && old.node_id != new.node_id {
            self.fail("I6", format!("task {} moved to another node", new.id));
        }
    }

    /// A task that got its node: does the node suit it? A node that changed a moment ago may have suited it when it was chosen.
    fn placed(&mut self, old: &Task, new: &Task, before: &View) {
        if old.status.state >= TaskState::Assigned || new.status.state != TaskState::Assigned {
            return;
        }
        let Some(node) = new.node_id.as_ref().and_then(|id| before.node(id)) else { return };
        let changed_lately = node.meta.version.0 + 25 > before.version().0;
        if !changed_lately && !Constraints::of(new.spec.placement.as_ref()).match_node(node) {
            self.fail("I6", format!("task {} was put on node {}, which its constraints exclude", new.id, short(node.id.as_str())));
        }
    }

    fn deleted(&mut self, task: &Task, before: &View, after: &View) {
        let gone = |id: &NodeId| after.node(id).is_none() || before.node(id).is_none();
        if !may_be_deleted(task.status.state) && !task.node_id.as_ref().is_some_and(gone) {
            self.fail("I6", format!("task {} was deleted while {}", task.id, task.status.state));
        }
    }

    fn service(&mut self, old: Option<&Service>, new: &Service, by: Proposer) {
        self.written.insert((new.id.clone(), new.spec_version));
        let overlaps = [&new.spec.update, &new.spec.rollback].into_iter().flatten().any(|config| config.order == UpdateOrder::StartFirst);
        if overlaps {
            self.start_first.insert(new.id.clone());
        }
        let Some(old) = old else { return };
        if old.spec == new.spec || matches!(by, Proposer::User { .. }) {
            return;
        }
        let asks = old.spec.update.as_ref().is_some_and(|config| config.failure_action == FailureAction::Rollback);
        let state = new.update_status.as_ref().map_or(UpdateState::Unknown, |status| status.state);
        // It may end, or stop, in the write that begins it.
        let rolls_back = matches!(state, UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted);
        if !(asks && rolls_back) {
            self.fail("I1", format!("the spec of service {} was changed by {by:?}", new.name()));
        } else if old.previous_spec.as_ref() != Some(&new.spec) {
            self.fail("I7", format!("service {} was rolled back to a spec that was not the one before", new.name()));
        }
    }

    fn node(&mut self, old: NodeState, new: NodeState, id: &NodeId) {
        if old == new || new != NodeState::Down {
            return;
        }
        if self.calm {
            self.fail("I18", format!("node {} is called down in a run without faults", short(id.as_str())));
        }
        if self.in_touch.get(id).is_some_and(|seconds| *seconds > HEARD_OF) {
            self.fail("I4", format!("node {} is called down while it beats: its slots would run twice", short(id.as_str())));
        }
    }

    /// For so long the node is in touch with all managers.
    #[must_use]
    pub fn seconds_in_touch(&self, node: &NodeId) -> u32 {
        self.in_touch.get(node).copied().unwrap_or(0)
    }

    /// Its user wants new tasks to start before old ones stop.
    #[must_use]
    pub fn may_overlap(&self, service: &ServiceId) -> bool {
        self.start_first.contains(service)
    }
}
