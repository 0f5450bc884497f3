//! `/exec`: programs started in containers.

use crate::body::{Json, OptionalJson};
use crate::container::window;
use crate::hijack::Hijack;
use crate::query::Query;
use crate::stream::content_type;
use crate::talk::{DetachKeys, refuse, talk};
use crate::{ApiError, ApiVersion, Backend, WindowSize};
use axum::Router;
use axum::extract::{FromRequest as _, Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

pub(crate) fn routes() -> Router<Backend> {
    Router::new().route("/exec/{id}/start", post(start)).route("/exec/{id}/json", get(inspect)).route("/exec/{id}/resize", post(resize))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Start {
    detach: bool,
    /// Repeats what it was made with, which counts.
    tty: bool,
    console_size: Option<[u32; 2]>,
}

async fn start(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    version: ApiVersion,
    request: Request,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let hijack = Hijack::of(&mut parts);
    let OptionalJson(wish) = OptionalJson::<Start>::from_request(Request::from_parts(parts, body), &()).await?;
    let exec = backend.containers.exec(&id).await?;
    if wish.tty && !exec.wish.has_terminal {
        return Err(ApiError::invalid(format!("exec {id} was made without a terminal")));
    }
    let keys = DetachKeys::parse(&exec.wish.detach_keys)?;
    let size = window(wish.console_size).or(exec.wish.window);
    if wish.detach {
        backend.containers.start_exec(&id, true, size).await?;
        return Ok(StatusCode::OK.into_response());
    }
    if exec.is_running || exec.exit_code.is_some() {
        return Err(ApiError::conflict(format!("Error: Exec command {id} is already running")));
    }
    let content_type = content_type(version, exec.wish.has_terminal);
    // Started after the answer, as by dockerd: some clients (docker-py) lose what comes in one piece with its head.
    let session = move |input, output| async move {
        match backend.containers.start_exec(&id, false, size).await {
            Ok(attached) => talk(attached, keys, input, output).await,
            Err(error) => refuse(exec.wish.has_terminal, &error, output).await,
        }
    };
    // Without an upgrade the connection is the client's only for reading: its body was the wish.
    Ok(hijack.answer(content_type, axum::body::Body::empty(), session))
}

async fn inspect(State(backend): State<Backend>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let exec = backend.containers.exec(&id).await?;
    let wish = &exec.wish;
    let mut process = json!({
        "tty": wish.has_terminal,
        "entrypoint": wish.command.first().map(String::as_str).unwrap_or_default(),
        "arguments": wish.command.get(1..).unwrap_or_default(),
        "privileged": wish.is_privileged,
    });
    if !wish.user.is_empty() {
        process["user"] = json!(wish.user);
    }
    Ok(Json(json!({
        "ID": exec.id,
        "Running": exec.is_running,
        "ExitCode": exec.exit_code,
        "ProcessConfig": process,
        "OpenStdin": wish.has_stdin,
        "OpenStderr": wish.has_stderr,
        "OpenStdout": wish.has_stdout,
        "CanRemove": exec.exit_code.is_some(),
        "ContainerID": wish.container,
        "DetachKeys": "",
        "Pid": exec.pid,
    })))
}

async fn resize(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<StatusCode, ApiError> {
    let size = |name| query.number::<u32>(name)?.ok_or_else(|| ApiError::invalid(format!("invalid resize {name}: it is missing")));
    let window = WindowSize { height: size("h")?, width: size("w")? };
    backend.containers.resize_exec(&id, window).await.map(|()| StatusCode::OK)
}
