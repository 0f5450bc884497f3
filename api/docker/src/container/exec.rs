//! `/containers/{id}/exec`: a program to be started in a container.

use super::find;
use crate::body::{Json, with_status};
use crate::{ApiError, Backend, ExecWish, Phase, WindowSize};
use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Wish {
    user: String,
    privileged: bool,
    tty: bool,
    console_size: Option<[u32; 2]>,
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    detach_keys: String,
    env: Vec<String>,
    working_dir: String,
    cmd: Vec<String>,
}

/// Height and width, in this order.
pub(crate) fn window(size: Option<[u32; 2]>) -> Option<WindowSize> {
    size.map(|[height, width]| WindowSize { height, width }).filter(|window| window.height > 0 && window.width > 0)
}

pub(super) async fn create(State(backend): State<Backend>, Path(id): Path<String>, Json(wish): Json<Wish>) -> Result<Response, ApiError> {
    if wish.cmd.is_empty() {
        return Err(ApiError::invalid("No exec command specified"));
    }
    crate::talk::DetachKeys::parse(&wish.detach_keys)?;
    let container = find(&backend, &id).await?;
    match container.life.phase {
        Phase::Running => {}
        Phase::Paused => return Err(ApiError::conflict(format!("container {id} is paused, unpause the container before exec"))),
        _ => return Err(ApiError::conflict(format!("container {} is not running", container.id))),
    }
    let id = backend
        .containers
        .create_exec(ExecWish {
            container: container.id,
            command: wish.cmd,
            env: wish.env,
            user: wish.user,
            dir: wish.working_dir,
            has_stdin: wish.attach_stdin,
            has_stdout: wish.attach_stdout,
            has_stderr: wish.attach_stderr,
            has_terminal: wish.tty,
            is_privileged: wish.privileged,
            detach_keys: wish.detach_keys,
            window: window(wish.console_size),
        })
        .await?;
    Ok(with_status(StatusCode::CREATED, &json!({ "Id": id })))
}
