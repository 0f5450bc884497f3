//! Tasks of nodes that are lost for good.

use crate::Plan;
use skep_types::{Action, ClusterView, NodeId, NodeState, Task, TaskId, TaskState, TaskStatus, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// A node may be down this long before its tasks count as lost (`SK/manager/dispatcher/dispatcher.go`, `defaultNodeDownPeriod`).
pub const NODE_DOWN_PERIOD: Duration = Duration::from_secs(24 * 3600);

/// What becomes of the tasks of a node that was DOWN since `since` (at a new leader: since the node's last update), or that does
/// not exist any more: ORPHANED after `patience` (normally [`NODE_DOWN_PERIOD`]), or at once.
#[must_use]
pub fn plan_orphans(view: &dyn ClusterView, node: &NodeId, since: Timestamp, patience: Duration, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let reason = match view.node(node) {
        None => "the node was removed",
        Some(node) if node.status.state != NodeState::Down => return plan,
        Some(_) if now < since + patience => {
            if view.tasks_on_node(node).any(is_unfinished) {
                plan.wake(since + patience);
            }
            return plan;
        }
        Some(_) => "the node has been down for too long",
    };
    plan.changes.extend(view.tasks_on_node(node).filter(|task| is_unfinished(task)).map(|task| orphan(task, reason, now)));
    plan
}

/// All tasks whose node does not exist, for a new leader.
#[must_use]
pub fn plan_orphans_of_gone_nodes(view: &dyn ClusterView, now: Timestamp) -> Plan {
    let gone = |task: &&Arc<Task>| is_unfinished(task) && task.node_id.as_ref().is_some_and(|node| view.node(node).is_none());
    Plan { changes: view.tasks().filter(gone).map(|task| orphan(task, "the node was removed", now)).collect(), wake_at: None }
}

fn is_unfinished(task: &Arc<Task>) -> bool {
    (TaskState::Assigned..TaskState::Complete).contains(&task.status.state)
}

fn orphan(task: &Arc<Task>, reason: &str, now: Timestamp) -> Action {
    set_state(task, TaskState::Orphaned, "orphaned", reason, now)
}

/// A status that a manager sets itself: everything else that is known of the task stays.
pub(crate) fn set_state(task: &Task, state: TaskState, message: &str, err: &str, now: Timestamp) -> Action {
    let status = TaskStatus { timestamp: now, state, message: message.to_owned(), err: err.to_owned(), ..task.status.clone() };
    Action::SetTaskStatus { task: TaskId::clone(&task.id), status: TaskStatus { applied_at: Some(now), ..status } }
}
