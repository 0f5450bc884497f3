//! Makes the managers those nodes that are wished to be, one change of the raft group at a time, and never one that would
//! leave the rest without a majority (spec wire-behaviour 7).

use skep_types::{Node, NodeId, NodeRole};
use std::collections::BTreeMap;
use std::fmt;

/// A manager in the raft group, as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftMember {
    pub raft_id: u64,
    /// The CN of its certificate.
    pub node: String,
    /// A learner has no vote.
    pub voter: bool,
    /// It answered just now.
    pub reachable: bool,
}

/// One thing to do about a node's role. Done again it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleStep {
    /// Write this into `Node.role`: the node's next certificate has it.
    SetRole { node: NodeId, role: NodeRole },
    /// Take this manager out of the raft group.
    Expel { raft_id: u64 },
    /// The leader is to go: somebody else has to lead first.
    HandOver,
}

/// What to do now, and who has to wait.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RolePlan {
    /// At most one of them changes the raft group.
    pub steps: Vec<RoleStep>,
    /// Managers that cannot go yet.
    pub waiting: Vec<(String, CannotGo)>,
}

/// Why a manager cannot leave the raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CannotGo {
    Last,
    /// Of the managers that would be left, too few answer.
    Quorum {
        left: usize,
        reachable: usize,
    },
}

impl fmt::Display for CannotGo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last => out.write_str("it is the last manager; promote another node first"),
            Self::Quorum { left, reachable } => write!(
                out,
                "the cluster would be left without a majority of managers: {reachable} of the {left} others can be reached; bring \
                 more of them back, or promote other nodes first"
            ),
        }
    }
}

/// Whether the raft group can go on without this manager.
///
/// # Errors
/// Why it cannot.
pub fn can_go(members: &[RaftMember], raft_id: u64) -> Result<(), CannotGo> {
    if members.iter().any(|member| member.raft_id == raft_id && !member.voter) {
        return Ok(());
    }
    let rest = || members.iter().filter(|member| member.voter && member.raft_id != raft_id);
    let (left, reachable) = (rest().count(), rest().filter(|member| member.reachable).count());
    match left {
        0 => Err(CannotGo::Last),
        _ if reachable * 2 > left => Ok(()),
        _ => Err(CannotGo::Quorum { left, reachable }),
    }
}

/// Neither is it a manager nor is it to be one.
#[must_use]
pub fn is_plain_worker(node: &Node) -> bool {
    (node.role, node.spec.desired_role) == (NodeRole::Worker, NodeRole::Worker)
}

/// What to do so that roles become what is wished.
///
/// A promoted node gets its role at once and joins by itself when it has the certificate. A demoted one leaves the raft group
/// first; were it the other way round, a worker would have a vote. The leader goes last.
pub fn plan_roles<'a>(nodes: impl Iterator<Item = &'a Node>, members: &[RaftMember], leader: u64) -> RolePlan {
    let mut plan = RolePlan::default();
    let mut known = BTreeMap::new();
    // A store without nodes has not been filled yet: that says nothing about the members.
    let mut is_empty = true;
    for node in nodes {
        is_empty = false;
        if is_plain_worker(node) {
            continue;
        }
        known.insert(node.id.as_str(), node.spec.desired_role);
        let is_member = || members.iter().any(|member| member.node == node.id.as_str());
        match (node.role, node.spec.desired_role) {
            (NodeRole::Worker, NodeRole::Manager) => {
                plan.steps.push(RoleStep::SetRole { node: node.id.clone(), role: NodeRole::Manager });
            }
            (NodeRole::Manager, NodeRole::Worker) if !is_member() => {
                plan.steps.push(RoleStep::SetRole { node: node.id.clone(), role: NodeRole::Worker });
            }
            _ => {}
        }
    }
    // Also who was removed from the cluster, or came in while it was being demoted.
    let unwanted = |member: &&RaftMember| known.get(member.node.as_str()) != Some(&NodeRole::Manager);
    let mut leaving: Vec<&RaftMember> = if is_empty { Vec::new() } else { members.iter().filter(unwanted).collect() };
    leaving.sort_by_key(|member| (member.raft_id == leader, member.voter, member.reachable, member.raft_id));
    for member in leaving {
        match can_go(members, member.raft_id) {
            Err(reason) => plan.waiting.push((member.node.clone(), reason)),
            Ok(()) => {
                let expel = RoleStep::Expel { raft_id: member.raft_id };
                plan.steps.push(if member.raft_id == leader { RoleStep::HandOver } else { expel });
                break;
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64, role: NodeRole, wish: NodeRole) -> Node {
        let mut node = Node { role, ..Node::new(NodeId::for_test(number)) };
        node.spec.desired_role = wish;
        node
    }

    fn member(number: u64, reachable: bool) -> RaftMember {
        RaftMember { raft_id: number, node: NodeId::for_test(number).to_string(), voter: true, reachable }
    }

    use NodeRole::{Manager, Worker};

    fn plan(nodes: &[Node], members: &[RaftMember]) -> RolePlan {
        plan_roles(nodes.iter(), members, 1)
    }

    #[test]
    fn who_is_promoted_gets_the_role_at_once() {
        let nodes = [node(1, Manager, Manager), node(2, Worker, Manager), node(3, Worker, Worker)];
        let expected = [RoleStep::SetRole { node: NodeId::for_test(2), role: Manager }];
        assert_eq!(plan(&nodes, &[member(1, true)]).steps, expected);
    }

    #[test]
    fn who_is_demoted_leaves_the_group_before_it_loses_the_role() {
        let nodes = [node(1, Manager, Manager), node(2, Manager, Worker), node(3, Manager, Manager)];
        let all = [member(1, true), member(2, true), member(3, true)];
        assert_eq!(plan(&nodes, &all).steps, [RoleStep::Expel { raft_id: 2 }]);
        let rest = [member(1, true), member(3, true)];
        assert_eq!(plan(&nodes, &rest).steps, [RoleStep::SetRole { node: NodeId::for_test(2), role: Worker }]);
    }

    #[test]
    fn the_leader_hands_over_and_goes_last() {
        let nodes = [node(1, Manager, Worker), node(2, Manager, Worker), node(3, Manager, Manager)];
        let all = [member(1, true), member(2, true), member(3, true)];
        assert_eq!(plan(&nodes, &all).steps, [RoleStep::Expel { raft_id: 2 }]);
        let nodes = [node(1, Manager, Worker), node(2, Worker, Worker), node(3, Manager, Manager)];
        assert_eq!(plan(&nodes, &[member(1, true), member(3, true)]).steps, [RoleStep::HandOver]);
    }

    #[test]
    fn nobody_goes_whose_going_would_cost_the_majority() {
        let nodes = [node(1, Manager, Manager), node(2, Manager, Worker), node(3, Manager, Manager)];
        let members = [member(1, true), member(2, true), member(3, false)];
        let waits = plan(&nodes, &members);
        assert!(waits.steps.is_empty(), "{waits:?}");
        assert_eq!(waits.waiting, [(NodeId::for_test(2).to_string(), CannotGo::Quorum { left: 2, reachable: 1 })]);
        // One that is dead anyway may go.
        let nodes = [node(1, Manager, Manager), node(2, Manager, Manager), node(3, Manager, Worker)];
        assert_eq!(plan(&nodes, &members).steps, [RoleStep::Expel { raft_id: 3 }]);
    }

    #[test]
    fn the_last_manager_stays() {
        let alone = plan(&[node(1, Manager, Worker)], &[member(1, true)]);
        assert_eq!(alone.waiting, [(NodeId::for_test(1).to_string(), CannotGo::Last)]);
        assert!(alone.steps.is_empty());
    }

    #[test]
    fn members_without_a_node_are_expelled_but_not_from_an_empty_store() {
        let members = [member(1, true), member(2, true), member(9, false)];
        let nodes = [node(1, Manager, Manager), node(2, Manager, Manager)];
        assert_eq!(plan(&nodes, &members).steps, [RoleStep::Expel { raft_id: 9 }]);
        assert_eq!(plan(&[], &members), RolePlan::default());
    }

    #[test]
    fn a_learner_may_always_go() {
        let learner = RaftMember { voter: false, ..member(2, false) };
        assert_eq!(can_go(&[member(1, true), learner], 2), Ok(()));
        assert_eq!(can_go(&[member(1, true)], 1), Err(CannotGo::Last));
    }
}
