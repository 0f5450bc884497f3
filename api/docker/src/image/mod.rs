//! `/images`: the images of this node. Names may have slashes, so that the last part of a path says what is asked for.

mod find; // which one is meant
mod inspect; // one, a list of all, history
mod out; // into an archive, to a registry
mod pull; // from a registry, out of an archive
mod remove; // names and images

pub(crate) use find::{familiar, find};
pub(crate) use inspect::summary;
pub(crate) use pull::check_platform;

use crate::query::Query;
use crate::{ApiError, Backend};
use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};

pub(crate) fn routes() -> Router<Backend> {
    Router::new()
        .route("/images/json", get(inspect::list))
        .route("/images/create", post(pull::create))
        .route("/images/load", post(pull::load))
        .route("/images/get", get(save_some))
        .route("/images/search", get(search))
        .route("/images/prune", post(remove::prune))
        .route("/images/{*path}", get(look).post(change).delete(remove::remove))
}

/// The header with a client's credentials, as it came.
pub(crate) fn auth(headers: &HeaderMap) -> &str {
    headers.get("x-registry-auth").and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn unknown() -> ApiError {
    ApiError::not_found("page not found")
}

async fn look(State(backend): State<Backend>, Path(path): Path<String>, query: Query) -> Result<Response, ApiError> {
    match path.rsplit_once('/') {
        Some((name, "json")) => Ok(inspect::inspect(&backend, name, &query).await?.into_response()),
        Some((name, "history")) => Ok(inspect::history(&backend, name).await?.into_response()),
        Some((name, "get")) => out::save(&backend, Some(name), &query).await,
        _ => Err(unknown()),
    }
}

async fn change(State(backend): State<Backend>, Path(path): Path<String>, query: Query, headers: HeaderMap) -> Result<Response, ApiError> {
    match path.rsplit_once('/') {
        Some((name, "tag")) => tag(&backend, name, &query).await.map(IntoResponse::into_response),
        Some((name, "push")) => out::push(&backend, name, &query, &headers).await,
        _ => Err(unknown()),
    }
}

async fn tag(backend: &Backend, name: &str, query: &Query) -> Result<StatusCode, ApiError> {
    let repository = query.text("repo").ok_or_else(|| ApiError::invalid("repository name must have at least one component"))?;
    let reference = match query.text("tag") {
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    };
    let image = find(backend, name).await?;
    let known = image.tags.first().or(image.digests.first()).ok_or_else(|| ApiError::not_found(format!("No such image: {name}")))?;
    backend.images.tag(known, &reference).await.map(|()| StatusCode::CREATED)
}

async fn save_some(State(backend): State<Backend>, query: Query) -> Result<Response, ApiError> {
    out::save(&backend, None, &query).await
}

async fn search() -> ApiError {
    ApiError::unimplemented("this node does not search registries")
}
