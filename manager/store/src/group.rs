//! Who is in the raft group, told to whoever wants to know, and changes of it that were left half done.

use crate::leadership::Leadership;
use crate::raft::types::{Member, Membership, Raft, RaftId};
use openraft::ChangeMembers;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A manager in the raft group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub raft_id: RaftId,
    pub member: Member,
    /// A learner has all entries but no vote.
    pub voter: bool,
    /// The last entry known to be on its disk; only the leader knows, and [`Store::members`](crate::Store::members) never.
    pub matched: Option<u64>,
    /// Since it last answered this manager, which leads; likewise.
    pub answered: Option<Duration>,
}

pub(crate) fn members(membership: &Membership) -> Vec<MemberStatus> {
    let group = membership.membership();
    let voters: BTreeSet<RaftId> = group.voter_ids().collect();
    let status = |(id, member): (&RaftId, &Member)| MemberStatus {
        raft_id: *id,
        member: member.clone(),
        voter: voters.contains(id),
        matched: None,
        answered: None,
    };
    group.nodes().map(status).collect()
}

/// Publishes the members until told to stop or raft ends. Wakes nobody while they stay as they are.
pub(crate) async fn watch_members(raft: Raft, publish: watch::Sender<Vec<MemberStatus>>, stop: CancellationToken) {
    let mut server = raft.server_metrics();
    loop {
        let membership = Arc::clone(&server.borrow_and_update().membership_config);
        let now = members(&membership);
        publish.send_if_modified(|old| {
            let new = *old != now;
            *old = now;
            new
        });
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = server.changed() => if changed.is_err() { return },
        }
    }
}

/// A change of voters goes through two entries. Whoever made the first may be gone before the second: a leader that finds
/// the group half-way for so long makes the second itself.
const HALF_WAY: Duration = Duration::from_secs(2);
const CHANGE: Duration = Duration::from_secs(5);

pub(crate) async fn finish_changes(raft: Raft, mut leadership: watch::Receiver<Leadership>, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = async {
            while finish_change(&raft, &mut leadership).await.is_ok() {}
        } => {}
    }
}

/// One change, or one look. An error means that the store has ended.
async fn finish_change(raft: &Raft, leadership: &mut watch::Receiver<Leadership>) -> Result<(), watch::error::RecvError> {
    let mut server = raft.server_metrics();
    leadership.wait_for(|leadership| leadership.is_leader).await?;
    let half_way = |membership: &Membership| membership.membership().get_joint_config().len() > 1;
    let before = Arc::clone(&server.wait_for(|server| half_way(&server.membership_config)).await?.membership_config);
    tokio::time::sleep(HALF_WAY).await;
    let same = server.borrow().membership_config.log_id() == before.log_id();
    if same && leadership.borrow().is_leader {
        tracing::info!(voters = ?before.membership().get_joint_config(), "finishing a change of voters that was left half-way");
        let rest = raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), false);
        match tokio::time::timeout(CHANGE, rest).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the change of voters was not finished"),
            Err(_) => tracing::debug!("the change of voters is not finished yet"),
        }
    }
    Ok(())
}
