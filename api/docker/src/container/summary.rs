//! A container in a list, and the words for how it is.

use crate::types::common::Time;
use crate::{Container, Endpoint, HealthWord, Life, MountPoint, Phase};
use serde_json::{Map, Value, json};
use skep_types::Timestamp;
use std::net::IpAddr;
use std::time::Duration;

/// As Go's `units.HumanDuration`, in whose words clients show ages.
fn human(length: Duration) -> String {
    let seconds = length.as_secs();
    let hours = (seconds + 1800) / 3600;
    match (seconds, seconds / 60) {
        (0, _) => "Less than a second".into(),
        (1, _) => "1 second".into(),
        (2..60, _) => format!("{seconds} seconds"),
        (_, 1) => "About a minute".into(),
        (_, minutes @ 2..60) => format!("{minutes} minutes"),
        _ => match hours {
            0 | 1 => "About an hour".into(),
            2..48 => format!("{hours} hours"),
            48..336 => format!("{} days", hours / 24),
            336..1440 => format!("{} weeks", hours / 24 / 7),
            1440..17520 => format!("{} months", hours / 24 / 30),
            _ => format!("{} years", seconds / 3600 / 24 / 365),
        },
    }
}

/// One of dockerd's words.
pub(super) fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::Created => "created",
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Restarting => "restarting",
        Phase::Exited => "exited",
        Phase::Dead => "dead",
    }
}

pub(super) fn health(word: HealthWord) -> &'static str {
    match word {
        HealthWord::Starting => "starting",
        HealthWord::Healthy => "healthy",
        HealthWord::Unhealthy => "unhealthy",
    }
}

fn ago(at: Option<Timestamp>, now: Timestamp) -> String {
    human(at.map_or(Duration::ZERO, |at| now.since(at)))
}

/// Such as `Up 3 minutes (healthy)`.
pub(super) fn status(container: &Container, now: Timestamp) -> String {
    let Life { phase, exit_code, started_at, finished_at, .. } = &container.life;
    match phase {
        Phase::Created => "Created".into(),
        Phase::Dead => "Dead".into(),
        Phase::Restarting => format!("Restarting ({exit_code}) {} ago", ago(*finished_at, now)),
        Phase::Exited => format!("Exited ({exit_code}) {} ago", ago(*finished_at, now)),
        Phase::Paused => format!("Up {} (Paused)", ago(*started_at, now)),
        Phase::Running => match container.health.as_ref().map(|health| health.word) {
            None => format!("Up {}", ago(*started_at, now)),
            Some(HealthWord::Starting) => format!("Up {} (health: starting)", ago(*started_at, now)),
            Some(word) => format!("Up {} ({})", ago(*started_at, now), health(word)),
        },
    }
}

/// Address and length of a CIDR text; nothing of anything else.
pub(super) fn cidr(text: &str) -> (&str, u8) {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    (address, length.parse().unwrap_or(0))
}

/// Addresses that somebody wished for, as they were said.
fn wished(addresses: &[IpAddr]) -> Value {
    let field = |address: &IpAddr| if address.is_ipv4() { "IPv4Address" } else { "IPv6Address" };
    Value::Object(addresses.iter().map(|address| (field(address).to_owned(), json!(address))).collect())
}

pub(super) fn networks(endpoints: &[Endpoint]) -> Map<String, Value> {
    let one = |endpoint: &Endpoint| {
        let ((address, length), (address_v6, length_v6)) = (cidr(&endpoint.address), cidr(&endpoint.address_v6));
        let names = if endpoint.dns_names.is_empty() { &endpoint.aliases } else { &endpoint.dns_names };
        let value = json!({
            "IPAMConfig": wished(&endpoint.wished),
            "Links": null,
            "Aliases": if endpoint.aliases.is_empty() { Value::Null } else { json!(endpoint.aliases) },
            "MacAddress": endpoint.mac,
            "DriverOpts": null,
            "GwPriority": 0,
            "NetworkID": endpoint.network_id,
            "EndpointID": endpoint.id,
            "Gateway": endpoint.gateway,
            "IPAddress": address,
            "IPPrefixLen": length,
            "IPv6Gateway": endpoint.gateway_v6,
            "GlobalIPv6Address": address_v6,
            "GlobalIPv6PrefixLen": length_v6,
            "DNSNames": if names.is_empty() { Value::Null } else { json!(names) },
        });
        (endpoint.network.clone(), value)
    };
    endpoints.iter().map(one).collect()
}

pub(super) fn network_mode(container: &Container) -> &str {
    container.networks.first().map_or("none", |endpoint| match endpoint.network.as_str() {
        "bridge" => "default",
        name => name,
    })
}

pub(super) fn mounts(mounts: &[MountPoint]) -> Vec<Value> {
    let one = |mount: &MountPoint| {
        let mut value = json!({ "Type": mount.kind });
        let is_volume = mount.kind == "volume";
        if is_volume {
            value["Name"] = json!(mount.name);
        }
        value["Source"] = json!(mount.source);
        value["Destination"] = json!(mount.destination);
        if is_volume {
            value["Driver"] = json!("local");
        }
        value["Mode"] = json!("");
        value["RW"] = json!(mount.is_writable);
        value["Propagation"] = json!(mount.propagation);
        value
    };
    mounts.iter().map(one).collect()
}

fn command(container: &Container) -> String {
    let words = container.program.arguments.iter();
    // As a shell would be given it.
    let quoted = words.map(|word| if word.is_empty() || word.contains([' ', '\t', '\n']) { format!("'{word}'") } else { word.clone() });
    quoted.collect::<Vec<_>>().join(" ")
}

pub(crate) fn summary(container: &Container, now: Timestamp) -> Value {
    let ports = container.ports.iter().map(
        |port| json!({ "IP": "0.0.0.0", "PrivatePort": port.target_port, "PublicPort": port.published_port, "Type": port.protocol.name() }),
    );
    json!({
        "Id": container.id,
        "Names": [format!("/{}", container.name)],
        "Image": container.spec.image,
        "ImageID": container.image_id,
        "Command": command(container),
        "Created": container.created_at.parts().0,
        "Ports": ports.collect::<Vec<_>>(),
        "Labels": container.labels,
        "State": state(container.life.phase),
        "Status": status(container, now),
        "HostConfig": { "NetworkMode": network_mode(container) },
        "NetworkSettings": { "Networks": networks(&container.networks) },
        "Mounts": mounts(&container.mounts),
    })
}

/// RFC 3339; Go's zero time for none.
pub(super) fn time(at: Option<Timestamp>) -> String {
    Time(at).text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Health;

    #[test]
    fn ages_are_in_go_s_words() {
        let words = |seconds| human(Duration::from_secs(seconds));
        let all = [0, 1, 59, 60, 119, 120, 3599, 3600, 5400, 7200, 172_800, 1_209_600, 5_184_000, 63_072_000].map(words);
        let wanted = [
            "Less than a second",
            "1 second",
            "59 seconds",
            "About a minute",
            "About a minute",
            "2 minutes",
            "59 minutes",
            "About an hour",
            "2 hours",
            "2 hours",
            "2 days",
            "2 weeks",
            "2 months",
            "2 years",
        ];
        assert_eq!(all, wanted);
    }

    #[test]
    fn the_status_says_how_a_container_is() {
        let (at, now) = (Some(Timestamp::from_secs(100)), Timestamp::from_secs(280));
        let of = |phase, health: Option<HealthWord>| {
            let life = Life { phase, exit_code: 3, started_at: at, finished_at: at, ..Life::default() };
            let health = health.map(|word| Health { word, ..Health::default() });
            status(&Container { life, health, ..Container::default() }, now)
        };
        assert_eq!(of(Phase::Running, None), "Up 3 minutes");
        assert_eq!(of(Phase::Running, Some(HealthWord::Healthy)), "Up 3 minutes (healthy)");
        assert_eq!(of(Phase::Running, Some(HealthWord::Starting)), "Up 3 minutes (health: starting)");
        assert_eq!(of(Phase::Paused, None), "Up 3 minutes (Paused)");
        assert_eq!(of(Phase::Exited, None), "Exited (3) 3 minutes ago");
        assert_eq!(of(Phase::Created, None), "Created");
    }
}
