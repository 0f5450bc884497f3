//! How far the store has come, told by a file beside its directory.
//!
//! Whatever is in the directory can be put back together to an earlier state: by a tool that restores files, by a copy that was
//! taken too early, by somebody who means harm. It then fits together, and the manager would forget what it acknowledged and for
//! whom it voted. So `raft.mark`, beside the directory `raft`, names the last record that was written there, by place and tag, and
//! how often the vote was. At the start the directory must have come at least so far, with that very record in that very place.
//!
//! The mark is a lower bound: it is written after what it tells of, at most once a second and without waiting for the disk, so that
//! no write is slower for it; and durably with each new segment, each start and each orderly end. What it tells of was durable
//! before. Truncated entries do it no harm: the log only grows, a truncation is a record, too.
//!
//! What it cannot tell: a rollback of less than what was written since the last mark; and one of directory and mark together, or of
//! the directory when the mark was taken away. For that one machine has no memory that its owner does not have in hand; the other
//! managers have.

use super::files::{self, File, FileExt, OpenOptions, OpenOptionsExt};
use super::key::{SealKey, Tag};
use super::keys::Keys;
use super::log::Log;
use super::segment::{self, Segment};
use super::slot::{SLOT, read_slot, write_slot};
use super::{DiskError, beside, counted_sync, failed, frame, sync_parent};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

const MAGIC: [u8; 4] = *b"SKMK";
const WHAT: &str = "mark";
/// Between two marks that nobody waits for.
const EVERY: Duration = Duration::from_secs(1);

/// A place in the life of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reached {
    pub(crate) segment: u64,
    /// Where the last record ends in it.
    pub(crate) end: u64,
    /// Tag of that record, which follows from all before it.
    pub(crate) tag: Tag,
    /// How often the file of the vote was written.
    pub(crate) votes: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    reached: Reached,
    /// The higher of two counts.
    count: u64,
}

/// The file, open for writing.
pub(crate) struct Mark {
    file: File,
    path: PathBuf,
    key: SealKey,
    count: u64,
    noted: Option<Instant>,
}

/// The mark of the store in `dir`.
pub(crate) fn mark_path(dir: &Path) -> PathBuf {
    beside(dir, "mark")
}

/// A store that begins has not come anywhere; durable when this returns.
pub(crate) fn forget(dir: &Path) -> Result<(), DiskError> {
    let path = mark_path(dir);
    match files::remove_file(&path) {
        Ok(()) => sync_parent(&path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", &path)(error)),
    }
}

/// Compares the log, which was opened and is sound by itself, with what the mark of `dir` says. Nothing is changed.
///
/// # Errors
/// [`DiskError::PutBack`] if the directory has not come as far.
pub(crate) fn check(dir: &Path, keys: &Keys, votes: u64) -> Result<(), DiskError> {
    let path = mark_path(dir);
    let bytes = match files::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            tracing::info!(file = %path.display(), "there is no mark of how far the store had come; one is made now");
            return Ok(());
        }
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let put_back = |what| DiskError::PutBack { path: dir.to_owned(), mark: path.clone(), what };
    let records = keys.each(b"mark", b"");
    let records = bytes.chunks(SLOT).filter_map(|slot| records.iter().find_map(|key| read_slot::<Record>(MAGIC, WHAT, key, slot)));
    let Some(Record { reached, .. }) = records.max_by_key(|record| record.count) else {
        return Err(put_back("its data key was another one, or the mark is damaged,"));
    };
    if let Some(what) = missing(&dir.join("log"), keys, &reached)? {
        return Err(put_back(what));
    }
    if votes < reached.votes {
        return Err(put_back("its vote had been written more often"));
    }
    Ok(())
}

/// What the log had when the mark was written and has not now.
fn missing(log: &Path, keys: &Keys, reached: &Reached) -> Result<Option<&'static str>, DiskError> {
    let newest = segment::newest(log)?.unwrap_or(0);
    if newest < reached.segment {
        return Ok(Some("its log had more segments"));
    }
    if !files::exists(&segment::segment_path(log, reached.segment)) {
        return Ok(None); // a snapshot made it superfluous
    }
    let (marked, bytes) = Segment::open(log, reached.segment, keys)?;
    let scan = marked.scan(&bytes, None, newest == reached.segment)?;
    let mut ends = scan.frames.iter().map(|found| ((found.offset + frame::frame_size(found.payload.len())) as u64, found.tag));
    let is_there = ends.any(|end| end == (reached.end, reached.tag));
    Ok((!is_there).then_some("its log had more records, or others"))
}

impl Mark {
    /// Begins to keep the mark of the store in `dir`, with where it is now; durable when this returns.
    pub(crate) fn begin(dir: &Path, keys: &Keys, reached: Reached) -> Result<Self, DiskError> {
        let path = mark_path(dir);
        let old = files::read(&path).unwrap_or_default();
        let key = keys.derive(b"mark", b"");
        let opens = keys.each(b"mark", b"");
        let known = old.chunks(SLOT).filter_map(|slot| opens.iter().find_map(|key| read_slot::<Record>(MAGIC, WHAT, key, slot)));
        let count = known.map(|record| record.count).max().unwrap_or(0);
        let open = |path: &Path, make: bool| OpenOptions::new().read(true).write(true).create(make).truncate(make).mode(0o600).open(path);
        if old.len() == 2 * SLOT {
            let file = open(&path, false).map_err(failed("open", &path))?;
            let mut mark = Self { file, path, key, count, noted: None };
            mark.settle(reached)?;
            return Ok(mark);
        }
        let temporary = path.with_extension("mark.new");
        let file = open(&temporary, true).map_err(failed("create", &temporary))?;
        file.write_all_at(&[0; 2 * SLOT], 0).map_err(failed("write", &temporary))?;
        let mut mark = Self { file, path: temporary.clone(), key, count, noted: None };
        mark.settle(reached)?;
        files::rename(&temporary, &path).map_err(failed("rename a new file to", &path))?;
        sync_parent(&path)?;
        mark.path = path;
        Ok(mark)
    }

    /// Whether the last mark is old enough for another.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.noted.is_none_or(|noted| now.duration_since(noted) >= EVERY)
    }

    /// Without waiting for the disk. Only the first copy: whatever a power cut makes of it, the second one is whole.
    pub(crate) fn note(&mut self, reached: Reached, now: Instant) -> Result<(), DiskError> {
        self.noted = Some(now);
        self.write(0, reached)
    }

    /// Durable when this returns: first one copy, then the other.
    pub(crate) fn settle(&mut self, reached: Reached) -> Result<(), DiskError> {
        for copy in 0..2 {
            self.write(copy, reached)?;
            counted_sync();
            self.file.sync_data().map_err(failed("sync", &self.path))?;
            skep_failpoint::failpoint!("store.mark.copy");
        }
        Ok(())
    }

    /// Goes on with the current key.
    pub(crate) fn reseal(&mut self, keys: &Keys, reached: Reached) -> Result<(), DiskError> {
        self.key = keys.derive(b"mark", b"");
        self.settle(reached)
    }

    fn write(&mut self, copy: u64, reached: Reached) -> Result<(), DiskError> {
        self.count += 1;
        let slot = write_slot(MAGIC, WHAT, &self.key, &Record { reached, count: self.count })?;
        self.file.write_all_at(&slot, copy * SLOT as u64).map_err(failed("write", &self.path))
    }
}

/// How the log keeps its mark. A mark that cannot be written stays behind, which does no harm: the log goes on without.
impl Log {
    /// From now on the log tells how far it is.
    pub(crate) fn keep_mark(&mut self, dir: &Path) {
        match Mark::begin(dir, self.keys(), self.reached()) {
            Ok(mark) => self.mark = Some(mark),
            Err(error) => given_up(&error),
        }
    }

    /// After a record; `at_once`: also if the last mark is young.
    pub(super) fn note_mark(&mut self, at_once: bool) {
        let (reached, now) = (self.reached(), Instant::now());
        if at_once || self.mark.as_ref().is_some_and(|mark| mark.is_due(now)) {
            self.with_mark(|mark, _| mark.note(reached, now));
        }
    }

    pub(super) fn settle_mark(&mut self) {
        let reached = self.reached();
        self.with_mark(|mark, _| mark.settle(reached));
    }

    pub(super) fn reseal_mark(&mut self) {
        let reached = self.reached();
        self.with_mark(|mark, keys| mark.reseal(keys, reached));
    }

    fn with_mark(&mut self, step: impl FnOnce(&mut Mark, &Keys) -> Result<(), DiskError>) {
        let Some(mut mark) = self.mark.take() else { return };
        match step(&mut mark, self.keys()) {
            Ok(()) => self.mark = Some(mark),
            Err(error) => given_up(&error),
        }
    }
}

fn given_up(error: &DiskError) {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "the mark of how far the store has come stays where it is until the next start"
    );
}

#[cfg(test)]
mod tests;
