//! Gives out what must be unique: subnets, VXLAN ids, addresses, virtual IPs and published ports (wire-behaviour 16).
//!
//! The [`Allocator`] is a cache of what the store's objects hold. It is built once from a view and then fed every [`Change`]; what a
//! plan gave out is reserved until the change arrives, or until the next plan if it never does.

mod audit; // what objects hold against what is taken to be in use
mod embargo; // networks of which it is not known what was freed
mod freed; // what a manager remembers that does not lead
mod network; // subnets and VXLAN ids of networks
mod node; // numbers of nodes, and their addresses on their tasks' networks
mod port; // published ports
mod quarantine; // freed addresses that nodes may still know
mod ranges; // sets of numbers
mod service; // virtual IPs and ports of services
mod subnet; // pools, subnets, addresses
mod task; // addresses of tasks

pub use audit::AddressAudit;
pub use freed::{Freed, FreedAddresses, FreedLately};
pub use subnet::SubnetError;

use crate::Plan;
use embargo::Embargo;
use port::{Held, Ports};
use quarantine::Quarantine;
use ranges::Serial;
use skep_types::{
    Change, ClusterView, Network, NetworkAttachment, NetworkDriver, NetworkId, NodeId, Object, Protocol, PublishMode, Service, ServiceId,
    Task, TaskId, TaskState, Timestamp, Version,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use subnet::{Addresses, Subnets, address_of};

/// First VXLAN id that is given out (`cnmallocator`), and the last there is.
const FIRST_VNI: u128 = 4096;
const LAST_VNI: u128 = (1 << 24) - 1;

/// Numbers of nodes. They are marks of connections and numbers of routing tables on the nodes, so the highest ones are left out.
const FIRST_NODE_INDEX: u128 = 1;
const LAST_NODE_INDEX: u128 = (1 << 24) - 1;

/// New tasks per plan at most; more are left for the next one, which [`Plan::wake_at`] asks for at once.
const TASKS_PER_PLAN: usize = 2_000;

/// How soon to look again whether an address that somebody waits for is out of quarantine.
const QUARANTINE_LOOK: Duration = Duration::from_millis(250);

/// Something that one holder has alone; also while it is given out by a plan and not in the store yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Lease {
    Address(NetworkId, IpAddr),
    Port(Held),
    Subnet(ipnet::IpNet),
    Vni(u32),
    NodeIndex(u32),
}

/// What is in use, and what waits to be given something.
#[derive(Debug)]
pub struct Allocator {
    subnets: Subnets,
    vnis: Serial,
    node_indexes: Serial,
    ports: Ports,
    /// Subnets of the networks that have theirs.
    networks: HashMap<NetworkId, Vec<Addresses>>,
    /// How many tasks of a node use a network.
    uses: HashMap<NodeId, BTreeMap<NetworkId, u32>>,
    ingress: Option<NetworkId>,
    leases: HashSet<Lease>,
    /// What more than one object holds, which should not be, with how many too many: it is free when the last one lets go.
    shared: HashMap<Lease, u32>,
    quarantine: Quarantine,
    embargo: Embargo,
    /// Of the view it was built from.
    began: Version,

    dirty_networks: BTreeSet<NetworkId>,
    dirty_services: BTreeSet<ServiceId>,
    dirty_nodes: BTreeSet<NodeId>,
    new_tasks: BTreeSet<TaskId>,
    /// What could not be given, with the reason; tried again when something is freed or a network or service changes.
    stuck_networks: BTreeMap<NetworkId, String>,
    stuck_services: BTreeMap<ServiceId, String>,
    stuck_tasks: BTreeSet<TaskId>,
    stuck_nodes: BTreeSet<NodeId>,
    /// Tasks that wait for their service.
    behind_service: HashMap<ServiceId, Vec<TaskId>>,
    freed: bool,
}

/// Whether this is the network on which every node answers published ports.
#[must_use]
pub fn is_ingress(network: &Network) -> bool {
    let annotations = &network.spec.annotations;
    network.spec.ingress || (annotations.name == "ingress" && annotations.labels.contains_key("com.docker.swarm.internal"))
}

/// Whether the network spans nodes.
#[must_use]
pub fn is_overlay(network: &Network) -> bool {
    network.driver() == NetworkDriver::Overlay
}

/// The network that an attachment names, by id or by name.
#[must_use]
pub fn resolve_network<'a>(view: &'a dyn ClusterView, target: &str) -> Option<&'a Arc<Network>> {
    target.parse().ok().and_then(|id| view.network(&id)).or_else(|| view.network_by_name(target))
}

fn holds_addresses(task: &Task) -> bool {
    task.status.state <= TaskState::Running
}

impl Allocator {
    /// Reads everything once: O(objects).
    #[must_use]
    pub fn new(view: &dyn ClusterView) -> Self {
        let mut this = Self {
            subnets: Subnets::default(),
            vnis: Serial::new(FIRST_VNI, LAST_VNI),
            node_indexes: Serial::new(FIRST_NODE_INDEX, LAST_NODE_INDEX),
            ports: Ports::default(),
            networks: HashMap::new(),
            uses: HashMap::new(),
            ingress: None,
            leases: HashSet::new(),
            shared: HashMap::new(),
            quarantine: Quarantine::default(),
            embargo: Embargo::default(),
            began: view.version(),
            dirty_networks: BTreeSet::new(),
            dirty_services: BTreeSet::new(),
            dirty_nodes: BTreeSet::new(),
            new_tasks: BTreeSet::new(),
            stuck_networks: BTreeMap::new(),
            stuck_services: BTreeMap::new(),
            stuck_tasks: BTreeSet::new(),
            stuck_nodes: BTreeSet::new(),
            behind_service: HashMap::new(),
            freed: false,
        };
        let networks = view.networks().map(|network| Object::Network(Arc::clone(network)));
        let services = view.services().map(|service| Object::Service(Arc::clone(service)));
        let nodes = view.nodes().map(|node| Object::Node(Arc::clone(node)));
        let tasks = view.tasks().map(|task| Object::Task(Arc::clone(task)));
        for object in networks.chain(services).chain(nodes).chain(tasks) {
            this.observe(&Change::Created(object));
        }
        this.quarantine_ended_tasks(view);
        this.vnis.seek_end();
        this.node_indexes.seek_end();
        this.ports.seek_end();
        this.networks.values_mut().flatten().for_each(Addresses::seek_end);
        this
    }

    /// Takes a committed change into account. All changes up to a view must be fed before [`Allocator::plan`] sees that view.
    pub fn observe(&mut self, change: &Change) {
        let (old, new) = match change {
            Change::Created(new) => (None, Some(new)),
            Change::Updated { old, new } => (Some(old), Some(new)),
            Change::Removed(old) => (Some(old), None),
        };
        match (old, new) {
            (None | Some(Object::Network(_)), None | Some(Object::Network(_))) => self.observe_network(as_network(old), as_network(new)),
            (None | Some(Object::Service(_)), None | Some(Object::Service(_))) => self.observe_service(as_service(old), as_service(new)),
            (None | Some(Object::Task(_)), None | Some(Object::Task(_))) => self.observe_task(as_task(old), as_task(new)),
            (None | Some(Object::Node(_)), None | Some(Object::Node(_))) => self.observe_node(as_node(old), as_node(new)),
            _ => {}
        }
    }

    /// Gives out what networks, services, nodes and new tasks still lack. Costs O(what changed since the last call).
    ///
    /// The changes may be committed in parts; each stands for itself. Call it again after the commit: services wait for their
    /// networks to be committed, tasks for their services.
    #[must_use]
    pub fn plan(&mut self, view: &dyn ClusterView, now: Timestamp) -> Plan {
        self.expire_leases();
        if std::mem::take(&mut self.freed) {
            self.retry_stuck();
        }
        let mut plan = Plan::default();
        self.plan_networks(view, &mut plan);
        self.plan_services(view, &mut plan);
        self.plan_nodes(view, &mut plan);
        self.plan_tasks(view, now, &mut plan);
        if !(self.quarantine.is_empty() && self.embargo.is_empty()) && self.is_anybody_stuck() {
            plan.wake(now + QUARANTINE_LOOK);
        }
        plan
    }

    /// Everything up to this revision was observed, and nothing that is not written: what was freed until now was free then.
    pub fn settle(&mut self, version: Version, now: Timestamp) {
        let released = self.quarantine.settle(version, now);
        self.release(released);
        self.freed |= self.embargo.settle(now);
    }

    /// Frees addresses for good, given the revision that all nodes with an interest in a network have in place, if that is known.
    pub fn acknowledge(&mut self, acknowledged: &dyn Fn(&NetworkId) -> Option<Version>) {
        let released = self.quarantine.acknowledge(acknowledged);
        self.release(released);
        self.freed |= self.embargo.acknowledge(acknowledged);
    }

    /// For a new leader, before its first plan: addresses that others freed, and that some node may still know, though nothing in the
    /// store tells of them any more. Where it is not known which these are, no address of a network is given out until its nodes have
    /// acknowledged a revision of this leader's; other networks are not concerned.
    pub fn remember(&mut self, freed: &FreedLately) {
        for Freed { network, address, at } in &freed.addresses {
            self.keep_back(network, *address, Some(*at));
        }
        if freed.incomplete {
            self.networks.keys().for_each(|network| self.embargo.close(network.clone(), self.began));
        }
    }

    /// For one that was built anew: what the one before it kept back.
    pub fn inherit(&mut self, before: &Self) {
        for (network, address, at) in before.quarantine.all() {
            self.keep_back(network, address, at);
        }
        self.embargo.clone_from(&before.embargo);
    }

    /// An address that nobody has, freed by the commit of that revision if it is known.
    fn keep_back(&mut self, network: &NetworkId, address: IpAddr, at: Option<Version>) {
        if self.claim_address(network, address) || self.quarantine.holds(network, address) {
            match at {
                Some(at) => self.quarantine.put_at(network, address, at),
                None => self.quarantine.put(network, address, None),
            }
        }
    }

    /// A service that has this port on every node, at some place or at all.
    #[must_use]
    pub fn port_holder(&self, protocol: Protocol, port: u16) -> Option<&ServiceId> {
        self.ports.first_holder(protocol, port)
    }

    /// Why a service has not got its addresses or ports.
    #[must_use]
    pub fn problem_of_service(&self, id: &ServiceId) -> Option<&str> {
        self.stuck_services.get(id).map(String::as_str)
    }

    /// Why a network has not got its subnets.
    #[must_use]
    pub fn problem_of_network(&self, id: &NetworkId) -> Option<&str> {
        self.stuck_networks.get(id).map(String::as_str)
    }

    /// What the last plan gave out and no commit has confirmed is free again.
    fn expire_leases(&mut self) {
        for lease in std::mem::take(&mut self.leases) {
            match lease {
                Lease::Address(network, address) => self.cancel_address(&network, address),
                Lease::Port(port) => self.ports.cancel(&port),
                Lease::Subnet(net) => self.subnets.remove(&net),
                Lease::Vni(vni) => {
                    self.vnis.cancel(u128::from(vni));
                }
                Lease::NodeIndex(index) => {
                    self.node_indexes.cancel(u128::from(index));
                }
            }
        }
    }

    fn retry_stuck(&mut self) {
        self.dirty_networks.extend(std::mem::take(&mut self.stuck_networks).into_keys());
        self.dirty_services.extend(std::mem::take(&mut self.stuck_services).into_keys());
        self.new_tasks.append(&mut self.stuck_tasks);
        self.dirty_nodes.append(&mut self.stuck_nodes);
    }

    fn is_anybody_stuck(&self) -> bool {
        !(self.stuck_services.is_empty() && self.stuck_tasks.is_empty() && self.stuck_nodes.is_empty())
    }

    /// A new leader does not know what the nodes have heard of: what was freed lately counts as freed now.
    fn quarantine_ended_tasks(&mut self, view: &dyn ClusterView) {
        for task in view.tasks().filter(|task| !holds_addresses(task)) {
            let since = task.status.applied_at.unwrap_or(task.status.timestamp);
            for (network, address) in addresses(&task.networks) {
                if self.claim_address(&network, address) {
                    self.quarantine.put(&network, address, Some(since));
                }
            }
        }
    }

    /// Why no address of the network can be given out at all.
    fn closed(&self, network: &Network) -> Option<String> {
        let name = &network.spec.annotations.name;
        self.embargo.is_closed(&network.id).then(|| format!("network {name} waits for its nodes to know which of its addresses are free"))
    }

    fn claim_address(&mut self, network: &NetworkId, address: IpAddr) -> bool {
        let subnets = self.networks.get_mut(network);
        subnets.is_some_and(|subnets| subnets.iter_mut().any(|subnet| subnet.claim(address)))
    }

    fn release(&mut self, addresses: Vec<(NetworkId, IpAddr)>) {
        for (network, address) in addresses {
            if let Some(subnets) = self.networks.get_mut(&network) {
                self.freed |= subnets.iter_mut().any(|subnet| subnet.release(address));
            }
        }
    }

    /// An address that an object in the store had is free, but not for others yet.
    fn release_address(&mut self, network: &NetworkId, address: IpAddr) {
        if self.another_has(&Lease::Address(network.clone(), address)) {
            return;
        }
        if self.is_used(network, address) {
            self.quarantine.put(network, address, None);
        }
    }

    fn is_used(&self, network: &NetworkId, address: IpAddr) -> bool {
        let subnets = self.networks.get(network);
        subnets.is_some_and(|subnets| subnets.iter().any(|subnet| subnet.net.contains(&address) && subnet.is_used(address)))
    }

    /// Somebody has what another one has already.
    fn share(&mut self, held: Lease) {
        *self.shared.entry(held).or_default() += 1;
    }

    /// One of its holders lets go; whether another one has it still.
    fn another_has(&mut self, held: &Lease) -> bool {
        let Some(more) = self.shared.get_mut(held) else { return false };
        *more -= 1;
        if *more == 0 {
            self.shared.remove(held);
        }
        true
    }

    fn cancel_address(&mut self, network: &NetworkId, address: IpAddr) {
        if let Some(subnets) = self.networks.get_mut(network) {
            self.freed |= subnets.iter_mut().any(|subnet| subnet.cancel(address));
        }
    }

    /// Addresses that a committed object holds now, and those it held before.
    fn exchange_addresses(&mut self, old: &[(NetworkId, IpAddr)], new: &[(NetworkId, IpAddr)]) {
        for (network, address) in new.iter().filter(|held| !old.contains(held)) {
            let lease = Lease::Address(network.clone(), *address);
            let is_known = self.leases.remove(&lease) || self.quarantine.holds(network, *address);
            self.quarantine.take_back(network, *address);
            if !self.claim_address(network, *address) && !is_known && self.is_used(network, *address) {
                self.share(lease);
            }
        }
        for (network, address) in old.iter().filter(|held| !new.contains(held)) {
            self.release_address(network, *address);
        }
    }
}

fn addresses(attachments: &[NetworkAttachment]) -> Vec<(NetworkId, IpAddr)> {
    let of_one = |attachment: &NetworkAttachment| {
        let id = attachment.network.id.clone();
        attachment.addresses.iter().filter_map(|text| address_of(text)).map(move |address| (id.clone(), address)).collect::<Vec<_>>()
    };
    attachments.iter().flat_map(of_one).collect()
}

fn publishes_on_ingress(service: &Service) -> bool {
    service.spec.endpoint.as_ref().is_some_and(|spec| spec.ports.iter().any(|port| port.publish_mode == PublishMode::Ingress))
}

fn as_network(object: Option<&Object>) -> Option<&Arc<Network>> {
    match object {
        Some(Object::Network(network)) => Some(network),
        _ => None,
    }
}

fn as_service(object: Option<&Object>) -> Option<&Arc<Service>> {
    match object {
        Some(Object::Service(service)) => Some(service),
        _ => None,
    }
}

fn as_task(object: Option<&Object>) -> Option<&Arc<Task>> {
    match object {
        Some(Object::Task(task)) => Some(task),
        _ => None,
    }
}

fn as_node(object: Option<&Object>) -> Option<&Arc<skep_types::Node>> {
    match object {
        Some(Object::Node(node)) => Some(node),
        _ => None,
    }
}
