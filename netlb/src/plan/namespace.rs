//! A network namespace as data: links, routes, neighbours, rules; and how to get from one state to another.

use crate::wanted::Mac;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The main routing table.
pub(crate) const MAIN: u32 = 254;
/// The table of local addresses.
pub(crate) const LOCAL: u32 = 255;

/// What of a namespace is ours: as it should be, or as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    pub(crate) links: BTreeMap<String, Link>,
    pub(crate) routes: BTreeSet<Route>,
    pub(crate) neighbours: BTreeSet<Neighbour>,
    pub(crate) rules: BTreeSet<Rule>,
}

impl State {
    /// Both states in one.
    pub(crate) fn merge(&mut self, other: Self) {
        self.links.extend(other.links);
        self.routes.extend(other.routes);
        self.neighbours.extend(other.neighbours);
        self.rules.extend(other.rules);
    }
}

/// A link. `None` means: whatever it is will do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Link {
    pub(crate) mtu: Option<u32>,
    pub(crate) mac: Option<Mac>,
    pub(crate) up: bool,
    /// Without IPv6 link-local ones, which the kernel makes.
    pub(crate) addresses: BTreeSet<IpNet>,
    /// Addresses added here bring the route to their prefix with them. Not read back.
    pub(crate) prefix_routes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    /// Longer prefixes first: a gateway must be reachable before it is used.
    pub(crate) order: std::cmp::Reverse<u8>,
    pub(crate) to: IpNet,
    pub(crate) table: u32,
    pub(crate) kind: RouteKind,
    /// 0: the family's usual one.
    pub(crate) metric: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RouteKind {
    /// To a neighbour on that link, or through one, which need not be in a prefix of the link.
    Through { link: String, gateway: Option<IpAddr> },
    /// Nobody has this address: say so at once.
    Unreachable,
    /// This host, for packets that came in on that link.
    Local { link: String },
}

impl Route {
    pub(crate) fn new(to: IpNet, kind: RouteKind) -> Self {
        Self { order: std::cmp::Reverse(to.prefix_len()), to, table: MAIN, kind, metric: 0 }
    }

    pub(crate) fn link(&self) -> Option<&str> {
        match &self.kind {
            RouteKind::Through { link, .. } | RouteKind::Local { link } => Some(link),
            RouteKind::Unreachable => None,
        }
    }
}

/// Who has an address on a link, for good: nothing needs to be asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub(crate) address: IpAddr,
    pub(crate) mac: Mac,
    pub(crate) link: String,
}

/// Packets from that address are routed by that table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) from: IpNet,
    pub(crate) table: u32,
    pub(crate) priority: u32,
}

/// One step. In the order of [`difference`] each finds what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    RemoveLink(String),
    SetLink { name: String, mtu: Option<u32>, mac: Option<Mac>, up: bool },
    RemoveRule(Rule),
    RemoveRoute(Route),
    RemoveNeighbour(Neighbour),
    RemoveAddress { link: String, address: IpNet },
    AddAddress { link: String, address: IpNet, prefix_route: bool },
    AddNeighbour(Neighbour),
    AddRoute(Route),
    AddRule(Rule),
}

/// What to do with things of ours that nobody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwanted {
    Remove,
    Keep,
}

/// The steps from what is to what should be. Links that are wanted and missing are not made here: a veth pair spans
/// two namespaces, so its maker deals with it first.
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
        changes.extend(is.routes.difference(&wanted.routes).cloned().map(Change::RemoveRoute));
        changes.extend(is.neighbours.difference(&wanted.neighbours).cloned().map(Change::RemoveNeighbour));
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
    changes.extend(wanted.routes.difference(&is.routes).cloned().map(Change::AddRoute));
    changes.extend(wanted.rules.difference(&is.rules).cloned().map(Change::AddRule));
    changes
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
                prefix_routes: false,
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
}
