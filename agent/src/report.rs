//! What this node tells of itself (wire-behaviour 9.5).

use skep_types::{EngineDescription, GenericResource, Labels, NodeDescription, Platform, Plugin, Resources, TlsInfo};

/// What does not come from the machine.
#[derive(Debug, Clone, Default)]
pub struct NodeSettings {
    /// Instead of the machine's host name; empty = the machine's.
    pub hostname: String,
    pub engine_labels: Labels,
    pub generic_resources: Vec<GenericResource>,
    /// Memory and CPUs kept back from tasks.
    pub reserved: Resources,
    /// The version that people see as the engine's.
    pub engine_version: String,
}

/// The machine's host name.
#[must_use]
pub fn machine_hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// `uname -m`
#[must_use]
pub fn machine_architecture() -> String {
    nix::sys::utsname::uname().map(|name| name.machine().to_string_lossy().into_owned()).unwrap_or_default()
}

/// What this node can run at once: its CPUs and memory, within the limits of the cgroup this process is in.
#[must_use]
pub fn machine_resources(settings: &NodeSettings) -> Resources {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as i64);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = total_memory(&meminfo).min(cgroup_memory().unwrap_or(i64::MAX));
    Resources {
        nano_cpus: (cpus * 1_000_000_000 - settings.reserved.nano_cpus).max(0),
        memory_bytes: (memory - settings.reserved.memory_bytes).max(0),
        generic: settings.generic_resources.clone(),
    }
}

fn total_memory(meminfo: &str) -> i64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok()).map_or(0, |kib| kib * 1024)
}

/// The limit of the outermost cgroup that this process sees, such as in a container; `None` = none.
fn cgroup_memory() -> Option<i64> {
    let text = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .or_else(|_| std::fs::read_to_string("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
        .ok()?;
    text.trim().parse::<i64>().ok()
}

/// The whole description.
#[must_use]
pub fn node_description(settings: &NodeSettings, tls: Option<TlsInfo>) -> NodeDescription {
    let plugin = |kind: &str, name: &str| Plugin { kind: kind.into(), name: name.into() };
    let mut plugins = vec![
        plugin("Log", "json-file"),
        plugin("Log", "none"),
        // The scheduler asks for the driver of each network that a task is on.
        plugin("Network", "bridge"),
        plugin("Network", "host"),
        plugin("Network", "macvlan"),
        plugin("Network", "overlay"),
        // Managers promote only nodes that say so: the original speaks another raft.
        plugin("Skep", "manager"),
        plugin("Volume", "local"),
    ];
    plugins.sort();
    NodeDescription {
        hostname: if settings.hostname.is_empty() { machine_hostname() } else { settings.hostname.clone() },
        platform: Platform { architecture: machine_architecture(), os: "linux".into() },
        resources: machine_resources(settings),
        engine: Some(EngineDescription {
            engine_version: settings.engine_version.clone(),
            labels: settings.engine_labels.clone(),
            plugins,
        }),
        tls_info: tls,
        fips: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo() {
        assert_eq!(total_memory("MemTotal:       24576 kB\nMemFree: 1 kB\n"), 24576 * 1024);
        assert_eq!(total_memory(""), 0);
    }

    #[test]
    fn a_description_has_what_managers_look_for() {
        let description = node_description(&NodeSettings::default(), None);
        assert!(!description.hostname.is_empty());
        assert!(description.resources.nano_cpus >= 1_000_000_000 && description.resources.memory_bytes > 0);
        let plugins = description.engine.unwrap().plugins;
        assert!(plugins.is_sorted() && plugins.contains(&Plugin { kind: "Network".into(), name: "overlay".into() }));
    }
}
