//! A manager's message about networks, parsed. What cannot be understood costs itself only, and is logged.

use super::convert::port;
use super::picture::{Changes, Delta, Epochs, PeerKey, PeerNode, Readiness, SpannedPort, SpannedService, SpannedTask};
use ipnet::IpNet;
use prost::Message;
use skep_proto::{FromWire, skep, v1};
use skep_types::{Network, PortConfig};
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
    let epochs = message.tunnel_epochs.map(epochs).transpose().map_err(|why| unclear.push(why)).ok().flatten();
    let (revision, complete, node_index) = (message.revision, message.complete, message.node_index);
    (Changes { revision, complete, networks, cleared, node_index, vxlan_port, epochs }, unclear)
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
        peers: peers(wire.peers, unclear),
        tasks: all(wire.endpoints, unclear, task),
        services: wire.services.into_iter().filter_map(|wire| service(wire, unclear)).collect(),
        removed_peers: wire.removed_peers,
        removed_tasks: all(wire.removed_endpoints, unclear, |id| read("removed_endpoints", &id)),
        removed_services: all(wire.removed_services, unclear, |id| read("removed_services", &id)),
        ..Delta::of(id)
    })
}

fn epochs(wire: skep::TunnelEpochs) -> Result<Epochs, Unclear> {
    let skep::TunnelEpochs { oldest, sending, newest } = wire;
    let epochs = Epochs { oldest, sending, newest };
    let is_clear = oldest > 0 && (oldest..=oldest.saturating_add(1)).contains(&newest) && epochs.all().contains(&sending);
    let bad =
        || Unclear { field: "tunnel_epochs", value: format!("{oldest}, {sending}, {newest}"), reason: "not one or two epochs".into() };
    is_clear.then_some(epochs).ok_or_else(bad)
}

fn tunnel_key(wire: &skep::TunnelKey) -> Result<PeerKey, Unclear> {
    let bad = |reason: &str| Unclear { field: "peers.keys", value: format!("epoch {}", wire.epoch), reason: reason.into() };
    let public = wire.public_key.as_slice().try_into().map_err(|_| bad("not 32 bytes"))?;
    Ok(PeerKey { epoch: wire.epoch, public, port: port(wire.port).ok_or_else(|| bad("no port"))? })
}

fn network(id: &str, bytes: &[u8]) -> Result<Arc<Network>, Unclear> {
    let bad = |reason: String| Unclear { field: "network", value: id.to_owned(), reason };
    let wire = v1::Network::decode(bytes).map_err(|error| bad(error.to_string()))?;
    Ok(Arc::new(Network::from_wire(wire).map_err(|error| bad(error.to_string()))?))
}

/// A peer whose keys are not understood is one without: it gets nothing rather than anything in clear.
fn peers(list: Vec<skep::NetworkPeer>, unclear: &mut Vec<Unclear>) -> Vec<PeerNode> {
    let mut nodes = Vec::new();
    for wire in list {
        let keys = all(wire.keys.iter().collect(), unclear, tunnel_key);
        match peer(&wire) {
            Ok(node) => nodes.push(PeerNode { keys: [keys.first().copied(), keys.get(1).copied()], ..node }),
            Err(why) => unclear.push(why),
        }
    }
    nodes
}

fn peer(wire: &skep::NetworkPeer) -> Result<PeerNode, Unclear> {
    let bad = || Unclear { field: "peers.mac", value: format!("{:?}", wire.mac), reason: "not 6 bytes".into() };
    let mac = wire.mac.as_slice().try_into().map_err(|_| bad())?;
    Ok(PeerNode {
        index: wire.node_index,
        underlay: read("peers.underlay", &wire.underlay)?,
        mac,
        keys: [None; 2],
        mtu: wire.underlay_mtu,
        path: 0,
    })
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

fn service(wire: skep::NetworkServiceEntry, unclear: &mut Vec<Unclear>) -> Option<SpannedService> {
    let ports = all(wire.ports, unclear, service_port).into_iter().flatten().collect();
    let service = || {
        Ok(SpannedService {
            id: read("services.service_id", &wire.service_id)?,
            name: wire.name,
            aliases: wire.aliases,
            virtual_ips: wire.virtual_ips.iter().map(|text| read("services.virtual_ips", text)).collect::<Result<_, _>>()?,
            ports,
        })
    };
    service().map_err(|why| unclear.push(why)).ok()
}

/// One without a target leads nowhere. One of which not all is understood is left out: it may be meant for fewer than all.
fn service_port(wire: skep::NetworkPort) -> Result<Option<SpannedPort>, Unclear> {
    let skep::NetworkPort { name, protocol, target_port, published_port, address, interface, affinity, allow } = wire;
    // As in docker.swarmkit.v1.PortConfig; a number that is none of an enum's is not one there either.
    let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let (protocol, affinity) = (number(protocol), number(affinity));
    let wire = v1::PortConfig { name, protocol, target_port, published_port, publish_mode: 0, address, interface, affinity, allow };
    let value = format!("{published_port}:{target_port}");
    let config = PortConfig::from_wire(wire).map_err(|error| Unclear { field: "services.ports", value, reason: error.to_string() })?;
    let PortConfig { name, protocol, place, affinity, allow, .. } = config;
    let target = port(config.target_port);
    Ok(target.map(|target| SpannedPort { name, protocol, target, published: port(config.published_port), place, affinity, allow }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixtures::{overlay, remote, service1};
    use skep_proto::ToWire;
    use skep_types::{NetworkId, Protocol, PublishPlace, TaskId};

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
            tunnel_epochs: Some(skep::TunnelEpochs { oldest: 4, sending: 4, newest: 5 }),
            ..Default::default()
        };
        let (changes, unclear) = changes(message);
        assert_eq!(unclear, []);
        assert_eq!((changes.revision, changes.complete, changes.node_index, changes.vxlan_port), (5, true, 1, 4789));
        let delta = &changes.networks[0];
        assert_eq!(delta.network.as_ref().unwrap().spec.annotations.name, "back");
        let key = PeerKey { epoch: 4, public: [7; 32], port: 51820 };
        assert_eq!(delta.peers, [PeerNode { keys: [Some(key), None], mtu: 9000, ..crate::network::fixtures::peer(2) }]);
        assert_eq!(changes.epochs, Some(Epochs { oldest: 4, sending: 4, newest: 5 }));
        assert_eq!(delta.tasks, [remote(2, 3, 2, Readiness::Ready)]);
        let published: Vec<_> = delta.services[0].ports.iter().map(|port| (port.protocol, port.target, port.published)).collect();
        assert_eq!(published, [(Protocol::Udp, 80, Some(8080)), (Protocol::Udp, 80, None)]);
        assert_eq!(delta.removed_peers, [4]);
    }

    #[test]
    fn a_port_of_which_not_all_is_understood_is_left_out() {
        let sound = skep::NetworkPort {
            target_port: 80,
            published_port: 8080,
            interface: "eth1".into(),
            allow: vec!["192.0.2.0/24".into()],
            affinity: 1,
            ..Default::default()
        };
        let ports = vec![
            sound.clone(),
            skep::NetworkPort { allow: vec!["all but one".into()], ..sound.clone() },
            skep::NetworkPort { affinity: 9, ..sound.clone() },
            skep::NetworkPort { protocol: u32::MAX, ..sound },
        ];
        let entry = skep::NetworkServiceEntry { service_id: service1().to_string(), ports, ..Default::default() };
        let delta = skep::NetworkDelta { network_id: NetworkId::for_test(2).to_string(), services: vec![entry], ..Default::default() };
        let (changes, unclear) = changes(skep::NetworkChanges { networks: vec![delta], ..Default::default() });
        let [port] = &changes.networks[0].services[0].ports[..] else { panic!("{changes:?}") };
        assert_eq!((&port.place, port.allow.len()), (&PublishPlace::Interface("eth1".into()), 1));
        assert_eq!(unclear.len(), 3);
        assert!(unclear[0].to_string().starts_with("services.ports \"8080:80\": allow[0]: "), "{}", unclear[0]);
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

    #[test]
    fn keys_that_are_not_understood_leave_a_peer_without() {
        let key = |epoch, public_key, port| skep::TunnelKey { epoch, public_key, port };
        let keys = vec![key(4, vec![7; 31], 51820), key(5, vec![7; 32], 0), key(6, vec![7; 32], 51820)];
        let peer =
            skep::NetworkPeer { node_index: 2, underlay: "198.18.0.2".into(), mac: vec![2, 0, 0, 0, 0, 2], keys, ..Default::default() };
        let mut unclear = Vec::new();
        let peers = peers(vec![peer], &mut unclear);
        assert_eq!(peers[0].keys, [Some(PeerKey { epoch: 6, public: [7; 32], port: 51820 }), None]);
        let words: Vec<String> = unclear.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["peers.keys \"epoch 4\": not 32 bytes", "peers.keys \"epoch 5\": no port"]);
        for (oldest, sending, newest) in [(0, 0, 0), (4, 4, 6), (4, 6, 5), (5, 5, 4)] {
            assert!(epochs(skep::TunnelEpochs { oldest, sending, newest }).is_err());
        }
    }
}
