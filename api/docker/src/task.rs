//! `/tasks`: list, inspect, logs.

use crate::body::{Json, list_of};
use crate::filters::Filters;
use crate::query::Query;
use crate::service::is_of_runtime;
use crate::types::task::Task;
use crate::{ApiError, Backend, TaskSelect, logs, lookup};
use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use skep_types::TaskState;

pub(crate) fn routes() -> Router<Backend> {
    Router::new().route("/tasks", get(list)).route("/tasks/{id}", get(inspect)).route("/tasks/{id}/logs", get(logs::of_task))
}

const FILTERS: [&str; 8] = ["_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"];

async fn list(State(backend): State<Backend>, query: Query) -> Result<Response, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let mut select = TaskSelect {
        ids: filters.values("id").to_vec(),
        // Whatever its value: clients send `true`.
        up_to_date: filters.has("_up-to-date"),
        desired_states: desired_states(&filters)?,
        ..TaskSelect::default()
    };
    // Names are looked up: one that does not exist is 404, not an empty list.
    for service in filters.values("service") {
        select.services.push(lookup::service(&backend, service).await?.id.to_string());
    }
    for node in filters.values("node") {
        select.nodes.push(lookup::node(&backend, node).await?.node.id.to_string());
    }
    let tasks = backend.cluster.list_tasks(&select).await?;
    Ok(list_of(tasks.into_iter().filter(move |task| is_wanted(&filters, task)).map(|task| Task::from(&*task))))
}

fn desired_states(filters: &Filters) -> Result<Vec<TaskState>, ApiError> {
    let state = |word: &String| {
        let known = TaskState::ALL.into_iter().find(|state| state.to_string().eq_ignore_ascii_case(word));
        known.ok_or_else(|| ApiError::invalid(format!("Invalid desired_state filter: '{word}'")))
    };
    filters.values("desired-state").iter().filter(|word| !word.is_empty()).map(state).collect()
}

/// What the cluster was not asked to decide. Labels are those of the service.
fn is_wanted(filters: &Filters, task: &skep_types::Task) -> bool {
    filters.begins("id", task.id.as_str())
        && (!filters.has("name") || filters.begins("name", &task.name()))
        && filters.labels("label", &task.service_annotations.labels)
        && is_of_runtime(filters, &task.spec.runtime)
}

async fn inspect(State(backend): State<Backend>, Path(id): Path<String>) -> Result<Json<Task>, ApiError> {
    let task = lookup::task(&backend, &id).await?;
    Ok(Json((&task).into()))
}
