//! What must hold of how many there are at once, and of how soon: by the true time and order of events, which no manager knows.

use crate::queue::Moment;
use crate::raft::{Proposer, short};
use crate::watch::Watch;
use crate::world::World;
use skep_plan::DEFAULT_DELAY;
use skep_store::{Commit, View};
use skep_types::{
    Availability, Change, ClusterView as _, NodeId, NodeState, Object, Service, ServiceId, ServiceMode, Task, TaskId, TaskState,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What a clock may be set by without being noticed, and how long a commit may take.
pub const SLACK: Duration = Duration::from_secs(3);
/// A wish of a user may be written while the leader decides by the one before.
const IN_FLIGHT: Duration = Duration::from_secs(5);
/// A leader has so many seconds to call silent nodes down, and to move what is on drained ones.
const LONG: u32 = 60;

/// What happened when, in truth.
#[derive(Default)]
pub struct Memory {
    born: BTreeMap<TaskId, (Moment, u64)>,
    count: u64,
    /// Numbers of replicas that users asked for, and until when.
    wishes: BTreeMap<ServiceId, Vec<(Moment, u64)>>,
    silent: BTreeMap<NodeId, u32>,
    drained: BTreeMap<NodeId, u32>,
    led: u32,
}

impl Memory {
    /// When a task was made, and how many were made until then.
    pub fn born(&self, task: &TaskId) -> (Moment, u64) {
        self.born.get(task).copied().unwrap_or_default()
    }

    /// Takes a change in.
    pub fn note(&mut self, change: &Change, now: Moment) {
        match change {
            Change::Created(Object::Task(task)) => {
                self.count += 1;
                self.born.insert(task.id.clone(), (now, self.count));
            }
            Change::Updated { old: Object::Service(old), new: Object::Service(new) } => {
                if let ServiceMode::Replicated { replicas } = old.spec.mode
                    && old.spec.mode != new.spec.mode
                {
                    self.wishes.entry(old.id.clone()).or_default().push((now, replicas));
                }
            }
            _ => {}
        }
    }
}

fn is_live(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete
}

/// The slot of a task, or its node.
pub fn place(task: &Task) -> (u64, Option<NodeId>) {
    (task.slot, task.node_id.clone().filter(|_| task.slot == 0))
}

impl Watch {
    /// After a commit of the leader's loop.
    pub fn limits(&mut self, by: Proposer, commits: &[Commit], before: &View, after: &View, now: Moment) {
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
                        self.has_place(new, before);
                    }
                }
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
        let (born, order) = self.memory.born(&task.id);
        let earlier = before.tasks_of_service(service).filter(|other| place(other) == place(task) && self.memory.born(&other.id).1 < order);
        let Some(last) = earlier.max_by_key(|other| self.memory.born(&other.id).1) else { return };
        if last.spec != task.spec || !matches!(last.status.state, TaskState::Failed | TaskState::Rejected) {
            return;
        }
        let delay = task.spec.restart.as_ref().map_or(DEFAULT_DELAY, |policy| policy.delay.unwrap_or(DEFAULT_DELAY));
        if now - born + SLACK < delay {
            self.fail("I6", format!("task {} may run {} s after it was made, before its delay is over", task.id, (now - born).as_secs()));
        }
    }

    /// I6: the scheduler keeps what a node and its users ask for. A node that changed a moment ago may have suited.
    fn has_place(&mut self, task: &Task, before: &View) {
        let Some(node) = task.node_id.as_ref().and_then(|id| before.node(id)) else { return };
        let changed_lately = node.meta.version.0 + 25 > before.version().0;
        if !changed_lately && (node.spec.availability != Availability::Active || node.status.state != NodeState::Ready) {
            self.fail("I6", format!("task {} was put on node {}, which takes none", task.id, short(node.id.as_str())));
        }
    }
}

impl World {
    /// I5: what a leader that nobody disturbs must come to do. Once a second.
    pub fn check_leader(&mut self) {
        let leads = self.raft.leader.is_some_and(|leader| self.has_majority(leader) && self.managers[leader].lead.is_some());
        let view = self.raft.view();
        let memory = &mut self.watch.memory;
        memory.led = if leads && self.raft.term == self.watch.term { memory.led + 1 } else { 0 };
        self.watch.term = self.raft.term;
        let mut found = None;
        for node in view.nodes() {
            let heard = self
                .agents
                .get(&node.id)
                .is_some_and(|agent| agent.up && (0..self.managers.len()).any(|manager| self.wire.passes(&node.id, manager, self.now)));
            let silent = self.watch.memory.silent.entry(node.id.clone()).or_default();
            *silent = if heard { 0 } else { *silent + 1 };
            if (*silent).min(self.watch.memory.led) > LONG && node.status.state != NodeState::Down {
                found = Some(format!("node {} says nothing for a minute and is {:?}", short(node.id.as_str()), node.status.state));
            }
            let drained = self.watch.memory.drained.entry(node.id.clone()).or_default();
            *drained = if node.spec.availability == Availability::Drain { *drained + 1 } else { 0 };
            let stays = |task: &&Arc<Task>| is_live(task) && !task.status.state.is_terminal() && task.service_id.is_some();
            if (*drained).min(self.watch.memory.led) > LONG
                && let Some(task) = view.tasks_on_node(&node.id).find(stays)
            {
                found = Some(format!("task {} is wanted on node {}, which is drained", task.id, short(node.id.as_str())));
            }
        }
        if let Some(words) = found {
            self.watch.fail("I5", words);
        }
    }
}
