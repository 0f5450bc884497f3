//! Where a manager is reached.

use std::net::{IpAddr, Ipv6Addr};

/// As the original's.
const PORT: u16 = 2377;

/// `HOST:PORT` with a port, which is 2377 unless given; IPv6 addresses with or without brackets.
pub fn manager_address(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not the address of a manager; write HOST:PORT, for example 192.0.2.1:{PORT}");
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Ok(format!("[{address}]:{PORT}"));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?),
        _ => (text, PORT),
    };
    let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_good = match inside {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            let is_name = |host: &str| host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
            !host.is_empty() && is_name(host) && !host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
        }
    };
    if is_good { Ok(format!("{host}:{port}")) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_be_left_out() {
        for (given, meant) in [
            ("192.0.2.1", "192.0.2.1:2377"),
            ("192.0.2.1:7", "192.0.2.1:7"),
            ("m1.example", "m1.example:2377"),
            ("::1", "[::1]:2377"),
            ("[2001:db8::1]", "[2001:db8::1]:2377"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
        ] {
            assert_eq!(manager_address(given).as_deref(), Ok(meant));
        }
        for wrong in ["", ":2377", "m1:", "m1:0", "m1:65536", "m1:x", "http://m1", "[m1]:1", "0.0.0.0", "a b"] {
            assert!(manager_address(wrong).is_err(), "{wrong}");
        }
    }
}
