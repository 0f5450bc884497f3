//! Which way a packet takes, and how large it may be on it.

use super::message;
use super::route::RouteSocket;
use super::socket::REQUEST;
use super::wire;
use nix::libc;
use std::io;
use std::net::IpAddr;

/// Fixed parts: `struct rtmsg`, `struct ifinfomsg`.
const ROUTE_FIXED: usize = 12;
const LINK_FIXED: usize = 16;
/// `RTAX_MTU` of `linux/rtnetlink.h`.
const METRIC_MTU: u16 = 2;

/// The kernel's answer to "how do I get there".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    link: u32,
    /// Of the route, or what a router on the way said of late (RFC 1191, RFC 8201).
    mtu: Option<u32>,
}

impl RouteSocket {
    /// What a packet to an address may measure, in bytes, as far as this machine knows: the least of its device, its route and what routers
    /// on the way said. `None`: no route leads there.
    pub(crate) fn mtu_to(&mut self, to: IpAddr) -> io::Result<Option<u32>> {
        let mut way = None;
        match self.answers(message::get_route_to(to), REQUEST, |message| way = read_way(message)) {
            Err(error) if is_no_way(&error) => return Ok(None),
            other => other?,
        }
        let Some(way) = way else { return Ok(None) };
        let device = self.mtu_of(way.link)?;
        Ok(device.into_iter().chain(way.mtu.filter(|mtu| *mtu > 0)).min())
    }

    /// The size of a device's packets by its name; `None` if there is none.
    pub(crate) fn mtu_of_link(&mut self, name: &str) -> io::Result<Option<u32>> {
        self.link(name, |message| wire::u32_at(wire::attribute(message.body, LINK_FIXED, libc::IFLA_MTU)?, 0))
    }

    fn mtu_of(&mut self, index: u32) -> io::Result<Option<u32>> {
        let mut mtu = None;
        let read = |message: wire::Message<'_>| wire::u32_at(wire::attribute(message.body, LINK_FIXED, libc::IFLA_MTU)?, 0);
        match self.answers(message::get_link_of(index), REQUEST, |message| mtu = read(message)) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            other => other.map(|()| mtu),
        }
    }
}

fn read_way(message: wire::Message<'_>) -> Option<Way> {
    let link = wire::u32_at(wire::attribute(message.body, ROUTE_FIXED, libc::RTA_OIF)?, 0)?;
    let metrics = wire::attribute(message.body, ROUTE_FIXED, libc::RTA_METRICS);
    let mtu = metrics.and_then(|metrics| wire::u32_at(wire::attribute(metrics, 0, METRIC_MTU)?, 0));
    Some(Way { link, mtu })
}

fn is_no_way(error: &io::Error) -> bool {
    [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL].contains(&error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_has_its_device_and_perhaps_a_size() {
        let mut body = wire::Writer::default();
        body.put(&[0; ROUTE_FIXED]).host_u32(libc::RTA_OIF, 3);
        let read = |body: &wire::Writer| read_way(wire::Message { kind: libc::RTM_NEWROUTE, flags: 0, sequence: 1, body: body.as_bytes() });
        assert_eq!(read(&body), Some(Way { link: 3, mtu: None }));
        body.nest(libc::RTA_METRICS, |inner| {
            inner.host_u32(METRIC_MTU, 1400);
        });
        assert_eq!(read(&body), Some(Way { link: 3, mtu: Some(1400) }));
    }

    #[test]
    fn loopback_leads_to_itself_and_its_size_is_known() {
        let mut socket = RouteSocket::open().unwrap();
        let lo = socket.mtu_of_link("lo").unwrap();
        assert!(lo.is_some_and(|mtu| mtu >= 1280), "{lo:?}");
        assert_eq!(socket.mtu_to([127, 0, 0, 1].into()).unwrap(), lo);
        assert_eq!(socket.mtu_of_link("none0").unwrap(), None);
    }
}
