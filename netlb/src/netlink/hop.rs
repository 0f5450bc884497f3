//! Objects for next hops, which `netlink-packet-route` has no words for (`include/uapi/linux/nexthop.h`). Pure.

use super::message::PROTOCOL;
use super::wire::{self, Writer};
use nix::libc;
use std::net::Ipv6Addr;

/// `RTM_NEWNEXTHOP`, `RTM_DELNEXTHOP`, `RTM_GETNEXTHOP`
const NEW: u16 = 104;
const DELETE: u16 = 105;
const GET: u16 = 106;
/// `NHA_ID`, `NHA_OIF`, `NHA_GATEWAY`
const ID: u16 = 1;
const LINK: u16 = 5;
const GATEWAY: u16 = 6;
/// `struct nhmsg`: family, scope, protocol, reserved, flags
const FIXED: usize = 8;
/// `RTA_NH_ID`: the route goes by the next hop of that number.
pub(super) const ROUTE_BY_ID: u16 = 30;

/// What can be asked about next hops.
#[derive(Debug)]
pub(super) enum Message {
    New {
        id: u32,
        gateway: Ipv6Addr,
        link: u32,
    },
    Delete {
        id: u32,
    },
    /// All of the namespace.
    Get,
}

/// A next hop of ours as the kernel tells it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: u32,
    pub(super) gateway: Ipv6Addr,
    pub(super) link: u32,
}

impl Message {
    /// Writes the message behind those already in `bytes`.
    pub(super) fn append(&self, bytes: &mut Vec<u8>, flags: u16, sequence: u32) {
        let mut out = Writer::default();
        let v6 = u8::try_from(libc::AF_INET6).expect("families are small");
        match self {
            Self::New { id, gateway, link } => {
                out.begin(NEW, flags, sequence).put(&[v6, 0, PROTOCOL, 0, 0, 0, 0, 0]);
                out.host_u32(ID, *id).host_u32(LINK, *link).attribute(GATEWAY, &gateway.octets());
            }
            Self::Delete { id } => {
                out.begin(DELETE, flags, sequence).put(&[0; FIXED]).host_u32(ID, *id);
            }
            Self::Get => {
                out.begin(GET, flags, sequence).put(&[0; FIXED]);
            }
        }
        out.end();
        bytes.extend_from_slice(out.as_bytes());
    }
}

/// A next hop if it is one of ours: by one gateway, no group.
pub(super) fn read(message: &wire::Message<'_>) -> Option<Found> {
    let of = |kind| wire::attribute(message.body, FIXED, kind);
    if message.body.get(2) != Some(&PROTOCOL) {
        return None;
    }
    let gateway: [u8; 16] = of(GATEWAY)?.try_into().ok()?;
    Some(Found { id: wire::u32_at(of(ID)?, 0)?, gateway: gateway.into(), link: wire::u32_at(of(LINK)?, 0)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_read_back() {
        let gateway = "fe80::2".parse().unwrap();
        let mut bytes = Vec::new();
        Message::New { id: 2, gateway, link: 7 }.append(&mut bytes, 5, 9);
        let message = wire::messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (NEW, 5, 9));
        assert_eq!(read(&message), Some(Found { id: 2, gateway, link: 7 }));
    }

    #[test]
    fn others_next_hops_are_not_read() {
        let mut out = Writer::default();
        out.begin(NEW, 0, 1).put(&[10, 0, 4, 0, 0, 0, 0, 0]).host_u32(ID, 2).host_u32(LINK, 7).attribute(GATEWAY, &[0; 16]);
        out.end();
        assert_eq!(read(&wire::messages(out.as_bytes()).next().unwrap()), None);
    }

    #[test]
    fn a_removal_has_nothing_but_the_number() {
        let mut bytes = Vec::new();
        Message::Delete { id: 2 }.append(&mut bytes, 5, 9);
        assert_eq!(wire::messages(&bytes).next().unwrap().body, [&[0; 8][..], &[8, 0, 1, 0], &2u32.to_ne_bytes()].concat());
    }
}
