//! Rejects tasks whose node does not fulfil their constraints or reservations any more (wire-behaviour 15).

use crate::Plan;
use crate::constraint::Constraints;
use crate::orphan::set_state;
use crate::resources::Free;
use skep_types::{Availability, ClusterView, NodeId, Task, TaskState, Timestamp};
use std::sync::Arc;

/// To be called when a node's labels, role, address, description or availability changed. The orchestrators then start
/// rejected tasks elsewhere.
#[must_use]
pub fn plan_enforcement(view: &dyn ClusterView, node: &NodeId, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = view.node(node).filter(|node| node.spec.availability == Availability::Active) else { return plan };
    let mut free = node.description.as_ref().map(|description| Free::of(&description.resources));
    let mut tasks: Vec<&Arc<Task>> = view.tasks_on_node(&node.id).filter(|task| is_checked(task)).collect();
    tasks.sort_by(|a, b| a.meta.created_at.cmp(&b.meta.created_at).then_with(|| a.id.cmp(&b.id))); // the oldest stay
    for task in tasks {
        let service = task.service_id.as_ref().and_then(|id| view.service(id));
        let placement = service.map_or(task.spec.placement.as_ref(), |service| service.spec.task.placement.as_ref());
        if !Constraints::of(placement).match_node(node) {
            plan.changes.push(set_state(
                task,
                TaskState::Rejected,
                "rejected",
                "the node does not satisfy the service's constraints any more",
                now,
            ));
            continue;
        }
        let (Some(free), Some(wanted)) = (&mut free, task.spec.resources.as_ref().map(|resources| &resources.reservations)) else {
            continue;
        };
        if let Err(lack) = free.claim(wanted) {
            let err = format!("the node does not have the reserved resources any more: {lack}");
            plan.changes.push(set_state(task, TaskState::Rejected, "rejected", &err, now));
        }
    }
    plan
}

fn is_checked(task: &Task) -> bool {
    (TaskState::Assigned..=TaskState::Complete).contains(&task.desired_state) && task.status.state < TaskState::Complete
}
