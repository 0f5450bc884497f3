//! `/volumes`: the volumes of this node.

use crate::body::{Json, OptionalJson, with_status};
use crate::query::Query;
use crate::types::common::Time;
use crate::{ApiError, Backend, Volume};
use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use skep_types::Labels;

pub(crate) fn routes() -> Router<Backend> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove).put(update))
}

const FILTERS: [&str; 4] = ["dangling", "driver", "label", "name"];

pub(crate) fn json(volume: &Volume, size: Option<u64>) -> Value {
    let mut value = json!({
        // Without a fraction, as dockerd.
        "CreatedAt": Time::from(skep_types::Timestamp::from_secs(volume.created_at.parts().0)).text(),
        "Driver": "local",
        "Labels": if volume.labels.is_empty() { Value::Null } else { json!(volume.labels) },
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": if volume.options.is_empty() { Value::Null } else { json!(volume.options) },
        "Scope": "local",
    });
    if let Some(size) = size {
        value["UsageData"] = json!({ "Size": size, "RefCount": volume.users.len() });
    }
    value
}

async fn list(State(backend): State<Backend>, query: Query) -> Result<Json<Value>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let dangling = filters.flag("dangling")?;
    let all = backend.volumes.list().await?;
    let found = all.iter().filter(|volume| {
        filters.any("name", |part| volume.name.contains(part))
            && filters.is("driver", "local")
            && filters.labels("label", &volume.labels)
            && dangling.is_none_or(|wanted| wanted == volume.users.is_empty())
    });
    Ok(Json(json!({ "Volumes": found.map(|volume| json(volume, None)).collect::<Vec<_>>(), "Warnings": null })))
}

async fn find(backend: &Backend, name: &str) -> Result<Volume, ApiError> {
    let all = backend.volumes.list().await?;
    all.into_iter().find(|volume| volume.name == name).ok_or_else(|| ApiError::not_found(format!("get {name}: no such volume")))
}

async fn inspect(State(backend): State<Backend>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json(&find(&backend, &name).await?, None)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wish {
    name: String,
    driver: String,
    driver_opts: Labels,
    labels: Labels,
    cluster_volume_spec: Option<Value>,
}

async fn create(State(backend): State<Backend>, OptionalJson(wish): OptionalJson<Wish>) -> Result<Response, ApiError> {
    if wish.cluster_volume_spec.is_some() {
        return Err(ApiError::unimplemented("there are no cluster volumes (CSI); make a local one, or bind-mount a shared directory"));
    }
    if !matches!(wish.driver.as_str(), "" | "local") {
        let driver = &wish.driver;
        return Err(ApiError::not_found(format!("error looking up volume plugin {driver}: plugin \"{driver}\" not found")));
    }
    let made = backend.volumes.create(&wish.name, wish.labels, wish.driver_opts).await?;
    Ok(with_status(StatusCode::CREATED, &json(&made, None)))
}

async fn remove(State(backend): State<Backend>, Path(name): Path<String>, query: Query) -> Result<StatusCode, ApiError> {
    match backend.volumes.remove(&name).await {
        Err(error) if error.is_not_found() && query.is("force") => Ok(StatusCode::NO_CONTENT),
        other => other.map(|()| StatusCode::NO_CONTENT),
    }
}

async fn update() -> ApiError {
    ApiError::unimplemented("only cluster volumes (CSI) can be updated, and there are none")
}

/// Those that nobody uses: only nameless ones, unless all are asked for.
async fn prune(State(backend): State<Backend>, query: Query) -> Result<Json<Value>, ApiError> {
    let filters = query.filters(&["all", "label", "label!"])?;
    let all = filters.flag("all")?.unwrap_or(false);
    let (mut removed, mut bytes) = (Vec::new(), 0);
    for volume in backend.volumes.list().await? {
        let is_kept = !volume.users.is_empty()
            || !(all || volume.is_anonymous)
            || !filters.labels("label", &volume.labels)
            || (filters.has("label!") && filters.labels("label!", &volume.labels));
        if is_kept {
            continue;
        }
        let size = backend.volumes.size(&volume.name).await.unwrap_or(0);
        match backend.volumes.remove(&volume.name).await {
            Ok(()) => {
                bytes += size;
                removed.push(volume.name);
            }
            // Taken by somebody meanwhile, or gone.
            Err(error) => tracing::debug!(volume = volume.name, %error, "a volume is not pruned"),
        }
    }
    let removed = if removed.is_empty() { Value::Null } else { json!(removed) };
    Ok(Json(json!({ "VolumesDeleted": removed, "SpaceReclaimed": bytes })))
}
