//! What all parts of a manager hold.

use crate::authorize::revoke::Revocations;
use crate::authorize::{Facts, Standing};
use crate::ca::Desk;
use crate::control::errors;
use crate::drive::AddressCounts;
use crate::logs::Broker;
use crate::manager::ManagerConfig;
use crate::netstate::{FreedWatch, NetworkStates};
use crate::peers::{Group, PeerTransport};
use crate::tunnels::Tunnels;
use skep_ca::SecurityConfig;
use skep_store::{Clock, Feed, ProposeError, Store, View};
use skep_types::{Action, ClusterId, ClusterView as _, ManagerStatus, NodeId, Timestamp, Version};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// One manager of the cluster, as agents and clients are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerPeer {
    pub node: NodeId,
    /// `host:port` that agents connect to; empty if it is not known (agents skip it).
    pub addr: String,
    pub status: ManagerStatus,
}

/// The node this manager runs on.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    pub id: NodeId,
    pub addr: IpAddr,
    /// Where the others reach this manager.
    pub advertise: SocketAddr,
}

pub(crate) struct Shared {
    pub store: Store,
    pub security: SecurityConfig,
    pub clock: Clock,
    pub local: Local,
    pub broker: Broker,
    pub tunnels: Tunnels,
    /// Where nodes that want to join wait for the leader's CA.
    pub ca: Desk,
    pub transport: Arc<PeerTransport>,
    pub group: Group,
    pub netstate: NetworkStates,
    /// For the day this manager leads.
    pub freed: FreedWatch,
    pub revocations: Arc<Revocations>,
    /// Seconds that a node may be down before its tasks count as lost.
    pub orphan_after: AtomicU64,
    /// After this time the keys of encrypted networks are changed.
    pub tunnel_key_lifetime: Duration,
    /// What audits of addresses found while this manager led.
    pub addresses: Arc<AddressCounts>,
    /// Ends every stream when the manager stops.
    pub stop: CancellationToken,
}

impl Shared {
    pub(crate) fn new(config: ManagerConfig, stop: CancellationToken) -> Self {
        let advertise = config.advertise_addr;
        let members = config.store.members().borrow().clone();
        Self {
            store: config.store,
            security: config.security,
            clock: config.clock,
            local: Local { id: config.node_id, addr: advertise.ip(), advertise },
            broker: Broker::default(),
            tunnels: Tunnels::default(),
            ca: Desk::default(),
            transport: config.transport,
            group: Group::new(members),
            netstate: NetworkStates::default(),
            freed: FreedWatch::default(),
            revocations: Arc::default(),
            tunnel_key_lifetime: config.tunnel_key_lifetime,
            orphan_after: AtomicU64::new(skep_plan::NODE_DOWN_PERIOD.as_secs()),
            addresses: Arc::default(),
            stop,
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// One transaction: all or nothing.
    pub(crate) async fn propose(&self, actions: Vec<Action>) -> Result<Version, ProposeError> {
        self.store.propose(actions).await
    }

    /// What there is, and everything that comes after it.
    pub(crate) fn watch(&self) -> (View, Feed) {
        let view = self.store.view();
        let feed = self.store.feed(view.version());
        (view, feed)
    }

    /// Writes for a client. All or nothing.
    pub(crate) async fn write(&self, actions: Vec<Action>) -> Result<Version, Status> {
        let version = self.propose(actions).await.map_err(errors::propose)?;
        skep_failpoint::failpoint!("manager.control.committed");
        Ok(version)
    }

    /// The address others know a node by. An agent beside a manager reaches it over loopback, through whichever manager leads.
    pub(crate) fn outer_addr(&self, node: &NodeId, addr: IpAddr) -> IpAddr {
        if !addr.is_loopback() {
            return addr;
        }
        if *node == self.local.id {
            return self.local.addr;
        }
        let managers = self.managers();
        let manager = managers.iter().find(|manager| manager.node == *node);
        manager.and_then(|manager| manager.addr.parse::<SocketAddr>().ok()).map_or(addr, |addr| addr.ip())
    }

    pub(crate) fn orphan_after(&self) -> Duration {
        Duration::from_secs(self.orphan_after.load(Ordering::Relaxed))
    }
}

impl Facts for Shared {
    fn cluster_id(&self) -> Option<ClusterId> {
        // Of our own certificate: known before the store has caught up.
        self.security.identity().map(|identity| identity.cluster_id().clone())
    }

    fn standing(&self, node: &NodeId) -> Standing {
        let view = self.store.view();
        match (view.cluster(), view.node(node)) {
            (None, _) => Standing::NobodyKnows,
            (Some(cluster), _) if cluster.blacklisted_certificates.contains_key(node) => Standing::Removed,
            (_, Some(node)) => Standing::Node(node.role),
            (_, None) => Standing::Unlisted,
        }
    }

    fn local_node(&self) -> NodeId {
        self.local.id.clone()
    }

    fn is_local(&self, node: &NodeId) -> bool {
        *node == self.local.id
    }

    fn local_addr(&self) -> IpAddr {
        self.local.addr
    }
}
