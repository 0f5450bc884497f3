//! What an Assignments stream has to look at, and how fast it may talk.

use skep_types::TaskId;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A message is sent at once when this many changes wait (`SK/manager/dispatcher/dispatcher.go`, `modificationBatchLimit`).
pub(crate) const BATCH: usize = 100;
/// The longest a change waits for company (`batchingWaitTime`).
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// Silence that each sent change costs: one change may follow another after a millisecond, a hundred after a hundred.
const SILENCE_PER_CHANGE: Duration = Duration::from_millis(1);

/// Tasks that may have changed for one node. Bounded by the node's tasks: putting one in twice is putting it in once.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    content: Mutex<Content>,
    filled: Notify,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    pub tasks: BTreeSet<TaskId>,
    /// Events were lost: all tasks must be looked at.
    pub everything: bool,
}

impl Content {
    pub(crate) fn add(&mut self, other: Self) {
        self.tasks.extend(other.tasks);
        self.everything |= other.everything;
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, task: TaskId) {
        let mut content = self.lock();
        content.tasks.insert(task);
        // The stream sleeps until its silence is over, but not longer than until a batch is full.
        let wake = content.tasks.len() == 1 || content.tasks.len() >= BATCH;
        drop(content);
        if wake {
            self.filled.notify_one();
        }
    }

    pub(crate) fn put_all(&self) {
        self.lock().everything = true;
        self.filled.notify_one();
    }

    pub(crate) fn take(&self) -> Content {
        std::mem::take(&mut *self.lock())
    }

    /// What there is; it stays.
    pub(crate) fn look(&self) -> Content {
        self.lock().clone()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().tasks.len()
    }

    fn is_full(&self) -> bool {
        let content = self.lock();
        content.everything || content.tasks.len() >= BATCH
    }

    fn is_empty(&self) -> bool {
        let content = self.lock();
        !content.everything && content.tasks.is_empty()
    }

    /// Waits until there is something and it is time to say it: at once when the stream was quiet, else after `quiet_until`
    /// or when a batch is full.
    pub(crate) async fn ready(&self, quiet_until: Instant) {
        while self.is_empty() {
            self.filled.notified().await;
        }
        while !self.is_full() && Instant::now() < quiet_until {
            tokio::select! {
                () = tokio::time::sleep_until(quiet_until) => return,
                () = self.filled.notified() => {}
            }
        }
    }
}

/// Until when to be quiet after sending this many changes.
pub fn quiet_after(changes: usize, now: Instant) -> Instant {
    now + SILENCE_PER_CHANGE.saturating_mul(u32::try_from(changes).unwrap_or(u32::MAX)).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_change_is_said_at_once() {
        let inbox = Inbox::default();
        inbox.put(TaskId::for_test(1));
        let start = Instant::now();
        inbox.ready(start).await;
        assert!(start.elapsed() < LONGEST_WAIT);
        assert_eq!(inbox.take().tasks.len(), 1);
    }

    #[tokio::test]
    async fn under_load_changes_are_gathered_for_a_hundred_milliseconds_at_most() {
        let inbox = Inbox::default();
        let start = Instant::now();
        inbox.put(TaskId::for_test(1));
        inbox.put(TaskId::for_test(2));
        inbox.ready(quiet_after(5_000, start)).await;
        assert!(start.elapsed() >= LONGEST_WAIT);
    }

    #[tokio::test]
    async fn a_full_batch_does_not_wait() {
        let inbox = Inbox::default();
        for number in 0..100 {
            inbox.put(TaskId::for_test(number));
        }
        let far_off = Instant::now() + Duration::from_secs(3_600);
        tokio::time::timeout(Duration::from_secs(10), inbox.ready(far_off)).await.expect("a full batch is ready at once");
    }
}
