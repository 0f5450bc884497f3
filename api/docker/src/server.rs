//! Listeners and connections.

use crate::hijack::Sessions;
use crate::outside::{self, Gate};
use crate::{Connection, Front};
use axum::body::Body;
use http::Request;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
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

/// Where clients of this machine connect.
pub type Listener = UnixListener;

/// Where connections come from.
pub trait Incoming: Send {
    type Io: Connection + 'static;
    /// The next one, and who lets its requests in; `None` where all of them may. Cancel safe.
    fn next(&mut self) -> impl Future<Output = io::Result<(Self::Io, Option<Arc<dyn Gate>>)>> + Send;
}

impl Incoming for Listener {
    type Io = UnixStream;
    async fn next(&mut self) -> io::Result<(UnixStream, Option<Arc<dyn Gate>>)> {
        Ok((self.accept().await?.0, None))
    }
}

/// Serves until `stop`; requests under way are then answered or broken off within a second. One task per connection, owned here.
pub async fn serve(mut incoming: impl Incoming, front: Front, stop: CancellationToken) {
    let sessions = Sessions::new(stop.child_token());
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            Ok(place) = places.clone().acquire_owned() => place,
        };
        let (stream, gate) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = incoming.next() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection to the Docker API");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let (front, sessions, stop) = (front.clone(), sessions.clone(), stop.clone());
        connections.spawn(async move {
            match gate {
                None => connection(stream, front, None, sessions, stop).await,
                Some(gate) => guarded(stream, front, gate, stop).await,
            }
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
    connection(stream, front, None, sessions.clone(), stop).await;
    sessions.ended().await;
}

/// The same behind a gate, which can end everything at once. A stream that outlives its request keeps the connection's place.
async fn guarded(stream: impl Connection + 'static, front: Front, gate: Arc<dyn Gate>, stop: CancellationToken) {
    let watching = Arc::clone(&gate);
    let sessions = Sessions::new(stop.child_token());
    let serving = async {
        connection(stream, front, Some(gate), sessions.clone(), stop.clone()).await;
        sessions.ended().await;
    };
    let is_cut = tokio::select! {
        () = serving => false,
        () = watching.cut() => true,
    };
    if is_cut {
        sessions.cut().await;
    }
}

async fn connection<IO>(stream: IO, front: Front, gate: Option<Arc<dyn Gate>>, sessions: Sessions, stop: CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(sessions.clone());
        let (front, gate) = (front.clone(), gate.clone());
        async move {
            if let Some(gate) = gate {
                let named = outside::check(request.uri(), request.headers(), &gate.names());
                let admitted = match named {
                    Ok(()) => gate.admit().await,
                    Err(refusal) => Err(refusal),
                };
                if let Err(refusal) = admitted {
                    return Ok(front.refuse(refusal));
                }
            }
            Ok::<_, Infallible>(front.call(request.map(Body::new)).await)
        }
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
