//! The handle that everybody holds.

use crate::backup::Backup;
use crate::config::{Clock, StoreConfig, raft_config};
use crate::disk::DiskError;
use crate::disk::keys::Keys;
use crate::election::{self, Role};
use crate::error::{ProposeError, StoreError};
use crate::feed::Feed;
use crate::group::{self, MemberStatus};
use crate::leadership::{Leadership, watch_leadership};
use crate::open::{KEY_FILE, Opened};
use crate::plant::{self, Recovery};
use crate::propose::{MAX_TRANSACTION_BYTES, Proposal, Proposer, WAITING};
use crate::raft::lines::Lines;
use crate::raft::log::{Broken, LogStore};
use crate::raft::machine::{Published, SnapshotProgress};
use crate::raft::network::{self, AnswerError, Network, RaftCall, RaftTransport};
use crate::raft::polls::{self, Polls};
use crate::raft::runtime::Rest;
use crate::raft::types::{Member, Raft, RaftId, RaftState, Transaction, encode_transaction};
use crate::table::StateHash;
use crate::transfer::{Office, Transfer, give_way_when_full};
use crate::view::View;
use openraft::ChangeMembers;
use openraft::error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError};
use skep_types::{Action, UnlockKey, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How the raft group is, as seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    pub raft_id: RaftId,
    pub leader: Option<RaftId>,
    pub term: u64,
    pub last_log_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub snapshot_index: Option<u64>,
    pub purged_index: Option<u64>,
    /// On the leader: since a majority last answered.
    pub quorum_age: Option<Duration>,
    /// Since a leader was last heard from; `None` if none was since the start.
    pub leader_heard: Option<Duration>,
    /// A leader has said that this manager is not a member of the group any more.
    pub removed: bool,
    pub members: Vec<MemberStatus>,
    /// A change of voters is half-way: both the old and the new ones have to agree to everything until it is finished.
    pub changing: bool,
    /// Why the last snapshot could not be written, until one is.
    pub snapshot_error: Option<String>,
    /// Why nothing can be written any more.
    pub broken: Option<String>,
    /// How often the process has made files durable since its start.
    pub syncs: u64,
}

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
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
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
    /// Makes a new store with this manager as its only voter, and waits until it leads.
    ///
    /// A bootstrap that was cut short is finished by calling it again.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if the directory holds a finished store.
    pub async fn bootstrap(
        config: StoreConfig,
        raft_id: RaftId,
        member: Member,
        transport: Arc<dyn RaftTransport>,
    ) -> Result<Self, StoreError> {
        let dir = config.dir.clone();
        let store = Self::start(config, Some(raft_id), transport).await?;
        if store.0.raft.is_initialized().await.map_err(|_| StoreError::Stopped)? {
            store.shutdown().await;
            return Err(StoreError::Exists { dir });
        }
        skep_failpoint::failpoint!("store.bootstrap.initialize");
        match store.0.raft.initialize(BTreeMap::from([(store.0.raft_id, member)])).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => return Err(StoreError::Exists { dir }),
            Err(error) => return Err(StoreError::Raft { source: Box::new(error) }),
        }
        store.wait_leader(Duration::from_secs(30)).await?;
        Ok(store)
    }

    /// Opens the store in `config.dir`: snapshot and log are read and checked before anything is applied.
    ///
    /// An only voter leads again soon: see [`Store::leadership`].
    ///
    /// # Errors
    /// [`StoreError::Empty`] if there is none; a [`DiskError`] that says what is damaged and what to do.
    pub async fn open(config: StoreConfig, transport: Arc<dyn RaftTransport>) -> Result<Self, StoreError> {
        let dir = config.dir.clone();
        let store = Self::start(config, None, transport).await?;
        if !store.0.raft.is_initialized().await.map_err(|_| StoreError::Stopped)? {
            store.shutdown().await;
            return Err(StoreError::Empty { dir });
        }
        let me = store.0.raft_id;
        let alone = move |state: &RaftState| {
            let membership = state.membership_state.effective().membership();
            election::role(me, false, membership) == Role::OnlyVoter
        };
        // There is nobody to wait for.
        if store.0.raft.with_raft_state(alone).await.map_err(|_| StoreError::Stopped)? {
            store.0.raft.trigger().elect().await.map_err(|_| StoreError::Stopped)?;
        }
        Ok(store)
    }

    /// Makes an empty store that waits for a leader to add it. `raft_id` must be new to the cluster.
    ///
    /// May be called again on a store that never heard of a leader.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if the directory holds a store that is part of a cluster.
    pub async fn join(config: StoreConfig, raft_id: RaftId, transport: Arc<dyn RaftTransport>) -> Result<Self, StoreError> {
        let dir = config.dir.clone();
        let store = Self::start(config, Some(raft_id), transport).await?;
        if store.0.raft.is_initialized().await.map_err(|_| StoreError::Stopped)? {
            store.shutdown().await;
            return Err(StoreError::Exists { dir });
        }
        Ok(store)
    }

    async fn start(config: StoreConfig, make: Option<RaftId>, transport: Arc<dyn RaftTransport>) -> Result<Self, StoreError> {
        let raft_config = raft_config(&config)?;
        let opened = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || Opened::open(&config, make)).await.map_err(|_| StoreError::Stopped)??
        };
        let Opened { log, raft_id, keys, machine, published } = opened;
        let (log, broken, writer) = LogStore::start(log)
            .map_err(|source| StoreError::Disk(DiskError::Io { step: "start the writer of", path: config.dir.clone(), source }))?;
        let waits = config.timing.waits();
        let lines = Lines::new(Arc::clone(&transport), Arc::clone(log.shared()));
        let polls = Polls::new(raft_id, waits);
        let rest = Rest::new();
        let raft = rest
            .govern(Raft::new(raft_id, Arc::new(raft_config), Network(Arc::clone(&lines)), log.clone(), machine))
            .await
            .map_err(|error| StoreError::Raft { source: Box::new(error) })?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (leading, leadership) = watch::channel(Leadership::default());
        tasks.spawn(watch_leadership(raft.clone(), Arc::clone(&lines), waits, rest, leading, stop.clone()));
        tasks.spawn(housekeeping(raft.clone(), Arc::clone(&published), stop.clone()));
        tasks.spawn(end_when_broken(raft.clone(), broken.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&polls).run(raft.clone(), transport, stop.clone()));
        tasks.spawn(polls::pulse(raft.clone(), Arc::clone(&lines), waits, stop.clone()));
        let (group, members) = watch::channel(Vec::new());
        tasks.spawn(group::watch_members(raft.clone(), group, stop.clone()));
        tasks.spawn(group::finish_changes(raft.clone(), leadership.clone(), stop.clone()));
        let (proposals, queue) = mpsc::channel(WAITING);
        let transfer = Arc::new(Transfer::default());
        let proposer = Proposer {
            queue,
            raft: raft.clone(),
            log: Arc::clone(log.shared()),
            broken: broken.clone(),
            timeout: config.propose_timeout,
            transfer: Arc::clone(&transfer),
            stop: stop.clone(),
        };
        tasks.spawn(proposer.run());
        let office = Office { me: raft_id, raft: raft.clone(), lines: Arc::clone(&lines), waits, transfer, leadership: leadership.clone() };
        tasks.spawn(give_way_when_full(office.clone(), stop.clone()));
        let key_file = config.key.is_none().then(|| Arc::new(Mutex::new(config.dir.join(KEY_FILE))));
        Ok(Self(Arc::new(Inner {
            raft,
            raft_id,
            log,
            published,
            polls,
            lines,
            office,
            leadership,
            members,
            keys,
            key_file,
            proposals,
            broken,
            clock: config.clock,
            propose_timeout: config.propose_timeout,
            stop,
            tasks: Mutex::new(Some(tasks)),
            writer: Mutex::new(Some(writer)),
        })))
    }

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

    #[must_use]
    pub fn status(&self) -> StoreStatus {
        let metrics = self.0.raft.metrics().borrow().clone();
        let broken = self.0.broken.borrow().as_ref().map(ToString::to_string);
        let mut members = group::members(&metrics.membership_config);
        if let Some(replication) = &metrics.replication {
            for member in &mut members {
                member.matched = replication.get(&member.raft_id).copied().flatten().map(|id| id.index);
                member.answered = self.0.lines.answered(member.raft_id);
            }
        }
        StoreStatus {
            raft_id: self.0.raft_id,
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_log_index: metrics.last_log_index,
            applied_index: metrics.last_applied.map(|id| id.index),
            snapshot_index: metrics.snapshot.map(|id| id.index),
            purged_index: metrics.purged.map(|id| id.index),
            quorum_age: metrics.millis_since_quorum_ack.map(Duration::from_millis),
            leader_heard: self.0.polls.leader_heard(),
            removed: *self.0.polls.removed().borrow(),
            members,
            changing: metrics.membership_config.membership().get_joint_config().len() > 1,
            snapshot_error: self.0.published.snapshots.error.borrow().as_ref().map(ToString::to_string),
            broken: broken.or_else(|| metrics.running_state.as_ref().err().map(ToString::to_string)),
            syncs: crate::disk::syncs(),
        }
    }

    /// The members of the raft group with their addresses; the receiver wakes when those change, and only then.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<Vec<MemberStatus>> {
        self.0.members.clone()
    }

    /// Whether a leader has said that this manager is not a member any more. It asks when it has not heard of one for a while:
    /// nobody tells those who were removed.
    #[must_use]
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.0.polls.removed()
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

    /// Adds a manager without a vote; returns when it has caught up. One that is a member already stays as it is: for a new
    /// address there is [`Store::set_member`].
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses.
    pub async fn add_learner(&self, raft_id: RaftId, member: Member) -> Result<(), StoreError> {
        self.not_handing_over()?;
        self.0.raft.add_learner(raft_id, member, true).await.map(drop).map_err(membership_error)
    }

    /// Says where a member is now.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses.
    pub async fn set_member(&self, raft_id: RaftId, member: Member) -> Result<(), StoreError> {
        let change = ChangeMembers::SetNodes(BTreeMap::from([(raft_id, member)]));
        self.not_handing_over()?;
        self.0.raft.change_membership(change, true).await.map(drop).map_err(membership_error)
    }

    /// Gives a learner a vote.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses.
    pub async fn add_voter(&self, raft_id: RaftId) -> Result<(), StoreError> {
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([raft_id]));
        self.not_handing_over()?;
        self.0.raft.change_membership(change, true).await.map(drop).map_err(membership_error)
    }

    /// Takes a manager out of the group.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses, such as removing the last voter.
    pub async fn remove_member(&self, raft_id: RaftId) -> Result<(), StoreError> {
        let voter = self.status().members.iter().any(|member| member.raft_id == raft_id && member.voter);
        let ids = BTreeSet::from([raft_id]);
        let change = if voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
        self.not_handing_over()?;
        self.0.raft.change_membership(change, false).await.map(drop).map_err(membership_error)
    }

    /// Makes every write of the log take longer, as on a slow disk: for tests.
    #[cfg(feature = "failpoints")]
    pub fn slow_down(&self, each: Duration) {
        let millis = u64::try_from(each.as_millis()).unwrap_or(u64::MAX);
        self.0.log.shared().delay_ms.store(millis, std::sync::atomic::Ordering::Relaxed);
    }

    /// A new entry would make voters refuse the successor.
    fn not_handing_over(&self) -> Result<(), StoreError> {
        if self.0.office.transfer.is_on() { Err(StoreError::NotLeader { leader: None }) } else { Ok(()) }
    }

    /// Gives the leadership to the voter that has most of the log, and returns who leads then: as a rule that one.
    ///
    /// From the call on proposals get [`ProposeError::NotLeader`], also those that wait for their turn. If nobody has taken over
    /// within `limit`, this manager goes on leading.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`], [`StoreError::NoSuccessor`] for an only voter, [`StoreError::NotTaken`].
    pub async fn hand_over(&self, limit: Duration) -> Result<RaftId, StoreError> {
        self.0.office.hand_over(limit).await
    }

    /// Whether the store in `dir` opens with an unlock key only. `false` if there is none.
    ///
    /// # Errors
    /// A key file that cannot be read.
    pub fn is_locked(dir: &Path) -> Result<bool, DiskError> {
        match Keys::is_locked(&dir.join(KEY_FILE)) {
            Err(DiskError::MissingFile { .. }) => Ok(false),
            locked => locked,
        }
    }

    /// Keeps the data key sealed by `unlock` from now on, or in clear. The file is replaced at once or not at all.
    ///
    /// A store that was not locked before gets a new data key, because the former one was on the disk in clear: log, vote and
    /// snapshots are sealed with the new one from here on. The former one is kept, sealed as well, for as long as files need it.
    ///
    /// # Errors
    /// [`StoreError::KeyElsewhere`], or why a file could not be written. As long as [`Store::is_locked`] says otherwise, the key is
    /// kept as it was.
    pub async fn rewrap(&self, unlock: Option<&UnlockKey>) -> Result<(), StoreError> {
        let Some(file) = self.0.key_file.clone() else { return Err(StoreError::KeyElsewhere) };
        let (keys, unlock) = (self.0.keys.clone(), unlock.cloned());
        let written = tokio::task::spawn_blocking(move || {
            let path = file.lock().unwrap_or_else(PoisonError::into_inner);
            if unlock.is_none() || Keys::is_locked(&path)? {
                return keys.write(&path, unlock.as_ref()).map(|()| false);
            }
            // Nothing is sealed with the new key before it is kept.
            let next = keys.with_new();
            next.write(&path, unlock.as_ref())?;
            skep_failpoint::failpoint!("store.rotate.written");
            keys.become_those(&next);
            Ok(true)
        });
        let rotated = written.await.map_err(|_| StoreError::Stopped)?.map_err(StoreError::Disk)?;
        if rotated {
            let resealed = self.0.log.reseal().await;
            resealed.map_err(|source| DiskError::Io { step: "seal with a new key the log of", path: PathBuf::from("raft"), source })?;
            // The snapshot that there is has the former key, and keeps it from being dropped.
            self.trigger_snapshot().await?;
        }
        Ok(())
    }

    /// The whole state as this manager has applied it, sealed with `key`, chunk by chunk.
    #[must_use]
    pub fn backup(&self, key: &UnlockKey) -> Backup {
        let managers = self.status().members.into_iter().map(|member| member.member.addr).collect();
        Backup::start(self.view(), (self.0.clock)(), managers, key)
    }

    /// Makes a store from a backup: a new raft group whose only voter is this manager, with the tables of the backup. Returns
    /// when it leads. `raft_id` must be new to the cluster, so that managers of the old group cannot take it for one of theirs.
    ///
    /// The directory appears at once when everything is in it; one that holds a store is left alone.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::Backup`], and what the disk says.
    pub async fn restore(
        config: StoreConfig,
        raft_id: RaftId,
        member: Member,
        transport: Arc<dyn RaftTransport>,
        backup: impl Read + Send + 'static,
        key: &UnlockKey,
    ) -> Result<Self, StoreError> {
        let (for_plant, key) = (config.clone(), key.clone());
        let planted = tokio::task::spawn_blocking(move || plant::restore(&for_plant, raft_id, member, backup, &key));
        planted.await.map_err(|_| StoreError::Stopped)??;
        Self::open_leading(config, transport).await
    }

    /// Makes a new raft group whose only voter is this manager from what a store has on disk, although no majority of its
    /// group is left. Returns when it leads. `raft_id` must be new to the cluster.
    ///
    /// What is in the log is kept, also entries of which nobody knows whether a majority had them. The old directory stays
    /// beside the new one; the new one takes its place at once.
    ///
    /// # Errors
    /// [`StoreError::Empty`], a store that is damaged or in use, and what the disk says.
    pub async fn recover(
        config: StoreConfig,
        raft_id: RaftId,
        member: Member,
        transport: Arc<dyn RaftTransport>,
    ) -> Result<(Self, Recovery), StoreError> {
        let for_plant = config.clone();
        let planted = tokio::task::spawn_blocking(move || plant::recover(&for_plant, raft_id, member));
        let recovery = planted.await.map_err(|_| StoreError::Stopped)??;
        Ok((Self::open_leading(config, transport).await?, recovery))
    }

    async fn open_leading(config: StoreConfig, transport: Arc<dyn RaftTransport>) -> Result<Self, StoreError> {
        let store = Self::open(config, transport).await?;
        if let Err(error) = store.wait_leader(Duration::from_secs(30)).await {
            store.shutdown().await;
            return Err(error);
        }
        Ok(store)
    }

    /// What [`Store::recover`] would find, as far as a running store knows.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        let status = self.status();
        Recovery {
            applied: status.last_log_index,
            committed: status.applied_index,
            uncommitted_kept: status.last_log_index.unwrap_or(0).saturating_sub(status.applied_index.unwrap_or(0)),
            revision: self.view().revision(),
            members_dropped: status.members.into_iter().filter(|member| member.raft_id != self.0.raft_id).collect(),
            old_dir: None,
        }
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
        let _ = tokio::task::spawn_blocking(move || published.snapshots.end()).await;
        let writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            if let Err(error) = self.0.log.close().await {
                tracing::warn!(%error, "the log was not closed in order; the next start checks it as after a crash");
            }
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
        self.0.published.feeds.close();
    }
}

fn membership_error(error: RaftError<RaftId, ClientWriteError<RaftId, Member>>) -> StoreError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => StoreError::NotLeader { leader: forward.leader_node },
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => StoreError::Raft { source: Box::new(error) },
        RaftError::Fatal(_) => StoreError::Stopped,
    }
}

/// Triggers snapshots when the state machine finds one due, and lets go of the entries that are in them.
async fn housekeeping(raft: Raft, published: Arc<Published>, stop: CancellationToken) {
    let snapshots = &published.snapshots;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = snapshots.due.notified() => if raft.trigger().snapshot().await.is_err() { return },
            () = snapshots.made.notified() => purge(&raft, snapshots, &stop).await,
        }
    }
}

/// openraft hears of a snapshot a moment after it was made, and purges nothing that it does not know to be in one.
const HEARD_OF: Duration = Duration::from_secs(5);

async fn purge(raft: &Raft, snapshots: &SnapshotProgress, stop: &CancellationToken) {
    let Some(last) = snapshots.last_index() else { return };
    let keep = snapshots.keep_entries.load(std::sync::atomic::Ordering::Relaxed);
    let Some(upto) = last.checked_sub(keep) else { return };
    let mut data = raft.data_metrics();
    let heard = tokio::time::timeout(HEARD_OF, data.wait_for(|data| data.snapshot.is_some_and(|id| id.index >= last)));
    let heard = tokio::select! {
        () = stop.cancelled() => return,
        heard = heard => matches!(heard, Ok(Ok(_))),
    };
    // Missed or not: the next snapshot makes up for it.
    if heard && let Err(error) = raft.trigger().purge_log(upto).await {
        tracing::debug!(%error, "entries were not purged");
    }
}

/// A manager that cannot write is of no use as a leader and must not be taken for one.
async fn end_when_broken(raft: Raft, mut broken: Broken, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => return,
        broken = broken.wait_for(Option::is_some) => if broken.is_err() { return },
    }
    if let Err(error) = raft.shutdown().await {
        tracing::warn!(%error, "raft did not end in order");
    }
}
