//! The raft group as this manager sees it: who the managers are, where, and how.

use crate::shared::{ManagerPeer, Shared};
use arc_swap::ArcSwap;
use skep_plan::{CannotGo, RaftMember, can_go};
use skep_store::{MemberStatus, RaftId};
use skep_types::{ManagerStatus, NodeId, Reachability};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// What is known of the group between two looks at raft.
pub(crate) struct Group {
    members: ArcSwap<Vec<MemberStatus>>,
    /// Cancelled when this manager is no member any more.
    removed: CancellationToken,
    /// Managers come in one after the other.
    joining: Mutex<()>,
}

impl Group {
    pub(crate) fn new(members: Vec<MemberStatus>) -> Self {
        Self { members: ArcSwap::from_pointee(members), removed: CancellationToken::new(), joining: Mutex::new(()) }
    }

    /// A moment old, and cheap. Empty until a new manager has heard of the leader.
    pub(crate) fn members(&self) -> Arc<Vec<MemberStatus>> {
        self.members.load_full()
    }

    pub(crate) fn removed(&self) -> CancellationToken {
        self.removed.clone()
    }

    /// Held while a manager comes in.
    pub(crate) async fn join(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.joining.lock().await
    }
}

impl Shared {
    /// The managers as agents and clients are told of them: this one is always there, whatever the group says.
    pub(crate) fn managers(&self) -> Vec<ManagerPeer> {
        let members = self.group.members();
        let mut peers: Vec<ManagerPeer> = members.iter().filter(|member| member.voter).filter_map(|member| self.peer(member)).collect();
        if !peers.iter().any(|peer| peer.node == self.local.id) {
            peers.push(self.this_manager());
        }
        peers
    }

    /// The place of a node in the raft group; `None` for who is no member.
    pub(crate) fn manager_status(&self, node: &NodeId) -> Option<ManagerStatus> {
        let members = self.group.members();
        let member = members.iter().find(|member| member.member.node_id == node.as_str())?;
        self.peer(member).map(|peer| peer.status)
    }

    fn this_manager(&self) -> ManagerPeer {
        let raft_id = self.store.raft_id();
        let leader = self.store.leadership().borrow().is_leader;
        let addr = self.local.advertise.to_string();
        let status = ManagerStatus { raft_id, addr: addr.clone(), leader, reachability: Reachability::Reachable };
        ManagerPeer { node: self.local.id.clone(), addr, status }
    }

    fn peer(&self, member: &MemberStatus) -> Option<ManagerPeer> {
        if member.raft_id == self.store.raft_id() {
            // Its address here is newer than what the group knows.
            return Some(self.this_manager());
        }
        let node = member.member.node_id.parse().ok()?;
        let leader = self.store.leadership().borrow().leader.as_ref().is_some_and(|(leader, _)| *leader == member.raft_id);
        let (raft_id, addr) = (member.raft_id, member.member.addr.clone());
        let status = ManagerStatus { raft_id, addr: addr.clone(), leader, reachability: self.transport.reachability(raft_id) };
        Some(ManagerPeer { node, addr, status })
    }

    /// The group as deciders want it, from raft itself and not from what is remembered of it.
    pub(crate) fn raft_members(&self) -> Vec<RaftMember> {
        let status = self.store.status();
        let member = |member: MemberStatus| RaftMember {
            raft_id: member.raft_id,
            reachable: member.raft_id == status.raft_id || self.transport.answers(member.raft_id),
            node: member.member.node_id,
            voter: member.voter,
        };
        status.members.into_iter().map(member).collect()
    }

    /// Whether the group can go on without a manager; a manager that is late to answer gets a moment to do so.
    pub(crate) async fn can_go(&self, raft_id: RaftId) -> Result<(), CannotGo> {
        let mut looks = 1;
        loop {
            match can_go(&self.raft_members(), raft_id) {
                Err(CannotGo::Quorum { .. }) if looks < LOOKS => looks += 1,
                outcome => return outcome,
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }
}

/// How long somebody who is late to answer is waited for, in all half a second.
const LOOKS: u32 = 6;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Keeps the list of managers true until the manager stops; `changed` is called after each change.
pub(crate) async fn follow(shared: Arc<Shared>, changed: impl Fn()) {
    let own = shared.store.raft_id();
    let (mut members, mut refusing, mut removed) = (shared.store.members(), shared.transport.refusing(), shared.store.removed());
    loop {
        let now = members.borrow_and_update().clone();
        // Not that the list lacks this manager: that entry may be taken back by the next leader.
        if *removed.borrow_and_update() || is_refused(&now, own, &refusing.borrow_and_update()) {
            tracing::warn!(raft_id = own, "this manager is not one of the cluster's managers any more");
            shared.group.removed.cancel();
        }
        if now != *shared.group.members() {
            tracing::info!(members = now.len(), is_member = now.iter().any(|member| member.raft_id == own), "the managers changed");
            shared.transport.keep(&now.iter().map(|member| member.raft_id).collect());
            shared.group.members.store(Arc::new(now));
            changed();
        }
        let more = tokio::select! {
            () = shared.stop.cancelled() => return,
            more = members.changed() => more,
            more = refusing.changed() => more,
            more = removed.changed() => more,
        };
        if more.is_err() {
            return;
        }
    }
}

/// One that was away may not know of us yet, so it takes most of the others to be sure.
fn is_refused(members: &[MemberStatus], own: RaftId, refusing: &BTreeSet<RaftId>) -> bool {
    let others = || members.iter().filter(|member| member.voter && member.raft_id != own);
    let refusals = others().filter(|member| refusing.contains(&member.raft_id)).count();
    refusals * 2 > others().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_store::Member;

    fn voters(ids: &[RaftId]) -> Vec<MemberStatus> {
        let status = |id: &RaftId| MemberStatus { raft_id: *id, member: Member::default(), voter: true, matched: None, answered: None };
        ids.iter().map(status).collect()
    }

    #[test]
    fn most_of_the_others_have_to_refuse() {
        let refused = |all: &[RaftId], by: &[RaftId]| is_refused(&voters(all), 1, &by.iter().copied().collect());
        assert!(!refused(&[1], &[]));
        assert!(refused(&[1, 2], &[2]));
        assert!(!refused(&[1, 2, 3], &[2]));
        assert!(refused(&[1, 2, 3], &[2, 3]));
        assert!(!refused(&[1, 2, 3, 4, 5], &[2, 3]));
        assert!(!refused(&[1, 2, 3], &[8, 9]), "strangers have no say");
    }
}
