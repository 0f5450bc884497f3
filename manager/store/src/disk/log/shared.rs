//! What the writer of the log tells everybody else: how far it is, and whether there is room.

use super::index::Index;
use crate::disk::DiskError;
use crate::disk::frame::frame_size;
use crate::disk::spare::{Readiness, Spare};
use crate::raft::types::{Entry, LogId};
use crate::seam::blocking;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Kept free in the segment for entries that raft makes by itself, so that they never wait for space.
const RESERVE: u64 = 64 * 1024;

/// What the writer thread and everybody else share.
pub(crate) struct LogShared {
    index: Mutex<Index>,
    /// Index + 1 of the last entry known to be committed; written along with the next entries. 0: none.
    pub(super) committed: AtomicU64,
    /// Free bytes of the newest segment.
    pub(super) room: AtomicU64,
    /// Bytes written in frames since the store was opened; tells when a snapshot is due.
    pub(crate) written: AtomicU64,
    pub(crate) stopping: AtomicBool,
    durable: watch::Sender<Durable>,
    /// Wakes whenever entries are appended, to memory at first.
    appended: watch::Sender<()>,
    /// Since when the writer has been at what it does now.
    writing_since: Mutex<Option<Instant>>,
    pub(super) spare: Spare,
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
    pub(crate) fn new(dir: &Path, segment_bytes: u64, cache_bytes: usize) -> Self {
        Self {
            index: Mutex::new(Index::new(cache_bytes)),
            committed: AtomicU64::new(0),
            room: AtomicU64::new(0),
            written: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            durable: watch::Sender::new(Durable::default()),
            appended: watch::Sender::new(()),
            writing_since: Mutex::new(None),
            spare: Spare::new(dir, segment_bytes),
            segment_bytes,
            #[cfg(feature = "failpoints")]
            delay_ms: AtomicU64::new(0),
        }
    }

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

    pub(super) fn set_durable(&self, last: Option<LogId>) {
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

    /// Takes the entries into memory; the writer has to be told of them, too.
    pub(crate) fn append(&self, entries: &[Entry]) {
        self.index().append(entries);
        self.appended.send_replace(());
    }

    /// Returns when the log has entries behind `id`.
    pub(crate) async fn longer_than(&self, id: Option<LogId>) {
        let mut appended = self.appended.subscribe();
        while self.index().last() <= id && appended.changed().await.is_ok() {}
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
    fn has_room(&self, bytes: usize, entries: usize) -> bool {
        self.room.load(Ordering::Relaxed) >= (frame_size(bytes + 128 * entries) as u64) + RESERVE
    }

    /// Whether entries of that many bytes in all can be written without asking the disk for more space. Waits while the
    /// next segment is being made, a second at most.
    fn room_for(&self, bytes: usize, entries: usize) -> Result<(), Arc<DiskError>> {
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

/// Whether that many bytes of entries can be written, asked on a thread where waiting does no harm; as a rule there is nothing to wait for.
pub(crate) async fn room(log: &Arc<LogShared>, bytes: usize, entries: usize) -> Result<(), Arc<DiskError>> {
    if log.has_room(bytes, entries) {
        return Ok(());
    }
    let log = Arc::clone(log);
    match blocking(move || log.room_for(bytes, entries)).await {
        Ok(room) => room,
        Err(_) => Ok(()), // the runtime is ending
    }
}
