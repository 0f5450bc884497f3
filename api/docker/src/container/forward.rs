//! `/containers/{id}/forward`: a connection into a task's container. Not Docker's: `swarmctl task port-forward` comes this way, through
//! tunnels, and nobody else.

use super::find;
use crate::hijack::Hijack;
use crate::query::Query;
use crate::stream::RAW;
use crate::tasks_only::TasksOnly;
use crate::{ApiError, Backend, Connection};
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::HeaderValue;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Once one side has said all, the other may be silent for so long: nobody tells us of a client that is gone.
const SILENCE: Duration = Duration::from_secs(300);
const PIECE: usize = 64 * 1024;

pub(super) async fn forward(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    if parts.extensions.get::<TasksOnly>().is_none() {
        return Err(ApiError::not_found("page not found"));
    }
    let hijack = Hijack::of(&mut parts);
    let port = query.number::<u16>("port")?.filter(|port| *port > 0);
    let port = port.ok_or_else(|| ApiError::invalid("invalid port: name one from 1 to 65535"))?;
    let container = find(&backend, &id).await?;
    let connection = backend.containers.dial(&container.id, port).await?;
    Ok(hijack.answer(HeaderValue::from_static(RAW), body, move |input, output| both_ways(connection, input, output)))
}

async fn both_ways(connection: Box<dyn Connection>, input: impl AsyncRead + Unpin, output: impl AsyncWrite + Unpin) {
    let (from, to) = tokio::io::split(connection);
    let is_half = AtomicBool::new(false);
    let (mut up, mut down) = (std::pin::pin!(carry(input, to, &is_half)), std::pin::pin!(carry(from, output, &is_half)));
    let (mut is_up, mut is_down) = (true, true);
    while is_up || is_down {
        tokio::select! {
            whole = &mut up, if is_up => if whole { is_up = false } else { return },
            whole = &mut down, if is_down => if whole { is_down = false } else { return },
        }
        is_half.store(true, Ordering::Relaxed);
    }
}

/// Whether it came to the end of what there was; else either side is gone.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, is_half: &AtomicBool) -> bool {
    let mut piece = vec![0; PIECE];
    loop {
        let read = match tokio::time::timeout(SILENCE, from.read(&mut piece)).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => return false,
            Err(_) if is_half.load(Ordering::Relaxed) => return false,
            Err(_) => continue,
        };
        if read == 0 {
            return to.shutdown().await.is_ok();
        }
        if to.write_all(&piece[..read]).await.is_err() || to.flush().await.is_err() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_say_all_they_have() {
        let (near, far) = tokio::io::duplex(100);
        let (client, theirs) = tokio::io::duplex(100);
        let (input, output) = tokio::io::split(theirs);
        let carrying = tokio::spawn(both_ways(Box::new(near), input, output));
        let (mut client_in, mut client_out) = tokio::io::split(client);
        let (mut far_in, mut far_out) = tokio::io::split(far);
        client_out.write_all(b"question").await.unwrap();
        client_out.shutdown().await.unwrap();
        let mut said = String::new();
        far_in.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "question");
        far_out.write_all(b"answer").await.unwrap();
        far_out.shutdown().await.unwrap();
        let mut said = String::new();
        client_in.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "answer");
        carrying.await.unwrap();
    }
}
