//! The lines to the other managers: whether raft may use them, and who answered when.

use crate::disk::log::LogShared;
use crate::raft::network::RaftTransport;
use crate::raft::types::{LogId, RaftId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// One per store; all its peers share it.
pub(crate) struct Lines {
    pub(crate) transport: Arc<dyn RaftTransport>,
    pub(crate) log: Arc<LogShared>,
    /// How many want that no appends go out.
    held: watch::Sender<usize>,
    answered: Mutex<BTreeMap<RaftId, Instant>>,
    /// What was on the disk when followers were told of fewer committed entries than there are.
    behind: watch::Sender<Option<LogId>>,
}

/// Appends wait until it is dropped.
pub(crate) struct Held(Arc<Lines>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.send_modify(|held| *held -= 1);
    }
}

impl Lines {
    pub(crate) fn new(transport: Arc<dyn RaftTransport>, log: Arc<LogShared>) -> Arc<Self> {
        let (held, behind) = (watch::Sender::new(0), watch::Sender::new(None));
        Arc::new(Self { transport, log, held, answered: Mutex::default(), behind })
    }

    /// From now on no heartbeats, entries or snapshots go out, so that the followers' lease runs out.
    ///
    /// openraft has no such switch: entries that were not answered are sent again and again, whatever
    /// `runtime_config().heartbeat(false)` says.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        self.held.send_modify(|held| *held += 1);
        Held(Arc::clone(self))
    }

    pub(crate) fn is_held(&self) -> bool {
        *self.held.borrow() > 0
    }

    /// Waits as long as the lines are held. It looks like a slow network to raft, which gives up and tries again.
    pub(crate) async fn free(&self) {
        let mut held = self.held.subscribe();
        let _ = held.wait_for(|held| *held == 0).await; // the sender is ours
    }

    pub(crate) fn note_answer(&self, from: RaftId) {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).insert(from, Instant::now());
    }

    /// Since `from` last answered an append or a snapshot.
    pub(crate) fn answered(&self, from: RaftId) -> Option<Duration> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).get(&from).map(Instant::elapsed)
    }

    /// What may be called committed to others: not more than is on our disk.
    pub(crate) fn committed(&self, committed: Option<LogId>) -> Option<LogId> {
        let durable = self.log.durable();
        if committed > durable {
            self.behind.send_replace(durable);
            return durable;
        }
        committed
    }

    /// Returns when followers can be told of more committed entries than they were.
    pub(crate) async fn more_committed(&self, seen: &mut watch::Receiver<Option<LogId>>) {
        if seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let told = *seen.borrow_and_update();
        self.log.more_durable_than(told).await;
    }

    pub(crate) fn watch_behind(&self) -> watch::Receiver<Option<LogId>> {
        self.behind.subscribe()
    }
}
