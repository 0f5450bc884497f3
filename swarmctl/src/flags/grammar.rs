//! Values of single flags that are more than a number: secrets, networks, limits, conditions, environment.

use super::values::{bytes, fields, pair};
use skep_types::{FailureAction, GenericResource, NetworkAttachmentConfig, ResolutionMode, RestartCondition, Ulimit, UpdateOrder};

/// Secrets and configs by name, as the flags ask for them; ids are looked up later.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Grants {
    pub secrets: Vec<Grant>,
    pub configs: Vec<Grant>,
}

/// One `--secret` or `--config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub source: String,
    pub target: String,
    pub uid: String,
    pub gid: String,
    pub mode: u32,
}

pub fn grant(text: &str) -> Result<Grant, String> {
    let mut grant = Grant { source: String::new(), target: String::new(), uid: "0".into(), gid: "0".into(), mode: 0o444 };
    if text.contains('=') {
        for (key, value) in fields(text)? {
            match key.as_str() {
                "source" | "src" => grant.source = value,
                "target" => grant.target = value,
                "uid" => grant.uid = value,
                "gid" => grant.gid = value,
                "mode" => {
                    grant.mode = u32::from_str_radix(&value, 8)
                        .ok()
                        .filter(|mode| *mode <= 0o777)
                        .ok_or_else(|| format!("mode={value}: write octal permissions such as 0440"))?;
                }
                other => return Err(format!("option {other:?} is not known; use source, target, uid, gid, mode")),
            }
        }
    } else {
        grant.source = text.to_owned();
    }
    if grant.source.is_empty() {
        return Err(format!("{text:?} names no source"));
    }
    if grant.target.is_empty() {
        grant.target.clone_from(&grant.source);
    }
    Ok(grant)
}

pub fn network(text: &str) -> Result<NetworkAttachmentConfig, String> {
    let mut wanted = NetworkAttachmentConfig::default();
    if !text.contains('=') {
        wanted.target = text.to_owned();
        return Ok(wanted);
    }
    for (key, value) in fields(text)? {
        match key.as_str() {
            "name" => wanted.target = value,
            "alias" => wanted.aliases.push(value),
            "driver-opt" => wanted.driver_attachment_opts.extend([pair(&value)?]),
            other => return Err(format!("network option {other:?} is not known; use name, alias, driver-opt")),
        }
    }
    if wanted.target.is_empty() { Err(format!("network {text:?} has no name")) } else { Ok(wanted) }
}

pub fn ulimit(text: &str) -> Result<Ulimit, String> {
    let wrong = || format!("{text:?} is not a limit; write name=soft[:hard], for example nofile=1024:4096");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| text.parse::<i64>().map_err(|_| wrong());
    Ok(Ulimit { name: name.to_owned(), soft: number(soft)?, hard: number(hard)? })
}

pub fn generic(text: &str) -> Result<GenericResource, String> {
    let (kind, value) = text.split_once('=').ok_or_else(|| format!("{text:?}: write kind=count"))?;
    let value = value.parse().map_err(|_| format!("{text:?}: services reserve generic resources by count, kind=3"))?;
    Ok(GenericResource::Discrete { kind: kind.to_owned(), value })
}

pub fn spread(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("spread", descriptor)) if !descriptor.is_empty() => Ok(descriptor.to_owned()),
        _ => Err(format!("{text:?}: write spread=node.labels.NAME")),
    }
}

pub fn host_line(text: &str) -> Result<String, String> {
    let (name, address) = text.split_once([':', '=']).ok_or_else(|| format!("{text:?}: write name:IP"))?;
    let address: std::net::IpAddr =
        address.trim_matches(['[', ']']).parse().map_err(|_| format!("{text:?}: {address:?} is not an IP address"))?;
    Ok(format!("{address} {name}"))
}

pub fn capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    Ok(if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") })
}

pub fn sysctl(text: &str) -> Result<(String, String), String> {
    if text.contains('=') { pair(text) } else { Err(format!("{text:?}: write name=value")) }
}

pub fn condition(text: &str) -> Result<RestartCondition, String> {
    Ok(match text {
        "none" => RestartCondition::Never,
        "on-failure" => RestartCondition::OnFailure,
        "any" => RestartCondition::Any,
        other => return Err(format!("{other:?} is not a restart condition; use none, on-failure or any")),
    })
}

pub fn failure_action(text: &str) -> Result<FailureAction, String> {
    Ok(match text {
        "pause" => FailureAction::Pause,
        "continue" => FailureAction::Continue,
        "rollback" => FailureAction::Rollback,
        other => return Err(format!("{other:?} is not a failure action; use pause, continue or rollback")),
    })
}

pub fn rollback_action(text: &str) -> Result<FailureAction, String> {
    match failure_action(text)? {
        FailureAction::Rollback => Err("a rollback that fails cannot be rolled back; use pause or continue".into()),
        other => Ok(other),
    }
}

pub fn order(text: &str) -> Result<UpdateOrder, String> {
    Ok(match text {
        "stop-first" => UpdateOrder::StopFirst,
        "start-first" => UpdateOrder::StartFirst,
        other => return Err(format!("{other:?} is not an order; use stop-first or start-first")),
    })
}

pub fn ratio(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err(format!("{text:?} is not a ratio between 0 and 1")),
    }
}

pub fn endpoint_mode(text: &str) -> Result<ResolutionMode, String> {
    Ok(match text {
        "vip" => ResolutionMode::Vip,
        "dnsrr" => ResolutionMode::DnsRoundRobin,
        other => return Err(format!("{other:?} is not an endpoint mode; use vip or dnsrr")),
    })
}

pub fn swap(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { bytes(text) }
}

/// Replaces `place` by `value` where the flag was given.
pub fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// `NAME` alone takes the value from our environment and is dropped if there is none, as docker does.
pub fn environment(given: &[String], files: &[String]) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| format!("--env-file {file}: {error}"))?;
        found.extend(text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned));
    }
    found.extend(given.iter().cloned());
    let resolve = |entry: String| match entry.split_once('=') {
        Some(("", _)) => Err(format!("environment variable {entry:?} has no name")),
        Some(_) => Ok(Some(entry)),
        None if entry.is_empty() => Err("an environment variable has no name".into()),
        None => Ok(std::env::var(&entry).ok().map(|value| format!("{entry}={value}"))),
    };
    found.into_iter().map(resolve).filter_map(Result::transpose).collect()
}
