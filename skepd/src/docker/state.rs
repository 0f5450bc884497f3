//! How the node stands towards a cluster, in dockerd's words.

use crate::status::{Board, Shown};
use crate::swarm::has_majority;
use skep_docker_api::{LocalState, SwarmState};
use skep_types::NodeRole;

/// The node's membership; of its managers only if asked for, since that reads a file.
pub(super) fn swarm_state(board: &Board, with_managers: bool) -> SwarmState {
    let Some(shown) = board.shown() else {
        let local = if board.is_starting() { LocalState::Pending } else { LocalState::Inactive };
        return SwarmState { local, ..SwarmState::default() };
    };
    // Only managers are locked.
    let role = board.role().or(shown.locked.then_some(NodeRole::Manager));
    let is_manager = shown.store.is_some();
    let managers = if with_managers { shown.managers() } else { Vec::new() };
    SwarmState {
        local: local_state(&shown, role),
        node_id: shown.node.node_id.clone(),
        node_addr: shown.node.advertise_addr.ip().to_string(),
        role,
        is_manager,
        error: if shown.locked { String::new() } else { shown.problem_now() },
        managers: managers.into_iter().map(|manager| (manager.node_id, manager.addr)).collect(),
    }
}

fn local_state(shown: &Shown, role: Option<NodeRole>) -> LocalState {
    match role {
        _ if shown.locked => LocalState::Locked,
        Some(NodeRole::Manager) if shown.store.is_none() => LocalState::Error,
        Some(_) => LocalState::Active,
        None => LocalState::Pending,
    }
}

/// Whether the cluster has a leader that can do something, as far as this manager can tell.
pub(super) fn has_leader(board: &Board) -> bool {
    board.shown().is_some_and(|shown| shown.store.as_ref().is_some_and(|store| has_majority(&store.status())))
}
