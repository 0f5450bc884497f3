//! What a node is told of what it has an interest in. Pure.

use super::dirty::{Dirty, Extent, Parts};
use super::facts::{encoded, endpoint, host, mac, service_entry, tunnel_epochs, tunnel_key};
use super::index::{Index, Net};
use skep_proto::skep::{NetworkChanges, NetworkDelta, NetworkEndpoint, NetworkPeer, NetworkServiceEntry};
use skep_types::{NetworkId, NodeId, NodeOverlay, ServiceId, TaskId};

impl Index {
    /// Everything for a stream that has said nothing yet.
    pub(super) fn complete(&self, node: &NodeId) -> NetworkChanges {
        let mut interests: Vec<_> = self.interests(node).collect();
        interests.sort_by_key(|(id, _)| *id);
        let cleared = self.nodes.get(node).into_iter().flat_map(|seat| &seat.cleared);
        NetworkChanges {
            complete: true,
            networks: interests.into_iter().map(|(id, net)| self.whole(node, id, net)).collect(),
            cleared_tasks: cleared.map(ToString::to_string).collect(),
            ..self.header(node)
        }
    }

    /// What leads a node from what it was told to the present. The number and the port are in every message.
    pub(super) fn difference(&self, node: &NodeId, dirty: Dirty) -> NetworkChanges {
        if dirty.everything {
            return self.complete(node);
        }
        let cleared = self.nodes.get(node).map(|seat| &seat.cleared);
        let still = |task: &TaskId| cleared.is_some_and(|cleared| cleared.contains(task));
        NetworkChanges {
            networks: dirty.networks.iter().map(|(id, extent)| self.delta(node, id, extent)).collect(),
            cleared_tasks: dirty.cleared.iter().filter(|task| still(task)).map(ToString::to_string).collect(),
            ..self.header(node)
        }
    }

    fn header(&self, node: &NodeId) -> NetworkChanges {
        let place = self.nodes.get(node).and_then(|seat| seat.place.as_ref());
        NetworkChanges {
            revision: self.version.0,
            node_index: place.map(|place| place.index).unwrap_or_default(),
            vxlan_port: self.vxlan_port,
            tunnel_epochs: tunnel_epochs(&self.epochs),
            ..NetworkChanges::default()
        }
    }

    fn delta(&self, node: &NodeId, id: &NetworkId, extent: &Extent) -> NetworkDelta {
        match (self.networks.get(id).filter(|net| self.has_interest(node, net)), extent) {
            (None, _) => NetworkDelta { network_id: id.to_string(), removed: true, ..NetworkDelta::default() },
            (Some(net), Extent::Whole) => self.whole(node, id, net),
            (Some(net), Extent::Parts(parts)) => self.parts(node, id, net, parts),
        }
    }

    fn whole(&self, node: &NodeId, id: &NetworkId, net: &Net) -> NetworkDelta {
        NetworkDelta {
            network_id: id.to_string(),
            complete: true,
            network: net.network.as_ref().map(|network| encoded(network)).unwrap_or_default(),
            peers: self.interested(net).filter_map(|peer| self.peer(node, id, net, peer)).collect(),
            endpoints: net.hosts.values().flatten().filter_map(|task| self.endpoint(id, task)).collect(),
            services: net.services.iter().filter_map(|service| self.service(id, net, service)).collect(),
            ..NetworkDelta::default()
        }
    }

    fn parts(&self, node: &NodeId, id: &NetworkId, net: &Net, parts: &Parts) -> NetworkDelta {
        let mut delta = NetworkDelta { network_id: id.to_string(), ..NetworkDelta::default() };
        if parts.network {
            delta.network = net.network.as_ref().map(|network| encoded(network)).unwrap_or_default();
        }
        for number in &parts.peers {
            let peer = self.numbers.get(number).filter(|peer| self.has_interest(peer, net));
            match peer.and_then(|peer| self.peer(node, id, net, peer)) {
                Some(peer) => delta.peers.push(peer),
                None => delta.removed_peers.push(*number),
            }
        }
        for task in &parts.endpoints {
            match self.endpoint(id, task) {
                Some(endpoint) => delta.endpoints.push(endpoint),
                None => delta.removed_endpoints.push(task.to_string()),
            }
        }
        for service in &parts.services {
            match self.service(id, net, service) {
                Some(entry) => delta.services.push(entry),
                None => delta.removed_services.push(service.to_string()),
            }
        }
        delta
    }

    /// A peer, if anything can pass between it and the node. On the ingress network that is so when one of them has a task there:
    /// a thousand nodes that only pass connections on need not know each other.
    fn peer(&self, node: &NodeId, id: &NetworkId, net: &Net, peer: &NodeId) -> Option<NetworkPeer> {
        if net.ingress && node != peer && !net.hosts.contains_key(node) && !net.hosts.contains_key(peer) {
            return None;
        }
        let NodeOverlay { index, underlay, underlay_mtu, tunnel_keys, .. } = self.nodes.get(peer)?.place.clone()?;
        let is_encrypted = net.network.as_ref().is_some_and(|network| network.is_encrypted());
        let keys = if is_encrypted { tunnel_keys.into_iter().map(tunnel_key).collect() } else { Vec::new() };
        Some(NetworkPeer { node_index: index, node_id: peer.to_string(), underlay, mac: mac(peer, id), underlay_mtu, keys })
    }

    /// An endpoint whose node can be reached.
    fn endpoint(&self, id: &NetworkId, task: &TaskId) -> Option<NetworkEndpoint> {
        let task = self.tasks.get(task)?;
        let seat = self.nodes.get(host(task)?)?;
        endpoint(task, id, seat.place.as_ref()?.index, &seat.facts)
    }

    fn service(&self, id: &NetworkId, net: &Net, service: &ServiceId) -> Option<NetworkServiceEntry> {
        let member = self.services.get(service)?;
        Some(service_entry(&member.service, id, net.ingress, member.networks.get(id)?.clone()))
    }
}
