//! In which subnets this machine is by itself.

use crate::names;
use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The subnets of the machine's own devices in the calling thread's network namespace: not loopback, no link-local ones, and not
/// those of devices that some [`Netlb`](crate::Netlb) made. None if the kernel does not say.
#[must_use]
pub fn local_prefixes() -> Vec<IpNet> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    let found = all.filter(|device| !names::is_some_instances(&device.interface_name)).filter_map(|device| {
        let prefix = prefix_length(ip(device.netmask.as_ref()?)?);
        Some(IpNet::new(ip(device.address.as_ref()?)?, prefix).ok()?.trunc())
    });
    // A single address is nobody's network.
    found.filter(|net| is_a_lan(net) && net.prefix_len() < net.max_prefix_len()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The device that has an address.
pub(crate) fn device_of(address: IpAddr) -> Option<String> {
    let mut all = getifaddrs().ok()?;
    all.find(|device| device.address.as_ref().and_then(ip) == Some(address)).map(|device| device.interface_name)
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

fn prefix_length(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => u32::from(mask).leading_ones(),
        IpAddr::V6(mask) => u128::from(mask).leading_ones(),
    };
    u8::try_from(ones).unwrap_or(u8::MAX)
}

fn is_a_lan(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => !net.addr().is_loopback() && !net.addr().is_link_local(),
        IpNet::V6(net) => !net.addr().is_loopback() && !net.addr().is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_link_local_are_no_lans() {
        let lan = |text: &str| is_a_lan(&text.parse().unwrap());
        assert!(lan("192.168.1.0/24") && lan("2001:db8::/64") && lan("fd00::/64"));
        assert!(!lan("127.0.0.0/8") && !lan("169.254.0.0/16") && !lan("fe80::/64") && !lan("::1/128"));
        assert_eq!((prefix_length([255, 255, 240, 0].into()), prefix_length("ffff:ffff::".parse().unwrap())), (20, 32));
    }

    #[test]
    fn loopback_has_its_device() {
        assert_eq!(device_of([127, 0, 0, 1].into()).as_deref(), Some("lo"));
        assert_eq!(device_of([198, 51, 100, 77].into()), None);
    }
}
