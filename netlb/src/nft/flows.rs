//! Flows that conntrack remembers, and forgetting those that lead to where nothing is any more.
//!
//! Address translation is decided once per flow. A client that keeps its UDP port would go on sending to a backend that
//! left, or, if it spoke before anything was published, to nobody, until the entry times out after 30 to 120 seconds. A TCP
//! connection whose backend is gone for good is taken up in the middle by another one when it is forgotten, which resets it.
//! Messages as `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use super::model::Family;
use super::socket::Nft;
use crate::netlink::socket::{ACK, DUMP, REQUEST};
use crate::netlink::wire::{self, Writer};
use nix::libc;
use std::io;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const GET_STATISTICS: u16 = 5;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const FILTER: u16 = 25;
/// As in the IP header.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// `CTA_FILTER_FLAG(CTA_PROTO_NUM)`
const BY_PROTOCOL: u32 = 1 << 3;
/// `CTA_FILTER_FLAG(CTA_IP_SRC)`
const BY_SOURCE: u32 = 1 << 0;

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Direction {
    pub(crate) source: (IpAddr, u16),
    pub(crate) destination: (IpAddr, u16),
}

/// A flow as its first packet came, and as answers are expected: from the backend, if it was led to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    /// [`TCP`] or [`UDP`].
    pub(crate) protocol: u8,
    pub(crate) original: Direction,
    pub(crate) reply: Direction,
}

impl Nft {
    /// Whether this namespace has flows at all. Looking for some of them walks the table of all namespaces, whose size goes with the
    /// machine's memory: milliseconds; this takes microseconds.
    fn has_flows(&mut self) -> bool {
        let sequence = self.next_sequence();
        let mut out = Writer::default();
        // The answer claims to be one of several; the acknowledgement is the last.
        out.begin(SUBSYSTEM << 8 | GET_STATISTICS, REQUEST | ACK, sequence).put(&[0; 4]).end();
        let mut entries = None;
        // A kernel that does not tell may have some.
        let told = self.socket.dump(out.as_bytes(), sequence, |message| {
            entries = wire::attribute(message.body, 4, 1).and_then(|value| <[u8; 4]>::try_from(value).ok()).map(u32::from_be_bytes);
        });
        told.is_err() || entries != Some(0)
    }

    /// The flows of that protocol that `chosen` accepts.
    pub(crate) fn flows(&mut self, protocol: u8, family: Family, chosen: impl Fn(&Flow) -> bool) -> io::Result<Vec<Flow>> {
        self.find(protocol, family, None, chosen)
    }

    /// The flows of that protocol that were led to this address; of IPv4 the kernel gives no others, of which there may be very many. Its
    /// filter by addresses of IPv6 gives those that do not match (`ctnetlink_filter_match_tuple`), so there all are asked for.
    pub(crate) fn flows_led_to(&mut self, protocol: u8, address: IpAddr) -> io::Result<Vec<Flow>> {
        let is_led = |flow: &Flow| flow.reply.source.0 == address && flow.original.destination.0 != address;
        self.find(protocol, Family::of(address), Some(address).filter(IpAddr::is_ipv4), is_led)
    }

    fn find(&mut self, protocol: u8, family: Family, answers: Option<IpAddr>, chosen: impl Fn(&Flow) -> bool) -> io::Result<Vec<Flow>> {
        if !self.has_flows() {
            return Ok(Vec::new());
        }
        let sequence = self.next_sequence();
        let mut out = Writer::default();
        out.begin(SUBSYSTEM << 8 | GET, REQUEST | DUMP, sequence).put(&[family.number(), 0, 0, 0]);
        // Kernels before 5.8 know no filter and give everything; what is of others is left out below as well.
        out.nest(ORIGINAL, |out| {
            out.nest(2, |out| {
                out.attribute(1, &[protocol]);
            });
        });
        if let Some(answers) = answers {
            out.nest(REPLY, |out| {
                out.nest(1, |out| {
                    out.attribute(if family == Family::V4 { 1 } else { 3 }, &octets(answers));
                });
            });
        }
        out.nest(FILTER, |out| {
            out.host_u32(1, BY_PROTOCOL).host_u32(2, if answers.is_some() { BY_SOURCE } else { 0 });
        });
        out.end();
        let mut flows = Vec::new();
        let chosen = |flow: &Flow| flow.protocol == protocol && chosen(flow);
        self.socket.dump(out.as_bytes(), sequence, |message| flows.extend(read(message.body).filter(chosen)))?;
        Ok(flows)
    }

    /// Forgets a flow; one that is forgotten already is no error.
    pub(crate) fn forget(&mut self, flow: &Flow) -> io::Result<()> {
        let sequence = self.next_sequence();
        let mut out = Writer::default();
        let Direction { source, destination } = flow.original;
        let family = Family::of(source.0);
        out.begin(SUBSYSTEM << 8 | DELETE, REQUEST | ACK, sequence).put(&[family.number(), 0, 0, 0]);
        let first = if family == Family::V4 { 1 } else { 3 };
        out.nest(ORIGINAL, |out| {
            out.nest(1, |out| {
                out.attribute(first, &octets(source.0)).attribute(first + 1, &octets(destination.0));
            });
            out.nest(2, |out| {
                out.attribute(1, &[flow.protocol]).attribute(2, &source.1.to_be_bytes()).attribute(3, &destination.1.to_be_bytes());
            });
        });
        out.end();
        match self.socket.acknowledged(out.as_bytes(), sequence, 1)?.remove(0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn read(body: &[u8]) -> Option<Flow> {
    const FIXED: usize = 4;
    let direction = |kind| read_direction(wire::attribute(body, FIXED, kind)?);
    let ((protocol, original), (_, reply)) = (direction(ORIGINAL)?, direction(REPLY)?);
    Some(Flow { protocol, original, reply })
}

fn read_direction(tuple: &[u8]) -> Option<(u8, Direction)> {
    let (ip, ports) = (wire::attribute(tuple, 0, 1)?, wire::attribute(tuple, 0, 2)?);
    let [protocol @ (TCP | UDP)] = *wire::attribute(ports, 0, 1)? else { return None };
    let address = |v4, v6| -> Option<IpAddr> {
        let four = wire::attribute(ip, 0, v4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
        four.or_else(|| wire::attribute(ip, 0, v6).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from))
    };
    let port = |kind| Some(u16::from_be_bytes(wire::attribute(ports, 0, kind)?.try_into().ok()?));
    Some((protocol, Direction { source: (address(1, 3)?, port(2)?), destination: (address(2, 4)?, port(3)?) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(out: &mut Writer, kind: u16, protocol: u8, source: [u8; 4]) {
        out.nest(kind, |out| {
            out.nest(1, |out| {
                out.attribute(1, &source).attribute(2, &[198, 18, 0, 1]);
            });
            out.nest(2, |out| {
                out.attribute(1, &[protocol]).attribute(2, &[0x30, 0x39]).attribute(3, &[0, 53]);
            });
        });
    }

    #[test]
    fn a_flow_is_read_and_what_has_no_ports_is_not() {
        for (protocol, found) in [(UDP, true), (TCP, true), (1, false)] {
            let mut out = Writer::default();
            out.put(&[2, 0, 0, 0]);
            tuple(&mut out, ORIGINAL, protocol, [198, 18, 0, 9]);
            tuple(&mut out, REPLY, protocol, [10, 0, 1, 11]);
            let flow = read(out.as_bytes());
            assert_eq!(flow.is_some(), found);
            if let Some(flow) = flow {
                assert_eq!(flow.protocol, protocol);
                assert_eq!(flow.original.source, (IpAddr::from([198, 18, 0, 9]), 12345));
                assert_eq!(flow.original.destination, (IpAddr::from([198, 18, 0, 1]), 53));
                assert_eq!(flow.reply.source.0, IpAddr::from([10, 0, 1, 11]));
            }
        }
    }
}
