//! Whether a manager may make a raft call. Pure.
//!
//! Its certificate says that it is, or was, a manager of this cluster: that was checked before. Here it is compared with the
//! members and nodes as this manager knows them, which may be long ago: a manager that was cut off must let in a leader whom it
//! has never heard of, or it would never hear of it. So a stranger is refused only by what cannot be old news.

use skep_store::{MemberStatus, RaftCall, RaftId};
use skep_types::{Node, NodeId, NodeRole};
use std::time::SystemTime;

/// Who calls, by its certificate and by its own words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calling<'a> {
    pub call: RaftCall,
    pub from: RaftId,
    pub node: &'a NodeId,
    /// When its certificate became valid.
    pub since: SystemTime,
}

/// What this manager knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub members: &'a [MemberStatus],
    /// The caller in the store.
    pub node: Option<&'a Node>,
    /// When the certificate in the store became valid.
    pub certified: Option<SystemTime>,
    /// Whom this manager follows.
    pub leader: Option<RaftId>,
}

/// Why the call is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAdmitted {
    #[error("raft member {from} is node {member}, not {node}")]
    Forged { from: RaftId, member: String, node: NodeId },
    #[error("node {node} is raft member {now}; {from} is no member any more")]
    Replaced { node: NodeId, now: RaftId, from: RaftId },
    #[error("node {node} is not a manager of this cluster any more")]
    Removed { node: NodeId },
}

pub(super) fn admit(calling: Calling<'_>, known: Known<'_>) -> Result<(), NotAdmitted> {
    let Calling { call, from, node, since } = calling;
    if let Some(member) = known.members.iter().find(|member| member.raft_id == from) {
        if member.member.node_id == node.as_str() {
            return Ok(());
        }
        return Err(NotAdmitted::Forged { from, member: member.member.node_id.clone(), node: node.clone() });
    }
    // From here on: either the caller was taken out, or this manager does not know yet that it came in.
    let from_leader = matches!(call, RaftCall::AppendEntries | RaftCall::InstallSnapshot);
    let follows_another = known.leader.is_some_and(|leader| leader != from);
    if let Some(member) = known.members.iter().find(|member| member.member.node_id == node.as_str())
        && (!from_leader || follows_another)
    {
        return Err(NotAdmitted::Replaced { node: node.clone(), now: member.raft_id, from });
    }
    if known.node.is_some_and(|node| node.role != NodeRole::Manager) {
        // Promoted while this manager was away? Then its certificate is newer than the one it had as a worker.
        let newer = known.certified.is_none_or(|certified| since >= certified);
        if follows_another || !newer {
            return Err(NotAdmitted::Removed { node: node.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_store::Member;
    use std::time::{Duration, UNIX_EPOCH};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn member(number: u64) -> MemberStatus {
        let member = Member { node_id: NodeId::for_test(number).to_string(), addr: String::new() };
        MemberStatus { raft_id: number, member, voter: true, matched: None, answered: None }
    }

    fn node(number: u64, role: NodeRole) -> Node {
        Node { role, ..Node::new(NodeId::for_test(number)) }
    }

    fn ask(from: RaftId, node_number: u64, call: RaftCall, known: Known<'_>) -> Result<(), NotAdmitted> {
        let node = NodeId::for_test(node_number);
        admit(Calling { call, from, node: &node, since: at(100) }, known)
    }

    #[test]
    fn a_member_speaks_for_itself_only() {
        let members = [member(1), member(2)];
        let known = Known { members: &members, node: None, certified: None, leader: None };
        assert_eq!(ask(1, 1, RaftCall::Vote, known), Ok(()));
        assert!(matches!(ask(1, 2, RaftCall::Vote, known), Err(NotAdmitted::Forged { .. })));
        assert!(matches!(ask(7, 2, RaftCall::Vote, known), Err(NotAdmitted::Replaced { now: 2, from: 7, .. })));
    }

    #[test]
    fn a_manager_that_knows_nobody_yet_lets_managers_in() {
        let known = Known { members: &[], node: None, certified: None, leader: None };
        assert_eq!(ask(5, 5, RaftCall::AppendEntries, known), Ok(()));
    }

    #[test]
    fn a_demoted_manager_is_refused_while_somebody_leads_and_with_an_old_certificate_always() {
        let members = [member(1), member(2)];
        let demoted = node(3, NodeRole::Worker);
        let known = Known { members: &members, node: Some(&demoted), certified: Some(at(100)), leader: Some(1) };
        let removed = Err(NotAdmitted::Removed { node: NodeId::for_test(3) });
        for call in [RaftCall::Vote, RaftCall::AppendEntries] {
            assert_eq!(ask(3, 3, call, known), removed);
            assert_eq!(ask(3, 3, call, Known { leader: None, certified: Some(at(160)), ..known }), removed);
        }
    }

    #[test]
    fn a_leader_promoted_meanwhile_is_let_in_by_one_who_was_away() {
        let members = [member(1), member(2)];
        let was_worker = node(3, NodeRole::Worker);
        let known = Known { members: &members, node: Some(&was_worker), certified: Some(at(50)), leader: None };
        assert_eq!(ask(3, 3, RaftCall::AppendEntries, known), Ok(()));
        assert_eq!(ask(3, 3, RaftCall::AppendEntries, Known { leader: Some(3), ..known }), Ok(()));
        // The same node under a new number, once it leads.
        let known = Known { node: None, ..known };
        assert_eq!(ask(9, 2, RaftCall::AppendEntries, known), Ok(()));
    }
}
