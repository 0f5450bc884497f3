//! What of the host a container gets: limits, rights, a network, names.

use crate::types::create::{HostConfig, LogConfig, RestartPolicy};
use crate::{ApiError, NetworkWish, RestartWish};
use skep_types::{DnsConfig, Driver, Privileges, ResourceRequirements, Resources, Seccomp};

/// Microseconds; the kernel's own default, and the only one here.
const PERIOD: i64 = 100_000;

pub(super) fn network(mode: &str) -> Result<NetworkWish, ApiError> {
    match mode {
        "" | "default" | "bridge" => Ok(NetworkWish::Own),
        "host" => Ok(NetworkWish::Host),
        "none" => Ok(NetworkWish::None),
        other if other.starts_with("container:") => Err(ApiError::unimplemented(format!(
            "HostConfig.NetworkMode {other:?} is not supported by this node: containers share no namespaces; use bridge, host, none or a \
             network of the cluster"
        ))),
        _ => Ok(NetworkWish::Places),
    }
}

/// When it is started again.
///
/// # Errors
/// 400 in dockerd's words.
pub(in crate::container) fn restart_wish(policy: &RestartPolicy, auto_remove: bool) -> Result<RestartWish, ApiError> {
    let count = policy.maximum_retry_count;
    let wish = match policy.name.as_str() {
        "" | "no" => RestartWish::Never,
        "always" => RestartWish::Always,
        "unless-stopped" => RestartWish::UnlessStopped,
        "on-failure" => {
            let at_most = u32::try_from(count).map_err(|_| ApiError::invalid("maximum retry count cannot be negative"))?;
            RestartWish::OnFailure { at_most }
        }
        other => {
            return Err(ApiError::invalid(format!(
                "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
            )));
        }
    };
    if count != 0 && !matches!(wish, RestartWish::OnFailure { .. }) {
        return Err(ApiError::invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'"));
    }
    if auto_remove && wish != RestartWish::Never {
        return Err(ApiError::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    Ok(wish)
}

/// Docker's limit of memory and swap together as swap above the memory.
///
/// # Errors
/// 400 for less than the memory.
pub(in crate::container) fn swap_above(memory: i64, both: i64) -> Result<Option<i64>, ApiError> {
    match (memory, both) {
        (_, 0) => Ok(None),
        (0, _) if both > 0 => Err(ApiError::invalid("You should always set the Memory limit when using Memoryswap limit, see usage")),
        (0, _) => Ok(None),
        (_, -1) => Ok(Some(-1)),
        (memory, both) if both >= memory => Ok(Some(both - memory)),
        _ => Err(ApiError::invalid("Minimum memoryswap limit should be larger than memory limit, see usage")),
    }
}

fn nano_cpus(host: &HostConfig) -> Result<i64, ApiError> {
    let HostConfig { nano_cpus, cpu_period, cpu_quota, .. } = host;
    if *nano_cpus != 0 && (*cpu_period != 0 || *cpu_quota != 0) {
        return Err(ApiError::invalid("conflicting options: Nano CPUs and CPU Period or Quota cannot both be set"));
    }
    if !matches!(*cpu_period, 0 | PERIOD) {
        return Err(ApiError::unimplemented(format!("HostConfig.CpuPeriod is {PERIOD} on this node; say the limit as NanoCpus (--cpus)")));
    }
    // -1 is no limit.
    Ok(if *cpu_quota > 0 { cpu_quota.saturating_mul(1_000_000_000 / PERIOD) } else { *nano_cpus })
}

pub(super) fn resources(host: &HostConfig) -> Result<ResourceRequirements, ApiError> {
    if !matches!(host.runtime.as_str(), "" | "runc" | "io.containerd.runc.v2") {
        return Err(ApiError::invalid(format!("unknown or invalid runtime name: {}; this node has runc", host.runtime)));
    }
    if !matches!(host.isolation.as_str(), "" | "default") {
        return Err(ApiError::invalid(format!("invalid isolation {:?}: linux only supports 'default'", host.isolation)));
    }
    if !matches!(host.ipc_mode.as_str(), "" | "private") {
        return Err(ApiError::unimplemented(format!("HostConfig.IpcMode {:?} is not supported by this node; use private", host.ipc_mode)));
    }
    if host.masked_paths.is_some() || host.readonly_paths.is_some() {
        return Err(ApiError::unimplemented("HostConfig.MaskedPaths and ReadonlyPaths are this node's to choose; leave them out"));
    }
    let limits = Resources { nano_cpus: nano_cpus(host)?, memory_bytes: host.memory, ..Resources::default() };
    Ok(ResourceRequirements {
        limits,
        swap_bytes: swap_above(host.memory, host.memory_swap)?,
        memory_swappiness: host.memory_swappiness.filter(|value| *value != -1),
        ..ResourceRequirements::default()
    })
}

/// Of `--security-opt`: `no-new-privileges`, which is always so here, and the seccomp profile.
pub(super) fn privileges(options: &[String]) -> Result<Option<Privileges>, ApiError> {
    let mut privileges = Privileges::default();
    for option in options {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => privileges.no_new_privileges = true,
            ("seccomp", "unconfined") => privileges.seccomp = Some(Seccomp::Unconfined),
            ("seccomp", "builtin" | "default") => privileges.seccomp = Some(Seccomp::Default),
            ("seccomp", profile) => privileges.seccomp = Some(Seccomp::Custom(profile.as_bytes().to_vec())),
            // There is neither here.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            _ => {
                return Err(ApiError::unimplemented(format!(
                    "HostConfig.SecurityOpt {option:?} is not supported by this node; there are seccomp=… and no-new-privileges, which is \
                     always so"
                )));
            }
        }
    }
    Ok((!options.is_empty()).then_some(privileges))
}

/// `name:IP` becomes a line of the hosts file.
pub(super) fn hosts(pairs: &[String]) -> Result<Vec<String>, ApiError> {
    let line = |pair: &String| match pair.split_once(':') {
        Some((_, "host-gateway")) => {
            Err(ApiError::unimplemented("HostConfig.ExtraHosts: host-gateway is not supported by this node; give an address"))
        }
        Some((name, address)) if !name.is_empty() => Ok(format!("{} {name}", address.trim_matches(['[', ']']))),
        _ => Err(ApiError::invalid(format!("bad format for add-host: {pair:?}"))),
    };
    pairs.iter().map(line).collect()
}

pub(super) fn dns(host: &HostConfig) -> Option<DnsConfig> {
    let dns = DnsConfig { nameservers: host.dns.clone(), search: host.dns_search.clone(), options: host.dns_options.clone() };
    (dns != DnsConfig::default()).then_some(dns)
}

pub(super) fn log_driver(config: &LogConfig) -> Option<Driver> {
    let driver = Driver { name: config.r#type.clone(), options: config.config.clone() };
    (driver != Driver::default()).then_some(driver)
}
