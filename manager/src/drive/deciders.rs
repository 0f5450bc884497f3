//! Who decides what, and what each has to look at.

use skep_plan::{Agenda, Allocator, Beginning, FreedLately, Ids, Orchestrator, Plan, Scheduler, Time};
use skep_store::View;
use skep_types::{Change, ClusterView as _, NetworkId, Node, NodeId, NodeState, Object, Task, TaskId, TaskState, Timestamp, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// All deciders with what they have to look at.
pub(super) struct Deciders {
    orchestrator: Orchestrator,
    allocator: Allocator,
    scheduler: Scheduler,
    strays: BTreeMap<TaskId, Arc<Task>>,
    enforcing: BTreeSet<NodeId>,
    /// Nodes that are DOWN, since when as far as this leader knows, and nodes that are gone.
    down: BTreeMap<NodeId, Timestamp>,
    /// How long a node may be down before its tasks count as lost.
    orphan_after: Duration,
    orphaning: Agenda<NodeId>,
    /// When this leader began, see [`Time`].
    begun: Beginning,
}

impl Deciders {
    pub(super) const COUNT: usize = NAMES.len();

    pub(super) fn name(index: usize) -> &'static str {
        NAMES[index]
    }

    /// As a new leader begins: everything is looked at once. `begun`: when it began; now, unless it only looks at everything again.
    pub(super) fn new(view: &View, orphan_after: Duration, begun: Beginning, now: Timestamp) -> Self {
        let mut this = Self {
            orchestrator: Orchestrator::new(view),
            allocator: Allocator::new(view),
            scheduler: Scheduler::new(view),
            strays: BTreeMap::new(),
            enforcing: view.nodes().map(|node| node.id.clone()).collect(),
            down: BTreeMap::new(),
            orphan_after,
            orphaning: Agenda::default(),
            begun,
        };
        for task in view.tasks() {
            if let Some(node) = &task.node_id
                && view.node(node).is_none()
            {
                this.orphaning.add(node.clone());
            }
            this.note_stray(task);
        }
        for node in view.nodes().filter(|node| node.status.state == NodeState::Down) {
            this.down.insert(node.id.clone(), now);
            this.orphaning.add(node.id.clone());
        }
        this
    }

    fn note_stray(&mut self, task: &Arc<Task>) {
        if task.service_id.is_none() {
            self.strays.insert(task.id.clone(), task.clone());
        }
    }

    /// A committed change.
    pub(super) fn observe(&mut self, change: &Change, now: Timestamp) {
        self.allocator.observe(change);
        self.scheduler.observe(change);
        self.orchestrator.observe(change);
        match change {
            Change::Created(Object::Task(task)) | Change::Updated { new: Object::Task(task), .. } => self.note_stray(task),
            Change::Removed(Object::Task(task)) => {
                self.strays.remove(&task.id);
            }
            Change::Created(Object::Node(node)) | Change::Updated { new: Object::Node(node), .. } => {
                if !matches!(change, Change::Updated { old: Object::Node(old), .. } if is_as_fit(old, node)) {
                    self.enforcing.insert(node.id.clone());
                }
                if node.status.state == NodeState::Down {
                    self.down.entry(node.id.clone()).or_insert(now);
                    self.orphaning.add(node.id.clone());
                } else {
                    self.down.remove(&node.id);
                }
            }
            Change::Removed(Object::Node(node)) => {
                self.down.remove(&node.id);
                self.orphaning.add(node.id.clone());
            }
            _ => {}
        }
    }

    /// What was decided is not written: the way back from it. Who looks at a node once, when something happens to it, has to look again.
    pub(super) fn take_back(&mut self, change: &Change, now: Timestamp) {
        self.observe(change, now);
        if let Change::Updated { old: Object::Task(decided), new: Object::Task(task) } = change
            && let Some(node) = &task.node_id
        {
            if decided.desired_state > task.desired_state {
                self.enforcing.insert(node.clone());
            }
            if decided.status.state == TaskState::Orphaned {
                self.orphaning.add(node.clone());
            }
        }
    }

    /// A change of a draft has been written. What was tried out had a version of its own for each step, and the store gave another:
    /// who keeps objects to propose something about them later needs that one.
    pub(super) fn confirm(&mut self, change: &Change) {
        self.scheduler.confirm(change.object());
    }

    /// Everything up to this revision was observed, and nothing that is not written.
    pub(super) fn settle(&mut self, version: Version, now: Timestamp) {
        self.allocator.settle(version, now);
    }

    /// See [`Allocator::remember`].
    pub(super) fn remember(&mut self, freed: &FreedLately) {
        self.allocator.remember(freed);
    }

    /// See [`Allocator::inherit`].
    pub(super) fn inherit(&mut self, before: &Self) {
        self.allocator.inherit(&before.allocator);
    }

    /// See [`Allocator::acknowledge`].
    pub(super) fn acknowledge(&mut self, acknowledged: &dyn Fn(&NetworkId) -> Option<Version>) {
        self.allocator.acknowledge(acknowledged);
    }

    /// See [`Allocator::audit`].
    pub(super) fn audit(&mut self, view: &View) -> skep_plan::AddressAudit {
        self.allocator.audit(view)
    }

    /// What one decider proposes. `wake_at` of an empty plan says when it wants to be asked again.
    pub(super) fn plan(&mut self, index: usize, view: &View, ids: &mut dyn Ids, now: Timestamp) -> Plan {
        match index {
            0 => self.orchestrator.plan(view, ids, Time::of_leader(now, self.begun)),
            1 => self.plan_enforcement(view),
            2 => self.allocator.plan(view, now),
            3 => self.scheduler.schedule(now),
            4 => self.plan_orphans(view, now),
            _ => self.plan_reaping(view),
        }
    }

    fn plan_enforcement(&mut self, view: &View) -> Plan {
        let mut plan = Plan::default();
        for node in std::mem::take(&mut self.enforcing) {
            plan.merge(skep_plan::plan_enforcement(view, &node));
        }
        plan
    }

    fn plan_orphans(&mut self, view: &View, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        for node in self.orphaning.take(now, usize::MAX) {
            let since = self.down.get(&node).copied().unwrap_or(now);
            let Plan { changes, wake_at } = skep_plan::plan_orphans(view, &node, since, self.orphan_after, now);
            plan.changes.extend(changes);
            if let Some(when) = wake_at {
                self.orphaning.at(node, when);
            }
        }
        plan.wake_at = self.orphaning.next(now);
        plan
    }

    fn plan_reaping(&mut self, view: &View) -> Plan {
        let mut plan = self.orchestrator.plan_reaping(view);
        let strays = std::mem::take(&mut self.strays).into_values().filter(|task| view.task(&task.id).is_some());
        plan.merge(skep_plan::plan_reaping_of_strays(strays));
        plan
    }
}

/// Whether nothing changed that constraints or reservations ask about.
fn is_as_fit(old: &Node, new: &Node) -> bool {
    old.spec == new.spec && old.description == new.description && old.role == new.role && old.status.addr == new.status.addr
}

const NAMES: [&str; 6] = ["orchestrators", "constraint enforcer", "allocator", "scheduler", "orphan keeper", "task reaper"];
