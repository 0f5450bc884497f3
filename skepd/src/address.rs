//! Addresses: what the operator gave, and what can be found out.

use anyhow::{Context, Result, bail};
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// The address other nodes are told: what was asked for (with the listening port unless it names one), else the listening
/// address if it is a definite one, else the address of the default route's interface, else loopback.
///
/// # Errors
/// If what was asked for is no address, or one that nobody can be reached at.
pub fn advertised(asked: &str, listen: SocketAddr) -> Result<SocketAddr> {
    let chosen = match asked {
        "" if !listen.ip().is_unspecified() => listen,
        "" => SocketAddr::new(own_address().unwrap_or(IpAddr::from([127, 0, 0, 1])), listen.port()),
        text => match (text.parse::<SocketAddr>(), text.trim_matches(['[', ']']).parse::<IpAddr>()) {
            (Ok(full), _) => full,
            (_, Ok(ip)) => SocketAddr::new(ip, listen.port()),
            _ => bail!("advertise_addr: {text:?} is not an IP address with or without a port"),
        },
    };
    if chosen.ip().is_unspecified() || chosen.ip().is_multicast() || chosen.port() == 0 {
        bail!("advertise_addr: nobody can be reached at {chosen}; name an address of this machine");
    }
    Ok(chosen)
}

/// # Errors
/// If `asked` is no address with a port.
pub fn listening(asked: &str, default: SocketAddr) -> Result<SocketAddr> {
    if asked.is_empty() {
        return Ok(default);
    }
    let parsed: SocketAddr = match asked.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, default.port()),
        Err(_) => asked.parse().with_context(|| format!("listen_addr: {asked:?} is not IP:PORT"))?,
    };
    if parsed.port() == 0 {
        bail!("listen_addr: port 0 would change with every start; choose a port");
    }
    Ok(parsed)
}

/// The source address the kernel would use for the outside; connecting a datagram socket sends nothing (documentation
/// addresses of RFC 5737 and RFC 3849).
fn own_address() -> Option<IpAddr> {
    for (local, outside) in [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")] {
        let found =
            UdpSocket::bind(local).and_then(|socket| socket.connect(outside).map(|()| socket)).and_then(|socket| socket.local_addr());
        if let Ok(address) = found {
            return Some(address.ip());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definite_listening_address_is_advertised() {
        let listen = "10.1.2.3:2377".parse().unwrap();
        assert_eq!(advertised("", listen).unwrap(), listen);
        assert_eq!(advertised("10.9.9.9", listen).unwrap(), "10.9.9.9:2377".parse().unwrap());
        assert_eq!(advertised("[fd00::1]:99", listen).unwrap(), "[fd00::1]:99".parse().unwrap());
    }

    #[test]
    fn addresses_that_reach_nobody_are_refused_by_name() {
        let listen = "0.0.0.0:2377".parse().unwrap();
        for wrong in ["0.0.0.0", "::", "224.0.0.1", "host", "1.2.3.4:0", "1.2.3"] {
            assert!(format!("{:#}", advertised(wrong, listen).unwrap_err()).contains("advertise_addr"), "{wrong}");
        }
        assert!(listening("1.2.3.4:0", listen).is_err());
        assert!(listening("x", listen).is_err());
    }
}
