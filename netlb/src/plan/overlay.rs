//! What joins a sandbox to the sandboxes of the same network on other nodes.
//!
//! ```text
//!   vx0, fe80::1                                                vx0, fe80::2 of node 2
//!   neighbour  fe80::2 is 02:…:02                                       │
//!   forwarding 02:…:02 to 198.18.0.2          UDP 4789 of the hosts ────┘
//!   next hop 2 via fe80::2
//!   route 10.0.1.12/32 by next hop 2         one per task of node 2
//! ```
//! Nothing is learned or asked for: an address that no route names is nobody's.
//!
//! The way back (ingress only): a client's packet comes with the client's address from the node it entered by, so its
//! answer must go there and not where the client's address would lead. The sandbox's table keeps the entry node's number
//! as the connection's mark and puts it on the answers; per node there is a rule and a table with one route by the same
//! next hop. A first rule sends what has no mark past all of these.

use super::layout::{everywhere, single};
use super::namespace::{Forwarding, Link, MAIN, Neighbour, NextHop, Route, RouteKind, Rule, State, Vxlan, Which};
use crate::error::NetlbError;
use crate::names::OVERLAY_LINK;
use crate::wanted::{Endpoint, Location, Network, Overlay, Peer};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The routing table that leads back to node 1 is the one after this.
const WAY_BACK_TABLES: u32 = 1000;
const UNMARKED_PRIORITY: u32 = 900;
const WAY_BACK_PRIORITY: u32 = 1000;
/// Of the link-local addresses, which are all there is on the device.
const LINK_LOCAL_PREFIX: u8 = 64;

/// A node's address in every network.
fn link_local(node_index: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(0xfe80u16) << 112 | u128::from(node_index))
}

/// Refuses what cannot be: one bad entry must not take another node's place.
pub(crate) fn check(network: &Network, overlay: &Overlay) -> Result<(), NetlbError> {
    let bad = |reason: String| Err(NetlbError::BadOverlay { network: network.name.clone(), reason });
    let nodes = || std::iter::once(&overlay.this).chain(&overlay.peers);
    let (mut indexes, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for Peer { node_index, underlay, mac } in nodes() {
        if *node_index == 0 || *node_index > u32::MAX - WAY_BACK_TABLES {
            return bad(format!("a node has the number {node_index}; they begin with 1"));
        }
        if !indexes.insert(node_index) {
            return bad(format!("two nodes have the number {node_index}"));
        }
        if !macs.insert(mac) || mac.0[0] & 1 == 1 {
            return bad(format!("node {node_index} has the hardware address {mac}, which is another one's or a group's"));
        }
        if underlay.is_ipv4() != overlay.this.underlay.is_ipv4() {
            let this = overlay.this.underlay;
            return bad(format!("node {node_index} has the address {underlay} and this one {this}; give both one of the same family"));
        }
    }
    Ok(())
}

/// All that a sandbox has for other nodes.
pub(crate) fn overlay(network: &Network, overlay: &Overlay, endpoints: &[Endpoint], ipv6: bool) -> State {
    let mut state = State::default();
    let link = || OVERLAY_LINK.to_owned();
    let own = IpNet::new(link_local(overlay.this.node_index).into(), LINK_LOCAL_PREFIX).expect("64 is a prefix length of IPv6");
    let vxlan = Vxlan { vni: network.vni, port: overlay.port, underlay: overlay.this.underlay };
    state.links.insert(
        link(),
        Link {
            mtu: Some(network.mtu),
            mac: Some(overlay.this.mac),
            up: true,
            addresses: [own].into(),
            vxlan: Some(vxlan),
            ..Link::default()
        },
    );
    let mut indexes = BTreeSet::new();
    for peer in &overlay.peers {
        let (id, gateway) = (peer.node_index, link_local(peer.node_index));
        indexes.insert(id);
        state.neighbours.insert(Neighbour { address: gateway.into(), mac: peer.mac, link: link() });
        state.forwardings.insert(Forwarding { mac: peer.mac, to: peer.underlay, link: link() });
        state.next_hops.insert(NextHop { id, gateway, link: link() });
    }
    for endpoint in endpoints {
        if let Location::Remote { node_index } = endpoint.location
            && indexes.contains(&node_index)
        {
            let addresses = endpoint.addresses.iter().filter(|address| ipv6 || address.is_ipv4());
            state.routes.extend(addresses.map(|address| Route::new(single(*address), RouteKind::Next(node_index))));
        }
    }
    if network.ingress {
        let families = if ipv6 { &[false, true][..] } else { &[false] };
        for ipv6 in families {
            way_back(&mut state, &indexes, *ipv6);
        }
    }
    state
}

fn way_back(state: &mut State, indexes: &BTreeSet<u32>, ipv6: bool) {
    if indexes.is_empty() {
        return;
    }
    let to = everywhere(if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) });
    state.rules.insert(Rule { which: Which::Marked { mark: 0, ipv6 }, table: MAIN, priority: UNMARKED_PRIORITY });
    for index in indexes {
        let table = WAY_BACK_TABLES + index;
        state.routes.insert(Route { table, ..Route::new(to, RouteKind::Next(*index)) });
        state.rules.insert(Rule { which: Which::Marked { mark: *index, ipv6 }, table, priority: WAY_BACK_PRIORITY });
    }
}

/// Of what was read in a sandbox, the part that [`overlay`] speaks of.
pub(crate) fn part_of(mut state: State) -> State {
    state.links.retain(|name, _| name == OVERLAY_LINK);
    state.routes.retain(|route| matches!(route.kind, RouteKind::Next(_)));
    state.neighbours.retain(|neighbour| neighbour.link == OVERLAY_LINK);
    state
}

/// Whether the route's place is taken by one to another node.
pub(crate) fn leads_away(overlay: &State, route: &Route) -> bool {
    let mut like = overlay.routes.range(route.first_like()..).take_while(|other| other.is_like(route));
    like.any(|other| other.key() == route.key())
}
