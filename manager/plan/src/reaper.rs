//! Which tasks are deleted from the store: history beyond the limit, and what was marked for removal (wire-behaviour 11.4).

use crate::Plan;
use crate::restart::replaced;
use crate::slot::{Run, age};
use crate::update::evidence;
use skep_types::{Action, ClusterView, Kind, NodeId, RestartPolicy, Service, ServiceId, ServiceMode, Task, TaskState};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Whether the task is to be deleted whatever the history limit: it was marked for removal and is not running, or no service keeps
/// it as history and its node is lost or the container that it attached is gone. One that failed says why until it is detached.
#[must_use]
pub fn is_removable(task: &Task) -> bool {
    let state = task.status.state;
    let marked = task.desired_state == TaskState::Remove && (state < TaskState::Assigned || state >= TaskState::Complete);
    marked || (task.service_id.is_none() && matches!(state, TaskState::Orphaned | TaskState::Complete))
}

/// Deletes what may go of the tasks of one service: marked ones, and the oldest of each slot beyond the history limit, but for what an
/// update that goes on is judged by.
///
/// Call it for services whose tasks were created, ended or marked. Works for services that are gone, too.
#[must_use]
pub fn plan_reaping(view: &dyn ClusterView, service: &ServiceId) -> Plan {
    plan_reaping_among(view, service, view.tasks_of_service(service))
}

/// The same when only these tasks are looked at: all of a slot of a service that is not global, or of several.
#[must_use]
pub fn plan_reaping_among<'a>(view: &dyn ClusterView, service: &ServiceId, tasks: impl IntoIterator<Item = &'a Arc<Task>>) -> Plan {
    let mut plan = Plan::default();
    let mut slots = BTreeMap::<(u64, Option<&NodeId>), Vec<&Arc<Task>>>::new();
    let service = view.service(service);
    let mode = service.map(|service| &service.spec.mode);
    let is_global = matches!(mode, Some(ServiceMode::Global));
    for task in tasks {
        if is_removable(task) || (mode.is_none() && task.status.state.is_terminal()) {
            plan.changes.push(removal(task));
        } else if task.job_iteration.is_none() {
            let node = task.node_id.as_ref().filter(|_| is_global);
            slots.entry((task.slot, node)).or_default().push(task);
        }
    }
    let limit = view.cluster().map_or(5, |cluster| cluster.spec.task_history_retention_limit);
    for tasks in slots.into_values() {
        trim(tasks, limit, service, &mut plan);
    }
    plan
}

/// Tasks without a service that are to be deleted.
#[must_use]
pub fn plan_reaping_of_strays(tasks: impl IntoIterator<Item = Arc<Task>>) -> Plan {
    Plan { changes: tasks.into_iter().filter(|task| is_removable(task)).map(|task| removal(&task)).collect(), wake_at: None }
}

fn removal(task: &Arc<Task>) -> Action {
    Action::Remove { kind: Kind::Task, id: task.id.as_str().to_owned(), version: None }
}

fn trim(mut tasks: Vec<&Arc<Task>>, limit: i64, service: Option<&Arc<Service>>, plan: &mut Plan) {
    let attempts = |task: &&Arc<Task>| task.spec.restart.as_ref().map_or(0, |RestartPolicy { max_attempts, .. }| *max_attempts);
    let limit = match tasks.iter().map(attempts).max() {
        Some(attempts) if attempts > 0 => usize::try_from(attempts.saturating_add(1)).unwrap_or(usize::MAX),
        _ => match usize::try_from(limit) {
            Ok(limit) => limit,
            Err(_) => return, // negative: keep all
        },
    };
    let surplus = tasks.len().saturating_sub(limit);
    if surplus == 0 {
        return;
    }
    // The newest ended task of a slot without a live one says that the slot is not to be filled again: it stays.
    let has_live = tasks.iter().any(|task| task.desired_state <= TaskState::Complete);
    tasks.sort_by(|a, b| age(a).cmp(&age(b)));
    let last = tasks.iter().rfind(|task| task.desired_state > TaskState::Complete).map(|task| &task.id);
    let mut kept = service.map(|service| evidence(service, &tasks)).unwrap_or_default();
    // What a task that still waits replaces says how long it has to.
    if tasks.iter().any(|task| task.desired_state == TaskState::Ready) {
        let runs: Vec<Run> = tasks.iter().map(|task| Run::stored(task)).collect();
        let waiting = (0..runs.len()).filter(|index| runs[*index].desired == TaskState::Ready);
        let replaced = waiting.filter_map(|index| replaced(&runs, index));
        kept.extend(replaced.filter_map(|run| tasks.iter().find(|task| task.id == run.task.id)).map(|task| &task.id));
    }
    let goes = |task: &&&Arc<Task>| {
        let never_placed = task.status.state < TaskState::Assigned && task.desired_state > TaskState::Complete;
        let over = task.desired_state > TaskState::Complete && (task.status.state.is_terminal() || never_placed);
        over && (has_live || Some(&task.id) != last) && !kept.contains(&&task.id)
    };
    plan.changes.extend(tasks.iter().filter(goes).take(surplus).map(|task| removal(task)));
}
