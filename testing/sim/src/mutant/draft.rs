//! Spoils what the deciders propose.

use super::Mutant;
use crate::watch::outstays;
use skep_kit::Dice;
use skep_store::View;
use skep_types::{
    Action, Availability, ClusterView as _, Kind, Node, NodeId, NodeState, Object, PublishMode, Service, Task, TaskId, TaskState,
    UpdateState,
};
use std::sync::Arc;

impl Mutant {
    pub fn spoil_draft(self, actions: &mut Vec<Action>, view: &View, dice: &mut Dice) {
        match self {
            Self::SurgeOffByOne => surge(actions, view, |_| true),
            Self::SurgeInRollback => surge(actions, view, |service| state(service) == UpdateState::RollbackStarted),
            Self::EarlyRelease => tasks(actions, |task| {
                if task.desired_state == TaskState::Ready {
                    task.desired_state = TaskState::Running;
                }
            }),
            Self::NoRestartDelay => release(actions, view),
            Self::AddressTwice if dice.roll(4) == 0 => take_address(actions, view),
            Self::VipTwice => take_vip(actions, view),
            Self::PortTwice => take_port(actions, view),
            Self::WrongNode => {
                let nodes: Vec<NodeId> = view.nodes().map(|node| node.id.clone()).collect();
                place(actions, |_| dice.coin().then(|| dice.one_of(nodes.clone())));
            }
            Self::ClosedNode => {
                let closed = |node: &&Arc<Node>| node.spec.availability != Availability::Active || node.status.state != NodeState::Ready;
                let node = view.nodes().find(closed).map(|node| node.id.clone());
                place(actions, |_| node.clone());
            }
            Self::TooManyOnNode => place(actions, |task| {
                task.spec.placement.as_ref().filter(|placement| placement.max_replicas > 0)?;
                beside(view, task)
            }),
            Self::HostPortTwice => place(actions, |task| {
                let ports = task.endpoint.iter().flat_map(|endpoint| &endpoint.spec.ports);
                ports.filter(|port| port.publish_mode == PublishMode::Host).find_map(|_| beside(view, task))
            }),
            Self::SlotTwice => again(actions, dice, |task| task.slot > 0 && task.job_iteration.is_none()),
            Self::GlobalTwice => again(actions, dice, |task| task.slot == 0 && task.job_iteration.is_none()),
            Self::OneTooMany => again(actions, dice, |task| {
                task.slot += 100;
                task.slot > 100 && task.job_iteration.is_none()
            }),
            Self::JobTooMany => again(actions, dice, |task| {
                task.slot += 100;
                task.job_iteration.is_some() && task.node_id.is_none()
            }),
            Self::DrainIgnored => actions.retain(|action| {
                let Action::SetTaskDesired { task, .. } = action else { return true };
                let node = view.task(task).and_then(|task| view.node(task.node_id.as_ref()?));
                node.is_none_or(|node| node.spec.availability != Availability::Drain)
            }),
            Self::DrainStopsFirst => stop_drained(actions, view),
            Self::LostWish => actions.retain(|action| !matches!(action, Action::SetTaskDesired { .. }) || dice.roll(4) > 0),
            Self::WrongRollback => services(actions, |service| {
                if rolls_back(service, view) {
                    Arc::make_mut(&mut service.spec.task).force_update += 1_000;
                }
            }),
            Self::RollbackConfig => services(actions, |service| {
                if rolls_back(service, view) {
                    let before = view.service(&service.id).and_then(|before| before.spec.update.clone());
                    service.spec.update = before;
                }
            }),
            Self::NeverPauses => services(actions, |service| match &mut service.update_status {
                Some(status) if status.state == UpdateState::Paused => status.state = UpdateState::Updating,
                Some(status) if status.state == UpdateState::RollbackPaused => status.state = UpdateState::RollbackStarted,
                _ => {}
            }),
            Self::CompletesEarly => services(actions, |service| {
                if let Some(status) = &mut service.update_status
                    && status.state == UpdateState::Updating
                {
                    status.state = UpdateState::Completed;
                }
            }),
            Self::EagerReaper if dice.roll(10) == 0 => {
                let running = view.tasks_in_state(TaskState::Running).next();
                actions.extend(running.map(|task| Action::Remove { kind: Kind::Task, id: task.id.to_string(), version: None }));
            }
            Self::LazyReaper => actions.retain(|action| !matches!(action, Action::Remove { kind: Kind::Task, .. })),
            Self::WishBack if dice.roll(10) == 0 => {
                let stopping = view.tasks().find(|task| task.desired_state == TaskState::Shutdown && !task.status.state.is_terminal());
                let back = |task: &Arc<Task>| Task { desired_state: TaskState::Running, ..Task::clone(task) };
                actions.extend(stopping.map(|task| Action::Update(Object::Task(Arc::new(back(task))))));
            }
            _ => {}
        }
    }
}

/// Tells tasks on nodes drained in place to stop as soon as others are made.
fn stop_drained(actions: &mut Vec<Action>, view: &View) {
    let mut stopped = Vec::new();
    for action in &*actions {
        let Action::Create(Object::Task(new)) = action else { continue };
        let slot = new.service_id.iter().flat_map(|service| view.tasks_of_service(service)).filter(|task| task.slot == new.slot);
        stopped.extend(slot.filter(|task| outstays(view, task)).map(|task| task.id.clone()));
    }
    actions.extend(stopped.into_iter().map(|task| Action::SetTaskDesired { task, desired: TaskState::Shutdown }));
}

fn state(service: &Service) -> UpdateState {
    service.update_status.as_ref().map_or(UpdateState::Unknown, |status| status.state)
}

fn rolls_back(service: &Service, view: &View) -> bool {
    state(service) == UpdateState::RollbackStarted && view.service(&service.id).is_some_and(|before| before.spec != service.spec)
}

/// Changes the tasks that are created or updated.
fn tasks(actions: &mut [Action], mut change: impl FnMut(&mut Task)) {
    for action in actions {
        if let Action::Create(Object::Task(task)) | Action::Update(Object::Task(task)) = action {
            change(Arc::make_mut(task));
        }
    }
}

/// Changes the services that are updated.
fn services(actions: &mut [Action], mut change: impl FnMut(&mut Service)) {
    for action in actions {
        if let Action::Update(Object::Service(service)) = action {
            change(Arc::make_mut(service));
        }
    }
}

/// Puts tasks that get their node on another one.
fn place(actions: &mut [Action], mut node: impl FnMut(&Task) -> Option<NodeId>) {
    tasks(actions, |task| {
        if task.slot > 0
            && task.status.state == TaskState::Assigned
            && let Some(node) = node(task)
        {
            task.node_id = Some(node);
        }
    });
}

/// The node of another task of the service.
fn beside(view: &View, task: &Task) -> Option<NodeId> {
    let live =
        |other: &&Arc<Task>| other.id != task.id && other.status.state == TaskState::Running && other.desired_state <= TaskState::Running;
    view.tasks_of_service(task.service_id.as_ref()?).find(live)?.node_id.clone()
}

/// Creates one of the tasks once more. `change` says whether it is one of those that are meant.
fn again(actions: &mut Vec<Action>, dice: &mut Dice, mut change: impl FnMut(&mut Task) -> bool) {
    let id = TaskId::from_random(std::array::from_fn(|_| u8::try_from(dice.roll(256)).expect("below 256")));
    let twin = actions.iter().find_map(|action| {
        let Action::Create(Object::Task(task)) = action else { return None };
        let mut twin = Task { id: id.clone(), ..Task::clone(task) };
        change(&mut twin).then_some(twin)
    });
    actions.extend(twin.map(|twin| Action::Create(Object::Task(Arc::new(twin)))));
}

/// Stops another slot beside the one that an update stops.
fn surge(actions: &mut Vec<Action>, view: &View, fits: impl Fn(&Service) -> bool) {
    let stopped = |action: &Action| match action {
        Action::SetTaskDesired { task, desired: TaskState::Shutdown } => view.task(task).cloned(),
        _ => None,
    };
    let Some(first) = actions.iter().find_map(stopped).filter(|task| !task.status.state.is_terminal()) else { return };
    let Some(service) = first.service_id.as_ref().and_then(|id| view.service(id)).filter(|service| fits(service)) else { return };
    let next = view
        .tasks_of_service(&service.id)
        .find(|task| task.slot != first.slot && task.desired_state == TaskState::Running && task.spec_version == first.spec_version);
    actions.extend(next.map(|task| Action::SetTaskDesired { task: task.id.clone(), desired: TaskState::Shutdown }));
}

/// Lets tasks run that wait for their delay only.
fn release(actions: &mut Vec<Action>, view: &View) {
    let waits = |task: &&Arc<Task>| {
        let beside = task.service_id.iter().flat_map(|service| view.tasks_of_service(service));
        let alone = beside.filter(|other| other.id != task.id && other.slot == task.slot).all(|other| other.status.state.is_terminal());
        task.desired_state == TaskState::Ready && task.slot > 0 && alone
    };
    actions.extend(view.tasks().filter(waits).map(|task| Action::SetTaskDesired { task: task.id.clone(), desired: TaskState::Running }));
}

fn take_address(actions: &mut [Action], view: &View) {
    let taken = view.tasks().filter(|task| task.status.state == TaskState::Running);
    let taken = taken.flat_map(|task| &task.networks).find(|attached| !attached.addresses.is_empty()).cloned();
    let Some(taken) = taken else { return };
    tasks(actions, |task| {
        for attached in task.networks.iter_mut().filter(|attached| attached.network.id == taken.network.id) {
            attached.addresses.clone_from(&taken.addresses);
        }
    });
}

fn take_vip(actions: &mut [Action], view: &View) {
    services(actions, |service| {
        let id = service.id.clone();
        let others = view.services().filter(|other| other.id != id).filter_map(|other| other.endpoint.as_ref());
        let others: Vec<_> = others.flat_map(|endpoint| endpoint.virtual_ips.clone()).collect();
        let Some(endpoint) = &mut service.endpoint else { return };
        for vip in &mut endpoint.virtual_ips {
            if let Some(other) = others.iter().find(|other| other.network_id == vip.network_id) {
                vip.addr.clone_from(&other.addr);
            }
        }
    });
}

fn take_port(actions: &mut [Action], view: &View) {
    services(actions, |service| {
        let id = service.id.clone();
        let others = view.services().filter(|other| other.id != id).filter_map(|other| other.endpoint.as_ref());
        let taken = others.flat_map(|endpoint| &endpoint.ports).find(|port| port.publish_mode == PublishMode::Ingress);
        let ports = service.endpoint.iter_mut().flat_map(|endpoint| &mut endpoint.ports);
        if let Some(taken) = taken {
            ports.filter(|port| port.publish_mode == PublishMode::Ingress).for_each(|port| port.published_port = taken.published_port);
        }
    });
}
