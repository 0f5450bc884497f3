//! `/_ping`, `/version`, `/info`, `/auth`, and what this daemon has none of.

use crate::body::Json;
use crate::types::system::{AuthAnswer, AuthRequest, Component, Platform, Version};
use crate::{ApiError, ApiVersion, Backend, LocalState, Login, NodeFacts, info};
use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http::{HeaderName, HeaderValue, Method, header};
use serde::Serialize;
use skep_types::{Labels, NodeRole, Sensitive};

pub(crate) fn routes() -> Router<Backend> {
    Router::new()
        .route("/_ping", get(ping).head(ping))
        .route("/version", get(version))
        .route("/info", get(info::info))
        .route("/auth", post(auth))
        .route("/plugins", get(plugins))
        .route("/plugins/{name}/json", get(plugin))
        .route("/build", post(build))
        .route("/build/cancel", post(build))
        .route("/build/prune", post(prune_builds))
        .route("/session", post(build))
        .route("/grpc", post(build))
}

async fn ping(State(backend): State<Backend>, method: Method) -> Response {
    let state = backend.node.swarm().await;
    let role = match (state.local, state.role) {
        (LocalState::Active, Some(NodeRole::Manager)) => "/manager",
        (LocalState::Active, Some(NodeRole::Worker)) => "/worker",
        _ => "",
    };
    let swarm = HeaderValue::from_str(&format!("{}{role}", state.local.name()));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate")),
        (header::PRAGMA, HeaderValue::from_static("no-cache")),
        // There is no builder; 1 keeps clients from opening a session for one first.
        (HeaderName::from_static("builder-version"), HeaderValue::from_static("1")),
        (HeaderName::from_static("swarm"), swarm.unwrap_or_else(|_| HeaderValue::from_static("error"))),
    ];
    let body = if method == Method::HEAD { "" } else { "OK" };
    (headers, body).into_response()
}

/// As Go names architectures.
pub(crate) fn go_architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" | "armv6l" => "arm",
        "i386" | "i686" => "386",
        other => other,
    }
}

async fn version(State(backend): State<Backend>) -> Result<Json<Version>, ApiError> {
    let facts = backend.node.facts().await?;
    Ok(Json(versions(&facts, backend.node.engine_version())))
}

fn versions(facts: &NodeFacts, engine: &str) -> Version {
    let arch = go_architecture(&facts.description.platform.architecture).to_owned();
    let details = [
        ("ApiVersion", ApiVersion::MAX.to_string()),
        ("Arch", arch.clone()),
        ("Experimental", "false".into()),
        ("KernelVersion", facts.kernel_version.clone()),
        ("MinAPIVersion", ApiVersion::MIN.to_string()),
        ("Os", "linux".into()),
    ];
    let details = details.map(|(name, value)| (name.to_owned(), value)).into();
    let mut components = vec![Component { name: "Engine".into(), version: engine.into(), details }];
    let known = facts.containerd.iter().map(|containerd| ("containerd", containerd.version.clone()));
    let known = known.chain(facts.runc.iter().map(|version| ("runc", version.clone())));
    components.extend(known.map(|(name, version)| Component { name: name.into(), version, details: Labels::new() }));
    Version {
        platform: Platform { name: "Skep".into() },
        components,
        version: engine.into(),
        api_version: ApiVersion::MAX.to_string(),
        min_api_version: ApiVersion::MIN.to_string(),
        git_commit: String::new(),
        go_version: String::new(),
        os: "linux",
        arch,
        kernel_version: facts.kernel_version.clone(),
        build_time: String::new(),
    }
}

/// Asks the registry whether it takes the credentials; nothing is kept here.
async fn auth(State(backend): State<Backend>, Json(request): Json<AuthRequest>) -> Result<Json<AuthAnswer>, ApiError> {
    let AuthRequest { username, password, auth, serveraddress, identitytoken, registrytoken } = request;
    if !identitytoken.is_empty() || !registrytoken.is_empty() || (username.is_empty() && !auth.is_empty()) {
        return Err(ApiError::unimplemented(
            "only user name and password are checked; tokens are used as they are when something is pulled",
        ));
    }
    backend.node.check_login(Login { username, password: Sensitive(password), server: serveraddress }).await?;
    Ok(Json(AuthAnswer { status: "Login Succeeded", identity_token: String::new() }))
}

async fn plugins() -> Json<[(); 0]> {
    Json([])
}

async fn plugin(Path(name): Path<String>) -> ApiError {
    ApiError::not_found(format!("plugin {name:?} not found"))
}

async fn build() -> ApiError {
    ApiError::unimplemented("this daemon runs images and does not build any; build elsewhere and push, or `docker load` the result")
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BuildsPruned {
    caches_deleted: Option<()>,
    space_reclaimed: u64,
}

/// There are none to remove.
async fn prune_builds() -> Json<BuildsPruned> {
    Json(BuildsPruned { caches_deleted: None, space_reclaimed: 0 })
}
