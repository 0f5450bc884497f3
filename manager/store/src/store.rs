//! The handle that everybody holds.

mod housekeeping; // snapshots when due, the end when broken
mod keys; // locking the data key
mod membership; // who is in the group
mod start; // making, opening, joining
mod status; // how it is

pub use self::status::StoreStatus;

use crate::backup::Backup;
use crate::config::Clock;
use crate::disk::keys::Keys;
use crate::error::{ProposeError, StoreError};
use crate::feed::Feed;
use crate::group::MemberStatus;
use crate::leadership::Leadership;
use crate::propose::{MAX_TRANSACTION_BYTES, Proposal};
use crate::raft::lines::Lines;
use crate::raft::log::{Broken, LogStore, WriterThread};
use crate::raft::machine::Published;
use crate::raft::network::{self, AnswerError, RaftCall};
use crate::raft::polls::Polls;
use crate::raft::types::{Raft, RaftId, Transaction, encode_transaction};
use crate::seam::blocking;
use crate::table::StateHash;
use crate::transfer::Office;
use crate::view::View;
use openraft::error::{CheckIsLeaderError, RaftError};
use skep_types::{Action, UnlockKey, Version};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

struct Inner {
    raft: Raft,
    raft_id: RaftId,
    log: LogStore,
    published: Arc<Published>,
    polls: Arc<Polls>,
    lines: Arc<Lines>,
    office: Office,
    leadership: watch::Receiver<Leadership>,
    members: watch::Receiver<Vec<MemberStatus>>,
    keys: Keys,
    /// Where the data key is kept; `None` if the caller has it. Locked while the file is replaced.
    key_file: Option<Arc<Mutex<PathBuf>>>,
    proposals: mpsc::Sender<Proposal>,
    broken: Broken,
    clock: Clock,
    propose_timeout: Duration,
    stop: CancellationToken,
    tasks: Mutex<Option<JoinSet<()>>>,
    writer: Mutex<Option<WriterThread>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The replicated store of one manager. Clones are handles on the same store.
///
/// End it with [`Store::shutdown`]; a store that is merely dropped leaves its directory as a crash would.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl std::fmt::Debug for Store {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Store").field("raft_id", &self.0.raft_id).field("version", &self.view().revision()).finish()
    }
}

impl Store {
    /// This manager's number in the raft group.
    #[must_use]
    pub fn raft_id(&self) -> RaftId {
        self.0.raft_id
    }

    /// The cluster as this manager has applied it: immutable and cheap. On the leader it contains every acknowledged
    /// proposal; a follower may be behind.
    #[must_use]
    pub fn view(&self) -> View {
        self.0.published.view.borrow().clone()
    }

    /// Commits `actions` together or not at all, and returns when a majority has them on disk and the view shows them.
    ///
    /// The version is that of the objects written; if nothing had to change, the present one. Dropping the future takes
    /// the proposal back only if its turn has not come.
    ///
    /// # Errors
    /// See [`ProposeError`], which tells for each whether something may have been changed.
    pub async fn propose(&self, actions: Vec<Action>) -> Result<Version, ProposeError> {
        let leader = {
            let leadership = self.0.leadership.borrow();
            (!leadership.is_leader).then(|| leadership.leader.clone())
        };
        if let Some(leader) = leader {
            if let Some(error) = &*self.0.broken.borrow() {
                return Err(ProposeError::Disk(Arc::clone(error)));
            }
            return Err(ProposeError::NotLeader { leader: leader.map(|(_, member)| member) });
        }
        if self.0.office.transfer.is_on() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        let transaction = Transaction { now: (self.0.clock)(), actions };
        let encoded = encode_transaction(&transaction).map_err(|error| ProposeError::Disk(Arc::new(error.into())))?;
        let limit = MAX_TRANSACTION_BYTES.min(self.0.log.shared().max_entry() - 1024);
        if encoded.len() > limit {
            return Err(ProposeError::TooLarge { bytes: encoded.len(), limit });
        }
        let (answer, answered) = oneshot::channel();
        self.0.proposals.send(Proposal { transaction, encoded, answer }).await.map_err(|_| ProposeError::Stopped)?;
        answered.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// Returns when the view is newer than `version`; at once if it is already. Pending for ever once the store has stopped.
    pub async fn changed_since(&self, version: Version) {
        let mut view = self.0.published.view.subscribe();
        if view.wait_for(|view| view.revision() > version).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The commits behind `from`, in order, as they come.
    #[must_use]
    pub fn feed(&self, from: Version) -> Feed {
        self.0.published.feeds.subscribe(from)
    }

    /// Who leads; the receiver wakes when that changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    /// Whether this manager leads, see [`Leadership::is_leader`].
    #[must_use]
    pub fn leads(&self) -> bool {
        self.0.leadership.borrow().is_leader
    }

    /// Waits until this manager leads.
    ///
    /// # Errors
    /// [`StoreError::Timeout`] when the time is up.
    pub async fn wait_leader(&self, timeout: Duration) -> Result<(), StoreError> {
        let mut leadership = self.leadership();
        match tokio::time::timeout(timeout, leadership.wait_for(|leadership| leadership.is_leader)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Stopped),
            Err(_) => Err(StoreError::Timeout(timeout)),
        }
    }

    /// Returns when the view contains everything that was acknowledged before the call, asking a majority.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] anywhere but on the leader.
    pub async fn read_barrier(&self) -> Result<(), StoreError> {
        let timeout = self.0.propose_timeout;
        match tokio::time::timeout(timeout, self.0.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Err(StoreError::NotLeader { leader: forward.leader_node })
            }
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(error)))) => Err(StoreError::Raft { source: Box::new(error) }),
            Ok(Err(RaftError::Fatal(_))) => Err(StoreError::Stopped),
            Err(_) => Err(StoreError::Timeout(timeout)),
        }
    }

    /// See [`Tables::state_hash`](crate::Tables::state_hash).
    #[must_use]
    pub fn state_hash(&self) -> StateHash {
        self.view().state_hash()
    }

    /// Changes [`StoreConfig::snapshot_entries`].
    pub fn set_snapshot_entries(&self, entries: u64) {
        self.0.published.snapshots.every_entries.store(entries.max(1), std::sync::atomic::Ordering::Relaxed);
    }

    /// Changes [`StoreConfig::keep_entries`], from the next snapshot on.
    ///
    /// Of the cluster's raft settings only this and [`Store::set_snapshot_entries`] can be changed while the store is open:
    /// heartbeats and election times are fixed when openraft starts, and have to be the same on all managers.
    pub fn set_keep_entries(&self, entries: u64) {
        self.0.published.snapshots.keep_entries.store(entries, std::sync::atomic::Ordering::Relaxed);
    }

    /// Makes a snapshot now instead of when it is due. Returns at once.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    pub async fn trigger_snapshot(&self) -> Result<(), StoreError> {
        self.0.raft.trigger().snapshot().await.map_err(|_| StoreError::Stopped)
    }

    /// Answers a call that another manager made through its [`RaftTransport`].
    ///
    /// # Errors
    /// The caller gets no answer and will try again.
    pub async fn answer(&self, call: RaftCall, request: &[u8]) -> Result<Vec<u8>, AnswerError> {
        network::answer(&self.0.raft, self.0.log.shared(), &self.0.polls, None, call, request).await
    }

    /// The same for a caller that proved to be `from`: what it says in the name of another member is refused.
    ///
    /// # Errors
    /// [`AnswerError::Forged`], and what [`Self::answer`] says.
    pub async fn answer_from(&self, from: RaftId, call: RaftCall, request: &[u8]) -> Result<Vec<u8>, AnswerError> {
        network::answer(&self.0.raft, self.0.log.shared(), &self.0.polls, Some(from), call, request).await
    }

    /// Makes every write of the log take longer, as on a slow disk: for tests.
    #[cfg(feature = "failpoints")]
    pub fn slow_down(&self, each: Duration) {
        let millis = u64::try_from(each.as_millis()).unwrap_or(u64::MAX);
        self.0.log.shared().delay_ms.store(millis, std::sync::atomic::Ordering::Relaxed);
    }

    /// The whole state as this manager has applied it, sealed with `key`, chunk by chunk.
    #[must_use]
    pub fn backup(&self, key: &UnlockKey) -> Backup {
        let managers = self.status().members.into_iter().map(|member| member.member.addr).collect();
        Backup::start(self.view(), (self.0.clock)(), managers, key)
    }

    /// Ends the store in order: no new proposals, what is being written is finished, the log is marked as closed.
    /// Returns when no task or thread of it is left. A second call does nothing.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        let tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut tasks) = tasks {
            while tasks.join_next().await.is_some() {}
        }
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "raft did not end in order");
        }
        let published = Arc::clone(&self.0.published);
        let _ = blocking(move || published.snapshots.end()).await;
        let writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            if let Err(error) = self.0.log.close().await {
                tracing::warn!(%error, "the log was not closed in order; the next start checks it as after a crash");
            }
            let _ = blocking(move || writer.join()).await;
        }
        self.0.published.feeds.close();
    }
}
