//! `/distribution/{name}/json`: what a registry says of an image.

use crate::body::Json;
use crate::image::auth;
use crate::{ApiError, Backend, ImagePlatform};
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use http::HeaderMap;
use serde_json::{Value, json};

pub(crate) fn routes() -> Router<Backend> {
    Router::new().route("/distribution/{*path}", get(inspect))
}

async fn inspect(State(backend): State<Backend>, Path(path): Path<String>, headers: HeaderMap) -> Result<Json<Value>, ApiError> {
    let name = path.strip_suffix("/json").ok_or_else(|| ApiError::not_found("page not found"))?;
    let found = backend.images.distribution(name, auth(&headers)).await?;
    // Names in lower case, unlike anywhere else.
    let descriptor = json!({ "mediaType": found.media_type, "digest": found.digest, "size": found.size });
    Ok(Json(json!({ "Descriptor": descriptor, "Platforms": found.platforms.iter().map(platform).collect::<Vec<_>>() })))
}

fn platform(one: &ImagePlatform) -> Value {
    let mut value = json!({ "architecture": one.architecture, "os": one.os });
    if !one.variant.is_empty() {
        value["variant"] = json!(one.variant);
    }
    value
}
