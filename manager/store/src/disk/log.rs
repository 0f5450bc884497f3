//! The raft log: a chain of sealed frames over segments that are used again and again.
//!
//! Blocking, owned by the writer thread. Where the entries are is shared with the readers through [`Index`].

use super::frame::{FrameKind, frame_size, write_frame};
use super::key::Tag;
use super::keys::Keys;
use super::segment::{self, PREFACE, Segment};
use super::spare::{Readiness, Spare};
use super::state::StateFile;
use super::{DiskError, counted_sync, failed, sync_dir};
use crate::codec;
use crate::raft::types::{Entry, LogId, Vote};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Kept free in the segment for entries that raft makes by itself, so that they never wait for space.
const RESERVE: u64 = 64 * 1024;
/// Used segments kept for the next roll; more are deleted.
const POOL: usize = 2;
/// Between two tries to get space for an entry that must be written.
const FULL_RETRY: Duration = Duration::from_millis(500);

#[derive(Serialize, Deserialize)]
struct StartRecord {
    /// The last entry before the segment.
    last: Option<LogId>,
}

#[derive(Serialize, Deserialize)]
struct TruncateRecord {
    since: u64,
    /// The entry before `since`.
    previous: Option<LogId>,
}

#[derive(Serialize, Deserialize)]
struct ResetRecord {
    upto: LogId,
}

/// Where an entry is on the disk.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u64,
    pub(crate) payload: usize,
    pub(crate) nth: usize,
}

struct Slot {
    id: LogId,
    place: Option<Place>,
    /// Boxed: thousands of slots hold none.
    entry: Option<Box<Entry>>,
}

/// Which entries the log has and where they are; the newest are held in memory as well.
pub(crate) struct Index {
    purged: Option<LogId>,
    slots: VecDeque<Slot>,
    /// How many slots at the front have lost their copy in memory.
    evicted: usize,
    cached_bytes: usize,
    cache_limit: usize,
}

/// An entry, or where to read it.
pub(crate) enum Lookup {
    Cached(Entry),
    OnDisk(Place),
}

fn entry_size(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(batch) => batch.size() + 64,
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 256,
    }
}

impl Index {
    fn new(cache_limit: usize) -> Self {
        Self { purged: None, slots: VecDeque::new(), evicted: 0, cached_bytes: 0, cache_limit }
    }

    pub(crate) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    pub(crate) fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.id).or(self.purged)
    }

    fn first_index(&self) -> u64 {
        self.slots.front().map_or_else(|| self.purged.map_or(0, |id| id.index + 1), |slot| slot.id.index)
    }

    fn position(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.first_index())?).ok().filter(|at| *at < self.slots.len())
    }

    pub(crate) fn id_at(&self, index: u64) -> Option<LogId> {
        if let Some(purged) = self.purged.filter(|purged| purged.index == index) {
            return Some(purged);
        }
        self.position(index).map(|at| self.slots[at].id)
    }

    /// Takes the entries into memory; they are on the disk when [`Index::placed`] says so.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.cached_bytes += entry_size(entry);
            self.slots.push_back(Slot { id: entry.log_id, place: None, entry: Some(Box::new(entry.clone())) });
        }
    }

    fn placed(&mut self, id: LogId, place: Place) {
        if let Some(at) = self.position(id.index)
            && self.slots[at].id == id
        {
            self.slots[at].place = Some(place);
        }
    }

    fn evict(&mut self) {
        while self.cached_bytes > self.cache_limit {
            let Some(slot) = self.slots.get_mut(self.evicted).filter(|slot| slot.place.is_some()) else { return };
            if let Some(entry) = slot.entry.take() {
                self.cached_bytes -= entry_size(&entry);
            }
            self.evicted += 1;
        }
    }

    /// From `start` up to but without `end`, as far as they are there.
    pub(crate) fn lookup(&self, start: u64, end: u64) -> Vec<Lookup> {
        let from = start.max(self.first_index());
        (from..end)
            .map_while(|index| {
                let slot = &self.slots[self.position(index)?];
                match (&slot.entry, &slot.place) {
                    (Some(entry), _) => Some(Lookup::Cached(Entry::clone(entry))),
                    (None, Some(place)) => Some(Lookup::OnDisk(place.clone())),
                    (None, None) => None, // cannot be: only entries with a place are evicted
                }
            })
            .collect()
    }

    /// Returns the entry before `since`.
    pub(crate) fn truncate(&mut self, since: u64) -> Option<LogId> {
        while self.slots.back().is_some_and(|slot| slot.id.index >= since) {
            if let Some(entry) = self.slots.pop_back().and_then(|slot| slot.entry) {
                self.cached_bytes -= entry_size(&entry);
            }
        }
        self.evicted = self.evicted.min(self.slots.len());
        self.last()
    }

    pub(crate) fn purge(&mut self, upto: LogId) {
        while self.slots.front().is_some_and(|slot| slot.id.index <= upto.index) {
            if let Some(entry) = self.slots.pop_front().and_then(|slot| slot.entry) {
                self.cached_bytes -= entry_size(&entry);
            }
            self.evicted = self.evicted.saturating_sub(1);
        }
        self.purged = self.purged.max(Some(upto));
    }
}

/// What the writer thread and everybody else share.
pub(crate) struct LogShared {
    index: Mutex<Index>,
    /// Index + 1 of the last entry known to be committed; written along with the next entries. 0: none.
    committed: AtomicU64,
    /// Free bytes of the newest segment.
    room: AtomicU64,
    /// Bytes written in frames since the store was opened; tells when a snapshot is due.
    pub(crate) written: AtomicU64,
    pub(crate) stopping: AtomicBool,
    durable: watch::Sender<Durable>,
    /// Since when the writer has been at what it does now.
    writing_since: Mutex<Option<Instant>>,
    spare: Spare,
    segment_bytes: u64,
    /// A slow disk, for tests: milliseconds that each write takes longer.
    #[cfg(feature = "failpoints")]
    pub(crate) delay_ms: AtomicU64,
}

/// How far the log is on the disk.
#[derive(Debug, Clone, Copy, Default)]
struct Durable {
    last: Option<LogId>,
    /// Nothing more will be.
    broken: bool,
}

/// Entries will never be on the disk: a write has failed.
#[derive(Debug, thiserror::Error)]
#[error("the log cannot be written any more")]
pub(crate) struct NeverDurable;

impl LogShared {
    /// The last entry on the disk.
    pub(crate) fn durable(&self) -> Option<LogId> {
        self.durable.borrow().last
    }

    /// Wakes whenever more is on the disk.
    pub(crate) async fn more_durable_than(&self, last: Option<LogId>) {
        // The sender is ours: it cannot be gone.
        let _ = self.durable.subscribe().wait_for(|durable| durable.last > last).await;
    }

    /// Returns when the entry is on the disk. Entries of one log rise in term and index, so that a later one tells of those
    /// before it. Waits for ever for an entry that was truncated: give it an end.
    pub(crate) async fn wait_durable(&self, id: LogId) -> Result<(), NeverDurable> {
        let reached = |durable: &Durable| durable.last >= Some(id);
        if reached(&self.durable.borrow()) {
            return Ok(());
        }
        let seen = self.durable.subscribe().wait_for(|durable| durable.broken || reached(durable)).await.map(|durable| *durable);
        if seen.is_ok_and(|durable| reached(&durable)) { Ok(()) } else { Err(NeverDurable) }
    }

    fn set_durable(&self, last: Option<LogId>) {
        self.durable.send_modify(|durable| durable.last = last);
    }

    /// The writer begins or ends something.
    pub(crate) fn set_writing(&self, writing: bool) {
        *self.writing_since.lock().unwrap_or_else(PoisonError::into_inner) = writing.then(Instant::now);
    }

    /// How long the writer has been waiting for the disk.
    pub(crate) fn writing_for(&self) -> Option<Duration> {
        self.writing_since.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed())
    }

    pub(crate) fn mark_broken(&self) {
        self.durable.send_modify(|durable| durable.broken = true);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.durable.borrow().broken
    }

    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_committed(&self, committed: Option<LogId>) {
        self.committed.fetch_max(committed.map_or(0, |id| id.index + 1), Ordering::Relaxed);
    }

    pub(crate) fn committed(&self) -> Option<LogId> {
        let next = self.committed.load(Ordering::Relaxed);
        self.index().id_at(next.checked_sub(1)?)
    }

    /// Whether that many bytes of entries fit the newest segment.
    pub(crate) fn has_room(&self, bytes: usize, entries: usize) -> bool {
        self.room.load(Ordering::Relaxed) >= (frame_size(bytes + 128 * entries) as u64) + RESERVE
    }

    /// Whether entries of that many bytes in all can be written without asking the disk for more space. Waits while the
    /// next segment is being made, a second at most.
    pub(crate) fn room_for(&self, bytes: usize, entries: usize) -> Result<(), Arc<DiskError>> {
        if self.has_room(bytes, entries) {
            return Ok(());
        }
        match self.spare.ensure(None) {
            Readiness::Ready => Ok(()),
            Readiness::Failed(error) => Err(error),
            Readiness::Preparing => match self.spare.wait_ready(Duration::from_secs(1)) {
                Readiness::Ready | Readiness::Preparing => Ok(()), // a slow disk is not a full one: the write itself waits
                Readiness::Failed(error) => Err(error),
            },
        }
    }

    /// Waits until no thread prepares a segment.
    pub(crate) fn settle(&self) {
        self.spare.settle();
    }

    /// The largest entry that fits a segment, which has a preface and a first record.
    pub(crate) fn max_entry(&self) -> usize {
        usize::try_from(self.segment_bytes).unwrap_or(usize::MAX) - 2048
    }
}

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
}

/// The lock on the store's directory.
pub(crate) type DirLock = nix::fcntl::Flock<std::fs::File>;

impl Log {
    /// Opens the log below `dir`, or makes an empty one if `state` is new.
    pub(crate) fn open(dir: &Path, keys: &Keys, state: StateFile, segment_bytes: u64, cache_bytes: usize) -> Result<Self, DiskError> {
        std::fs::create_dir_all(dir).map_err(failed("create the directory", dir))?;
        let (numbers, pool) = list(dir)?;
        let shared = Arc::new(LogShared {
            index: Mutex::new(Index::new(cache_bytes)),
            committed: AtomicU64::new(0),
            room: AtomicU64::new(0),
            written: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            durable: watch::Sender::new(Durable::default()),
            writing_since: Mutex::new(None),
            spare: Spare::new(dir, segment_bytes),
            segment_bytes,
            #[cfg(feature = "failpoints")]
            delay_ms: AtomicU64::new(0),
        });
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
        Ok(())
    }

    fn check_numbers(&self, numbers: &[u64]) -> Result<(), DiskError> {
        for pair in numbers.windows(2) {
            if pair[1] != pair[0] + 1 {
                return Err(DiskError::MissingFile { path: segment::segment_path(&self.dir, pair[0] + 1) });
            }
        }
        let newest = self.state.state().newest_segment;
        if numbers.last().copied().unwrap_or(0) < newest {
            return Err(DiskError::MissingFile { path: segment::segment_path(&self.dir, newest) });
        }
        Ok(())
    }

    fn replay(&mut self, numbers: &[u64]) -> Result<(), DiskError> {
        let mut chain = None;
        for number in numbers {
            let last = numbers.last() == Some(number);
            let (segment, bytes) = Segment::open(&self.dir, *number, &self.keys)?;
            let scan = segment.scan(&bytes, chain, last)?;
            if scan.torn {
                cut(&segment, &bytes, scan.end)?;
            }
            let segment = Arc::new(segment);
            let mut held = Held { segment: Arc::clone(&segment), highest: None };
            if scan.frames.first().is_none_or(|frame| frame.kind != FrameKind::Start) {
                return Err(segment.corrupt(PREFACE, "the first record is missing"));
            }
            for frame in scan.frames {
                chain = Some(frame.tag);
                self.replay_frame(&mut held, &frame, self.held.is_empty())?;
            }
            self.held.push_back(held);
            self.end = scan.end as u64;
            self.size = bytes.len() as u64;
        }
        let last = self.shared.index().last();
        self.set_last(last);
        self.tag = chain.unwrap_or_default();
        Ok(())
    }

    fn replay_frame(&self, held: &mut Held, frame: &segment::Frame, first_segment: bool) -> Result<(), DiskError> {
        let segment = &held.segment;
        let mut index = self.shared.index();
        match frame.kind {
            FrameKind::Start => {
                let start: StartRecord = codec::decode("log segment", &frame.payload)?;
                if first_segment {
                    index.purged = start.last;
                } else if start.last != index.last() {
                    return Err(segment.corrupt(frame.offset, "entries before this segment are missing"));
                }
            }
            FrameKind::Entries => {
                let (committed, entries) =
                    split_entries(&frame.payload).ok_or_else(|| segment.corrupt(frame.offset, "a record has an unknown form"))?;
                self.shared.committed.fetch_max(committed, Ordering::Relaxed);
                for (nth, bytes) in entries.into_iter().enumerate() {
                    let entry: Entry = codec::decode("log entry", bytes)?;
                    if entry.log_id.index != index.last().map_or(0, |id| id.index + 1) {
                        return Err(segment.corrupt(frame.offset, "an entry is missing or double"));
                    }
                    held.highest = held.highest.max(Some(entry.log_id.index));
                    let place = Place { segment: Arc::clone(segment), offset: frame.offset as u64, payload: frame.payload.len(), nth };
                    index.slots.push_back(Slot { id: entry.log_id, place: Some(place), entry: None });
                    index.evicted += 1;
                }
            }
            FrameKind::Truncate => {
                let record: TruncateRecord = codec::decode("log record", &frame.payload)?;
                index.truncate(record.since);
                if index.slots.is_empty() {
                    index.purged = record.previous;
                }
            }
            FrameKind::Reset => {
                let record: ResetRecord = codec::decode("log record", &frame.payload)?;
                index.truncate(0);
                index.purged = Some(record.upto);
            }
            FrameKind::Closed => {}
        }
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
                std::fs::rename(path, &used).map_err(failed("set aside the log segment", path))?;
                self.pool.push(used);
                renamed = true;
            } else {
                std::fs::remove_file(path).map_err(failed("remove the log segment", path))?;
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
        std::fs::rename(&spare.path, &path).map_err(failed("rename the next log segment to", &path))?;
        self.shared.spare.placed();
        sync_dir(&self.dir)?;
        skep_failpoint::failpoint!("store.roll.renamed");
        self.state.set_newest_segment(number)?;
        self.held.push_back(Held { segment: Arc::new(Segment { number, path, file: spare.file, key: seal }), highest: None });
        self.end = bytes.len() as u64;
        self.size = self.segment_bytes;
        self.tag = tag;
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

/// The segments by number and the files kept for use.
fn list(dir: &Path) -> Result<(Vec<u64>, Vec<PathBuf>), DiskError> {
    let (mut numbers, mut pool) = (Vec::new(), Vec::new());
    for file in std::fs::read_dir(dir).map_err(failed("list", dir))? {
        let file = file.map_err(failed("list", dir))?;
        let name = file.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(number) = segment::segment_number(name) {
            numbers.push(number);
        } else if name.starts_with("used-") {
            pool.push(file.path());
        }
    }
    numbers.sort_unstable();
    while pool.len() > POOL {
        if let Some(path) = pool.pop() {
            std::fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok((numbers, pool))
}

/// Zeroes what a crash left behind the last whole record.
fn cut(segment: &Segment, bytes: &[u8], end: usize) -> Result<(), DiskError> {
    tracing::warn!(file = %segment.path.display(), offset = end, "cut off a record that a crash left unfinished; it was never acknowledged");
    let zeros = vec![0; bytes.len() - end];
    segment.file.write_all_at(&zeros, end as u64).map_err(failed("cut the log segment", &segment.path))?;
    counted_sync();
    segment.file.sync_data().map_err(failed("sync the log segment", &segment.path))
}

/// The committed mark and the encoded entries of a frame.
fn split_entries(payload: &[u8]) -> Option<(u64, Vec<&[u8]>)> {
    let committed = u64::from_le_bytes(payload.get(..8)?.try_into().ok()?);
    let count = u32::from_le_bytes(payload.get(8..12)?.try_into().ok()?);
    let mut rest = payload.get(12..)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let length = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        entries.push(rest.get(4..4 + length)?);
        rest = &rest[4 + length..];
    }
    rest.is_empty().then_some((committed, entries))
}

/// Reads entries, opening each frame once.
pub(crate) fn read(lookups: Vec<Lookup>) -> Result<Vec<Entry>, DiskError> {
    let mut entries = Vec::with_capacity(lookups.len());
    let mut open: Option<(u64, u64, Vec<u8>)> = None;
    for lookup in lookups {
        let place = match lookup {
            Lookup::Cached(entry) => {
                entries.push(entry);
                continue;
            }
            Lookup::OnDisk(place) => place,
        };
        if open.as_ref().is_none_or(|(segment, offset, _)| (*segment, *offset) != (place.segment.number, place.offset)) {
            open = Some((place.segment.number, place.offset, place.segment.read_payload(place.offset, place.payload)?));
        }
        let payload = open.as_ref().map_or(&[][..], |(_, _, payload)| payload);
        let bytes = split_entries(payload).and_then(|(_, entries)| entries.get(place.nth).copied());
        let at = usize::try_from(place.offset).unwrap_or(usize::MAX);
        entries.push(codec::decode("log entry", bytes.ok_or_else(|| place.segment.corrupt(at, "an entry that was there is gone"))?)?);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
