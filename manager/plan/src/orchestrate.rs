//! The entry to all orchestrators: what to do for one service, and which services a change concerns.

use crate::slot::Context;
use crate::{Ids, Plan, Time, global, job, replicated};
use skep_types::{Action, Change, ClusterView, NodeId, Object, ServiceId, ServiceMode, Task, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What one service needs now: tasks created, replaced, updated, stopped or removed.
///
/// Costs O(tasks of the service), and O(nodes) for global ones. Call it for services named by [`concerned`], one at a time, and
/// commit before the next call for the same service: that is what makes a slot be replaced once.
#[must_use]
pub fn plan_service(view: &dyn ClusterView, id: &ServiceId, ids: &mut dyn Ids, time: impl Into<Time>) -> Plan {
    let Some(service) = view.service(id).filter(|service| !service.pending_delete) else {
        return plan_removal(view, id);
    };
    let mut context = Context::new(view, service, ids, time.into());
    match &service.spec.mode {
        ServiceMode::Replicated { replicas } => replicated::plan(&mut context, *replicas),
        ServiceMode::Global => global::plan(&mut context),
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            job::plan_replicated(&mut context, *max_concurrent, *total_completions);
        }
        ServiceMode::GlobalJob => job::plan_global(&mut context),
    }
    context.plan
}

/// What one slot of a replicated service needs now, in O(tasks of the slot). `tasks` are all of the slot.
///
/// For a service that is *settled*: when [`plan_service`] looked at it last it proposed nothing, and since then neither the service
/// changed nor any task but those that were looked at since. `None` says that the slot cannot be judged by itself: call
/// [`plan_service`].
#[must_use]
pub fn plan_slot(
    view: &dyn ClusterView,
    id: &ServiceId,
    (number, tasks): (u64, &[Arc<Task>]),
    ids: &mut dyn Ids,
    time: impl Into<Time>,
) -> Option<Plan> {
    let service = view.service(id).filter(|service| !service.pending_delete)?;
    if !matches!(service.spec.mode, ServiceMode::Replicated { .. }) {
        return None;
    }
    let mut context = Context::new(view, service, ids, time.into());
    replicated::plan_slot(&mut context, number, tasks)?;
    Some(context.plan)
}

/// The service is gone: its tasks are to stop and be deleted.
fn plan_removal(view: &dyn ClusterView, id: &ServiceId) -> Plan {
    let still_wanted = |task: &&Arc<Task>| task.desired_state < TaskState::Remove;
    let removal = |task: &Arc<Task>| Action::SetTaskDesired { task: task.id.clone(), desired: TaskState::Remove };
    Plan { changes: view.tasks_of_service(id).filter(still_wanted).map(removal).collect(), wake_at: None }
}

/// What a change makes worth looking at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Concerned {
    pub services: BTreeSet<ServiceId>,
    /// Ask [`services_of_node`] for these.
    pub nodes: BTreeSet<NodeId>,
    /// For each of `services` the slots that make it worth looking at; missing where it is more than single slots.
    pub slots: BTreeMap<ServiceId, BTreeSet<u64>>,
}

impl Concerned {
    /// Adds what `change` makes worth looking at. Progress of a task on its way to RUNNING concerns no orchestrator, unless
    /// the task waits for others of its slot or an update watches it.
    pub fn add(&mut self, change: &Change) {
        match (change, change.object()) {
            (_, Object::Service(service)) => self.whole(Some(&service.id)),
            (Change::Updated { old: Object::Node(old), new: Object::Node(new) }, _) => {
                let same = old.status.state == new.status.state
                    && old.spec == new.spec
                    && old.role == new.role
                    && old.status.addr == new.status.addr
                    && old.description == new.description;
                if !same {
                    self.nodes.insert(new.id.clone());
                }
            }
            (_, Object::Node(node)) => {
                self.nodes.insert(node.id.clone());
            }
            (Change::Updated { old: Object::Task(old), new: Object::Task(new) }, _) => {
                let step = old.status.state != new.status.state && new.status.state >= TaskState::Running;
                if new.desired_state < old.desired_state || new.status.state < old.status.state {
                    // Only what was tried out and is taken back goes back. That decision may have been one about all slots.
                    self.whole(new.service_id.as_ref());
                } else if step || old.desired_state != new.desired_state {
                    self.slot(new);
                }
            }
            // A task that was wanted is gone: its slot may have to be filled again.
            (Change::Removed(_), Object::Task(task)) if task.desired_state <= TaskState::Complete => self.whole(task.service_id.as_ref()),
            (Change::Created(_) | Change::Removed(_), Object::Task(task)) => self.slot(task),
            _ => {}
        }
    }

    /// All slots of these services are worth looking at.
    pub fn add_services(&mut self, services: impl IntoIterator<Item = ServiceId>) {
        services.into_iter().for_each(|service| self.whole(Some(&service)));
    }

    fn whole(&mut self, service: Option<&ServiceId>) {
        if let Some(service) = service {
            self.slots.remove(service);
            self.services.insert(service.clone());
        }
    }

    fn slot(&mut self, task: &Task) {
        let Some(service) = &task.service_id else { return };
        // Once it is the whole service, single slots add nothing.
        if self.services.insert(service.clone()) || self.slots.contains_key(service) {
            self.slots.entry(service.clone()).or_default().insert(task.slot);
        }
    }
}

/// The services that a change of a node concerns: those with tasks on it, and all global ones.
#[must_use]
pub fn services_of_node(view: &dyn ClusterView, node: &NodeId) -> BTreeSet<ServiceId> {
    // Also those whose tasks there are only waited for.
    let matters = |task: &&Arc<Task>| task.desired_state <= TaskState::Complete || !task.status.state.is_terminal();
    let with_tasks = view.tasks_on_node(node).filter(matters).filter_map(|task| task.service_id.clone());
    let everywhere = view
        .services()
        .filter(|service| matches!(service.spec.mode, ServiceMode::Global | ServiceMode::GlobalJob))
        .map(|service| service.id.clone());
    with_tasks.chain(everywhere).collect()
}

/// Everything, as a new leader has to look at it: all services, and those that are gone but still have tasks.
#[must_use]
pub fn all_services(view: &dyn ClusterView) -> BTreeSet<ServiceId> {
    view.services().map(|service| service.id.clone()).chain(view.tasks().filter_map(|task| task.service_id.clone())).collect()
}
