//! `node promote` and `node demote`: asking for a role and waiting until the node has it.

use super::{Changed, change, each};
use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::output;
use skep_proto::skep::{StatusRequest, status_response};
use skep_proto::v1;
use skep_types::{Node, NodeRole, NodeState, Reachability};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(200);

/// A node renews its certificate within a second and catches up with the log within some; a demotion may wait for another manager to
/// come back, and that is for people to decide.
const LIMIT: Duration = Duration::from_secs(60);

pub async fn set(nodes: &[String], role: NodeRole, detach: bool, connection: &Connection) -> Result<(), Failure> {
    each(nodes, async |name| {
        let (node, changed) = change(name, connection, |spec| {
            spec.desired_role = role;
            Ok(())
        })
        .await?;
        if let Changed::No = changed
            && (detach || node.role == role)
        {
            return output::put(&format!("Node {name} is already a {role}.\n"));
        }
        if !detach {
            wait(&node, role, connection).await?;
        }
        output::put(&match role {
            NodeRole::Manager => format!("Node {name} promoted to a manager in the swarm.\n"),
            NodeRole::Worker => format!("Manager {name} demoted in the swarm.\n"),
        })
    })
    .await
}

async fn wait(node: &Node, role: NodeRole, connection: &Connection) -> Result<(), Failure> {
    let since = Instant::now();
    while !has_role(node.id.as_str(), role, connection).await? {
        let down = if node.status.state == NodeState::Down { "it is down, and will when it is back" } else { "" };
        if down.is_empty() && since.elapsed() < LIMIT {
            tokio::time::sleep(POLL).await;
            continue;
        }
        let why = match role {
            _ if !down.is_empty() => down,
            NodeRole::Manager => "does it reach the managers? `swarmctl cluster status` on it tells",
            NodeRole::Worker => "without it the managers might lose their majority; start those that are down",
        };
        return Err(Failure::new(Exit::NotConverged, format!("node {} is asked to, but did not become a {role} yet: {why}", node.id)));
    }
    Ok(())
}

async fn has_role(node_id: &str, role: NodeRole, connection: &Connection) -> Result<bool, Failure> {
    let own = connection.node().status(StatusRequest::default()).await?.into_inner();
    // A manager that is asked through its own socket stops answering as one; its daemon still does.
    if own.node_id == node_id && role == NodeRole::Worker {
        return Ok(own.role() == status_response::Role::Worker);
    }
    let request = v1::GetNodeRequest { node_id: node_id.into() };
    let node = connection.control().get_node(request).await?.into_inner().node.unwrap_or_default();
    Ok(is_reached(&node, role))
}

/// The certificate alone is not enough: a new manager takes part in the raft group, an old one has left it.
fn is_reached(node: &v1::Node, role: NodeRole) -> bool {
    match (&node.manager_status, role) {
        (Some(place), NodeRole::Manager) => node.role() == v1::NodeRole::Manager && place.reachability != Reachability::Unreachable as i32,
        (None, NodeRole::Worker) => node.role() == v1::NodeRole::Worker,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_reached_with_the_raft_group_and_not_before() {
        let place = |reachability: Reachability| Some(v1::ManagerStatus { reachability: reachability as i32, ..Default::default() });
        let node = |role: v1::NodeRole, manager_status| v1::Node { role: role as i32, manager_status, ..Default::default() };
        let (manager, worker) = (v1::NodeRole::Manager, v1::NodeRole::Worker);
        assert!(!is_reached(&node(manager, None), NodeRole::Manager));
        assert!(!is_reached(&node(manager, place(Reachability::Unreachable)), NodeRole::Manager));
        assert!(is_reached(&node(manager, place(Reachability::Reachable)), NodeRole::Manager));
        assert!(!is_reached(&node(manager, None), NodeRole::Worker));
        assert!(!is_reached(&node(manager, place(Reachability::Reachable)), NodeRole::Worker));
        assert!(is_reached(&node(worker, None), NodeRole::Worker));
    }
}
