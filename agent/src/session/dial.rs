//! Channels to managers: TCP, then the node's TLS, then HTTP/2.

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use skep_ca::{ConnectError, Connector, SecurityConfig};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint, Uri};

/// For a connection to stand, TLS included (wire-behaviour 9.1).
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// For a connection without TLS: an address that does not even refuse belongs to a dead machine, and others are to be tried.
/// One lost packet is allowed for.
const TCP_LIMIT: Duration = Duration::from_secs(2);
/// An idle connection through a dead firewall is noticed after about twice this.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("could not connect to {address}")]
    Tcp { address: String, source: io::Error },
    #[error("{address} did not answer within {} s", DIAL_LIMIT.as_secs())]
    TimedOut { address: String },
    #[error("no secure connection to {address}")]
    Tls { address: String, source: Arc<ConnectError> },
    #[error("{address} is not host:port")]
    BadAddress { address: String },
    #[error("no HTTP/2 with {address}")]
    Http { address: String, source: tonic::transport::Error },
}

/// Makes a connection to a manager at `host:port`.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    async fn dial(&self, address: &str) -> Result<Channel, DialError>;

    /// Changes when this node's certificate or roots do; connections made before are of the old ones.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// With this node's certificate, whatever it is at the time.
#[derive(Debug, Clone)]
pub struct TlsDial {
    connector: Connector,
    security: SecurityConfig,
}

impl TlsDial {
    #[must_use]
    pub fn new(security: &SecurityConfig) -> Self {
        Self { connector: Connector::node(security), security: security.clone() }
    }
}

#[async_trait]
impl Dial for TlsDial {
    async fn dial(&self, address: &str) -> Result<Channel, DialError> {
        let connected = async {
            let timed_out = |_| io::Error::from(io::ErrorKind::TimedOut);
            let tcp = tokio::time::timeout(TCP_LIMIT, TcpStream::connect(address)).await.map_err(timed_out).flatten();
            let tcp = tcp.map_err(|source| DialError::Tcp { address: address.into(), source })?;
            // Small messages back and forth: never wait for more to send.
            let _ = tcp.set_nodelay(true);
            let tls = self.connector.connect(tcp).await;
            tls.map_err(|source| DialError::Tls { address: address.into(), source: Arc::new(source) })
        };
        let timed_out = |_| DialError::TimedOut { address: address.to_owned() };
        let (stream, _) = tokio::time::timeout(DIAL_LIMIT, connected).await.map_err(timed_out)??;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| DialError::BadAddress { address: address.to_owned() })?
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        // One connection, handed over once: when it breaks, the session ends and dials again.
        let slot = Mutex::new(Some(TokioIo::new(stream)));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = slot.lock().expect("no panic while held").take();
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        let channel = endpoint.connect_with_connector(connector).await;
        channel.map_err(|source| DialError::Http { address: address.to_owned(), source })
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.security.changes())
    }
}
