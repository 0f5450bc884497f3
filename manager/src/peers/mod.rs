//! The other managers: calling them, being called by them, becoming one of them and leaving them.
//!
//! ```text
//!  raft ──► PeerTransport ──► Links per manager ──TLS──► Raft service ──► Store::answer
//!  forward ──────┘                                       Membership service ──► raft group
//! ```
//! Every connection makes sure that the other end is the node it is meant for. What is under way for raft, what is
//! passed on for clients and what for agents have connections of their own: none waits for the others.

mod admit;
mod announce;
mod group;
mod join;
mod leave;
mod link;
mod membership;
mod raft;
mod reach;
mod warm;

pub(crate) use self::announce::announce;
pub(crate) use self::group::{Group, follow};
pub use self::join::{JoinError, join_managers};
pub use self::leave::LeaveError;
pub(crate) use self::leave::leave;
pub(crate) use self::link::{Link, LinkService};
pub(crate) use self::membership::{Departure, MembershipService, depart};
pub(crate) use self::raft::{MAX_RAFT_MESSAGE, RaftService};
pub(crate) use self::warm::keep_warm;

use self::link::{DialError, Links, Target};
use self::reach::Reach;
use async_trait::async_trait;
use skep_ca::SecurityConfig;
use skep_proto::skep::raft_client::RaftClient;
use skep_proto::skep::{RaftCallRequest, raft_call_request::Kind};
use skep_store::{Member, RaftCall, RaftId, RaftTransport, TransportError};
use skep_types::Reachability;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Code, Status};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Raft,
    /// Calls of clients, passed on.
    Forward,
    /// What agents want, passed on: hundreds of streams on each connection.
    Agents,
}

impl Purpose {
    /// How long the other end may be quiet before a connection counts as dead.
    pub(crate) fn silence(self) -> Duration {
        match self {
            // Another connection costs little, and each call has a time-out of its own.
            Self::Raft => Duration::from_secs(2),
            // It carries sessions of hundreds of agents: a leader that is only busy must not lose them all. One that is dead is
            // noticed sooner, by who leads next.
            Self::Forward | Self::Agents => Duration::from_secs(6),
        }
    }
}

/// Calls other managers over mutual TLS. One per manager; raft and the forwarder share it.
pub struct PeerTransport {
    security: SecurityConfig,
    /// This manager's number; 0 until it has started.
    own: AtomicU64,
    peers: Mutex<HashMap<(Purpose, RaftId), Arc<Links>>>,
    reach: Reach,
}

/// Raft calls need a manager that has started: its peers check who calls.
#[derive(Debug, thiserror::Error)]
#[error("this manager has not started yet")]
struct NotStarted;

impl PeerTransport {
    #[must_use]
    pub fn new(security: &SecurityConfig) -> Arc<Self> {
        let (own, peers, reach) = (AtomicU64::new(0), Mutex::default(), Reach::default());
        Arc::new(Self { security: security.clone(), own, peers, reach })
    }

    /// Says which manager this is; before that no raft call is made.
    pub(crate) fn started(&self, own: RaftId) {
        self.own.store(own, Ordering::Relaxed);
    }

    /// A connection to a manager at its present address; those to an earlier one are dropped.
    pub(crate) async fn link(&self, purpose: Purpose, peer: RaftId, member: &Member) -> Result<Link, Arc<DialError>> {
        let links = {
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            match peers.get(&(purpose, peer)) {
                Some(links) if links.leads_to(member) => links.clone(),
                _ => {
                    let target = Target { node: Some(member.node_id.clone()), addr: member.addr.clone() };
                    let links = Arc::new(Links::new(&self.security, target, purpose.silence()));
                    peers.insert((purpose, peer), links.clone());
                    links
                }
            }
        };
        let link = links.get().await;
        if link.is_err() {
            self.reach.failed(peer);
        }
        link
    }

    /// As the last calls tell.
    pub(crate) fn reachability(&self, peer: RaftId) -> Reachability {
        self.reach.of(peer)
    }

    /// Whether the last call was answered, just now.
    pub(crate) fn answers(&self, peer: RaftId) -> bool {
        self.reach.answers(peer)
    }

    /// The managers that do not take this one for a manager any more.
    pub(crate) fn refusing(&self) -> watch::Receiver<BTreeSet<RaftId>> {
        self.reach.refusing()
    }

    /// Drops what there is of managers that are no members any more.
    pub(crate) fn keep(&self, members: &BTreeSet<RaftId>) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, peer), _| members.contains(peer));
        self.reach.keep(members);
    }

    async fn raft_call(&self, peer: RaftId, member: &Member, call: RaftCall, payload: Vec<u8>) -> Result<Vec<u8>, TransportError> {
        let unreachable =
            |source: Box<dyn std::error::Error + Send + Sync>| TransportError::Unreachable { target: peer, source: Some(source) };
        let own = self.own.load(Ordering::Relaxed);
        if own == 0 {
            return Err(unreachable(Box::new(NotStarted)));
        }
        let link = self.link(Purpose::Raft, peer, member).await.map_err(|error| unreachable(Box::new(error)))?;
        let origin = http::Uri::from_static("https://swarm-manager");
        let mut client = RaftClient::with_origin(LinkService(link), origin)
            .max_decoding_message_size(MAX_RAFT_MESSAGE)
            .max_encoding_message_size(MAX_RAFT_MESSAGE);
        let request = RaftCallRequest { kind: kind_of(call) as i32, from: own, target: peer, payload };
        match client.call(request).await {
            Ok(answer) => {
                self.reach.answered(peer);
                Ok(answer.into_inner().payload)
            }
            Err(status) => {
                self.note(peer, &status);
                Err(TransportError::Failed { target: peer, source: Some(Box::new(status)) })
            }
        }
    }

    fn note(&self, peer: RaftId, status: &Status) {
        match status.code() {
            Code::NotFound | Code::PermissionDenied => {
                tracing::debug!(peer, why = status.message(), "raft call refused");
                self.reach.refused(peer);
            }
            _ => self.reach.failed(peer),
        }
    }
}

/// Notes a call that was given up before it was answered.
struct GivenUp<'a> {
    transport: &'a PeerTransport,
    peer: RaftId,
    ended: bool,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.transport.reach.failed(self.peer);
        }
    }
}

#[async_trait]
impl RaftTransport for PeerTransport {
    async fn call(
        &self,
        target: RaftId,
        member: &Member,
        call: RaftCall,
        request: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        let mut given_up = GivenUp { transport: self, peer: target, ended: false };
        let outcome = tokio::time::timeout(timeout, self.raft_call(target, member, call, request)).await;
        match outcome {
            Ok(outcome) => {
                given_up.ended = true;
                outcome
            }
            Err(late) => Err(TransportError::Failed { target, source: Some(Box::new(late)) }),
        }
    }
}

fn kind_of(call: RaftCall) -> Kind {
    match call {
        RaftCall::AppendEntries => Kind::AppendEntries,
        RaftCall::Vote => Kind::Vote,
        RaftCall::InstallSnapshot => Kind::InstallSnapshot,
        RaftCall::PreVote => Kind::PreVote,
        RaftCall::TimeoutNow => Kind::TimeoutNow,
    }
}

fn call_of(kind: Kind) -> RaftCall {
    match kind {
        Kind::AppendEntries => RaftCall::AppendEntries,
        Kind::Vote => RaftCall::Vote,
        Kind::InstallSnapshot => RaftCall::InstallSnapshot,
        Kind::PreVote => RaftCall::PreVote,
        Kind::TimeoutNow => RaftCall::TimeoutNow,
    }
}
