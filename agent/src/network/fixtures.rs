//! Networks and tasks for tests.

use super::held::{Held, Phase};
use super::picture::{NetworkPicture, PeerNode, Readiness, SpannedService, SpannedTask};
use crate::testing::task;
use skep_types::{
    Driver, Endpoint, IpamConfig, IpamOptions, Network, NetworkAttachment, NetworkId, NetworkSpec, PortConfig, PublishMode, ServiceId,
    TaskId, VXLAN_IDS_OPTION, VirtualIp,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Subnet `10.0.<number>.0/24`, VXLAN id from 4096.
pub fn overlay(number: u64, name: &str, ingress: bool) -> Arc<Network> {
    let mut network = Network::new(NetworkId::for_test(number), NetworkSpec { ingress, ..NetworkSpec::default() });
    network.spec.annotations.name = name.into();
    let options = [(VXLAN_IDS_OPTION.to_owned(), format!("{}", 4095 + number))].into();
    network.driver_state = Some(Driver { name: "overlay".into(), options });
    let config = IpamConfig { subnet: format!("10.0.{number}.0/24"), gateway: format!("10.0.{number}.1"), ..IpamConfig::default() };
    network.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
    Arc::new(network)
}

pub fn attached(network: Arc<Network>, address: &str) -> NetworkAttachment {
    NetworkAttachment { network, addresses: vec![address.into()], aliases: Vec::new(), driver_attachment_opts: Default::default() }
}

pub fn published(target: u32, published: u32, mode: PublishMode) -> PortConfig {
    PortConfig { target_port: target, published_port: published, publish_mode: mode, ..PortConfig::default() }
}

/// A task of `service1` on `ingress` (1) and `back` (2) with the virtual address 10.0.2.2 and port 80 published as 8080.
pub fn web(number: u64, is_serving: bool) -> Held {
    let mut task = task(number, "web");
    task.networks = vec![
        attached(overlay(1, "ingress", true), &format!("10.0.1.{}/24", 10 + number)),
        attached(overlay(2, "back", false), &format!("10.0.2.{}/24", 10 + number)),
    ];
    let vip = VirtualIp { network_id: NetworkId::for_test(2), addr: "10.0.2.2/24".into() };
    task.endpoint =
        Some(Endpoint { ports: vec![published(80, 8080, PublishMode::Ingress)], virtual_ips: vec![vip], ..Endpoint::default() });
    let phase = if is_serving { Phase::Serving } else { Phase::Attached };
    Held { task: Arc::new(task), phase, host_ports: Vec::new(), hostname: None, bridge: None }
}

pub fn table(list: Vec<Held>) -> BTreeMap<TaskId, Held> {
    list.into_iter().map(|held| (held.task.id.clone(), held)).collect()
}

pub fn service1() -> ServiceId {
    "service1".parse().unwrap()
}

/// `back` with the service `web` on it, this node as 1, and the nodes given.
pub fn back(peers: &[u32], tasks: &[(u64, u32, Readiness)]) -> NetworkPicture {
    let service = SpannedService {
        id: service1(),
        name: "web".into(),
        aliases: vec!["www".into()],
        virtual_ips: vec!["10.0.2.2".parse().unwrap()],
        ports: Vec::new(),
    };
    let mut picture = NetworkPicture::new(overlay(2, "back", false));
    picture.peers = peers.iter().map(|index| (*index, peer(*index))).collect();
    picture.tasks =
        tasks.iter().map(|(number, node, readiness)| remote(2, *number, *node, *readiness)).map(|t| (t.id.clone(), t)).collect();
    picture.services = [(service.id.clone(), service)].into();
    picture
}

pub fn peer(index: u32) -> PeerNode {
    let last = u8::try_from(index).unwrap();
    PeerNode { index, underlay: [198, 18, 0, last].into(), mac: [2, 0, 0, 0, 0, last], keys: [None; 2], mtu: 0, path: 0 }
}

pub fn remote(network: u64, number: u64, node_index: u32, readiness: Readiness) -> SpannedTask {
    SpannedTask {
        id: TaskId::for_test(number),
        service: Some(service1()),
        slot: number,
        node_index,
        addresses: vec![format!("10.0.{network}.{}", 10 + number).parse().unwrap()],
        name: format!("web.{number}.{}", TaskId::for_test(number)),
        hostnames: vec![format!("host{number}")],
        readiness,
    }
}
