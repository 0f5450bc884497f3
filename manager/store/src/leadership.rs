//! Who leads, told only when the leader has everything applied.

use crate::raft::types::{Batch, Member, Raft, RaftId};
use openraft::ServerState;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Who leads the managers, as this one knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// This manager leads, and its view contains all that was ever acknowledged.
    pub is_leader: bool,
    /// The leader, this one included; `None` during an election.
    pub leader: Option<(RaftId, Member)>,
    /// Rises with every leader.
    pub term: u64,
}

/// Confirming takes a round to a majority; after this time it is tried again.
const CONFIRM: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(100);

/// Watches raft and publishes [`Leadership`] until told to stop or raft ends.
pub(crate) async fn watch_leadership(raft: Raft, publish: watch::Sender<Leadership>, stop: CancellationToken) {
    follow(raft, &publish, stop).await;
    // Whoever looks later must not take a stopped manager for a leader.
    publish.send_modify(|last| {
        last.is_leader = false;
        last.leader = None;
    });
}

async fn follow(raft: Raft, publish: &watch::Sender<Leadership>, stop: CancellationToken) {
    let mut metrics = raft.server_metrics();
    let mut confirmed = None;
    loop {
        let (now, alone) = {
            let metrics = metrics.borrow_and_update();
            let alone = metrics.membership_config.membership().nodes().count() == 1;
            let member = |id: &RaftId| metrics.membership_config.membership().get_node(id).cloned().unwrap_or_default();
            let now = Leadership {
                is_leader: metrics.state == ServerState::Leader,
                leader: metrics.current_leader.map(|id| (id, member(&id))),
                term: metrics.vote.leader_id().get_term(),
            };
            (now, alone)
        };
        // The only manager has nobody to send heartbeats to and nobody to lose an election to: its raft may sleep.
        raft.runtime_config().tick(!(alone && now.is_leader && confirmed == Some(now.term)));
        let unconfirmed = now.is_leader && confirmed != Some(now.term);
        let shown =
            Leadership { is_leader: now.is_leader && !unconfirmed, leader: if unconfirmed { None } else { now.leader.clone() }, ..now };
        publish.send_if_modified(|old| {
            let new = *old != shown;
            if new {
                tracing::info!(leads = shown.is_leader, leader = ?shown.leader, term = shown.term, "leadership");
                *old = shown;
            }
            new
        });
        if unconfirmed {
            // An entry of the own term: once it is applied, so is everything before it.
            let confirming = tokio::time::timeout(CONFIRM, raft.client_write(Batch::default()));
            let done = tokio::select! {
                () = stop.cancelled() => return,
                done = confirming => done,
            };
            match done {
                Ok(Ok(_)) => confirmed = Some(now.term),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "leadership not confirmed");
                    tokio::time::sleep(RETRY).await;
                }
                Err(_) => {}
            }
            if metrics.has_changed().is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() { return },
        }
    }
}
