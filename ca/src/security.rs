//! What a node's connections are secured with at this moment.

use crate::config;
use crate::identity::{Identity, TlsInfo};
use crate::refused::{Counters, Reason, Refused};
use crate::root::MANAGER_NAME;
use crate::roots::{RootBundle, Untrusted};
use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
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
    #[error("the new roots were refused, for this node's own certificate does not verify under them")]
    Untrusted(#[from] Untrusted),
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
    generation: watch::Sender<u64>,
    refused: Counters,
}

struct State {
    /// `None` until the node has a cluster.
    node: Option<Node>,
    local_server: Arc<ServerConfig>,
}

struct Node {
    identity: Arc<Identity>,
    servers: RemoteServers,
    client: Arc<ClientConfig>,
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
        let node = Node { identity: Arc::new(identity), servers, client: Arc::new(client) };
        self.store(State { node: Some(node), local_server: Arc::new(local_server) });
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

fn ephemeral_local() -> Result<ServerConfig, SecurityError> {
    let (chain, key) = config::ephemeral().map_err(tls("local server"))?;
    config::local_server(chain, key).map_err(tls("local server"))
}

fn tls(what: &'static str) -> impl FnOnce(rustls::Error) -> SecurityError {
    move |source| SecurityError::Tls { what, source }
}
