//! `/containers/json` of all nodes: all that have tasks are asked at once, and of those that do not answer it is told what the managers know.

use super::{Everywhere, pass};
use crate::body::Json;
use crate::container::{Wanted, summary};
use crate::query::Query;
use crate::when::now;
use crate::{ApiError, ApiVersion, Container, ErrorKind, Life, Phase, Reach, TaskSelect, container_id};
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use futures_util::stream;
use http::{HeaderValue, header};
use serde_json::{Value, json};
use skep_types::{Labels, NodeId, Runtime, Task, TaskState};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 32;
/// For a node to say all it has. Short: people wait for the slowest.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is taken of one node, in bytes: thousands of containers.
const MOST_OF_NODE: usize = 32 << 20;

/// Headers that name nodes which do not answer: clients take so many headers and no more.
const MOST_WARNINGS: usize = 8;

/// Those that dockerd gives to the containers of tasks.
#[must_use]
pub fn task_labels(task: &Task, own: &Labels) -> Labels {
    let text = |id: Option<String>| id.unwrap_or_default();
    let swarm = [
        ("task", String::new()),
        ("task.id", task.id.to_string()),
        ("task.name", task.name()),
        ("node.id", text(task.node_id.as_ref().map(ToString::to_string))),
        ("service.id", text(task.service_id.as_ref().map(ToString::to_string))),
        ("service.name", task.service_annotations.name.clone()),
    ];
    let swarm = swarm.into_iter().map(|(name, value)| (format!("com.docker.swarm.{name}"), value));
    own.clone().into_iter().chain(swarm).collect()
}

pub(super) async fn list(
    State(everywhere): State<Everywhere>,
    version: ApiVersion,
    query: Query,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let wanted = Wanted::of(&query)?;
    if wanted.names_another() {
        return Err(ApiError::unimplemented("before and since name a container of one node; ask that node's own Docker API"));
    }
    let path = format!("/v{version}/containers/json?{}", raw.unwrap_or_default());
    let mut nodes: BTreeMap<NodeId, Vec<Arc<Task>>> = BTreeMap::new();
    for task in everywhere.backend.cluster.list_tasks(&TaskSelect::default()).await? {
        if let (Some(node), Runtime::Container(_)) = (&task.node_id, &task.spec.runtime) {
            nodes.entry(node.clone()).or_default().push(task);
        }
    }
    let reach = &*everywhere.reach;
    let asking = nodes.into_iter().map(|(node, tasks)| {
        let path = path.clone();
        async move { (ask(reach, &node, &path).await, node, tasks) }
    });
    let mut answers = stream::iter(asking).buffer_unordered(AT_ONCE);
    let (mut all, mut silent) = (Vec::new(), Vec::new());
    while let Some((answer, node, tasks)) = answers.next().await {
        match answer {
            Ok(mut list) => all.append(&mut list),
            // It is not the node that is wrong, but what was asked for.
            Err(error) if error.kind == ErrorKind::InvalidArgument => return Err(error),
            Err(error) => {
                tracing::warn!(%node, %error, "a node does not tell of its containers");
                all.extend(known(&wanted, &tasks)?);
                silent.push(format!("node {node}: {error}"));
            }
        }
    }
    let key = |one: &Value| (std::cmp::Reverse(one["Created"].as_i64()), one["Id"].as_str().unwrap_or_default().to_owned());
    all.sort_by_cached_key(key);
    all.truncate(wanted.limit());
    let mut response = Json(all).into_response();
    silent.sort();
    let more = silent.len().saturating_sub(MOST_WARNINGS);
    silent.truncate(MOST_WARNINGS);
    silent.extend((more > 0).then(|| format!("{more} more nodes do not answer")));
    for why in silent {
        // RFC 7234 §5.5: 199, miscellaneous, for people.
        let text: String =
            why.chars().map(|char| if char == '"' || char == '\\' || !(' '..='~').contains(&char) { '\'' } else { char }).collect();
        if let Ok(value) = HeaderValue::from_str(&format!("199 skep \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    Ok(response)
}

async fn ask(reach: &dyn Reach, node: &NodeId, path: &str) -> Result<Vec<Value>, ApiError> {
    match tokio::time::timeout(PATIENCE, pass::get(reach, node, path, MOST_OF_NODE)).await {
        Ok(body) => serde_json::from_slice(&body?).map_err(|error| ApiError::internal(format!("its answer cannot be read: {error}"))),
        Err(_) => Err(ApiError::unavailable(format!("it did not answer within {} s", PATIENCE.as_secs()))),
    }
}

/// What the managers know of the containers of a node that does not answer.
fn known(wanted: &Wanted, tasks: &[Arc<Task>]) -> Result<Vec<Value>, ApiError> {
    let now = now();
    let found = wanted.select(tasks.iter().filter_map(|task| container(task)).collect())?;
    let unknown = |one: &Container| {
        let mut value = summary(one, now);
        // `State` stays one of dockerd's words, which clients parse: the last that was heard.
        value["Status"] = json!("Unknown (its node does not answer)");
        value
    };
    Ok(found.iter().map(unknown).collect())
}

fn container(task: &Task) -> Option<Container> {
    let Runtime::Container(spec) = &task.spec.runtime else { return None };
    let phase = match task.status.state {
        TaskState::Running => Phase::Running,
        state if state < TaskState::Running => Phase::Created,
        _ => Phase::Exited,
    };
    let ended = task.status.container.as_ref().map_or(0, |container| container.exit_code);
    let mut spec = spec.as_ref().clone();
    // Nobody is to see it.
    spec.registry_auth = skep_types::Sensitive::default();
    Some(Container {
        id: container_id(&task.id),
        name: task.name(),
        created_at: task.meta.created_at,
        labels: task_labels(task, &spec.labels),
        spec,
        is_task: true,
        life: Life { phase, exit_code: if phase == Phase::Exited { ended } else { 0 }, ..Life::default() },
        ..Container::default()
    })
}
