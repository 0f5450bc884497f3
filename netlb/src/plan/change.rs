//! How to get from one state of a namespace to another, as steps in the order to take them.

use super::namespace::{Forwarding, Link, Neighbour, NextHop, Route, RouteKind, Rule, State};
use crate::wanted::Mac;
use ipnet::IpNet;
use std::collections::BTreeSet;

/// One step. In the order of [`difference`] each finds what it needs. What is added takes the place of what has its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    RemoveLink(String),
    SetLink { name: String, mtu: Option<u32>, mac: Option<Mac>, up: bool },
    RemoveRule(Rule),
    RemoveRoute(Route),
    RemoveAddress { link: String, address: IpNet },
    AddAddress { link: String, address: IpNet, prefix_route: bool },
    AddNeighbour(Neighbour),
    AddForwarding(Forwarding),
    AddNextHop(NextHop),
    AddRoute(Route),
    AddRule(Rule),
    RemoveNextHop(NextHop),
    RemoveForwarding(Forwarding),
    RemoveNeighbour(Neighbour),
}

impl Change {
    /// Something is gone afterwards, and nothing is in its place.
    pub(crate) fn takes_away(&self) -> bool {
        match self {
            Self::RemoveLink(_)
            | Self::RemoveRule(_)
            | Self::RemoveRoute(_)
            | Self::RemoveAddress { .. }
            | Self::RemoveNextHop(_)
            | Self::RemoveForwarding(_)
            | Self::RemoveNeighbour(_) => true,
            Self::SetLink { .. }
            | Self::AddAddress { .. }
            | Self::AddNeighbour(_)
            | Self::AddForwarding(_)
            | Self::AddNextHop(_)
            | Self::AddRoute(_)
            | Self::AddRule(_) => false,
        }
    }
}

/// What to do with things of ours that nobody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwanted {
    Remove,
    Keep,
}

/// The steps from what is to what should be. Links that are wanted and missing are not made here: a veth pair or a VXLAN
/// spans two namespaces, so its maker deals with it first.
///
/// What is replaced is one step, not two with a gap between. A next hop goes after the routes that lead elsewhere now, and
/// takes with it those that nobody wants: however many there are, it is one step.
pub(crate) fn difference(is: &State, wanted: &State, unwanted: Unwanted) -> Vec<Change> {
    let mut changes = Vec::new();
    let remove = unwanted == Unwanted::Remove;
    if remove {
        let gone = is.links.keys().filter(|name| !wanted.links.contains_key(*name));
        changes.extend(gone.cloned().map(Change::RemoveLink));
    }
    for (name, want) in &wanted.links {
        changes.extend(link_difference(name, is.links.get(name), want));
    }
    if remove {
        changes.extend(is.rules.difference(&wanted.rules).cloned().map(Change::RemoveRule));
        changes.extend(routes_to_remove(is, wanted).cloned().map(Change::RemoveRoute));
        for (name, link) in &wanted.links {
            let found = is.links.get(name).map(|link| &link.addresses);
            let extra = found.into_iter().flatten().filter(|address| !link.addresses.contains(address));
            changes.extend(extra.map(|address| Change::RemoveAddress { link: name.clone(), address: *address }));
        }
    }
    for (name, link) in &wanted.links {
        let found = is.links.get(name).map(|link| &link.addresses);
        let missing = link.addresses.iter().filter(|address| !found.is_some_and(|found| found.contains(address)));
        let prefix_route = link.prefix_routes;
        changes.extend(missing.map(|address| Change::AddAddress { link: name.clone(), address: *address, prefix_route }));
    }
    changes.extend(wanted.neighbours.difference(&is.neighbours).cloned().map(Change::AddNeighbour));
    changes.extend(wanted.forwardings.difference(&is.forwardings).cloned().map(Change::AddForwarding));
    changes.extend(wanted.next_hops.difference(&is.next_hops).cloned().map(Change::AddNextHop));
    changes.extend(wanted.routes.difference(&is.routes).cloned().map(Change::AddRoute));
    changes.extend(wanted.rules.difference(&is.rules).cloned().map(Change::AddRule));
    if remove {
        changes.extend(gone(&is.next_hops, &wanted.next_hops, |hop| hop.id).cloned().map(Change::RemoveNextHop));
        let of = |forwarding: &Forwarding| (forwarding.mac, forwarding.link.clone());
        changes.extend(gone(&is.forwardings, &wanted.forwardings, of).cloned().map(Change::RemoveForwarding));
        let of = |neighbour: &Neighbour| (neighbour.address, neighbour.link.clone());
        changes.extend(gone(&is.neighbours, &wanted.neighbours, of).cloned().map(Change::RemoveNeighbour));
    }
    changes
}

/// Those that are not wanted, save where one that is wanted takes the key and so the place.
fn gone<'a, T: Ord, K: Ord>(is: &'a BTreeSet<T>, wanted: &'a BTreeSet<T>, key: impl Fn(&T) -> K) -> impl Iterator<Item = &'a T> {
    let candidates: Vec<&T> = is.difference(wanted).collect();
    let kept: BTreeSet<K> = if candidates.is_empty() { BTreeSet::new() } else { wanted.iter().map(&key).collect() };
    candidates.into_iter().filter(move |one| !kept.contains(&key(one)))
}

/// Those that neither another one replaces nor a next hop takes with it.
fn routes_to_remove<'a>(is: &'a State, wanted: &'a State) -> impl Iterator<Item = &'a Route> {
    let hops = |state: &State| state.next_hops.iter().map(|hop| hop.id).collect::<BTreeSet<u32>>();
    let (before, after) = (hops(is), hops(wanted));
    let goes_with_its_hop = move |route: &Route| matches!(route.kind, RouteKind::Next(id) if before.contains(&id) && !after.contains(&id));
    let candidates = is.routes.difference(&wanted.routes);
    candidates.filter(move |route| {
        !goes_with_its_hop(route)
            && !wanted.routes.range(route.first_like()..).take_while(|other| other.is_like(route)).any(|other| other.key() == route.key())
    })
}

fn link_difference(name: &str, is: Option<&Link>, want: &Link) -> Option<Change> {
    let mtu = want.mtu.filter(|mtu| is.and_then(|is| is.mtu) != Some(*mtu));
    let mac = want.mac.filter(|mac| is.and_then(|is| is.mac) != Some(*mac));
    let up = want.up && !is.is_some_and(|is| is.up);
    (mtu.is_some() || mac.is_some() || up).then(|| Change::SetLink { name: name.to_owned(), mtu, mac, up })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> State {
        let mut state = State::default();
        state.links.insert(
            "eth0".into(),
            Link {
                mtu: Some(1450),
                mac: Some(Mac([2, 0, 0, 0, 0, 1])),
                up: true,
                addresses: ["10.0.0.2/24".parse().unwrap()].into(),
                ..Link::default()
            },
        );
        let gateway = Some("10.0.0.1".parse().unwrap());
        let through = RouteKind::Through { link: "eth0".into(), gateway };
        state.routes.insert(Route::new("0.0.0.0/0".parse().unwrap(), through));
        state.routes.insert(Route::new("10.0.0.1/32".parse().unwrap(), RouteKind::Through { link: "eth0".into(), gateway: None }));
        state.neighbours.insert(Neighbour { address: "10.0.0.1".parse().unwrap(), mac: Mac([2, 0, 0, 0, 0, 2]), link: "eth0".into() });
        state
    }

    #[test]
    fn a_state_needs_no_change_to_become_itself() {
        assert_eq!(difference(&sample(), &sample(), Unwanted::Remove), []);
    }

    #[test]
    fn a_gateway_is_reachable_before_it_is_used() {
        let changes = difference(&State::default(), &sample(), Unwanted::Remove);
        let routes: Vec<_> = changes
            .iter()
            .filter_map(|change| match change {
                Change::AddRoute(route) => Some(route.to.to_string()),
                _ => None,
            })
            .collect();
        assert_eq!(routes, ["10.0.0.1/32", "0.0.0.0/0"]);
        assert!(matches!(changes[0], Change::SetLink { .. }), "links come first");
    }

    #[test]
    fn only_what_differs_is_changed() {
        let mut is = sample();
        is.links.get_mut("eth0").unwrap().mtu = Some(1500);
        is.neighbours.clear();
        let changes = difference(&is, &sample(), Unwanted::Remove);
        let wanted_neighbour = sample().neighbours.into_iter().next().unwrap();
        assert_eq!(
            changes,
            [Change::SetLink { name: "eth0".into(), mtu: Some(1450), mac: None, up: false }, Change::AddNeighbour(wanted_neighbour)]
        );
    }

    #[test]
    fn what_nobody_wants_is_kept_or_removed_as_asked() {
        let changes = difference(&sample(), &State::default(), Unwanted::Keep);
        assert_eq!(changes, []);
        let changes = difference(&sample(), &State::default(), Unwanted::Remove);
        assert_eq!(changes[0], Change::RemoveLink("eth0".into()));
    }

    fn hop(id: u32) -> NextHop {
        NextHop { id, gateway: std::net::Ipv6Addr::from(0xfe80 << 112 | u128::from(id)), link: "vx0".into() }
    }

    fn by(to: &str, id: u32) -> Route {
        Route::new(to.parse().unwrap(), RouteKind::Next(id))
    }

    #[test]
    fn a_route_that_leads_elsewhere_is_one_step() {
        let is = State { routes: [by("10.0.1.11/32", 2)].into(), next_hops: [hop(2), hop(3)].into(), ..State::default() };
        let wanted = State { routes: [by("10.0.1.11/32", 3)].into(), ..is.clone() };
        assert_eq!(difference(&is, &wanted, Unwanted::Remove), [Change::AddRoute(by("10.0.1.11/32", 3))]);
        let here = Route::new("10.0.1.11/32".parse().unwrap(), RouteKind::Through { link: "t1".into(), gateway: None });
        let wanted = State { routes: [here.clone()].into(), ..is.clone() };
        assert_eq!(difference(&is, &wanted, Unwanted::Remove), [Change::AddRoute(here)]);
    }

    #[test]
    fn a_next_hop_goes_last_and_takes_its_routes_with_it() {
        let routes = [by("10.0.1.11/32", 2), by("10.0.1.12/32", 2), by("10.0.1.13/32", 2), by("10.0.1.14/32", 3)];
        let is = State { routes: routes.into(), next_hops: [hop(2), hop(3)].into(), ..State::default() };
        let routes = [by("10.0.1.11/32", 3), by("10.0.1.14/32", 3)];
        let wanted = State { routes: routes.into(), next_hops: [hop(3)].into(), ..State::default() };
        let steps = [Change::AddRoute(by("10.0.1.11/32", 3)), Change::RemoveNextHop(hop(2))];
        assert_eq!(difference(&is, &wanted, Unwanted::Remove), steps);
    }

    #[test]
    fn a_route_whose_next_hop_was_gone_before_is_removed() {
        let is = State { routes: [by("10.0.1.11/32", 2)].into(), ..State::default() };
        assert_eq!(difference(&is, &State::default(), Unwanted::Remove), [Change::RemoveRoute(by("10.0.1.11/32", 2))]);
    }

    #[test]
    fn a_neighbour_with_another_hardware_address_is_one_step() {
        let mut is = sample();
        let old = is.neighbours.pop_first().unwrap();
        let new = Neighbour { mac: Mac([2, 0, 0, 0, 0, 9]), ..old.clone() };
        is.neighbours.insert(old);
        let wanted = State { neighbours: [new.clone()].into(), ..is.clone() };
        assert_eq!(difference(&is, &wanted, Unwanted::Remove), [Change::AddNeighbour(new)]);
    }

    #[test]
    fn local_routes_of_one_address_stand_side_by_side() {
        let local = |link: &str| Route { table: 255, ..Route::new("::1/128".parse().unwrap(), RouteKind::Local { link: link.into() }) };
        let is = State { routes: [local("a")].into(), ..State::default() };
        let wanted = State { routes: [local("b")].into(), ..State::default() };
        let steps = [Change::RemoveRoute(local("a")), Change::AddRoute(local("b"))];
        assert_eq!(difference(&is, &wanted, Unwanted::Remove), steps);
    }
}
