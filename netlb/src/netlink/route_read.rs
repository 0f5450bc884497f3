//! Reading what of ours is in a namespace.

use super::route::{PROTOCOL, RouteSocket};
use super::socket::{DUMP, REQUEST};
use super::wire::{self, Message, Writer};
use crate::plan::{Link, Neighbour, Route, RouteKind, Rule, State};
use crate::wanted::Mac;
use ipnet::IpNet;
use nix::libc;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `RTEXT_FILTER_SKIP_STATS`: a link without its counters takes a third of the bytes.
pub(super) const SKIP_STATISTICS: u32 = 1 << 3;
pub(super) const FRA_SRC: u16 = 2;
pub(super) const FRA_PRIORITY: u16 = 6;
pub(super) const FRA_TABLE: u16 = 15;
pub(super) const FRA_PROTOCOL: u16 = 21;
/// What the kernel gives an IPv6 route without a metric (`IP6_RT_PRIO_USER`).
const USUAL_METRIC_V6: u32 = 1024;

impl RouteSocket {
    /// The links that `ours` accepts, and the routes, neighbours and rules that are ours on them.
    pub(crate) fn read(&mut self, ours: impl Fn(&str) -> bool) -> io::Result<State> {
        let mut state = State::default();
        let mut names = BTreeMap::new();
        self.dump(libc::RTM_GETLINK, &link_request(), |message| {
            if let Some((index, name, link)) = read_link(&message)
                && ours(&name)
            {
                names.insert(index, name.clone());
                state.links.insert(name, link);
            }
        })?;
        self.read_on(&mut state, &names, None)?;
        self.dump(libc::RTM_GETRULE, &[0; 12], |message| state.rules.extend(read_rule(&message)))?;
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
        self.dump(libc::RTM_GETADDR, &address_request(only), |message| {
            if let Some((index, address)) = read_address(&message)
                && let Some(link) = names.get(&index).and_then(|name| state.links.get_mut(name))
            {
                link.addresses.insert(address);
            }
        })?;
        // struct rtmsg and struct ndmsg have 12 bytes both.
        let filtered = |kind| filtered(kind, only);
        self.dump(libc::RTM_GETROUTE, &filtered(libc::RTA_OIF), |message| {
            state.routes.extend(read_route(&message, names));
        })?;
        self.dump(libc::RTM_GETNEIGH, &filtered(libc::NDA_IFINDEX), |message| {
            state.neighbours.extend(read_neighbour(&message, names));
        })
    }

    /// Every address in the namespace, whoever's.
    pub(crate) fn all_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        self.dump(libc::RTM_GETADDR, &[0; 8], |message| {
            addresses.extend(read_address(&message).map(|(_, address)| address.addr()));
        })?;
        Ok(addresses)
    }

    fn dump(&mut self, kind: u16, body: &[u8], each: impl FnMut(Message<'_>)) -> io::Result<()> {
        let sequence = self.0.next_sequence();
        let mut out = Writer::default();
        out.begin(kind, REQUEST | DUMP, sequence).put(body);
        out.end();
        self.0.dump(&out, sequence, each)
    }
}

/// struct ifaddrmsg
fn address_request(only: Option<u32>) -> Vec<u8> {
    [[0; 4], only.unwrap_or(0).to_ne_bytes()].concat()
}

fn filtered(link_attribute: u16, only: Option<u32>) -> Vec<u8> {
    let mut out = Writer::default();
    out.put(&[0; 12]);
    if let Some(index) = only {
        out.host_u32(link_attribute, index);
    }
    out.as_bytes().to_vec()
}

/// struct ifinfomsg and the wish for no statistics.
fn link_request() -> Vec<u8> {
    let mut out = Writer::default();
    out.put(&[0; 16]).host_u32(libc::IFLA_EXT_MASK, SKIP_STATISTICS);
    out.as_bytes().to_vec()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)))
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))))
        .ok()
}

fn number(body: &[u8], skip: usize, kind: u16) -> Option<u32> {
    wire::attribute(body, skip, kind).and_then(|value| wire::u32_at(value, 0))
}

fn read_link(message: &Message<'_>) -> Option<(u32, String, Link)> {
    const FIXED: usize = 16;
    let body = message.body;
    let name = wire::text(wire::attribute(body, FIXED, libc::IFLA_IFNAME)?);
    let mac = wire::attribute(body, FIXED, libc::IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()).map(Mac);
    let link =
        Link { mtu: number(body, FIXED, libc::IFLA_MTU), mac, up: wire::u32_at(body, 8)? & libc::IFF_UP as u32 != 0, ..Link::default() };
    Some((wire::u32_at(body, 4)?, name, link))
}

fn read_address(message: &Message<'_>) -> Option<(u32, IpNet)> {
    const FIXED: usize = 8;
    let body = message.body;
    let local = wire::attribute(body, FIXED, libc::IFA_LOCAL).or_else(|| wire::attribute(body, FIXED, libc::IFA_ADDRESS));
    let address = address(local?)?;
    let made_by_the_kernel = match address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    };
    if made_by_the_kernel {
        return None;
    }
    Some((wire::u32_at(body, 4)?, IpNet::new(address, *body.get(1)?).ok()?))
}

fn read_route(message: &Message<'_>, names: &BTreeMap<u32, String>) -> Option<Route> {
    const FIXED: usize = 12;
    let body = message.body;
    let (family, length, protocol, kind) = (*body.first()?, *body.get(1)?, *body.get(5)?, *body.get(7)?);
    if protocol != PROTOCOL {
        return None;
    }
    let nowhere: IpAddr = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let to = wire::attribute(body, FIXED, libc::RTA_DST).and_then(address).unwrap_or(nowhere);
    let link = || number(body, FIXED, libc::RTA_OIF).and_then(|index| names.get(&index)).cloned();
    let kind = match kind {
        libc::RTN_UNREACHABLE => RouteKind::Unreachable,
        libc::RTN_LOCAL => RouteKind::Local { link: link()? },
        libc::RTN_UNICAST => {
            let gateway = wire::attribute(body, FIXED, libc::RTA_GATEWAY).and_then(address);
            RouteKind::Through { link: link()?, gateway }
        }
        _ => return None,
    };
    let metric = number(body, FIXED, libc::RTA_PRIORITY).unwrap_or(0);
    let metric = if to.is_ipv6() && metric == USUAL_METRIC_V6 { 0 } else { metric };
    let table = number(body, FIXED, libc::RTA_TABLE).unwrap_or(u32::from(*body.get(4)?));
    Some(Route { table, metric, ..Route::new(IpNet::new(to, length).ok()?, kind) })
}

fn read_neighbour(message: &Message<'_>, names: &BTreeMap<u32, String>) -> Option<Neighbour> {
    const FIXED: usize = 12;
    let body = message.body;
    if wire::u16_at(body, 8)? & libc::NUD_PERMANENT == 0 {
        return None;
    }
    Some(Neighbour {
        address: address(wire::attribute(body, FIXED, libc::NDA_DST)?)?,
        mac: Mac(wire::attribute(body, FIXED, libc::NDA_LLADDR)?.try_into().ok()?),
        link: names.get(&wire::u32_at(body, 4)?)?.clone(),
    })
}

fn read_rule(message: &Message<'_>) -> Option<Rule> {
    const FIXED: usize = 12;
    let body = message.body;
    if wire::attribute(body, FIXED, FRA_PROTOCOL)? != [PROTOCOL] {
        return None;
    }
    let from = address(wire::attribute(body, FIXED, FRA_SRC)?)?;
    Some(Rule {
        from: IpNet::new(from, *body.get(2)?).ok()?,
        table: number(body, FIXED, FRA_TABLE)?,
        priority: number(body, FIXED, FRA_PRIORITY)?,
    })
}
