//! Ports that this node publishes for a container.

use crate::types::create::Binding;
use crate::{ApiError, HostPort, NetworkWish};
use skep_types::{PortConfig, Protocol, PublishMode, PublishPlace};
use std::collections::BTreeMap;

fn one(key: &str, binding: &Binding) -> Result<HostPort, ApiError> {
    let bad = || ApiError::invalid(format!("invalid port specification: {key:?} to {:?}", binding.host_port));
    let (number, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(ApiError::invalid(format!("invalid proto: {other}"))),
    };
    let target_port = number.parse().ok().filter(|port| (1..=65_535).contains(port)).ok_or_else(bad)?;
    let number = |text: &str| text.parse::<u16>().map_err(|_| bad());
    let (published_port, last) = match binding.host_port.split_once('-') {
        None if binding.host_port.is_empty() => (0, None),
        None => (number(&binding.host_port)?, None),
        Some((first, last)) => match (number(first)?, number(last)?) {
            (0, _) => return Err(bad()),
            (first, last) if first > last => {
                return Err(ApiError::invalid(format!("invalid port range: {}; write the lower port first", binding.host_port)));
            }
            (first, last) => (first, (first < last).then_some(last)),
        },
    };
    let place = match binding.host_ip.as_str() {
        "" | "0.0.0.0" | "::" => PublishPlace::Everywhere,
        text => PublishPlace::Address(text.parse().map_err(|_| ApiError::invalid(format!("invalid IP address: {text}")))?),
    };
    let published_port = published_port.into();
    let port = PortConfig { protocol, target_port, published_port, publish_mode: PublishMode::Host, place, ..PortConfig::default() };
    Ok(HostPort { port, last })
}

pub(super) fn ports(bindings: &BTreeMap<String, Vec<Binding>>, network: NetworkWish) -> Result<Vec<HostPort>, ApiError> {
    if matches!(network, NetworkWish::Host | NetworkWish::None) {
        // As dockerd, which says so in a warning: with the host's network each port is the host's, with none there is no way in.
        return Ok(Vec::new());
    }
    let any = [Binding::default()];
    let all = bindings.iter().flat_map(|(key, list)| {
        let list = if list.is_empty() { &any[..] } else { list };
        list.iter().map(|binding| one(key, binding)).collect::<Vec<_>>()
    });
    let mut ports: Vec<HostPort> = Vec::new();
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
        let both = of("80/tcp", vec![binding("", "8080"), binding("::", "8080")]).unwrap();
        let port = &both[0].port;
        assert_eq!((both.len(), port.target_port, port.published_port, port.publish_mode), (1, 80, 8080, PublishMode::Host));
        assert_eq!(of("53/udp", Vec::new()).unwrap()[0].port.protocol, Protocol::Udp);
        assert_eq!(of("80", vec![binding("192.0.2.1", "")]).unwrap()[0].port.place, PublishPlace::Address([192, 0, 2, 1].into()));
        for (text, range) in [("8000-8010", (8000, Some(8010))), ("8000-8000", (8000, None)), ("8000", (8000, None))] {
            let one = of("80/tcp", vec![binding("", text)]).unwrap().remove(0);
            assert_eq!((one.port.published_port, one.last), range, "{text}");
        }
        for text in ["9-1", "0-9", "1-", "-9", "1-2-3", "1-99999", "65536"] {
            assert_eq!(of("80/tcp", vec![binding("", text)]).unwrap_err().status(), 400, "{text}");
        }
        for (key, binding) in [("0/tcp", binding("", "")), ("80/x", binding("", "")), ("80", binding("", "x")), ("80", binding("x", ""))] {
            assert_eq!(of(key, vec![binding]).unwrap_err().status(), 400, "{key}");
        }
        let all = BTreeMap::from([("80/tcp".to_owned(), Vec::new())]);
        let count = |network| ports(&all, network).unwrap().len();
        assert_eq!((count(NetworkWish::Places), count(NetworkWish::Host), count(NetworkWish::None)), (1, 0, 0));
    }
}
