//! Changing links, addresses, routes, neighbours and rules (`rtnetlink(7)`).

use super::socket::{ACK, CREATE, EXCL, REPLACE, REQUEST, Socket};
use super::wire::{self, Writer};
use crate::plan::{Change, Neighbour, Route, RouteKind, Rule};
use crate::wanted::Mac;
use ipnet::IpNet;
use nix::libc;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Marks routes and rules as ours (`rtm_protocol`; below 100 and given to nobody in `/etc/iproute2/rt_protos`).
pub(crate) const PROTOCOL: u8 = 83;
const UP: u32 = libc::IFF_UP as u32;
/// `IFA_F_NODAD`: we know that nobody else has the address, and it shall serve at once.
const NO_DUPLICATE_DETECTION: u32 = 0x02;
const NO_PREFIX_ROUTE: u32 = 0x200;
/// Steps per `send`: each takes below 100 bytes, and their answers must fit the receive buffer.
const STEPS_PER_SEND: usize = 256;

/// Routing netlink in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct RouteSocket(pub(super) Socket);

/// One end of a veth pair.
#[derive(Debug, Clone)]
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<Mac>,
}

/// What could not be done, and why.
pub(crate) type Failed = (Change, io::Error);

impl RouteSocket {
    pub(crate) fn open() -> io::Result<Self> {
        Socket::route().map(Self)
    }

    /// Sends one message and waits for its acknowledgement.
    fn request(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) -> io::Result<()> {
        let sequence = self.0.next_sequence();
        let mut out = Writer::default();
        out.begin(kind, REQUEST | ACK | flags, sequence);
        body(&mut out);
        out.end();
        self.0.acknowledged(&out, sequence, 1)?.remove(0)
    }

    /// The index of a link, `None` if there is none of that name.
    pub(crate) fn link_index(&mut self, name: &str) -> io::Result<Option<u32>> {
        self.link(name, |message| wire::u32_at(message.body, 4))
    }

    /// What `read` makes of the kernel's description of a link.
    pub(super) fn link<T>(&mut self, name: &str, read: impl Fn(wire::Message<'_>) -> Option<T>) -> io::Result<Option<T>> {
        let sequence = self.0.next_sequence();
        let mut out = Writer::default();
        out.begin(libc::RTM_GETLINK, REQUEST, sequence);
        link_header(&mut out, 0, 0, 0);
        out.text(libc::IFLA_IFNAME, name).host_u32(libc::IFLA_EXT_MASK, super::route_read::SKIP_STATISTICS);
        out.end();
        let mut found = None;
        match self.0.dump(&out, sequence, |message| found = read(message)) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// Makes a veth pair, the other end in the namespace `peer_in` and still down: the kernel refuses to bring an end up
    /// that has no other yet (ENOTCONN), and the other end is made first.
    pub(crate) fn create_veth(&mut self, here: &VethEnd<'_>, peer: &VethEnd<'_>, peer_in: BorrowedFd<'_>, mtu: u32) -> io::Result<()> {
        const VETH_INFO_PEER: u16 = 1;
        let end = |out: &mut Writer, end: &VethEnd<'_>| {
            out.text(libc::IFLA_IFNAME, end.name).host_u32(libc::IFLA_MTU, mtu);
            if let Some(mac) = end.mac {
                out.attribute(libc::IFLA_ADDRESS, &mac.0);
            }
        };
        self.request(libc::RTM_NEWLINK, CREATE | EXCL, |out| {
            link_header(out, 0, UP, UP);
            end(out, here);
            out.nest(libc::IFLA_LINKINFO, |out| {
                out.attribute(libc::IFLA_INFO_KIND, b"veth").nest(libc::IFLA_INFO_DATA, |out| {
                    out.nest(VETH_INFO_PEER, |out| {
                        link_header(out, 0, 0, 0);
                        end(out, peer);
                        out.host_u32(libc::IFLA_NET_NS_FD, peer_in.as_raw_fd().cast_unsigned());
                    });
                });
            });
        })
    }

    /// Deletes a link and waits until it is gone (about 20 ms); one that is not there is no error.
    pub(crate) fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let result = self.request(libc::RTM_DELLINK, 0, |out| {
            link_header(out, 0, 0, 0);
            out.text(libc::IFLA_IFNAME, name);
        });
        match result {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Carries out the changes in order, many to a system call, and goes on after a failure.
    pub(crate) fn apply(&mut self, changes: &[Change]) -> Vec<Failed> {
        let mut failed = Vec::new();
        let mut indexes = BTreeMap::new();
        for part in changes.chunks(STEPS_PER_SEND) {
            let mut sent = Vec::with_capacity(part.len());
            for change in part {
                match change_link(change).map_or(Ok(0), |name| self.index_of(name, &mut indexes)) {
                    Ok(index) => sent.push((change, index)),
                    Err(error) if is_done(change, &error) => {}
                    Err(error) => failed.push((change.clone(), error)),
                }
            }
            let mut out = Writer::default();
            let first = self.0.take_sequences(sent.len());
            for (sequence, (change, index)) in (first..).zip(&sent) {
                encode(&mut out, change, *index, sequence);
            }
            let sent: Vec<&Change> = sent.into_iter().map(|(change, _)| change).collect();
            match self.0.acknowledged(&out, first, sent.len()) {
                Ok(results) => {
                    let refused = sent.into_iter().zip(results).filter_map(|(change, result)| Some((change, result.err()?)));
                    failed.extend(refused.filter(|(c, e)| !is_done(c, e)).map(|(change, error)| (change.clone(), error)));
                }
                Err(error) => {
                    let kind = error.kind();
                    failed.extend(sent.into_iter().map(|change| (change.clone(), io::Error::from(kind))));
                }
            }
        }
        failed
    }

    fn index_of(&mut self, name: &str, known: &mut BTreeMap<String, u32>) -> io::Result<u32> {
        if let Some(index) = known.get(name) {
            return Ok(*index);
        }
        let index = self.link_index(name)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        known.insert(name.to_owned(), index);
        Ok(index)
    }
}

/// The link a change is about, if it is about one.
pub(crate) fn change_link(change: &Change) -> Option<&str> {
    match change {
        Change::RemoveLink(name) | Change::SetLink { name, .. } => Some(name),
        Change::RemoveAddress { link, .. } | Change::AddAddress { link, .. } => Some(link),
        Change::AddNeighbour(neighbour) | Change::RemoveNeighbour(neighbour) => Some(&neighbour.link),
        Change::AddRoute(route) | Change::RemoveRoute(route) => route.link(),
        Change::AddRule(_) | Change::RemoveRule(_) => None,
    }
}

/// Whether the error says that things are as they should be: it is there already, or gone already.
fn is_done(change: &Change, error: &io::Error) -> bool {
    let code = error.raw_os_error().unwrap_or(0);
    match change {
        Change::SetLink { .. } => false,
        Change::AddAddress { .. } | Change::AddNeighbour(_) | Change::AddRoute(_) | Change::AddRule(_) => code == libc::EEXIST,
        Change::RemoveLink(_)
        | Change::RemoveRule(_)
        | Change::RemoveRoute(_)
        | Change::RemoveNeighbour(_)
        | Change::RemoveAddress { .. } => [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL].contains(&code),
    }
}

/// struct ifinfomsg
fn link_header(out: &mut Writer, index: u32, flags: u32, change: u32) {
    out.put(&[libc::AF_UNSPEC as u8, 0, 0, 0]).put(&index.to_ne_bytes());
    out.put(&flags.to_ne_bytes()).put(&change.to_ne_bytes());
}

pub(super) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn address_attribute(out: &mut Writer, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => out.attribute(kind, &address.octets()),
        IpAddr::V6(address) => out.attribute(kind, &address.octets()),
    };
}

fn encode(out: &mut Writer, change: &Change, index: u32, sequence: u32) {
    let flags = REQUEST | ACK;
    let set = flags | CREATE | REPLACE;
    match change {
        Change::RemoveLink(_) => {
            out.begin(libc::RTM_DELLINK, flags, sequence);
            link_header(out, index, 0, 0);
        }
        Change::SetLink { mtu, mac, up, .. } => {
            out.begin(libc::RTM_NEWLINK, flags, sequence);
            let up = if *up { UP } else { 0 };
            link_header(out, index, up, up);
            if let Some(mtu) = mtu {
                out.host_u32(libc::IFLA_MTU, *mtu);
            }
            if let Some(mac) = mac {
                out.attribute(libc::IFLA_ADDRESS, &mac.0);
            }
        }
        Change::AddAddress { address, prefix_route, .. } => {
            out.begin(libc::RTM_NEWADDR, set, sequence);
            let no_route = if *prefix_route { 0 } else { NO_PREFIX_ROUTE };
            encode_address(out, *address, index, NO_DUPLICATE_DETECTION | no_route);
        }
        Change::RemoveAddress { address, .. } => {
            out.begin(libc::RTM_DELADDR, flags, sequence);
            encode_address(out, *address, index, 0);
        }
        Change::AddNeighbour(neighbour) => {
            out.begin(libc::RTM_NEWNEIGH, set, sequence);
            encode_neighbour(out, neighbour, index);
        }
        Change::RemoveNeighbour(neighbour) => {
            out.begin(libc::RTM_DELNEIGH, flags, sequence);
            encode_neighbour(out, neighbour, index);
        }
        Change::AddRoute(route) => {
            // A local route stands beside the kernel's own of the same address and must not take its place.
            let local = matches!(route.kind, RouteKind::Local { .. });
            out.begin(libc::RTM_NEWROUTE, if local { flags | CREATE | EXCL } else { set }, sequence);
            encode_route(out, route, index);
        }
        Change::RemoveRoute(route) => {
            out.begin(libc::RTM_DELROUTE, flags, sequence);
            encode_route(out, route, index);
        }
        Change::AddRule(rule) => {
            out.begin(libc::RTM_NEWRULE, flags | CREATE | EXCL, sequence);
            encode_rule(out, rule);
        }
        Change::RemoveRule(rule) => {
            out.begin(libc::RTM_DELRULE, flags, sequence);
            encode_rule(out, rule);
        }
    }
    out.end();
}

/// struct ifaddrmsg
fn encode_address(out: &mut Writer, address: IpNet, index: u32, flags: u32) {
    out.put(&[family(address.addr()), address.prefix_len(), 0, libc::RT_SCOPE_UNIVERSE]).put(&index.to_ne_bytes());
    address_attribute(out, libc::IFA_LOCAL, address.addr());
    address_attribute(out, libc::IFA_ADDRESS, address.addr());
    if flags != 0 {
        out.host_u32(libc::IFA_FLAGS, flags);
    }
}

/// struct ndmsg
fn encode_neighbour(out: &mut Writer, neighbour: &Neighbour, index: u32) {
    out.put(&[family(neighbour.address), 0, 0, 0]).put(&index.to_ne_bytes());
    out.put(&libc::NUD_PERMANENT.to_ne_bytes()).put(&[0, 0]);
    address_attribute(out, libc::NDA_DST, neighbour.address);
    out.attribute(libc::NDA_LLADDR, &neighbour.mac.0);
}

/// struct rtmsg
fn encode_route(out: &mut Writer, route: &Route, index: u32) {
    const ON_LINK: u32 = 4;
    let (kind, scope, flags) = match &route.kind {
        RouteKind::Unreachable => (libc::RTN_UNREACHABLE, libc::RT_SCOPE_UNIVERSE, 0),
        RouteKind::Local { .. } => (libc::RTN_LOCAL, libc::RT_SCOPE_HOST, 0),
        RouteKind::Through { gateway: None, .. } => (libc::RTN_UNICAST, libc::RT_SCOPE_LINK, 0),
        RouteKind::Through { gateway: Some(_), .. } => (libc::RTN_UNICAST, libc::RT_SCOPE_UNIVERSE, ON_LINK),
    };
    let table = u8::try_from(route.table).unwrap_or(libc::RT_TABLE_UNSPEC);
    out.put(&[family(route.to.addr()), route.to.prefix_len(), 0, 0, table, PROTOCOL, scope, kind]);
    out.put(&flags.to_ne_bytes());
    address_attribute(out, libc::RTA_DST, route.to.addr());
    out.host_u32(libc::RTA_TABLE, route.table);
    if route.link().is_some() {
        out.host_u32(libc::RTA_OIF, index);
    }
    if let RouteKind::Through { gateway: Some(gateway), .. } = &route.kind {
        address_attribute(out, libc::RTA_GATEWAY, *gateway);
    }
    if route.metric != 0 {
        out.host_u32(libc::RTA_PRIORITY, route.metric);
    }
}

/// struct fib_rule_hdr; attributes of `linux/fib_rules.h`
fn encode_rule(out: &mut Writer, rule: &Rule) {
    const TO_TABLE: u8 = 1;
    out.put(&[family(rule.from.addr()), 0, rule.from.prefix_len(), 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0]);
    address_attribute(out, super::route_read::FRA_SRC, rule.from.addr());
    out.host_u32(super::route_read::FRA_PRIORITY, rule.priority).host_u32(super::route_read::FRA_TABLE, rule.table);
    out.attribute(super::route_read::FRA_PROTOCOL, &[PROTOCOL]);
}
