//! Tasks: get, list, remove.

use super::errors::{id, missing};
use super::filter;
use crate::shared::Shared;
use skep_proto::{ToWire as _, v1};
use skep_store::View;
use skep_types::{Action, ClusterView as _, Kind, NodeId, ServiceId, Task, TaskId};
use std::sync::Arc;
use tonic::Status;

pub(super) fn get(shared: &Shared, request: &v1::GetTaskRequest) -> Result<v1::GetTaskResponse, Status> {
    let id: TaskId = id("task_id", &request.task_id)?;
    let view = shared.store.view();
    let task = view.task(&id).ok_or_else(|| missing(Kind::Task, id.as_str()))?;
    Ok(v1::GetTaskResponse { task: Some(task.to_wire()) })
}

pub(super) fn list(shared: &Shared, request: v1::ListTasksRequest) -> Vec<Arc<Task>> {
    let view = shared.store.view();
    let filters = request.filters.unwrap_or_default();
    candidates(&view, &filters)
        .into_iter()
        .filter(|task| filter::tasks(&filters, task) && (!filters.up_to_date || is_up_to_date(&view, task)))
        .map(Arc::clone)
        .collect()
}

/// The smallest set an index gives: a list of one service's tasks costs as much as that service has.
fn candidates<'a>(view: &'a View, filters: &v1::list_tasks_request::Filters) -> Vec<&'a Arc<Task>> {
    if !filters.service_ids.is_empty() {
        let mut ids: Vec<ServiceId> = filters.service_ids.iter().filter_map(|id| id.parse().ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        return ids.iter().flat_map(|id| view.tasks_of_service(id)).collect();
    }
    if !filters.node_ids.is_empty() {
        let mut ids: Vec<NodeId> = filters.node_ids.iter().filter_map(|id| id.parse().ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        return ids.iter().flat_map(|id| view.tasks_on_node(id)).collect();
    }
    view.tasks().collect()
}

/// The filter `up_to_date`: a task is, if an update would leave it alone.
fn is_up_to_date(view: &View, task: &Task) -> bool {
    let service = task.service_id.as_ref().and_then(|id| view.service(id));
    service.is_some_and(|service| !skep_plan::is_task_dirty(view, service, task))
}

pub(super) async fn remove(shared: &Shared, request: v1::RemoveTaskRequest) -> Result<v1::RemoveTaskResponse, Status> {
    let id: TaskId = id("task_id", &request.task_id)?;
    if shared.store.view().task(&id).is_none() {
        return Err(missing(Kind::Task, id.as_str()));
    }
    shared.write(vec![Action::Remove { kind: Kind::Task, id: id.to_string(), version: None }]).await?;
    Ok(v1::RemoveTaskResponse {})
}
