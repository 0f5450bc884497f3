//! A listener that shakes hands.

use crate::accept::{AcceptError, Acceptor, Door, TlsConnection};
use crate::manners::Manners;
use crate::refused::Reason;
use crate::turns::{Turn, Turns};
use futures_util::Stream;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// How many handshakes may be under way.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// At once. When all places are taken, nothing more is accepted until one is free: a burst of joining nodes waits in the
    /// kernel's queue instead of being turned away.
    half_open: usize,
    /// Of these, for one address that is not this machine: one idler cannot take every place.
    per_source: usize,
    /// When all places are taken, the oldest handshake that waits for its client gives up its own if it is older than this. An
    /// honest one takes milliseconds.
    grace: Duration,
    /// Whether addresses of this machine may do as they like.
    spares_local: bool,
}

const LIMITS: Limits = Limits { half_open: 1024, per_source: 256, grace: Duration::from_secs(1), spares_local: true };

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
/// One task accepts; each handshake has a task of its own, at most 1,024 at once, each limited in time; idlers make room. Failures are logged with
/// the peer's address and the reason and are not items of the stream, which therefore never ends and never fails: it can be given
/// to a server as it is. Dropping it closes the listener and the handshakes under way.
#[derive(Debug)]
pub struct TlsIncoming<IO> {
    ready: mpsc::Receiver<TlsConnection<IO>>,
    manners: Manners,
    _accepting: JoinSet<()>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsIncoming<IO> {
    /// Starts to accept. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new<L: Listener<Io = IO>>(listener: L, acceptor: Acceptor) -> Self {
        Self::with_limits(listener, acceptor, LIMITS)
    }

    fn with_limits<L: Listener<Io = IO>>(listener: L, acceptor: Acceptor, limits: Limits) -> Self {
        // Full: see `READY`.
        let (sender, ready) = mpsc::channel(READY);
        let mut accepting = JoinSet::new();
        let manners = Manners::new(limits.spares_local);
        accepting.spawn(accept_loop(listener, acceptor, sender, limits, Turns::new(manners.clone())));
        Self { ready, manners, _accepting: accepting }
    }

    /// Where to tell of clients that flooded their connections.
    #[must_use]
    pub fn manners(&self) -> Manners {
        self.manners.clone()
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

async fn accept_loop<L: Listener>(
    listener: L,
    acceptor: Acceptor,
    ready: mpsc::Sender<TlsConnection<L::Io>>,
    limits: Limits,
    turns: Turns,
) {
    let sources = Sources { counts: Arc::default(), limit: limits.per_source };
    let mut handshakes = Handshakes { tasks: JoinSet::new(), oldest_first: VecDeque::new(), limits };
    loop {
        handshakes.make_room(&acceptor).await;
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
            acceptor.count_refused(Reason::Crowded);
            tracing::warn!(peer = %shown(address), "too many unfinished handshakes from this address; connection closed");
            continue;
        };
        let turn = turns.place(address.map(|address| address.ip()));
        let handshake = one_handshake(acceptor.clone(), io, address, ready.clone(), source, turn.clone());
        handshakes.start(handshake, address, turn);
    }
}

/// The handshakes under way.
struct Handshakes {
    tasks: JoinSet<()>,
    oldest_first: VecDeque<HalfOpen>,
    limits: Limits,
}

struct HalfOpen {
    task: AbortHandle,
    address: Option<SocketAddr>,
    since: Instant,
    turn: Turn,
}

impl Handshakes {
    fn start(&mut self, handshake: impl Future<Output = ()> + Send + 'static, address: Option<SocketAddr>, turn: Turn) {
        let task = self.tasks.spawn(handshake);
        self.oldest_first.push_back(HalfOpen { task, address, since: Instant::now(), turn });
        if self.oldest_first.len() > 2 * self.limits.half_open {
            self.oldest_first.retain(|entry| !entry.task.is_finished());
        }
    }

    /// Returns when there is a place.
    async fn make_room(&mut self, acceptor: &Acceptor) {
        while self.tasks.try_join_next().is_some() {}
        while self.tasks.len() >= self.limits.half_open {
            self.oldest_first.retain(|entry| !entry.task.is_finished());
            let idler = self.oldest_first.iter().find(|entry| !entry.turn.is_ours());
            let Some(idler) = idler else {
                self.tasks.join_next().await; // all wait for us
                continue;
            };
            tokio::select! {
                _ = self.tasks.join_next() => {}
                () = tokio::time::sleep_until(idler.since + self.limits.grace) => {
                    acceptor.count_refused(Reason::Unfinished);
                    tracing::warn!(peer = %shown(idler.address), "unfinished handshake dropped to make room for others");
                    idler.task.abort();
                    self.tasks.join_next().await;
                }
            }
        }
    }
}

async fn one_handshake<IO: AsyncRead + AsyncWrite + Unpin>(
    acceptor: Acceptor,
    io: IO,
    address: Option<SocketAddr>,
    ready: mpsc::Sender<TlsConnection<IO>>,
    _source: Source,
    turn: Turn,
) {
    match acceptor.accept_in_turn(io, &turn).await {
        Ok(connection) => {
            turn.waits_for_us(true);
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
        // As many as come: they are counted, not told one by one.
        Err(AcceptError::Unruly(_)) => {
            acceptor.count_refused(Reason::Crowded);
            tracing::debug!(peer = %shown(address), "connection refused to an unruly client");
        }
        Err(error) => {
            if let Some(reason) = Reason::of(&error) {
                acceptor.count_refused(reason);
            }
            tracing::warn!(peer = %shown(address), door = ?acceptor.door(), %error, "connection refused");
        }
    }
}

fn shown(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "local socket".to_owned(), |address| address.to_string())
}

/// Counts handshakes under way per source address.
#[derive(Clone)]
struct Sources {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    limit: usize,
}

impl Sources {
    /// `None` if this address has too many. Local connections are not counted: tests and simulations run thousands of nodes on one
    /// machine, and who is on this machine has other means to hurt it.
    fn enter(&self, address: Option<IpAddr>) -> Option<Source> {
        let counted = address.filter(|address| !address.to_canonical().is_loopback());
        if let Some(address) = counted {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(address).or_insert(0);
            if *count >= self.limit {
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
        let mut counts = self.sources.counts.lock().unwrap_or_else(PoisonError::into_inner);
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

/// The connections to the Docker API on TCP. As long as the node has no certificate for it
/// ([`SecurityConfig::install_docker_server`](crate::SecurityConfig::install_docker_server)) they are closed at once.
#[must_use]
pub fn serve_docker(listener: TcpListener, security: &crate::SecurityConfig) -> TlsIncoming<TcpStream> {
    TlsIncoming::new(listener, Acceptor::new(security, Door::Docker))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;
    use tokio::io::AsyncReadExt as _;

    fn security(role: NodeRole) -> (SecurityConfig, SecurityConfig) {
        let now = std::time::SystemTime::now();
        let root = RootCa::generate(now).unwrap();
        let one = |number, role| {
            let key = NodeKey::generate().unwrap();
            let subject = Subject { node: skep_types::NodeId::for_test(number), role, cluster: skep_types::ClusterId::for_test(9) };
            let issued = root.issue(key.request().unwrap().as_bytes(), &subject, DEFAULT_LIFETIME, now).unwrap();
            SecurityConfig::new(Identity::new(key, &issued.chain_pem, root.bundle().clone(), now).unwrap()).unwrap()
        };
        (one(1, NodeRole::Manager), one(2, role))
    }

    #[tokio::test]
    async fn idle_and_wrong_clients_do_not_hold_up_the_right_one() {
        let (manager, worker) = security(NodeRole::Worker);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = serve_remote(listener, &manager);
        let mut idle = Vec::new();
        for _ in 0..50 {
            idle.push(TcpStream::connect(address).await.unwrap()); // says nothing
        }
        let mut wrong = TcpStream::connect(address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut wrong, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        // It is answered with an alert and closed.
        let mut answer = Vec::new();
        let _ = wrong.read_to_end(&mut answer).await;
        assert_eq!(answer.first(), Some(&21));

        let (stream, _) = Connector::node(&worker).connect(TcpStream::connect(address).await.unwrap()).await.unwrap();
        let connection = incoming.next().await.unwrap();
        assert!(connection.peer().unwrap().has_role(NodeRole::Worker));
        assert_eq!(connection.io().peer_addr().unwrap(), stream.get_ref().0.local_addr().unwrap());
    }

    #[tokio::test]
    async fn idlers_make_room_when_every_place_is_taken() {
        let (manager, worker) = security(NodeRole::Worker);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { half_open: 4, per_source: 4, grace: Duration::from_millis(20), spares_local: true };
        let mut incoming = TlsIncoming::with_limits(listener, Acceptor::new(&manager, Door::Remote), limits);
        let mut idle = Vec::new();
        for _ in 0..12 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let connector = Connector::node(&worker);
        let connected = connector.connect(TcpStream::connect(address).await.unwrap());
        let (connected, accepted) = tokio::join!(connected, incoming.next());
        connected.unwrap();
        assert!(accepted.unwrap().peer().is_some());
        // Handshakes that time out are not among these.
        assert!(manager.refused().unfinished > 0);
    }

    #[tokio::test]
    async fn a_node_that_floods_is_kept_out_and_the_others_and_managers_are_not() {
        let (manager, worker) = security(NodeRole::Worker);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { spares_local: false, ..LIMITS };
        let mut incoming = TlsIncoming::with_limits(listener, Acceptor::new(&manager, Door::Remote), limits);
        let manners = incoming.manners();
        // What a manager does, and what nobody in particular does, is not the worker's.
        for one in [&manager, &manager, &manager, &manager, &manager, &manager, &worker] {
            let (stream, _) = Connector::node(one).connect(TcpStream::connect(address).await.unwrap()).await.unwrap();
            let connection = incoming.next().await.unwrap();
            for _ in 0..6 {
                manners.flooded(connection.peer().map(|peer| &**peer), Some(address.ip()));
            }
            drop(stream);
        }
        let (mut stream, _) = Connector::node(&worker).connect(TcpStream::connect(address).await.unwrap()).await.unwrap();
        assert!(stream.read_u8().await.is_err());
        assert_eq!(manager.refused().crowded, 1);
        let (_, another) = (Connector::node(&manager).connect(TcpStream::connect(address).await.unwrap()).await.unwrap(), incoming.next());
        assert!(another.await.unwrap().peer().unwrap().is_manager());
    }

    #[tokio::test]
    async fn dropping_the_stream_closes_the_port() {
        let (manager, _) = security(NodeRole::Worker);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = serve_remote(listener, &manager);
        let mut half_open = TcpStream::connect(address).await.unwrap();
        drop(incoming);
        // The handshake under way is dropped with it: end of file or reset, but an end.
        let _ = tokio::time::timeout(Duration::from_secs(60), half_open.read_u8()).await.unwrap().unwrap_err();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[test]
    fn one_source_cannot_take_every_place() {
        let sources = Sources { counts: Arc::default(), limit: 3 };
        let (far, other): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut held: Vec<_> = (0..3).map(|_| sources.enter(Some(far)).unwrap()).collect();
        assert!(sources.enter(Some(far)).is_none());
        assert!(sources.enter(Some(other)).is_some());
        assert!(sources.enter(None).is_some());
        held.pop();
        assert!(sources.enter(Some(far)).is_some());
        drop(held);
        assert!(sources.counts.lock().unwrap().is_empty());
    }
}
