//! What the node tells of itself. It answers also while the daemon's loop is busy with something long.

use crate::agent::AgentState;
use crate::certificate::RenewerState;
use crate::local::wire_time;
use crate::state::NodeFile;
use crate::swarm::Announced;
use skep_agent::ManagerAddress;
use skep_ca::SecurityConfig;
use skep_manager::{AddressCounts, AddressTotals};
use skep_proto::skep::{AddressAudit, RefusedConnections, Replica, StatusResponse, status_response::Role};
use skep_store::Store;
use skep_types::{ClusterView as _, NodeRole};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// What of a node in a cluster may be told.
pub struct Shown {
    pub node: NodeFile,
    pub locked: bool,
    /// Why the node does not play its part, for people; empty if it does.
    pub problem: String,
    /// Of a manager that runs.
    pub store: Option<Store>,
    pub addresses: Option<Arc<AddressCounts>>,
    pub announced: Option<watch::Receiver<Announced>>,
    pub agent: watch::Receiver<AgentState>,
    pub renewer: Option<watch::Receiver<RenewerState>>,
    pub managers_file: PathBuf,
}

impl Shown {
    /// The managers it knows: as the agent has learnt them, else as the join command named them. Reads a file.
    pub fn managers(&self) -> Vec<ManagerAddress> {
        let known: Vec<ManagerAddress> =
            serde_json::from_slice(&std::fs::read(&self.managers_file).unwrap_or_default()).unwrap_or_default();
        if !known.is_empty() {
            return known;
        }
        self.node.managers.iter().map(|addr| ManagerAddress { node_id: String::new(), addr: addr.clone() }).collect()
    }

    /// Why the node does not play its part, for people; empty if it does.
    pub fn problem_now(&self) -> String {
        problem(self, &self.agent.borrow().problem)
    }
}

/// Where the daemon's loop leaves what `Status` shows. Clones share it.
#[derive(Clone)]
pub struct Board(Arc<Inner>);

struct Inner {
    security: SecurityConfig,
    started_at: SystemTime,
    shown: Mutex<Option<Arc<Shown>>>,
    /// Nothing was shown yet: what this node is, is still being found out. Sent again with everything shown.
    starting: watch::Sender<bool>,
}

/// Who asks while the daemon starts is answered when it has started, or after this time.
const START_LIMIT: Duration = Duration::from_secs(20);

impl Board {
    pub fn new(security: &SecurityConfig) -> Self {
        Self(Arc::new(Inner {
            security: security.clone(),
            started_at: SystemTime::now(),
            shown: Mutex::default(),
            starting: watch::Sender::new(true),
        }))
    }

    /// `None`: the node is in no cluster.
    pub fn show(&self, shown: Option<Shown>) {
        *self.0.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown.map(Arc::new);
        self.0.starting.send_replace(false);
    }

    /// What there is to show of a node in a cluster.
    pub fn shown(&self) -> Option<Arc<Shown>> {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is still being found out what this node is.
    pub fn is_starting(&self) -> bool {
        *self.0.starting.borrow()
    }

    /// What the node's certificate makes of it; `None` without one that can be read.
    pub fn role(&self) -> Option<NodeRole> {
        self.0.security.identity().map(|identity| identity.role())
    }

    /// Waits until there is something to tell, within limits.
    pub async fn started(&self) {
        let mut starting = self.0.starting.subscribe();
        let _ = tokio::time::timeout(START_LIMIT, starting.wait_for(|starting| !starting)).await;
    }

    /// Wakes whenever something else is shown.
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.0.starting.subscribe()
    }

    /// In three words or fewer, for systemd.
    pub fn summary(&self) -> &'static str {
        match (self.shown(), self.role()) {
            (Some(shown), _) if shown.locked => "locked manager",
            (Some(_), Some(NodeRole::Manager)) => "manager",
            (Some(_), Some(NodeRole::Worker)) => "worker",
            _ => "in no swarm",
        }
    }

    /// `replica`: reads all objects too.
    pub fn status(&self, replica: bool) -> StatusResponse {
        let identity = self.0.security.identity();
        let mut status = StatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: Some(wire_time(self.0.started_at)),
            ..StatusResponse::default()
        };
        let Some(shown) = self.shown() else {
            if self.is_starting() {
                status.problem = "the daemon is starting: it looks at what it had and clears away what it left".into();
            }
            return status;
        };
        let node = &shown.node;
        let role = match &identity {
            Some(identity) => Some(identity.role()),
            // Only managers are locked.
            None => shown.locked.then_some(NodeRole::Manager),
        };
        status.role = Role::from(role) as i32;
        status.node_id.clone_from(&node.node_id);
        status.cluster_id.clone_from(&node.cluster_id);
        status.certificate_expires_at = identity.map(|identity| wire_time(identity.not_after()));
        status.locked = shown.locked;
        if role == Some(NodeRole::Manager) {
            status.listen_addr = node.listen_addr.to_string();
            status.advertise_addr = node.advertise_addr.to_string();
            status.refused = Some(refused(&self.0.security));
        }
        let agent = shown.agent.borrow();
        status.connected = agent.session.connected;
        status.runtime.clone_from(&agent.runtime);
        status.problem = problem(&shown, &agent.problem);
        status.managers = shown.managers().into_iter().map(|manager| manager.addr).collect();
        if let Some(store) = &shown.store {
            status.leader = store.leadership().borrow().is_leader;
            status.replica = replica.then(|| replica_of(store));
        }
        status.addresses = shown.addresses.as_ref().and_then(|counts| counts.totals()).map(audited);
        status
    }
}

fn refused(security: &SecurityConfig) -> RefusedConnections {
    let skep_ca::Refused { no_certificate, foreign, expired, unfinished, crowded, malformed } = security.refused();
    RefusedConnections { no_certificate, foreign, expired, unfinished, crowded, malformed }
}

fn audited(totals: AddressTotals) -> AddressAudit {
    let AddressTotals { audits, doubled, leaked, missed, mended } = totals;
    AddressAudit { audits, doubled, leaked, missed, mended }
}

fn replica_of(store: &Store) -> Replica {
    let (view, status) = (store.view(), store.status());
    Replica { raft_id: status.raft_id, term: status.term, revision: view.version().0, hash: view.state_hash().0.to_vec() }
}

/// The cause before its consequences.
fn problem(shown: &Shown, agent: &str) -> String {
    if shown.locked {
        // That nothing else works is no news.
        return shown.problem.clone();
    }
    let announced = shown.announced.as_ref().map(|told| told.borrow().problem().to_owned()).unwrap_or_default();
    let announced = if announced.is_empty() { announced } else { format!("the other managers do not have this one yet: {announced}") };
    let renewer = shown.renewer.as_ref().map(|state| state.borrow().problem.clone()).unwrap_or_default();
    let store = shown.store.as_ref().and_then(|store| store.status().broken).unwrap_or_default();
    let all = [shown.problem.clone(), store, announced, renewer, agent.to_owned()];
    all.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
}
