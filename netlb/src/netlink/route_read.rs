//! Reading what of ours is in a namespace.
//!
//! A namespace holds things of others, of kinds and with attributes that `netlink-packet-route` may not know or refuse to
//! read. So the fixed part of a message is looked at first, only what may be ours is decoded further, and of a link's sixty
//! attributes only those that matter.

use super::message::{self, PROTOCOL};
use super::route::RouteSocket;
use super::socket::{DUMP, REQUEST};
use super::wire::Message;
use crate::plan::{Link, Neighbour, Route, RouteKind, Rule, State};
use crate::wanted::Mac;
use ipnet::IpNet;
use netlink_packet_core::{NlaBuffer, NlasIterator, Parseable, ParseableParametrized};
use netlink_packet_route::address::{AddressAttribute, AddressHeader};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkHeader};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourHeader};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteLwEnCapType, RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleHeader};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the kernel gives an IPv6 route without a metric (`IP6_RT_PRIO_USER`).
const USUAL_METRIC_V6: u32 = 1024;

impl RouteSocket {
    /// The links that `ours` accepts, and the routes, neighbours and rules that are ours on them.
    pub(crate) fn read(&mut self, ours: impl Fn(&str) -> bool) -> io::Result<State> {
        let mut state = State::default();
        let mut names = BTreeMap::new();
        self.dump(message::get_links(), |message| {
            if let Some((index, name, link)) = read_link(&message)
                && ours(&name)
            {
                names.insert(index, name.clone());
                state.links.insert(name, link);
            }
        })?;
        self.read_on(&mut state, &names, None)?;
        self.dump(message::get_rules(), |message| state.rules.extend(read_rule(&message)))?;
        Ok(state)
    }

    /// The same for one link, without rules; empty if it is not there. Costs little among however many others.
    pub(crate) fn read_one(&mut self, name: &str) -> io::Result<State> {
        let mut state = State::default();
        let Some((index, link)) = self.link(name, |message| read_link(&message).map(|(index, _, link)| (index, link)))? else {
            return Ok(state);
        };
        state.links.insert(name.to_owned(), link);
        self.read_on(&mut state, &[(index, name.to_owned())].into(), Some(index))?;
        Ok(state)
    }

    /// Adds what is on the links with those names and indexes; the kernel gives that of `only` alone, if given.
    fn read_on(&mut self, state: &mut State, names: &BTreeMap<u32, String>, only: Option<u32>) -> io::Result<()> {
        self.dump(message::get_addresses(only), |message| {
            if let Some((index, address)) = read_address(&message)
                && let Some(link) = names.get(&index).and_then(|name| state.links.get_mut(name))
            {
                link.addresses.insert(address);
            }
        })?;
        self.dump(message::get_routes(only), |message| {
            state.routes.extend(read_route(&message, names));
        })?;
        self.dump(message::get_neighbours(only), |message| {
            state.neighbours.extend(read_neighbour(&message, names));
        })
    }

    /// Every address in the namespace, whoever's.
    pub(crate) fn all_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        self.dump(message::get_addresses(None), |message| {
            addresses.extend(read_address(&message).map(|(_, address)| address.addr()));
        })?;
        Ok(addresses)
    }

    fn dump(&mut self, question: RouteNetlinkMessage, each: impl FnMut(Message<'_>)) -> io::Result<()> {
        self.answers(question, REQUEST | DUMP, each)
    }
}

/// The attributes of those kinds, behind a fixed part of so many bytes.
fn attributes<'a>(message: &Message<'a>, fixed: usize, kinds: &'static [u16]) -> impl Iterator<Item = NlaBuffer<&'a [u8]>> {
    let all = NlasIterator::new(message.body.get(fixed..).unwrap_or(&[])).map_while(Result::ok);
    all.filter(|attribute| kinds.contains(&attribute.kind()))
}

/// Index, name and what else is of interest.
fn read_link(message: &Message<'_>) -> Option<(u32, String, Link)> {
    const FIXED: usize = 16;
    let header = LinkHeader::parse(message.body).ok()?;
    let mut name = None;
    let mut link = Link { up: header.flags.contains(LinkFlags::Up), ..Link::default() };
    for attribute in attributes(message, FIXED, &[libc::IFLA_IFNAME, libc::IFLA_ADDRESS, libc::IFLA_MTU]) {
        match LinkAttribute::parse_with_param(&attribute, header.interface_family).ok()? {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = Some(mtu),
            _ => {}
        }
    }
    Some((header.index, name?, link))
}

fn read_address(message: &Message<'_>) -> Option<(u32, IpNet)> {
    const FIXED: usize = 8;
    let header = AddressHeader::parse(message.body).ok()?;
    let (mut own, mut other) = (None, None);
    for attribute in attributes(message, FIXED, &[libc::IFA_LOCAL, libc::IFA_ADDRESS]) {
        match AddressAttribute::parse(&attribute).ok()? {
            AddressAttribute::Local(address) => own = Some(address),
            AddressAttribute::Address(address) => other = Some(address),
            _ => {}
        }
    }
    let address = own.or(other)?;
    let made_by_the_kernel = match address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    };
    if made_by_the_kernel {
        return None;
    }
    Some((header.index, IpNet::new(address, header.prefix_len).ok()?))
}

fn read_route(message: &Message<'_>, names: &BTreeMap<u32, String>) -> Option<Route> {
    const FIXED: usize = 12;
    const KINDS: &[u16] = &[libc::RTA_DST, libc::RTA_OIF, libc::RTA_GATEWAY, libc::RTA_PRIORITY, libc::RTA_TABLE];
    let header = RouteHeader::parse(message.body).ok()?;
    if header.protocol != RouteProtocol::Other(PROTOCOL) {
        return None;
    }
    let mut to: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut link, mut gateway, mut metric, mut table) = (None, None, 0, u32::from(header.table));
    for attribute in attributes(message, FIXED, KINDS) {
        let parameters = (header.address_family, header.kind, RouteLwEnCapType::None);
        match RouteAttribute::parse_with_param(&attribute, parameters).ok()? {
            RouteAttribute::Destination(address) => to = route_address(&address)?,
            RouteAttribute::Oif(index) => link = names.get(&index).cloned(),
            RouteAttribute::Gateway(address) => gateway = route_address(&address),
            RouteAttribute::Priority(number) => metric = number,
            RouteAttribute::Table(number) => table = number,
            _ => {}
        }
    }
    let kind = match header.kind {
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Local => RouteKind::Local { link: link? },
        RouteType::Unicast => RouteKind::Through { link: link?, gateway },
        _ => return None,
    };
    let metric = if to.is_ipv6() && metric == USUAL_METRIC_V6 { 0 } else { metric };
    Some(Route { table, metric, ..Route::new(IpNet::new(to, header.destination_prefix_length).ok()?, kind) })
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn read_neighbour(message: &Message<'_>, names: &BTreeMap<u32, String>) -> Option<Neighbour> {
    const FIXED: usize = 12;
    let header = NeighbourHeader::parse(message.body).ok()?;
    let link = names.get(&header.ifindex)?;
    if u16::from(header.state) & libc::NUD_PERMANENT == 0 {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in attributes(message, FIXED, &[libc::NDA_DST, libc::NDA_LLADDR]) {
        match NeighbourAttribute::parse_with_param(&attribute, header.family).ok()? {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(IpAddr::from(found)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some(IpAddr::from(found)),
            NeighbourAttribute::LinkLayerAddress(found) => mac = found.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(Neighbour { address: address?, mac: mac?, link: link.clone() })
}

fn read_rule(message: &Message<'_>) -> Option<Rule> {
    const FIXED: usize = 12;
    // `FRA_SRC`, `FRA_PRIORITY`, `FRA_TABLE`, `FRA_PROTOCOL` of `linux/fib_rules.h`
    const KINDS: &[u16] = &[2, 6, 15, 21];
    let header = RuleHeader::parse(message.body).ok()?;
    let (mut from, mut table, mut priority, mut ours) = (None, None, None, false);
    for attribute in attributes(message, FIXED, KINDS) {
        match RuleAttribute::parse(&attribute).ok()? {
            RuleAttribute::Source(address) => from = Some(address),
            RuleAttribute::Table(number) => table = Some(number),
            RuleAttribute::Priority(number) => priority = Some(number),
            RuleAttribute::Protocol(protocol) => ours = protocol == RouteProtocol::Other(PROTOCOL),
            _ => {}
        }
    }
    let rule = Rule { from: IpNet::new(from?, header.src_len).ok()?, table: table?, priority: priority? };
    ours.then_some(rule)
}
