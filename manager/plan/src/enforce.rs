//! Takes tasks off a node that does not fulfil their constraints or reservations any more (wire-behaviour 15).
//!
//! SwarmKit calls such a task REJECTED while it still runs. Its place, address and ports would then be free for another one before it has
//! stopped, and on a node that is cut off it does not even begin to. Here it is asked to stop, and what it holds is its own until its node
//! says that it did.

use crate::Plan;
use crate::constraint::Constraints;
use crate::resources::Free;
use crate::slot::age;
use crate::update::is_under_way;
use skep_types::{Action, Availability, ClusterView, NodeId, Service, Task, TaskSpec, TaskState, UpdateState};
use std::sync::Arc;

/// To be called when a node's labels, role, address, description or availability changed. The orchestrators then fill
/// their places elsewhere.
#[must_use]
pub fn plan_enforcement(view: &dyn ClusterView, node: &NodeId) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = view.node(node).filter(|node| node.spec.availability == Availability::Active) else { return plan };
    let mut free = node.description.as_ref().map(|description| Free::of(&description.resources));
    let mut tasks: Vec<&Arc<Task>> = view.tasks_on_node(&node.id).filter(|task| is_checked(task)).collect();
    tasks.sort_by(|a, b| age(a).cmp(&age(b))); // the oldest stay
    for task in tasks {
        let service = task.service_id.as_ref().and_then(|id| view.service(id));
        let suits = |spec: &TaskSpec| Constraints::of(spec.placement.as_ref()).match_node(node);
        let fits = match service {
            // A task of the spec before goes when the update comes to it, and stays where that is paused.
            Some(service) if is_being_updated(service) => suits(&task.spec) || suits(&service.spec.task),
            // Its own may be outdated: where only the placement changed and the node suits both, the task was kept.
            Some(service) => suits(&service.spec.task),
            None => suits(&task.spec),
        };
        let wanted = task.spec.resources.as_ref().map(|resources| &resources.reservations);
        let stays = fits && free.as_mut().zip(wanted).is_none_or(|(free, wanted)| free.claim(wanted).is_ok());
        if !stays {
            plan.changes.push(Action::SetTaskDesired { task: task.id.clone(), desired: TaskState::Shutdown });
        }
    }
    plan
}

fn is_being_updated(service: &Service) -> bool {
    let state = service.update_status.as_ref().map(|status| status.state);
    let is_paused = matches!(state, Some(UpdateState::Paused | UpdateState::RollbackPaused));
    is_paused || is_under_way(service)
}

fn is_checked(task: &Task) -> bool {
    (TaskState::Assigned..=TaskState::Complete).contains(&task.desired_state) && task.status.state < TaskState::Complete
}
