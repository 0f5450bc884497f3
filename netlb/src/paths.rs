//! How large a packet between nodes may be.
//!
//! The kernel is asked for the way to each node: its device's size, its route's, and what routers said of late. Routers speak only when
//! something too large comes by, and outer packets may be cut up on their way, so a datagram that must not be cut is sent to each node
//! every minute: as large as the device lets it be, to the port of VXLAN, and all zeros, which is no VXLAN packet to anyone
//! (RFC 7348 §5: the I flag must be set). What a switch drops silently nobody learns of; the nodes tell each other their devices' sizes.

use crate::local::device_of;
use crate::netlink::route::RouteSocket;
use crate::secure::sizes as encrypted_sizes;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// RFC 7348 §5: Ethernet's header inside, VXLAN's, UDP's, and IPv4's; IPv6's is 20 bytes longer.
const OVER_IPV4: u32 = 14 + 8 + 8 + 20;
const OVER_IPV6: u32 = OVER_IPV4 + 20;
/// RFC 8200 §5: a device with less has no IPv6, which the packets between nodes go by inside. On smaller paths outer packets are cut up.
const LEAST: u32 = 1280;
/// The length field of IPv4 (RFC 791 §3.1).
const LARGEST: u32 = 65_535;
/// Ethernet's, where nothing is known.
const USUAL: u32 = 1500;

/// What a packet of a task may measure where those between nodes may measure `path` bytes; `None`: nothing is known of the path.
#[must_use]
pub fn network_mtu(path: Option<u32>, over_ipv6: bool, encrypted: bool) -> u32 {
    let path = path.unwrap_or(USUAL).min(LARGEST);
    let within = match encrypted {
        true => encrypted_sizes(path, over_ipv6).map_or(0, |sizes| sizes.network),
        false => path.saturating_sub(if over_ipv6 { OVER_IPV6 } else { OVER_IPV4 }),
    };
    within.max(LEAST)
}

/// Asks the kernel about the ways to other nodes, in the network namespace of the thread that opened it. Calls take microseconds.
#[derive(Debug)]
pub struct Paths {
    route: RouteSocket,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Paths {
    /// # Errors
    /// If the kernel lets us have no netlink socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self { route: RouteSocket::open()?, v4: prober(Ipv4Addr::UNSPECIFIED.into()), v6: prober(Ipv6Addr::UNSPECIFIED.into()) })
    }

    /// What a packet to that node may measure, in bytes, as far as this one knows; `None`: no route leads there.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn mtu_to(&mut self, node: IpAddr) -> io::Result<Option<u32>> {
        self.route.mtu_to(node)
    }

    /// The size of the device that has this address of this node; `None` if none has it.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn mtu_of_device(&mut self, own: IpAddr) -> io::Result<Option<u32>> {
        match device_of(own) {
            Some(name) => self.route.mtu_of_link(&name),
            None => Ok(None),
        }
    }

    /// Lets routers on the way to the node say how much they take. Nothing waits for an answer: what they say, [`Paths::mtu_to`] tells
    /// from then on. A packet that cannot be sent says nothing either.
    pub fn probe(&self, node: IpAddr, port: u16, size: u32) {
        let (socket, headers) = if node.is_ipv4() { (&self.v4, 28) } else { (&self.v6, 48) };
        let length = usize::try_from(size.min(LARGEST).saturating_sub(headers)).unwrap_or_default();
        if let Some(socket) = socket {
            let _ = socket.send_to(&vec![0; length], (node, port));
        }
    }
}

/// A socket whose packets are not cut up and are sent whatever was heard of the path before; `None`: the kernel does not have the family.
fn prober(any: IpAddr) -> Option<UdpSocket> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.set_nonblocking(true).ok()?;
    // "Probe": whole, and whatever was heard of the path before.
    match any {
        IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE).ok()?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE).ok()?,
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_taken_off_the_path() {
        assert_eq!([network_mtu(Some(1500), false, false), network_mtu(Some(9000), true, false)], [1450, 8930]);
        assert_eq!([network_mtu(Some(1500), false, true), network_mtu(Some(1500), true, true)], [1370, 1350]);
        assert_eq!(network_mtu(None, false, false), 1450, "as on Ethernet");
        assert_eq!(network_mtu(Some(1300), false, false), 1280, "less is no device for IPv6");
        assert_eq!(network_mtu(Some(65_536), false, false), 65_485, "loopback lies about what a packet can be");
    }

    #[test]
    fn the_kernel_knows_the_way_to_itself() {
        let mut paths = Paths::open().unwrap();
        let lo = [127, 0, 0, 1].into();
        assert_eq!(paths.mtu_to(lo).unwrap(), paths.mtu_of_device(lo).unwrap());
        paths.probe(lo, 9, 1500);
    }
}
