//! The model that the orchestrators work on: the tasks of one service by slot, with the wishes of this plan already in.

use crate::update::starts_first;
use crate::{Ids, Plan, Time};
use skep_types::{
    Action, Availability, ClusterView, Driver, Kind, Node, NodeId, NodeState, Object, Service, Task, TaskId, TaskState, Timestamp,
    UpdateOrder, Version,
};
use std::sync::Arc;
use std::time::Duration;

/// One task, with what this plan wants of it.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub task: Arc<Task>,
    pub desired: TaskState,
    pub created: Timestamp,
    /// The revision that made it; zero if it is fresh, or nobody noted.
    pub made: Version,
    /// Made by this plan, so not in the store yet.
    pub fresh: bool,
}

impl Run {
    pub fn stored(task: &Arc<Task>) -> Self {
        let meta = task.meta;
        Self { task: Arc::clone(task), desired: task.desired_state, created: meta.created_at, made: meta.created, fresh: false }
    }

    pub fn observed(&self) -> TaskState {
        self.task.status.state
    }

    /// Somebody wants it to run.
    pub fn is_live(&self) -> bool {
        self.desired <= TaskState::Complete
    }

    /// When it was last reported, by a manager's clock if one took the report.
    pub fn reported(&self) -> Timestamp {
        self.task.status.applied_at.unwrap_or(self.task.status.timestamp)
    }

    /// It came to its end without being asked to.
    pub fn ended_by_itself(&self) -> bool {
        matches!(self.observed(), TaskState::Complete | TaskState::Failed | TaskState::Rejected)
    }

    /// When it first ran or, if it never did, when it ended. `None` = neither yet.
    pub fn reached_running(&self) -> Option<Timestamp> {
        match self.observed() {
            TaskState::Running => Some(self.task.status.running_since.unwrap_or_else(|| self.reported())),
            state if state.is_terminal() => Some(self.task.status.running_since.unwrap_or_else(|| self.reported())),
            _ => None,
        }
    }

    /// When a delay is over that began with it.
    pub fn due(&self, time: Time, delay: Duration) -> Timestamp {
        time.due_since(self.made, self.created, delay)
    }

    /// Asks for a higher desired state; never lowers it.
    pub fn want(&mut self, desired: TaskState) {
        self.desired = self.desired.max(desired);
    }
}

/// All tasks of a slot (or of a global service on a node) that are not being removed, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot {
    pub runs: Vec<Run>,
}

impl Slot {
    pub fn is_live(&self) -> bool {
        self.runs.iter().any(Run::is_live)
    }

    pub fn newest(&self) -> Option<&Run> {
        self.runs.last()
    }

    pub fn live(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.is_live())
    }

    /// A process of one of its tasks may be there: it has a node and has not said that it ended.
    pub fn has_remains(&self) -> bool {
        self.runs.iter().any(|run| (TaskState::Assigned..=TaskState::Running).contains(&run.observed()))
    }

    /// The first wish for a new task of the slot that is to come to `goal`: it waits for what may still run.
    pub fn first_wish(&self, goal: TaskState) -> TaskState {
        if self.has_remains() { TaskState::Ready } else { goal }
    }

    pub fn want_all(&mut self, desired: TaskState) {
        for run in &mut self.runs {
            run.want(desired);
        }
    }

    pub fn sort(&mut self) {
        self.runs.sort_by(|a, b| age(&a.task).cmp(&age(&b.task)));
    }
}

/// Sorts tasks by their place in the log: two leaders' clocks may say otherwise. Those of which nobody noted it are older than that.
pub(crate) fn age(task: &Task) -> (Version, Timestamp, &TaskId) {
    (task.meta.created, task.meta.created_at, &task.id)
}

/// What a node is to the tasks on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    Fine,
    Paused,
    Drained,
    /// Drained, and what serves there may serve until others do.
    DrainedInPlace,
    Down,
    Gone,
}

impl Host {
    pub fn of(node: &Node) -> Self {
        match (node.status.state, node.spec.availability) {
            (NodeState::Down, _) => Self::Down,
            (_, Availability::Drain) if node.spec.drain_order == UpdateOrder::StartFirst => Self::DrainedInPlace,
            (_, Availability::Drain) => Self::Drained,
            (_, Availability::Pause) => Self::Paused,
            (_, Availability::Active) => Self::Fine,
        }
    }

    /// Its tasks are to run elsewhere.
    pub fn gives_up_tasks(self) -> bool {
        matches!(self, Self::Drained | Self::DrainedInPlace | Self::Down | Self::Gone)
    }

    /// Nothing will be heard of its tasks.
    pub fn is_silent(self) -> bool {
        matches!(self, Self::Down | Self::Gone)
    }
}

/// Everything an orchestrator needs at hand for one service.
pub(crate) struct Context<'a> {
    pub view: &'a dyn ClusterView,
    pub service: &'a Arc<Service>,
    pub now: Timestamp,
    pub time: Time,
    pub plan: Plan,
    pub retention: i64,
    log_driver: Option<&'a Driver>,
    ids: &'a mut dyn Ids,
    budget: usize,
}

/// New tasks in one plan at most: a service scaled to a million is created in portions, others get their turn in between.
const CREATIONS_PER_PLAN: usize = 2_000;

impl<'a> Context<'a> {
    pub fn new(view: &'a dyn ClusterView, service: &'a Arc<Service>, ids: &'a mut dyn Ids, time: Time) -> Self {
        let spec = view.cluster().map(|cluster| &cluster.spec);
        Self {
            view,
            service,
            now: time.now(),
            time,
            plan: Plan::default(),
            retention: spec.map_or(5, |spec| spec.task_history_retention_limit),
            log_driver: spec.and_then(|spec| spec.task_log_driver.as_ref()),
            ids,
            budget: CREATIONS_PER_PLAN,
        }
    }

    pub fn host(&self, node: Option<&NodeId>) -> Host {
        let Some(id) = node else { return Host::Fine };
        self.view.node(id).map_or(Host::Gone, |node| Host::of(node))
    }

    /// It serves on a node that is drained, and goes when another one serves in its place. Only tasks of replicated services that start
    /// first themselves do: nobody else has said that two tasks of a slot may run at once.
    pub fn outstays(&self, run: &Run) -> bool {
        run.is_live()
            && run.observed() == TaskState::Running
            && self.host(run.task.node_id.as_ref()) == Host::DrainedInPlace
            && starts_first(self.service)
    }

    /// A new task for `slot`; `None` once the portion of this plan is used up (the plan then asks to be made again).
    pub fn create(&mut self, slot: u64, node: Option<NodeId>, desired: TaskState) -> Option<Run> {
        if self.budget == 0 {
            self.plan.wake(self.now);
            return None;
        }
        self.budget -= 1;
        let mut task = Task::of_service(self.ids.task(), self.service, slot, self.log_driver, self.now);
        task.node_id = node;
        task.desired_state = desired;
        Some(Run { task: Arc::new(task), desired, created: self.now, made: Version::default(), fresh: true })
    }

    /// Turns the wishes of a slot into actions.
    pub fn settle(&mut self, slot: Slot) {
        for run in slot.runs {
            if run.fresh {
                let mut task = run.task;
                if task.desired_state != run.desired {
                    Arc::make_mut(&mut task).desired_state = run.desired;
                }
                self.plan.changes.push(Action::Create(Object::Task(task)));
            } else if run.desired > run.task.desired_state {
                self.plan.changes.push(Action::SetTaskDesired { task: run.task.id.clone(), desired: run.desired });
            }
        }
    }

    pub fn remove(&mut self, task: &Task) {
        self.plan.changes.push(Action::Remove { kind: Kind::Task, id: task.id.as_str().to_owned(), version: None::<Version> });
    }
}
