//! The handle that everybody holds.

use crate::disk::key::DataKey;
use crate::disk::log::{DirLock, Log};
use crate::disk::snapshot::SnapshotDir;
use crate::disk::state::StateFile;
use crate::disk::{DiskError, failed};
use crate::error::{ProposeError, StoreError};
use crate::feed::{Feed, Feeds};
use crate::leadership::{Leadership, watch_leadership};
use crate::propose::{MAX_TRANSACTION_BYTES, Proposal, Proposer, WAITING};
use crate::raft::log::{Broken, LogStore};
use crate::raft::machine::{Machine, Published, SnapshotProgress};
use crate::raft::network::{self, AnswerError, Network, RaftCall, RaftTransport};
use crate::raft::types::{Member, Raft, RaftId, Transaction, encode_transaction};
use crate::table::StateHash;
use crate::view::View;
use openraft::error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, SnapshotPolicy};
use skep_types::{Action, Timestamp, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Where time stamps come from: asked once per proposal, on the leader.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    })
}

/// Heartbeats and elections between managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat: Duration,
    /// Without a heartbeat for a random time in this range a manager asks for votes.
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Default for Timing {
    /// Slow enough to keep a leader whose disk is busy; a new one is found within two seconds.
    fn default() -> Self {
        Self { heartbeat: Duration::from_millis(100), election_min: Duration::from_millis(500), election_max: Duration::from_millis(1000) }
    }
}

/// Below this nothing fits beside the reserve.
const MIN_SEGMENT_BYTES: u64 = 128 * 1024;

/// How a store is kept.
#[derive(Clone)]
pub struct StoreConfig {
    /// The directory `raft`; made (0700) if missing.
    pub dir: PathBuf,
    /// `None`: the key is in the file `dek` of the directory, made at bootstrap or join.
    pub key: Option<DataKey>,
    pub clock: Clock,
    pub timing: Timing,
    /// Entries between snapshots.
    pub snapshot_entries: u64,
    /// A snapshot is also made when the log has grown by so many bytes since the last.
    pub snapshot_log_bytes: u64,
    /// Entries kept behind a snapshot for slow followers.
    pub keep_entries: u64,
    /// Size of a log segment, at least 128 KiB; one more is always kept ready. A transaction has to fit one.
    pub segment_bytes: u64,
    /// Bytes of the newest entries kept in memory.
    pub cache_bytes: usize,
    /// Changes held for feed readers that are slow.
    pub feed_changes: usize,
    /// How long a proposal waits for a majority.
    pub propose_timeout: Duration,
}

impl StoreConfig {
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            key: None,
            clock: system_clock(),
            timing: Timing::default(),
            snapshot_entries: 10_000,
            snapshot_log_bytes: 64 << 20,
            keep_entries: 500,
            segment_bytes: 4 << 20,
            cache_bytes: 1 << 20,
            feed_changes: 16_384,
            propose_timeout: Duration::from_secs(30),
        }
    }
}

/// A manager in the raft group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub raft_id: RaftId,
    pub member: Member,
    /// A learner has all entries but no vote.
    pub voter: bool,
    /// The last entry known to be on its disk; only the leader knows.
    pub matched: Option<u64>,
}

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
    pub members: Vec<MemberStatus>,
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
    leadership: watch::Receiver<Leadership>,
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
        let Opened { log, raft_id, machine, published } = opened;
        let (log, broken, writer) = LogStore::start(log)
            .map_err(|source| StoreError::Disk(DiskError::Io { step: "start the writer of", path: config.dir.clone(), source }))?;
        let raft = Raft::new(raft_id, Arc::new(raft_config), Network(transport), log.clone(), machine)
            .await
            .map_err(|error| StoreError::Raft { source: Box::new(error) })?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (leading, leadership) = watch::channel(Leadership::default());
        tasks.spawn(watch_leadership(raft.clone(), leading, stop.clone()));
        tasks.spawn(housekeeping(raft.clone(), Arc::clone(&published), stop.clone()));
        let (proposals, queue) = mpsc::channel(WAITING);
        let proposer = Proposer {
            queue,
            raft: raft.clone(),
            log: Arc::clone(log.shared()),
            broken: broken.clone(),
            timeout: config.propose_timeout,
            stop: stop.clone(),
        };
        tasks.spawn(proposer.run());
        Ok(Self(Arc::new(Inner {
            raft,
            raft_id,
            log,
            published,
            leadership,
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
        let voters: BTreeSet<RaftId> = metrics.membership_config.membership().voter_ids().collect();
        let matched = |id: &RaftId| metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten()).map(|id| id.index);
        StoreStatus {
            raft_id: self.0.raft_id,
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_log_index: metrics.last_log_index,
            applied_index: metrics.last_applied.map(|id| id.index),
            snapshot_index: metrics.snapshot.map(|id| id.index),
            purged_index: metrics.purged.map(|id| id.index),
            quorum_age: metrics.millis_since_quorum_ack.map(Duration::from_millis),
            members: metrics
                .membership_config
                .membership()
                .nodes()
                .map(|(id, member)| MemberStatus { raft_id: *id, member: member.clone(), voter: voters.contains(id), matched: matched(id) })
                .collect(),
            snapshot_error: self.0.published.snapshots.error.borrow().as_ref().map(ToString::to_string),
            broken: broken.or_else(|| metrics.running_state.as_ref().err().map(ToString::to_string)),
            syncs: crate::disk::syncs(),
        }
    }

    /// Changes [`StoreConfig::snapshot_entries`].
    pub fn set_snapshot_entries(&self, entries: u64) {
        self.0.published.snapshots.every_entries.store(entries.max(1), std::sync::atomic::Ordering::Relaxed);
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
        network::answer(&self.0.raft, self.0.log.shared(), call, request).await
    }

    /// Adds a manager without a vote, or changes the address of one; returns when it has caught up.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses.
    pub async fn add_learner(&self, raft_id: RaftId, member: Member) -> Result<(), StoreError> {
        self.0.raft.add_learner(raft_id, member, true).await.map(drop).map_err(membership_error)
    }

    /// Says where a member is now.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses.
    pub async fn set_member(&self, raft_id: RaftId, member: Member) -> Result<(), StoreError> {
        let change = ChangeMembers::SetNodes(BTreeMap::from([(raft_id, member)]));
        self.0.raft.change_membership(change, true).await.map(drop).map_err(membership_error)
    }

    /// Gives a learner a vote.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses.
    pub async fn add_voter(&self, raft_id: RaftId) -> Result<(), StoreError> {
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([raft_id]));
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
        self.0.raft.change_membership(change, false).await.map(drop).map_err(membership_error)
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

/// Triggers snapshots when the state machine finds one due.
async fn housekeeping(raft: Raft, published: Arc<Published>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = published.snapshots.due.notified() => if raft.trigger().snapshot().await.is_err() { return },
        }
    }
}

fn raft_config(config: &StoreConfig) -> Result<openraft::Config, StoreError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "skep".into(),
        heartbeat_interval: millis(config.timing.heartbeat),
        election_timeout_min: millis(config.timing.election_min),
        election_timeout_max: millis(config.timing.election_max),
        install_snapshot_timeout: 10_000,
        snapshot_max_chunk_size: 1 << 20,
        max_payload_entries: 64,
        replication_lag_threshold: config.snapshot_entries.saturating_mul(2),
        max_in_snapshot_log_to_keep: config.keep_entries,
        snapshot_policy: SnapshotPolicy::Never,
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|error| StoreError::Timing { problem: error.to_string() })
}

/// Everything read from the disk and checked.
struct Opened {
    log: Log,
    raft_id: RaftId,
    machine: Machine,
    published: Arc<Published>,
}

impl Opened {
    /// `make`: the id of a new store, unless there is one already.
    fn open(config: &StoreConfig, make: Option<RaftId>) -> Result<Self, StoreError> {
        let dir = &config.dir;
        if make.is_none() && !dir.join("state").exists() && !dir.join("log").exists() {
            return Err(StoreError::Empty { dir: dir.clone() });
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create the directory", dir))?;
        let lock = lock(dir)?;
        let key = match (&config.key, dir.join("dek")) {
            (Some(key), _) => key.clone(),
            (None, path) => match DataKey::read(&path) {
                Err(DiskError::MissingFile { .. }) if !dir.join("state").exists() => {
                    let key = DataKey::generate();
                    key.write(&path)?;
                    key
                }
                read => read?,
            },
        };
        let state_path = dir.join("state");
        let state = match StateFile::open(&state_path, &key)? {
            Some(state) => state,
            // The vote is made first: without it nothing else can be there.
            None if has_files(&dir.join("log")) || has_files(&dir.join("snapshot")) => {
                return Err(DiskError::MissingFile { path: state_path }.into());
            }
            None => match make {
                Some(raft_id) => StateFile::create(&state_path, &key, raft_id)?,
                None => return Err(StoreError::Empty { dir: dir.clone() }),
            },
        };
        let raft_id = state.state().raft_id;
        let mut log = Log::open(&dir.join("log"), &key, state, config.segment_bytes.max(MIN_SEGMENT_BYTES), config.cache_bytes)?;
        log.hold(lock);
        let (head, tables, parts) = Machine::load(SnapshotDir::open(&dir.join("snapshot"), &key)?, log.shared())?;
        check_gap(&log, head.as_ref().and_then(|head| head.last).map(|id| id.index), &dir.join("snapshot"))?;
        let view = View::from(tables.clone());
        let published = Arc::new(Published {
            feeds: Feeds::new(view.revision(), config.feed_changes),
            view: watch::Sender::new(view),
            snapshots: SnapshotProgress::new(config.snapshot_entries, config.snapshot_log_bytes),
        });
        let machine = Machine::new(head, tables, parts, Arc::clone(&published));
        Ok(Self { log, raft_id, machine, published })
    }
}

/// A log that begins behind the end of the snapshot has lost something in between.
fn check_gap(log: &Log, snapshot: Option<u64>, snapshots: &Path) -> Result<(), DiskError> {
    let purged = log.shared().index().purged().map(|id| id.index);
    if purged > snapshot {
        return Err(DiskError::MissingFile { path: snapshots.join(format!("{:016x}-*.snap", purged.unwrap_or(0))) });
    }
    Ok(())
}

fn has_files(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut files| {
        files.any(|file| {
            file.is_ok_and(|file| {
                let path = file.path();
                path.extension().is_some_and(|extension| extension == "seg" || extension == "snap")
            })
        })
    })
}

fn lock(dir: &Path) -> Result<DirLock, DiskError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed("open", &path))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => DiskError::Locked { path },
        errno => failed("lock", &path)(errno.into()),
    })
}
