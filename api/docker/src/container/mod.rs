//! `/containers`: the containers of this node.

mod act; // start, stop, kill, pause, wait, remove
mod archive; // files out of them and into them
mod attach; // their output as it comes
mod change; // names, limits
mod create; // new ones
mod exec; // programs to be started in them
mod find; // which one is meant
mod forward; // connections into them
mod inspect; // everything about one
mod list; // all of them
mod logs; // their output so far
mod stats; // what they use
mod summary; // one in a list

pub(crate) use create::place;
pub(crate) use exec::window;
pub(crate) use find::find;
pub(crate) use list::Wanted;
pub(crate) use summary::summary;

use crate::{ApiError, Backend};
use axum::Router;
use axum::routing::{get, post};
use bytes::Bytes;

pub(crate) fn routes() -> Router<Backend> {
    Router::new()
        .route("/containers/json", get(list::list))
        .route("/containers/create", post(create::create))
        .route("/containers/prune", post(act::prune))
        .route("/containers/{id}", axum::routing::delete(act::remove))
        .route("/containers/{id}/json", get(inspect::inspect))
        .route("/containers/{id}/logs", get(logs::logs))
        .route("/containers/{id}/stats", get(stats::stats))
        .route("/containers/{id}/top", get(stats::top))
        .route("/containers/{id}/changes", get(archive::changes))
        .route("/containers/{id}/start", post(act::start))
        .route("/containers/{id}/stop", post(act::stop))
        .route("/containers/{id}/restart", post(act::restart))
        .route("/containers/{id}/kill", post(act::kill))
        .route("/containers/{id}/pause", post(act::pause))
        .route("/containers/{id}/unpause", post(act::unpause))
        .route("/containers/{id}/wait", post(act::wait))
        .route("/containers/{id}/resize", post(act::resize))
        .route("/containers/{id}/rename", post(change::rename))
        .route("/containers/{id}/update", post(change::update))
        .route("/containers/{id}/export", get(export))
        .route("/containers/{id}/attach", post(attach::attach))
        .route("/containers/{id}/forward", post(forward::forward))
        .route("/containers/{id}/attach/ws", get(websocket))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/containers/{id}/checkpoints", get(checkpoints).post(checkpoints))
        .route("/containers/{id}/archive", get(archive::get).head(archive::head).put(archive::put))
        .route("/commit", post(commit))
}

/// Counting would mean to look at every file of every container.
fn no_sizes(query: &crate::query::Query) -> Result<(), ApiError> {
    match query.is("size") {
        true => Err(ApiError::unimplemented("the sizes of containers are not counted; leave --size out")),
        false => Ok(()),
    }
}

// What is refused is read first: a client that still writes would see a broken connection and not the refusal.
async fn export() -> ApiError {
    ApiError::unimplemented("a container's files as a whole cannot be exported; copy what you need with `docker cp`")
}

async fn websocket() -> ApiError {
    ApiError::unimplemented("a container cannot be attached to by websocket; use POST /containers/{id}/attach")
}

async fn checkpoints(_: Bytes) -> ApiError {
    ApiError::unimplemented("this node makes no checkpoints of containers")
}

async fn commit(_: Bytes) -> ApiError {
    ApiError::unimplemented("this node makes no images; build and push one elsewhere")
}
