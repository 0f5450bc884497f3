//! Serving gRPC on TLS connections: what each request is told about its connection, and the server's limits.

mod at_once; // calls that need not wait
mod calls; // from connections to routes
mod calm; // frames that carry nothing
mod crowd; // a runtime for agents
mod deadline; // how long callers wait
mod flood; // connections that HTTP/2 ended
mod unreadable; // messages that are none

pub use self::crowd::Crowd;

use self::at_once::AtOnce;
use self::calls::Calls;
use self::calm::Calm;
use self::flood::Culprit;
use crate::authorize::ConnectionInfo;
use crate::drive::chain;
use hyper::server::conn::http2::{self, Builder};
use hyper_util::rt::{TokioIo, TokioTimer};
use skep_ca::TlsIncoming;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Routes;

/// Agents that vanished without a word are noticed by this ping, long after their heartbeat was missed.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls that one connection may have open: three streams per agent, and what a client does at once.
const STREAMS_PER_CONNECTION: u32 = 256;
/// What one call may have sent before it is read.
pub(crate) const CALL_WINDOW: u32 = 128 << 10;
/// All calls of a connection together: as much as each may, so that a call nobody reads (lines for a client that went to
/// lunch) holds up no other, such as the heartbeats beside it.
pub(crate) const CONNECTION_WINDOW: u32 = STREAMS_PER_CONNECTION * CALL_WINDOW;
/// After `stop`, calls under way get this long; streams are ended by the manager itself.
const DRAIN: Duration = Duration::from_secs(5);

/// The address of the other end, where there is one.
pub trait RemoteAddr {
    fn remote_addr(&self) -> Option<SocketAddr>;
}

impl RemoteAddr for TcpStream {
    fn remote_addr(&self) -> Option<SocketAddr> {
        self.peer_addr().ok()
    }
}

impl RemoteAddr for UnixStream {
    fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }
}

/// Why a server ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("no more connections are accepted: the task that accepts them ended; restart the daemon")]
    NothingAccepts,
}

/// Serves `routes` on every connection of `incoming` until `stop`, then accepts no more and lets calls end for a while. Dropping the
/// future closes all connections at once.
///
/// # Errors
/// If connections cannot be accepted any more; a single bad connection is none.
pub async fn serve<IO>(incoming: TlsIncoming<IO>, routes: Routes, stop: CancellationToken) -> Result<(), ServeError>
where
    IO: AsyncRead + AsyncWrite + RemoteAddr + Unpin + Send + 'static,
{
    serve_beside(incoming, routes, stop, Handle::current()).await
}

/// The same, with what concerns agents done by another runtime: when thousands of them come at once, the managers' calls to each
/// other and what clients ask for do not wait in one queue with them.
///
/// # Errors
/// As [`serve`].
pub async fn serve_beside<IO>(
    mut incoming: TlsIncoming<IO>,
    routes: Routes,
    stop: CancellationToken,
    crowd: Handle,
) -> Result<(), ServeError>
where
    IO: AsyncRead + AsyncWrite + RemoteAddr + Unpin + Send + 'static,
{
    let (http, routes, manners) = (http(), routes.prepare(), incoming.manners());
    let mut conversations = JoinSet::new();
    let outcome = loop {
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            connection = incoming.next() => match connection {
                Some(connection) => {
                    let info = ConnectionInfo { peer: connection.peer().cloned(), addr: connection.io().remote_addr() };
                    // Managers also pass on what agents of theirs want.
                    let is_manager = info.peer.as_ref().is_some_and(|peer| peer.is_manager());
                    let calls = Calls { routes: routes.clone(), connection: info, crowd: is_manager.then(|| crowd.clone()) };
                    let culprit = Culprit::new(&manners, &calls.connection);
                    let conversation = Conversation::new(&http, connection, calls, culprit, &stop);
                    if is_manager { conversations.spawn(conversation) } else { conversations.spawn_on(conversation, &crowd) };
                }
                None => break Err(ServeError::NothingAccepts),
            },
            // Nobody needs to know how it ended; its place is given back.
            Some(_) = conversations.join_next() => {}
        }
    };
    // The port is closed before calls are waited for: who connects now is refused and goes elsewhere.
    drop(incoming);
    let drained = async { while conversations.join_next().await.is_some() {} };
    if outcome.is_ok() && tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::debug!(after = ?DRAIN, "calls under way were cut off");
    }
    outcome
}

/// One connection, until the other end closes it, or `stop` and the last call has ended. Written by hand because a manager has
/// thousands of them: an `async fn` keeps room for what it was given beside what it made of that.
struct Conversation<IO: AsyncRead + AsyncWrite + Unpin> {
    http: http2::Connection<TokioIo<Calm<IO>>, Calls, AtOnce>,
    /// Who is told on if the connection has to be ended for a flood.
    culprit: Culprit,
    /// `None` after the stop.
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl<IO> Conversation<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn new(http: &Builder<AtOnce>, connection: IO, calls: Calls, culprit: Culprit, stop: &CancellationToken) -> Self {
        let http = http.serve_connection(TokioIo::new(Calm::new(connection)), calls);
        Self { http, culprit, stop: Some(Box::pin(stop.clone().cancelled_owned())) }
    }
}

impl<IO> Future for Conversation<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let Some(stop) = &mut this.stop
            && stop.as_mut().poll(context).is_ready()
        {
            this.stop = None;
            Pin::new(&mut this.http).graceful_shutdown();
        }
        Pin::new(&mut this.http).poll(context).map(|outcome| {
            if let Err(error) = outcome {
                tracing::debug!(error = chain(&error), "a connection ended badly");
                this.culprit.judge(&error);
            }
        })
    }
}

fn http() -> Builder<AtOnce> {
    let mut http = Builder::new(AtOnce);
    http.timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // No peer asks for it: gRPC knows no dates.
        .auto_date_header(false);
    http
}

#[cfg(test)]
mod tests;
