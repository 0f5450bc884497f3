//! Reading what of ours is in a namespace.
//!
//! A namespace holds things of others, of kinds and with attributes that `netlink-packet-route` may not know or refuse to
//! read. So the fixed part of a message is looked at first, only what may be ours is decoded further, and of a link's sixty
//! attributes only those that matter.

use super::hop;
use super::message::{self, Body, PROTOCOL};
use super::route::RouteSocket;
use super::socket::{DUMP, REQUEST};
use super::wire::{self, Message};
use crate::names::OVERLAY_LINK;
use crate::plan::{Forwarding, Link, Neighbour, NextHop, Route, RouteKind, Rule, State, Vxlan, Which};
use crate::wanted::Mac;
use ipnet::IpNet;
use netlink_packet_core::{NlaBuffer, NlasIterator, Parseable, ParseableParametrized};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeader};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkHeader};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourHeader};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteLwEnCapType, RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleHeader};
use nix::libc;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the kernel gives an IPv6 route without a metric (`IP6_RT_PRIO_USER`).
const USUAL_METRIC_V6: u32 = 1024;

impl RouteSocket {
    /// The links that `ours` accepts, and the routes, neighbours, next hops and rules that are ours on them.
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
                && let Some(name) = names.get(&index)
                && (!made_by_the_kernel(address.addr()) || (name == OVERLAY_LINK && is_link_local(address.addr())))
                && let Some(link) = state.links.get_mut(name)
            {
                link.addresses.insert(address);
            }
        })?;
        self.dump(message::get_routes(only), |message| {
            state.routes.extend(read_route(&message, names));
        })?;
        self.dump(message::get_neighbours(only), |message| {
            state.neighbours.extend(read_neighbour(&message, names));
        })?;
        let overlay = names.iter().find(|(_, name)| *name == OVERLAY_LINK);
        overlay.map_or(Ok(()), |(index, name)| self.read_overlay(state, *index, name))
    }

    /// Adds what only the device of an overlay has. Hosts have none, so a kernel that knows no next hops is not asked.
    fn read_overlay(&mut self, state: &mut State, index: u32, name: &str) -> io::Result<()> {
        self.dump(message::get_forwardings(), |message| {
            state.forwardings.extend(read_forwarding(&message, index, name));
        })?;
        self.dump(Body::Hop(hop::Message::Get), |message| {
            if let Some(found) = hop::read(&message).filter(|found| found.link == index) {
                state.next_hops.insert(NextHop { id: found.id, gateway: found.gateway, link: name.to_owned() });
            }
        })
    }

    /// Every address in the namespace, whoever's.
    pub(crate) fn all_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        self.dump(message::get_addresses(None), |message| {
            addresses.extend(read_address(&message).map(|(_, address)| address.addr()).filter(|address| !made_by_the_kernel(*address)));
        })?;
        Ok(addresses)
    }

    fn dump(&mut self, question: impl Into<Body>, each: impl FnMut(Message<'_>)) -> io::Result<()> {
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
    let link_info = wire::attribute(message.body, FIXED, libc::IFLA_LINKINFO);
    link.vxlan = link_info.and_then(read_vxlan);
    Some((header.index, name?, link))
}

/// What a VXLAN device was made with, if it is one that learns nothing.
fn read_vxlan(link_info: &[u8]) -> Option<Vxlan> {
    // `IFLA_INFO_KIND`, `IFLA_INFO_DATA`; `IFLA_VXLAN_*` of `linux/if_link.h`
    const KIND: u16 = 1;
    const DATA: u16 = 2;
    const ID: u16 = 1;
    const LOCAL: u16 = 4;
    const LEARNING: u16 = 7;
    const PORT: u16 = 15;
    const LOCAL6: u16 = 17;
    if wire::text(wire::attribute(link_info, 0, KIND)?) != "vxlan" {
        return None;
    }
    let data = wire::attribute(link_info, 0, DATA)?;
    let of = |kind| wire::attribute(data, 0, kind);
    let v4 = of(LOCAL).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
    let v6 = || of(LOCAL6).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from);
    let port = u16::from_be_bytes(of(PORT)?.try_into().ok()?);
    (of(LEARNING)? == [0]).then_some(Vxlan { vni: wire::u32_at(of(ID)?, 0)?, port, underlay: v4.or_else(v6)? })
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
    Some((header.index, IpNet::new(own.or(other)?, header.prefix_len).ok()?))
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// As a rule: see [`Link`] for the exception.
fn made_by_the_kernel(address: IpAddr) -> bool {
    address.is_loopback() || is_link_local(address)
}

fn read_route(message: &Message<'_>, names: &BTreeMap<u32, String>) -> Option<Route> {
    const FIXED: usize = 12;
    const KINDS: &[u16] = &[libc::RTA_DST, libc::RTA_OIF, libc::RTA_GATEWAY, libc::RTA_PRIORITY, libc::RTA_TABLE];
    // Beside it the kernel tells what the next hop holds, for programs that know no such objects.
    let hop = wire::attribute(message.body, FIXED, hop::ROUTE_BY_ID).and_then(|id| wire::u32_at(id, 0));
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
        RouteType::Unicast => match hop {
            Some(id) => RouteKind::Next(id),
            None => RouteKind::Through { link: link?, gateway },
        },
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

fn read_forwarding(message: &Message<'_>, index: u32, name: &str) -> Option<Forwarding> {
    const FIXED: usize = 12;
    let header = NeighbourHeader::parse(message.body).ok()?;
    if header.ifindex != index || u16::from(header.state) & libc::NUD_PERMANENT == 0 {
        return None;
    }
    // Not the crate's: it takes the family of the address for that of the message.
    let of = |kind| wire::attribute(message.body, FIXED, kind);
    let to = of(libc::NDA_DST)?;
    let v4 = <[u8; 4]>::try_from(to).ok().map(IpAddr::from);
    let to = v4.or_else(|| <[u8; 16]>::try_from(to).ok().map(IpAddr::from))?;
    Some(Forwarding { mac: Mac(of(libc::NDA_LLADDR)?.try_into().ok()?), to, link: name.to_owned() })
}

fn read_rule(message: &Message<'_>) -> Option<Rule> {
    const FIXED: usize = 12;
    // `FRA_SRC`, `FRA_PRIORITY`, `FRA_FWMARK`, `FRA_TABLE`, `FRA_FWMASK`, `FRA_PROTOCOL` of `linux/fib_rules.h`
    const KINDS: &[u16] = &[2, 6, 10, 15, 16, 21];
    let header = RuleHeader::parse(message.body).ok()?;
    let (mut from, mut mark, mut mask, mut table, mut priority, mut ours) = (None, 0, None, None, None, false);
    for attribute in attributes(message, FIXED, KINDS) {
        match RuleAttribute::parse(&attribute).ok()? {
            RuleAttribute::Source(address) => from = Some(address),
            RuleAttribute::FwMark(number) => mark = number,
            RuleAttribute::FwMask(bits) => mask = Some(bits),
            RuleAttribute::Table(number) => table = Some(number),
            RuleAttribute::Priority(number) => priority = Some(number),
            RuleAttribute::Protocol(protocol) => ours = protocol == RouteProtocol::Other(PROTOCOL),
            _ => {}
        }
    }
    let which = match (from, mask) {
        (Some(from), None) => Which::From(IpNet::new(from, header.src_len).ok()?),
        (None, Some(u32::MAX)) => Which::Marked { mark, ipv6: header.family == AddressFamily::Inet6 },
        _ => return None,
    };
    let rule = Rule { which, table: table?, priority: priority? };
    ours.then_some(rule)
}
