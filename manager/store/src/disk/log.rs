//! The raft log: a chain of sealed frames over segments that are used again and again.
//!
//! Blocking, owned by the writer thread. Where the entries are is shared with the readers through [`Index`].

mod index; // where the entries are
mod record; // what frames hold
mod replay; // reading it at the start
mod shared; // what others see of the writer

pub(crate) use self::index::{Lookup, read};
pub(crate) use self::shared::{LogShared, room};

use self::index::Place;
use self::record::{ResetRecord, StartRecord, TruncateRecord};
use self::replay::list;
use super::files::{self, FileExt};
use super::frame::{FrameKind, frame_size, write_frame};
use super::key::Tag;
use super::keys::Keys;
use super::mark::{Mark, Reached};
use super::segment::{self, Segment};
use super::spare::Readiness;
use super::state::StateFile;
use super::{DiskError, counted_sync, failed, make_dir, sync_dir};
use crate::codec;
use crate::raft::types::{Entry, LogId, Vote};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Used segments kept for the next roll; more are deleted.
const POOL: usize = 2;
/// Between two tries to get space for an entry that must be written.
const FULL_RETRY: Duration = Duration::from_millis(500);

struct Held {
    segment: Arc<Segment>,
    /// Highest index of an entry in it, also of truncated ones.
    highest: Option<u64>,
}

/// The log and the vote, opened for writing.
pub(crate) struct Log {
    dir: PathBuf,
    keys: Keys,
    state: StateFile,
    held: VecDeque<Held>,
    /// Where the next frame goes in the newest segment.
    end: u64,
    /// Size of the newest segment.
    size: u64,
    /// Tag of the last frame.
    tag: Tag,
    /// The last entry on the disk.
    last: Option<LogId>,
    /// Size of segments to be made.
    segment_bytes: u64,
    pool: Vec<PathBuf>,
    shared: Arc<LogShared>,
    buffer: Vec<u8>,
    /// Nobody else opens the directory while we may write to it.
    lock: Option<DirLock>,
    /// Tells those who open it later how far it has come.
    pub(super) mark: Option<Mark>,
}

/// The lock on the store's directory.
pub(crate) type DirLock = files::Lock;

impl Log {
    /// Opens the log below `dir`, or makes an empty one if `state` is new.
    pub(crate) fn open(dir: &Path, keys: &Keys, state: StateFile, segment_bytes: u64, cache_bytes: usize) -> Result<Self, DiskError> {
        make_dir(dir)?;
        let (numbers, pool) = list(dir)?;
        let shared = Arc::new(LogShared::new(dir, segment_bytes, cache_bytes));
        let mut log = Self {
            dir: dir.to_owned(),
            keys: keys.clone(),
            state,
            held: VecDeque::new(),
            end: 0,
            size: 0,
            tag: Tag::default(),
            last: None,
            segment_bytes,
            pool,
            shared,
            buffer: Vec::new(),
            lock: None,
            mark: None,
        };
        log.check_numbers(&numbers)?;
        log.replay(&numbers)?;
        if log.held.is_empty() {
            log.roll()?;
        }
        log.publish_room();
        log.shared.spare.ensure(log.pool.pop());
        Ok(log)
    }

    pub(crate) fn hold(&mut self, lock: DirLock) {
        self.lock = Some(lock);
    }

    pub(crate) fn shared(&self) -> Arc<LogShared> {
        Arc::clone(&self.shared)
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        self.state.state().vote
    }

    /// Whose log it is.
    pub(crate) fn raft_id(&self) -> u64 {
        self.state.state().raft_id
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// How often the vote was written.
    pub(crate) fn votes(&self) -> u64 {
        self.state.writes()
    }

    /// Where everything durable ends.
    pub(super) fn reached(&self) -> Reached {
        let segment = self.held.back().map_or(0, |held| held.segment.number);
        Reached { segment, end: self.end, tag: self.tag, votes: self.votes() }
    }

    /// Notes and tells what is on the disk now.
    fn set_last(&mut self, last: Option<LogId>) {
        self.last = last;
        self.shared.set_durable(last);
    }

    /// Durable when this returns.
    pub(crate) fn save_vote(&mut self, vote: Vote) -> Result<(), DiskError> {
        skep_failpoint::failpoint!("store.vote.before");
        self.state.set_vote(vote)?;
        skep_failpoint::failpoint!("store.vote.after");
        self.note_mark(true);
        Ok(())
    }

    /// Writes the entries of one or more appends in one frame; durable when this returns.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> Result<(), DiskError> {
        skep_failpoint::failpoint!("store.append.before");
        let mut rest = entries;
        while !rest.is_empty() {
            let mut payload = self.shared.committed.load(Ordering::Relaxed).to_le_bytes().to_vec();
            payload.extend_from_slice(&[0; 4]);
            let mut taken = 0;
            for entry in rest {
                let at = payload.len();
                payload.extend_from_slice(&[0; 4]);
                codec::encode_into("log entry", entry, &mut payload)?;
                if taken > 0 && payload.len() > self.shared.max_entry() {
                    payload.truncate(at);
                    break;
                }
                let length = u32::try_from(payload.len() - at - 4).expect("an entry fits a segment");
                payload[at..at + 4].copy_from_slice(&length.to_le_bytes());
                taken += 1;
            }
            payload[8..12].copy_from_slice(&u32::try_from(taken).expect("few entries fit a frame").to_le_bytes());
            let (now, later) = rest.split_at(taken);
            let offset = self.write(FrameKind::Entries, &payload)?;
            let newest = self.held.back_mut().expect("an open log has a segment");
            newest.highest = newest.highest.max(now.last().map(|entry| entry.log_id.index));
            let mut index = self.shared.index();
            for (nth, entry) in now.iter().enumerate() {
                let place = Place { segment: Arc::clone(&newest.segment), offset, payload: payload.len(), nth };
                index.placed(entry.log_id, place);
            }
            index.evict();
            drop(index);
            self.set_last(now.last().map(|entry| entry.log_id));
            rest = later;
        }
        skep_failpoint::failpoint!("store.append.after");
        Ok(())
    }

    /// Forgets the entries from `since` on, which the index has forgotten already.
    pub(crate) fn truncate(&mut self, since: u64, previous: Option<LogId>) -> Result<(), DiskError> {
        let payload = codec::encode("log record", &TruncateRecord { since, previous })?;
        self.write(FrameKind::Truncate, &payload)?;
        self.set_last(previous);
        Ok(())
    }

    /// Goes on with the current key.
    pub(crate) fn reseal(&mut self) -> Result<(), DiskError> {
        self.state.reseal(&self.keys)?;
        self.reseal_mark();
        skep_failpoint::failpoint!("store.reseal.state");
        // Without waiting for space: the next segment has the new key in any case.
        if matches!(self.shared.spare.ensure(None), Readiness::Ready) { self.roll() } else { Ok(()) }
    }

    /// Starts anew behind a snapshot that is ahead of the log.
    pub(crate) fn reset(&mut self, upto: LogId) -> Result<(), DiskError> {
        let payload = codec::encode("log record", &ResetRecord { upto })?;
        self.write(FrameKind::Reset, &payload)?;
        self.set_last(Some(upto));
        skep_failpoint::failpoint!("store.reset.after");
        Ok(())
    }

    /// Marks the end, so that damage to the last record is noticed at the next start whatever it looks like.
    pub(crate) fn close(&mut self) -> Result<(), DiskError> {
        self.shared.spare.settle();
        self.write(FrameKind::Closed, &[])?;
        self.settle_mark();
        Ok(())
    }

    /// Gives up segments whose entries are all in a snapshot.
    pub(crate) fn recycle(&mut self, upto: u64) -> Result<(), DiskError> {
        let mut renamed = false;
        while self.held.len() > 1 && self.held.front().is_some_and(|held| held.highest.is_none_or(|highest| highest <= upto)) {
            let Some(held) = self.held.pop_front() else { break };
            let path = &held.segment.path;
            skep_failpoint::failpoint!("store.purge.before");
            // Readers that still hold the segment would find zeros in it: such a file is not used again.
            if self.pool.len() < POOL && Arc::strong_count(&held.segment) == 1 {
                let used = self.dir.join(format!("used-{}", held.segment.number));
                files::rename(path, &used).map_err(failed("set aside the log segment", path))?;
                self.pool.push(used);
                renamed = true;
            } else {
                files::remove_file(path).map_err(failed("remove the log segment", path))?;
            }
            skep_failpoint::failpoint!("store.purge.after");
        }
        // Before it is zeroed: after a power cut the old name must not be found with zeros in it.
        if renamed { sync_dir(&self.dir) } else { Ok(()) }
    }

    /// Writes one frame behind the last one and makes it durable.
    fn write(&mut self, kind: FrameKind, payload: &[u8]) -> Result<u64, DiskError> {
        let size = frame_size(payload.len()) as u64;
        if self.end + size > self.size {
            self.roll()?;
        }
        if self.end + size > self.size {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the record is larger than a segment");
            return Err(DiskError::Io { step: "write a record to", path: self.dir.clone(), source });
        }
        let newest = self.held.back().expect("an open log has a segment");
        let segment = &newest.segment;
        self.buffer.clear();
        let tag = write_frame(&segment.key, kind, segment.number, self.tag, payload, &mut self.buffer);
        #[cfg(feature = "failpoints")]
        std::thread::sleep(Duration::from_millis(self.shared.delay_ms.load(Ordering::Relaxed)));
        segment.file.write_all_at(&self.buffer, self.end).map_err(failed("write the log segment", &segment.path))?;
        skep_failpoint::failpoint!("store.append.written");
        counted_sync();
        segment.file.sync_data().map_err(failed("sync the log segment", &segment.path))?;
        skep_failpoint::failpoint!("store.append.synced");
        let offset = self.end;
        self.end += size;
        self.tag = tag;
        self.shared.written.fetch_add(size, Ordering::Relaxed);
        if self.buffer.capacity() > 256 * 1024 {
            self.buffer = Vec::new();
        }
        self.publish_room();
        self.note_mark(false);
        Ok(offset)
    }

    /// Goes on in the next segment. Waits for space if there is none: raft would give up for good on an error.
    fn roll(&mut self) -> Result<(), DiskError> {
        let number = self.held.back().map_or(self.state.state().newest_segment, |held| held.segment.number) + 1;
        let spare = self.take_spare()?;
        let (mut bytes, seal) = segment::preface(&self.keys, number, self.segment_bytes);
        let payload = codec::encode("log segment", &StartRecord { last: self.last })?;
        let tag = write_frame(&seal, FrameKind::Start, number, self.tag, &payload, &mut bytes);
        spare.file.write_all_at(&bytes, 0).map_err(failed("write the log segment", &spare.path))?;
        counted_sync();
        spare.file.sync_data().map_err(failed("sync the log segment", &spare.path))?;
        skep_failpoint::failpoint!("store.roll.written");
        let path = segment::segment_path(&self.dir, number);
        files::rename(&spare.path, &path).map_err(failed("rename the next log segment to", &path))?;
        self.shared.spare.placed();
        sync_dir(&self.dir)?;
        skep_failpoint::failpoint!("store.roll.renamed");
        self.state.set_newest_segment(number)?;
        self.held.push_back(Held { segment: Arc::new(Segment { number, path, file: spare.file, key: seal }), highest: None });
        self.end = bytes.len() as u64;
        self.size = self.segment_bytes;
        self.tag = tag;
        self.settle_mark();
        self.shared.spare.ensure(self.pool.pop());
        Ok(())
    }

    fn take_spare(&mut self) -> Result<super::spare::SpareFile, DiskError> {
        let first = self.held.is_empty();
        loop {
            match self.shared.spare.take() {
                Ok(spare) => return Ok(spare),
                Err(error) if error.is_full() && !first && !self.shared.stopping.load(Ordering::Relaxed) => std::thread::sleep(FULL_RETRY),
                Err(error) => {
                    return Err(Arc::try_unwrap(error).unwrap_or_else(|error| match &*error {
                        DiskError::Full { step, path } => DiskError::Full { step, path: path.clone() },
                        other => DiskError::Io {
                            step: "prepare",
                            path: self.dir.join("spare"),
                            source: std::io::Error::other(other.to_string()),
                        },
                    }));
                }
            }
        }
    }

    fn publish_room(&self) {
        self.shared.room.store(self.size.saturating_sub(self.end), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
