//! What must hold of how many there are at once, and of how soon: by the true time and order of events, which no manager knows.

use crate::queue::Moment;
use crate::raft::{Proposer, short};
use crate::transitions::may_run;
use crate::watch::Watch;
use skep_plan::DEFAULT_DELAY;
use skep_store::{Commit, View};
use skep_types::{
    Availability, Change, ClusterView as _, FailureAction, Node, NodeId, NodeState, Object, Service, ServiceId, ServiceMode, Task, TaskId,
    TaskState, UpdateState,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What a clock may be set by without being noticed, and how long a commit may take.
pub const SLACK: Duration = Duration::from_secs(3);
/// A wish of a user may be written while the leader decides by the one before.
const IN_FLIGHT: Duration = Duration::from_secs(5);

/// What an update found.
struct Update {
    /// Tasks that were made before it.
    first: u64,
    /// Where there were tasks: only these it changes.
    places: BTreeSet<Place>,
}

/// What happened when, in truth.
#[derive(Default)]
pub struct Memory {
    born: BTreeMap<TaskId, (Moment, u64)>,
    /// When a task was asked for: without a majority it is made later.
    asked: BTreeMap<TaskId, Moment>,
    count: u64,
    /// Numbers of replicas that users asked for, and until when.
    wishes: BTreeMap<ServiceId, Vec<(Moment, u64)>>,
    /// The present update of a service.
    updates: BTreeMap<ServiceId, Update>,
    /// When a task failed.
    failed: BTreeMap<TaskId, Moment>,
}

impl Memory {
    /// When a task was made, and how many were made until then.
    pub fn born(&self, task: &TaskId) -> (Moment, u64) {
        self.born.get(task).copied().unwrap_or_default()
    }

    /// How many tasks were made.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes a change in. `first`: tasks that were made before the proposal that it is of, `before`: what was there then, `asked`: when
    /// it was proposed.
    pub fn note(&mut self, change: &Change, (first, before): (u64, &View), (asked, now): (Moment, Moment)) {
        match change {
            Change::Created(Object::Task(task)) => {
                self.count += 1;
                self.born.insert(task.id.clone(), (now, self.count));
                self.asked.insert(task.id.clone(), asked);
            }
            Change::Updated { old: Object::Task(old), new: Object::Task(new) } if has_failed(new) && !has_failed(old) => {
                self.failed.insert(new.id.clone(), now);
            }
            Change::Updated { old: Object::Service(old), new: Object::Service(new) } => {
                let state = |service: &Service| service.update_status.as_ref().map(|status| status.state);
                let is_under_way = matches!(state(new), Some(UpdateState::Updating | UpdateState::RollbackStarted));
                if is_under_way && (state(old) != state(new) || old.spec != new.spec) {
                    let kept = before.tasks_of_service(&new.id).filter(|task| task.desired_state < TaskState::Remove);
                    self.updates.insert(new.id.clone(), Update { first, places: kept.map(|task| place(task)).collect() });
                }
                if let ServiceMode::Replicated { replicas } = old.spec.mode
                    && old.spec.mode != new.spec.mode
                {
                    self.wishes.entry(old.id.clone()).or_default().push((now, replicas));
                }
            }
            _ => {}
        }
    }

    /// The task was made by the present update of its service.
    fn is_of_update(&self, service: &Service, task: &Task) -> bool {
        let update = self.updates.get(&service.id);
        update.is_some_and(|update| self.born(&task.id).1 > update.first) && task.spec_version == service.spec_version
    }
}

fn has_failed(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
}

fn is_live(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete
}

/// A slot, or the node of a task without one.
pub type Place = (u64, Option<NodeId>);

pub fn place(task: &Task) -> Place {
    (task.slot, task.node_id.clone().filter(|_| task.slot == 0))
}

impl Watch {
    /// After a commit of the leader's loop.
    pub fn limits(&mut self, by: Proposer, commits: &[Commit], (seen, before, after): (&View, &View, &View), now: Moment) {
        if !matches!(by, Proposer::Driver { .. }) {
            return;
        }
        let mut created = BTreeSet::new();
        for change in commits.iter().flat_map(|commit| &commit.changes) {
            match change {
                Change::Created(Object::Task(task)) => created.extend(task.service_id.clone()),
                Change::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                    if old.desired_state == TaskState::Ready && (TaskState::Running..=TaskState::Complete).contains(&new.desired_state) {
                        self.not_too_soon(new, before, now);
                    }
                    if old.status.state < TaskState::Assigned && new.status.state == TaskState::Assigned {
                        self.has_place(new, (seen, before, after));
                    }
                }
                Change::Updated { old: Object::Service(old), new: Object::Service(new) } => self.ends_well(old, new, before, now),
                _ => {}
            }
        }
        for id in created {
            if let Some(service) = after.service(&id) {
                self.not_too_many(service, after, now);
            }
        }
    }

    /// I4, I7: tasks that are wanted.
    fn not_too_many(&mut self, service: &Service, after: &View, now: Moment) {
        let live: Vec<&Arc<Task>> = after.tasks_of_service(&service.id).filter(|task| is_live(task)).collect();
        let mut slots = BTreeMap::<_, u32>::new();
        live.iter().for_each(|task| *slots.entry(place(task)).or_default() += 1);
        let twice = slots.values().any(|count| *count > 1);
        if twice && !service.spec.mode.is_job() && !self.may_overlap(&service.id) {
            return self.fail("I4", format!("two tasks are wanted in one slot of {}", service.name()));
        }
        let (wanted, count) = match service.spec.mode {
            ServiceMode::Replicated { replicas } => {
                let lately = self.memory.wishes.get(&service.id).into_iter().flatten();
                let lately = lately.filter(|(until, _)| now - *until < IN_FLIGHT).map(|(_, replicas)| *replicas);
                (lately.max().unwrap_or(0).max(replicas), slots.len() as u64)
            }
            ServiceMode::ReplicatedJob { max_concurrent, .. } => {
                let iteration = service.job_status.map(|status| status.iteration);
                // A task that was lost from sight may complete after another one began in its place.
                let ended = after.tasks_of_service(&service.id).filter(|task| task.status.state == TaskState::Complete);
                let complete: BTreeSet<u64> = ended.filter(|task| task.job_iteration == iteration).map(|task| task.slot).collect();
                let open = |task: &&&Arc<Task>| task.job_iteration == iteration && !complete.contains(&task.slot);
                (max_concurrent, live.iter().filter(open).map(|task| task.slot).collect::<BTreeSet<_>>().len() as u64)
            }
            _ => return,
        };
        if count > wanted {
            self.fail("I7", format!("{count} slots of {} are wanted at once, not {wanted}", service.name()));
        }
    }

    /// I6: a task that replaces one that failed waits as its policy says.
    fn not_too_soon(&mut self, task: &Task, before: &View, now: Moment) {
        let Some(service) = &task.service_id else { return };
        if task.slot == 0 && task.job_iteration.is_some() {
            return; // jobs have a slot 0, which looks like none
        }
        let order = self.memory.born(&task.id).1;
        let earlier = before.tasks_of_service(service).filter(|other| place(other) == place(task) && self.memory.born(&other.id).1 < order);
        let Some(last) = earlier.max_by_key(|other| self.memory.born(&other.id).1) else { return };
        if last.spec != task.spec || !matches!(last.status.state, TaskState::Failed | TaskState::Rejected) {
            return;
        }
        let delay = task.spec.restart.as_ref().map_or(DEFAULT_DELAY, |policy| policy.delay.unwrap_or(DEFAULT_DELAY));
        let waited = now - self.memory.asked.get(&task.id).copied().unwrap_or_default();
        if waited + SLACK < delay {
            self.fail("I6", format!("task {} may run {} s after it was asked for, before its delay is over", task.id, waited.as_secs()));
        }
    }

    /// I6: the scheduler keeps what a node and its users ask for, as they were when it decided.
    fn has_place(&mut self, task: &Task, (seen, before, after): (&View, &View, &View)) {
        let Some(node) = task.node_id.as_ref().and_then(|id| before.node(id)) else { return };
        let is_closed = |node: &Node| node.spec.availability != Availability::Active || node.status.state != NodeState::Ready;
        if seen.node(&node.id).is_some_and(|node| is_closed(node)) {
            return self.fail("I6", format!("task {} was put on node {}, which takes none", task.id, short(node.id.as_str())));
        }
        let limit = task.spec.placement.as_ref().map_or(0, |placement| placement.max_replicas);
        // Another spec may allow more: what is put beside it in the same write need not come before it.
        let was_here = |other: &Task| before.task(&other.id).is_some_and(|other| may_run(other.status.state));
        let counts = |other: &&Arc<Task>| {
            let is_first = other.spec_version == task.spec_version || was_here(other);
            other.service_id == task.service_id && is_first && is_live(other) && may_run(other.status.state)
        };
        if limit > 0 && after.tasks_on_node(&node.id).filter(counts).count() as u64 > limit {
            self.fail("I6", format!("task {} is one more on its node than the service allows", task.id));
        }
    }

    /// I7: slots of an update that have a task of it, and none that has come to anything.
    pub fn slots_in_work(&self, service: &Service, view: &View) -> BTreeSet<Place> {
        let (mut begun, mut settled) = (BTreeSet::new(), BTreeSet::new());
        for task in view.tasks_of_service(&service.id).filter(|task| task.desired_state < TaskState::Remove) {
            if self.memory.is_of_update(service, task) {
                begun.insert(place(task));
                if task.status.state >= TaskState::Running {
                    settled.insert(place(task));
                }
            }
        }
        let Some(update) = self.memory.updates.get(&service.id) else { return BTreeSet::new() };
        begun.into_iter().filter(|place| update.places.contains(place) && !settled.contains(place)).collect()
    }

    /// I7: an update of which too much failed is not called complete.
    fn ends_well(&mut self, old: &Service, new: &Service, before: &View, now: Moment) {
        let state = |service: &Service| service.update_status.as_ref().map_or(UpdateState::Unknown, |status| status.state);
        let config = match (state(old), state(new)) {
            (UpdateState::Updating, UpdateState::Completed) => &new.spec.update,
            (UpdateState::RollbackStarted, UpdateState::RollbackCompleted) => &new.spec.rollback,
            _ => return,
        };
        let config = config.clone().unwrap_or_default();
        let Some(update) = self.memory.updates.get(&new.id).filter(|_| config.failure_action != FailureAction::Continue) else { return };
        // What failed while this was being written, the leader did not know.
        let long_ago = |task: &Task| self.memory.failed.get(&task.id).is_some_and(|at| *at + SLACK < now);
        let never_ran = |task: &&Arc<Task>| has_failed(task) && task.status.running_since.is_none() && long_ago(task);
        let of_update = |task: &&Arc<Task>| self.memory.is_of_update(old, task) && update.places.contains(&place(task));
        let failed: BTreeSet<Place> =
            before.tasks_of_service(&new.id).filter(of_update).filter(never_ran).map(|task| place(task)).collect();
        if failed.len() as f32 / update.places.len().max(1) as f32 > config.max_failure_ratio {
            self.fail("I7", format!("the update of {} is called complete, and {} of its slots failed", new.name(), failed.len()));
        }
    }
}
