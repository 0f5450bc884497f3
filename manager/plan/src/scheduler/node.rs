//! What the scheduler knows of a node.

use super::need::{HostPort, Misfit, Need, host_ports};
use crate::resources::Free;
use skep_types::{Availability, Encrypting, GenericResource, Node, NodeId, NodeState, Resources, Task, TaskState};
use std::sync::Arc;

/// A node and what is left of it.
#[derive(Debug)]
pub(crate) struct Place {
    /// Beside what else a placement reads: among many nodes the node itself is far away in memory.
    pub id: NodeId,
    /// `None` = the node was removed; its number is not used again.
    pub node: Option<Arc<Node>>,
    /// Changes whenever a property changes that [`super::need::Fixed::check`] or readiness depends on.
    pub epoch: u32,
    pub is_ready: bool,
    /// Tasks that are to run here.
    pub active: u32,
    free: Free,
    ports: Vec<HostPort>,
}

/// Whether the task takes room on its node: it has been assigned and has not ended.
pub(crate) fn takes_room(task: &Task) -> bool {
    task.node_id.is_some() && (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
}

pub(crate) fn is_active(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete
}

fn resources(node: &Node) -> Resources {
    node.description.as_ref().map(|description| description.resources.clone()).unwrap_or_default()
}

fn encrypting(node: &Node) -> Option<&Encrypting> {
    node.overlay.as_ref().map(|overlay| &overlay.encrypting)
}

fn is_ready(node: &Node) -> bool {
    node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
}

impl Place {
    pub fn new(node: &Arc<Node>) -> Self {
        Self {
            id: node.id.clone(),
            is_ready: is_ready(node),
            free: Free::of(&resources(node)),
            node: Some(Arc::clone(node)),
            epoch: 1,
            active: 0,
            ports: Vec::new(),
        }
    }

    /// Takes over what changed; `false` if nothing the scheduler looks at did.
    pub fn update(&mut self, node: &Arc<Node>) -> bool {
        let Some(old) = self.node.replace(Arc::clone(node)) else { return false };
        let unchanged = Arc::ptr_eq(&old, node)
            || (old.status.state == node.status.state
                && old.status.addr == node.status.addr
                && old.spec == node.spec
                && old.role == node.role
                && old.description == node.description
                && encrypting(&old) == encrypting(node));
        if unchanged {
            return false;
        }
        let (before, after) = (resources(&old), resources(node));
        if before != after {
            self.free.resize(&before, &after);
        }
        self.is_ready = is_ready(node);
        self.epoch += 1;
        true
    }

    pub fn remove(&mut self) {
        self.node = None;
        self.is_ready = false;
        self.epoch += 1;
    }

    /// Counts a task that is here.
    pub fn add(&mut self, task: &Task) {
        self.active += u32::from(is_active(task));
        if let Some(wanted) = reservations(task) {
            self.free.take(wanted, &task.assigned_generic_resources);
        }
        self.ports.extend(host_ports(task));
    }

    /// Forgets a task that was counted.
    pub fn subtract(&mut self, task: &Task) {
        self.active = self.active.saturating_sub(u32::from(is_active(task)));
        if let Some(wanted) = reservations(task) {
            self.free.give_back(wanted, &task.assigned_generic_resources);
        }
        for port in host_ports(task) {
            if let Some(index) = self.ports.iter().position(|taken| *taken == port) {
                self.ports.swap_remove(index);
            }
        }
    }

    fn holds(&self, port: &HostPort) -> bool {
        self.ports.iter().any(|taken| taken.meets(port))
    }

    /// Gives a task what it needs of a node that [`Place::has_room`]. Returns its generic resources.
    pub fn claim(&mut self, need: &Need) -> Vec<GenericResource> {
        self.active += 1;
        self.ports.extend_from_slice(&need.host_ports);
        self.free.claim(&need.reservations).unwrap_or_default()
    }

    /// Whether what comes and goes suffices: resources, ports, replicas of the service (`here` = those that are here), and no other
    /// task of the slot.
    pub fn has_room(&self, need: &Need, here: u32) -> bool {
        self.free.check(&need.reservations).is_ok()
            && need.host_ports.iter().all(|port| !self.holds(port))
            && (need.max_replicas == 0 || u64::from(here) < need.max_replicas)
            && !need.avoid.contains(&self.id)
    }

    /// The first filter that a task does not pass, in the order of the original.
    pub fn misfit(&self, need: &Need, constraints: &crate::constraint::Constraints, here: u32) -> Option<Misfit> {
        self.unreadiness().or_else(|| self.misfit_if_ready(need, constraints, here))
    }

    /// Why it takes no task at all.
    pub fn unreadiness(&self) -> Option<Misfit> {
        let node = self.node.as_ref().filter(|_| !self.is_ready)?;
        Some(match (node.status.state, node.spec.availability) {
            (NodeState::Down, _) => Misfit::Down,
            (NodeState::Ready, Availability::Drain) => Misfit::Drained,
            (NodeState::Ready, Availability::Pause) => Misfit::Paused,
            _ => Misfit::NotReady,
        })
    }

    /// What else speaks against it, the first of it.
    pub fn misfit_if_ready(&self, need: &Need, constraints: &crate::constraint::Constraints, here: u32) -> Option<Misfit> {
        let node = self.node.as_ref()?;
        if let Err(lack) = self.free.check(&need.reservations) {
            return Some(Misfit::Resources(lack));
        }
        if let Err(misfit) = need.fixed.check(constraints, node) {
            return Some(misfit);
        }
        if let Some(port) = need.host_ports.iter().find(|port| self.holds(port)) {
            return Some(Misfit::HostPort(port.protocol, port.number));
        }
        if need.max_replicas != 0 && u64::from(here) >= need.max_replicas {
            return Some(Misfit::MaxReplicas(need.max_replicas));
        }
        need.avoid.contains(&self.id).then_some(Misfit::SameSlot)
    }
}

fn reservations(task: &Task) -> Option<&Resources> {
    task.spec.resources.as_ref().map(|resources| &resources.reservations)
}
