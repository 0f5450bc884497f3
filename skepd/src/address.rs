//! Addresses: what the operator gave, and what can be found out.

use crate::config::Config;
use crate::state::{Configured, NodeFile};
use anyhow::{Context, Result, bail};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

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

/// The addresses of a node that enters a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    pub listen: SocketAddr,
    pub advertise: SocketAddr,
    /// Nobody named the advertised one.
    pub found: bool,
    pub configured: Configured,
}

/// What a command asked for, else what the configuration says, else what can be found out.
///
/// # Errors
/// Names the field and what is wrong with it.
pub fn choose(config: &Config, listen: &str, advertise: &str) -> Result<Addresses> {
    let listen = listening(listen, config.listen())?;
    let asked = if advertise.is_empty() { config.advertise_addr.as_deref().unwrap_or_default() } else { advertise };
    let found = asked.is_empty() && listen.ip().is_unspecified();
    Ok(Addresses { listen, advertise: advertised(asked, listen)?, found, configured: configured(config) })
}

fn configured(config: &Config) -> Configured {
    Configured { listen_addr: config.listen_addr, advertise_addr: config.advertise_addr.clone() }
}

/// The addresses of a node that starts again: a configuration that changed since wins, and an address that had been found out
/// and is no longer one of this machine is found out anew (`is_here`). Tells whether anything is new.
///
/// # Errors
/// If the configuration names an address that nobody can be reached at.
pub fn reconsider(node: &mut NodeFile, config: &Config, is_here: impl Fn(IpAddr) -> bool) -> Result<bool> {
    let before = (node.listen_addr, node.advertise_addr, node.configured.clone());
    let now = configured(config);
    if let Some(listen) = now.listen_addr.filter(|_| now.listen_addr != node.configured.listen_addr) {
        let old = std::mem::replace(&mut node.listen_addr, listen);
        if node.advertise_addr == old {
            node.advertise_addr = advertised("", listen)?;
        } else if node.advertise_addr.port() == old.port() {
            node.advertise_addr.set_port(listen.port());
        }
    }
    match now.advertise_addr.as_deref().filter(|_| now.advertise_addr != node.configured.advertise_addr) {
        Some(asked) => {
            node.advertise_addr = advertised(asked, node.listen_addr)?;
            node.found_addr = false;
        }
        None if node.found_addr && !is_here(node.advertise_addr.ip()) => {
            // Without any address now, the old one stays: the network may come up later.
            if let Ok(found) = advertised("", node.listen_addr)
                && !found.ip().is_loopback()
            {
                node.advertise_addr = found;
            }
        }
        None => {}
    }
    node.configured = now;
    Ok(before != (node.listen_addr, node.advertise_addr, node.configured.clone()))
}

/// Whether an address is one of this machine: only then can something be bound to it.
pub fn is_of_this_machine(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Where the manager of this node is reached from this node: its agent speaks to it over the same port and TLS as every other.
pub fn beside(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, listen.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, listen.port())),
        ip => SocketAddr::new(ip, listen.port()),
    }
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

    fn node(listen: &str, advertise: &str, found: bool) -> NodeFile {
        NodeFile {
            listen_addr: listen.parse().unwrap(),
            advertise_addr: advertise.parse().unwrap(),
            raft_id: 1,
            joining: false,
            node_id: String::new(),
            cluster_id: String::new(),
            managers: Vec::new(),
            found_addr: found,
            configured: Configured::default(),
        }
    }

    fn config(listen: Option<&str>, advertise: Option<&str>) -> Config {
        let flags = crate::config::Flags {
            listen_addr: listen.map(|text| text.parse().unwrap()),
            advertise_addr: advertise.map(str::to_owned),
            ..crate::config::Flags::default()
        };
        Config::of_flags(flags).unwrap()
    }

    #[test]
    fn what_a_command_named_stays_until_the_configuration_changes() {
        let mut node = node("0.0.0.0:2377", "10.0.0.1:2377", false);
        assert!(!reconsider(&mut node, &config(None, None), |_| false).unwrap());
        assert!(reconsider(&mut node, &config(None, Some("10.0.0.7")), |_| false).unwrap());
        assert_eq!(node.advertise_addr, "10.0.0.7:2377".parse().unwrap());
        assert!(!reconsider(&mut node, &config(None, Some("10.0.0.7")), |_| false).unwrap());
        assert!(reconsider(&mut node, &config(Some("0.0.0.0:99"), Some("10.0.0.7")), |_| false).unwrap());
        assert_eq!((node.listen_addr.port(), node.advertise_addr), (99, "10.0.0.7:99".parse().unwrap()));
        let mut bound = self::node("127.0.0.1:2377", "127.0.0.1:2377", false);
        assert!(reconsider(&mut bound, &config(Some("127.0.0.5:99"), None), |_| true).unwrap());
        assert_eq!(bound.advertise_addr, "127.0.0.5:99".parse().unwrap());
    }

    #[test]
    fn an_address_that_was_found_and_is_gone_is_found_anew() {
        let mut node = node("127.0.0.9:2377", "10.0.0.1:2377", true);
        assert!(!reconsider(&mut node, &config(None, None), |_| true).unwrap());
        // Only loopback is left: the old one stays, for the network may be late.
        assert!(!reconsider(&mut node, &config(None, None), |_| false).unwrap());
        node.listen_addr = "198.51.100.7:2377".parse().unwrap();
        assert!(reconsider(&mut node, &config(None, None), |_| false).unwrap());
        assert_eq!(node.advertise_addr, "198.51.100.7:2377".parse().unwrap());
        assert!(is_of_this_machine("127.0.0.1".parse().unwrap()));
        assert!(!is_of_this_machine("198.51.100.7".parse().unwrap()));
    }

    #[test]
    fn a_command_wins_over_the_configuration() {
        let config = config(Some("0.0.0.0:99"), Some("10.0.0.7"));
        let chosen = choose(&config, "", "").unwrap();
        assert_eq!((chosen.listen.port(), chosen.advertise, chosen.found), (99, "10.0.0.7:99".parse().unwrap(), false));
        let chosen = choose(&config, "127.0.0.1:77", "10.0.0.8:88").unwrap();
        assert_eq!((chosen.listen.port(), chosen.advertise), (77, "10.0.0.8:88".parse().unwrap()));
        assert_eq!(beside("[::]:77".parse().unwrap()), "[::1]:77".parse().unwrap());
    }
}
