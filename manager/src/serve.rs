//! Serving gRPC on TLS connections: what each request is told about its connection, and the server's limits.

use crate::authorize::ConnectionInfo;
use futures_util::{Stream, StreamExt as _};
use skep_ca::{TlsConnection, TlsIncoming};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

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

/// A TLS connection as tonic wants it. Its requests carry a [`ConnectionInfo`].
pub struct Connection<IO> {
    tls: TlsConnection<IO>,
    info: ConnectionInfo,
}

impl<IO: RemoteAddr> From<TlsConnection<IO>> for Connection<IO> {
    fn from(tls: TlsConnection<IO>) -> Self {
        let info = ConnectionInfo { peer: tls.peer().cloned(), addr: tls.io().remote_addr() };
        Self { tls, info }
    }
}

impl<IO> Connected for Connection<IO> {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<IO> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(context, buffer)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}

/// Serves `routes` on every connection of `incoming` until `stop`, then lets calls end for a while.
///
/// # Errors
/// What tonic says if it cannot go on; a single bad connection is none.
pub async fn serve<IO>(incoming: TlsIncoming<IO>, routes: Routes, stop: CancellationToken) -> Result<(), tonic::transport::Error>
where
    IO: AsyncRead + AsyncWrite + RemoteAddr + Unpin + Send + 'static,
{
    let connections = incoming.map(|connection| connection.map(Connection::from));
    let drained = stop.clone();
    let serving = server().add_routes(routes).serve_with_incoming_shutdown(end_with(connections, stop.clone()), stop.cancelled_owned());
    tokio::select! {
        outcome = serving => outcome,
        () = async {
            drained.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        } => Ok(()),
    }
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// Accepts nothing more after `stop`.
fn end_with<S: Stream>(stream: S, stop: CancellationToken) -> impl Stream<Item = S::Item> {
    stream.take_until(stop.cancelled_owned())
}
