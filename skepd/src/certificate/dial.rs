//! One connection to one manager: TCP, TLS, HTTP/2.

use hyper_util::rt::TokioIo;
use skep_ca::{CONNECT_TIMEOUT, ConnectError, Connector};
use std::io;
use std::sync::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("nobody answers at {address}; is a manager running there, is the port right, and does a firewall let it through?")]
    Tcp { address: String, source: io::Error },
    #[error("{address} does not answer within {} s; is the address right, and does a firewall let it through?", CONNECT_TIMEOUT.as_secs())]
    TimedOut { address: String },
    #[error("no secure connection to {address}; if it is a manager, it is of another cluster or trusts this node no longer")]
    Tls { address: String, source: ConnectError },
    #[error("{address} does not speak as a manager does")]
    Http { address: String, source: tonic::transport::Error },
}

/// Connects to `host:port`. Limited in time at each step.
pub async fn dial(connector: &Connector, address: &str) -> Result<Channel, DialError> {
    let named = || address.to_owned();
    let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(|_| DialError::TimedOut { address: named() })?;
    let tcp = tcp.map_err(|source| DialError::Tcp { address: named(), source })?;
    // Small messages back and forth: never wait for more to send.
    let _ = tcp.set_nodelay(true);
    let (stream, _) = connector.connect(tcp).await.map_err(|source| DialError::Tls { address: named(), source })?;
    // One connection, handed over once: when it breaks, the caller dials again.
    let slot = Mutex::new(Some(TokioIo::new(stream)));
    let over = tower::service_fn(move |_: Uri| {
        let stream = slot.lock().expect("no panic while held").take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    // Nobody looks at the name in the requests; what the server is was settled by TLS.
    let channel = Endpoint::from_static("http://swarm-manager").connect_with_connector(over).await;
    channel.map_err(|source| DialError::Http { address: named(), source })
}

/// A connection to the port of a stranger: what fails here behind TCP means that it is no manager.
#[must_use]
pub fn is_reached(error: &DialError) -> bool {
    matches!(error, DialError::Tls { .. } | DialError::Http { .. })
}
