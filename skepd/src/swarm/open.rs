//! Going on in the cluster that the node is in, after a start and after unlocking.

use super::manager::{bind, open_store};
use super::role::manager_of;
use super::{BadRequest, ManagerPart, Seat, Swarm};
use crate::address::{is_of_this_machine, reconsider};
use crate::parts::NodeParts;
use crate::state::NodeFile;
use crate::vault::Found;
use anyhow::{Context, Result};
use skep_ca::{FileError, NodeRole, UnlockKey};
use skep_manager::PeerTransport;
use skep_store::{DiskError, Store, StoreError};

impl Swarm {
    /// Goes on where the last start ended. `found`: the identity on disk.
    ///
    /// # Errors
    /// A damaged store, a port that is taken.
    pub async fn open(parts: &NodeParts, mut node: NodeFile, found: Found) -> Result<Self> {
        if reconsider(&mut node, &parts.config, is_of_this_machine)? {
            tracing::info!(listen = %node.listen_addr, advertise = %node.advertise_addr, "this node has other addresses than at its last start");
            node.save(&parts.config.data_dir)?;
        }
        let identity = match found {
            Found::Locked => return Ok(Self::new(parts, node, Seat::Locked)),
            Found::Identity(identity) => identity,
            Found::Nothing => anyhow::bail!(
                "{} says that this node is in a cluster, but its certificate is missing from {}; restore the directory from a backup, or remove both and join again",
                parts.config.data_dir.join("node.json").display(),
                parts.vault.dir().display()
            ),
        };
        let role = identity.role();
        remember(&mut node, &identity, parts)?;
        parts.security.install(*identity)?;
        match role {
            NodeRole::Manager if node.raft_id != 0 => {
                if Store::is_locked(&parts.raft_dir())? {
                    return Ok(Self::new(parts, node, Seat::Locked));
                }
                let part = started(parts, &mut node).await?;
                Ok(Self::new(parts, node, Seat::Manager(Box::new(part))))
            }
            // What a crash in the middle of a change of role left undone is done by the first event.
            NodeRole::Manager | NodeRole::Worker if node.raft_id == 0 => Ok(Self::new(parts, node, Seat::Worker)),
            NodeRole::Manager | NodeRole::Worker => {
                let mut swarm = Self::new(parts, node, Seat::Worker);
                swarm.become_worker().await;
                Ok(swarm)
            }
        }
    }

    /// Opens a locked manager. On a wrong key nothing changes.
    ///
    /// # Errors
    /// [`BadRequest`] for a wrong key; else what keeps the manager from running, which is tried again later.
    pub async fn unlock(&mut self, key: UnlockKey) -> Result<()> {
        let parts = self.parts.clone();
        let had_identity = parts.security.identity().is_some();
        let identity = parts.vault.unlock(key).await.map_err(|error| match error {
            FileError::WrongUnlockKey { .. } => anyhow::Error::from(BadRequest(error.into())),
            other => other.into(),
        })?;
        let identity = identity.context("a locked manager has an identity")?;
        let (role, was) = (identity.role(), self.node.clone());
        remember(&mut self.node, &identity, &parts)?;
        parts.security.install(identity)?;
        if role == NodeRole::Worker || self.node.raft_id == 0 {
            self.seat = Seat::Worker;
            self.start_renewer();
            return Ok(());
        }
        let transport = PeerTransport::new(&parts.security);
        let store = match open_store(&parts, &self.node, &transport).await {
            Ok(store) => store,
            Err(error) if is_wrong_key(&error) => {
                parts.vault.hold(None).await;
                if !had_identity {
                    parts.security.clear()?;
                }
                self.node = was;
                return Err(BadRequest(error).into());
            }
            Err(error) => {
                self.vacate(format!("{error:#}"), super::Next::Start);
                self.start_renewer();
                return Err(error);
            }
        };
        if let Some(identity) = parts.security.identity() {
            parts.vault.settle(&identity).await?;
        }
        self.start_renewer();
        self.seat_manager(store, transport).await
    }
}

async fn started(parts: &NodeParts, node: &mut NodeFile) -> Result<ManagerPart> {
    // First: a port that is taken is said before a long log is read.
    let listener = bind(node.listen_addr).await?;
    let transport = PeerTransport::new(&parts.security);
    let store = open_store(parts, node, &transport).await?;
    if store.raft_id() != node.raft_id {
        // A recovery that was cut short.
        node.raft_id = store.raft_id();
        node.save(&parts.config.data_dir)?;
    }
    manager_of(parts, node, store, transport, listener).await
}

/// What a node whose identity is sealed must know by itself.
fn remember(node: &mut NodeFile, identity: &skep_ca::Identity, parts: &NodeParts) -> Result<()> {
    let (node_id, cluster_id) = (identity.node_id().to_string(), identity.cluster_id().to_string());
    if (&node.node_id, &node.cluster_id) != (&node_id, &cluster_id) {
        (node.node_id, node.cluster_id) = (node_id, cluster_id);
        node.save(&parts.config.data_dir)?;
    }
    Ok(())
}

fn is_wrong_key(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<StoreError>(), Some(StoreError::Disk(DiskError::WrongUnlockKey { .. })))
}
