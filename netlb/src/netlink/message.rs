//! Steps and questions as messages of the routing family: types of `netlink-packet-route`, from `rtnetlink`'s builders
//! where those can say it. Pure.
//!
//! Built by hand from the types: addresses (the builder adds a broadcast address, which nobody here wants), rules and
//! neighbours (`rtnetlink` builds them only behind a connection). Objects for next hops neither crate has yet: [`super::hop`].

use super::hop;
use super::socket::{CREATE, EXCL, REPLACE};
use crate::plan::{Change, Forwarding, Neighbour, Route, RouteKind, Rule, Vxlan, Which};
use crate::wanted::{LanMode, Mac};
use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeader, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkMessage, MacVlanMode};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rtnetlink::{LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, LinkWireguard, RouteMessageBuilder};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Marks routes and rules as ours (`rtm_protocol`; below 100 and given to nobody in `/etc/iproute2/rt_protos`).
pub(super) const PROTOCOL: u8 = 83;

/// A message, and the flags of its header beyond those that every request has.
pub(super) type Asked = (Body, u16);

/// What is asked, in the crate's words or, where it has none, in ours.
#[derive(Debug)]
pub(super) enum Body {
    Message(Message),
    Hop(hop::Message),
}

impl From<Message> for Body {
    fn from(message: Message) -> Self {
        Self::Message(message)
    }
}

/// One end of a veth pair.
#[derive(Debug, Clone)]
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<Mac>,
}

/// Writes the message behind those already in `out`.
pub(super) fn append(out: &mut Vec<u8>, body: impl Into<Body>, flags: u16, sequence: u32) {
    let message = match body.into() {
        Body::Message(message) => message,
        Body::Hop(hop) => return hop.append(out, flags, sequence),
    };
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = out.len();
    // All routing messages end on four bytes: their fixed parts do, and attributes are padded.
    out.resize(start + message.header.length as usize, 0);
    message.serialize(&mut out[start..]);
}

/// The step as a message; `index` is that of the link it is about, if it is about one.
pub(super) fn change(change: &Change, index: u32) -> Asked {
    let set = CREATE | REPLACE;
    let (message, flags) = match change {
        Change::RemoveLink(_) => (Message::DelLink(LinkUnspec::new_with_index(index).build()), 0),
        Change::SetLink { mtu, mac, up, .. } => (Message::NewLink(link(index, *mtu, *mac, *up)), 0),
        Change::AddAddress { address: net, prefix_route, .. } => {
            // We know that nobody else has the address, and it shall serve at once.
            let no_route = if *prefix_route { AddressFlags::empty() } else { AddressFlags::Noprefixroute };
            (Message::NewAddress(address(*net, index, AddressFlags::Nodad | no_route)), set)
        }
        Change::RemoveAddress { address: net, .. } => (Message::DelAddress(address(*net, index, AddressFlags::empty())), 0),
        Change::AddNeighbour(wanted) => (Message::NewNeighbour(neighbour(wanted, index)), set),
        Change::RemoveNeighbour(unwanted) => (Message::DelNeighbour(neighbour(unwanted, index)), 0),
        Change::AddForwarding(wanted) => (Message::NewNeighbour(forwarding(wanted, index)), set),
        Change::RemoveForwarding(unwanted) => (Message::DelNeighbour(forwarding(unwanted, index)), 0),
        Change::AddNextHop(wanted) => return (Body::Hop(hop::Message::New { id: wanted.id, gateway: wanted.gateway, link: index }), set),
        Change::RemoveNextHop(unwanted) => return (Body::Hop(hop::Message::Delete { id: unwanted.id }), 0),
        Change::AddRoute(wanted) => {
            // A local route stands beside the kernel's own of the same address and must not take its place.
            let local = matches!(wanted.kind, RouteKind::Local { .. });
            (Message::NewRoute(route(wanted, index)), if local { CREATE | EXCL } else { set })
        }
        Change::RemoveRoute(unwanted) => (Message::DelRoute(route(unwanted, index)), 0),
        Change::AddRule(wanted) => (Message::NewRule(rule(wanted)), CREATE | EXCL),
        Change::RemoveRule(unwanted) => (Message::DelRule(rule(unwanted)), 0),
    };
    (message.into(), flags)
}

/// A veth pair: one end here and up, the other in the namespace `peer_in` and still down.
pub(super) fn new_veth(here: &VethEnd<'_>, peer: &VethEnd<'_>, peer_in: BorrowedFd<'_>, mtu: u32) -> Asked {
    let other = with_mac(LinkUnspec::new_with_name(peer.name).mtu(mtu), peer.mac).setns_by_fd(peer_in.as_raw_fd()).build();
    // Not `LinkVeth::new`: its other end has a name and no more.
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).name(here.name).mtu(mtu).up();
    let pair = with_mac(pair, here.mac).set_info_data(InfoData::Veth(InfoVeth::Peer(other)));
    (Message::NewLink(pair.build()).into(), CREATE | EXCL)
}

/// A VXLAN device, up, in the namespace `place`; its packets go by the namespace this is sent in.
///
/// Nothing is learned: who is where is told.
pub(super) fn new_vxlan(name: &str, vxlan: &Vxlan, mac: Mac, mtu: u32, place: BorrowedFd<'_>) -> Asked {
    let device = LinkVxlan::new(name, vxlan.vni).port(vxlan.port).learning(false);
    let device = match vxlan.underlay {
        IpAddr::V4(address) => device.local(address),
        IpAddr::V6(address) => device.local6(address),
    };
    let device = with_mac(device.mtu(mtu).up(), Some(mac)).setns_by_fd(place.as_raw_fd());
    (Message::NewLink(device.build()).into(), CREATE | EXCL)
}

/// A device on the link `parent`, with an address of its own there, still down, in the namespace `place`.
pub(super) fn new_macvlan(name: &str, parent: u32, mode: LanMode, mac: Option<Mac>, place: BorrowedFd<'_>) -> Asked {
    let mode = match mode {
        LanMode::Bridge => MacVlanMode::Bridge,
        LanMode::Private => MacVlanMode::Private,
        LanMode::Vepa => MacVlanMode::Vepa,
        LanMode::Passthru => MacVlanMode::Passthrough,
    };
    let device = with_mac(LinkMacVlan::new(name, parent, mode), mac).setns_by_fd(place.as_raw_fd());
    (Message::NewLink(device.build()).into(), CREATE | EXCL)
}

/// A WireGuard device, down: what it needs first is said to it in its own language.
pub(super) fn new_wireguard(name: &str) -> Asked {
    (Message::NewLink(LinkWireguard::new(name).build()).into(), CREATE | EXCL)
}

pub(super) fn delete_link(name: &str) -> Asked {
    (Message::DelLink(LinkUnspec::new_with_name(name).build()).into(), 0)
}

/// A link without its counters takes a third of the bytes.
fn without_counters<T>(builder: LinkMessageBuilder<T>) -> Message {
    Message::GetLink(builder.append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])).build())
}

pub(super) fn get_link(name: &str) -> Message {
    without_counters(LinkUnspec::new_with_name(name))
}

pub(super) fn get_link_of(index: u32) -> Message {
    without_counters(LinkUnspec::new_with_index(index))
}

pub(super) fn get_links() -> Message {
    without_counters(LinkMessageBuilder::<LinkUnspec>::new())
}

/// Of all links, or only one.
pub(super) fn get_addresses(only: Option<u32>) -> Message {
    let mut message = AddressMessage::default();
    message.header.index = only.unwrap_or(0);
    Message::GetAddress(message)
}

/// Of both families, by whatever link or only one.
pub(super) fn get_routes(only: Option<u32>) -> Message {
    let mut message = RouteMessage::default();
    message.attributes.extend(only.map(RouteAttribute::Oif));
    Message::GetRoute(message)
}

/// The way that a packet to this address takes.
pub(super) fn get_route_to(to: IpAddr) -> Message {
    let whole = if to.is_ipv4() { 32 } else { 128 };
    let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to, whole).expect("a prefix is no longer than its address");
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    message.header.destination_prefix_length = whole;
    message.attributes = route.build().attributes;
    Message::GetRoute(message)
}

/// Of both families, on whatever link or only one.
pub(super) fn get_neighbours(only: Option<u32>) -> Message {
    let mut message = NeighbourMessage::default();
    message.attributes.extend(only.map(NeighbourAttribute::IfIndex));
    Message::GetNeighbour(message)
}

/// Who is behind which end of all VXLAN devices and bridges.
pub(super) fn get_forwardings() -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    Message::GetNeighbour(message)
}

pub(super) fn get_rules() -> Message {
    Message::GetRule(RuleMessage::default())
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn with_mac<T>(builder: LinkMessageBuilder<T>, mac: Option<Mac>) -> LinkMessageBuilder<T> {
    match mac {
        Some(mac) => builder.address(mac.0.to_vec()),
        None => builder,
    }
}

fn link(index: u32, mtu: Option<u32>, mac: Option<Mac>, up: bool) -> LinkMessage {
    let mut builder = LinkUnspec::new_with_index(index);
    if up {
        builder = builder.up();
    }
    if let Some(mtu) = mtu {
        builder = builder.mtu(mtu);
    }
    with_mac(builder, mac).build()
}

fn address(net: IpNet, index: u32, flags: AddressFlags) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header = AddressHeader { family: family(net.addr()), prefix_len: net.prefix_len(), index, ..AddressHeader::default() };
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

fn neighbour(neighbour: &Neighbour, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let state = NeighbourState::Permanent;
    message.header = NeighbourHeader { family: family(neighbour.address), ifindex: index, state, ..NeighbourHeader::default() };
    message.attributes = leads_to(neighbour.address, neighbour.mac);
    message
}

fn leads_to(address: IpAddr, mac: Mac) -> Vec<NeighbourAttribute> {
    let destination = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    vec![NeighbourAttribute::Destination(destination), NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())]
}

fn forwarding(forwarding: &Forwarding, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header = NeighbourHeader {
        family: AddressFamily::Bridge,
        ifindex: index,
        state: NeighbourState::Permanent,
        // Of the device itself, not of a bridge it is in.
        flags: NeighbourFlags::Own,
        ..NeighbourHeader::default()
    };
    message.attributes = leads_to(forwarding.to, forwarding.mac);
    message
}

fn route(route: &Route, index: u32) -> RouteMessage {
    let (kind, scope) = match &route.kind {
        RouteKind::Unreachable => (RouteType::Unreachable, RouteScope::Universe),
        RouteKind::Local { .. } => (RouteType::Local, RouteScope::Host),
        RouteKind::Through { gateway: None, .. } => (RouteType::Unicast, RouteScope::Link),
        RouteKind::Through { gateway: Some(_), .. } | RouteKind::Next(_) => (RouteType::Unicast, RouteScope::Universe),
    };
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.to.addr(), route.to.prefix_len())
        .expect("a prefix is no longer than its address")
        .table_id(route.table)
        .protocol(RouteProtocol::Other(PROTOCOL))
        .scope(scope)
        .kind(kind);
    if route.link().is_some() {
        builder = builder.output_interface(index);
    }
    if let RouteKind::Through { gateway: Some(gateway), .. } = &route.kind {
        builder = builder.gateway(*gateway).expect("a gateway is of its route's family").onlink();
    }
    if route.metric != 0 {
        builder = builder.priority(route.metric);
    }
    let mut message = builder.build();
    if let RouteKind::Next(id) = route.kind {
        message.attributes.push(RouteAttribute::Other(DefaultNla::new(hop::ROUTE_BY_ID, id.to_ne_bytes().to_vec())));
    }
    message
}

fn rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let (family, src_len) = match rule.which {
        Which::From(from) => (family(from.addr()), from.prefix_len()),
        Which::Marked { ipv6: false, .. } => (AddressFamily::Inet, 0),
        Which::Marked { ipv6: true, .. } => (AddressFamily::Inet6, 0),
    };
    message.header = RuleHeader { family, src_len, action: RuleAction::ToTable, ..RuleHeader::default() };
    message.attributes = match rule.which {
        Which::From(from) => vec![RuleAttribute::Source(from.addr())],
        Which::Marked { mark, .. } => vec![RuleAttribute::FwMark(mark), RuleAttribute::FwMask(u32::MAX)],
    };
    message.attributes.extend([
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::wire;
    use nix::libc;

    fn bytes(asked: Asked) -> Vec<u8> {
        let mut out = Vec::new();
        append(&mut out, asked.0, asked.1, 7);
        out
    }

    #[test]
    fn a_route_by_a_gateway_says_what_the_kernel_wants_to_hear() {
        let through = RouteKind::Through { link: "eth0".into(), gateway: Some("10.0.1.1".parse().unwrap()) };
        let wanted = Route { table: 1000, metric: 5, ..Route::new("0.0.0.0/0".parse().unwrap(), through) };
        let out = bytes(change(&Change::AddRoute(wanted), 3));
        let message = wire::messages(&out).next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (libc::RTM_NEWROUTE, CREATE | REPLACE, 7));
        // struct rtmsg: family, lengths, tos, table, protocol, scope, type, flags (RTNH_F_ONLINK)
        assert_eq!(message.body[..8], [2, 0, 0, 0, 254, PROTOCOL, 0, libc::RTN_UNICAST]);
        assert_eq!(wire::u32_at(message.body, 8), Some(4));
        let attribute = |kind| wire::attribute(message.body, 12, kind).map(<[u8]>::to_vec);
        assert_eq!(attribute(libc::RTA_GATEWAY), Some(vec![10, 0, 1, 1]));
        assert_eq!(attribute(libc::RTA_OIF), Some(3u32.to_ne_bytes().to_vec()));
        assert_eq!(attribute(libc::RTA_TABLE), Some(1000u32.to_ne_bytes().to_vec()), "the kernel prefers it to the header's");
        assert_eq!(attribute(libc::RTA_PRIORITY), Some(5u32.to_ne_bytes().to_vec()));
    }

    #[test]
    fn messages_follow_each_other_without_a_gap() {
        let mut out = Vec::new();
        for (sequence, name) in (1..).zip(["a", "ab", "abc", "abcd", "abcde"]) {
            append(&mut out, get_link(name), 1, sequence);
        }
        let sequences: Vec<u32> = wire::messages(&out).map(|message| message.sequence).collect();
        assert_eq!(sequences, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn an_address_has_no_broadcast_address() {
        let step = Change::AddAddress { link: "eth0".into(), address: "10.0.1.11/24".parse().unwrap(), prefix_route: false };
        let out = bytes(change(&step, 2));
        let message = wire::messages(&out).next().unwrap();
        let kinds: Vec<u16> = wire::attributes(message.body, 8).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [libc::IFA_LOCAL, libc::IFA_ADDRESS, libc::IFA_FLAGS]);
        assert_eq!(wire::attribute(message.body, 8, libc::IFA_FLAGS), Some(&0x202u32.to_ne_bytes()[..]));
    }
}
