//! Addresses and sizes within the tunnels. Pure.

use super::device::{Device, device_name};
use super::error::SecureError;
use super::wanted::{Encryption, Tunnel};
use crate::plan::{Link, Route, RouteKind, State};
use crate::wanted::Overlay;
use ipnet::{IpNet, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

/// Where nodes are within the tunnels: a unique local range (RFC 4193, its 40 bits drawn once), the same in every cluster,
/// for nobody outside of the tunnels sees it.
pub(crate) const RANGE: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd4e, 0x9c1b, 0x7a35, 0, 0, 0, 0, 0), 64);

/// WireGuard's part of a packet: outer IP header, UDP 8, message header 16, tag 16 (whitepaper §5.4.6).
const WIREGUARD: u32 = 8 + 16 + 16;
const IPV4: u32 = 20;
const IPV6: u32 = 40;
/// Within the tunnel: IPv6, UDP 8, VXLAN 8 (RFC 7348 §5), the Ethernet header 14 of the packet it carries.
const VXLAN: u32 = IPV6 + 8 + 8 + 14;
/// RFC 8200 §5: no IPv6 on a smaller link.
const LEAST: u32 = 1280;

/// A node's address within the tunnels.
pub(crate) fn inner(node_index: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(RANGE.network()) | u128::from(node_index))
}

/// What packets may measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Within a tunnel.
    pub tunnel: u32,
    /// Of a task on an encrypted network: its network's `mtu` must not be larger.
    pub network: u32,
}

/// The sizes where packets between nodes may measure `path_mtu` bytes, over IPv6 or only IPv4; `None` where that is too
/// little: the tunnels speak IPv6, which wants 1280.
#[must_use]
pub fn sizes(path_mtu: u32, over_ipv6: bool) -> Option<Sizes> {
    let tunnel = path_mtu.checked_sub(WIREGUARD + if over_ipv6 { IPV6 } else { IPV4 })?;
    (tunnel >= LEAST).then_some(Sizes { tunnel, network: tunnel - VXLAN })
}

/// The sizes of these tunnels, or why there can be none.
pub(crate) fn check(wanted: &Encryption) -> Result<Sizes, SecureError> {
    let bad = |reason: String| Err(SecureError::Bad(reason));
    if wanted.node_index == 0 {
        return bad("this node has the number 0; they begin with 1".into());
    }
    if wanted.tunnels.is_empty() {
        return bad("no keys are known yet with which packets to other nodes could be encrypted".into());
    }
    if !wanted.tunnels.iter().any(|tunnel| tunnel.epoch == wanted.sending) {
        return bad(format!("packets are to leave by the tunnel of epoch {}, which is none", wanted.sending.0));
    }
    let distinct = |of: &dyn Fn(&Tunnel) -> u32| wanted.tunnels.iter().map(of).collect::<BTreeSet<_>>().len() == wanted.tunnels.len();
    if !distinct(&|tunnel| lane(tunnel).into()) || !distinct(&|tunnel| tunnel.port.into()) {
        return bad("two tunnels at once want epochs that follow each other, and a port each".into());
    }
    for tunnel in &wanted.tunnels {
        let (mut indexes, mut keys) = (BTreeSet::from([wanted.node_index]), BTreeSet::from([tunnel.key.public()]));
        for peer in &tunnel.peers {
            if peer.node_index == 0 || !indexes.insert(peer.node_index) || !keys.insert(peer.key) {
                return bad(format!("node {} has the number or the key of another one in epoch {}", peer.node_index, tunnel.epoch.0));
            }
        }
    }
    let over_ipv6 = wanted.tunnels.iter().flat_map(|tunnel| &tunnel.peers).any(|peer| peer.endpoint.is_ipv6());
    match sizes(wanted.path_mtu, over_ipv6) {
        Some(sizes) => Ok(sizes),
        None => {
            let least = LEAST + WIREGUARD + if over_ipv6 { IPV6 } else { IPV4 };
            bad(format!("packets between nodes may measure {} bytes, and encrypted ones take at least {least}", wanted.path_mtu))
        }
    }
}

/// Which of the two devices a tunnel has: epochs take turns.
pub(crate) fn lane(tunnel: &Tunnel) -> u8 {
    u8::from(tunnel.epoch.0 % 2 == 1)
}

/// A network's nodes as they are over the tunnels: with their addresses within them, so that there is no other way.
pub(crate) fn over_tunnels(mut overlay: Overlay) -> Overlay {
    for node in std::iter::once(&mut overlay.this).chain(&mut overlay.peers) {
        node.underlay = IpAddr::V6(inner(node.node_index));
    }
    overlay
}

/// Whether it is an address within the tunnels.
pub(crate) fn is_inner(address: IpAddr) -> bool {
    IpNet::V6(RANGE).contains(&address)
}

/// The devices of these tunnels.
pub(crate) fn devices(wanted: &Encryption, prefix: &str, sizes: Sizes) -> Vec<Device> {
    wanted.tunnels.iter().map(|tunnel| Device::new(device_name(prefix, tunnel), tunnel, sizes)).collect()
}

/// What the host has for its tunnels: this node's address on each, a route to each peer by the one that is sent by, and none
/// to anybody else there, lest the default route is taken.
pub(crate) fn host(wanted: &Encryption, prefix: &str, sizes: Sizes) -> State {
    let mut state = State::default();
    let single = |index| IpNet::new(IpAddr::V6(inner(index)), 128).expect("128 is a prefix length of IPv6");
    // The one that is sent by comes last, and takes the place of the other's routes.
    let (sending, receiving): (Vec<&Tunnel>, _) = wanted.tunnels.iter().partition(|tunnel| tunnel.epoch == wanted.sending);
    let mut ways = BTreeMap::new();
    for tunnel in receiving.into_iter().chain(sending) {
        let name = device_name(prefix, tunnel);
        ways.extend(tunnel.peers.iter().map(|peer| (peer.node_index, name.clone())));
        let link = Link { mtu: Some(sizes.tunnel), up: true, addresses: [single(wanted.node_index)].into(), ..Link::default() };
        state.links.insert(name, link);
    }
    let way = |(index, link)| Route::new(single(index), RouteKind::Through { link, gateway: None });
    state.routes = ways.into_iter().map(way).collect();
    state.routes.insert(nowhere());
    state
}

/// The route that keeps packets to nodes without a tunnel.
pub(crate) fn nowhere() -> Route {
    Route::new(IpNet::V6(RANGE), RouteKind::Unreachable)
}

/// Of what was read on the host, the part that [`host`] speaks of.
pub(crate) fn part_of(read: State) -> State {
    let routes = read.routes.into_iter().filter(|route| route.link().is_some() || *route == nowhere()).collect();
    State { links: read.links, routes, ..State::default() }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{encryption, peer, tunnel};
    use super::*;

    #[test]
    fn sizes_are_what_the_headers_leave() {
        assert_eq!(sizes(1500, false), Some(Sizes { tunnel: 1440, network: 1370 }));
        assert_eq!(sizes(1500, true), Some(Sizes { tunnel: 1420, network: 1350 }));
        assert_eq!(sizes(9000, false), Some(Sizes { tunnel: 8940, network: 8870 }));
        assert_eq!((sizes(1339, false), sizes(1359, true), sizes(3, true)), (None, None, None));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let good = encryption(1, vec![tunnel(4, &[2, 3]), tunnel(5, &[2])]);
        assert_eq!(check(&good).unwrap(), Sizes { tunnel: 1440, network: 1370 });
        let refused = |change: &dyn Fn(&mut Encryption)| {
            let mut bad = good.clone();
            change(&mut bad);
            check(&bad).unwrap_err().to_string()
        };
        assert!(refused(&|bad| bad.node_index = 0).contains("begin with 1"));
        assert!(refused(&|bad| bad.sending.0 = 9).contains("epoch 9"));
        assert!(refused(&|bad| bad.tunnels[1].epoch.0 = 6).contains("follow each other"));
        assert!(refused(&|bad| bad.tunnels[1].port = bad.tunnels[0].port).contains("a port each"));
        assert!(refused(&|bad| bad.tunnels[0].peers.push(peer(1, 4))).contains("node 1 has"), "this node is no peer of its own");
        assert!(refused(&|bad| bad.tunnels[0].peers[0].key = bad.tunnels[0].key.public()).contains("node 2 has"));
        assert!(refused(&|bad| bad.path_mtu = 1300).contains("at least 1340"));
        assert!(refused(&|bad| bad.tunnels.clear()).contains("no keys are known yet"));
    }

    #[test]
    fn packets_go_by_the_tunnel_that_is_sent_by_and_to_who_is_not_in_it_by_the_other() {
        let mut wanted = encryption(1, vec![tunnel(4, &[2, 3]), tunnel(5, &[2])]);
        let sizes = sizes(1500, false).unwrap();
        let ways = |wanted: &Encryption| {
            let state = host(wanted, "w", sizes);
            assert_eq!(state.links.keys().collect::<Vec<_>>(), ["w0", "w1"]);
            let by = |index: u32| state.routes.iter().find(|route| route.to.addr() == IpAddr::V6(inner(index))).unwrap().link().unwrap();
            (by(2).to_owned(), by(3).to_owned())
        };
        assert_eq!(ways(&wanted), ("w0".into(), "w0".into()));
        wanted.sending.0 = 5;
        assert_eq!(ways(&wanted), ("w1".into(), "w0".into()));
    }

    #[test]
    fn where_there_is_no_tunnel_there_is_no_way() {
        let wanted = encryption(1, vec![tunnel(4, &[])]);
        let state = host(&wanted, "w", sizes(1500, true).unwrap());
        assert_eq!(state.routes, [nowhere()].into());
        assert_eq!(part_of(state.clone()), state);
    }

    #[test]
    fn nodes_are_where_their_numbers_say() {
        assert_eq!(inner(1), "fd4e:9c1b:7a35::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(inner(0x0102_0304), "fd4e:9c1b:7a35::102:304".parse::<Ipv6Addr>().unwrap());
        assert!(RANGE.contains(&inner(u32::MAX)));
    }
}
