//! What a node's connections are secured with at this moment.

use crate::config;
use crate::identity::{Identity, TlsInfo};
use crate::key::NodeKey;
use crate::refused::{Counters, Reason, Refused};
use crate::root::MANAGER_NAME;
use crate::roots::{RootBundle, Untrusted};
use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use skep_types::NodeRole;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Why configurations cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error("the TLS library refuses the {what} configuration")]
    Tls { what: &'static str, source: rustls::Error },
    #[error("the system has no random numbers for session tickets")]
    NoRandom,
    #[error("this node has no identity yet; initialise a cluster or join one first")]
    NoIdentity,
    #[error("the Docker API has no certificate to show yet; managers give it one as soon as they can")]
    NoDockerServer,
    #[error("the certificate for the Docker API cannot be used")]
    DockerServer(#[from] BadDockerServer),
    #[error("the new roots were refused, for this node's own certificate does not verify under them")]
    Untrusted(#[from] Untrusted),
}

/// Why a certificate is not the one that the Docker API asked for.
#[derive(Debug, thiserror::Error)]
pub enum BadDockerServer {
    #[error("it is not PEM text with certificates")]
    NotPem,
    #[error("it does not verify under the roots that this node trusts now: {0}")]
    Untrusted(rustls::Error),
}

/// A handle to the present identity and the TLS configurations made of it. Clones share it.
///
/// [`install`](Self::install) swaps everything at once: a handshake that begins later uses the new certificate and the new roots,
/// listeners stay open, connections that stand keep what they were made with.
#[derive(Clone)]
pub struct SecurityConfig(Arc<Shared>);

struct Shared {
    now: ArcSwap<State>,
    /// Held while a new state is made of the old one.
    change: Mutex<()>,
    /// Of the connections to the Docker API; dropped at its end. Replaced under `change`.
    era: Mutex<watch::Sender<()>>,
    generation: watch::Sender<u64>,
    refused: Counters,
}

struct State {
    /// `None` until the node has a cluster.
    node: Option<Node>,
    local_server: Arc<ServerConfig>,
}

#[derive(Clone)]
struct Node {
    identity: Arc<Identity>,
    servers: RemoteServers,
    client: Arc<ClientConfig>,
    /// For the Docker API on TCP; `None` until [`SecurityConfig::install_docker_server`].
    docker: Option<DockerServer>,
}

/// What the Docker API shows its clients, and what ends the connections that were let in by it.
#[derive(Clone)]
pub(crate) struct DockerServer {
    pub(crate) config: Arc<ServerConfig>,
    /// Sent again (closed) when the roots that clients were verified under, or the node's role, are no more.
    pub(crate) era: Era,
}

/// Lasts as long as what a connection was let in by.
#[derive(Debug, Clone)]
pub struct Era(watch::Receiver<()>);

impl Era {
    /// Returns when it is over.
    pub async fn over(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// The two sides of the TCP port. Which one a client meets is told by the server name it asks for.
#[derive(Clone, Debug)]
pub(crate) struct RemoteServers {
    member: Arc<ServerConfig>,
    joining: Arc<ServerConfig>,
}

impl RemoteServers {
    /// Whoever has a certificate of the cluster asks for [`MANAGER_NAME`] (spec wire-behaviour 2.1) and must show it in the
    /// handshake. With any other name, or none, a client may come without; then it can do no more than join.
    pub(crate) fn for_name(self, name: Option<&str>) -> Arc<ServerConfig> {
        if Self::is_for_members(name) { self.member } else { self.joining }
    }

    /// Whether who asks for this name must show a certificate.
    pub(crate) fn is_for_members(name: Option<&str>) -> bool {
        name.is_some_and(|name| name.eq_ignore_ascii_case(MANAGER_NAME))
    }
}

impl fmt::Debug for SecurityConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.identity() {
            Some(identity) => write!(out, "SecurityConfig({identity:?})"),
            None => out.write_str("SecurityConfig(no identity)"),
        }
    }
}

impl SecurityConfig {
    /// For a node that has no cluster yet: only the local socket can be served, with a certificate made for the occasion.
    pub fn without_identity() -> Result<Self, SecurityError> {
        let state = State { node: None, local_server: Arc::new(ephemeral_local()?) };
        Ok(Self(Arc::new(Shared {
            now: ArcSwap::from_pointee(state),
            change: Mutex::new(()),
            era: Mutex::new(watch::Sender::new(())),
            generation: watch::Sender::new(0),
            refused: Counters::default(),
        })))
    }

    pub fn new(identity: Identity) -> Result<Self, SecurityError> {
        let config = Self::without_identity()?;
        config.install(identity)?;
        Ok(config)
    }

    /// Replaces identity and configurations; the next handshake uses them. On an error the old ones stay.
    pub fn install(&self, identity: Identity) -> Result<(), SecurityError> {
        let _change = self.0.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.swap_in(identity)
    }

    /// Installs new roots if this node's own certificate verifies under them (spec wire-behaviour 4.6); tells whether they
    /// differed from the present ones. The caller saves them.
    pub fn install_roots(&self, roots: RootBundle, now: SystemTime) -> Result<bool, SecurityError> {
        let _change = self.0.change.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = self.identity().ok_or(SecurityError::NoIdentity)?;
        if *identity.roots() == roots {
            return Ok(false);
        }
        self.swap_in(identity.with_roots(roots, now)?)?;
        Ok(true)
    }

    /// Forgets the identity, as a node does that leaves its cluster.
    pub fn clear(&self) -> Result<(), SecurityError> {
        let _change = self.0.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.store(State { node: None, local_server: Arc::new(ephemeral_local()?) });
        self.end_era();
        Ok(())
    }

    /// After what it was made by is gone: nobody is let in by that from here on.
    fn end_era(&self) {
        *self.0.era.lock().unwrap_or_else(PoisonError::into_inner) = watch::Sender::new(());
    }

    /// What the Docker API on TCP shows its clients from now on. It is forgotten when the roots change or the node is no manager any
    /// more; [`Self::changes`] tells of that, not of this.
    ///
    /// # Errors
    /// If the certificate is not good under the present roots, or belongs to another key.
    pub fn install_docker_server(&self, key: &NodeKey, chain_pem: &str, now: SystemTime) -> Result<(), SecurityError> {
        let _change = self.0.change.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.0.now.load();
        let node = before.node.as_ref().ok_or(SecurityError::NoIdentity)?;
        let roots = node.identity.roots();
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .ok()
            .filter(|chain: &Vec<_>| !chain.is_empty())
            .ok_or(BadDockerServer::NotPem)?;
        verify_as_server(roots, &chain, now).map_err(BadDockerServer::Untrusted)?;
        let config = config::docker_server(roots, chain, key.for_rustls()).map_err(tls("Docker API's server"))?;
        let era = Era(self.0.era.lock().unwrap_or_else(PoisonError::into_inner).subscribe());
        let node = Node { docker: Some(DockerServer { config: Arc::new(config), era }), ..node.clone() };
        self.0.now.store(Arc::new(State { node: Some(node), local_server: before.local_server.clone() }));
        Ok(())
    }

    fn swap_in(&self, identity: Identity) -> Result<(), SecurityError> {
        let before = self.0.now.load();
        // A renewed certificate under the same roots keeps the tickets valid: 10,000 agents need no full handshake for it.
        let tickets = match &before.node {
            Some(node) if node.identity.roots() == identity.roots() => node.servers.member.ticketer.clone(),
            _ => rustls::crypto::ring::Ticketer::new().map_err(|_| SecurityError::NoRandom)?,
        };
        let member = config::member_server(&identity, tickets).map_err(tls("server"))?;
        let joining = config::joining_server(&identity).map_err(tls("server"))?;
        let local_server = config::local_server(identity.chain().to_vec(), identity.key().for_rustls()).map_err(tls("local server"))?;
        let client = config::node_client(&identity).map_err(tls("client"))?;
        let servers = RemoteServers { member: Arc::new(member), joining: Arc::new(joining) };
        // Made under the roots of its moment.
        let is_same = |node: &&Node| node.identity.roots() == identity.roots() && identity.role() == NodeRole::Manager;
        let docker = before.node.as_ref().filter(is_same).and_then(|node| node.docker.clone());
        let is_over = docker.is_none();
        let node = Node { identity: Arc::new(identity), servers, client: Arc::new(client), docker };
        self.store(State { node: Some(node), local_server: Arc::new(local_server) });
        if is_over {
            self.end_era();
        }
        Ok(())
    }

    fn store(&self, state: State) {
        self.0.now.store(Arc::new(state));
        self.0.generation.send_modify(|generation| *generation += 1);
    }

    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.0.now.load().node.as_ref().map(|node| node.identity.clone())
    }

    /// What the node reports about its certificate; `None` without identity.
    #[must_use]
    pub fn tls_info(&self) -> Option<TlsInfo> {
        self.identity().map(|identity| identity.tls_info())
    }

    /// Counts the swaps: a renewer and a session wait on it to notice a new identity.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// The connections to the TCP port that were refused so far.
    #[must_use]
    pub fn refused(&self) -> Refused {
        self.0.refused.read()
    }

    pub(crate) fn count_refused(&self, reason: Reason) {
        self.0.refused.count(reason);
    }

    /// For the next connection on the TCP port.
    pub(crate) fn remote_servers(&self) -> Result<RemoteServers, SecurityError> {
        self.with_node(|node| node.servers.clone())
    }

    /// For the next connection to the Docker API on TCP.
    pub(crate) fn docker_server(&self) -> Result<DockerServer, SecurityError> {
        self.with_node(|node| node.docker.clone())?.ok_or(SecurityError::NoDockerServer)
    }

    /// Whether the Docker API on TCP can shake hands now.
    #[must_use]
    pub fn has_docker_server(&self) -> bool {
        self.docker_server().is_ok()
    }

    /// For the next connection on the local socket; there is always one.
    #[must_use]
    pub fn local_server(&self) -> Arc<ServerConfig> {
        self.0.now.load().local_server.clone()
    }

    /// For the next connection to a manager; server name [`crate::MANAGER_NAME`].
    pub fn client(&self) -> Result<Arc<ClientConfig>, SecurityError> {
        self.with_node(|node| node.client.clone())
    }

    fn with_node<T>(&self, get: impl FnOnce(&Node) -> T) -> Result<T, SecurityError> {
        self.0.now.load().node.as_ref().map(get).ok_or(SecurityError::NoIdentity)
    }
}

/// Whether a chain (leaf first) is a server's under these roots.
fn verify_as_server(roots: &RootBundle, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), rustls::Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    let leaf = rustls::server::ParsedCertificate::try_from(leaf)?;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    let algorithms = crate::provider::provider().signature_verification_algorithms.all;
    rustls::client::verify_server_cert_signed_by_trust_anchor(&leaf, &roots.store(), intermediates, now, algorithms)
}

fn ephemeral_local() -> Result<ServerConfig, SecurityError> {
    let (chain, key) = config::ephemeral().map_err(tls("local server"))?;
    config::local_server(chain, key).map_err(tls("local server"))
}

fn tls(what: &'static str) -> impl FnOnce(rustls::Error) -> SecurityError {
    move |source| SecurityError::Tls { what, source }
}
