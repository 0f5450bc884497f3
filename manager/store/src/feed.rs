//! What changed, commit by commit, for readers that keep their own picture.

use skep_types::{Change, Version};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch;

/// The changes of one transaction, seen together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The revision the store got by it; every object written carries it.
    pub version: Version,
    /// In the order of the actions, never empty.
    pub changes: Vec<Change>,
}

/// What a reader gets next.
#[derive(Debug, Clone)]
pub enum FeedEvent {
    Commit(Arc<Commit>),
    /// The reader fell too far behind, or a snapshot replaced the state: commits are missing. Take a fresh
    /// [`Store::view`](crate::Store::view) and go on with [`Feed::resume`] from its version.
    Resync,
}

/// Commits that all readers have seen are kept up to this many changes, for readers that begin at a view they hold.
const KEPT_CHANGES: usize = 256;

struct Buffer {
    commits: VecDeque<Arc<Commit>>,
    changes: usize,
    limit: usize,
    /// Commits up to this version are not in the buffer any more.
    floor: Version,
    readers: Vec<Weak<AtomicU64>>,
    closed: bool,
}

/// The writing end.
pub(crate) struct Feeds {
    buffer: Arc<Mutex<Buffer>>,
    newest: watch::Sender<u64>,
}

fn lock(buffer: &Mutex<Buffer>) -> MutexGuard<'_, Buffer> {
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Feeds {
    /// `limit` bounds the changes held for the slowest reader.
    pub(crate) fn new(at: Version, limit: usize) -> Self {
        let buffer =
            Buffer { commits: VecDeque::new(), changes: 0, limit: limit.max(KEPT_CHANGES), floor: at, readers: Vec::new(), closed: false };
        Self { buffer: Arc::new(Mutex::new(buffer)), newest: watch::Sender::new(0) }
    }

    pub(crate) fn push(&self, commits: Vec<Commit>) {
        if commits.is_empty() {
            return;
        }
        let mut buffer = lock(&self.buffer);
        for commit in commits {
            buffer.changes += commit.changes.len();
            buffer.commits.push_back(Arc::new(commit));
        }
        buffer.trim();
        drop(buffer);
        self.newest.send_modify(|count| *count += 1);
    }

    /// The state was replaced as a whole: every reader has to look anew.
    pub(crate) fn reset(&self, at: Version) {
        let mut buffer = lock(&self.buffer);
        buffer.commits.clear();
        buffer.changes = 0;
        buffer.floor = at;
        drop(buffer);
        self.newest.send_modify(|count| *count += 1);
    }

    /// No commit comes any more.
    pub(crate) fn close(&self) {
        lock(&self.buffer).closed = true;
        self.newest.send_modify(|count| *count += 1);
    }

    pub(crate) fn subscribe(&self, from: Version) -> Feed {
        let position = Arc::new(AtomicU64::new(from.0));
        let mut buffer = lock(&self.buffer);
        buffer.readers.retain(|reader| reader.strong_count() > 0);
        buffer.readers.push(Arc::downgrade(&position));
        drop(buffer);
        Feed { buffer: Arc::clone(&self.buffer), newest: self.newest.subscribe(), position }
    }
}

impl Buffer {
    fn trim(&mut self) {
        while self.changes > self.limit {
            self.drop_oldest();
        }
        if self.changes <= KEPT_CHANGES {
            return;
        }
        self.readers.retain(|reader| reader.strong_count() > 0);
        let seen = self.readers.iter().filter_map(Weak::upgrade).map(|position| position.load(Ordering::Relaxed)).min();
        while self.changes > KEPT_CHANGES && self.commits.front().is_some_and(|oldest| seen.is_none_or(|seen| oldest.version.0 <= seen)) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.commits.pop_front() {
            self.changes -= oldest.changes.len();
            self.floor = oldest.version;
        }
    }
}

/// A reader of commits, in order and without gaps. Commits are held for it up to a bound; see [`FeedEvent::Resync`].
pub struct Feed {
    buffer: Arc<Mutex<Buffer>>,
    newest: watch::Receiver<u64>,
    position: Arc<AtomicU64>,
}

impl Feed {
    /// Waits for what comes next; `None` when the store has stopped. May be dropped half-way without losing anything.
    pub async fn next(&mut self) -> Option<FeedEvent> {
        loop {
            self.newest.mark_unchanged();
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            if lock(&self.buffer).closed {
                return None;
            }
            self.newest.changed().await.ok()?;
        }
    }

    /// What is there already.
    pub fn try_next(&mut self) -> Option<FeedEvent> {
        let buffer = lock(&self.buffer);
        let position = Version(self.position.load(Ordering::Relaxed));
        if position < buffer.floor {
            return Some(FeedEvent::Resync);
        }
        let next = buffer.commits.partition_point(|commit| commit.version <= position);
        let commit = Arc::clone(buffer.commits.get(next)?);
        self.position.store(commit.version.0, Ordering::Relaxed);
        Some(FeedEvent::Commit(commit))
    }

    /// Goes on behind `from`, after a resync.
    pub fn resume(&mut self, from: Version) {
        self.position.store(from.0, Ordering::Relaxed);
    }

    /// The last version given out.
    #[must_use]
    pub fn position(&self) -> Version {
        Version(self.position.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Node, NodeId, Object};

    fn commit(version: u64) -> Commit {
        let node = Arc::new(Node::new(NodeId::for_test(version)));
        Commit { version: Version(version), changes: vec![Change::Created(Object::Node(node))] }
    }

    fn version(event: Option<FeedEvent>) -> Option<u64> {
        match event {
            Some(FeedEvent::Commit(commit)) => Some(commit.version.0),
            Some(FeedEvent::Resync) | None => None,
        }
    }

    #[tokio::test]
    async fn a_reader_sees_every_commit_behind_its_version_once() {
        let feeds = Feeds::new(Version(0), 1000);
        let mut feed = feeds.subscribe(Version(1));
        feeds.push(vec![commit(1), commit(2)]);
        feeds.push(vec![commit(3)]);
        assert_eq!(version(feed.next().await), Some(2));
        assert_eq!(version(feed.next().await), Some(3));
        assert!(feed.try_next().is_none());
        drop(feeds);
        assert!(feed.next().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_fell_behind_is_told_and_can_go_on() {
        let feeds = Feeds::new(Version(0), 300);
        let mut slow = feeds.subscribe(Version(0));
        (1..=400).for_each(|n| feeds.push(vec![commit(n)]));
        assert!(matches!(slow.next().await, Some(FeedEvent::Resync)));
        assert!(matches!(slow.next().await, Some(FeedEvent::Resync)), "until it says that it looked");
        slow.resume(Version(399));
        assert_eq!(version(slow.next().await), Some(400));
    }

    #[tokio::test]
    async fn commits_that_all_have_seen_are_let_go() {
        let feeds = Feeds::new(Version(0), 100_000);
        let mut reader = feeds.subscribe(Version(0));
        for n in 1..=5_000 {
            feeds.push(vec![commit(n)]);
            assert_eq!(version(reader.next().await), Some(n));
        }
        assert!(lock(&feeds.buffer).changes <= KEPT_CHANGES + 1);
        feeds.reset(Version(9_000));
        assert!(matches!(reader.next().await, Some(FeedEvent::Resync)));
    }
}
