//! What objects hold, counted anew, against what the allocator takes to be in use.
//!
//! A leader that begins has the allocator built from the store, and one that leads on has fed it every change: both must come to the
//! same. What they do not agree about would be lost for good, or be given twice. Addresses, VXLAN ids and numbers of nodes are looked at.

use super::network::vnis;
use super::service::vips;
use super::{Allocator, Lease, addresses, holds_addresses};
use skep_types::{Action, ClusterView, NetworkId, Node, NodeId, Object, Service, ServiceId, TaskId, TaskState, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// What an audit found. Leaks and misses are set right in the allocator by the audit itself; doubles by `changes`, where that can be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AddressAudit {
    /// Had by several objects, in words: what, by whom, and what is to be done where nothing is done by itself.
    pub doubled: Vec<String>,
    /// Taken to be in use, and nobody's.
    pub leaked: Vec<String>,
    /// Some object's, and taken to be free.
    pub missed: Vec<String>,
    /// How many of all these are set right, once `changes` are written.
    pub mended: usize,
    /// What takes doubles apart: the first holder keeps it, the others get another.
    pub changes: Vec<Action>,
}

impl AddressAudit {
    /// Everything is as it should be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.doubled.is_empty() && self.leaked.is_empty() && self.missed.is_empty()
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(network, address) => write!(out, "address {address} of network {network}"),
            // Those of services and networks are told of where they are asked for.
            Self::Port(..) => out.write_str("a port"),
            Self::Subnet(net) => write!(out, "subnet {net}"),
            Self::Vni(vni) => write!(out, "VXLAN id {vni}"),
            Self::NodeIndex(index) => write!(out, "node number {index}"),
        }
    }
}

/// Who has something, in the order of who keeps it: what others lead to changes last. Then the older one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Network(Timestamp, NetworkId),
    Service(Timestamp, ServiceId),
    Node(Timestamp, NodeId),
    Task(Timestamp, TaskId),
}

impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(_, id) => write!(out, "network {id}"),
            Self::Service(_, id) => write!(out, "service {id}"),
            Self::Node(_, id) => write!(out, "node {id}"),
            Self::Task(_, id) => write!(out, "task {id}"),
        }
    }
}

/// Everything that must be unique, with who has it.
fn holdings(view: &dyn ClusterView) -> BTreeMap<Lease, BTreeSet<Holder>> {
    let mut all = BTreeMap::<Lease, BTreeSet<Holder>>::new();
    let mut note = |held: Lease, holder: Holder| {
        all.entry(held).or_default().insert(holder);
    };
    let address = |(network, address): (NetworkId, IpAddr)| Lease::Address(network, address);
    for network in view.networks() {
        let holder = Holder::Network(network.meta.created_at, network.id.clone());
        vnis(network.driver_state.as_ref()).into_iter().for_each(|vni| note(Lease::Vni(vni), holder.clone()));
    }
    for service in view.services() {
        let holder = Holder::Service(service.meta.created_at, service.id.clone());
        vips(service).into_iter().for_each(|vip| note(address(vip), holder.clone()));
    }
    for node in view.nodes() {
        let holder = Holder::Node(node.meta.created_at, node.id.clone());
        addresses(&node.attachments).into_iter().for_each(|own| note(address(own), holder.clone()));
        let index = node.overlay.as_ref().map(|overlay| overlay.index).filter(|index| *index != 0);
        index.into_iter().for_each(|index| note(Lease::NodeIndex(index), holder.clone()));
    }
    for task in view.tasks().filter(|task| holds_addresses(task)) {
        let holder = Holder::Task(task.meta.created_at, task.id.clone());
        addresses(&task.networks).into_iter().for_each(|own| note(address(own), holder.clone()));
    }
    all
}

/// Objects as they are to be, each once however much of it is to change.
#[derive(Default)]
struct Mend {
    services: BTreeMap<ServiceId, Service>,
    nodes: BTreeMap<NodeId, Node>,
    tasks: BTreeSet<TaskId>,
}

impl Mend {
    /// Takes it from the holder, who gets another one later; `false` if that cannot be done to who uses it.
    fn take(&mut self, view: &dyn ClusterView, held: &Lease, holder: &Holder) -> bool {
        match (held, holder) {
            (Lease::Address(network, address), Holder::Service(_, id)) => {
                let Some(known) = view.service(id) else { return false };
                let service = self.services.entry(id.clone()).or_insert_with(|| Service::clone(known));
                if let Some(endpoint) = &mut service.endpoint {
                    endpoint.virtual_ips.retain(|vip| !(vip.network_id == *network && super::address_of(&vip.addr) == Some(*address)));
                }
                true
            }
            (Lease::Address(network, _), Holder::Node(_, id)) => {
                let Some(node) = self.node(view, id) else { return false };
                node.attachments.retain(|attachment| attachment.network.id != *network);
                true
            }
            // A task keeps its address as long as it lives; its orchestrator makes another.
            (Lease::Address(..), Holder::Task(_, id)) => {
                self.tasks.insert(id.clone());
                true
            }
            (Lease::NodeIndex(_), Holder::Node(_, id)) => {
                let overlay = self.node(view, id).and_then(|node| node.overlay.as_mut());
                overlay.map(|overlay| overlay.index = 0).is_some()
            }
            _ => false,
        }
    }

    fn node(&mut self, view: &dyn ClusterView, id: &NodeId) -> Option<&mut Node> {
        let known = view.node(id)?;
        Some(self.nodes.entry(id.clone()).or_insert_with(|| Node::clone(known)))
    }

    fn changes(self) -> Vec<Action> {
        let services = self.services.into_values().map(|service| Action::Update(Object::Service(Arc::new(service))));
        let nodes = self.nodes.into_values().map(|node| Action::Update(Object::Node(Arc::new(node))));
        let tasks = self.tasks.into_iter().map(|task| Action::SetTaskDesired { task, desired: TaskState::Shutdown });
        services.chain(nodes).chain(tasks).collect()
    }
}

impl Allocator {
    /// Compares what objects hold with what is taken to be in use, and sets this allocator right. Costs O(objects). All changes up to the
    /// view must have been observed, and nothing that is not in it.
    #[must_use]
    pub fn audit(&mut self, view: &dyn ClusterView) -> AddressAudit {
        self.expire_leases();
        let holdings = holdings(view);
        let mut audit = AddressAudit::default();
        let mut mend = Mend::default();
        for (held, holders) in holdings.iter().filter(|(_, holders)| holders.len() > 1) {
            let mut names: Vec<String> = holders.iter().map(ToString::to_string).collect();
            let first = names.remove(0);
            let mut all_done = true;
            for holder in holders.iter().skip(1) {
                all_done &= mend.take(view, held, holder);
            }
            let then = if all_done { "the others get another" } else { "remove and make anew all but one of them" };
            audit.doubled.push(format!("{held} is had by {first} and {}; {then}", names.join(", ")));
            audit.mended += usize::from(all_done);
        }
        audit.changes = mend.changes();
        for held in holdings.keys().filter(|held| !self.is_taken(held)).cloned().collect::<Vec<_>>() {
            audit.missed.push(held.to_string());
            self.claim(&held);
        }
        for held in self.taken(view).into_iter().filter(|held| !holdings.contains_key(held)) {
            audit.leaked.push(held.to_string());
            self.free(&held);
        }
        audit.mended += audit.missed.len() + audit.leaked.len();
        audit
    }

    /// Whether it is in use for good: what waits to be free again is not. Addresses outside of their network are nobody's concern: their
    /// holders get others.
    fn is_taken(&self, held: &Lease) -> bool {
        match held {
            Lease::Address(network, address) => {
                let subnets = self.networks.get(network).into_iter().flatten();
                let mut around = subnets.into_iter().filter(|subnet| subnet.net.contains(address)).peekable();
                around.peek().is_none() || (around.any(|subnet| subnet.is_used(*address)) && !self.quarantine.holds(network, *address))
            }
            Lease::Vni(vni) => self.vnis.is_used(u128::from(*vni)),
            Lease::NodeIndex(index) => self.node_indexes.is_used(u128::from(*index)),
            Lease::Subnet(_) | Lease::Port(..) => true,
        }
    }

    /// All that is in use for good, without the networks' gateways.
    fn taken(&self, view: &dyn ClusterView) -> BTreeSet<Lease> {
        let mut all = BTreeSet::new();
        for (id, subnets) in &self.networks {
            let configs = view.network(id).and_then(|network| network.ipam.as_ref()).into_iter().flat_map(|ipam| &ipam.configs);
            let gateways: BTreeSet<IpAddr> = configs.filter_map(|config| config.gateway.parse().ok()).collect();
            let used = subnets.iter().flat_map(|subnet| subnet.used());
            let used = used.filter(|address| !gateways.contains(address) && !self.quarantine.holds(id, *address));
            all.extend(used.map(|address| Lease::Address(id.clone(), address)));
        }
        let small = |number: u128| u32::try_from(number).ok();
        all.extend(self.vnis.used().filter_map(small).map(Lease::Vni));
        all.extend(self.node_indexes.used().filter_map(small).map(Lease::NodeIndex));
        all
    }

    fn claim(&mut self, held: &Lease) {
        match held {
            Lease::Address(network, address) => {
                self.quarantine.take_back(network, *address);
                self.claim_address(network, *address);
            }
            Lease::Vni(vni) => drop(self.vnis.claim(u128::from(*vni))),
            Lease::NodeIndex(index) => drop(self.node_indexes.claim(u128::from(*index))),
            Lease::Subnet(_) | Lease::Port(..) => {}
        }
    }

    fn free(&mut self, held: &Lease) {
        self.shared.remove(held);
        self.freed = true;
        match held {
            // Some node may know it yet, as of any address that was freed.
            Lease::Address(network, address) => self.quarantine.put(network, *address, None),
            Lease::Vni(vni) => drop(self.vnis.release(u128::from(*vni))),
            Lease::NodeIndex(index) => drop(self.node_indexes.release(u128::from(*index))),
            Lease::Subnet(_) | Lease::Port(..) => {}
        }
    }
}
