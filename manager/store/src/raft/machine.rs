//! The state machine: applies batches to the tables, publishes views and commits, makes and takes snapshots.

use crate::disk::log::LogShared;
use crate::disk::snapshot::{self, SealedReader, SealedWriter, SnapshotDir, SnapshotHead};
use crate::disk::{DiskError, files, keys::Keys};
use crate::feed::{Commit, Feeds};
use crate::raft::types::{BatchResult, Entry, LogId, Membership, RaftTypes, SnapshotMeta, StorageError};
use crate::seam::blocking;
use crate::table::Tables;
use crate::view::View;
#[cfg(feature = "sim")]
use crate::{seam::has_fault, sim::Fault};
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use skep_types::Version;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// After a snapshot that failed, say for lack of space, the next one is not tried before this time.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(5);

/// What readers see of the state machine.
pub(crate) struct Published {
    pub(crate) view: watch::Sender<View>,
    pub(crate) feeds: Feeds,
    pub(crate) snapshots: SnapshotProgress,
}

/// When the next snapshot is due.
pub(crate) struct SnapshotProgress {
    /// Index + 1 of the last entry in the newest snapshot.
    next_index: AtomicU64,
    /// Bytes of log when it was made.
    at_bytes: AtomicU64,
    /// Its size on the disk.
    size: AtomicU64,
    tried: Mutex<Option<Instant>>,
    pub(crate) error: watch::Sender<Option<Arc<DiskError>>>,
    pub(crate) due: Notify,
    pub(crate) every_entries: AtomicU64,
    pub(crate) every_bytes: u64,
    /// One was made or taken in.
    pub(crate) made: Notify,
    pub(crate) keep_entries: AtomicU64,
    /// Held by whoever changes the directory of snapshots; `true`: nobody does any more.
    ended: Mutex<bool>,
}

/// The store is being shut down, and its directory belongs to the next one.
fn ended(dir: &Path) -> DiskError {
    let source = io::Error::new(io::ErrorKind::Interrupted, "the store is being shut down");
    DiskError::Io { step: "change the snapshots in", path: dir.to_owned(), source }
}

impl SnapshotProgress {
    pub(crate) fn new(every_entries: u64, every_bytes: u64, keep_entries: u64) -> Self {
        Self {
            next_index: AtomicU64::new(0),
            at_bytes: AtomicU64::new(0),
            size: AtomicU64::new(0),
            tried: Mutex::new(None),
            error: watch::Sender::new(None),
            due: Notify::new(),
            every_entries: AtomicU64::new(every_entries.max(1)),
            every_bytes,
            made: Notify::new(),
            keep_entries: AtomicU64::new(keep_entries),
            ended: Mutex::new(false),
        }
    }

    fn hold(&self, dir: &Path) -> Result<MutexGuard<'_, bool>, DiskError> {
        let held = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *held { Err(ended(dir)) } else { Ok(held) }
    }

    /// Waits for a snapshot that is being written and lets none begin. openraft does not wait for it when it ends. Blocking.
    pub(crate) fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Index of the last entry in the newest snapshot.
    pub(crate) fn last_index(&self) -> Option<u64> {
        self.next_index.load(Ordering::Relaxed).checked_sub(1)
    }

    fn note(&self, last: Option<LogId>, bytes: u64, file: Option<&Path>) {
        let size = file.and_then(|file| files::size(file).ok()).unwrap_or(0);
        self.next_index.store(last.map_or(0, |id| id.index + 1), Ordering::Relaxed);
        self.at_bytes.store(bytes, Ordering::Relaxed);
        self.size.store(size, Ordering::Relaxed);
        self.error.send_replace(None);
        self.made.notify_one();
    }

    /// A large state is not written again for little news: the log has to grow by a quarter of the last snapshot when
    /// entries are counted, by all of it when bytes are.
    fn check(&self, applied: Option<LogId>, bytes: u64) {
        let entries = applied.map_or(0, |id| id.index + 1).saturating_sub(self.next_index.load(Ordering::Relaxed));
        let grown = bytes.saturating_sub(self.at_bytes.load(Ordering::Relaxed));
        let size = self.size.load(Ordering::Relaxed);
        let many = entries >= self.every_entries.load(Ordering::Relaxed) && grown >= size / 4;
        if !many && grown < self.every_bytes.max(size) {
            return;
        }
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if tried.is_none_or(|at| now.duration_since(at) >= SNAPSHOT_RETRY || self.error.borrow().is_none()) {
            *tried = Some(now);
            self.due.notify_one();
        }
    }
}

/// Owned by openraft; one per store.
pub(crate) struct Machine {
    tables: Tables,
    applied: Option<LogId>,
    membership: Membership,
    current: Option<SnapshotMeta>,
    path: Option<PathBuf>,
    published: Arc<Published>,
    snapshots: SnapshotDir,
    log: Arc<LogShared>,
}

fn meta(last: Option<LogId>, membership: &Membership) -> SnapshotMeta {
    let snapshot_id = last.map_or_else(String::new, |id| format!("{}-{}-{}", id.leader_id.term, id.leader_id.node_id, id.index));
    SnapshotMeta { last_log_id: last, last_membership: membership.clone(), snapshot_id }
}

impl Machine {
    /// Loads the newest snapshot, if there is one. Blocking.
    pub(crate) fn load(snapshots: SnapshotDir, log: Arc<LogShared>) -> Result<(Option<SnapshotHead>, Tables, MachineParts), DiskError> {
        let (path, head, tables) = match snapshots.load_newest()? {
            None => (None, None, Tables::new()),
            Some((path, head, tables)) => (Some(path), Some(head), tables),
        };
        snapshots.tidy()?;
        Ok((head, tables, MachineParts { path, snapshots, log }))
    }

    pub(crate) fn new(head: Option<SnapshotHead>, tables: Tables, parts: MachineParts, published: Arc<Published>) -> Self {
        let applied = head.as_ref().and_then(|head| head.last);
        let membership = head.as_ref().map(|head| head.membership.clone()).unwrap_or_default();
        let current = head.is_some().then(|| meta(applied, &membership));
        published.snapshots.note(applied, 0, parts.path.as_deref());
        Self { tables, applied, membership, current, path: parts.path, published, snapshots: parts.snapshots, log: parts.log }
    }

    /// The transactions of one entry, each by itself.
    fn apply_batch(
        &mut self,
        batch: &crate::raft::types::Batch,
        commits: &mut Vec<Commit>,
    ) -> Result<BatchResult, crate::codec::CodecError> {
        let mut results = Vec::new();
        for transaction in batch.transactions()? {
            let version = Version(self.tables.revision().0 + 1);
            results.push(self.tables.apply(version, transaction.now, &transaction.actions).map(|changes| {
                if !changes.is_empty() {
                    commits.push(Commit { version, changes });
                }
                self.tables.revision()
            }));
        }
        Ok(BatchResult(results))
    }

    fn publish(&self, commits: Vec<Commit>) {
        if commits.is_empty() {
            return;
        }
        // The view first: who hears of a commit looks at a view that has it.
        self.published.view.send_replace(View::from(self.tables.clone()));
        self.published.feeds.push(commits);
    }
}

/// What [`Machine::load`] hands on to [`Machine::new`].
pub(crate) struct MachineParts {
    path: Option<PathBuf>,
    snapshots: SnapshotDir,
    log: Arc<LogShared>,
}

impl RaftStateMachine<RaftTypes> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<BatchResult>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut results = Vec::new();
        let mut commits = Vec::new();
        let entries: Vec<Entry> = entries.into_iter().collect();
        if let Some(last) = entries.last() {
            // Who proposed it is answered when it is applied: it has to be on this disk by then (see `raft/log.rs`).
            #[cfg(feature = "sim")]
            let durable = if has_fault(Fault::ApplyBeforeSync) { Ok(()) } else { self.log.wait_durable(last.log_id).await };
            #[cfg(not(feature = "sim"))]
            let durable = self.log.wait_durable(last.log_id).await;
            durable.map_err(|error| StorageError::from(StorageIOError::apply(last.log_id, AnyError::new(&error))))?;
        }
        for entry in entries {
            skep_failpoint::failpoint!("store.apply.before");
            let result = match &entry.payload {
                EntryPayload::Blank => BatchResult::default(),
                EntryPayload::Membership(membership) => {
                    self.membership = Membership::new(Some(entry.log_id), membership.clone());
                    BatchResult::default()
                }
                // An entry of a newer version stops us here: skipping it would make the managers differ.
                EntryPayload::Normal(batch) => self.apply_batch(batch, &mut commits).map_err(|error| {
                    tracing::error!(index = entry.log_id.index, error = &error as &dyn std::error::Error, "cannot apply a log entry");
                    StorageError::from(StorageIOError::apply(entry.log_id, AnyError::new(&error)))
                })?,
            };
            self.applied = Some(entry.log_id);
            results.push(result);
            skep_failpoint::failpoint!("store.apply.after");
        }
        self.publish(commits);
        self.published.snapshots.check(self.applied, self.log.written.load(Ordering::Relaxed));
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            tables: self.tables.clone(),
            last: self.applied,
            membership: self.membership.clone(),
            snapshots: self.snapshots.clone(),
            published: Arc::clone(&self.published),
            log: Arc::clone(&self.log),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotStream>, StorageError> {
        let path = self.snapshots.temporary("received");
        Ok(Box::new(SnapshotStream::receiving(path, self.snapshots.keys.clone())))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<SnapshotStream>) -> Result<(), StorageError> {
        let failed = |error: &DiskError| StorageError::from(StorageIOError::read_snapshot(Some(meta.signature()), AnyError::new(error)));
        let (snapshots, wanted, published) = (self.snapshots.clone(), meta.last_log_id, Arc::clone(&self.published));
        let loaded = blocking(move || {
            let _held = published.snapshots.hold(&snapshots.dir)?;
            let SnapshotStream::Receiving { path, .. } = *snapshot else {
                return Err(DiskError::MissingFile { path: snapshots.temporary("received") });
            };
            let (head, tables) = snapshot::load(&path, &snapshots.keys)?;
            match (head.last, wanted) {
                (Some(last), Some(wanted)) if last == wanted => Ok((snapshots.publish(&path, last)?, head, tables)),
                _ => Err(DiskError::Corrupt { path, offset: 0, what: "the snapshot received is not the one announced" }),
            }
        });
        let loaded = loaded
            .await
            .map_err(|error| StorageError::from(StorageIOError::read_snapshot(Some(meta.signature()), AnyError::new(&error))))?;
        let (path, head, tables) = loaded.map_err(|error| failed(&error))?;
        self.tables = tables;
        self.applied = head.last;
        self.membership = meta.last_membership.clone();
        self.current = Some(meta.clone());
        self.path = Some(path);
        self.published.snapshots.note(self.applied, self.log.written.load(Ordering::Relaxed), self.path.as_deref());
        self.published.view.send_replace(View::from(self.tables.clone()));
        self.published.feeds.reset(self.tables.revision());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<RaftTypes>>, StorageError> {
        // The builder works beside us and has published a newer file perhaps: what is on the disk counts.
        let newest =
            self.snapshots.newest().map_err(|error| StorageError::from(StorageIOError::read_snapshot(None, AnyError::new(&error))))?;
        let Some(path) = newest else { return Ok(None) };
        if self.path.as_ref() != Some(&path) || self.current.is_none() {
            let keys = self.snapshots.keys.clone();
            let from = path.clone();
            let head = blocking(move || snapshot::read_head(&from, &keys));
            let head = match head.await {
                Ok(Ok(head)) => head,
                Ok(Err(error)) => return Err(StorageIOError::read_snapshot(None, AnyError::new(&error)).into()),
                Err(error) => return Err(StorageIOError::read_snapshot(None, AnyError::new(&error)).into()),
            };
            self.current = Some(meta(head.last, &head.membership));
            self.path = Some(path.clone());
        }
        let stream = SnapshotStream::Sending { path, keys: self.snapshots.keys.clone(), reader: None };
        Ok(self.current.clone().map(|meta| Snapshot { meta, snapshot: Box::new(stream) }))
    }
}

/// Writes a snapshot beside the state machine, from a copy of its tables.
pub(crate) struct Builder {
    tables: Tables,
    last: Option<LogId>,
    membership: Membership,
    snapshots: SnapshotDir,
    published: Arc<Published>,
    log: Arc<LogShared>,
}

impl Builder {
    fn write(&self) -> Result<(), DiskError> {
        let Some(last) = self.last else { return Ok(()) };
        let _held = self.published.snapshots.hold(&self.snapshots.dir)?;
        let head = SnapshotHead {
            last: self.last,
            membership: self.membership.clone(),
            revision: self.tables.revision(),
            objects: self.tables.len() as u64,
        };
        let temporary = self.snapshots.temporary("built");
        let written = snapshot::write(&temporary, &self.snapshots.keys, &head, &self.tables);
        if written.is_err() {
            let _ = files::remove_file(&temporary); // gives its space back; the next one overwrites it anyway
        }
        let hash = written?;
        self.snapshots.publish(&temporary, last)?;
        tracing::info!(index = last.index, version = head.revision.0, objects = head.objects, state = %hash, "snapshot written");
        Ok(())
    }
}

impl RaftSnapshotBuilder<RaftTypes> for Builder {
    /// A snapshot that cannot be written is not an error for openraft, which would stop for good: it gets an empty one,
    /// which it ignores, keeps the log, and another is tried later.
    async fn build_snapshot(&mut self) -> Result<Snapshot<RaftTypes>, StorageError> {
        let this = Self {
            tables: self.tables.clone(),
            last: self.last,
            membership: self.membership.clone(),
            snapshots: self.snapshots.clone(),
            published: Arc::clone(&self.published),
            log: Arc::clone(&self.log),
        };
        let bytes = self.log.written.load(Ordering::Relaxed);
        let written = blocking(move || this.write()).await;
        let error = match written {
            Ok(Ok(())) => {
                let path = self.last.map(|last| self.snapshots.path(last)).unwrap_or_default();
                self.published.snapshots.note(self.last, bytes, Some(&path));
                let stream = SnapshotStream::Sending { path, keys: self.snapshots.keys.clone(), reader: None };
                return Ok(Snapshot { meta: meta(self.last, &self.membership), snapshot: Box::new(stream) });
            }
            Ok(Err(error)) => error,
            Err(ended) => {
                DiskError::Io { step: "write the snapshot in", path: self.snapshots.dir.clone(), source: io::Error::other(ended) }
            }
        };
        tracing::warn!(error = &error as &dyn std::error::Error, "no snapshot; the log is kept and grows until one is written");
        self.published.snapshots.error.send_replace(Some(Arc::new(error)));
        Ok(Snapshot { meta: SnapshotMeta::default(), snapshot: Box::new(SnapshotStream::Nothing) })
    }
}

/// A snapshot on its way to or from another manager: plain on the wire (which is TLS), sealed on the disk.
///
/// Files are opened at the first use, because openraft takes an error before that for the end of the store. Reads and
/// writes block for the time of one chunk.
pub(crate) enum SnapshotStream {
    Sending { path: PathBuf, keys: Keys, reader: Option<Box<SealedReader>> },
    Receiving { path: PathBuf, keys: Keys, writer: Option<Box<SealedWriter>>, position: u64, failed: bool },
    Nothing,
}

fn unfit() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "the snapshot is not open for that")
}

impl SnapshotStream {
    fn receiving(path: PathBuf, keys: Keys) -> Self {
        Self::Receiving { path, keys, writer: None, position: 0, failed: false }
    }

    fn reader(&mut self) -> io::Result<&mut SealedReader> {
        match self {
            Self::Sending { path, keys, reader } => {
                if reader.is_none() {
                    *reader = Some(Box::new(SealedReader::open(path, keys).map_err(io::Error::other)?));
                }
                reader.as_deref_mut().ok_or_else(unfit)
            }
            Self::Receiving { .. } | Self::Nothing => Err(unfit()),
        }
    }
}

fn open_writer<'a>(path: &Path, keys: &Keys, writer: &'a mut Option<Box<SealedWriter>>) -> io::Result<&'a mut SealedWriter> {
    if writer.is_none() {
        *writer = Some(Box::new(SealedWriter::create(path, keys).map_err(io::Error::other)?));
    }
    writer.as_deref_mut().ok_or_else(unfit)
}

impl AsyncRead for SnapshotStream {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.reader()?.read(out.initialize_unfilled()).map_err(io::Error::other)?;
        out.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SnapshotStream {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self::Receiving { path, keys, writer, position, failed } = &mut *self else { return Poll::Ready(Err(unfit())) };
        if *failed {
            return Poll::Ready(Err(unfit()));
        }
        if let Err(error) = open_writer(path, keys, writer).and_then(|writer| writer.write(bytes).map_err(io::Error::other)) {
            // The sender begins anew, and says so by going back to the beginning unless it is there.
            *writer = None;
            *failed = *position > 0;
            return Poll::Ready(Err(error));
        }
        *position += bytes.len() as u64;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Receiving { writer, .. } = &mut *self else { return Poll::Ready(Err(unfit())) };
        if let Some(writer) = writer.take() {
            writer.finish().map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for SnapshotStream {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        if let Self::Receiving { writer, position, failed, .. } = &mut *self {
            if to == SeekFrom::Start(0) {
                // A transfer that was cut off goes on under the same name from the beginning.
                (*writer, *position, *failed) = (None, 0, false);
                return Ok(());
            }
            // Sealed chunks are written one behind the other.
            return if to == SeekFrom::Start(*position) || to == SeekFrom::Current(0) { Ok(()) } else { Err(unfit()) };
        }
        let reader = self.reader()?;
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(delta) => reader.length.checked_add_signed(delta),
            SeekFrom::Current(delta) => reader.position.checked_add_signed(delta),
        };
        reader.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(())
    }

    fn poll_complete(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(match &*self {
            Self::Receiving { position, .. } => Ok(*position),
            Self::Sending { .. } | Self::Nothing => self.reader().map(|reader| reader.position),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncSeekExt, AsyncWriteExt};

    fn keys() -> Keys {
        crate::disk::key::DataKey::new([1; 32]).into()
    }

    #[tokio::test]
    async fn a_snapshot_whose_transfer_was_cut_off_is_received_from_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("received.new");
        let mut stream = SnapshotStream::receiving(path.clone(), keys());
        stream.write_all(&[7; 100_000]).await.unwrap();
        assert!(stream.seek(SeekFrom::Start(50_000)).await.is_err(), "the middle is sealed already");
        stream.seek(SeekFrom::Start(0)).await.unwrap();
        stream.write_all(&[8; 70_000]).await.unwrap();
        stream.seek(SeekFrom::Start(70_000)).await.unwrap();
        stream.write_all(&[9; 10]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut reader = SealedReader::open(&path, &keys()).unwrap();
        assert_eq!(reader.length, 70_010);
        assert_eq!(reader.read(&mut [0; 10]).unwrap(), 10);
    }

    #[tokio::test]
    async fn a_snapshot_that_cannot_be_written_is_received_anew_when_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/received.new");
        let mut stream = SnapshotStream::receiving(path.clone(), keys());
        assert!(stream.write_all(b"text").await.is_err());
        std::fs::create_dir(dir.path().join("missing")).unwrap();
        stream.write_all(b"text").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(SealedReader::open(&path, &keys()).unwrap().length, 4);
    }
}
