//! What goes on beside the proposals: snapshots when they are due, and the end when the disk fails.

use crate::raft::log::Broken;
use crate::raft::machine::{Published, SnapshotProgress};
use crate::raft::types::Raft;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Triggers snapshots when the state machine finds one due, and lets go of the entries that are in them.
pub(super) async fn housekeeping(raft: Raft, published: Arc<Published>, stop: CancellationToken) {
    let snapshots = &published.snapshots;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = snapshots.due.notified() => if raft.trigger().snapshot().await.is_err() { return },
            () = snapshots.made.notified() => purge(&raft, snapshots, &stop).await,
        }
    }
}

/// openraft hears of a snapshot a moment after it was made, and purges nothing that it does not know to be in one.
const HEARD_OF: Duration = Duration::from_secs(5);

async fn purge(raft: &Raft, snapshots: &SnapshotProgress, stop: &CancellationToken) {
    let Some(last) = snapshots.last_index() else { return };
    let keep = snapshots.keep_entries.load(std::sync::atomic::Ordering::Relaxed);
    let Some(upto) = last.checked_sub(keep) else { return };
    let mut data = raft.data_metrics();
    let heard = tokio::time::timeout(HEARD_OF, data.wait_for(|data| data.snapshot.is_some_and(|id| id.index >= last)));
    let heard = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        heard = heard => matches!(heard, Ok(Ok(_))),
    };
    // Missed or not: the next snapshot makes up for it.
    if heard && let Err(error) = raft.trigger().purge_log(upto).await {
        tracing::debug!(%error, "entries were not purged");
    }
}

/// A manager that cannot write is of no use as a leader and must not be taken for one.
pub(super) async fn end_when_broken(raft: Raft, mut broken: Broken, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => return,
        broken = broken.wait_for(Option::is_some) => if broken.is_err() { return },
    }
    if let Err(error) = raft.shutdown().await {
        tracing::warn!(%error, "raft did not end in order");
    }
}
