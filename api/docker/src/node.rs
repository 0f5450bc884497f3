//! `/nodes`.

use crate::body::Json;
use crate::filters::Filters;
use crate::query::Query;
use crate::types::node::{Node, NodeSpec, membership_name, role};
use crate::{ApiError, Backend, NodeEntry, Select, lookup};
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use skep_types::Labels;

pub(crate) fn routes() -> Router<Backend> {
    Router::new().route("/nodes", get(list)).route("/nodes/{id}", get(inspect).delete(remove)).route("/nodes/{id}/update", post(update))
}

const FILTERS: &[&str] = &["id", "name", "label", "node.label", "role", "membership"];

async fn list(State(backend): State<Backend>, query: Query) -> Result<Json<Vec<Node>>, ApiError> {
    let filters = query.filters(FILTERS)?;
    for (key, words) in [("role", ["worker", "manager"]), ("membership", ["pending", "accepted"])] {
        if let Some(odd) = filters.values(key).iter().find(|value| !words.contains(&value.as_str())) {
            return Err(ApiError::invalid(format!("invalid {key} filter: '{odd}'")));
        }
    }
    let nodes = backend.cluster.list_nodes(&Select::default()).await?;
    Ok(Json(nodes.iter().filter(|entry| is_wanted(&filters, entry)).map(Node::from).collect()))
}

fn is_wanted(filters: &Filters, NodeEntry { node, .. }: &NodeEntry) -> bool {
    let description = node.description.as_ref();
    let hostname = description.map(|description| description.hostname.as_str()).unwrap_or_default();
    let none = Labels::new();
    let engine_labels = description.and_then(|description| description.engine.as_ref()).map_or(&none, |engine| &engine.labels);
    filters.begins("id", node.id.as_str())
        && filters.any("name", |name| hostname.starts_with(name) || node.spec.annotations.name.starts_with(name))
        && filters.labels("label", engine_labels)
        && filters.labels("node.label", &node.spec.annotations.labels)
        && filters.is("role", role::to(node.role))
        && filters.is("membership", membership_name(node.spec.membership))
}

async fn inspect(State(backend): State<Backend>, Path(id): Path<String>) -> Result<Json<Node>, ApiError> {
    Ok(Json(Node::from(&lookup::node(&backend, &id).await?)))
}

async fn update(State(backend): State<Backend>, Path(id): Path<String>, query: Query, Json(spec): Json<NodeSpec>) -> Result<(), ApiError> {
    let version = query.version("node")?;
    let NodeEntry { node, .. } = lookup::node(&backend, &id).await?;
    let spec = spec.into_spec(node.spec.membership)?;
    backend.cluster.update_node(node.id.as_str(), version, spec).await
}

async fn remove(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<(), ApiError> {
    let NodeEntry { node, .. } = lookup::node(&backend, &id).await?;
    backend.cluster.remove_node(node.id.as_str(), query.is("force")).await
}
