//! How the store and its raft group are.

use super::Store;
use crate::group::{self, MemberStatus};
use crate::plant::Recovery;
use crate::raft::types::RaftId;
use std::time::Duration;
use tokio::sync::watch;

/// How the raft group is, as seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    pub raft_id: RaftId,
    pub leader: Option<RaftId>,
    pub term: u64,
    pub last_log_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub snapshot_index: Option<u64>,
    pub purged_index: Option<u64>,
    /// On the leader: since a majority last answered.
    pub quorum_age: Option<Duration>,
    /// Since a leader was last heard from; `None` if none was since the start.
    pub leader_heard: Option<Duration>,
    /// A leader has said that this manager is not a member of the group any more.
    pub removed: bool,
    pub members: Vec<MemberStatus>,
    /// A change of voters is half-way: both the old and the new ones have to agree to everything until it is finished.
    pub changing: bool,
    /// Why the last snapshot could not be written, until one is.
    pub snapshot_error: Option<String>,
    /// Why nothing can be written any more.
    pub broken: Option<String>,
    /// How often the process has made files durable since its start.
    pub syncs: u64,
}

impl Store {
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        let metrics = self.0.raft.metrics().borrow().clone();
        let broken = self.0.broken.borrow().as_ref().map(ToString::to_string);
        let mut members = group::members(&metrics.membership_config);
        if let Some(replication) = &metrics.replication {
            for member in &mut members {
                member.matched = replication.get(&member.raft_id).copied().flatten().map(|id| id.index);
                member.answered = self.0.lines.answered(member.raft_id);
            }
        }
        StoreStatus {
            raft_id: self.0.raft_id,
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_log_index: metrics.last_log_index,
            applied_index: metrics.last_applied.map(|id| id.index),
            snapshot_index: metrics.snapshot.map(|id| id.index),
            purged_index: metrics.purged.map(|id| id.index),
            quorum_age: metrics.millis_since_quorum_ack.map(Duration::from_millis),
            leader_heard: self.0.polls.leader_heard(),
            removed: *self.0.polls.removed().borrow(),
            members,
            changing: metrics.membership_config.membership().get_joint_config().len() > 1,
            snapshot_error: self.0.published.snapshots.error.borrow().as_ref().map(ToString::to_string),
            broken: broken.or_else(|| metrics.running_state.as_ref().err().map(ToString::to_string)),
            syncs: crate::disk::syncs(),
        }
    }

    /// The members of the raft group with their addresses; the receiver wakes when those change, and only then.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<Vec<MemberStatus>> {
        self.0.members.clone()
    }

    /// Whether a leader has said that this manager is not a member any more. It asks when it has not heard of one for a while:
    /// nobody tells those who were removed.
    #[must_use]
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.0.polls.removed()
    }

    /// What [`Store::recover`] would find, as far as a running store knows.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        let status = self.status();
        Recovery {
            applied: status.last_log_index,
            committed: status.applied_index,
            uncommitted_kept: status.last_log_index.unwrap_or(0).saturating_sub(status.applied_index.unwrap_or(0)),
            revision: self.view().revision(),
            members_dropped: status.members.into_iter().filter(|member| member.raft_id != self.0.raft_id).collect(),
            old_dir: None,
        }
    }
}
