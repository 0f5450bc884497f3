//! What nodes know of where addresses are, and how the allocator hears of it. A model of `netstate/` of the manager: the leader names
//! a revision, the node puts it in place and acknowledges it, and an address goes back to the others when all have done so.

use crate::agent::{Agent, Timer};
use crate::mutant::Mutant;
use crate::numbered::ByNode;
use crate::raft::short;
use crate::wire::{ConnId, Down, Up};
use crate::world::{Event, World};
use skep_store::{Commit, View};
use skep_types::{Change, ClusterView as _, NetworkId, NodeId, NodeState, Object, Task, TaskId, TaskState, Version};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Of so many revisions what they say is kept: many nodes put the same ones in place, one soon after the other.
const PICTURES: usize = 32;

/// The task at each address of a network.
pub type Picture = BTreeMap<(NetworkId, String), TaskId>;

/// What a leader keeps of it.
#[derive(Default)]
pub struct Networks {
    /// Nodes that are told.
    followers: ByNode<ConnId>,
    /// They are about to be told.
    waiting: ByNode<()>,
    programmed: ByNode<Version>,
}

fn has_addresses(task: &Task) -> bool {
    !task.networks.is_empty() && (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
}

fn picture(view: &View) -> Picture {
    let mut picture = Picture::new();
    for task in view.tasks().filter(|task| has_addresses(task)) {
        for attached in &task.networks {
            let place = |address: &String| ((attached.network.id.clone(), address.clone()), task.id.clone());
            picture.extend(attached.addresses.iter().filter(|address| !address.is_empty()).map(place));
        }
    }
    picture
}

fn matters(change: &Change) -> bool {
    match change {
        Change::Updated { old: Object::Task(old), new: Object::Task(new) } => has_addresses(old) != has_addresses(new),
        Change::Created(Object::Task(task)) | Change::Removed(Object::Task(task)) => has_addresses(task),
        _ => false,
    }
}

impl Networks {
    /// What all nodes that can reach tasks have in place (`Index::acknowledged`): nodes that are down are not waited for.
    #[must_use]
    pub fn acknowledged(&self, view: &View) -> Version {
        let counts = |node: &&Arc<skep_types::Node>| node.description.is_some() && node.status.state != NodeState::Down;
        let programmed = view.nodes().filter(counts).map(|node| self.programmed.get(&node.id).copied().unwrap_or_default());
        programmed.min().unwrap_or(view.version())
    }
}

impl World {
    /// A node wants to be told from now on.
    pub fn follow_networks(&mut self, leader: usize, conn: ConnId, node: &NodeId) {
        if let Some(lead) = &mut self.managers[leader].lead {
            lead.dispatcher.networks.followers.insert(node.clone(), conn);
            self.networks_changed(leader, Some(node));
        }
    }

    /// A commit on its way to those who follow.
    pub fn route_networks(&mut self, manager: usize, commit: &Commit) {
        if commit.changes.iter().any(matters) {
            self.networks_changed(manager, None);
        }
    }

    fn networks_changed(&mut self, manager: usize, only: Option<&NodeId>) {
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let (term, networks) = (lead.term, &mut lead.dispatcher.networks);
        let told = networks.followers.keys().filter(|node| only.is_none_or(|only| only == *node));
        let told: Vec<NodeId> = told.filter(|node| !networks.waiting.contains_key(node)).cloned().collect();
        for node in &told {
            networks.waiting.insert(node.clone(), ());
        }
        for node in told {
            let delay = self.dice.moment(0..20);
            self.after(delay, Event::TellNetworks { manager, term, node });
        }
    }

    pub fn tell_networks(&mut self, manager: usize, node: &NodeId) {
        let revision = self.managers[manager].tables.revision();
        let Some(lead) = &mut self.managers[manager].lead else { return };
        lead.dispatcher.networks.waiting.remove(node);
        if let Some(conn) = lead.dispatcher.networks.followers.get(node).copied() {
            self.down(conn, Down::Networks { revision });
        }
    }

    /// The node begins to put a revision in place.
    pub fn networks_told(&mut self, node: &NodeId, revision: Version) {
        // Now and then a node is busy.
        let longest = if self.dice.roll(8) == 0 { 8_000 } else { 80 };
        let delay = self.takes(node, 5..longest);
        if self.mutant == Some(Mutant::AcknowledgesEarly) {
            if let Some((conn, session)) = self.agents.get(node).and_then(Agent::session_up) {
                self.up(conn, Up::Programmed { session, revision });
            }
            return self.agent_after(node, Duration::from_secs(20), Timer::Programmed { revision });
        }
        self.agent_after(node, delay, Timer::Programmed { revision });
    }

    /// It is in place, and on the disk.
    pub fn networks_in_place(&mut self, node: &NodeId, revision: Version) {
        let Some(view) = self.raft.views.get(&revision) else { return };
        let Some(agent) = self.agents.get_mut(node).filter(|agent| agent.programmed <= revision) else { return };
        let picture = self.pictures.entry(revision).or_insert_with(|| Arc::new(picture(view)));
        (agent.picture, agent.programmed) = (Arc::clone(picture), revision);
        while self.pictures.len() > PICTURES {
            self.pictures.pop_first();
        }
        if let Some((conn, session)) = agent.session_up() {
            self.up(conn, Up::Programmed { session, revision });
        }
    }

    pub fn networks_acknowledged(&mut self, leader: usize, node: &NodeId, revision: Version) {
        let Some(lead) = &mut self.managers[leader].lead else { return };
        // The deciders ask when they look, which somebody who waits for an address makes them do four times a second.
        let known = lead.dispatcher.networks.programmed.get(node).copied().unwrap_or_default();
        lead.dispatcher.networks.programmed.insert(node.clone(), revision.max(known));
    }

    /// I11: a container takes an address that some node in touch still knows as another task's.
    pub fn check_location(&mut self, node: &NodeId, task: &TaskId, addresses: &[(NetworkId, String)]) {
        let in_touch = |node: &NodeId| self.watch.seconds_in_touch(node) > 5;
        let stale = self.agents.values().filter(|agent| agent.id != *node && in_touch(&agent.id)).find_map(|agent| {
            let other = addresses.iter().find_map(|address| agent.picture.get(address).filter(|other| *other != task))?;
            Some(format!("task {task} starts with an address that node {} knows as task {other}'s", short(agent.id.as_str())))
        });
        if let Some(words) = stale {
            self.watch.fail("I11", words);
        }
    }
}
