//! A manager's message about networks, parsed. What cannot be understood costs itself only, and is logged.

use super::convert::port;
use super::picture::{Changes, Delta, PeerNode, Readiness, SpannedPort, SpannedService, SpannedTask};
use ipnet::IpNet;
use prost::Message;
use skep_proto::{FromWire, skep, v1};
use skep_types::{Network, Protocol};
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// Why a part of a message is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?}: {reason}")]
pub struct Unclear {
    field: &'static str,
    value: String,
    reason: String,
}

fn read<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<T, Unclear> {
    text.parse().map_err(|error: T::Err| Unclear { field, value: text.to_owned(), reason: error.to_string() })
}

/// With what was left out.
pub fn changes(message: skep::NetworkChanges) -> (Changes, Vec<Unclear>) {
    let mut unclear = Vec::new();
    let networks = message.networks.into_iter().filter_map(|wire| delta(wire, &mut unclear)).collect();
    let cleared = all(message.cleared_tasks, &mut unclear, |id| read("cleared_tasks", &id));
    let vxlan_port = u16::try_from(message.vxlan_port).unwrap_or_default();
    let (revision, complete, node_index) = (message.revision, message.complete, message.node_index);
    (Changes { revision, complete, networks, cleared, node_index, vxlan_port }, unclear)
}

fn all<W, T>(list: Vec<W>, unclear: &mut Vec<Unclear>, parse: impl Fn(W) -> Result<T, Unclear>) -> Vec<T> {
    list.into_iter().filter_map(|wire| parse(wire).map_err(|why| unclear.push(why)).ok()).collect()
}

fn delta(wire: skep::NetworkDelta, unclear: &mut Vec<Unclear>) -> Option<Delta> {
    let id = read("network_id", &wire.network_id).map_err(|why| unclear.push(why)).ok()?;
    let network = (!wire.network.is_empty()).then(|| network(&wire.network_id, &wire.network)).transpose();
    Some(Delta {
        removed: wire.removed,
        complete: wire.complete,
        network: network.map_err(|why| unclear.push(why)).ok().flatten(),
        peers: all(wire.peers, unclear, |wire| peer(&wire)),
        tasks: all(wire.endpoints, unclear, task),
        services: all(wire.services, unclear, service),
        removed_peers: wire.removed_peers,
        removed_tasks: all(wire.removed_endpoints, unclear, |id| read("removed_endpoints", &id)),
        removed_services: all(wire.removed_services, unclear, |id| read("removed_services", &id)),
        ..Delta::of(id)
    })
}

fn network(id: &str, bytes: &[u8]) -> Result<Arc<Network>, Unclear> {
    let bad = |reason: String| Unclear { field: "network", value: id.to_owned(), reason };
    let wire = v1::Network::decode(bytes).map_err(|error| bad(error.to_string()))?;
    Ok(Arc::new(Network::from_wire(wire).map_err(|error| bad(error.to_string()))?))
}

fn peer(wire: &skep::NetworkPeer) -> Result<PeerNode, Unclear> {
    let bad = || Unclear { field: "peers.mac", value: format!("{:?}", wire.mac), reason: "not 6 bytes".into() };
    let mac = wire.mac.as_slice().try_into().map_err(|_| bad())?;
    Ok(PeerNode { index: wire.node_index, underlay: read("peers.underlay", &wire.underlay)?, mac })
}

fn task(wire: skep::NetworkEndpoint) -> Result<SpannedTask, Unclear> {
    use skep::network_endpoint::Readiness as Wire;
    let address = |text: &String| match text.split_once('/') {
        Some(_) => read::<IpNet>("endpoints.addresses", text).map(|net| net.addr()),
        None => read::<IpAddr>("endpoints.addresses", text),
    };
    Ok(SpannedTask {
        id: read("endpoints.task_id", &wire.task_id)?,
        service: optional("endpoints.service_id", &wire.service_id)?,
        slot: wire.slot,
        node_index: wire.node_index,
        addresses: wire.addresses.iter().map(address).collect::<Result<_, _>>()?,
        name: wire.name,
        hostnames: wire.hostnames,
        readiness: match Wire::try_from(wire.readiness) {
            Ok(Wire::Planned) => Readiness::Planned,
            Ok(Wire::Starting) => Readiness::Starting,
            Ok(Wire::Ready) => Readiness::Ready,
            // A state of a later manager: what leads nowhere does no harm.
            Ok(Wire::Leaving) | Err(_) => Readiness::Leaving,
        },
    })
}

fn optional<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<Option<T>, Unclear> {
    if text.is_empty() { Ok(None) } else { read(field, text).map(Some) }
}

fn service(wire: skep::NetworkServiceEntry) -> Result<SpannedService, Unclear> {
    let ports = wire.ports.into_iter().filter_map(|wire| {
        // As in docker.swarmkit.v1.PortConfig; one without a number leads nowhere.
        let protocol = match wire.protocol {
            0 => Protocol::Tcp,
            1 => Protocol::Udp,
            2 => Protocol::Sctp,
            _ => return None,
        };
        Some(SpannedPort { name: wire.name, protocol, target: port(wire.target_port)?, published: port(wire.published_port) })
    });
    Ok(SpannedService {
        id: read("services.service_id", &wire.service_id)?,
        name: wire.name,
        aliases: wire.aliases,
        virtual_ips: wire.virtual_ips.iter().map(|text| read("services.virtual_ips", text)).collect::<Result<_, _>>()?,
        ports: ports.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixtures::{overlay, remote, service1};
    use skep_proto::ToWire;
    use skep_types::{NetworkId, TaskId};

    fn endpoint(number: u64, address: &str) -> skep::NetworkEndpoint {
        skep::NetworkEndpoint {
            task_id: TaskId::for_test(number).to_string(),
            service_id: service1().to_string(),
            slot: number,
            node_index: 2,
            addresses: vec![address.into()],
            name: format!("web.{number}.{}", TaskId::for_test(number)),
            hostnames: vec![format!("host{number}")],
            readiness: skep::network_endpoint::Readiness::Ready as i32,
        }
    }

    #[test]
    fn what_a_manager_says_is_understood_field_by_field() {
        let port = skep::NetworkPort { name: "http".into(), protocol: 1, target_port: 80, published_port: 8080, ..Default::default() };
        let hidden = skep::NetworkPort { published_port: 0, ..port.clone() };
        let delta = skep::NetworkDelta {
            network_id: NetworkId::for_test(2).to_string(),
            complete: true,
            network: (*overlay(2, "back", false)).clone().to_wire().encode_to_vec(),
            peers: vec![skep::NetworkPeer {
                node_index: 2,
                node_id: "n2".into(),
                underlay: "198.18.0.2".into(),
                mac: vec![2, 0, 0, 0, 0, 2],
                underlay_mtu: 9000,
                keys: vec![skep::TunnelKey { epoch: 4, public_key: vec![7; 32], port: 51820 }],
            }],
            endpoints: vec![endpoint(3, "10.0.2.13/24")],
            services: vec![skep::NetworkServiceEntry {
                service_id: service1().to_string(),
                name: "web".into(),
                aliases: vec!["www".into()],
                virtual_ips: vec!["10.0.2.2".into()],
                ports: vec![port, hidden],
            }],
            removed_peers: vec![4],
            ..Default::default()
        };
        let message = skep::NetworkChanges {
            revision: 5,
            complete: true,
            networks: vec![delta],
            node_index: 1,
            vxlan_port: 4789,
            ..Default::default()
        };
        let (changes, unclear) = changes(message);
        assert_eq!(unclear, []);
        assert_eq!((changes.revision, changes.complete, changes.node_index, changes.vxlan_port), (5, true, 1, 4789));
        let delta = &changes.networks[0];
        assert_eq!(delta.network.as_ref().unwrap().spec.annotations.name, "back");
        assert_eq!(delta.peers, [crate::network::fixtures::peer(2)]);
        assert_eq!(delta.tasks, [remote(2, 3, 2, Readiness::Ready)]);
        let published: Vec<_> = delta.services[0].ports.iter().map(|port| (port.protocol, port.target, port.published)).collect();
        assert_eq!(published, [(Protocol::Udp, 80, Some(8080)), (Protocol::Udp, 80, None)]);
        assert_eq!(delta.removed_peers, [4]);
    }

    #[test]
    fn what_is_not_understood_costs_itself_only() {
        let id = NetworkId::for_test(2).to_string();
        let endpoints = vec![endpoint(3, "nowhere"), endpoint(4, "10.0.2.14")];
        let peers = vec![skep::NetworkPeer { node_index: 2, underlay: "198.18.0.2".into(), mac: vec![2], ..Default::default() }];
        let delta = skep::NetworkDelta { network_id: id, endpoints, peers, ..Default::default() };
        let (changes, unclear) = changes(skep::NetworkChanges { networks: vec![delta], ..Default::default() });
        assert_eq!(changes.networks[0].tasks.len(), 1);
        let words: Vec<String> = unclear.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["peers.mac \"[2]\": not 6 bytes", "endpoints.addresses \"nowhere\": invalid IP address syntax"]);
    }
}
