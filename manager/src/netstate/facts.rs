//! What of a task, a service, a node and a network its peers have to know. Pure.

use prost::Message as _;
use skep_proto::skep::network_endpoint::Readiness;
use skep_proto::skep::{NetworkEndpoint, NetworkPort, NetworkServiceEntry};
use skep_proto::{ToWire as _, skep, v1};
use skep_types::template::{NodeFacts, wanted_hostname};
use skep_types::{
    Network, NetworkAttachment, NetworkDriver, NetworkId, Node, NodeId, NodeOverlay, NodeState, PortConfig, PublishMode, Service, Task,
    TaskId, TaskState, TunnelEpochs, TunnelKey,
};
use std::net::IpAddr;

/// UDP port of VXLAN where the cluster names none (RFC 7348).
pub(super) const DEFAULT_VXLAN_PORT: u32 = 4789;

/// Bytes of a MAC address after the first.
const MAC_TAIL: usize = 5;

/// The address of a node's VXLAN device in a network. It follows from ids that are random and never used again, so no address
/// stands for two devices over time; the first byte says: locally administered, one receiver (IEEE 802).
pub(super) fn mac(node: &NodeId, network: &NetworkId) -> Vec<u8> {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{node} {network}").as_bytes());
    let mut mac = vec![0x02];
    mac.extend_from_slice(&digest.as_ref()[..MAC_TAIL]);
    mac
}

/// The node a task is an endpoint on: from its assignment until it has ended.
pub(super) fn host(task: &Task) -> Option<&NodeId> {
    let state = task.status.state;
    task.node_id.as_ref().filter(|_| state >= TaskState::Assigned && state <= TaskState::Running)
}

/// Whether tasks on it have names on other nodes.
fn is_told_of(network: &Network) -> bool {
    skep_plan::is_overlay(network) || network.driver() == NetworkDriver::Macvlan
}

/// The networks a task is on whose nodes are told of it.
pub(super) fn networks(task: &Task) -> impl Iterator<Item = &NetworkAttachment> {
    task.networks.iter().filter(|attachment| is_told_of(&attachment.network))
}

pub(super) fn readiness(task: &Task) -> Readiness {
    // Jobs are wanted complete, which they become by running.
    let is_wanted = task.desired_state <= TaskState::Running || (task.desired_state == TaskState::Complete && task.job_iteration.is_some());
    match task.status.state {
        _ if !is_wanted => Readiness::Leaving,
        TaskState::Running => Readiness::Ready,
        TaskState::Starting => Readiness::Starting,
        _ => Readiness::Planned,
    }
}

/// A task as its peers on a network are told of it; `None` if it is not on it.
pub(super) fn endpoint(task: &Task, network: &NetworkId, node_index: u32, node: &NodeFacts) -> Option<NetworkEndpoint> {
    let attachment = networks(task).find(|attachment| attachment.network.id == *network)?;
    let mut hostnames: Vec<String> = own_hostname(task, node).into_iter().collect();
    if task.service_id.is_none() {
        hostnames.extend(attachment.aliases.iter().cloned());
    }
    Some(NetworkEndpoint {
        task_id: task.id.to_string(),
        service_id: task.service_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        slot: task.slot,
        node_index,
        addresses: attachment.addresses.clone(),
        name: task.name(),
        hostnames,
        readiness: readiness(task) as i32,
    })
}

/// The host name as the node will set it: the service's, or the beginning of the task's id.
fn own_hostname(task: &Task, node: &NodeFacts) -> Option<String> {
    match task.spec.container()?.hostname.as_str() {
        "" => Some(short_id(&task.id)),
        _ => wanted_hostname(task, node),
    }
}

fn short_id(id: &TaskId) -> String {
    id.as_str().chars().take(12).collect()
}

/// A service on a network.
pub(super) fn service_entry(service: &Service, network: &NetworkId, is_ingress: bool, aliases: Vec<String>) -> NetworkServiceEntry {
    let endpoint = service.endpoint.as_ref();
    let vips = endpoint.into_iter().flat_map(|endpoint| &endpoint.virtual_ips).filter(|vip| vip.network_id == *network);
    let ports = endpoint.into_iter().flat_map(|endpoint| &endpoint.ports);
    NetworkServiceEntry {
        service_id: service.id.to_string(),
        name: service.name().to_owned(),
        aliases,
        virtual_ips: vips.filter_map(|vip| bare(&vip.addr)).collect(),
        ports: ports
            .filter(|port| !is_ingress || port.publish_mode == PublishMode::Ingress)
            .map(|port| network_port(port, is_ingress))
            .collect(),
    }
}

fn network_port(port: &PortConfig, is_ingress: bool) -> NetworkPort {
    let told = NetworkPort {
        name: port.name.clone(),
        protocol: port.protocol.to_wire() as u32,
        target_port: port.target_port,
        ..NetworkPort::default()
    };
    if !is_ingress {
        return told;
    }
    let v1::PortConfig { published_port, address, interface, affinity, allow, .. } = port.to_wire();
    NetworkPort { published_port, address, interface, affinity: affinity as u32, allow, ..told }
}

fn bare(text: &str) -> Option<String> {
    text.split('/').next()?.parse::<IpAddr>().ok().map(|address| address.to_string())
}

/// A network as the original writes it, but for its versions and times, which are of no use to a node.
pub(super) fn encoded(network: &Network) -> Vec<u8> {
    let wire = v1::Network { meta: None, ..network.to_wire() };
    wire.encode_to_vec()
}

/// Whether nodes can have an interest in it.
pub(super) fn spans(network: &Network) -> bool {
    is_told_of(network) && network.driver_state.is_some() && network.ipam.is_some()
}

/// What peers are to know of a node that can be one; its number is not 0, its address not empty.
pub(super) fn place(node: &Node) -> Option<NodeOverlay> {
    let overlay = node.overlay.as_ref().filter(|overlay| overlay.index != 0 && !overlay.underlay.is_empty())?;
    Some(NodeOverlay { local_prefixes: Vec::new(), ..overlay.clone() })
}

pub(super) fn tunnel_key(key: TunnelKey) -> skep::TunnelKey {
    skep::TunnelKey { epoch: key.epoch, public_key: key.public, port: u32::from(key.port) }
}

/// `None` before there are any.
pub(super) fn tunnel_epochs(is: &TunnelEpochs) -> Option<skep::TunnelEpochs> {
    let (oldest, sending, newest) = (is.oldest, is.sending(), is.newest());
    (oldest != 0).then_some(skep::TunnelEpochs { oldest, sending, newest })
}

/// Whether the node's keys are all that changed.
pub(super) fn is_change_of_keys(before: &NodeOverlay, now: &NodeOverlay) -> bool {
    before.tunnel_keys != now.tunnel_keys && NodeOverlay { tunnel_keys: now.tunnel_keys.clone(), ..before.clone() } == *now
}

pub(super) fn is_down(node: &Node) -> bool {
    node.status.state == NodeState::Down
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unusual_about_a_port_is_told_on_the_ingress_network_only() {
        let port = PortConfig {
            published_port: 8080,
            target_port: 80,
            place: skep_types::PublishPlace::Address([192, 0, 2, 1].into()),
            affinity: skep_types::Affinity::Source,
            allow: vec!["192.0.2.0/24".parse().unwrap()],
            ..PortConfig::default()
        };
        let told = network_port(&port, true);
        assert_eq!((told.published_port, told.address.as_str(), told.interface.as_str(), told.affinity), (8080, "192.0.2.1", "", 1));
        assert_eq!(told.allow, ["192.0.2.0/24"]);
        assert_eq!(network_port(&port, false), NetworkPort { target_port: 80, ..NetworkPort::default() });
    }

    #[test]
    fn addresses_of_devices_are_local_and_differ_by_node_and_network() {
        let one = mac(&NodeId::for_test(1), &NetworkId::for_test(1));
        assert_eq!((one.len(), one[0]), (6, 0x02));
        assert_eq!(one, mac(&NodeId::for_test(1), &NetworkId::for_test(1)));
        assert_ne!(one, mac(&NodeId::for_test(2), &NetworkId::for_test(1)));
        assert_ne!(one, mac(&NodeId::for_test(1), &NetworkId::for_test(2)));
    }
}
