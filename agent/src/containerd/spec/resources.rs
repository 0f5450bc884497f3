//! What a container may use: the limits of its cgroup.

use super::HostFacts;
use crate::error::ExecError;
use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroupBuilder, LinuxMemory, LinuxPids, LinuxResources};
use skep_types::{ContainerSpec, ResourceRequirements};

/// Length of a scheduling period, microseconds; the kernel's own default.
const PERIOD: u64 = 100_000;
/// The kernel refuses a smaller quota, microseconds.
const MIN_QUOTA: i64 = 1_000;
/// As dockerd: less does not even let runc's own process live.
const MIN_MEMORY: i64 = 6 * 1024 * 1024;

fn bad(field: &'static str, problem: impl Into<String>) -> ExecError {
    ExecError::BadSpec { field, problem: problem.into() }
}

/// What the specification says of them.
///
/// # Errors
/// One that cannot be kept, by name.
pub fn limits(container: &ContainerSpec, wish: Option<&ResourceRequirements>, host: &HostFacts) -> Result<LinuxResources, ExecError> {
    let mut resources = LinuxResources::default();
    // runc adds the usual devices (null, zero, tty and so on) to what is allowed.
    let nothing = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build().expect("mode and access are given");
    resources.set_devices(Some(vec![nothing]));
    let pids = container.pids_limit;
    match pids {
        0 => {}
        -1 => {
            let mut limit = LinuxPids::default();
            limit.set_limit(-1);
            resources.set_pids(Some(limit));
        }
        1.. => {
            let mut limit = LinuxPids::default();
            limit.set_limit(pids);
            resources.set_pids(Some(limit));
        }
        _ => return Err(bad("pids_limit", "must be -1 (no limit), 0 (the default) or more")),
    }
    let Some(given) = wish else { return Ok(resources) };
    if let Some(memory) = memory(host, given)? {
        resources.set_memory(Some(memory));
    }
    match given.limits.nano_cpus {
        0 => {}
        nano if nano < 0 => return Err(bad("resources.limits.nano_cpus", "must not be negative")),
        nano => {
            let quota = i128::from(nano) * i128::from(PERIOD) / 1_000_000_000;
            let quota = i64::try_from(quota).map_err(|_| bad("resources.limits.nano_cpus", "is too large"))?;
            if quota < MIN_QUOTA {
                return Err(bad("resources.limits.nano_cpus", "must be at least 0.01 CPUs"));
            }
            let mut cpu = LinuxCpu::default();
            cpu.set_quota(Some(quota)).set_period(Some(PERIOD));
            resources.set_cpu(Some(cpu));
        }
    }
    Ok(resources)
}

fn memory(host: &HostFacts, given: &ResourceRequirements) -> Result<Option<LinuxMemory>, ExecError> {
    let limit = given.limits.memory_bytes;
    let mut memory = LinuxMemory::default();
    if limit != 0 {
        if limit < MIN_MEMORY {
            return Err(bad("resources.limits.memory_bytes", format!("must be at least {MIN_MEMORY} bytes (6 MiB)")));
        }
        memory.set_limit(Some(limit));
    }
    match given.swap_bytes {
        Some(_) if limit == 0 => return Err(bad("resources.swap_bytes", "needs a memory limit")),
        Some(_) if !host.swap_accounting => {
            return Err(bad("resources.swap_bytes", "cannot be kept on this node: its kernel does not count swap per container"));
        }
        Some(-1) => drop(memory.set_swap(Some(-1))),
        Some(swap) if swap >= 0 => drop(memory.set_swap(Some(limit.saturating_add(swap)))),
        Some(_) => return Err(bad("resources.swap_bytes", "must be -1 (no limit), 0 or more")),
        // As dockerd: as much swap again as memory.
        None if limit != 0 && host.swap_accounting => drop(memory.set_swap(Some(limit.saturating_mul(2)))),
        None => {}
    }
    match given.memory_swappiness {
        None | Some(-1) => {}
        Some(_) if host.cgroup_v2 => {
            return Err(bad("resources.memory_swappiness", "cannot be set on this node: cgroup v2 has no such setting"));
        }
        Some(value @ 0..=100) => drop(memory.set_swappiness(Some(value.unsigned_abs()))),
        Some(_) => return Err(bad("resources.memory_swappiness", "must be within 0..=100, or -1 for the kernel's")),
    }
    Ok(Some(memory).filter(|memory| *memory != LinuxMemory::default()))
}
