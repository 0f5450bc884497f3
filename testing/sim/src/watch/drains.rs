//! Drains that start first: what serves on the node serves until another one of its slot does.

use super::Watch;
use crate::raft::short;
use crate::world::World;
use skep_plan::is_task_dirty;
use skep_store::View;
use skep_types::{
    Availability, Change, ClusterView as _, NodeId, NodeState, Object, Service, ServiceMode, Task, TaskId, TaskState, UpdateOrder,
    UpdateState,
};
use std::sync::Arc;

/// Two tasks of a slot may run at once while one takes the other's place.
fn starts_first(service: &Service) -> bool {
    let rolls_back = service.update_status.as_ref().is_some_and(|status| status.state == UpdateState::RollbackStarted);
    let config = if rolls_back { &service.spec.rollback } else { &service.spec.update };
    let order = config.as_ref().map(|config| config.order);
    matches!(service.spec.mode, ServiceMode::Replicated { .. }) && order == Some(UpdateOrder::StartFirst)
}

fn is_wanted(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete
}

fn serves(task: &Task) -> bool {
    is_wanted(task) && task.status.state == TaskState::Running
}

/// The task may serve on its drained node until another one does.
#[must_use]
pub fn outstays(view: &View, task: &Task) -> bool {
    let node = task.node_id.as_ref().and_then(|id| view.node(id));
    let in_place = node.is_some_and(|node| {
        node.status.state != NodeState::Down
            && node.spec.availability == Availability::Drain
            && node.spec.drain_order == UpdateOrder::StartFirst
    });
    let service = || task.service_id.as_ref().and_then(|id| view.service(id));
    in_place && serves(task) && service().is_some_and(|service| starts_first(service))
}

/// Others of the task's slot.
fn beside<'a>(view: &'a View, task: &'a Task) -> impl Iterator<Item = &'a Arc<Task>> {
    let of_service = task.service_id.iter().flat_map(|service| view.tasks_of_service(service));
    of_service.filter(|other| other.slot == task.slot && other.id != task.id)
}

/// A task that may outstay its drain, and should not any more or has nobody to take its place.
pub(super) fn is_stuck(view: &View, task: &Task) -> bool {
    let Some(service) = task.service_id.as_ref().and_then(|id| view.service(id)) else { return false };
    let mut heirs = beside(view, task).filter(|other| is_wanted(other) && !is_task_dirty(view, service, other) && !outstays(view, other));
    let first = heirs.next();
    first.is_none_or(|first| serves(first) || heirs.any(|other| serves(other)))
}

impl Watch {
    /// I7: whoever stops a task that may outstay its drain knows of another one of its slot that serves.
    pub(super) fn drains(&mut self, changes: &[Change], (seen, after): (&View, &View)) {
        for change in changes {
            let Change::Updated { old: Object::Task(old), new: Object::Task(new) } = change else { continue };
            if !is_wanted(old) || new.desired_state != TaskState::Shutdown {
                continue;
            }
            // By what was there when it was decided, and is there still.
            let was = seen.task(&new.id).is_some_and(|task| outstays(seen, task));
            let is = outstays(after, &Task { desired_state: old.desired_state, ..Task::clone(new) });
            if was && is && !beside(seen, new).any(|other| serves(other)) {
                self.fail("I7", format!("task {} is stopped by a drain that starts first, and no other of its slot runs", new.id));
            }
        }
    }

    /// From now on nobody but a drain disturbs anything.
    pub fn drain_begins(&mut self) {
        self.calm = false;
        self.undisturbed = true;
    }
}

impl World {
    /// I7: of a service that starts first no task is stopped that is the only one of its slot to serve, where nothing else disturbs it.
    pub(super) fn check_served(&mut self, node: &NodeId, id: &TaskId) {
        if !self.watch.undisturbed {
            return;
        }
        let Some(container) = self.agents[node].containers.get(id).filter(|container| container.alive) else { return };
        let service = container.service.as_ref().and_then(|id| self.raft.truth.service(id));
        let Some(service) = service.filter(|service| starts_first(service)) else { return };
        let is_served = self.agents.values().any(|agent| {
            agent.containers.values().any(|other| {
                let same_slot = other.service == container.service && other.slot == container.slot;
                same_slot && other.alive && other.task != *id && !agent.is_stopping(&other.task) && self.watch.fit.contains(&other.task)
            })
        });
        if !is_served {
            let words = format!("slot {} of {} is served by nobody while a node is drained", container.slot, service.name());
            self.watch.fail("I7", words);
        }
    }

    /// What a drained node is not rid of yet, when all works; `None` if it is, or there is no room for its tasks elsewhere.
    #[must_use]
    pub fn left_on(&self, node: &NodeId) -> Option<String> {
        let view = self.raft.view();
        let no_room = |task: &&Arc<Task>| task.status.state == TaskState::Pending && task.status.err.contains("insufficient");
        if view.tasks().any(|task| no_room(&task)) {
            return None;
        }
        let stays = view.tasks_on_node(node).find(|task| !task.status.state.is_terminal());
        if let Some(task) = stays {
            return Some(format!("task {} is {} on node {}", task.id, task.status.state, short(node.as_str())));
        }
        let container = self.agents.get(node).into_iter().flat_map(|agent| agent.containers.values()).find(|container| container.alive);
        if let Some(container) = container {
            return Some(format!("the container of task {} runs on node {}", container.task, short(node.as_str())));
        }
        view.services().filter(|service| starts_first(service)).find_map(|service| {
            let ServiceMode::Replicated { replicas } = service.spec.mode else { return None };
            let count = view.tasks_of_service(&service.id).filter(|task| serves(task)).count() as u64;
            (count != replicas).then(|| format!("{count} tasks of {} run, not {replicas}", service.name()))
        })
    }
}
