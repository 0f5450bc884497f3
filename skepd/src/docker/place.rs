//! Addresses as Docker's clients write them: an IP address or the name of an interface, with or without a port.

use nix::ifaddrs::getifaddrs;
use skep_docker_api::ApiError;
use std::net::{IpAddr, SocketAddr};

/// What clients send for "listen" when their user says nothing.
const USUAL_LISTEN: &str = "0.0.0.0:2377";

/// Where to listen; empty: as the daemon is configured. The address that clients send by themselves counts as none: they cannot
/// say that nothing was asked for.
pub(super) fn listen(asked: &str) -> Result<String, ApiError> {
    if asked == USUAL_LISTEN {
        return Ok(String::new());
    }
    resolve(asked, "listen address must be an IP address or network interface (with optional port number)")
}

/// What others are told; empty: found out.
pub(super) fn advertise(asked: &str) -> Result<String, ApiError> {
    resolve(asked, "advertise address must be a non-zero IP address or network interface (with optional port number)")
}

/// The address for packets of overlay networks is a matter of the daemon's configuration here.
pub(super) fn check_data_path(asked: &str, configured: Option<IpAddr>, advertised: &str) -> Result<(), ApiError> {
    let asked = resolve(asked, "data path address must be a non-zero IP address or network interface")?;
    let is_usual = asked.is_empty() || bare(&asked) == bare(advertised) || configured.is_some_and(|ip| ip.to_string() == asked);
    match is_usual {
        true => Ok(()),
        false => Err(ApiError::unimplemented(format!(
            "the data path address is set where the daemon is configured; start skepd with --data-path-addr {asked}"
        ))),
    }
}

fn bare(address: &str) -> String {
    address.parse::<SocketAddr>().map_or_else(|_| address.to_owned(), |address| address.ip().to_string())
}

fn resolve(asked: &str, wrong: &str) -> Result<String, ApiError> {
    let is_address = asked.parse::<SocketAddr>().is_ok() || asked.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if asked.is_empty() || is_address {
        return Ok(asked.to_owned());
    }
    let (name, port) = match asked.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => (name, Some(port)),
        _ => (asked, None),
    };
    let ip = of_interface(name)?.ok_or_else(|| ApiError::invalid(wrong))?;
    Ok(match (port, ip) {
        (None, ip) => ip.to_string(),
        (Some(port), IpAddr::V4(ip)) => format!("{ip}:{port}"),
        (Some(port), IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
    })
}

/// The one address of an interface; of several none is preferred. `None`: there is no such interface, or it has no address.
fn of_interface(name: &str) -> Result<Option<IpAddr>, ApiError> {
    let all = getifaddrs().map_err(|error| ApiError::internal(format!("cannot read the addresses of this machine: {error}")))?;
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for storage in all.filter(|found| found.interface_name == name).filter_map(|found| found.address) {
        if let Some(found) = storage.as_sockaddr_in() {
            v4.push(IpAddr::V4(found.ip()));
        } else if let Some(found) = storage.as_sockaddr_in6()
            && !found.ip().is_unicast_link_local()
        {
            v6.push(IpAddr::V6(found.ip()));
        }
    }
    let found = if v4.is_empty() { v6 } else { v4 };
    match found.as_slice() {
        [] => Ok(None),
        [ip] => Ok(Some(*ip)),
        [one, other, ..] => {
            Err(ApiError::invalid(format!("interface {name} has more than one address ({one} and {other}); name the one to use")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_and_interfaces_become_addresses() {
        assert_eq!(listen("0.0.0.0:2377").unwrap(), "");
        assert_eq!(listen("0.0.0.0:99").unwrap(), "0.0.0.0:99");
        assert_eq!(advertise("10.0.0.1").unwrap(), "10.0.0.1");
        assert_eq!(advertise("[fd00::1]:99").unwrap(), "[fd00::1]:99");
        assert_eq!(advertise("lo:99").unwrap(), "127.0.0.1:99");
        assert_eq!(advertise("lo").unwrap(), "127.0.0.1");
        assert!(listen("no-such-link").unwrap_err().message.starts_with("listen address must be an IP address"));
    }

    #[test]
    fn a_data_path_of_its_own_is_left_to_the_configuration() {
        let configured = Some("10.9.0.1".parse().unwrap());
        assert!(check_data_path("", None, "").is_ok());
        assert!(check_data_path("10.0.0.1", None, "10.0.0.1:2377").is_ok());
        assert!(check_data_path("10.9.0.1", configured, "10.0.0.1").is_ok());
        assert!(check_data_path("10.9.0.2", configured, "10.0.0.1").unwrap_err().message.contains("--data-path-addr 10.9.0.2"));
    }
}
