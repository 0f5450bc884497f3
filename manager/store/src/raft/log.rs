//! The writer thread, and the log as openraft uses it.
//!
//! openraft's core waits for `append`, and while it waits it sends no heartbeats, answers nobody and replicates nothing
//! (0.9.25, `core/raft_core.rs`, `append_to_log`). A slow disk would cost the leader its office. So an append is reported as
//! done when it is queued, and whatever makes a promise of it waits until it is on the disk:
//! * a follower's answer to its leader (`raft/network.rs`, `answer`),
//! * applying, and with it the answer to whoever proposed (`raft/machine.rs`, `apply`),
//! * telling followers that something is committed (`raft/network.rs`, `Peer::append_entries`),
//! * a vote, because votes pass through the same queue.
//!
//! So leader and followers write at the same time, and nothing is acknowledged or applied anywhere before the leader has it
//! on its disk too. A leader that crashed may have lost entries which followers hold: it must not go on in its term, or two
//! entries would have the same number. Hence [`not_leading`].

use crate::disk::DiskError;
use crate::disk::log::{Log, LogShared, Lookup, read};
use crate::raft::types::{Entry, LogId, RaftId, RaftTypes, StorageError, Vote};
use crate::seam::blocking;
#[cfg(feature = "sim")]
use crate::{seam::has_fault, sim::Fault};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader, StorageIOError};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, ControlFlow, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{mpsc, oneshot, watch};

/// Waiting writes. openraft waits for each, so there are never more than a few; a full channel makes it wait longer.
const JOBS: usize = 64;
/// Appends that wait together are written together up to about so many bytes.
const GROUP_BYTES: usize = 2 << 20;
/// What one read returns at most, so that a message to another manager stays small.
const READ_BYTES: usize = 512 * 1024;

type Done = oneshot::Sender<io::Result<()>>;

enum Job {
    Append { entries: Vec<Entry> },
    Vote { vote: Vote, done: Done },
    Truncate { since: u64, previous: Option<LogId>, done: Done },
    Reset { upto: LogId, done: Done },
    Recycle { upto: u64 },
    Reseal { done: Done },
    Close { done: Done },
}

/// The log's handle: sends work to the writer thread, reads by itself.
#[derive(Clone)]
pub(crate) struct LogStore {
    jobs: mpsc::Sender<Job>,
    shared: Arc<LogShared>,
    vote: Option<Vote>,
}

/// The writer's error, once it has one: it writes no more then.
pub(crate) type Broken = watch::Receiver<Option<Arc<DiskError>>>;

impl LogStore {
    /// Starts the writer thread. It ends after [`LogStore::close`] or when all handles are gone.
    pub(crate) fn start(log: Log) -> io::Result<(Self, Broken, WriterThread)> {
        let (jobs, queue) = mpsc::channel(JOBS);
        let vote = log.vote().map(|vote| not_leading(vote, log.raft_id()));
        #[cfg(feature = "sim")]
        let vote = if has_fault(Fault::OldOffice) { log.vote() } else { vote };
        let store = Self { jobs, shared: log.shared(), vote };
        let (broken, broken_seen) = watch::channel(None);
        let writer = Writer { log, queue, broken, next: None };
        #[cfg(feature = "sim")]
        if crate::sim::simulator().is_some() {
            tokio::spawn(writer.run_as_task());
            return Ok((store, broken_seen, WriterThread(None)));
        }
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(move || writer.run())?;
        Ok((store, broken_seen, WriterThread(Some(thread))))
    }

    pub(crate) fn shared(&self) -> &Arc<LogShared> {
        &self.shared
    }

    /// Marks the log as closed in order and ends the writer.
    pub(crate) async fn close(&self) -> io::Result<()> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.ask(|done| Job::Close { done }).await
    }

    /// Seals with the current data key from here on.
    pub(crate) async fn reseal(&self) -> io::Result<()> {
        self.ask(|done| Job::Reseal { done }).await
    }

    async fn ask(&self, job: impl FnOnce(Done) -> Job) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.jobs.send(job(done)).await.map_err(|_| writer_gone())?;
        answer.await.map_err(|_| writer_gone())?
    }
}

/// A leader's own vote as that of a candidate. openraft would go on as leader in the same term after a restart (0.9.25,
/// `engine/engine_impl.rs`, `startup`); an election, which takes a new term, has to come first.
fn not_leading(vote: Vote, me: RaftId) -> Vote {
    if vote.leader_id().voted_for() == Some(me) { Vote::new(vote.leader_id().get_term(), me) } else { vote }
}

/// To be waited for after [`LogStore::close`]. A simulator's writer is a task, and has ended by then.
pub(crate) struct WriterThread(Option<std::thread::JoinHandle<()>>);

impl WriterThread {
    /// Blocking.
    pub(crate) fn join(self) {
        if let Some(thread) = self.0 {
            let _ = thread.join(); // a panic was told when it happened
        }
    }
}

fn writer_gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the log writer has ended")
}

struct Writer {
    log: Log,
    queue: mpsc::Receiver<Job>,
    broken: watch::Sender<Option<Arc<DiskError>>>,
    /// What came behind appends and was not one.
    next: Option<Job>,
}

impl Writer {
    fn run(mut self) {
        while let Some(job) = self.next.take().or_else(|| self.queue.blocking_recv()) {
            if self.step(job).is_break() {
                return;
            }
        }
    }

    /// Without a thread: the simulator says how long the disk takes.
    #[cfg(feature = "sim")]
    async fn run_as_task(mut self) {
        let me = self.log.raft_id();
        loop {
            let job = match self.next.take() {
                Some(job) => job,
                None => match self.queue.recv().await {
                    Some(job) => job,
                    None => return,
                },
            };
            let delay = crate::sim::simulator().map(|simulator| simulator.delay(me));
            if let Some(delay) = delay {
                self.log.shared().set_writing(true);
                tokio::time::sleep(delay).await;
            }
            if self.step(job).is_break() {
                return;
            }
        }
    }

    fn step(&mut self, job: Job) -> ControlFlow<()> {
        match job {
            Job::Append { entries } => self.next = self.append(entries),
            Job::Vote { vote, done } => self.act(done, |log| log.save_vote(vote)),
            Job::Truncate { since, previous, done } => self.act(done, |log| log.truncate(since, previous)),
            Job::Reset { upto, done } => self.act(done, |log| log.reset(upto)),
            Job::Recycle { upto } => {
                // Segments that stay do no harm but take space; the next purge tries again.
                if let Err(error) = self.log.recycle(upto) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "could not recycle log segments");
                }
            }
            Job::Reseal { done } => self.act(done, Log::reseal),
            Job::Close { done } => {
                self.act(done, Log::close);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Writes this append and those that wait behind it; returns the first job of another kind.
    fn append(&mut self, mut entries: Vec<Entry>) -> Option<Job> {
        let mut next = None;
        let mut bytes: usize = entries.iter().map(size).sum();
        while bytes < GROUP_BYTES
            && let Ok(job) = self.queue.try_recv()
        {
            match job {
                Job::Append { entries: more } => {
                    bytes += more.iter().map(size).sum::<usize>();
                    entries.extend(more);
                }
                other => {
                    next = Some(other);
                    break;
                }
            }
        }
        // Whoever waits for the entries learns of a failure from `LogShared::durable`.
        let _ = self.guarded(|log| log.append(&entries));
        next
    }

    fn act(&mut self, done: Done, step: impl FnOnce(&mut Log) -> Result<(), DiskError>) {
        // Whoever asked may have been dropped, then nobody wants to know.
        let _ = done.send(self.guarded(step).map_err(io::Error::other));
    }

    /// After a failed write or sync nobody knows what is on the disk: no further write is tried on top of it.
    fn guarded(&mut self, step: impl FnOnce(&mut Log) -> Result<(), DiskError>) -> Result<(), Arc<DiskError>> {
        if let Some(error) = &*self.broken.borrow() {
            return Err(Arc::clone(error));
        }
        let shared = self.log.shared();
        shared.set_writing(true);
        let done = step(&mut self.log);
        shared.set_writing(false);
        done.map_err(|error| {
            let error = Arc::new(error);
            tracing::error!(error = &*error as &dyn std::error::Error, "the log cannot be written");
            self.broken.send_replace(Some(Arc::clone(&error)));
            shared.mark_broken();
            error
        })
    }
}

fn size(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(batch) => batch.size(),
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 64,
    }
}

fn read_failed(error: &(impl std::error::Error + 'static)) -> StorageError {
    StorageIOError::read_logs(AnyError::new(error)).into()
}

impl RaftLogReader<RaftTypes> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let lookups = self.shared.index().lookup(start, end);
        if lookups.iter().all(|lookup| matches!(lookup, Lookup::Cached(_))) {
            return read(lookups).map_err(|error| read_failed(&error));
        }
        let entries = blocking(move || read(lookups)).await.map_err(|error| read_failed(&error))?;
        entries.map_err(|error| read_failed(&error))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        // Purged meanwhile: entries that begin later would be appended with a gap.
        if self.shared.index().purged().is_some_and(|purged| purged.index >= start) {
            return Ok(entries);
        }
        while start + (entries.len() as u64) < end && bytes < READ_BYTES {
            let from = start + entries.len() as u64;
            let more = self.try_get_log_entries(from..end.min(from + 8)).await?;
            if more.is_empty() {
                break;
            }
            bytes += more.iter().map(size).sum::<usize>();
            entries.extend(more);
        }
        Ok(entries)
    }
}

impl RaftLogStorage<RaftTypes> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<RaftTypes>, StorageError> {
        let index = self.shared.index();
        Ok(LogState { last_purged_log_id: index.purged(), last_log_id: index.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &openraft::Vote<RaftId>) -> Result<(), StorageError> {
        let vote = *vote;
        self.ask(|done| Job::Vote { vote, done }).await.map_err(|error| StorageIOError::write_vote(&error))?;
        self.vote = Some(vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.vote)
    }

    /// Written with the next entries: it saves a restart time, it is not needed for correctness.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.shared.set_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.shared.committed())
    }

    async fn append<I>(&mut self, entries: I, flushed: LogFlushed<RaftTypes>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if self.shared.is_broken() {
            return Err(StorageIOError::write_logs(&writer_gone()).into());
        }
        self.shared.append(&entries);
        self.jobs.send(Job::Append { entries }).await.map_err(|_| StorageError::from(StorageIOError::write_logs(&writer_gone())))?;
        // Not yet: see the head of this file.
        flushed.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        let since = since.index;
        let previous = self.shared.index().truncate(since);
        self.ask(|done| Job::Truncate { since, previous, done }).await.map_err(|error| StorageIOError::write_logs(&error).into())
    }

    /// Nothing is written: after a crash the log begins at its oldest segment again, and openraft purges anew.
    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        let ahead = {
            let mut index = self.shared.index();
            let ahead = index.last().is_none_or(|last| last.index < upto.index);
            index.purge(upto);
            ahead
        };
        if ahead {
            self.ask(|done| Job::Reset { upto, done }).await.map_err(|error| StorageError::from(StorageIOError::write_logs(&error)))?;
        }
        let job = Job::Recycle { upto: upto.index };
        self.jobs.send(job).await.map_err(|_| StorageIOError::write_logs(&writer_gone()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_starts_again_has_to_be_elected() {
        let mut led = Vote::new(7, 3);
        led.commit();
        assert_eq!(not_leading(led, 3), Vote::new(7, 3));
        assert_eq!(not_leading(led, 4), led, "another's office is not ours to take");
        assert_eq!(not_leading(Vote::new(7, 3), 3), Vote::new(7, 3));
    }
}
