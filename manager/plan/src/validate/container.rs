//! What a container is made of: image, mounts, health check, files, names.

use super::{check_image, check_template};
use skep_types::{ConfigTarget, ContainerSpec, CredentialSpec, FieldError, FileTarget, HealthConfig, Mount, MountType, Ulimit};
use std::collections::BTreeMap;
use std::time::Duration;

/// Shortest time in a health check (`SK/manager/controlapi/service.go`).
const MIN_HEALTH: Duration = Duration::from_millis(1);

/// Secrets and configs, which are checked before everything else of the container.
pub(super) fn check_references(container: &ContainerSpec) -> Result<(), FieldError> {
    let mut targets = BTreeMap::new();
    for (index, secret) in container.secrets.iter().enumerate() {
        let at = |error: FieldError| error.at(index).inside("secrets");
        named(&secret.secret_name, "secret_name").map_err(at)?;
        let Some(file) = &secret.file else {
            return Err(at(FieldError::new("file", "is missing; give the secret a file name in the container")));
        };
        check_file(file).map_err(at)?;
        unique(&mut targets, &file.name, index).map_err(at)?;
    }
    let mut targets = BTreeMap::new();
    for (index, config) in container.configs.iter().enumerate() {
        let at = |error: FieldError| error.at(index).inside("configs");
        named(&config.config_name, "config_name").map_err(at)?;
        match &config.target {
            None => return Err(at(FieldError::new("file", "is missing; give the config a file name in the container"))),
            Some(ConfigTarget::Runtime) => {}
            Some(ConfigTarget::File(file)) => {
                check_file(file).map_err(at)?;
                unique(&mut targets, &file.name, index).map_err(at)?;
            }
        }
    }
    let credential = container.privileges.as_ref().and_then(|privileges| privileges.credential_spec.as_ref());
    if let Some(CredentialSpec::Config(wanted)) = credential {
        let listed =
            |config: &skep_types::ConfigReference| config.config_id.as_str() == wanted && config.target == Some(ConfigTarget::Runtime);
        if !container.configs.iter().any(listed) {
            let problem = format!("config {wanted} must also be listed under configs with a runtime target");
            return Err(FieldError::new("privileges.credential_spec.config", problem));
        }
    }
    Ok(())
}

fn named(name: &str, field: &str) -> Result<(), FieldError> {
    if name.is_empty() { Err(FieldError::new(field, "is missing; the name must be given with the id")) } else { Ok(()) }
}

fn unique(targets: &mut BTreeMap<String, usize>, name: &str, index: usize) -> Result<(), FieldError> {
    match targets.insert(name.to_owned(), index) {
        Some(first) => Err(FieldError::new("file.name", format!("{name:?} is also the target of entry {first}; choose another file name"))),
        None => Ok(()),
    }
}

fn check_file(file: &FileTarget) -> Result<(), FieldError> {
    let bad = |field: &str, problem: String| Err(FieldError::new(format!("file.{field}"), problem));
    if file.name.is_empty() {
        return bad("name", "is empty; name the file in the container".into());
    }
    if file.name.split('/').any(|part| part == "..") {
        return bad("name", format!("{:?} must not contain ..", file.name));
    }
    for (field, id) in [("uid", &file.uid), ("gid", &file.gid)] {
        if !id.is_empty() && id.parse::<u32>().is_err() {
            return bad(field, format!("{id:?} is not a number from 0 to 4294967295"));
        }
    }
    Ok(())
}

pub(super) fn check(container: &ContainerSpec) -> Result<(), FieldError> {
    check_templates(container)?;
    check_image(&container.image)?;
    check_mounts(&container.mounts)?;
    if let Some(health) = &container.healthcheck {
        check_health(health).map_err(|error| error.inside("healthcheck"))?;
    }
    check_env(container)?;
    for (index, ulimit) in container.ulimits.iter().enumerate() {
        check_ulimit(ulimit).map_err(|error| error.at(index).inside("ulimits"))?;
    }
    check_rest(container)
}

fn check_templates(container: &ContainerSpec) -> Result<(), FieldError> {
    let wrong = |field: String| move |problem| FieldError::new(field, problem);
    for (index, entry) in container.env.iter().enumerate() {
        let value = entry.split_once('=').map_or("", |(_, value)| value);
        check_template(value).map_err(wrong(format!("env[{index}]")))?;
    }
    check_template(&container.hostname).map_err(wrong("hostname".into()))?;
    for (index, mount) in container.mounts.iter().enumerate() {
        check_template(&mount.source).map_err(wrong(format!("mounts[{index}].source")))?;
        check_template(&mount.target).map_err(wrong(format!("mounts[{index}].target")))?;
    }
    Ok(())
}

/// The path without empty and `.` parts, `..` resolved: two targets that name the same place become equal.
fn normal_path(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn check_mounts(mounts: &[Mount]) -> Result<(), FieldError> {
    let mut targets = BTreeMap::<String, usize>::new();
    for (index, mount) in mounts.iter().enumerate() {
        let bad = |field: &str, problem: String| Err(FieldError::new(field, problem).at(index).inside("mounts"));
        if mount.target.is_empty() {
            return bad("target", "is missing; give the path in the container".into());
        }
        let target = normal_path(&mount.target);
        if !mount.target.starts_with('/') && !mount.target.starts_with("{{") {
            return bad("target", format!("{:?} is not absolute; write {target:?}", mount.target));
        }
        if target == "/" {
            return bad("target", "must not be the root of the container".into());
        }
        if let Some(first) = targets.insert(target, index) {
            return bad("target", format!("{:?} is also the target of mount {first}; mount one of them elsewhere", mount.target));
        }
        match mount.kind {
            MountType::Bind if mount.source.is_empty() => return bad("source", "is missing; a bind mount needs a path on the node".into()),
            MountType::Bind if !mount.source.starts_with('/') && !mount.source.starts_with("{{") => {
                return bad("source", format!("{:?} is not absolute; a bind mount needs a path on the node", mount.source));
            }
            MountType::Tmpfs if !mount.source.is_empty() => return bad("source", "must be empty for a tmpfs".into()),
            MountType::Tmpfs if mount.tmpfs.as_ref().is_some_and(|tmpfs| tmpfs.size_bytes < 0) => {
                return bad("tmpfs_options.size_bytes", "must not be negative".into());
            }
            MountType::NamedPipe => return bad("type", "named pipes exist on Windows only".into()),
            MountType::Volume if mount.source.contains('/') && !mount.source.contains("{{") => {
                return bad("source", format!("{:?} is not a volume name; for a path use a bind mount", mount.source));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_health(health: &HealthConfig) -> Result<(), FieldError> {
    let times = [
        ("interval", health.interval),
        ("timeout", health.timeout),
        ("start_period", health.start_period),
        ("start_interval", health.start_interval),
    ];
    for (field, time) in times {
        if time.is_some_and(|time| !time.is_zero() && time < MIN_HEALTH) {
            return Err(FieldError::new(field, "must be 0 (the default) or at least 1 ms"));
        }
    }
    if health.retries < 0 {
        return Err(FieldError::new("retries", "must not be negative"));
    }
    match health.test.first().map(String::as_str) {
        None => Ok(()),
        Some("NONE") if health.test.len() == 1 => Ok(()),
        Some("CMD") if health.test.len() > 1 => Ok(()),
        Some("CMD-SHELL") if health.test.len() == 2 => Ok(()),
        Some(_) => Err(FieldError::new("test", "must be empty, [NONE], [CMD, program, arguments…] or [CMD-SHELL, command line]")),
    }
}

fn check_env(container: &ContainerSpec) -> Result<(), FieldError> {
    let nameless = container.env.iter().position(|entry| entry.is_empty() || entry.starts_with('='));
    nameless.map_or(Ok(()), |index| Err(FieldError::new(format!("env[{index}]"), "has no name; write NAME=value")))
}

fn check_ulimit(ulimit: &Ulimit) -> Result<(), FieldError> {
    const KNOWN: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    if !KNOWN.contains(&ulimit.name.as_str()) {
        return Err(FieldError::new("name", format!("{:?} is not a limit; there are {}", ulimit.name, KNOWN.join(", "))));
    }
    if ulimit.soft < -1 || ulimit.hard < -1 {
        return Err(FieldError::new("soft", "must be -1 (unlimited) or more"));
    }
    if ulimit.hard != -1 && (ulimit.soft == -1 || ulimit.soft > ulimit.hard) {
        return Err(FieldError::new("soft", format!("{} is above the hard limit {}", ulimit.soft, ulimit.hard)));
    }
    Ok(())
}

fn check_rest(container: &ContainerSpec) -> Result<(), FieldError> {
    if container.pids_limit < -1 {
        return Err(FieldError::new("pids_limit", "must be -1 (unlimited), 0 (the default) or more"));
    }
    if !(-1000..=1000).contains(&container.oom_score_adj) {
        return Err(FieldError::new("oom_score_adj", "must be from -1000 to 1000"));
    }
    if container.hostname.len() > 253 && !container.hostname.contains("{{") {
        return Err(FieldError::new("hostname", format!("has {} characters; at most 253 are allowed", container.hostname.len())));
    }
    if !container.dir.is_empty() && !container.dir.starts_with('/') {
        return Err(FieldError::new("dir", format!("{:?} is not absolute; write {:?}", container.dir, normal_path(&container.dir))));
    }
    if let Some(index) = container.hosts.iter().position(|line| !is_hosts_line(line)) {
        let problem = format!("{:?} is not a line of a hosts file; write IP NAME [ALIAS…]", container.hosts[index]);
        return Err(FieldError::new(format!("hosts[{index}]"), problem));
    }
    let servers = container.dns.iter().flat_map(|dns| &dns.nameservers);
    for (index, server) in servers.enumerate() {
        if server.parse::<std::net::IpAddr>().is_err() {
            return Err(FieldError::new(format!("dns_config.nameservers[{index}]"), format!("{server:?} is not an IP address")));
        }
    }
    Ok(())
}

/// `IP name…`; the older form `name:IP` is accepted, too, as the original does.
fn is_hosts_line(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let first = words.next().unwrap_or("");
    let ip = |text: &str| text.parse::<std::net::IpAddr>().is_ok() || text == "host-gateway";
    (ip(first) && words.next().is_some()) || line.split_once(':').is_some_and(|(name, address)| !name.is_empty() && ip(address))
}
