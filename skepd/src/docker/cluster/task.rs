//! Tasks.

use crate::docker::manager::{Manager, answer, in_hand, objects, read_one};
use skep_docker_api::{ApiError, TaskSelect};
use skep_proto::{ToWire as _, v1};
use skep_types::Task;
use std::sync::Arc;

pub async fn list(manager: &Manager, select: &TaskSelect) -> Result<Vec<Arc<Task>>, ApiError> {
    let TaskSelect { ids, services, nodes, desired_states, up_to_date } = select;
    let filters = v1::list_tasks_request::Filters {
        id_prefixes: ids.clone(),
        service_ids: services.clone(),
        node_ids: nodes.clone(),
        desired_states: desired_states.iter().map(|state| state.to_wire()).collect(),
        up_to_date: *up_to_date,
        ..Default::default()
    };
    let request = v1::ListTasksRequest { filters: Some(filters) };
    objects("task", manager.control().list_tasks(in_hand(request)), |answer| answer.tasks).await
}

pub async fn get(manager: &Manager, id: &str) -> Result<Task, ApiError> {
    let request = v1::GetTaskRequest { task_id: id.to_owned() };
    read_one("task", answer(manager.control().get_task(request)).await?.task)
}
