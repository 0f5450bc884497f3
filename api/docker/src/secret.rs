//! `/secrets`.

use crate::body::{Json, with_status};
use crate::query::Query;
use crate::types::common::Id;
use crate::types::secret::{Payload, SecretSpec};
use crate::{ApiError, Backend, Select, lookup};
use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::StatusCode;

pub(crate) fn routes() -> Router<Backend> {
    Router::new()
        .route("/secrets", get(list))
        .route("/secrets/create", post(create))
        .route("/secrets/{id}", get(inspect).delete(remove))
        .route("/secrets/{id}/update", post(update))
}

type Secret = Payload<SecretSpec>;

async fn list(State(backend): State<Backend>, query: Query) -> Result<Json<Vec<Secret>>, ApiError> {
    let filters = query.filters(&["id", "name", "names", "label"])?;
    let secrets = backend.cluster.list_secrets(&Select::default()).await?;
    let wanted = secrets.iter().filter(|secret| {
        let annotations = &secret.spec.annotations;
        filters.any_kind(&[("id", secret.id.as_str()), ("name", &annotations.name)], &[("names", &annotations.name)])
            && filters.labels("label", &annotations.labels)
    });
    Ok(Json(wanted.map(Secret::from).collect()))
}

async fn create(State(backend): State<Backend>, Json(spec): Json<SecretSpec>) -> Result<Response, ApiError> {
    let secret = backend.cluster.create_secret(spec.into()).await?;
    Ok(with_status(StatusCode::CREATED, &Id { id: secret.id.to_string() }))
}

async fn inspect(State(backend): State<Backend>, Path(id): Path<String>) -> Result<Json<Secret>, ApiError> {
    Ok(Json(Secret::from(&lookup::secret(&backend, &id).await?)))
}

async fn update(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    query: Query,
    Json(spec): Json<SecretSpec>,
) -> Result<(), ApiError> {
    let version = query.version("secret")?;
    let secret = lookup::secret(&backend, &id).await?;
    backend.cluster.update_secret(secret.id.as_str(), version, spec.into()).await
}

async fn remove(State(backend): State<Backend>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let secret = lookup::secret(&backend, &id).await?;
    backend.cluster.remove_secret(secret.id.as_str()).await?;
    Ok(StatusCode::NO_CONTENT)
}
