//! How a store begins: made new, opened, joined, restored, recovered.

use super::housekeeping::{end_when_broken, housekeeping};
use super::{Inner, Store};
use crate::config::{StoreConfig, raft_config};
use crate::disk::DiskError;
use crate::election::{self, Role};
use crate::error::StoreError;
use crate::group;
use crate::leadership::{Leadership, watch_leadership};
use crate::open::{KEY_FILE, Opened};
use crate::plant::{self, Recovery};
use crate::propose::{Proposer, WAITING};
use crate::raft::lines::Lines;
use crate::raft::log::LogStore;
use crate::raft::network::{Network, RaftTransport};
use crate::raft::polls::{self, Polls};
use crate::raft::runtime::Rest;
use crate::raft::types::{Member, Raft, RaftId, RaftState};
use crate::seam::blocking;
use crate::transfer::{Office, Transfer, give_way_when_full};
use openraft::error::{InitializeError, RaftError};
use skep_types::UnlockKey;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

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
        let planted = blocking(move || plant::restore(&for_plant, raft_id, member, backup, &key));
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
        let planted = blocking(move || plant::recover(&for_plant, raft_id, member));
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

    async fn start(config: StoreConfig, make: Option<RaftId>, transport: Arc<dyn RaftTransport>) -> Result<Self, StoreError> {
        let raft_config = raft_config(&config)?;
        let opened = {
            let config = config.clone();
            blocking(move || Opened::open(&config, make)).await.map_err(|_| StoreError::Stopped)??
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
}
