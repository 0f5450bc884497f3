//! The server's side of one connection.

use crate::authority::AuthorityFilter;
use crate::guest::{GuestIdentity, client_of_chain};
use crate::manners::{Manners, Unruly};
use crate::peer::{BadSubject, PeerIdentity};
use crate::refused::Reason;
use crate::security::{Era, RemoteServers, SecurityConfig, SecurityError};
use crate::turns::{Turn, Turns};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor as RustlsAcceptor};

/// How long a client may take from TCP accept to the end of the handshake. Genuine clients give up after the same time
/// (spec wire-behaviour 2.1); each that does not end holds memory and a place.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest TLS record, RFC 8446 §5.1.
const MAX_RECORD: usize = 1 << 14;
const RECORD_HEADER: usize = 5;

/// Why a client got no connection.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("no TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error("the client's certificate expired, though its session could be resumed")]
    Expired,
    #[error("the client's certificate names nobody: {0}")]
    Subject(#[from] BadSubject),
    #[error("{0}")]
    Security(#[from] SecurityError),
    #[error(transparent)]
    Unruly(#[from] Unruly),
}

/// Which of a node's doors a connection came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The TCP port. A client that asks for a manager by its server name must give a certificate of the cluster; others may come
    /// without, to join. What is given is verified.
    Remote,
    /// The Docker API on TCP: everybody must show a certificate of the cluster, of a client or of a node.
    Docker,
    /// The local socket: no client certificates; server names that are none are tolerated, and HTTP/2 authorities that are none
    /// are made acceptable (see the module `sni` for why).
    Local,
}

/// Makes the server's side of connections with the configuration of the moment. Clones share it.
#[derive(Clone, Debug)]
pub struct Acceptor {
    security: SecurityConfig,
    door: Door,
}

impl Acceptor {
    #[must_use]
    pub fn new(security: &SecurityConfig, door: Door) -> Self {
        Self { security: security.clone(), door }
    }

    #[must_use]
    pub fn door(&self) -> Door {
        self.door
    }

    /// Counts a connection that was refused. The local socket is root's: nobody is kept out there.
    pub(crate) fn count_refused(&self, reason: Reason) {
        if self.door == Door::Remote {
            self.security.count_refused(reason);
        }
    }

    /// Shakes hands, within [`HANDSHAKE_TIMEOUT`]. Dropping the future closes the connection.
    pub async fn accept<IO>(&self, io: IO) -> Result<TlsConnection<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.accept_in_turn(io, &Turns::new(Manners::default()).place(None)).await
    }

    /// The same, among others.
    pub(crate) async fn accept_in_turn<IO>(&self, io: IO, turn: &Turn) -> Result<TlsConnection<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        timeout(HANDSHAKE_TIMEOUT, self.shake_hands(io, turn)).await.map_err(|_| AcceptError::TimedOut)?
    }

    async fn shake_hands<IO>(&self, mut io: IO, turn: &Turn) -> Result<TlsConnection<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut era = None;
        let stream = match self.door {
            Door::Remote => {
                let servers = self.security.remote_servers()?;
                shake_by_name(servers, Replay { first: Vec::new(), read: 0, io }, turn).await
            }
            Door::Docker => {
                let server = self.security.docker_server()?;
                era = Some(server.era);
                let lane = turn.lane(true);
                lane.enter().await?;
                let accept = RustlsAcceptor::from(server.config).accept(Replay { first: Vec::new(), read: 0, io });
                turn.take(accept).await.map_err(|error| {
                    lane.failed();
                    AcceptError::Handshake(error)
                })
            }
            Door::Local => {
                let mut first = first_record(&mut io).await.map_err(AcceptError::Handshake)?;
                crate::sni::hide_bad_name(&mut first);
                RustlsAcceptor::from(self.security.local_server())
                    .accept(Replay { first, read: 0, io })
                    .await
                    .map_err(AcceptError::Handshake)
            }
        };
        let stream = stream?;
        let guest = match self.door {
            Door::Docker => stream.get_ref().1.peer_certificates().and_then(client_of_chain).map(Arc::new),
            Door::Remote | Door::Local => None,
        };
        if guest.is_some() {
            return Ok(TlsConnection { stream, peer: None, guest, era, mended: None });
        }
        let peer = match stream.get_ref().1.peer_certificates() {
            Some(chain) => Some(Arc::new(PeerIdentity::of_chain(chain)?)),
            None => None,
        };
        // A resumed session brings the certificate of the first handshake, which rustls does not verify again.
        if peer.as_ref().is_some_and(|peer| peer.is_expired(SystemTime::now())) {
            return Err(AcceptError::Expired);
        }
        if let Some(peer) = &peer
            && let Err(unruly) = turn.manners().may_enter(peer)
        {
            turn.lane(true).failed();
            return Err(unruly.into());
        }
        let mended = (self.door == Door::Local).then(|| Box::new(Mended::new()));
        Ok(TlsConnection { stream, peer, guest, era, mended })
    }
}

/// The name that the client asks for decides whether it needs a certificate.
async fn shake_by_name<IO>(servers: RemoteServers, io: IO, turn: &Turn) -> Result<TlsStream<IO>, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), io).await.map_err(AcceptError::Handshake)?;
    let name = hello.client_hello().server_name().map(str::to_owned);
    let lane = turn.lane(RemoteServers::is_for_members(name.as_deref()));
    lane.enter().await?;
    let config = servers.for_name(name.as_deref());
    // Keys are made and signatures given as soon as it is asked for.
    turn.take(async { hello.into_stream(config).await }).await.map_err(|error| {
        lane.failed();
        AcceptError::Handshake(error)
    })
}

/// Reads one TLS record as it came, or the little that shows that it is none; rustls then says what is wrong with it.
async fn first_record(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut record = vec![0; RECORD_HEADER];
    io.read_exact(&mut record).await?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    if record[0] == 22 && length <= MAX_RECORD {
        record.resize(RECORD_HEADER + length, 0);
        io.read_exact(&mut record[RECORD_HEADER..]).await?;
    }
    Ok(record)
}

/// A connection after the handshake.
#[derive(Debug)]
pub struct TlsConnection<IO> {
    stream: TlsStream<Replay<IO>>,
    peer: Option<Arc<PeerIdentity>>,
    guest: Option<Arc<GuestIdentity>>,
    era: Option<Era>,
    /// What is read goes through this; `None` on the TCP port.
    mended: Option<Box<Mended>>,
}

/// Room for what was read before and after the filter.
#[derive(Debug)]
struct Mended {
    filter: AuthorityFilter,
    raw: Vec<u8>,
    ready: Vec<u8>,
    given: usize,
}

impl Mended {
    fn new() -> Self {
        Self { filter: AuthorityFilter::new(), raw: vec![0; 4096], ready: Vec::new(), given: 0 }
    }

    fn poll_read(&mut self, mut stream: Pin<&mut impl AsyncRead>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.given == self.ready.len() {
            self.ready.clear();
            self.given = 0;
            let mut raw = ReadBuf::new(&mut self.raw);
            ready!(stream.as_mut().poll_read(cx, &mut raw))?;
            if raw.filled().is_empty() {
                self.filter.finish(&mut self.ready);
                if self.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            } else {
                self.filter.feed(raw.filled(), &mut self.ready);
            }
        }
        let count = (self.ready.len() - self.given).min(buf.remaining());
        buf.put_slice(&self.ready[self.given..self.given + count]);
        self.given += count;
        Poll::Ready(Ok(()))
    }
}

impl<IO> TlsConnection<IO> {
    /// Who the client proved to be; `None` if it gave no certificate.
    #[must_use]
    pub fn peer(&self) -> Option<&Arc<PeerIdentity>> {
        self.peer.as_ref()
    }

    /// Which client of the Docker API it is, on its door; `None` for nodes.
    #[must_use]
    pub fn guest(&self) -> Option<&Arc<GuestIdentity>> {
        self.guest.as_ref()
    }

    /// On the door of the Docker API: lasts as long as the roots that the client was verified under, and the node's role.
    #[must_use]
    pub fn era(&self) -> Option<Era> {
        self.era.clone()
    }

    /// What is below TLS, for addresses and credentials.
    #[must_use]
    pub fn io(&self) -> &IO {
        &self.stream.get_ref().0.io
    }

    /// TLS 1.2 or 1.3, for logs.
    #[must_use]
    pub fn protocol(&self) -> Option<rustls::ProtocolVersion> {
        self.stream.get_ref().1.protocol_version()
    }

    /// Whether an earlier session was resumed.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsConnection<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.mended {
            Some(mended) => mended.poll_read(Pin::new(&mut this.stream), cx, buf),
            None => Pin::new(&mut this.stream).poll_read(cx, buf),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsConnection<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Gives bytes that were read already once more, then reads on.
#[derive(Debug)]
struct Replay<IO> {
    first: Vec<u8>,
    read: usize,
    io: IO,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Replay<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = &this.first[this.read..];
        if left.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let count = left.len().min(buf.remaining());
        buf.put_slice(&left[..count]);
        this.read += count;
        if this.read == this.first.len() {
            this.first = Vec::new();
            this.read = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Replay<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
