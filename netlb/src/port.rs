//! Whether somebody else on this host listens on a port.

use crate::wanted::Protocol;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, setsockopt, socket, sockopt,
};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

/// Whether a process on this host holds that port, in the namespace of the calling thread.
///
/// Our rules would lead new connections to tasks all the same, and that process would wonder where its clients are. Found
/// by trying to bind, so a port below 1024 needs the right to do so. SCTP is not looked at: `false`.
#[must_use]
pub fn port_is_taken(protocol: Protocol, port: u16) -> bool {
    let (kind, wire) = match protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        Protocol::Sctp => return false,
    };
    let v4 = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
    let v6 = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
    in_use(AddressFamily::Inet, kind, wire, &v4) || in_use(AddressFamily::Inet6, kind, wire, &v6)
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
        assert!(port_is_taken(Protocol::Tcp, port));
        assert!(!port_is_taken(Protocol::Udp, port), "another protocol, another port");
        drop(listener);
        assert!(!port_is_taken(Protocol::Tcp, port));
    }

    #[test]
    fn a_bound_udp_socket_takes_its_port() {
        let held = std::net::UdpSocket::bind("[::1]:0").unwrap();
        assert!(port_is_taken(Protocol::Udp, held.local_addr().unwrap().port()));
    }
}
