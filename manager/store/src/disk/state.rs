//! The vote and the number of the newest segment, in a file that never grows.
//!
//! Two copies, written and made durable one after the other: a crash damages at most the one being written, which was
//! not answered for yet, and later damage to one leaves the other. Overwriting needs no space, so a vote is possible
//! on a full disk.

use super::files::{self, File, FileExt, OpenOptions, OpenOptionsExt};
use super::key::SealKey;
use super::keys::Keys;
use super::slot::{SLOT, read_slot, write_slot};
use super::{DiskError, counted_sync, failed, sync_dir};
use crate::raft::types::Vote;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 4] = *b"SKST";
const WHAT: &str = "vote";

/// What is kept besides log and snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HardState {
    /// Whose directory this is.
    pub(crate) raft_id: u64,
    pub(crate) vote: Option<Vote>,
    /// A missing newest segment file is noticed by it.
    #[serde(default)]
    pub(crate) newest_segment: u64,
    counter: u64,
}

pub(crate) struct StateFile {
    file: File,
    path: PathBuf,
    key: SealKey,
    state: HardState,
}

impl StateFile {
    /// Makes the file; durable when this returns.
    pub(crate) fn create(path: &Path, keys: &Keys, raft_id: u64) -> Result<Self, DiskError> {
        let temporary = path.with_extension("new");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed("create", &temporary))?;
        file.write_all_at(&[0; 2 * SLOT], 0).map_err(failed("write", &temporary))?;
        let mut made =
            Self { file, path: temporary.clone(), key: keys.derive(b"state", b""), state: HardState { raft_id, ..HardState::default() } };
        made.save()?;
        skep_failpoint::failpoint!("store.state.created");
        files::rename(&temporary, path).map_err(failed("rename a new file to", path))?;
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        made.path = path.to_owned();
        Ok(made)
    }

    /// `None` if there is no file.
    ///
    /// Both copies are sealed with the current key when this returns.
    pub(crate) fn open(path: &Path, keys: &Keys) -> Result<Option<Self>, DiskError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", path)(error)),
        };
        let bytes = files::read(path).map_err(failed("read", path))?;
        let mut newest: Option<HardState> = None;
        for slot in bytes.chunks(SLOT) {
            // Written with whatever key was the current one then: here none is marked as needed.
            if let Some(state) = keys.each(b"state", b"").iter().find_map(|key| read(key, slot))
                && newest.as_ref().is_none_or(|newest| newest.counter < state.counter)
            {
                newest = Some(state);
            }
        }
        let Some(state) = newest else {
            let what = "neither copy of the vote can be read; or the data key is another one";
            return Err(DiskError::Corrupt { path: path.to_owned(), offset: 0, what });
        };
        let mut opened = Self { file, path: path.to_owned(), key: keys.derive(b"state", b""), state };
        if bytes.len() != 2 * SLOT || bytes.chunks(SLOT).any(|slot| read(&opened.key, slot).as_ref() != Some(&opened.state)) {
            tracing::warn!(file = %path.display(), "a copy of the vote was damaged, old or sealed with a former key; written anew");
            opened.save()?;
        }
        Ok(Some(opened))
    }

    pub(crate) fn state(&self) -> &HardState {
        &self.state
    }

    /// How often it was written; only ever more.
    pub(crate) fn writes(&self) -> u64 {
        self.state.counter
    }

    /// Durable when this returns.
    pub(crate) fn set_vote(&mut self, vote: Vote) -> Result<(), DiskError> {
        self.state.vote = Some(vote);
        self.save()
    }

    /// Durable when this returns.
    pub(crate) fn set_newest_segment(&mut self, segment: u64) -> Result<(), DiskError> {
        self.state.newest_segment = segment;
        self.save()
    }

    /// Seals both copies with the current key.
    pub(crate) fn reseal(&mut self, keys: &Keys) -> Result<(), DiskError> {
        self.key = keys.derive(b"state", b"");
        self.save()
    }

    fn save(&mut self) -> Result<(), DiskError> {
        self.state.counter += 1;
        let slot = write_slot(MAGIC, WHAT, &self.key, &self.state)?;
        for copy in 0..2 {
            self.file.write_all_at(&slot, copy * SLOT as u64).map_err(failed("write", &self.path))?;
            counted_sync();
            self.file.sync_data().map_err(failed("sync", &self.path))?;
            skep_failpoint::failpoint!("store.state.copy");
        }
        Ok(())
    }
}

fn read(key: &SealKey, slot: &[u8]) -> Option<HardState> {
    read_slot(MAGIC, WHAT, key, slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(byte: u8) -> Keys {
        super::super::key::DataKey::new([byte; 32]).into()
    }

    fn vote(term: u64) -> Vote {
        Vote::new(term, 1)
    }

    #[test]
    fn a_vote_survives_damage_to_either_copy_but_not_to_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let key = keys(1);
        let mut file = StateFile::create(&path, &key, 1).unwrap();
        file.set_vote(vote(3)).unwrap();
        let intact = std::fs::read(&path).unwrap();
        for at in [0, 5, 20, 40, 60, SLOT, SLOT + 5, SLOT + 60] {
            let mut bytes = intact.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            let opened = StateFile::open(&path, &key).unwrap().unwrap();
            assert_eq!(opened.state().vote, Some(vote(3)), "byte {at}");
        }
        let mut bytes = intact;
        bytes[40] ^= 1;
        bytes[SLOT + 40] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(StateFile::open(&path, &key), Err(DiskError::Corrupt { .. })));
    }

    #[test]
    fn a_crash_between_the_copies_keeps_the_newer_vote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let key = keys(1);
        let mut file = StateFile::create(&path, &key, 1).unwrap();
        file.set_vote(vote(3)).unwrap();
        let old = std::fs::read(&path).unwrap();
        file.set_vote(vote(4)).unwrap();
        let new = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&new[..SLOT], &old[SLOT..]].concat()).unwrap();
        assert_eq!(StateFile::open(&path, &key).unwrap().unwrap().state().vote, Some(vote(4)));
        assert_eq!(std::fs::read(&path).unwrap().len(), 2 * SLOT);
    }

    #[test]
    fn another_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        StateFile::create(&path, &keys(1), 1).unwrap();
        assert!(StateFile::open(&path, &keys(2)).is_err());
        assert!(StateFile::open(&dir.path().join("none"), &keys(2)).unwrap().is_none());
    }

    #[test]
    fn a_crash_while_it_is_sealed_with_a_new_key_keeps_the_vote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let old = keys(1);
        let mut file = StateFile::create(&path, &old, 1).unwrap();
        file.set_vote(vote(3)).unwrap();
        let before = std::fs::read(&path).unwrap();
        let new = old.with_new();
        file.reseal(&new).unwrap();
        let after = std::fs::read(&path).unwrap();
        for bytes in [before.clone(), [&after[..SLOT], &before[SLOT..]].concat(), after] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(StateFile::open(&path, &new).unwrap().unwrap().state().vote, Some(vote(3)));
        }
        // It needs the new key only now.
        assert!(StateFile::open(&path, &old).is_err());
        assert!(new.needed().is_some());
    }
}
