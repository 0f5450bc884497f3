//! `/configs`.

use crate::body::{Json, with_status};
use crate::query::Query;
use crate::types::common::Id;
use crate::types::secret::{ConfigSpec, Payload};
use crate::{ApiError, Backend, Select, lookup};
use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::StatusCode;

pub(crate) fn routes() -> Router<Backend> {
    Router::new()
        .route("/configs", get(list))
        .route("/configs/create", post(create))
        .route("/configs/{id}", get(inspect).delete(remove))
        .route("/configs/{id}/update", post(update))
}

type Config = Payload<ConfigSpec>;

async fn list(State(backend): State<Backend>, query: Query) -> Result<Json<Vec<Config>>, ApiError> {
    let filters = query.filters(&["id", "name", "label"])?;
    let configs = backend.cluster.list_configs(&Select::default()).await?;
    let wanted = configs.iter().filter(|config| {
        let annotations = &config.spec.annotations;
        filters.any_kind(&[("id", config.id.as_str()), ("name", &annotations.name)], &[]) && filters.labels("label", &annotations.labels)
    });
    Ok(Json(wanted.map(Config::from).collect()))
}

async fn create(State(backend): State<Backend>, Json(spec): Json<ConfigSpec>) -> Result<Response, ApiError> {
    let config = backend.cluster.create_config(spec.into()).await?;
    Ok(with_status(StatusCode::CREATED, &Id { id: config.id.to_string() }))
}

async fn inspect(State(backend): State<Backend>, Path(id): Path<String>) -> Result<Json<Config>, ApiError> {
    Ok(Json(Config::from(&lookup::config(&backend, &id).await?)))
}

async fn update(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    query: Query,
    Json(spec): Json<ConfigSpec>,
) -> Result<(), ApiError> {
    let version = query.version("config")?;
    let config = lookup::config(&backend, &id).await?;
    backend.cluster.update_config(config.id.as_str(), version, spec.into()).await
}

async fn remove(State(backend): State<Backend>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let config = lookup::config(&backend, &id).await?;
    backend.cluster.remove_config(config.id.as_str()).await?;
    Ok(StatusCode::NO_CONTENT)
}
