//! Faults put in on purpose: each must be found by some invariant, or the invariants are too weak.
//!
//! They sit between the product's code and the world, never in the product: what is decided, proposed, applied, said or heard is
//! spoiled on its way.

use crate::raft::Entry;
use skep_kit::Dice;
use skep_store::{Tables, View};
use skep_types::{Action, ClusterView, Kind, NodeId, Object, Service, Task, TaskState, UpdateState};
use std::sync::Arc;

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// The leader's loop forgets when it wanted to look again.
    LostWakeUp,
    /// The deciders are not told of a commit.
    LostEvent,
    /// What was decided on an old version is written all the same.
    StaleWrite,
    /// An update stops one slot more than it may.
    SurgeOffByOne,
    /// A replacement may run before the task it replaces has stopped.
    EarlyRelease,
    /// A task gets an address that another one has.
    AddressTwice,
    /// A task is put on a node that its constraints exclude.
    WrongNode,
    /// An automatic rollback restores another spec than the one before.
    WrongRollback,
    /// The reaper deletes tasks that run.
    EagerReaper,
    /// A report with a lower state is written.
    StatusBack,
    /// A wish for a task is taken back.
    WishBack,
    /// Heartbeats count for too short a time.
    NoGrace,
    /// Nodes that are silent are not called down.
    NeverDown,
    /// A manager forgets what it said to agents.
    TrailGap,
    /// A change is left out of a message to an agent.
    LostAssignment,
    /// A follower skips what it does not like.
    FollowerSkips,
    /// Users are answered before a majority has what they wrote.
    EarlyAck,
    /// An agent does not hear that a task is to stop.
    DeafToWishes,
    /// A task counts as stopped while its container runs on.
    LeakedContainer,
    /// The end of a task is not reported.
    SilentEnd,
    /// An agent without a manager stops its tasks.
    PanicsAlone,
}

impl Mutant {
    pub const ALL: [Self; 21] = [
        Self::LostWakeUp,
        Self::LostEvent,
        Self::StaleWrite,
        Self::SurgeOffByOne,
        Self::EarlyRelease,
        Self::AddressTwice,
        Self::WrongNode,
        Self::WrongRollback,
        Self::EagerReaper,
        Self::StatusBack,
        Self::WishBack,
        Self::NoGrace,
        Self::NeverDown,
        Self::TrailGap,
        Self::LostAssignment,
        Self::FollowerSkips,
        Self::EarlyAck,
        Self::DeafToWishes,
        Self::LeakedContainer,
        Self::SilentEnd,
        Self::PanicsAlone,
    ];

    /// Spoils what the deciders propose.
    pub fn spoil_draft(self, actions: &mut Vec<Action>, view: &View, dice: &mut Dice) {
        match self {
            Self::SurgeOffByOne => surge(actions, view),
            Self::EarlyRelease => tasks(actions, |task| {
                if task.desired_state == TaskState::Ready {
                    task.desired_state = TaskState::Running;
                }
            }),
            Self::AddressTwice => {
                let taken = view.tasks().filter(|task| task.status.state == TaskState::Running);
                let taken = taken.flat_map(|task| &task.networks).find(|attached| !attached.addresses.is_empty()).cloned();
                let Some(taken) = taken.filter(|_| dice.roll(4) == 0) else { return };
                tasks(actions, |task| {
                    for attached in task.networks.iter_mut().filter(|attached| attached.network.id == taken.network.id) {
                        attached.addresses.clone_from(&taken.addresses);
                    }
                });
            }
            Self::WrongNode => {
                let nodes: Vec<NodeId> = view.nodes().map(|node| node.id.clone()).collect();
                tasks(actions, |task| {
                    if task.slot > 0 && task.status.state == TaskState::Assigned && dice.coin() {
                        task.node_id = Some(dice.one_of(nodes.clone()));
                    }
                });
            }
            Self::WrongRollback => {
                for action in actions {
                    let Action::Update(Object::Service(service)) = action else { continue };
                    let rolls_back = service.update_status.as_ref().is_some_and(|status| status.state == UpdateState::RollbackStarted);
                    let before = view.service(&service.id).filter(|before| before.spec != service.spec && rolls_back);
                    if let Some(before) = before {
                        let spec = Service { spec: before.spec.clone(), ..Service::clone(service) };
                        *action =
                            Action::Update(Object::Service(Arc::new(Service { spec: with_more(spec.spec), ..Service::clone(service) })));
                    }
                }
            }
            Self::EagerReaper if dice.roll(10) == 0 => {
                let running = view.tasks_in_state(TaskState::Running).next();
                actions.extend(running.map(|task| Action::Remove { kind: Kind::Task, id: task.id.to_string(), version: None }));
            }
            Self::WishBack if dice.roll(10) == 0 => {
                let stopping = view.tasks().find(|task| task.desired_state == TaskState::Shutdown && !task.status.state.is_terminal());
                let back = |task: &Arc<Task>| Task { desired_state: TaskState::Running, ..Task::clone(task) };
                actions.extend(stopping.map(|task| Action::Update(Object::Task(Arc::new(back(task))))));
            }
            _ => {}
        }
    }

    /// Spoils what the dispatcher writes.
    pub fn spoil_reports(self, actions: &mut [Action], view: &View, dice: &mut Dice) {
        if self != Self::StatusBack || dice.roll(5) > 0 {
            return;
        }
        for action in actions {
            let Action::SetTaskStatus { task, .. } = action else { continue };
            if let Some(stored) = view.task(task).filter(|task| task.status.state > TaskState::Ready) {
                let mut back = Task::clone(stored);
                back.status.state = TaskState::Preparing;
                *action = Action::Update(Object::Task(Arc::new(back)));
            }
        }
    }

    /// Spoils what is committed.
    pub fn spoil_entry(self, entry: &mut Entry, truth: &Tables) {
        if self != Self::StaleWrite {
            return;
        }
        let actions = entry.proposals.iter_mut().flat_map(|proposal| &mut proposal.transaction.actions);
        for action in actions {
            if let Action::Update(Object::Service(service)) = action
                && let Some(stored) = truth.service(&service.id)
            {
                Arc::make_mut(service).meta.version = stored.meta.version;
            }
        }
    }

    /// Spoils what a manager applies.
    pub fn spoil_apply(self, manager: usize, index: usize, entry: &mut Entry) {
        if self == Self::FollowerSkips && manager == 1 && index > 20 && index % 7 == 0 {
            entry.proposals.clear();
        }
    }
}

/// Changes the tasks that are created or updated.
fn tasks(actions: &mut [Action], mut change: impl FnMut(&mut Task)) {
    for action in actions {
        if let Action::Create(Object::Task(task)) | Action::Update(Object::Task(task)) = action {
            change(Arc::make_mut(task));
        }
    }
}

/// Stops another slot beside the one that an update stops.
fn surge(actions: &mut Vec<Action>, view: &View) {
    let stopped = |action: &Action| match action {
        Action::SetTaskDesired { task, desired: TaskState::Shutdown } => view.task(task).cloned(),
        _ => None,
    };
    let Some(first) = actions.iter().find_map(stopped).filter(|task| !task.status.state.is_terminal()) else { return };
    let Some(service) = first.service_id.as_ref().and_then(|id| view.service(id)) else { return };
    let next = view
        .tasks_of_service(&service.id)
        .find(|task| task.slot != first.slot && task.desired_state == TaskState::Running && task.spec_version == first.spec_version);
    actions.extend(next.map(|task| Action::SetTaskDesired { task: task.id.clone(), desired: TaskState::Shutdown }));
}

/// The same spec with something that nobody asked for.
fn with_more(mut spec: skep_types::ServiceSpec) -> skep_types::ServiceSpec {
    Arc::make_mut(&mut spec.task).force_update += 1_000;
    spec
}
