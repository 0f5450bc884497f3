//! A store read from the disk and checked, before raft runs on it. Blocking.

use crate::config::{MIN_SEGMENT_BYTES, StoreConfig};
use crate::disk::files::{self, OpenOptions, OpenOptionsExt};
use crate::disk::key::DataKey;
use crate::disk::keys::Keys;
use crate::disk::log::{DirLock, Log};
use crate::disk::mark;
use crate::disk::snapshot::SnapshotDir;
use crate::disk::state::StateFile;
use crate::disk::{DiskError, failed, make_dir};
use crate::error::StoreError;
use crate::feed::Feeds;
use crate::raft::machine::{Machine, Published, SnapshotProgress};
use crate::raft::types::RaftId;
use crate::view::View;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// Everything read from the disk and checked.
pub(crate) struct Opened {
    pub(crate) log: Log,
    pub(crate) raft_id: RaftId,
    pub(crate) keys: Keys,
    pub(crate) machine: Machine,
    pub(crate) published: Arc<Published>,
}

impl Opened {
    /// `make`: the id of a new store, unless there is one already.
    pub(crate) fn open(config: &StoreConfig, make: Option<RaftId>) -> Result<Self, StoreError> {
        let dir = &config.dir;
        if make.is_none() && !files::exists(&dir.join("state")) && !files::exists(&dir.join("log")) {
            return Err(StoreError::Empty { dir: dir.clone() });
        }
        make_dir(dir)?;
        let lock = lock(dir)?;
        let keys = match find_keys(config) {
            Err(DiskError::MissingFile { .. }) if !files::exists(&dir.join("state")) => {
                let keys = Keys::from(DataKey::generate());
                keys.write(&dir.join(KEY_FILE), config.unlock.as_ref())?;
                keys
            }
            found => found?,
        };
        let state_path = dir.join("state");
        let state = match StateFile::open(&state_path, &keys)? {
            Some(state) => state,
            // The vote is made first: without it nothing else can be there.
            None if has_files(&dir.join("log")) || has_files(&dir.join("snapshot")) => {
                return Err(DiskError::MissingFile { path: state_path }.into());
            }
            None => match make {
                Some(raft_id) => {
                    mark::forget(dir)?; // of a store that was here before
                    StateFile::create(&state_path, &keys, raft_id)?
                }
                None => return Err(StoreError::Empty { dir: dir.clone() }),
            },
        };
        let raft_id = state.state().raft_id;
        let mut log = Log::open(&dir.join("log"), &keys, state, config.segment_bytes.max(MIN_SEGMENT_BYTES), config.cache_bytes)?;
        log.hold(lock);
        mark::check(dir, &keys, log.votes())?;
        let (head, tables, parts) = Machine::load(SnapshotDir::open(&dir.join("snapshot"), &keys)?, log.shared())?;
        check_gap(&log, head.as_ref().and_then(|head| head.last).map(|id| id.index), &dir.join("snapshot"))?;
        let view = View::from(tables.clone());
        let published = Arc::new(Published {
            feeds: Feeds::new(view.revision(), config.feed_changes),
            view: watch::Sender::new(view),
            snapshots: SnapshotProgress::new(config.snapshot_entries, config.snapshot_log_bytes, config.keep_entries),
        });
        let machine = Machine::new(head, tables, parts, Arc::clone(&published));
        if config.key.is_none()
            && let Some(needed) = keys.needed()
        {
            let file = dir.join(KEY_FILE);
            let locked = Keys::is_locked(&file)?;
            needed.write(&file, config.unlock.as_ref().filter(|_| locked))?;
            keys.become_those(&needed);
        }
        log.keep_mark(dir);
        Ok(Self { log, raft_id, keys, machine, published })
    }
}

/// The key file in the store's directory.
pub(crate) const KEY_FILE: &str = "dek";

/// The data keys of a store that is there.
pub(crate) fn find_keys(config: &StoreConfig) -> Result<Keys, DiskError> {
    match &config.key {
        Some(key) => Ok(key.clone().into()),
        None => Keys::read(&config.dir.join(KEY_FILE), config.unlock.as_ref()),
    }
}

/// A log that begins behind the end of the snapshot has lost something in between.
pub(crate) fn check_gap(log: &Log, snapshot: Option<u64>, snapshots: &Path) -> Result<(), DiskError> {
    let purged = log.shared().index().purged().map(|id| id.index);
    if purged > snapshot {
        return Err(DiskError::MissingFile { path: snapshots.join(format!("{:016x}-*.snap", purged.unwrap_or(0))) });
    }
    Ok(())
}

fn has_files(dir: &Path) -> bool {
    let is_ours = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "seg" || extension == "snap");
    files::list(dir).is_ok_and(|files| files.iter().any(is_ours))
}

pub(crate) fn lock(dir: &Path) -> Result<DirLock, DiskError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed("open", &path))?;
    files::lock(file).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => DiskError::InUse { path },
        _ => failed("lock", &path)(error),
    })
}
