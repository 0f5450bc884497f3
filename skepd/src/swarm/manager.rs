//! The manager of this node, with its store and its port.

use super::Event;
use super::announce::{Announced, Announcement};
use crate::address::beside;
use crate::agent::chain;
use crate::parts::NodeParts;
use crate::state::NodeFile;
use anyhow::{Context, Result, anyhow};
use skep_ca::UnlockKey;
use skep_manager::{AddressCounts, Crowd, LeaveError, Manager, ManagerConfig, ManagerHandle, PeerTransport};
use skep_store::{Store, StoreConfig, StoreError, system_clock};
use skep_types::ClusterView as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Handing over takes one round trip; whoever stops a daemon does not wait longer than this for it.
const HAND_OVER: Duration = Duration::from_secs(1);
/// Commits come in bursts; the unlock key is looked at this long after the first of them.
const SETTLE: Duration = Duration::from_millis(200);
/// How often it is looked whether a store that was opened is where it was.
const CATCH_UP: Duration = Duration::from_millis(50);
/// A key that could not be written (a full disk) is tried again after this time.
const RESEAL_AGAIN: Duration = Duration::from_secs(5);

/// A running manager.
pub struct ManagerPart {
    store: Store,
    handle: ManagerHandle,
    servers: JoinSet<Result<()>>,
    helpers: JoinSet<()>,
    announced: watch::Receiver<Announced>,
    stop: CancellationToken,
    /// Dropped after what runs on it has ended.
    _crowd: Crowd,
}

impl ManagerPart {
    /// Starts the manager on a store that is open and a port that listens.
    pub fn start(parts: &NodeParts, node: &NodeFile, store: Store, transport: Arc<PeerTransport>, listener: TcpListener) -> Result<Self> {
        let identity = parts.security.identity().context("a node in a cluster has a certificate")?;
        let stop = CancellationToken::new();
        let config = ManagerConfig {
            store: store.clone(),
            security: parts.security.clone(),
            node_id: identity.node_id().clone(),
            advertise_addr: node.advertise_addr,
            clock: system_clock(),
            transport,
            tunnel_key_lifetime: parts.config.tunnel_key_lifetime,
        };
        let handle = Manager::start(config, &stop);
        let mut servers = JoinSet::new();
        let crowd = Crowd::start().context("no threads for the connections of agents")?;
        let incoming = {
            let _handshakes_there = crowd.handle().enter();
            skep_ca::serve_remote(listener, &parts.security)
        };
        let serving = skep_manager::serve_beside(incoming, handle.remote_routes(), stop.clone(), crowd.handle());
        servers.spawn(async { serving.await.context("the cluster port's server ended") });
        let announcement = Announcement {
            security: parts.security.clone(),
            store: store.clone(),
            advertise: node.advertise_addr,
            seeds: node.managers.clone(),
            managers_file: parts.managers_file(),
            own: beside(node.listen_addr).to_string(),
        };
        let is_due = node.joining;
        let (publish, announced) = watch::channel(if is_due { Announced::Trying(String::new()) } else { Announced::Done });
        let mut helpers = JoinSet::new();
        let (parts, followed, ending) = (parts.clone(), store.clone(), stop.clone());
        helpers.spawn(async move {
            if is_due {
                tokio::select! {
                    () = ending.cancelled() => return,
                    () = announcement.run(publish) => {}
                }
            }
            // Not before: a store that catches up shows keys of the past.
            tokio::select! {
                () = ending.cancelled() => return,
                () = caught_up(&followed) => {}
            }
            follow_unlock_key(parts, followed, ending).await;
        });
        Ok(Self { store, handle, servers, helpers, announced, stop, _crowd: crowd })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What audits of addresses found while this manager led.
    pub fn addresses(&self) -> Arc<AddressCounts> {
        self.handle.addresses()
    }

    pub fn announced(&self) -> watch::Receiver<Announced> {
        self.announced.clone()
    }

    pub fn local_routes(&self) -> tonic::service::Routes {
        self.handle.local_routes()
    }

    /// Whether the cluster would lose its state with this manager.
    pub fn is_last(&self) -> bool {
        self.store.status().members.len() <= 1
    }

    /// Waits for what concerns the node. `joining`: the announcement is news.
    pub(super) async fn next(&mut self, joining: bool) -> Event {
        let announced = async {
            if !joining || self.announced.wait_for(Announced::is_done).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = announced => Event::Announced,
            () = async { let _ = self.handle.removed().await; } => Event::Removed,
            ended = self.servers.join_next() => Event::Ended(match ended {
                Some(Ok(Err(error))) => error,
                _ => anyhow!("the cluster port's server ended"),
            }),
        }
    }

    /// If this manager leads, another one does afterwards, unless none can in time.
    pub async fn hand_over(&self) {
        if self.store.leadership().borrow().is_leader && !self.is_last() {
            // Twice the time for the whole, so that a hang in here does not hold up the end of the daemon.
            let _ = tokio::time::timeout(HAND_OVER * 2, self.handle.hand_over(HAND_OVER)).await;
        }
    }

    /// Takes this manager out of the group.
    pub async fn leave_group(&self, force: bool) -> Result<(), LeaveError> {
        self.handle.leave(force).await
    }

    /// Ends manager, port and store, in this order.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.helpers.join_next().await.is_some() {}
        self.handle.stop().await;
        while self.servers.join_next().await.is_some() {}
        self.store.shutdown().await;
    }
}

/// Waits until all of the log is applied that there is now. If another leader cuts its end off, less of it is left to wait for.
async fn caught_up(store: &Store) {
    let wanted = store.status().last_log_index;
    loop {
        let status = store.status();
        if status.leader.is_some() && status.applied_index >= wanted.min(status.last_log_index) {
            return;
        }
        tokio::time::sleep(CATCH_UP).await;
    }
}

/// Seals node key and data key by the unlock key that the cluster has, whenever it changes. Ends between two sealings, never
/// within one.
async fn follow_unlock_key(parts: NodeParts, store: Store, ending: CancellationToken) {
    loop {
        let view = store.view();
        let version = skep_types::ClusterView::version(&view);
        let wanted = view.cluster().map(|cluster| cluster.unlock_key());
        drop(view);
        if let Some(wanted) = wanted {
            let locked = wanted.is_some();
            match parts.vault.reseal(&parts.security, &store, wanted).await {
                Ok(true) => tracing::info!(locked, "the unlock key changed; this manager's keys are sealed accordingly"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(error = %format!("{error:#}"), "the keys of this manager could not be sealed anew; trying again");
                    tokio::select! {
                        () = ending.cancelled() => return,
                        () = tokio::time::sleep(RESEAL_AGAIN) => continue,
                    }
                }
            }
        }
        tokio::select! {
            () = ending.cancelled() => return,
            () = async {
                store.changed_since(version).await;
                tokio::time::sleep(SETTLE).await;
            } => {}
        }
    }
}

/// Opens the port of the cluster.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; is another program there? Choose another with --listen-addr"))
}

/// How the store of this node is kept.
pub fn store_config(parts: &NodeParts, unlock: Option<UnlockKey>) -> StoreConfig {
    let mut config = StoreConfig::new(parts.raft_dir());
    config.unlock = unlock;
    config
}

/// Opens the store of a manager; of one that is still joining it may have to be made first.
pub async fn open_store(parts: &NodeParts, node: &NodeFile, transport: &Arc<PeerTransport>) -> Result<Store> {
    let config = store_config(parts, parts.vault.key().await);
    match Store::open(config.clone(), transport.clone()).await {
        Err(StoreError::Empty { .. }) if node.joining => {
            Store::join(config, node.raft_id, transport.clone()).await.context("cannot make this manager's store")
        }
        Err(StoreError::Empty { .. }) => Err(anyhow!(
            "this node is a manager, but {} holds no cluster state; restore it from a backup, or remove {} to start anew",
            parts.raft_dir().display(),
            parts.config.data_dir.join("node.json").display()
        )),
        other => other.map_err(|error| {
            tracing::debug!(error = %chain(&error), "the store does not open");
            anyhow::Error::from(error)
        }),
    }
}
