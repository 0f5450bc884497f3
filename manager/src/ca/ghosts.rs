//! Nodes that were let in and never came.
//!
//! A join that is cut off after the manager has written the node leaves one without a name behind, DOWN for ever, that every root
//! rotation waits for; with the key that it was to have, for the machine makes another when it tries again. (The original keeps it
//! until somebody removes it.) After a time it is removed like any other node: whoever comes with its certificate all the same is told
//! that it was, and joins again.

use crate::control::removal;
use crate::drive::{DriveError, Failed, after_failure};
use crate::shared::Shared;
use skep_failpoint::failpoint;
use skep_types::{Action, ClusterView, Node, NodeId, NodeState, Timestamp};
use std::time::Duration;

/// A node registers within a second of its certificate.
const NEVER_CAME: Duration = Duration::from_secs(3600);
/// Nobody waits for this.
const LOOK_EVERY: Duration = Duration::from_secs(300);

/// Removes them until the term ends.
pub(super) async fn clear(shared: &Shared) -> Result<(), DriveError> {
    loop {
        let found = {
            let view = shared.store.view();
            find(&view, shared.now(), |node| shared.manager_status(node).is_some())
        };
        let Some((ghost, actions)) = found else {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        failpoint!("manager.ca.ghost.removing");
        match shared.propose(actions).await.map_err(after_failure) {
            Ok(_) => tracing::info!(node = %ghost, "removed a node that was let in and never came"),
            Err(Failed::Stale | Failed::Pause) => crate::drive::pause().await,
            Err(Failed::End(error)) => return Err(error),
        }
    }
}

/// A node that was let in long ago and has not said what it is, and what takes it out. A manager may serve before its agent has said
/// a word.
fn find(view: &dyn ClusterView, now: Timestamp, is_manager: impl Fn(&NodeId) -> bool) -> Option<(NodeId, Vec<Action>)> {
    let is_silent = |node: &Node| node.description.is_none() && node.status.state == NodeState::Down;
    let is_old = |node: &Node| now.since(node.meta.created_at) > NEVER_CAME;
    let ghost = view.nodes().find(|node| is_silent(node) && is_old(node) && !is_manager(&node.id))?;
    Some((ghost.id.clone(), removal(view, &ghost.id, Some(ghost.meta.version), now)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_store::{Tables, View};
    use skep_types::{Cluster, ClusterId, NodeDescription, Object, Version};
    use std::sync::Arc;

    const DAY: Timestamp = Timestamp::from_secs(24 * 3600);

    /// Nodes that were let in a day after 1970.
    fn world(nodes: Vec<Node>) -> Tables {
        let mut tables = Tables::new();
        let mut actions = vec![Action::Create(Object::Cluster(Arc::new(Cluster::new(ClusterId::for_test(1)))))];
        actions.extend(nodes.into_iter().map(|node| Action::Create(Object::Node(Arc::new(node)))));
        tables.apply(Version(1), DAY, &actions).unwrap();
        tables
    }

    fn node(number: u64, state: NodeState, description: Option<NodeDescription>) -> Node {
        let mut node = Node::new(NodeId::for_test(number));
        node.status.state = state;
        node.description = description;
        node
    }

    #[test]
    fn only_nodes_that_never_came_are_removed_and_only_after_a_time() {
        let described = Some(NodeDescription::default());
        let tables = world(vec![
            node(1, NodeState::Down, described.clone()),
            node(2, NodeState::Unknown, None),
            node(3, NodeState::Ready, described),
            node(4, NodeState::Down, None),
            node(5, NodeState::Down, None),
        ]);
        let view = View::from(tables.clone());
        let manager = |node: &NodeId| *node == NodeId::for_test(4);
        assert!(find(&view, DAY + NEVER_CAME, manager).is_none());
        // A clock that was set back says nothing about age.
        assert!(find(&view, Timestamp(0), manager).is_none());
        let later = DAY + NEVER_CAME + Duration::from_secs(1);
        let (ghost, actions) = find(&view, later, manager).unwrap();
        assert_eq!(ghost, NodeId::for_test(5));
        let mut after = tables;
        after.apply(Version(2), later, &actions).unwrap();
        let after = View::from(after);
        assert!(after.node(&ghost).is_none());
        assert!(after.cluster().unwrap().blacklisted_certificates.contains_key(&ghost));
        assert!(find(&after, later, manager).is_none());
    }

    #[test]
    fn a_node_that_comes_at_the_last_moment_stays() {
        let mut tables = world(vec![node(5, NodeState::Down, None)]);
        let later = DAY + NEVER_CAME * 2;
        let (ghost, actions) = find(&View::from(tables.clone()), later, |_| false).unwrap();
        let mut came = Node::clone(View::from(tables.clone()).node(&ghost).unwrap());
        came.status.state = NodeState::Ready;
        tables.apply(Version(2), later, &[Action::Update(Object::Node(Arc::new(came)))]).unwrap();
        assert!(tables.apply(Version(3), later, &actions).is_err(), "it has moved on");
    }
}
