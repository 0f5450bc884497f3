//! What is done to a container by hand. Its service sees that it ended, and acts as it is told to.

use super::find;
use crate::body::Json;
use crate::query::Query;
use crate::{ApiError, Backend, Container, Ending, Patience, Phase, WaitFor, WindowSize, when};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;

fn ending(query: &Query) -> Result<Ending, ApiError> {
    let patience = query.number::<i64>("t")?.map(|seconds| match u64::try_from(seconds) {
        Ok(seconds) => Patience::For(Duration::from_secs(seconds)),
        Err(_) => Patience::Forever,
    });
    Ok(Ending { signal: query.text("signal").map(str::to_owned), patience })
}

fn is_alive(container: &Container) -> bool {
    matches!(container.life.phase, Phase::Running | Phase::Paused)
}

pub(super) async fn start(State(backend): State<Backend>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let container = find(&backend, &id).await?;
    if is_alive(&container) {
        return Ok(StatusCode::NOT_MODIFIED);
    }
    backend.containers.start(&container.id).await.map(|()| StatusCode::NO_CONTENT)
}

pub(super) async fn stop(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<StatusCode, ApiError> {
    let ending = ending(&query)?;
    let container = find(&backend, &id).await?;
    if !is_alive(&container) && container.life.phase != Phase::Restarting {
        return Ok(StatusCode::NOT_MODIFIED);
    }
    backend.containers.stop(&container.id, ending).await.map(|()| StatusCode::NO_CONTENT)
}

pub(super) async fn restart(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<StatusCode, ApiError> {
    let ending = ending(&query)?;
    let container = find(&backend, &id).await?;
    backend.containers.restart(&container.id, ending).await.map(|()| StatusCode::NO_CONTENT)
}

pub(super) async fn kill(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<StatusCode, ApiError> {
    let container = find(&backend, &id).await?;
    if !is_alive(&container) {
        return Err(ApiError::conflict(format!("cannot kill container: {id}: container {} is not running", container.id)));
    }
    backend.containers.kill(&container.id, query.text("signal").unwrap_or("KILL")).await.map(|()| StatusCode::NO_CONTENT)
}

pub(super) async fn pause(State(backend): State<Backend>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let container = find(&backend, &id).await?;
    backend.containers.pause(&container.id).await.map(|()| StatusCode::NO_CONTENT)
}

pub(super) async fn unpause(State(backend): State<Backend>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let container = find(&backend, &id).await?;
    backend.containers.unpause(&container.id).await.map(|()| StatusCode::NO_CONTENT)
}

pub(super) fn window(query: &Query) -> Result<WindowSize, ApiError> {
    let size = |name| query.number::<u32>(name)?.ok_or_else(|| ApiError::invalid(format!("invalid resize {name}: it is missing")));
    Ok(WindowSize { height: size("h")?, width: size("w")? })
}

pub(super) async fn resize(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<StatusCode, ApiError> {
    let window = window(&query)?;
    let container = find(&backend, &id).await?;
    backend.containers.resize(&container.id, window).await.map(|()| StatusCode::OK)
}

/// Status and headers at once, the exit code when there is one.
pub(super) async fn wait(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<Response, ApiError> {
    let until = match query.text("condition") {
        None | Some("not-running") => WaitFor::NotRunning,
        Some("next-exit") => WaitFor::NextExit,
        Some("removed") => WaitFor::Removed,
        Some(odd) => return Err(ApiError::invalid(format!("invalid condition: {odd:?}"))),
    };
    let container = find(&backend, &id).await?;
    // From here on: a client starts it once it has the headers.
    let waiting = backend.containers.wait(&container.id, until).await?;
    let answer = futures_util::stream::once(async move {
        let value = match waiting.await {
            Ok(code) => json!({ "StatusCode": code }),
            Err(error) => json!({ "StatusCode": -1, "Error": { "Message": error.message } }),
        };
        Ok::<_, Infallible>(Bytes::from(format!("{value}\n")))
    });
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], Body::from_stream(answer)).into_response())
}

pub(super) async fn remove(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<StatusCode, ApiError> {
    if query.is("link") {
        return Err(ApiError::unimplemented("containers of this node have no links"));
    }
    let container = find(&backend, &id).await?;
    let (force, phase) = (query.is("force"), container.life.phase);
    if is_alive(&container) && !force {
        let (word, cure) = match phase {
            Phase::Paused => ("paused", "unpause and then stop the container before removing or force remove"),
            _ => ("running", "stop the container before removing or force remove"),
        };
        return Err(ApiError::conflict(format!("cannot remove container \"/{}\": container is {word}: {cure}", container.name)));
    }
    backend.containers.remove(&container.id, query.is("v")).await.map(|()| StatusCode::NO_CONTENT)
}

/// Those of tasks are the cluster's to remove, as with dockerd: it keeps them for the history of their services.
pub(super) async fn prune(State(backend): State<Backend>, query: Query) -> Result<Json<Value>, ApiError> {
    let filters = query.filters(&["label", "label!", "until"])?;
    let before = match filters.values("until") {
        [] => None,
        [text] => Some(when::moment(text, when::now())?),
        _ => return Err(ApiError::invalid("more than one until filter specified")),
    };
    let is_wanted = |one: &Container| {
        !one.is_task
            && matches!(one.life.phase, Phase::Created | Phase::Exited | Phase::Dead)
            && filters.labels("label", &one.labels)
            && (!filters.has("label!") || !filters.labels("label!", &one.labels))
            && before.is_none_or(|before| one.created_at <= before)
    };
    let mut deleted = Vec::new();
    for one in backend.containers.list().await?.into_iter().filter(is_wanted) {
        match backend.containers.remove(&one.id, false).await {
            Ok(()) => deleted.push(one.id),
            Err(error) => tracing::debug!(container = one.id, %error, "a container is not pruned"),
        }
    }
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    // What they took is not counted: it would mean to look at every file.
    Ok(Json(json!({ "ContainersDeleted": deleted, "SpaceReclaimed": 0 })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_in_seconds_and_negative_for_ever() {
        let patience = |text: &str| ending(&Query::parse(text)).unwrap();
        assert_eq!(patience(""), Ending::default());
        assert_eq!(patience("t=0").patience, Some(Patience::For(Duration::ZERO)));
        assert_eq!(patience("t=-1&signal=INT"), Ending { signal: Some("INT".into()), patience: Some(Patience::Forever) });
        assert!(ending(&Query::parse("t=x")).is_err());
        assert!(window(&Query::parse("h=5")).is_err());
        assert_eq!(window(&Query::parse("h=5&w=7")).unwrap(), WindowSize { height: 5, width: 7 });
    }
}
