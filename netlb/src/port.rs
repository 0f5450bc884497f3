//! Whether somebody else on this host listens on a port.

use crate::wanted::Protocol;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage, bind, setsockopt, socket,
    sockopt,
};
use skep_types::PublishPlace;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

/// Whether a process on this host holds that port at that place, in the namespace of the calling thread. An address or link that the
/// host has not got is held by nobody.
///
/// Our rules would lead new connections to tasks all the same, and that process would wonder where its clients are. Found
/// by trying to bind, so a port below 1024 needs the right to do so. SCTP is not looked at: `false`.
#[must_use]
pub fn port_is_taken(protocol: Protocol, port: u16, place: &PublishPlace) -> bool {
    let (kind, wire) = match protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        Protocol::Sctp => return false,
    };
    let at = |address: IpAddr| match address {
        IpAddr::V4(address) => in_use(AddressFamily::Inet, kind, wire, &SockaddrIn::from(SocketAddrV4::new(address, port))),
        IpAddr::V6(address) => in_use(AddressFamily::Inet6, kind, wire, &SockaddrIn6::from(SocketAddrV6::new(address, port, 0, 0))),
    };
    match place {
        PublishPlace::Everywhere => at(Ipv4Addr::UNSPECIFIED.into()) || at(Ipv6Addr::UNSPECIFIED.into()),
        PublishPlace::Address(address) => at(*address),
        PublishPlace::Interface(link) => addresses_of(link).into_iter().any(at),
    }
}

/// Those of a link, but for link-local ones, to which nobody can bind without naming the link.
fn addresses_of(link: &str) -> Vec<IpAddr> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    let address = |storage: SockaddrStorage| match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::from(v4.ip())),
        (_, Some(v6)) => Some(IpAddr::from(v6.ip())),
        _ => None,
    };
    let of_link = all.filter(|one| one.interface_name == link).filter_map(|one| one.address.and_then(address));
    of_link.filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())).collect()
}

fn in_use(family: AddressFamily, kind: SockType, wire: SockProtocol, address: &dyn SockaddrLike) -> bool {
    let Ok(fd) = socket(family, kind, SockFlag::SOCK_CLOEXEC, wire) else {
        return false; // a kernel without that family has nobody on it
    };
    // Connections in TIME_WAIT are no reason to refuse; a listener is one with this option too.
    if kind == SockType::Stream && setsockopt(&fd, sockopt::ReuseAddr, &true).is_err() {
        return false;
    }
    if family == AddressFamily::Inet6 && setsockopt(&fd, sockopt::Ipv6V6Only, &true).is_err() {
        return false;
    }
    bind(fd.as_raw_fd(), address) == Err(Errno::EADDRINUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_takes_its_port_and_gives_it_back() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(port_is_taken(Protocol::Tcp, port, &PublishPlace::Everywhere));
        assert!(!port_is_taken(Protocol::Udp, port, &PublishPlace::Everywhere), "another protocol, another port");
        drop(listener);
        assert!(!port_is_taken(Protocol::Tcp, port, &PublishPlace::Everywhere));
    }

    #[test]
    fn a_listener_takes_its_port_at_its_own_address_only() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken = |place: PublishPlace| port_is_taken(Protocol::Tcp, port, &place);
        assert!(taken(PublishPlace::Address([127, 0, 0, 1].into())) && taken(PublishPlace::Interface("lo".into())));
        assert!(!taken(PublishPlace::Address([127, 0, 0, 2].into())));
        assert!(!taken(PublishPlace::Address([192, 0, 2, 1].into())), "no address of this host");
        assert!(!taken(PublishPlace::Interface("none".into())));
    }

    #[test]
    fn a_bound_udp_socket_takes_its_port() {
        let held = std::net::UdpSocket::bind("[::1]:0").unwrap();
        assert!(port_is_taken(Protocol::Udp, held.local_addr().unwrap().port(), &PublishPlace::Everywhere));
    }
}
