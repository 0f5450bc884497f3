//! Listeners and connections.

use crate::hijack::Sessions;
use crate::{Connection, Front};
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections at a time; more wait in the kernel's queue. Each may follow logs for ever.
const CONNECTIONS: usize = 1024;
/// A client that connected says what it wants within this time.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Requests under way get this long when the daemon stops.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Before the next try when the process has no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// Where clients connect.
pub type Listener = UnixListener;

/// Serves until `stop`; requests under way are then answered or broken off within a second. One task per connection, owned here.
pub async fn serve(listener: Listener, front: Front, stop: CancellationToken) {
    let sessions = Sessions::new(stop.child_token());
    let places = std::sync::Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            Ok(place) = places.clone().acquire_owned() => place,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection to the Docker API");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let (front, sessions, stop) = (front.clone(), sessions.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, front, sessions, stop).await;
            drop(place);
        });
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_ANSWERS, ended).await;
    connections.shutdown().await;
    sessions.ended().await;
}

/// Answers on one connection that came by another way, until its end or `stop`, streams included.
pub async fn answer(stream: impl Connection + 'static, front: Front, stop: CancellationToken) {
    let sessions = Sessions::new(stop.child_token());
    connection(stream, front, sessions.clone(), stop).await;
    sessions.ended().await;
}

async fn connection<IO>(stream: IO, front: Front, sessions: Sessions, stop: CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(sessions.clone());
        let front = front.clone();
        async move { Ok::<_, Infallible>(front.call(request.map(Body::new)).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    // Some clients look for names as Go writes them.
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).title_case_headers(true);
    let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection to the Docker API broke off");
    }
}
