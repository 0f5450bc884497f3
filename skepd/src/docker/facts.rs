//! What this machine and the software on it are.

use crate::config::Config;
use crate::status::Board;
use anyhow::{Context, Result};
use skep_agent::{NodeSettings, node_description};
use skep_docker_api::{Containerd, Limits, NodeFacts};
use skep_types::Timestamp;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::process::Command;

/// A program that prints its version does so within this time, or is not asked.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// The id of this installation, made at its first start.
///
/// # Errors
/// If it cannot be written.
pub(super) fn engine_id(data_dir: &Path) -> Result<String> {
    let path = data_dir.join("engine-id");
    if let Some(id) = fs::read_to_string(&path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()) {
        return Ok(id);
    }
    let id = uuid(rand::random());
    fs::write(&path, format!("{id}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id)
}

/// Version 4 of RFC 9562 §5.4.
fn uuid(mut random: [u8; 16]) -> String {
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What `runc --version` says of itself; `None` if there is none.
pub(super) async fn runc_version() -> Option<String> {
    let output = Command::new("runc").arg("--version").kill_on_drop(true).output();
    let output = tokio::time::timeout(VERSION_LIMIT, output).await.ok()?.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next()?.rsplit(' ').next().map(str::to_owned)
}

/// Reads files, so that it is for a thread that may wait. The caller adds what it knows itself.
pub(super) fn gather(config: &Config, board: &Board) -> NodeFacts {
    let settings = NodeSettings {
        engine_labels: config.labels.clone(),
        generic_resources: config.generic_resources.clone(),
        engine_version: env!("CARGO_PKG_VERSION").into(),
        ..NodeSettings::default()
    };
    let release = fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release")).unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    NodeFacts {
        engine_id: String::new(),
        description: node_description(&settings, None),
        kernel_version: nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
        operating_system: value(&release, "PRETTY_NAME"),
        os_version: value(&release, "VERSION_ID"),
        data_dir: config.data_dir.display().to_string(),
        default_log_driver: "json-file".into(),
        insecure_registries: config.insecure_registries.clone(),
        limits: if is_unified { unified_limits() } else { split_limits() },
        ipv4_forwarding: fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1"),
        now: Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)),
        open_files: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
        threads: status_value(&status, "Threads").and_then(|text| text.parse().ok()).unwrap_or(0),
        cgroup_version: if is_unified { 2 } else { 1 },
        seccomp: status_value(&status, "Seccomp").is_some(),
        // Tasks get no profile of it.
        apparmor: false,
        driver: "overlayfs".into(),
        containerd: containerd(config, board),
        runc: None,
        problems: Vec::new(),
    }
}

/// `KEY=value` or `KEY="value"` of os-release(5).
fn value(release: &str, key: &str) -> String {
    let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
}

fn status_value<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

fn unified_limits() -> Limits {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
    // The root has no such file; any group below it has, if the kernel accounts for swap.
    let groups = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let swap = groups.into_iter().any(|group| group.path().join("memory.swap.max").exists());
    Limits { memory: has("memory"), swap, cpu_quota: has("cpu"), cpu_shares: has("cpu"), cpuset: has("cpuset"), pids: has("pids") }
}

fn split_limits() -> Limits {
    let has = |path: &str| Path::new("/sys/fs/cgroup").join(path).exists();
    Limits {
        memory: has("memory/memory.limit_in_bytes"),
        swap: has("memory/memory.memsw.limit_in_bytes"),
        cpu_quota: has("cpu/cpu.cfs_quota_us"),
        cpu_shares: has("cpu/cpu.shares"),
        cpuset: has("cpuset/cpuset.cpus"),
        pids: has("pids"),
    }
}

/// As the agent has found it, which is there on nodes of a cluster.
fn containerd(config: &Config, board: &Board) -> Option<Containerd> {
    let runtime = board.shown()?.agent.borrow().runtime.clone();
    let version = runtime.strip_prefix("containerd ").filter(|version| version.starts_with(|c: char| c.is_ascii_digit() || c == 'v'))?;
    Some(Containerd {
        version: version.to_owned(),
        address: config.containerd.display().to_string(),
        namespace: config.containerd_namespace.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let id = engine_id(dir.path()).unwrap();
        assert_eq!((id.len(), engine_id(dir.path()).unwrap()), (36, id.clone()));
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn files_of_keys_and_values_are_read() {
        let release = "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=12\n";
        assert_eq!(
            (value(release, "PRETTY_NAME").as_str(), value(release, "VERSION_ID").as_str()),
            ("Debian GNU/Linux 12 (bookworm)", "12")
        );
        assert_eq!(value(release, "ID"), "");
        assert_eq!(status_value("Name:\tx\nThreads:\t7\n", "Threads"), Some("7"));
    }
}
