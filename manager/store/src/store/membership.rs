//! Who is in the raft group, and who leads it.

use super::Store;
use crate::election::{self, Role};
use crate::error::StoreError;
use crate::raft::types::{Member, RaftId, RaftState};
use openraft::ChangeMembers;
use openraft::error::{ClientWriteError, RaftError};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

impl Store {
    /// Adds a manager without a vote; returns when it lacks no more than the entries of two snapshots, which of a short log is at
    /// once. One that is a member already stays as it is: for a new address there is [`Store::set_member`].
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses.
    pub async fn add_learner(&self, raft_id: RaftId, member: Member) -> Result<(), StoreError> {
        self.stays_leader().await?;
        self.0.raft.add_learner(raft_id, member, true).await.map(drop).map_err(membership_error)
    }

    /// Says where a member is now.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses.
    pub async fn set_member(&self, raft_id: RaftId, member: Member) -> Result<(), StoreError> {
        let change = ChangeMembers::SetNodes(BTreeMap::from([(raft_id, member)]));
        self.stays_leader().await?;
        self.0.raft.change_membership(change, true).await.map(drop).map_err(membership_error)
    }

    /// Gives a learner a vote.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses.
    pub async fn add_voter(&self, raft_id: RaftId) -> Result<(), StoreError> {
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([raft_id]));
        self.stays_leader().await?;
        self.0.raft.change_membership(change, true).await.map(drop).map_err(membership_error)
    }

    /// Takes a manager out of the group.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and what raft refuses, such as removing the last voter.
    pub async fn remove_member(&self, raft_id: RaftId) -> Result<(), StoreError> {
        let voter = self.status().members.iter().any(|member| member.raft_id == raft_id && member.voter);
        let ids = BTreeSet::from([raft_id]);
        let change = if voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
        self.stays_leader().await?;
        self.0.raft.change_membership(change, false).await.map(drop).map_err(membership_error)
    }

    /// Gives the leadership to the voter that has most of the log, and returns who leads then: as a rule that one.
    ///
    /// From the call on proposals get [`ProposeError::NotLeader`], also those that wait for their turn. If nobody has taken over
    /// within `limit`, this manager goes on leading.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`], [`StoreError::NoSuccessor`] for an only voter, [`StoreError::NotTaken`].
    pub async fn hand_over(&self, limit: Duration) -> Result<RaftId, StoreError> {
        self.0.office.hand_over(limit).await
    }

    /// While the leadership is handed over, a new entry would make voters refuse the successor. And a leader that was removed leads
    /// until openraft's next tick, which must not change the group any more: openraft takes that for impossible (0.9.25,
    /// `engine/handler/replication_handler/mod.rs`, `append_membership`).
    async fn stays_leader(&self) -> Result<(), StoreError> {
        let me = self.0.raft_id;
        let leaves = move |state: &RaftState| {
            let membership = state.membership_state.effective().membership();
            matches!(election::role(me, false, membership), Role::Learner | Role::Outsider)
        };
        let leaves = self.0.raft.with_raft_state(leaves).await.map_err(|_| StoreError::Stopped)?;
        if leaves || self.0.office.transfer.is_on() { Err(StoreError::NotLeader { leader: None }) } else { Ok(()) }
    }
}

fn membership_error(error: RaftError<RaftId, ClientWriteError<RaftId, Member>>) -> StoreError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => StoreError::NotLeader { leader: forward.leader_node },
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => StoreError::Raft { source: Box::new(error) },
        RaftError::Fatal(_) => StoreError::Stopped,
    }
}
