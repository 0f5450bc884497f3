//! `--publish`: the short form `[published:]target[/protocol]` with ranges, and the long form.

use super::values::fields;
use skep_types::{PortConfig, Protocol, PublishMode};

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
            other => return Err(format!("publish option {other:?} is not known; use published, target, protocol, mode, name")),
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
    let (published, target) = match ports.rsplit_once(':') {
        Some((published, _)) if published.contains(':') || published.contains('.') => {
            return Err(format!("publish {text:?} names an address; services publish on all addresses of a node"));
        }
        Some((published, target)) => (range(published)?, range(target)?),
        None => (Vec::new(), range(ports)?),
    };
    if !published.is_empty() && published.len() != target.len() {
        return Err(format!("publish {text:?}: the two ranges differ in length"));
    }
    let port = |(index, target_port): (usize, u32)| PortConfig {
        protocol,
        target_port,
        published_port: published.get(index).copied().unwrap_or(0),
        ..PortConfig::default()
    };
    Ok(target.into_iter().enumerate().map(port).collect())
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
    fn impossible_ports_are_refused() {
        for wrong in ["", "0", "65536", "80:0", "a", "1-3:1-2", "3-1", "published=80", "target=80,mode=x", "1.2.3.4:80:80", "80/icmp", "-1"]
        {
            assert!(publish(wrong).is_err(), "{wrong}");
        }
    }
}
