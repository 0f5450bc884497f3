//! `/containers/{id}/attach`: the output of a container as it comes.

use super::find;
use crate::hijack::Hijack;
use crate::query::Query;
use crate::stream::content_type;
use crate::talk::{DetachKeys, talk};
use crate::{ApiError, ApiVersion, AttachWish, Attached, Backend, Chunk, ContainerLine, LinesWanted, Phase};
use axum::extract::{Path, Request, State};
use axum::response::Response;
use futures_util::StreamExt as _;

/// What a task's container writes is read from its log: nothing is lost, whoever else is attached. Nobody can type into it. Into others
/// people can, and what they write comes byte by byte.
pub(super) async fn attach(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    version: ApiVersion,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let hijack = Hijack::of(&mut parts);
    let keys = DetachKeys::parse(query.text("detachKeys").unwrap_or_default())?;
    let container = find(&backend, &id).await?;
    if container.life.phase == Phase::Paused {
        return Err(ApiError::conflict(format!("container {id} is paused, unpause the container before attach")));
    }
    if container.is_task && query.is("stdin") && container.spec.open_stdin {
        return Err(ApiError::unimplemented(
            "nobody can type into a task's container; attach with --no-stdin, or run a program in it with `docker exec -i`",
        ));
    }
    let (logs, follow) = (query.is("logs"), query.is("stream"));
    let mut input = None;
    if follow && !container.is_task {
        let wish = AttachWish { stdin: query.is("stdin"), stdout: query.is("stdout"), stderr: query.is("stderr") };
        let attached = backend.containers.attach(&container.id, wish).await?;
        if let Some(attached) = attached {
            let content_type = content_type(version, attached.has_terminal);
            if !logs {
                return Ok(hijack.answer(content_type, body, move |input, output| talk(attached, keys, input, output)));
            }
            // With what it said before, in one piece from its log; what is typed goes the same way.
            input = attached.input;
        }
    }
    let wanted = LinesWanted {
        stdout: query.is("stdout"),
        stderr: query.is("stderr"),
        since: None,
        tail: if logs { None } else { Some(0) },
        follow,
    };
    let lines = backend.containers.logs(&container.id, wanted).await?;
    let has_terminal = container.spec.tty;
    Ok(hijack.answer(content_type(version, has_terminal), body, move |typed, output| {
        let chunks = |line: ContainerLine| Chunk { stream: line.stream, data: line.data };
        let written = lines.flat_map(move |batch| futures_util::stream::iter(batch.into_iter().map(chunks)));
        talk(Attached { input, output: written.boxed(), has_terminal }, keys, typed, output)
    }))
}
