//! Becoming a manager and ceasing to be one, while the node's tasks go on (wire-behaviour 7).

use super::manager::{bind, open_store};
use super::{ManagerPart, Next, Seat, Swarm, Vacant};
use crate::parts::NodeParts;
use crate::state::NodeFile;
use anyhow::Result;
use skep_ca::{NodeRole, SecurityConfig};
use skep_manager::PeerTransport;
use skep_store::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// A manager that was removed waits this long for its new role, asks, and waits as long again (wire-behaviour 7).
const ROLE_WAIT: Duration = Duration::from_secs(16);
/// A manager that does not start is started again after this time.
const START_AGAIN: Duration = Duration::from_secs(5);

/// Whether the certificate gives another role than the one that is played.
pub(super) fn differs(security: &SecurityConfig, plays_manager: bool) -> bool {
    security.identity().is_some_and(|identity| (identity.role() == NodeRole::Manager) != plays_manager)
}

/// The number of a new member of the raft group; never 0.
pub(super) fn new_raft_id() -> u64 {
    rand::random::<u64>() | 1
}

pub(super) async fn manager_of(
    parts: &NodeParts,
    node: &NodeFile,
    store: Store,
    transport: Arc<PeerTransport>,
    listener: TcpListener,
) -> Result<ManagerPart> {
    match ManagerPart::start(parts, node, store.clone(), transport, listener) {
        Ok(part) => Ok(part),
        Err(error) => {
            store.shutdown().await;
            Err(error)
        }
    }
}

impl Swarm {
    /// Plays the role that the certificate gives.
    pub(super) async fn follow_role(&mut self) {
        match self.parts.security.identity().map(|identity| identity.role()) {
            Some(NodeRole::Manager) => self.try_to_manage().await,
            Some(NodeRole::Worker) => self.become_worker().await,
            None => {}
        }
    }

    async fn try_to_manage(&mut self) {
        if let Err(error) = self.become_manager().await {
            let reason = format!("the manager of this node does not start: {error:#}");
            tracing::warn!(reason, "trying again");
            self.vacate(reason, Next::Start);
        }
    }

    pub(super) fn vacate(&mut self, reason: String, next: Next) {
        let wait = if next == Next::Start { START_AGAIN } else { ROLE_WAIT };
        self.seat = Seat::Vacant(Vacant { reason, next, at: Instant::now() + wait });
    }

    /// Starts the manager; for a number that is not in the group yet, with an empty store that the others fill.
    async fn become_manager(&mut self) -> Result<()> {
        let listener = bind(self.node.listen_addr).await?;
        if self.node.raft_id == 0 {
            // Left by a crash or by an earlier membership.
            self.parts.erase_raft()?;
            skep_failpoint::failpoint!("skepd.promote.erased");
            self.node.raft_id = new_raft_id();
            self.node.joining = true;
            // Before the others hear of the number: a member that they count must not be forgotten here.
            if let Err(error) = self.save_node() {
                self.node.raft_id = 0;
                return Err(error);
            }
            skep_failpoint::failpoint!("skepd.promote.noted");
        }
        let transport = PeerTransport::new(&self.parts.security);
        let store = open_store(&self.parts, &self.node, &transport).await?;
        skep_failpoint::failpoint!("skepd.promote.store");
        let part = manager_of(&self.parts, &self.node, store, transport, listener).await?;
        tracing::info!(raft_id = self.node.raft_id, listen = %self.node.listen_addr, "manager started");
        self.seat = Seat::Manager(Box::new(part));
        if !self.node.joining {
            self.use_local_manager(true).await;
        }
        Ok(())
    }

    /// Puts a manager on a store that is open already.
    pub(super) async fn seat_manager(&mut self, store: Store, transport: Arc<PeerTransport>) -> Result<()> {
        let started = match bind(self.node.listen_addr).await {
            Ok(listener) => manager_of(&self.parts, &self.node, store, transport, listener).await,
            Err(error) => {
                store.shutdown().await;
                Err(error)
            }
        };
        match started {
            Ok(part) => {
                self.seat = Seat::Manager(Box::new(part));
                if !self.node.joining {
                    self.use_local_manager(true).await;
                }
                Ok(())
            }
            Err(error) => {
                self.vacate(format!("the manager of this node does not start: {error:#}"), Next::Start);
                Err(error)
            }
        }
    }

    /// Stops the manager and erases what it knew. The agent goes on with the other managers.
    pub(super) async fn become_worker(&mut self) {
        self.use_local_manager(false).await;
        if let Seat::Manager(part) = std::mem::replace(&mut self.seat, Seat::Worker) {
            part.stop().await;
        }
        (self.node.raft_id, self.node.joining) = (0, false);
        let forgotten = self.save_node().and_then(|()| {
            skep_failpoint::failpoint!("skepd.demote.noted");
            self.parts.erase_raft()
        });
        if let Err(error) = forgotten {
            tracing::warn!(error = %format!("{error:#}"), "the cluster's state is still on this worker's disk; the next start erases it");
        }
        self.parts.vault.hold(None).await;
        tracing::info!("this node is a worker now");
    }

    /// The others took this manager off their list. If that was a demotion, the certificate will say so.
    pub(super) async fn removed(&mut self) {
        tracing::warn!(raft_id = self.node.raft_id, "this manager was removed from the group; asking for its new role");
        self.use_local_manager(false).await;
        self.vacate("this manager was removed by the others; it asks for its new role".into(), Next::Renew);
        // The sessions tell a demotion sooner; this is for a node whose sessions do not come about.
        if let Some(renewer) = &self.renewer {
            renewer.ask();
        }
    }

    /// The time of a vacant seat is up.
    pub(super) async fn retry(&mut self) {
        let Seat::Vacant(vacant) = &self.seat else { return };
        let (next, reason) = (vacant.next, vacant.reason.clone());
        let refused = self.renewer.as_ref().is_some_and(|renewer| !renewer.state().borrow().problem.is_empty());
        match next {
            Next::Start => self.try_to_manage().await,
            Next::Renew => {
                if let Some(renewer) = &self.renewer {
                    renewer.ask();
                }
                self.vacate(reason, Next::JoinAnew);
            }
            // Nobody renews the certificate of a node that was taken out of the cluster: it is no manager to be.
            Next::JoinAnew if refused => self.vacate(reason, Next::JoinAnew),
            Next::JoinAnew => {
                tracing::info!("this node is to be a manager all the same; joining the group anew");
                self.node.raft_id = 0;
                self.try_to_manage().await;
            }
        }
    }
}
