//! Stores made of tables rather than of a history: of a backup, or of what a group left that has no majority any more.
//!
//! Both are written into a directory of their own beside the place where they belong, made durable, and then put there in one
//! step, so that a crash at any point leaves what was there or the finished new one.

use crate::backup;
use crate::codec;
use crate::config::{MIN_SEGMENT_BYTES, StoreConfig};
use crate::disk::files;
use crate::disk::key::DataKey;
use crate::disk::keys::Keys;
use crate::disk::log::{self, Log};
use crate::disk::mark;
use crate::disk::snapshot::{self, SnapshotDir, SnapshotHead};
use crate::disk::state::StateFile;
use crate::disk::{DiskError, beside, failed, make_dir, sync_dir, sync_parent};
use crate::error::StoreError;
use crate::group::{self, MemberStatus};
use crate::open::{KEY_FILE, check_gap, find_keys, lock};
use crate::raft::machine::Machine;
use crate::raft::types::{Entry, LogId, Member, Membership, RaftId, Vote};
use crate::table::Tables;
use openraft::{CommittedLeaderId, EntryPayload};
use skep_types::{UnlockKey, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What [`Store::recover`](crate::Store::recover) found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The last log entry, which is part of the new state.
    pub applied: Option<u64>,
    /// The last entry that a majority is known to have had. The mark is written along with later entries, so that the very last
    /// entries are never known to be.
    pub committed: Option<u64>,
    /// Entries behind that. They are kept: whoever proposed them may or may not have been told that they were made. Entries that
    /// only other managers had are lost.
    pub uncommitted_kept: u64,
    /// The revision of the new state.
    pub revision: Version,
    /// The members of the old group but for this manager.
    pub members_dropped: Vec<MemberStatus>,
    /// Where the old store is now; `None` while it is still in place.
    pub old_dir: Option<PathBuf>,
}

/// Everything a new store begins with.
struct Seed<'a> {
    raft_id: RaftId,
    member: Member,
    term: u64,
    /// The index its snapshot claims to end at.
    index: u64,
    keys: &'a Keys,
    tables: &'a Tables,
}

/// Writes state and snapshot of a group with one voter into `dir`, which has its data key already.
fn sow(dir: &Path, seed: Seed<'_>) -> Result<(), DiskError> {
    let last = LogId::new(CommittedLeaderId::new(seed.term, seed.raft_id), seed.index);
    let group = openraft::Membership::new(vec![BTreeSet::from([seed.raft_id])], BTreeMap::from([(seed.raft_id, seed.member)]));
    let head = SnapshotHead {
        last: Some(last),
        membership: Membership::new(Some(last), group),
        revision: seed.tables.revision(),
        objects: seed.tables.len() as u64,
    };
    let mut state = StateFile::create(&dir.join("state"), seed.keys, seed.raft_id)?;
    state.set_vote(Vote::new(seed.term, seed.raft_id))?;
    let snapshots = SnapshotDir::open(&dir.join("snapshot"), seed.keys)?;
    let temporary = snapshots.temporary("built");
    snapshot::write(&temporary, seed.keys, &head, seed.tables)?;
    snapshots.publish(&temporary, last)?;
    sync_dir(dir)
}

/// An empty directory beside `dir`; what a crash left there goes.
fn empty_beside(dir: &Path, suffix: &str) -> Result<PathBuf, DiskError> {
    let path = beside(dir, suffix);
    match files::remove_dirs(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
        Ok(()) | Err(_) => {}
    }
    make_dir(&path)?;
    Ok(path)
}

pub(crate) fn restore(
    config: &StoreConfig,
    raft_id: RaftId,
    member: Member,
    mut backup: impl Read,
    key: &UnlockKey,
) -> Result<(), StoreError> {
    let dir = &config.dir;
    if [KEY_FILE, "state", "log", "snapshot"].iter().any(|name| files::exists(&dir.join(name))) {
        return Err(StoreError::Exists { dir: dir.clone() });
    }
    let (_, tables) = backup::read(&mut backup, key)?;
    let new = empty_beside(dir, "restoring")?;
    let keys = new_keys(config, &new, config.unlock.as_ref())?;
    sow(&new, Seed { raft_id, member, term: 1, index: 1, keys: &keys, tables: &tables })?;
    skep_failpoint::failpoint!("store.restore.sown");
    mark::forget(dir)?;
    // A lock file may be there from a try to open it; anything else makes the renaming fail, which is right.
    let _ = files::remove_file(&dir.join("lock"));
    files::rename(&new, dir).map_err(failed("put the restored store in place at", dir))?;
    skep_failpoint::failpoint!("store.restore.renamed");
    sync_parent(dir)?;
    Ok(())
}

/// What is left of a store, with everything in its log applied.
struct Remains {
    tables: Tables,
    group: Membership,
    last: Option<LogId>,
    committed: Option<LogId>,
    raft_id: RaftId,
    term: u64,
}

pub(crate) fn recover(config: &StoreConfig, raft_id: RaftId, member: Member) -> Result<Recovery, StoreError> {
    let dir = &config.dir;
    if !files::exists(&dir.join("state")) {
        return Err(StoreError::Empty { dir: dir.clone() });
    }
    let _lock = lock(dir)?;
    let remains = exhume(config, &find_keys(config)?)?;
    let new = empty_beside(dir, "recovering")?;
    let keys = new_keys(config, &new, sealed_by(config)?)?;
    // Behind everything the old group can have written, so that an old leader's entries are never taken for newer ones.
    let index = remains.last.map_or(0, |last| last.index) + 1;
    sow(&new, Seed { raft_id, member, term: remains.term + 1, index, keys: &keys, tables: &remains.tables })?;
    skep_failpoint::failpoint!("store.recover.sown");
    let old = (1..).map(|number| beside(dir, &format!("before-recovery-{number}"))).find(|path| !files::exists(path));
    let old = old.expect("numbers do not end");
    mark::forget(dir)?;
    // First the new store takes the name that the old one will have, then they change places in one step.
    files::rename(&new, &old).map_err(failed("rename the new store to", &old))?;
    skep_failpoint::failpoint!("store.recover.renamed");
    files::exchange(&old, dir).map_err(failed("exchange the old store for the new one at", dir))?;
    skep_failpoint::failpoint!("store.recover.exchanged");
    sync_parent(dir)?;
    let members_dropped = group::members(&remains.group).into_iter().filter(|member| member.raft_id != remains.raft_id).collect();
    let index = |id: Option<LogId>| id.map(|id| id.index);
    Ok(Recovery {
        applied: index(remains.last),
        committed: index(remains.committed),
        uncommitted_kept: index(remains.last).unwrap_or(0).saturating_sub(index(remains.committed).unwrap_or(0)),
        revision: remains.tables.revision(),
        members_dropped,
        old_dir: Some(old),
    })
}

/// A data key for the new store in `dir`, kept there unless the caller keeps it.
fn new_keys(config: &StoreConfig, dir: &Path, unlock: Option<&UnlockKey>) -> Result<Keys, DiskError> {
    if let Some(key) = &config.key {
        return Ok(key.clone().into());
    }
    let keys = Keys::from(DataKey::generate());
    keys.write(&dir.join(KEY_FILE), unlock)?;
    Ok(keys)
}

/// The new store is locked if the old one was.
fn sealed_by(config: &StoreConfig) -> Result<Option<&UnlockKey>, DiskError> {
    let file = config.dir.join(KEY_FILE);
    Ok(if config.key.is_none() && Keys::is_locked(&file)? { config.unlock.as_ref() } else { None })
}

fn exhume(config: &StoreConfig, keys: &Keys) -> Result<Remains, StoreError> {
    let dir = &config.dir;
    let state_path = dir.join("state");
    let state = StateFile::open(&state_path, keys)?.ok_or(DiskError::MissingFile { path: state_path })?;
    let (raft_id, voted) = (state.state().raft_id, state.state().vote.map_or(0, |vote| vote.leader_id().get_term()));
    let log = Log::open(&dir.join("log"), keys, state, config.segment_bytes.max(MIN_SEGMENT_BYTES), config.cache_bytes)?;
    let shared = log.shared();
    shared.settle(); // no thread is to work in the directory when it gets another name
    let (head, mut tables, _) = Machine::load(SnapshotDir::open(&dir.join("snapshot"), keys)?, Arc::clone(&shared))?;
    let snapshot = head.as_ref().and_then(|head| head.last);
    check_gap(&log, snapshot.map(|id| id.index), &dir.join("snapshot"))?;
    let mut group = head.map(|head| head.membership).unwrap_or_default();
    let mut last = snapshot;
    let first = snapshot.map_or(0, |id| id.index + 1);
    let end = shared.index().last().map_or(0, |id| id.index + 1);
    for begin in (first..end).step_by(64) {
        let lookups = shared.index().lookup(begin, end.min(begin + 64));
        for entry in log::read(lookups)? {
            apply(&mut tables, &mut group, &entry).map_err(DiskError::from)?;
            last = Some(entry.log_id);
        }
    }
    let term = voted.max(last.map_or(0, |id| id.leader_id.term));
    Ok(Remains { tables, group, last, committed: shared.committed().max(snapshot), raft_id, term })
}

/// As the state machine does it; a transaction that does not fit changes nothing there either.
fn apply(tables: &mut Tables, group: &mut Membership, entry: &Entry) -> Result<(), codec::CodecError> {
    match &entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Membership(membership) => *group = Membership::new(Some(entry.log_id), membership.clone()),
        EntryPayload::Normal(batch) => {
            for transaction in batch.transactions()? {
                let version = Version(tables.revision().0 + 1);
                let _ = tables.apply(version, transaction.now, &transaction.actions);
            }
        }
    }
    Ok(())
}
