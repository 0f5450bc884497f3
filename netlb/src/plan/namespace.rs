//! A network namespace as data: links, routes, neighbours, next hops, rules.

use crate::wanted::Mac;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

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
    pub(crate) forwardings: BTreeSet<Forwarding>,
    pub(crate) next_hops: BTreeSet<NextHop>,
    pub(crate) rules: BTreeSet<Rule>,
}

impl State {
    /// Both states in one.
    pub(crate) fn merge(&mut self, other: Self) {
        self.links.extend(other.links);
        self.routes.extend(other.routes);
        self.neighbours.extend(other.neighbours);
        self.forwardings.extend(other.forwardings);
        self.next_hops.extend(other.next_hops);
        self.rules.extend(other.rules);
    }
}

/// A link. `None` means: whatever it is will do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Link {
    pub(crate) mtu: Option<u32>,
    pub(crate) mac: Option<Mac>,
    pub(crate) up: bool,
    /// Without IPv6 link-local ones, which the kernel makes; but with those of an overlay's device, which we make.
    pub(crate) addresses: BTreeSet<IpNet>,
    /// Addresses added here bring the route to their prefix with them. Not read back.
    pub(crate) prefix_routes: bool,
    /// It is one end of a VXLAN. Nothing of it can be changed: another one is made instead.
    pub(crate) vxlan: Option<Vxlan>,
}

/// What a VXLAN device is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) vni: u32,
    /// UDP.
    pub(crate) port: u16,
    /// The host's address that its packets come from; tells the family of all other ends.
    pub(crate) underlay: IpAddr,
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
    /// To the next hop of that number. If that is removed the kernel removes the route with it.
    Next(u32),
    /// Nobody has this address: say so at once.
    Unreachable,
    /// This host, for packets that came in on that link.
    Local { link: String },
}

impl Route {
    pub(crate) fn new(to: IpNet, kind: RouteKind) -> Self {
        Self { order: std::cmp::Reverse(to.prefix_len()), to, table: MAIN, kind, metric: 0 }
    }

    /// Two routes of one key cannot be at once: the latter takes the former's place.
    pub(crate) fn key(&self) -> (IpNet, u32, u32, Option<&str>) {
        // A local route stands beside the kernel's own of the same address and replaces none.
        let link = if matches!(self.kind, RouteKind::Local { .. }) { self.link() } else { None };
        (self.to, self.table, self.metric, link)
    }

    /// Where in a set the routes with this one's prefix and table begin.
    pub(crate) fn first_like(&self) -> Self {
        let kind = RouteKind::Through { link: String::new(), gateway: None };
        Self { kind, metric: 0, ..self.clone() }
    }

    /// Whether both have one prefix and table.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (self.to, self.table) == (other.to, other.table)
    }

    pub(crate) fn link(&self) -> Option<&str> {
        match &self.kind {
            RouteKind::Through { link, .. } | RouteKind::Local { link } => Some(link),
            RouteKind::Unreachable | RouteKind::Next(_) => None,
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

/// A VXLAN device sends frames for that hardware address to that host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Forwarding {
    pub(crate) mac: Mac,
    pub(crate) to: IpAddr,
    pub(crate) link: String,
}

/// A gateway as an object of the kernel's: routes of both families name its number, and to change it changes them all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NextHop {
    /// Unique in the namespace.
    pub(crate) id: u32,
    pub(crate) gateway: Ipv6Addr,
    pub(crate) link: String,
}

/// Some packets are routed by that table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) which: Which,
    pub(crate) table: u32,
    pub(crate) priority: u32,
}

/// The packets that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Which {
    /// From that address.
    From(IpNet),
    /// Of that family, with exactly that mark; 0 is no mark.
    Marked { mark: u32, ipv6: bool },
}
