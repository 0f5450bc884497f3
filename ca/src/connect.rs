//! The client's side of a connection.

use crate::config::{self, LOCAL_NAME};
use crate::peer::{BadSubject, PeerIdentity};
use crate::root::{MANAGER_NAME, ROOT_NAME};
use crate::roots::RootBundle;
use crate::security::{SecurityConfig, SecurityError};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Dial time-out of SwarmKit (spec wire-behaviour 2.1); here for the handshake.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a TLS connection to a server was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the server did not finish the TLS handshake within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the TLS handshake with the server failed")]
    Handshake(#[source] io::Error),
    #[error("the server's certificate names nobody")]
    Subject(#[from] BadSubject),
    #[error("no TLS configuration for this connection")]
    Security(#[from] SecurityError),
    #[error("{0:?} is neither a host name nor an address")]
    Name(String),
}

/// Connects with this node's certificate to a server outside the cluster, such as an external CA, whose certificate the cluster's
/// roots or the one that is being introduced vouch for. For HTTP/1.1; within [`CONNECT_TIMEOUT`].
pub async fn connect_outside<IO>(
    security: &SecurityConfig,
    coming: Option<&RootBundle>,
    host: &str,
    io: IO,
) -> Result<TlsStream<IO>, ConnectError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let identity = security.identity().ok_or(SecurityError::NoIdentity)?;
    let config = config::outside_client(&identity, coming).map_err(|source| SecurityError::Tls { what: "outside client", source })?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::Name(host.to_owned()))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, io);
    timeout(CONNECT_TIMEOUT, handshake).await.map_err(|_| ConnectError::TimedOut)?.map_err(ConnectError::Handshake)
}

/// How to make the client's side of connections of one kind. Clones share the present identity: what is connected after a renewal
/// uses the new certificate.
#[derive(Clone, Debug)]
pub struct Connector(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Node(SecurityConfig),
    Fixed { config: Arc<ClientConfig>, name: &'static str, verified: bool },
}

impl Connector {
    /// Steady state: own certificate, server `swarm-manager` under the cluster's roots.
    #[must_use]
    pub fn node(security: &SecurityConfig) -> Self {
        Self(Kind::Node(security.clone()))
    }

    /// Bootstrap: server `swarm-ca` under roots that were downloaded and checked; no own certificate.
    pub fn bootstrap(roots: &RootBundle) -> Result<Self, SecurityError> {
        let config = config::bootstrap_client(roots).map_err(|source| SecurityError::Tls { what: "bootstrap client", source })?;
        Ok(Self(Kind::Fixed { config: Arc::new(config), name: ROOT_NAME, verified: true }))
    }

    /// Fetching the roots: the server is not verified; the caller compares what it gets with the token.
    pub fn fetch_root() -> Result<Self, SecurityError> {
        Self::unverified(ROOT_NAME)
    }

    /// The local socket: the server is not verified; who may open the socket is what counts.
    pub fn local() -> Result<Self, SecurityError> {
        Self::unverified(LOCAL_NAME)
    }

    fn unverified(name: &'static str) -> Result<Self, SecurityError> {
        let config = config::unverified_client().map_err(|source| SecurityError::Tls { what: "unverified client", source })?;
        Ok(Self(Kind::Fixed { config: Arc::new(config), name, verified: false }))
    }

    /// Shakes hands over a connection that stands, within [`CONNECT_TIMEOUT`]. Verified servers also name themselves.
    ///
    /// With TLS 1.3 a server that refuses our certificate does so after this returned: the first read or write then fails with
    /// an alert or a closed connection.
    pub async fn connect<IO>(&self, io: IO) -> Result<(TlsStream<IO>, Option<PeerIdentity>), ConnectError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (config, name, verified) = match &self.0 {
            Kind::Node(security) => (security.client()?, MANAGER_NAME, true),
            Kind::Fixed { config, name, verified } => (config.clone(), *name, *verified),
        };
        let name = ServerName::try_from(name).expect("our server names are DNS names");
        let handshake = TlsConnector::from(config).connect(name, io);
        let stream = timeout(CONNECT_TIMEOUT, handshake).await.map_err(|_| ConnectError::TimedOut)?;
        let stream = stream.map_err(ConnectError::Handshake)?;
        let peer = match stream.get_ref().1.peer_certificates() {
            Some(chain) if verified => Some(PeerIdentity::of_chain(chain)?),
            _ => None,
        };
        Ok((stream, peer))
    }
}
