//! Who is told where tasks are and which of them connections may be led to: the leader's side. What it says to whom, and whom a task that
//! is to stop, or an address that was freed, waits for, is the manager's own code ([`Barrier`]); who calls it when (`netstate/` of the manager) is told again here.
//!
//! That nodes span hosts is not in the store of this world: the barrier alone sees it, so that networks cost the other deciders nothing.

use crate::dispatcher::FULL;
use crate::mutant::Mutant;
use crate::numbered::ByNode;
use crate::queue::Moment;
use crate::wire::{ConnId, Down};
use crate::world::{Event, World};
use skep_manager::pure::{Barrier, Dirty, Touch, quiet_after};
use skep_proto::skep::{NetworkChanges, NetworkDelta};
use skep_store::{Commit, Tables, View};
use skep_types::{Change, ClusterView as _, NetworkId, Node, NodeId, NodeOverlay, Object, Version};
use std::sync::Arc;
use tokio::time::Instant;

/// While a manager leads.
pub struct Backends {
    barrier: Barrier,
    followers: ByNode<Follower>,
}

/// A node's stream.
struct Follower {
    conn: ConnId,
    dirty: Dirty,
    quiet_until: Moment,
    /// Of the last message: nobody can have more in place.
    told: Version,
    /// It is looked at then.
    due: Option<Moment>,
}

impl Backends {
    #[must_use]
    pub fn new(view: &View, now: Instant) -> Self {
        let mut barrier = Barrier::new(&View::from(Tables::new()), now);
        let networks = view.networks().map(|network| Object::Network(Arc::clone(network)));
        let nodes = view.nodes().map(|node| Object::Node(Arc::clone(node)));
        let services = view.services().map(|service| Object::Service(Arc::clone(service)));
        let tasks = view.tasks().map(|task| Object::Task(Arc::clone(task)));
        let all: Vec<Change> = networks.chain(nodes).chain(services).chain(tasks).map(|object| Change::Created(spanning(object))).collect();
        barrier.observe(view.version(), &all, &mut |_, _| {});
        Self { barrier, followers: ByNode::default() }
    }

    /// Every node with an interest in the network has everything up to this revision in place.
    pub fn acknowledged(&self, network: &NetworkId) -> Version {
        self.barrier.acknowledged(network)
    }

    /// Something that puts into dirty sets; who has to be looked at is returned.
    fn touch(&mut self, act: impl FnOnce(&mut Barrier, &mut dyn FnMut(&NodeId, Touch))) -> ByNode<()> {
        let mut woken = ByNode::default();
        let followers = &mut self.followers;
        act(&mut self.barrier, &mut |node, touch| {
            if let Some(follower) = followers.get_mut(node) {
                follower.dirty.put(touch);
                if !woken.contains_key(node) {
                    woken.insert(node.clone(), ());
                }
            }
        });
        woken
    }
}

/// The number of a node among its peers.
#[must_use]
pub fn index_of(node: &NodeId) -> u32 {
    node.as_str().parse().unwrap_or(u32::MAX)
}

fn spanning(object: Object) -> Object {
    let Object::Node(node) = object else { return object };
    let overlay = NodeOverlay { index: index_of(&node.id), underlay: "192.0.2.1".into(), ..NodeOverlay::default() };
    Object::Node(Arc::new(Node { overlay: Some(overlay), ..Node::clone(&node) }))
}

fn spanning_change(change: &Change) -> Change {
    match change {
        Change::Created(object) => Change::Created(spanning(object.clone())),
        Change::Updated { old, new } => Change::Updated { old: old.clone(), new: spanning(new.clone()) },
        Change::Removed(object) => Change::Removed(object.clone()),
    }
}

impl World {
    /// A node has a stream from now on.
    pub fn follow_backends(&mut self, leader: usize, conn: ConnId, node: &NodeId) {
        let at = self.base + self.now;
        let Some(lead) = &mut self.managers[leader].lead else { return };
        let backends = &mut lead.dispatcher.backends;
        let fresh = Follower { conn, dirty: Dirty::everything(), quiet_until: self.now, told: Version::default(), due: None };
        backends.followers.insert(node.clone(), fresh);
        let mut woken = backends.touch(|barrier, out| barrier.opened(node, at, out));
        woken.insert(node.clone(), ());
        self.wake_backends(leader, woken);
    }

    /// A commit on its way to those who follow.
    pub fn route_backends(&mut self, manager: usize, commit: &Commit) {
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let of_node = |change: &Change| matches!(change.object(), Object::Node(_));
        let woken = lead.dispatcher.backends.touch(|barrier, out| {
            if commit.changes.iter().any(of_node) {
                let changes: Vec<Change> = commit.changes.iter().map(spanning_change).collect();
                barrier.observe(commit.version, &changes, out);
            } else {
                barrier.observe(commit.version, &commit.changes, out);
            }
        });
        self.wake_backends(manager, woken);
    }

    /// Looks at streams when it is time to say something by them (`netstate/stream.rs`).
    fn wake_backends(&mut self, manager: usize, nodes: ByNode<()>) {
        let now = self.now;
        for node in nodes.keys() {
            let delay = self.backend_dice.moment(0..3);
            let Some(lead) = &mut self.managers[manager].lead else { return };
            let Some(follower) = lead.dispatcher.backends.followers.get_mut(node) else { continue };
            let at = if follower.dirty.is_pressing(FULL) { now + delay } else { (now + delay).max(follower.quiet_until) };
            if follower.due.is_none_or(|due| at < due) {
                follower.due = Some(at);
                let term = lead.term;
                self.queue.put(at, Event::TellBackends { manager, term, node: node.clone() });
            }
        }
    }

    pub fn tell_backends(&mut self, manager: usize, node: &NodeId) {
        let (now, base, mutant) = (self.now, self.base, self.mutant);
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let backends = &mut lead.dispatcher.backends;
        let Some(follower) = backends.followers.get_mut(node).filter(|follower| follower.due == Some(now)) else { return };
        follower.due = None;
        if follower.dirty.is_empty() {
            return;
        }
        let changes = backends.barrier.say(node, std::mem::take(&mut follower.dirty), base + now);
        follower.told = Version(changes.revision);
        follower.quiet_until = quiet_after(size(&changes), base + now).duration_since(base);
        let (conn, told) = (follower.conn, follower.told);
        self.down(conn, Down::Backends(Box::new(changes), now));
        if mutant == Some(Mutant::ClearsEarly) {
            self.backends_heard(manager, conn, node, Some(told));
        }
    }

    /// A node has a revision in place, or cannot put it there (`None`).
    pub fn backends_heard(&mut self, leader: usize, conn: ConnId, node: &NodeId, programmed: Option<Version>) {
        let at = self.base + self.now;
        let Some(lead) = &mut self.managers[leader].lead else { return };
        let backends = &mut lead.dispatcher.backends;
        let Some(follower) = backends.followers.get(node).filter(|follower| follower.conn == conn) else { return };
        let told = follower.told;
        let woken = backends.touch(|barrier, out| match programmed {
            Some(revision) => barrier.acknowledge(node, revision.min(told), at, out),
            None => barrier.failed(node, at),
        });
        self.wake_backends(leader, woken);
    }

    /// Twice a second: streams that ended, as far as one can know, and nodes that do not answer.
    pub fn expire_backends(&mut self, manager: usize) {
        let at = self.base + self.now;
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let backends = &mut lead.dispatcher.backends;
        let (wire, now) = (&self.wire, self.now);
        let ended = |(node, follower): (&NodeId, &Follower)| {
            (!wire.is_open(follower.conn) && wire.passes(node, manager, now)).then(|| node.clone())
        };
        let ended: Vec<NodeId> = backends.followers.iter().filter_map(ended).collect();
        for node in ended {
            backends.followers.remove(&node);
            backends.barrier.closed(&node, at);
        }
        let woken = backends.touch(|barrier, out| drop(barrier.look_for_silent(at, out)));
        self.wake_backends(manager, woken);
    }
}

/// As `netstate/stream.rs` counts it.
fn size(changes: &NetworkChanges) -> usize {
    let of = |delta: &NetworkDelta| {
        let gone = delta.removed_peers.len() + delta.removed_endpoints.len() + delta.removed_services.len();
        1 + delta.peers.len() + delta.endpoints.len() + delta.services.len() + gone
    };
    changes.networks.iter().map(of).sum::<usize>() + changes.cleared_tasks.len()
}
