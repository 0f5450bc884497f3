//! The cluster as one Docker host: `/containers` and `/exec` of tasks on all nodes. What else there is, is answered as by any manager.
//!
//! A request about one container goes to its node as it came, over a connection of its own, and its answer comes back as it is,
//! streams included. A container's id says which task it is and an exec's id too, so that nothing has to be remembered.

mod find; // whose container is meant
mod list; // all of them
mod pass; // a request to its node and the answer back

use crate::{ApiError, Backend, Reach};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{any, get};
use bytes::Bytes;
use http::{Method, Uri};
use http_body_util::{BodyExt as _, Limited};
use std::sync::Arc;

pub use list::task_labels;

/// Where these endpoints look.
#[derive(Clone)]
pub(crate) struct Everywhere {
    pub backend: Backend,
    pub reach: Arc<dyn Reach>,
}

/// Instead of those of this node.
pub(crate) fn routes(everywhere: Everywhere) -> Router<Backend> {
    Router::new()
        .route("/containers/json", get(list::list))
        .route("/containers/create", any(create))
        .route("/containers/prune", any(prune))
        .route("/containers/{id}", any(container))
        .route("/containers/{id}/{*rest}", any(container))
        .route("/exec/{id}/{*rest}", any(exec))
        .with_state(everywhere)
}

/// What belongs to one node and cannot mean the cluster; said before anything is done.
pub(crate) fn refusal(method: &Method, uri: &Uri) -> Option<ApiError> {
    let is_of_a_node = ["/images/", "/volumes/", "/build", "/commit"].iter().any(|start| uri.path().starts_with(start));
    let is_read = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let of_network = uri.path().strip_prefix("/networks/").and_then(|rest| rest.split_once('/')).map(|(_, act)| act);
    if matches!(of_network, Some("connect" | "disconnect")) && !is_read {
        return Some(ApiError::unimplemented(
            "containers that no service made are each node's own: ask that node's Docker API, docker.sock beside this socket",
        ));
    }
    (is_of_a_node && !is_read).then(|| {
        ApiError::unimplemented("images and volumes are each node's own: ask that node's Docker API, docker.sock beside this socket")
    })
}

/// Of what is refused, so much is read first: a client that still writes would see a broken connection and not the refusal.
const MOST_UNWANTED: usize = 1 << 20;

/// The refusal, once the client has said all, or more than anybody listens to.
pub(crate) async fn after_reading(body: Body, refusal: ApiError) -> ApiError {
    let _ = Limited::new(body, MOST_UNWANTED).collect().await; // whatever it is, it is refused
    refusal
}

async fn create(_: Bytes) -> ApiError {
    ApiError::unimplemented("containers that no service starts are made on a node: ask its own Docker API, or use `docker service create`")
}

async fn prune(_: Bytes) -> ApiError {
    ApiError::unimplemented("containers of tasks are removed with their tasks; others by the Docker API of their node")
}

async fn container(State(everywhere): State<Everywhere>, Path(params): Path<Vec<String>>, request: Request) -> Result<Response, ApiError> {
    let wanted = params.first().map(String::as_str).unwrap_or_default();
    let found = match find::container(&everywhere.backend, wanted).await {
        Ok(found) => found,
        Err(refusal) => return Err(after_reading(request.into_body(), refusal).await),
    };
    let path = format!("/containers/{}{}", found.id, behind_id(request.uri()));
    pass::pass(&*everywhere.reach, &found.node, &path, request).await
}

async fn exec(State(everywhere): State<Everywhere>, Path(params): Path<Vec<String>>, request: Request) -> Result<Response, ApiError> {
    let id = params.first().map(String::as_str).unwrap_or_default();
    let node = match find::exec(&everywhere.backend, id).await {
        Ok(node) => node,
        Err(refusal) => return Err(after_reading(request.into_body(), refusal).await),
    };
    let path = format!("/exec/{id}{}", behind_id(request.uri()));
    pass::pass(&*everywhere.reach, &node, &path, request).await
}

/// What follows the object in a path, as it came: read once, by the node.
fn behind_id(uri: &Uri) -> &str {
    let path = uri.path();
    path.match_indices('/').nth(2).map_or("", |(at, _)| &path[at..])
}

#[cfg(test)]
mod tests;
