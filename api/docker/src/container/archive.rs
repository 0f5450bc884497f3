//! `/containers/{id}/archive` and `/containers/{id}/changes`: the files of a container.

use super::find;
use crate::body::Json;
use crate::query::Query;
use crate::types::common::Time;
use crate::{ApiError, Backend, FileFacts};
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use std::io;

const STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

fn path(query: &Query) -> Result<&str, ApiError> {
    query.text("path").ok_or_else(|| ApiError::invalid("missing path in query"))
}

fn stat(facts: &FileFacts) -> HeaderValue {
    let text = json!({
        "name": facts.name,
        "size": facts.size,
        "mode": facts.mode,
        "mtime": Time::from(facts.modified).text(),
        "linkTarget": facts.link_target,
    });
    HeaderValue::from_str(&STANDARD.encode(text.to_string())).unwrap_or_else(|_| HeaderValue::from_static(""))
}

pub(super) async fn head(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<Response, ApiError> {
    let path = path(&query)?;
    let container = find(&backend, &id).await?;
    let facts = backend.containers.file(&container.id, path).await?;
    Ok(([(STAT, stat(&facts)), (header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], Body::empty()).into_response())
}

pub(super) async fn get(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<Response, ApiError> {
    let path = path(&query)?;
    let container = find(&backend, &id).await?;
    let (facts, archive) = backend.containers.read_archive(&container.id, path).await?;
    // An archive that breaks off breaks the connection: that is how the client sees that it is not whole.
    Ok(([(STAT, stat(&facts)), (header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"))], Body::from_stream(archive))
        .into_response())
}

pub(super) async fn put(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    query: Query,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let path = path(&query)?.to_owned();
    let container = find(&backend, &id).await?;
    if query.is("copyUIDGID") && !container.spec.user.is_empty() {
        return Err(ApiError::unimplemented(
            "files cannot be given to the user of the container on the way; leave --archive out and chown them",
        ));
    }
    let archive = request.into_body().into_data_stream().map(|piece| piece.map_err(io::Error::other)).boxed();
    backend.containers.write_archive(&container.id, &path, query.strict("noOverwriteDirNonDir")?, archive).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn changes(State(backend): State<Backend>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let container = find(&backend, &id).await?;
    let changes = backend.containers.changes(&container.id).await?;
    if changes.is_empty() {
        return Ok(Json(Value::Null));
    }
    Ok(Json(changes.iter().map(|change| json!({ "Path": change.path, "Kind": change.kind as u8 })).collect()))
}
