//! Services and targets as attributes of generic netlink (`include/uapi/linux/ip_vs.h`; the numbers below are from there).

use super::model::{Asked, Target, TargetState};
use crate::netlink::wire::{self, Writer};
use crate::nft::Family;
use crate::wanted::Protocol;
use nix::libc;
use std::net::IpAddr;

/// `IPVS_CMD_ATTR_SERVICE`, `IPVS_CMD_ATTR_DEST`
const SERVICE: u16 = 1;
const TARGET: u16 = 2;
/// Each new connection to the next target: what the module `ip_vs_rr` does.
const SCHEDULER: &str = "rr";
/// `IP_VS_CONN_F_MASQ`: the destination is rewritten, and the source of answers.
const REWRITTEN: u32 = 0;
/// Addresses take this much, of whatever family (`union nf_inet_addr`).
const ADDRESS: usize = 16;

fn family_number(family: Family) -> u16 {
    let number = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    u16::try_from(number).expect("families are small numbers")
}

fn address_bytes(address: IpAddr) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    match address {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes = address.octets(),
    }
    bytes
}

fn read_address(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => bytes.get(..4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from),
        Family::V6 => bytes.get(..ADDRESS).and_then(|bytes| <[u8; ADDRESS]>::try_from(bytes).ok()).map(IpAddr::from),
    }
}

/// What names a service.
pub(super) fn service(out: &mut Writer, asked: Asked) {
    named(out, asked, |_| {});
}

/// A service with all that a new one needs.
pub(super) fn whole_service(out: &mut Writer, asked: Asked) {
    named(out, asked, |out| {
        // struct ip_vs_flags: none of all flags
        out.text(6, SCHEDULER).attribute(7, &[[0; 4], [0xff; 4]].concat()).host_u32(8, 0);
        // The netmask is for persistence, and a service without one is refused.
        out.host_u32(9, if asked.family() == Family::V4 { u32::MAX } else { 128 });
    });
}

fn named(out: &mut Writer, asked: Asked, more: impl FnOnce(&mut Writer)) {
    out.nest(SERVICE, |out| {
        out.attribute(1, &family_number(asked.family()).to_ne_bytes());
        match asked {
            Asked::Marked { mark, .. } => {
                out.host_u32(5, mark);
            }
            Asked::At { protocol, address, port } => {
                out.attribute(2, &u16::from(protocol.number()).to_ne_bytes());
                out.attribute(3, &address_bytes(address)).attribute(4, &port.to_be_bytes());
            }
        }
        more(out);
    });
}

/// A target; `open` only where it is added or changed.
pub(super) fn target(out: &mut Writer, target: Target, open: Option<bool>) {
    out.nest(TARGET, |out| {
        out.attribute(1, &address_bytes(target.address)).attribute(2, &target.port.to_be_bytes());
        out.attribute(11, &family_number(Family::of(target.address)).to_ne_bytes());
        if let Some(open) = open {
            // No thresholds of connections: all are taken.
            out.host_u32(3, REWRITTEN).host_u32(4, u32::from(open)).host_u32(5, 0).host_u32(6, 0);
        }
    });
}

/// The service that a message tells of; `None` for one that spreads otherwise than ours do.
pub(super) fn read_service(body: &[u8], fixed: usize) -> Option<Asked> {
    /// `IP_VS_SVC_F_PERSISTENT`, `IP_VS_SVC_F_ONEPACKET`
    const OTHERWISE: u32 = 0x1 | 0x4;
    let service = wire::attribute(body, fixed, SERVICE)?;
    let of = |kind| wire::attribute(service, 0, kind);
    if wire::text(of(6)?) != SCHEDULER || wire::u32_at(of(7)?, 0)? & OTHERWISE != 0 {
        return None;
    }
    let family = read_family(of(1)?)?;
    if let Some(mark) = of(5).and_then(|value| wire::u32_at(value, 0)) {
        return Some(Asked::Marked { family, mark });
    }
    let number = wire::u16_at(of(2)?, 0)?;
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| u16::from(known.number()) == number)?;
    Some(Asked::At { protocol, address: read_address(family, of(3)?)?, port: u16::from_be_bytes(of(4)?.try_into().ok()?) })
}

fn read_family(value: &[u8]) -> Option<Family> {
    let number = wire::u16_at(value, 0)?;
    [Family::V4, Family::V6].into_iter().find(|family| family_number(*family) == number)
}

/// The target of a service of that family.
pub(super) fn read_target(body: &[u8], fixed: usize, family: Family) -> Option<(Target, TargetState)> {
    let target = wire::attribute(body, fixed, TARGET)?;
    let of = |kind| wire::attribute(target, 0, kind);
    let number = |kind| of(kind).and_then(|value| wire::u32_at(value, 0));
    let port = u16::from_be_bytes(of(2)?.try_into().ok()?);
    let open = number(4)? > 0;
    // Active, inactive (closing, or of UDP) and templates.
    let connections = [7, 8, 9].into_iter().filter_map(number).fold(0, u32::saturating_add);
    Some((Target { address: read_address(family, of(1)?)?, port }, TargetState { open, connections }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let services = [
            Asked::Marked { family: Family::V6, mark: 0x5000_0003 },
            Asked::At { protocol: Protocol::Udp, address: "169.254.64.2".parse().unwrap(), port: 8080 },
            Asked::At { protocol: Protocol::Sctp, address: "fd73:6b65:7000::2".parse().unwrap(), port: 1 },
        ];
        for asked in services {
            let mut out = Writer::default();
            out.put(&[0; 4]);
            whole_service(&mut out, asked);
            assert_eq!(read_service(out.as_bytes(), 4), Some(asked));
        }
        for address in ["10.0.1.11", "fd00::b"] {
            let of = Target { address: address.parse().unwrap(), port: 80 };
            let mut out = Writer::default();
            out.put(&[0; 4]);
            target(&mut out, of, Some(true));
            let family = Family::of(of.address);
            assert_eq!(read_target(out.as_bytes(), 4, family), Some((of, TargetState { open: true, connections: 0 })));
        }
    }

    #[test]
    fn a_target_has_these_bytes() {
        let mut out = Writer::default();
        target(&mut out, Target { address: "10.0.1.11".parse().unwrap(), port: 80 }, None);
        let [low, high] = 2u16.to_ne_bytes();
        let wanted: &[u8] = &[
            40, 0, 2, 0x80, 20, 0, 1, 0, 10, 0, 1, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // nest, address
            6, 0, 2, 0, 0, 80, 0, 0, 6, 0, 11, 0, low, high, 0, 0, // port in network order, AF_INET
        ];
        assert_eq!(out.as_bytes(), wanted);
    }
}
