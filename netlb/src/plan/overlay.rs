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
use crate::wanted::{Location, Network, Overlay, Peer};
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
pub(crate) fn overlay(network: &Network, overlay: &Overlay, places: impl Iterator<Item = (IpAddr, Location)>, ipv6: bool) -> State {
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
    state.routes = routes(overlay, places, ipv6);
    if network.ingress {
        let families = if ipv6 { &[false, true][..] } else { &[false] };
        for ipv6 in families {
            way_back(&mut state, &indexes, *ipv6);
        }
    }
    state
}

/// The routes to tasks on other nodes.
pub(crate) fn routes(overlay: &Overlay, places: impl Iterator<Item = (IpAddr, Location)>, ipv6: bool) -> BTreeSet<Route> {
    let nodes: BTreeSet<u32> = overlay.peers.iter().map(|peer| peer.node_index).collect();
    let usable = places.filter(|(address, _)| ipv6 || address.is_ipv4());
    let away = usable.filter_map(|(address, location)| match location {
        Location::Remote { node_index } if nodes.contains(&node_index) => Some((address, node_index)),
        Location::Remote { .. } | Location::Local => None,
    });
    away.map(|(address, node)| Route::new(single(address), RouteKind::Next(node))).collect()
}

/// Of an overlay's routes those to tasks with one of these addresses.
pub(crate) fn routes_to(overlay: &State, addresses: &BTreeSet<IpAddr>) -> BTreeSet<Route> {
    let to = |address: &IpAddr| {
        let like = Route::new(single(*address), RouteKind::Unreachable);
        let first = like.first_like();
        overlay.routes.range(first..).take_while(move |other| other.is_like(&like)).cloned().collect::<Vec<_>>()
    };
    addresses.iter().flat_map(to).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Change, Unwanted, difference};
    use crate::wanted::Mac;
    use skep_types::NetworkId;

    fn network(ingress: bool) -> Network {
        Network { id: NetworkId::for_test(1), name: "n".into(), vni: 4097, subnets: vec![], mtu: 1400, internal: false, ingress }
    }

    fn node(index: u32) -> Peer {
        let last = u8::try_from(index).unwrap();
        Peer { node_index: index, underlay: IpAddr::from([198, 18, 0, last]), mac: Mac([2, 0, 0, 0, 0, last]) }
    }

    fn nodes(peers: impl IntoIterator<Item = u32>) -> Overlay {
        Overlay { this: node(1), port: 4789, peers: peers.into_iter().map(node).collect() }
    }

    /// Where its two addresses are.
    type Task = [(IpAddr, Location); 2];

    /// A task with an address of each family.
    fn at(last: u8, location: Location) -> Task {
        [(IpAddr::from([10, 0, 0, last]), location), (IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]), location)]
    }

    fn overlay(network: &Network, with: &Overlay, tasks: &[Task], ipv6: bool) -> State {
        super::overlay(network, with, tasks.iter().flatten().copied(), ipv6)
    }

    fn on(node_index: u32) -> Location {
        Location::Remote { node_index }
    }

    fn steps(is: &State, wanted: &State) -> Vec<Change> {
        difference(is, wanted, Unwanted::Remove)
    }

    #[test]
    fn a_peer_is_one_neighbour_one_forwarding_and_one_next_hop() {
        let (without, with) = (overlay(&network(false), &nodes([2]), &[], true), overlay(&network(false), &nodes([2, 3]), &[], true));
        let steps = steps(&without, &with);
        let [Change::AddNeighbour(neighbour), Change::AddForwarding(forwarding), Change::AddNextHop(hop)] = &steps[..] else {
            panic!("{steps:?}")
        };
        assert_eq!((neighbour.address, neighbour.mac), ("fe80::3".parse().unwrap(), node(3).mac));
        assert_eq!((forwarding.mac, forwarding.to), (node(3).mac, node(3).underlay));
        assert_eq!((hop.id, hop.gateway), (3, "fe80::3".parse().unwrap()));
    }

    #[test]
    fn a_task_elsewhere_is_one_route_per_address_however_many_there_are() {
        let mut tasks: Vec<Task> = (10..200).map(|last| at(last, on(2))).collect();
        let before = overlay(&network(true), &nodes([2, 3]), &tasks, true);
        tasks.push(at(200, on(3)));
        let after = overlay(&network(true), &nodes([2, 3]), &tasks, true);
        let v4 = Route::new("10.0.0.200/32".parse().unwrap(), RouteKind::Next(3));
        let v6 = Route::new("fd00::c8/128".parse().unwrap(), RouteKind::Next(3));
        assert_eq!(steps(&before, &after), [Change::AddRoute(v6.clone()), Change::AddRoute(v4.clone())]);
        assert_eq!(steps(&after, &before), [Change::RemoveRoute(v6), Change::RemoveRoute(v4)]);
    }

    #[test]
    fn a_task_that_moves_is_one_route_per_address() {
        let others = (10..200).map(|last| at(last, on(2)));
        let tasks = |of_one| others.clone().chain([at(200, of_one)]).collect::<Vec<_>>();
        let before = overlay(&network(true), &nodes([2, 3]), &tasks(on(2)), false);
        let after = overlay(&network(true), &nodes([2, 3]), &tasks(on(3)), false);
        let route = Route::new("10.0.0.200/32".parse().unwrap(), RouteKind::Next(3));
        assert_eq!(steps(&before, &after), [Change::AddRoute(route)]);
    }

    #[test]
    fn a_node_that_goes_is_one_next_hop_however_many_tasks_it_had() {
        let tasks: Vec<Task> = (10..200).map(|last| at(last, on(2))).chain([at(200, on(3))]).collect();
        let before = overlay(&network(false), &nodes([2, 3]), &tasks, true);
        let after = overlay(&network(false), &nodes([3]), &tasks, true);
        let gone = steps(&before, &after);
        let [Change::RemoveNextHop(hop), Change::RemoveForwarding(_), Change::RemoveNeighbour(_)] = &gone[..] else { panic!("{gone:?}") };
        assert_eq!(hop.id, 2);
        // With ports published there is a rule per family more; the tables' routes go with the next hop.
        let before = overlay(&network(true), &nodes([2, 3]), &tasks, true);
        let after = overlay(&network(true), &nodes([3]), &tasks, true);
        let gone = steps(&before, &after);
        assert_eq!(gone.iter().filter(|step| matches!(step, Change::RemoveRule(_))).count(), 2, "{gone:?}");
        assert_eq!(gone.len(), 5, "{gone:?}");
    }

    #[test]
    fn a_node_whose_host_has_another_address_is_one_forwarding() {
        let tasks: Vec<Task> = (10..200).map(|last| at(last, on(2))).collect();
        let before = overlay(&network(true), &nodes([2, 3]), &tasks, true);
        let mut moved = nodes([2, 3]);
        moved.peers[0].underlay = IpAddr::from([198, 18, 0, 99]);
        let after = overlay(&network(true), &moved, &tasks, true);
        let change = steps(&before, &after);
        assert!(matches!(&change[..], [Change::AddForwarding(to)] if to.to == IpAddr::from([198, 18, 0, 99])), "{change:?}");
    }

    #[test]
    fn a_size_that_changes_is_one_step_and_no_new_device() {
        let before = overlay(&network(true), &nodes([2]), &[at(10, on(2))], true);
        let after = overlay(&Network { mtu: 1300, ..network(true) }, &nodes([2]), &[at(10, on(2))], true);
        assert!(matches!(&steps(&before, &after)[..], [Change::SetLink { mtu: Some(1300), mac: None, .. }]));
    }

    #[test]
    fn tasks_of_this_node_and_of_nodes_that_are_not_known_have_no_route_there() {
        let state = overlay(&network(false), &nodes([2]), &[at(10, Location::Local), at(11, on(7))], true);
        assert_eq!(state.routes, BTreeSet::new());
    }

    #[test]
    fn of_all_routes_those_to_some_addresses_are_found() {
        let tasks: Vec<Task> = (10..20).map(|last| at(last, on(2 + u32::from(last % 2)))).collect();
        let state = overlay(&network(true), &nodes([2, 3]), &tasks, true);
        let asked = [IpAddr::from([10, 0, 0, 12]), IpAddr::from([10, 0, 0, 99])].into();
        assert_eq!(routes_to(&state, &asked), [Route::new("10.0.0.12/32".parse().unwrap(), RouteKind::Next(2))].into());
    }

    #[test]
    fn every_step_to_an_overlay_and_back_is_named_once() {
        let tasks = [at(10, on(2)), at(11, on(3))];
        let state = overlay(&network(true), &nodes([2, 3]), &tasks, true);
        let empty = State::default();
        let there = steps(&empty, &state);
        // the device and its address; 3 per peer; 2 routes per task, 2 tables per peer; 3 rules per family
        assert_eq!(there.len(), 2 + 2 * 3 + 2 * 2 + 2 * 2 + 2 * 3, "{there:?}");
        assert_eq!(there.iter().filter(|step| step.takes_away()).count(), 0);
        let back = steps(&state, &empty);
        assert_eq!(back[0], Change::RemoveLink(OVERLAY_LINK.into()));
        assert!(back.iter().all(Change::takes_away), "{back:?}");
    }

    #[test]
    fn an_address_that_is_elsewhere_takes_the_place_of_a_task_here() {
        let state = overlay(&network(false), &nodes([2]), &[at(10, on(2))], true);
        let here = |to: &str| Route::new(to.parse().unwrap(), RouteKind::Through { link: "t1".into(), gateway: None });
        assert!(leads_away(&state, &here("10.0.0.10/32")));
        assert!(leads_away(&state, &here("fd00::a/128")));
        assert!(!leads_away(&state, &here("10.0.0.11/32")));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let refused = |overlay: &Overlay| check(&network(false), overlay).unwrap_err().to_string();
        assert!(check(&network(false), &nodes([2, 3])).is_ok());
        assert!(refused(&nodes([2, 2])).contains("two nodes have the number 2"));
        assert!(refused(&nodes([1])).contains("two nodes have the number 1"), "this node is no peer of its own");
        assert!(refused(&nodes([0])).contains("begin with 1"));
        let mut other_family = nodes([2]);
        other_family.peers[0].underlay = "2001:db8::2".parse().unwrap();
        assert!(refused(&other_family).contains("same family"));
        let mut same_mac = nodes([2]);
        same_mac.peers[0].mac = same_mac.this.mac;
        assert!(refused(&same_mac).contains("another one's"));
        let mut group = nodes([2]);
        group.peers[0].mac.0[0] = 3;
        assert!(refused(&group).contains("a group's"));
    }
}
