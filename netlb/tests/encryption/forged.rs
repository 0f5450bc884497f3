//! Who forges: VXLAN packets from the client on the cable, and whether a task of the first host hears them.

use crate::hosts::*;
use crate::support::*;
use skep_netlb::Network;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

const PORT: u16 = 99;
const VXLAN: u16 = 4789;

/// How the packet travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    V4,
    /// In two pieces; the number of the network is in the second.
    V4Pieces,
    V6,
    V6Pieces,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::V4, Self::V4Pieces, Self::V6, Self::V6Pieces];

    pub fn is_ipv4(self) -> bool {
        matches!(self, Self::V4 | Self::V4Pieces)
    }

    fn in_pieces(self) -> bool {
        matches!(self, Self::V4Pieces | Self::V6Pieces)
    }
}

/// A socket in a task that nobody but a forger sends to.
pub struct Ear(UdpSocket);

impl Ear {
    pub fn open(task: &Path) -> Self {
        let socket = within(task, || UdpSocket::bind(("0.0.0.0", PORT)).unwrap());
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    pub fn heard(&self) -> bool {
        self.0.recv(&mut [0; 100]).is_ok()
    }
}

/// A packet to the first task as if from the second, as the second host would send it.
pub struct Forged {
    vxlan: Vec<u8>,
}

impl Forged {
    pub fn new(network: &Network) -> Self {
        let [_, vni @ ..] = network.vni.to_be_bytes();
        let mac = |index: u8| [2, 0xab, vni[1], vni[2], 0, index];
        let inner = ipv4([10, 0, 2, 12], [10, 0, 2, 11], 17, 0, false, &udp(PORT, b"forged", None));
        // RFC 7348 §5: the flag that the number is valid, the number; then an Ethernet frame
        let header = [&[8, 0, 0, 0][..], &vni, &[0]].concat();
        Self { vxlan: [&header[..], &mac(1), &mac(2), &[8, 0], &inner].concat() }
    }

    /// From the client to that host.
    pub fn send(&self, way: Way, host: u8) {
        let (from, to): (IpAddr, IpAddr) = match way.is_ipv4() {
            true => (CLIENT.parse().unwrap(), address(host).parse().unwrap()),
            false => (CLIENT6.parse().unwrap(), address6(host).parse().unwrap()),
        };
        let outer = udp(VXLAN, &self.vxlan, Some((from, to)));
        let id = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
        let packets = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) if way.in_pieces() => pieces(&outer, |offset, more, part| {
                let field = (offset / 8) | if more { 0x2000 } else { 0 };
                ipv4_piece(from.octets(), to.octets(), 17, (id as u16, field), part)
            }),
            (IpAddr::V4(from), IpAddr::V4(to)) => vec![ipv4(from.octets(), to.octets(), 17, 0, false, &outer)],
            (IpAddr::V6(from), IpAddr::V6(to)) if way.in_pieces() => pieces(&outer, |offset, more, part| {
                // RFC 8200 §4.5
                let header = [&[17, 0][..], &(offset | u16::from(more)).to_be_bytes(), &id.to_be_bytes()].concat();
                ipv6(from.octets(), to.octets(), 44, &[&header, part].concat())
            }),
            (IpAddr::V6(from), IpAddr::V6(to)) => vec![ipv6(from.octets(), to.octets(), 17, &outer)],
            _ => unreachable!("both are of one family"),
        };
        within(&World::client(), || {
            let domain = if way.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            // Protocol 255 is `IPPROTO_RAW`: the header is ours.
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255))).unwrap();
            for packet in packets {
                socket.send_to(&packet, &SocketAddr::new(to, 0).into()).unwrap();
            }
        });
    }
}

/// The first with the UDP header only, the second with all the rest.
fn pieces(payload: &[u8], piece: impl Fn(u16, bool, &[u8]) -> Vec<u8>) -> Vec<Vec<u8>> {
    vec![piece(0, true, &payload[..8]), piece(8, false, &payload[8..])]
}

fn udp(port: u16, payload: &[u8], between: Option<(IpAddr, IpAddr)>) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let mut packet = [&40_000u16.to_be_bytes()[..], &port.to_be_bytes(), &length, &[0, 0], payload].concat();
    if let Some((IpAddr::V6(from), IpAddr::V6(to))) = between {
        // RFC 8200 §8.1: with IPv6 there must be a checksum.
        let pseudo = [&from.octets()[..], &to.octets(), &[0, 0], &length, &[0, 0, 0, 17]].concat();
        let sum = checksum(&[&pseudo[..], &packet].concat());
        packet[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, id: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    ipv4_piece(from, to, protocol, (id, if more { 0x2000 } else { 0 }), payload)
}

fn ipv4_piece(from: [u8; 4], to: [u8; 4], protocol: u8, (id, field): (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap();
    let mut header =
        [&[0x45, 0][..], &length.to_be_bytes(), &id.to_be_bytes(), &field.to_be_bytes(), &[64, protocol, 0, 0], &from, &to].concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header, payload].concat()
}

fn ipv6(from: [u8; 16], to: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[next, 64], &from, &to, payload].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
