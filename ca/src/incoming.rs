//! A listener that shakes hands.

use crate::accept::{AcceptError, Acceptor, Door, TlsConnection};
use futures_util::Stream;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

/// Handshakes under way at once. When all places are taken nothing more is accepted: a burst of joining nodes waits in the
/// kernel's queue instead of being turned away.
const MAX_HALF_OPEN: usize = 1024;
/// Of these, for one address that is not this machine: one idler cannot take every place.
const MAX_HALF_OPEN_PER_SOURCE: usize = 256;
/// Finished connections nobody has taken yet; when full, the handshake tasks wait and keep their places.
const READY: usize = 64;
/// After a failed accept (usually: no file descriptors left) there is no use in asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket whose connections can be shaken hands with.
pub trait Listener: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next connection and where it comes from (`None` for Unix sockets). Cancel safe.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Io, Option<SocketAddr>)>> + Send;
}

impl Listener for TcpListener {
    type Io = TcpStream;
    async fn accept(&self) -> io::Result<(TcpStream, Option<SocketAddr>)> {
        let (stream, address) = TcpListener::accept(self).await?;
        // Requests are small and each is waited for.
        stream.set_nodelay(true)?;
        Ok((stream, Some(address)))
    }
}

impl Listener for UnixListener {
    type Io = UnixStream;
    async fn accept(&self) -> io::Result<(UnixStream, Option<SocketAddr>)> {
        Ok((UnixListener::accept(self).await?.0, None))
    }
}

/// The connections of a listener, after the handshake.
///
/// One task accepts; each handshake has a task of its own, at most 1,024 at once, each limited in time. Failures are logged with
/// the peer's address and the reason and are not items of the stream, which therefore never ends and never fails: it can be given
/// to a server as it is. Dropping it closes the listener and the handshakes under way.
#[derive(Debug)]
pub struct TlsIncoming<IO> {
    ready: mpsc::Receiver<TlsConnection<IO>>,
    _accepting: JoinSet<()>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsIncoming<IO> {
    /// Starts to accept. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new<L: Listener<Io = IO>>(listener: L, acceptor: Acceptor) -> Self {
        // Full: see `READY`.
        let (sender, ready) = mpsc::channel(READY);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept_loop(listener, acceptor, sender));
        Self { ready, _accepting: accepting }
    }

    /// The next connection. Cancel safe. `None` only if the accepting task panicked.
    pub async fn next(&mut self) -> Option<TlsConnection<IO>> {
        self.ready.recv().await
    }
}

impl<IO> Stream for TlsIncoming<IO> {
    type Item = io::Result<TlsConnection<IO>>;
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().ready.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

async fn accept_loop<L: Listener>(listener: L, acceptor: Acceptor, ready: mpsc::Sender<TlsConnection<L::Io>>) {
    let places = Arc::new(Semaphore::new(MAX_HALF_OPEN));
    let sources = Sources::default();
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (io, address) = tokio::select! {
            () = ready.closed() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let Some(source) = sources.enter(address.map(|address| address.ip())) else {
            tracing::warn!(peer = %shown(address), "too many unfinished handshakes from this address; connection closed");
            continue;
        };
        handshakes.spawn(one_handshake(acceptor.clone(), io, address, ready.clone(), place, source));
    }
}

async fn one_handshake<IO: AsyncRead + AsyncWrite + Unpin>(
    acceptor: Acceptor,
    io: IO,
    address: Option<SocketAddr>,
    ready: mpsc::Sender<TlsConnection<IO>>,
    _place: OwnedSemaphorePermit,
    _source: Source,
) {
    match acceptor.accept(io).await {
        Ok(connection) => {
            tracing::debug!(
                peer = %shown(address),
                node = connection.peer().map(|peer| peer.node_id.as_str()),
                resumed = connection.is_resumed(),
                "connection accepted"
            );
            // An error means that the server is going away, and its connections with it.
            let _ = ready.send(connection).await;
        }
        // Port scans and health checks open and close; nobody needs to know.
        Err(AcceptError::Handshake(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::debug!(peer = %shown(address), "connection closed before the handshake");
        }
        Err(error) => tracing::warn!(peer = %shown(address), door = ?acceptor.door(), %error, "connection refused"),
    }
}

fn shown(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "local socket".to_owned(), |address| address.to_string())
}

/// Counts handshakes under way per source address.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Sources {
    /// `None` if this address has too many. Local connections are not counted: tests and simulations run thousands of nodes on one
    /// machine, and who is on this machine has other means to hurt it.
    fn enter(&self, address: Option<IpAddr>) -> Option<Source> {
        let counted = address.filter(|address| !address.to_canonical().is_loopback());
        if let Some(address) = counted {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(address).or_insert(0);
            if *count >= MAX_HALF_OPEN_PER_SOURCE {
                return None;
            }
            *count += 1;
        }
        Some(Source { sources: self.clone(), counted })
    }
}

/// A place in [`Sources`], given back when dropped.
struct Source {
    sources: Sources,
    counted: Option<IpAddr>,
}

impl Drop for Source {
    fn drop(&mut self) {
        let Some(address) = self.counted else { return };
        let mut counts = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&address);
            }
        }
    }
}

/// The TCP port's connections.
#[must_use]
pub fn serve_remote(listener: TcpListener, security: &crate::SecurityConfig) -> TlsIncoming<TcpStream> {
    TlsIncoming::new(listener, Acceptor::new(security, Door::Remote))
}

/// The local socket's connections.
///
/// TLS without client certificates. Works before the node has an identity. A genuine `swarmctl` under an absolute socket path sends
/// that path as server name and as `:authority`, which rustls and the HTTP/2 stack refuse; both are taken care of below them (the
/// modules `sni` and `authority` tell how, and their limits).
#[must_use]
pub fn serve_local(listener: UnixListener, security: &crate::SecurityConfig) -> TlsIncoming<UnixStream> {
    TlsIncoming::new(listener, Acceptor::new(security, Door::Local))
}
