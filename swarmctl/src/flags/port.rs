//! `--publish`: the short form `[[address:]published:]target[/protocol]` with ranges, and the long form.

use super::values::fields;
use skep_types::{Affinity, PortConfig, Protocol, PublishMode, PublishPlace, client_range};
use std::net::IpAddr;

pub fn protocol(text: &str) -> Result<Protocol, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(format!("protocol {other:?} is not known; use tcp, udp or sctp")),
    })
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(port) if (1..=65535).contains(&port) => Ok(port),
        _ => Err(format!("{text:?} is not a port; ports are 1 to 65535")),
    }
}

fn range(text: &str) -> Result<Vec<u32>, String> {
    match text.split_once('-') {
        None => Ok(vec![number(text)?]),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("port range {text:?} runs backwards"));
            }
            Ok((first..=last).collect())
        }
    }
}

fn address(text: &str) -> Result<PublishPlace, String> {
    text.parse().map(PublishPlace::Address).map_err(|_| format!("{text:?} is not an IP address of a node"))
}

/// One flag can name a range, which gives several ports.
pub fn publish(text: &str) -> Result<Vec<PortConfig>, String> {
    if text.contains('=') { long(text).map(|port| vec![port]) } else { short(text) }
}

fn long(text: &str) -> Result<PortConfig, String> {
    let mut port = PortConfig::default();
    for (key, value) in fields(text)? {
        match key.as_str() {
            "target" => port.target_port = number(&value)?,
            "published" => port.published_port = if value == "0" { 0 } else { number(&value)? },
            "protocol" => port.protocol = protocol(&value)?,
            "name" => port.name = value,
            "mode" => {
                port.publish_mode = match value.as_str() {
                    "ingress" => PublishMode::Ingress,
                    "host" => PublishMode::Host,
                    other => return Err(format!("publish mode {other:?} is not known; use ingress or host")),
                }
            }
            "address" | "interface" if port.place != PublishPlace::Everywhere => {
                return Err(format!("publish {text:?} names two places; give one address or one interface, or --publish once more"));
            }
            "address" => port.place = address(&value)?,
            "interface" if value.is_empty() => return Err(format!("publish {text:?} names no interface")),
            "interface" => port.place = PublishPlace::Interface(value),
            "affinity" => {
                port.affinity = match value.as_str() {
                    "source" => Affinity::Source,
                    "none" => Affinity::None,
                    other => return Err(format!("affinity {other:?} is not known; use source or none")),
                }
            }
            "allow" => port.allow.push(client_range(&value).map_err(|error| format!("allow={}", error.problem))?),
            other => {
                let known = "published, target, protocol, mode, name, address, interface, affinity, allow";
                return Err(format!("publish option {other:?} is not known; use {known}"));
            }
        }
    }
    if port.target_port == 0 {
        return Err(format!("publish {text:?} has no target port"));
    }
    Ok(port)
}

fn short(text: &str) -> Result<Vec<PortConfig>, String> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, name)) => (ports, protocol(name)?),
        None => (text, Protocol::Tcp),
    };
    let (place, ports) = placed(ports)?;
    let (published, target) = match ports.rsplit_once(':') {
        Some((published, target)) => (range(published)?, range(target)?),
        None if place != PublishPlace::Everywhere => return Err(format!("publish {text:?}: write ADDRESS:PUBLISHED:TARGET")),
        None => (Vec::new(), range(ports)?),
    };
    if !published.is_empty() && published.len() != target.len() {
        return Err(format!("publish {text:?}: the two ranges differ in length"));
    }
    let port = |(index, target_port): (usize, u32)| PortConfig {
        protocol,
        target_port,
        published_port: published.get(index).copied().unwrap_or(0),
        place: place.clone(),
        ..PortConfig::default()
    };
    Ok(target.into_iter().enumerate().map(port).collect())
}

/// Takes the address off that may stand before two ports; one of IPv6 stands in brackets.
fn placed(ports: &str) -> Result<(PublishPlace, &str), String> {
    if let Some((before, rest)) = ports.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        return Ok((
            PublishPlace::Address(
                before.parse::<std::net::Ipv6Addr>().map(IpAddr::from).map_err(|_| format!("[{before}] is not an IPv6 address"))?,
            ),
            rest,
        ));
    }
    match ports.split_once(':') {
        Some((before, rest)) if rest.contains(':') || before.contains('.') => Ok((address(before)?, rest)),
        _ => Ok((PublishPlace::Everywhere, ports)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_mean_the_same() {
        assert_eq!(publish("8080:80/udp").unwrap(), publish("published=8080,target=80,protocol=udp").unwrap());
        assert_eq!(publish("80").unwrap()[0].published_port, 0);
        assert_eq!(publish("8000-8002:80-82").unwrap().len(), 3);
        assert_eq!(publish("target=80,mode=host").unwrap()[0].publish_mode, PublishMode::Host);
    }

    #[test]
    fn a_port_may_be_of_one_address_or_interface() {
        let place = |text: &str| publish(text).unwrap()[0].place.clone();
        assert_eq!(place("192.0.2.1:8080:80"), PublishPlace::Address([192, 0, 2, 1].into()));
        assert_eq!(place("[::1]:8080:80/udp"), place("published=8080,target=80,address=::1"));
        assert_eq!(place("published=8080,target=80,interface=eth1"), PublishPlace::Interface("eth1".into()));
        assert_eq!(publish("192.0.2.1:8000-8001:80-81").unwrap().len(), 2);
        for wrong in [
            "target=80,address=eth1",
            "target=80,interface=",
            "target=80,address=192.0.2.1,interface=eth1",
            "target=80,interface=a,interface=b",
        ] {
            assert!(publish(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_may_come_is_said_range_by_range() {
        let port = publish("published=8080,target=80,affinity=source,allow=192.0.2.0/24,allow=2001:db8::1").unwrap().remove(0);
        assert_eq!(port.affinity, Affinity::Source);
        assert_eq!(port.allow.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.0/24", "2001:db8::1/128"]);
        assert!(publish("target=80,allow=192.0.2.1/24").unwrap_err().contains("write 192.0.2.0/24 or 192.0.2.1"));
        for wrong in ["target=80,allow=", "target=80,allow=here", "target=80,affinity=client"] {
            assert!(publish(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn impossible_ports_are_refused() {
        for wrong in [
            "",
            "0",
            "65536",
            "80:0",
            "a",
            "1-3:1-2",
            "3-1",
            "published=80",
            "target=80,mode=x",
            "1.2.3.4:80",
            "1.2.3:80:80",
            "80/icmp",
            "-1",
            "::1:80:80",
            "[1.2.3.4]:80:80",
            "1:2:3",
        ] {
            assert!(publish(wrong).is_err(), "{wrong}");
        }
    }
}
