//! Who has an interest in what. Pure.
//!
//! Made once of a view and then fed every commit. A change costs as much as the nodes it concerns; what they have to be told
//! comes out as [`Touch`]es, and is looked up here when it is time to say it ([`render`](super::render)).

use super::acks::{Acks, Stand};
use super::dirty::Touch;
use super::facts::{DEFAULT_VXLAN_PORT, host, networks};
use skep_types::template::NodeFacts;
use skep_types::{
    Change, ClusterView, Network, NetworkId, NodeId, NodeOverlay, Object, Service, ServiceId, Task, TaskId, TunnelEpochs, Version,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Takes what a node has to be told.
pub type Out<'a> = &'a mut dyn FnMut(&NodeId, Touch);

#[derive(Debug, Default)]
pub(super) struct Index {
    /// Every commit up to here is in it.
    pub(super) version: Version,
    pub(super) vxlan_port: u32,
    pub(super) epochs: TunnelEpochs,
    /// Since when nodes are told of these, or more lately.
    pub(super) epochs_since: Version,
    pub(super) nodes: HashMap<NodeId, Seat>,
    /// Nodes that can be peers, by their numbers.
    pub(super) numbers: HashMap<u32, NodeId>,
    /// The same nodes.
    pub(super) spanning: BTreeSet<NodeId>,
    /// Tasks on overlay networks, from their assignment until they have ended.
    pub(super) tasks: HashMap<TaskId, Arc<Task>>,
    pub(super) services: HashMap<ServiceId, Member>,
    /// Services by the networks they ask for, as ids or names in small letters.
    pub(super) wanting: HashMap<String, BTreeSet<ServiceId>>,
    pub(super) names: HashMap<String, NetworkId>,
    pub(super) networks: HashMap<NetworkId, Net>,
    pub(super) ingress: BTreeSet<NetworkId>,
    pub(super) leaving: HashMap<TaskId, Leaving>,
    /// Nodes that were there before this index was, with its revision then: until they acknowledge that, they may have anything in place,
    /// of networks too that they have no task on any more.
    pub(super) unheard: HashMap<NodeId, Version>,
}

/// A node.
#[derive(Debug, Default)]
pub(super) struct Seat {
    pub(super) exists: bool,
    /// Its number and its underlay address, once it can be a peer.
    pub(super) place: Option<NodeOverlay>,
    pub(super) down: bool,
    /// What host names of its tasks may say of it.
    pub(super) facts: NodeFacts,
    /// It was told something and does not answer: no task waits for it, but addresses do.
    pub(super) silent: bool,
    /// The last revision it acknowledged.
    pub(super) programmed: Version,
    /// Networks that tasks of it are on.
    pub(super) networks: BTreeSet<NetworkId>,
    /// Networks that it had its last task on, and since when, until it acknowledged that: it has old places of their addresses, and a
    /// new task of it would use them.
    pub(super) left: BTreeMap<NetworkId, Version>,
    /// Tasks of it that may be stopped.
    pub(super) cleared: BTreeSet<TaskId>,
}

/// A network, or what asks for one that is not there.
#[derive(Debug, Default)]
pub(super) struct Net {
    /// `None`: it is not there, or has no subnets yet.
    pub(super) network: Option<Arc<Network>>,
    pub(super) ingress: bool,
    pub(super) hosts: BTreeMap<NodeId, BTreeSet<TaskId>>,
    pub(super) services: BTreeSet<ServiceId>,
    pub(super) acks: Acks,
}

impl Net {
    pub(super) fn is_void(&self) -> bool {
        self.network.is_none() && self.hosts.is_empty() && self.services.is_empty() && self.acks.is_idle()
    }
}

/// A service with its networks, and what else it is called there.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) service: Arc<Service>,
    pub(super) networks: BTreeMap<NetworkId, Vec<String>>,
}

/// A task that is to leave.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) since: Version,
    /// Networks where some node has not taken it out yet.
    pub(super) waits_for: BTreeSet<NetworkId>,
}

impl Index {
    /// Reads everything once: O(objects).
    pub(super) fn new(view: &dyn ClusterView) -> Self {
        let mut this = Self { version: view.version(), vxlan_port: DEFAULT_VXLAN_PORT, ..Self::default() };
        let cluster = view.cluster().map(|cluster| Object::Cluster(Arc::clone(cluster)));
        let networks = view.networks().map(|network| Object::Network(Arc::clone(network)));
        let nodes = view.nodes().map(|node| Object::Node(Arc::clone(node)));
        let services = view.services().map(|service| Object::Service(Arc::clone(service)));
        let tasks = view.tasks().map(|task| Object::Task(Arc::clone(task)));
        let objects = cluster.into_iter().chain(networks).chain(nodes).chain(services).chain(tasks);
        this.note_all(&objects.map(Change::Created).collect::<Vec<Change>>(), &mut |_, _| {});
        this
    }

    /// A look at everything anew. What nodes acknowledged stays true.
    pub(super) fn renewed(&self, view: &dyn ClusterView) -> Self {
        let mut this = Self::new(view);
        for (node, seat) in &self.nodes {
            this.acknowledge(node, seat.programmed, &mut |_, _| {});
        }
        this
    }

    /// Takes in one commit.
    pub(super) fn observe(&mut self, version: Version, changes: &[Change], out: Out) {
        if version <= self.version {
            return;
        }
        self.version = version;
        self.note_all(changes, out);
    }

    fn note_all(&mut self, changes: &[Change], out: Out) {
        changes.iter().for_each(|change| self.note(change, out));
        changes.iter().for_each(|change| self.note_leaving(change, out));
    }

    /// Networks a node has an interest in.
    pub(super) fn interests<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = (&'a NetworkId, &'a Net)> {
        let seat = self.nodes.get(node);
        let hosted = seat.into_iter().flat_map(|seat| &seat.networks);
        let ingress = self.ingress.iter().filter(move |id| seat.is_some_and(|seat| seat.place.is_some() && !seat.networks.contains(*id)));
        hosted.chain(ingress).filter_map(|id| Some((id, self.networks.get(id).filter(|net| net.network.is_some())?)))
    }

    pub(super) fn has_interest(&self, node: &NodeId, net: &Net) -> bool {
        net.network.is_some() && (net.hosts.contains_key(node) || (net.ingress && self.spanning.contains(node)))
    }

    /// The nodes with an interest in a network.
    pub(super) fn interested<'a>(&'a self, net: &'a Net) -> impl Iterator<Item = &'a NodeId> {
        let everybody = self.spanning.iter().filter(|node| net.ingress && !net.hosts.contains_key(*node));
        net.hosts.keys().chain(everybody).filter(|_| net.network.is_some())
    }

    /// Every node with an interest is told.
    pub(super) fn tell(&self, id: &NetworkId, touch: &Touch, out: Out) {
        if let Some(net) = self.networks.get(id) {
            self.interested(net).for_each(|node| out(node, touch.clone()));
        }
    }

    /// A node has everything up to this revision in place.
    pub(super) fn acknowledge(&mut self, node: &NodeId, programmed: Version, out: Out) {
        let Some(seat) = self.nodes.get_mut(node).filter(|seat| seat.programmed < programmed) else { return };
        seat.programmed = programmed;
        let left: Vec<NetworkId> = seat.left.keys().cloned().collect();
        seat.left.retain(|_, since| *since > programmed);
        if self.unheard.get(node).is_some_and(|since| *since <= programmed) {
            self.unheard.remove(node);
        }
        let networks: Vec<NetworkId> = self.interests(node).map(|(id, _)| id.clone()).collect();
        networks.iter().chain(&left).for_each(|id| self.expect(node, id, out));
        left.iter().for_each(|id| self.drop_if_void(id));
    }

    /// Nodes that tasks wait for now and of which that holds.
    pub(super) fn waited_for(&self, holds: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
        if self.leaving.values().all(|leaving| leaving.waits_for.is_empty()) {
            return Vec::new();
        }
        let counts = self.nodes.iter().filter(|(_, seat)| seat.place.is_some() && !seat.down && !seat.silent);
        counts.map(|(node, _)| node).filter(|node| holds(node)).cloned().collect()
    }

    /// Whether the node is worth waiting for.
    pub(super) fn answers(&mut self, node: &NodeId, answers: bool, out: Out) {
        let Some(seat) = self.nodes.get_mut(node).filter(|seat| seat.silent == answers) else { return };
        seat.silent = !answers;
        let networks: Vec<NetworkId> = self.interests(node).map(|(id, _)| id.clone()).collect();
        networks.iter().for_each(|id| self.expect(node, id, out));
    }

    /// Sets anew whether the network's changes wait for this node: with an interest in it tasks and addresses do, and addresses alone
    /// after it, until it is acknowledged that it ended.
    pub(super) fn expect(&mut self, node: &NodeId, id: &NetworkId, out: Out) {
        let seat = self.nodes.get(node).filter(|seat| seat.place.is_some() && !seat.down);
        let counts = self.networks.get(id).is_some_and(|net| self.has_interest(node, net));
        let seat = seat.filter(|seat| counts || seat.left.contains_key(id));
        let stand = seat.map(|seat| Stand { programmed: seat.programmed, answers: counts && !seat.silent });
        let Some(net) = self.networks.get_mut(id) else { return };
        net.acks.set(node, stand);
        self.clear(id, out);
    }

    /// Tells the nodes of tasks that every other node has taken out.
    pub(super) fn clear(&mut self, id: &NetworkId, out: Out) {
        let cleared = self.networks.get_mut(id).map(|net| net.acks.take_cleared()).unwrap_or_default();
        for task in cleared {
            let Some(leaving) = self.leaving.get_mut(&task) else { continue };
            leaving.waits_for.remove(id);
            if leaving.waits_for.is_empty()
                && let Some(node) = self.tasks.get(&task).and_then(|task| host(task))
                && let Some(seat) = self.nodes.get_mut(node)
            {
                seat.cleared.insert(task.clone());
                out(node, Touch::Cleared(task));
            }
        }
    }

    /// The task is to leave: from this revision on its nodes' acknowledgements count.
    pub(super) fn leave(&mut self, task: &Task, out: Out) {
        let ids: BTreeSet<NetworkId> = networks(task).map(|attachment| attachment.network.id.clone()).collect();
        for id in &ids {
            self.networks.entry(id.clone()).or_default().acks.wait(self.version, task.id.clone());
        }
        self.leaving.insert(task.id.clone(), Leaving { since: self.version, waits_for: ids.clone() });
        ids.iter().for_each(|id| self.clear(id, out));
    }

    /// A node comes to hear what was cleared: nodes that did not count when that was may have come back since, and lead to its tasks as
    /// before.
    pub(super) fn clear_again(&mut self, node: &NodeId, out: Out) {
        let cleared = self.nodes.get_mut(node).map(|seat| std::mem::take(&mut seat.cleared)).unwrap_or_default();
        let mut waiting = BTreeSet::new();
        for task in cleared {
            let (Some(known), Some(leaving)) = (self.tasks.get(&task), self.leaving.get_mut(&task)) else { continue };
            for id in networks(known).map(|attachment| &attachment.network.id) {
                self.networks.entry(id.clone()).or_default().acks.wait(leaving.since, task.clone());
                leaving.waits_for.insert(id.clone());
                waiting.insert(id.clone());
            }
        }
        waiting.iter().for_each(|id| self.clear(id, out));
    }

    /// The task has ended, or is gone.
    pub(super) fn forget_leaving(&mut self, task: &TaskId) {
        let Some(leaving) = self.leaving.remove(task) else { return };
        for id in leaving.waits_for {
            if let Some(net) = self.networks.get_mut(&id) {
                net.acks.forget(leaving.since, task);
            }
        }
    }

    /// Every node with an interest in the network, or with what it had in place when its interest ended, has its changes up to here; for
    /// the allocator, which waits for that before it gives an address again.
    pub(super) fn acknowledged(&self, id: &NetworkId) -> Version {
        if !self.unheard.is_empty() {
            return Version::default();
        }
        self.networks.get(id).and_then(|net| net.acks.lowest()).unwrap_or(self.version)
    }
}
