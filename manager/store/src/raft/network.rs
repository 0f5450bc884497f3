//! Managers calling each other. Requests and answers are bytes, so that any transport can carry them.

use crate::codec;
use crate::disk::log::{LogShared, room};
use crate::raft::lines::Lines;
use crate::raft::polls::{Polls, PreVoteRequest, TimeoutNow};
use crate::raft::types::{LogId, Member, Raft, RaftId, RaftTypes};
use async_trait::async_trait;
use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Which of the calls it is. A transport does not look into any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RaftCall {
    AppendEntries,
    Vote,
    InstallSnapshot,
    /// Would you vote for me? Changes nothing.
    PreVote,
    /// The leader wants the called manager to take over.
    TimeoutNow,
}

/// Why a call to another manager did not get an answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nobody is there; the next try comes after a pause.
    #[error("manager {target} cannot be reached")]
    Unreachable { target: RaftId, source: Option<Box<dyn std::error::Error + Send + Sync>> },
    /// The call failed on the way or the other side could not answer now; it may be tried again at once.
    #[error("the call to manager {target} failed")]
    Failed { target: RaftId, source: Option<Box<dyn std::error::Error + Send + Sync>> },
}

/// Carries calls to other managers; the answer is what [`Store::answer`](crate::Store::answer) returned there.
///
/// An implementation must make sure that it talks to the manager with that raft id and no other.
#[async_trait]
pub trait RaftTransport: Send + Sync + 'static {
    async fn call(
        &self,
        target: RaftId,
        member: &Member,
        call: RaftCall,
        request: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, TransportError>;
}

/// No other managers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

#[async_trait]
impl RaftTransport for Alone {
    async fn call(&self, target: RaftId, _: &Member, _: RaftCall, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, TransportError> {
        Err(TransportError::Unreachable { target, source: None })
    }
}

/// Makes a [`Peer`] for each other manager.
#[derive(Clone)]
pub(crate) struct Network(pub(crate) Arc<Lines>);

impl RaftNetworkFactory<RaftTypes> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: RaftId, member: &Member) -> Peer {
        Peer { target, member: member.clone(), lines: Arc::clone(&self.0), failures: 0, not_before: None, carried: None }
    }
}

pub(crate) struct Peer {
    target: RaftId,
    member: Member,
    lines: Arc<Lines>,
    /// Calls that failed one after the other.
    failures: u32,
    not_before: Option<Instant>,
    /// When entries sent from here were last answered.
    carried: Option<Instant>,
}

/// The longest pause before the next entries or snapshot for a manager that does not take them.
const APPEND_PAUSE: Duration = Duration::from_millis(100);
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(2);

type CallError<E> = RPCError<RaftId, Member, RaftError<RaftId, E>>;

impl Peer {
    async fn call<Q, A, E>(&self, call: RaftCall, request: &Q, option: &RPCOption) -> Result<A, CallError<E>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let request = codec::encode("raft request", request).map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        let answer = self.lines.transport.call(self.target, &self.member, call, request, option.hard_ttl()).await;
        let answer = answer.map_err(|error| match error {
            TransportError::Unreachable { .. } => RPCError::Unreachable(Unreachable::new(&error)),
            TransportError::Failed { .. } => RPCError::Network(NetworkError::new(&error)),
        })?;
        let answer: Result<A, RaftError<RaftId, E>> =
            codec::decode("raft answer", &answer).map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

impl Peer {
    /// openraft tries again at once unless nobody is there; a manager whose disk is full would be sent the same without end.
    ///
    /// The pause ends at a time rather than after one: openraft bounds the call with the pause in it, and a call that was given
    /// up during the pause must not find it before it again.
    async fn pause(&self) {
        if let Some(until) = self.not_before {
            tokio::time::sleep_until(until).await;
        }
    }

    fn note<T, E>(&mut self, outcome: Result<T, E>, longest: Duration) -> Result<T, E> {
        match &outcome {
            Ok(_) => {
                (self.failures, self.not_before) = (0, None);
                self.lines.note_answer(self.target);
            }
            Err(_) => {
                self.not_before = Some(Instant::now() + Duration::from_millis(5 << self.failures.min(10)).min(longest));
                self.failures = self.failures.saturating_add(1);
            }
        }
        outcome
    }
}

/// How long word of what is committed waits for entries to go with.
///
/// openraft sends it by itself, in a call without entries, as soon as something is committed; and a follower gets one call at a
/// time (0.9.25, `replication/mod.rs`). So the next entries, which often come at once, would wait until that call is answered,
/// and every write would cost two calls to each follower instead of one.
const LINGER: Duration = Duration::from_millis(2);

impl Peer {
    /// Waits a moment whether entries come that take the place of a call without any.
    ///
    /// Only behind entries that the follower took just now, so that what is saved is a call that would have been answered. Others
    /// without entries are heartbeats or ask whether this manager still leads (`ensure_linearizable`, over a peer of its own that
    /// carries no entries): those have to be answered by the follower itself.
    async fn superseded(&self, after: Option<LogId>, limit: Duration) -> bool {
        let linger = LINGER.min(limit / 8);
        let follows = self.carried.is_some_and(|at| at.elapsed() < linger);
        if !follows || self.lines.log.index().last() != after {
            return false;
        }
        tokio::time::timeout(linger, self.lines.log.longer_than(after)).await.is_ok()
    }
}

impl RaftNetwork<RaftTypes> for Peer {
    async fn append_entries(
        &mut self,
        mut request: AppendEntriesRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, RPCError<RaftId, Member, RaftError<RaftId>>> {
        check_gap(&request).map_err(|gap| RPCError::Network(NetworkError::new(&gap)))?;
        if request.entries.is_empty() && self.superseded(request.prev_log_id, option.hard_ttl()).await {
            return Ok(AppendEntriesResponse::Success);
        }
        self.lines.free().await;
        self.pause().await;
        request.leader_commit = self.lines.committed(request.leader_commit);
        let carried = self.carried.take();
        let answer = self.call(RaftCall::AppendEntries, &request, &option).await;
        if matches!(answer, Ok(AppendEntriesResponse::Success)) {
            self.carried = if request.entries.is_empty() { carried } else { Some(Instant::now()) };
        }
        self.note(answer, APPEND_PAUSE)
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<RaftId>, RPCError<RaftId, Member, RaftError<RaftId, InstallSnapshotError>>> {
        self.lines.free().await;
        self.pause().await;
        let answer = self.call(RaftCall::InstallSnapshot, &request, &option).await;
        self.note(answer, SNAPSHOT_PAUSE)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<RaftId>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftId>, RPCError<RaftId, Member, RaftError<RaftId>>> {
        self.call(RaftCall::Vote, &request, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new([50, 100, 200].into_iter().chain(std::iter::repeat(400)).map(Duration::from_millis))
    }
}

/// Entries that do not follow what they claim to follow. openraft 0.9 can build such a request after a failed read of
/// the log (its issue #1795) and a follower would append it: neither side lets one pass.
#[derive(Debug, thiserror::Error)]
#[error("entry {found} was sent where entry {wanted} belongs")]
pub struct Gap {
    wanted: u64,
    found: u64,
}

fn check_gap(request: &AppendEntriesRequest<RaftTypes>) -> Result<(), Gap> {
    let next = request.prev_log_id.map_or(0, |id| id.index + 1);
    let found = request.entries.iter().map(|entry| entry.log_id.index);
    match found.zip(next..).find(|(found, wanted)| found != wanted) {
        Some((found, wanted)) => Err(Gap { wanted, found }),
        None => Ok(()),
    }
}

/// Why a call of another manager got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    /// The request would leave a gap in the log.
    #[error(transparent)]
    Gap(#[from] Gap),
    /// The message speaks for another manager than the one that sent it.
    #[error("raft member {from} speaks for member {claimed}")]
    Forged { from: RaftId, claimed: RaftId },
    /// No candidate and no leader can say that.
    #[error("{what} at entry {index}: whoever says so was not elected by this group")]
    Impossible { what: &'static str, index: u64 },
    /// There is no room for the entries; the leader tries again.
    #[error("the log has no room")]
    Disk(#[source] Arc<crate::DiskError>),
    /// The entries are not on this disk; the leader tries again.
    #[error("the entries were not on the disk within {:?}", DURABLE_LIMIT)]
    NotDurable,
}

/// How long an answer waits for the disk. The leader gives up much earlier, asks again and finds it done.
const DURABLE_LIMIT: Duration = Duration::from_secs(10);

/// Candidates and leaders speak for themselves only.
fn check_speaker(from: Option<RaftId>, claimed: Option<RaftId>) -> Result<(), AnswerError> {
    match (from, claimed.unwrap_or_default()) {
        (Some(from), claimed) if from != claimed => Err(AnswerError::Forged { from, claimed }),
        _ => Ok(()),
    }
}

/// Whoever is elected has everything that is committed. openraft takes that for granted and would follow, or panic, where a message
/// contradicts it (0.9.25, `raft_state/log_state_reader.rs`, `has_log_id`).
fn check_committed(log: &LogShared, request: &AppendEntriesRequest<RaftTypes>) -> Result<(), AnswerError> {
    let Some(committed) = log.committed() else { return Ok(()) };
    let index = log.index();
    let mut told = request.prev_log_id.into_iter().chain(request.entries.iter().map(|entry| entry.log_id));
    let contradicts = |id: &LogId| id.index <= committed.index && index.id_at(id.index).map_or(*id > committed, |known| known != *id);
    match told.find(contradicts) {
        Some(id) => Err(AnswerError::Impossible { what: "another entry than the one that is committed", index: id.index }),
        None => Ok(()),
    }
}

/// Answers a call of another manager; `from` is who it proved to be, where that is known.
pub(crate) async fn answer(
    raft: &Raft,
    log: &Arc<LogShared>,
    polls: &Polls,
    from: Option<RaftId>,
    call: RaftCall,
    request: &[u8],
) -> Result<Vec<u8>, AnswerError> {
    let bytes = match call {
        RaftCall::PreVote => {
            let asked: PreVoteRequest = codec::decode("raft request", request)?;
            check_speaker(from, Some(asked.candidate))?;
            codec::encode("raft answer", &polls.promise(raft, &asked))
        }
        RaftCall::TimeoutNow => {
            let order: TimeoutNow = codec::decode("raft request", request)?;
            check_speaker(from, Some(order.leader))?;
            codec::encode("raft answer", &polls.order(raft, order))
        }
        RaftCall::Vote => {
            let asked: VoteRequest<RaftId> = codec::decode("raft request", request)?;
            check_speaker(from, asked.vote.leader_id().voted_for())?;
            if asked.vote.is_committed() {
                let index = asked.last_log_id.map_or(0, |id| id.index);
                return Err(AnswerError::Impossible { what: "a candidate that is elected already", index });
            }
            let answer = raft.vote(asked).await;
            if answer.as_ref().is_ok_and(|answer| answer.vote_granted) {
                polls.voted();
            }
            codec::encode("raft answer", &answer)
        }
        RaftCall::InstallSnapshot => {
            let part: InstallSnapshotRequest<RaftTypes> = codec::decode("raft request", request)?;
            check_speaker(from, part.vote.leader_id().voted_for())?;
            polls.hear(raft, &part.vote);
            codec::encode("raft answer", &raft.install_snapshot(part).await)
        }
        RaftCall::AppendEntries => {
            let entries: AppendEntriesRequest<RaftTypes> = codec::decode("raft request", request)?;
            check_speaker(from, entries.vote.leader_id().voted_for())?;
            check_gap(&entries)?;
            check_committed(log, &entries)?;
            polls.hear(raft, &entries.vote);
            if !entries.entries.is_empty() {
                // Refused here, it is a follower that lags; failed in the log, it would be a manager that stopped.
                room(log, request.len(), entries.entries.len()).await.map_err(AnswerError::Disk)?;
            }
            let upto = entries.entries.last().map(|entry| entry.log_id).or(entries.prev_log_id);
            let answer = raft.append_entries(entries).await;
            #[cfg(feature = "sim")]
            if crate::seam::has_fault(crate::sim::Fault::AnswerBeforeSync) {
                return Ok(codec::encode("raft answer", &answer)?);
            }
            if let (Ok(AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_)), Some(upto)) = (&answer, upto) {
                // The leader counts us from here on (see the head of `raft/log.rs`).
                let durable = tokio::time::timeout(DURABLE_LIMIT, log.wait_durable(upto)).await;
                durable.ok().and_then(Result::ok).ok_or(AnswerError::NotDurable)?;
            }
            codec::encode("raft answer", &answer)
        }
    };
    Ok(bytes?)
}

#[cfg(test)]
mod tests;
