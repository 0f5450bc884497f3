//! Ports that this node publishes for a container.

use crate::types::create::Binding;
use crate::{ApiError, NetworkWish};
use skep_types::{PortConfig, Protocol, PublishMode, PublishPlace};
use std::collections::BTreeMap;

fn one(key: &str, binding: &Binding) -> Result<PortConfig, ApiError> {
    let bad = || ApiError::invalid(format!("invalid port specification: {key:?} to {:?}", binding.host_port));
    let (number, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(ApiError::invalid(format!("invalid proto: {other}"))),
    };
    if binding.host_port.contains('-') {
        return Err(ApiError::unimplemented(format!(
            "HostConfig.PortBindings: a range of ports to choose from ({}) is not supported by this node; name one, or none for any",
            binding.host_port
        )));
    }
    let target_port = number.parse().ok().filter(|port| (1..=65_535).contains(port)).ok_or_else(bad)?;
    let published_port = match binding.host_port.as_str() {
        "" => 0,
        text => text.parse().ok().filter(|port| *port <= 65_535).ok_or_else(bad)?,
    };
    let place = match binding.host_ip.as_str() {
        "" | "0.0.0.0" | "::" => PublishPlace::Everywhere,
        text => PublishPlace::Address(text.parse().map_err(|_| ApiError::invalid(format!("invalid IP address: {text}")))?),
    };
    Ok(PortConfig { protocol, target_port, published_port, publish_mode: PublishMode::Host, place, ..PortConfig::default() })
}

pub(super) fn ports(bindings: &BTreeMap<String, Vec<Binding>>, network: NetworkWish) -> Result<Vec<PortConfig>, ApiError> {
    if network != NetworkWish::Own {
        // As dockerd, which says so in a warning: with the host's network each port is the host's, with none there is no way in.
        return Ok(Vec::new());
    }
    let any = [Binding::default()];
    let all = bindings.iter().flat_map(|(key, list)| {
        let list = if list.is_empty() { &any[..] } else { list };
        list.iter().map(|binding| one(key, binding)).collect::<Vec<_>>()
    });
    let mut ports: Vec<PortConfig> = Vec::new();
    for port in all {
        let port = port?;
        // Clients ask for IPv4 and IPv6 apart; here everywhere is both.
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_ports_of_this_node() {
        let binding = |ip: &str, port: &str| Binding { host_ip: ip.into(), host_port: port.into() };
        let of = |key: &str, list: Vec<Binding>| ports(&BTreeMap::from([(key.to_owned(), list)]), NetworkWish::Own);
        let port = &of("80/tcp", vec![binding("", "8080"), binding("::", "8080")]).unwrap()[..];
        assert_eq!((port.len(), port[0].target_port, port[0].published_port, port[0].publish_mode), (1, 80, 8080, PublishMode::Host));
        assert_eq!(of("53/udp", Vec::new()).unwrap()[0].protocol, Protocol::Udp);
        assert_eq!(of("80", vec![binding("192.0.2.1", "")]).unwrap()[0].place, PublishPlace::Address([192, 0, 2, 1].into()));
        assert_eq!(of("80/tcp", vec![binding("", "1-9")]).unwrap_err().status(), 501);
        for (key, binding) in [("0/tcp", binding("", "")), ("80/x", binding("", "")), ("80", binding("", "x")), ("80", binding("x", ""))] {
            assert_eq!(of(key, vec![binding]).unwrap_err().status(), 400, "{key}");
        }
    }
}
