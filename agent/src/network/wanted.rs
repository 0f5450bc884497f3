//! From the tasks of this node and the picture of the others to what netlb is asked for. Pure.

use super::bridge::{both_families, bridge_network};
use super::convert::{bare, is_lan, network, overlays, port, protocol};
use super::held::Held;
use super::picture::{NetworkPicture, PeerNode, Picture, Readiness};
use super::secure::Own;
use super::ways;
use ipnet::IpNet;
use skep_netlb::{Backend, Endpoint, Location, Mac, Overlay, Peer, Protocol, PublishMode, PublishedPort, Vip, Wanted, WantedNetwork};
use skep_types::{Affinity, Network, NetworkId, PublishMode as WireMode, PublishPlace, ServiceId, Task, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// IANA's port of VXLAN (RFC 7348 §8).
pub const VXLAN_PORT: u16 = 4789;

/// What the whole node's network should be, given the tasks whose network exists and what managers said of other nodes. Of this
/// node's own tasks it counts what this node knows; but one that managers want gone gets nothing more.
#[must_use]
pub fn wanted(held: &BTreeMap<TaskId, Held>, picture: &Picture, own: &Own) -> Wanted {
    let mut networks = BTreeMap::new();
    for (id, known) in picture.networks.iter().filter(|(_, known)| !is_lan(&known.network)) {
        if let Some(members) = Members::of_picture(known, picture, own) {
            networks.insert(id.clone(), members);
        }
    }
    let mut ports = Ports::default();
    for one in held.values() {
        let serves = one.is_serving() && !picture.is_leaving(&one.task.id);
        for attachment in overlays(&one.task) {
            let id = &attachment.network.id;
            if !networks.contains_key(id) {
                // A network that is not understood was refused when the task was attached.
                let Some(members) = Members::here_only(&attachment.network) else { continue };
                networks.insert(id.clone(), members);
            }
            let addresses = bare(attachment);
            ports.add_task(one, attachment.network.spec.ingress.then_some(&addresses), serves);
            if let Some(members) = networks.get_mut(id) {
                members.add_own(one, id, addresses, serves);
            }
        }
        ports.add_host_mode(one);
        if let Some(address) = one.bridge {
            let network = bridge_network(address);
            let members = networks.entry(network.id.clone()).or_insert_with(|| Members::new(network, None));
            let addresses = both_families(address).iter().map(IpNet::addr).collect();
            members.put(&one.task.id, Member { addresses, location: Location::Local, service: None, serves });
        }
    }
    // Where nobody is there is nothing to reach: a node without published ports has no sandbox for them.
    networks.retain(|_, members| !members.tasks.is_empty());
    for (id, known) in &picture.networks {
        if let Some(members) = networks.get(id).filter(|_| known.network.spec.ingress) {
            ports.add_services(known, members);
        }
    }
    Wanted {
        networks: networks.into_values().map(Members::finish).collect(),
        published: ports.finish(),
        tasks: held.keys().cloned().collect(),
        encryption: own.encryption(held, picture),
    }
}

/// How the network spans nodes; `None` while it is on this one only, or this one has no number yet. An encrypted one spans those
/// that this node has a tunnel to.
fn overlay(known: &NetworkPicture, picture: &Picture, own: &Own) -> Option<Overlay> {
    let peer = |node: &PeerNode| Peer { node_index: node.index, underlay: node.underlay, mac: Mac(node.mac) };
    let this = known.peers.get(&picture.node_index)?;
    // Addresses of another family cannot be reached from this one; all others work without those nodes.
    let others = known.peers.values().filter(|node| node.index != this.index && node.underlay.is_ipv4() == this.underlay.is_ipv4());
    let has_way = |node: &&PeerNode| !known.network.is_encrypted() || own.reaches(picture, node);
    let peers: Vec<Peer> = others.filter(has_way).map(peer).collect();
    let port = if picture.vxlan_port == 0 { VXLAN_PORT } else { picture.vxlan_port };
    (!peers.is_empty()).then(|| Overlay { this: peer(this), port, peers })
}

/// A network and who is on it, while it is put together.
struct Members {
    network: skep_netlb::Network,
    overlay: Option<Overlay>,
    tasks: BTreeMap<TaskId, Member>,
    vips: BTreeMap<ServiceId, BTreeSet<IpAddr>>,
}

struct Member {
    addresses: Vec<IpAddr>,
    location: Location,
    service: Option<ServiceId>,
    serves: bool,
}

impl Members {
    fn new(network: skep_netlb::Network, overlay: Option<Overlay>) -> Self {
        Self { network, overlay, tasks: BTreeMap::new(), vips: BTreeMap::new() }
    }

    fn here_only(cluster: &Network) -> Option<Self> {
        Some(Self::new(network(cluster, false).ok()?, None))
    }

    fn of_picture(known: &NetworkPicture, picture: &Picture, own: &Own) -> Option<Self> {
        let overlay = overlay(known, picture, own);
        let is_ipv6 = overlay.as_ref().is_some_and(|overlay| overlay.this.underlay.is_ipv6());
        let network = network(&known.network, is_ipv6).ok()?;
        let mut this = Self::new(skep_netlb::Network { mtu: ways::mtu(known, picture).unwrap_or(network.mtu), ..network }, overlay);
        // Those of this node are known better by itself.
        for task in known.tasks.values().filter(|task| task.node_index != picture.node_index) {
            let is_reached = this.overlay.iter().flat_map(|overlay| &overlay.peers).any(|peer| peer.node_index == task.node_index);
            let member = Member {
                addresses: task.addresses.clone(),
                location: Location::Remote { node_index: task.node_index },
                service: task.service.clone(),
                serves: is_reached && task.readiness == Readiness::Ready,
            };
            this.put(&task.id, member);
        }
        this.vips = known.services.values().map(|service| (service.id.clone(), service.virtual_ips.iter().copied().collect())).collect();
        Some(this)
    }

    fn put(&mut self, id: &TaskId, member: Member) {
        self.tasks.insert(id.clone(), member);
    }

    fn add_own(&mut self, one: &Held, id: &NetworkId, addresses: Vec<IpAddr>, serves: bool) {
        let service = one.task.service_id.clone();
        if let Some(service) = &service
            && !self.vips.contains_key(service)
        {
            self.vips.insert(service.clone(), vips(&one.task, id).collect());
        }
        self.put(&one.task.id, Member { addresses, location: Location::Local, service, serves });
    }

    /// An address is given to another task some time after the first one's end. While both are known, it belongs to the one
    /// that serves, else to the one elsewhere: a task of this node that is not ended yet needs it no more.
    fn settle_addresses(&mut self) {
        let rank = |member: &Member| (member.serves, member.location != Location::Local);
        let mut owners: BTreeMap<IpAddr, (TaskId, (bool, bool))> = BTreeMap::new();
        let mut is_disputed = false;
        for (id, member) in &self.tasks {
            for address in &member.addresses {
                let claim = (id.clone(), rank(member));
                let owner = owners.entry(*address).or_insert_with(|| claim.clone());
                if owner.0 != *id {
                    is_disputed = true;
                    if claim.1 > owner.1 {
                        *owner = claim;
                    }
                }
            }
        }
        if is_disputed {
            for (id, member) in &mut self.tasks {
                member.addresses.retain(|address| owners.get(address).is_some_and(|(owner, _)| owner == id));
            }
        }
    }

    fn finish(mut self) -> WantedNetwork {
        self.settle_addresses();
        let mut vips: BTreeMap<IpAddr, BTreeSet<IpAddr>> = self.vips.values().flatten().map(|vip| (*vip, BTreeSet::new())).collect();
        for member in self.tasks.values().filter(|member| member.serves) {
            for vip in member.service.iter().filter_map(|service| self.vips.get(service)).flatten() {
                let backends = member.addresses.iter().filter(|address| address.is_ipv4() == vip.is_ipv4());
                vips.entry(*vip).or_default().extend(backends);
            }
        }
        let endpoint = |(task, member): (TaskId, Member)| Endpoint { task, addresses: member.addresses, location: member.location };
        WantedNetwork {
            network: self.network,
            overlay: self.overlay,
            endpoints: self.tasks.into_iter().map(endpoint).collect(),
            vips: vips.into_iter().map(|(address, backends)| Vip { address, backends: backends.into_iter().collect() }).collect(),
        }
    }
}

pub fn vips<'a>(task: &'a Task, network: &'a NetworkId) -> impl Iterator<Item = IpAddr> + 'a {
    let all = task.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips).filter(move |vip| vip.network_id == *network);
    all.filter_map(|vip| vip.addr.split('/').next()?.parse().ok())
}

/// Published ports, while they are put together.
#[derive(Default)]
struct Ports {
    ingress: BTreeMap<(Protocol, u16, PublishPlace), Shared>,
    host: Vec<PublishedPort>,
}

/// A port of the ingress network.
#[derive(Default)]
struct Shared {
    backends: BTreeSet<Backend>,
    affinity: Affinity,
    allow: Vec<IpNet>,
}

impl Ports {
    /// Those of one of this node's tasks: it may be of an older edition of its service, and listen elsewhere than new ones.
    fn add_task(&mut self, one: &Held, on_ingress: Option<&Vec<IpAddr>>, serves: bool) {
        let configs = one.task.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        for config in configs.filter(|config| config.publish_mode == WireMode::Ingress) {
            let (Some(published), Some(target)) = (port(config.published_port), port(config.target_port)) else { continue };
            let shared = self.ingress.entry((protocol(config.protocol), published, config.place.clone())).or_default();
            (shared.affinity, shared.allow) = (config.affinity, config.allow.clone());
            if serves {
                shared.backends.extend(on_ingress.into_iter().flatten().map(|address| Backend { address: *address, port: target }));
            }
        }
    }

    /// Those of tasks elsewhere. To whom a port answers is as the service says now, whatever the tasks of this node began with.
    fn add_services(&mut self, known: &NetworkPicture, members: &Members) {
        let mut remote: BTreeMap<&ServiceId, Vec<IpAddr>> = BTreeMap::new();
        for member in members.tasks.values().filter(|member| member.serves && member.location != Location::Local) {
            if let Some(service) = &member.service {
                remote.entry(service).or_default().extend(&member.addresses);
            }
        }
        for service in known.services.values() {
            for config in &service.ports {
                let Some(published) = config.published else { continue };
                let shared = self.ingress.entry((protocol(config.protocol), published, config.place.clone())).or_default();
                (shared.affinity, shared.allow) = (config.affinity, config.allow.clone());
                let addresses = remote.get(&service.id).into_iter().flatten();
                shared.backends.extend(addresses.map(|address| Backend { address: *address, port: config.target }));
            }
        }
    }

    fn add_host_mode(&mut self, one: &Held) {
        let Some((network, addresses)) = entry(&one.task, one.bridge).filter(|_| one.is_serving()) else { return };
        for config in &one.host_ports {
            let (Some(number), Some(target)) = (port(config.published_port), port(config.target_port)) else { continue };
            let backends = addresses.iter().map(|address| Backend { address: *address, port: target }).collect();
            let port = PublishedPort::new(protocol(config.protocol), number, PublishMode::Host { network: network.clone(), backends });
            self.host.push(PublishedPort { place: config.place.clone(), allow: config.allow.clone(), ..port });
        }
    }

    fn finish(self) -> Vec<PublishedPort> {
        let shared = self.ingress.into_iter().map(|((protocol, port, place), Shared { backends, affinity, allow })| PublishedPort {
            protocol,
            port,
            place,
            affinity,
            allow,
            mode: PublishMode::Ingress { backends: backends.into_iter().collect() },
        });
        self.host.into_iter().chain(shared).collect()
    }
}

/// Where a task's host-mode ports are reached: on the network through which this host gets to it.
fn entry(task: &Task, bridge: Option<IpNet>) -> Option<(NetworkId, Vec<IpAddr>)> {
    if let Some(address) = bridge {
        return Some((bridge_network(address).id, both_families(address).iter().map(IpNet::addr).collect()));
    }
    let ingress = overlays(task).find(|attachment| attachment.network.spec.ingress);
    let attachment = ingress.or_else(|| overlays(task).find(|attachment| !attachment.network.spec.internal));
    attachment.map(|attachment| (attachment.network.id.clone(), bare(attachment)))
}

#[cfg(test)]
mod tests;
