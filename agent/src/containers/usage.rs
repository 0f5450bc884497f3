//! What a container uses: read from its cgroup, of version 1 or 2, and from its network's devices.

use super::facts::{cgroup, is_unified};
use super::{Containers, ContainersError};
use crate::board::What;
use crate::containerd::ContainerdConfig;
use crate::task::drive::now;
use skep_types::{TaskId, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// The kernel's clock ticks per second, in /proc/stat: the same on all architectures (`USER_HZ`).
const TICKS: u64 = 100;
/// `ps` looks at the whole of /proc.
const PS_LIMIT: Duration = Duration::from_secs(20);

/// Times in nanoseconds, sizes in bytes; what the kernel does not tell is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub read_at: Timestamp,
    pub cpu_total: u64,
    pub cpu_kernel: u64,
    pub cpu_user: u64,
    /// Of all CPUs of the machine, idle time included.
    pub cpu_system: u64,
    pub cpus: u32,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_time: u64,
    pub memory: u64,
    pub memory_peak: u64,
    /// The machine's memory if the container has no limit.
    pub memory_limit: u64,
    pub memory_failures: u64,
    /// As the kernel names them.
    pub memory_details: BTreeMap<String, u64>,
    pub pids: u64,
    /// 0 = none.
    pub pids_limit: u64,
    /// By device.
    pub networks: BTreeMap<String, NetworkUsage>,
    pub block: Vec<BlockUsage>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkUsage {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockUsage {
    pub major: u64,
    pub minor: u64,
    /// `read` or `write`.
    pub operation: &'static str,
    pub bytes: u64,
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// One number, or the first word of a file; 0 if there is none, such as `max`.
fn number(text: &str) -> u64 {
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Lines of a name and a number.
fn table(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| line.split_once(' ').and_then(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)));
    text.lines().filter_map(pair).collect()
}

/// `8:0 Read 4096` of version 1, `8:0 rbytes=4096 wbytes=0 …` of version 2.
fn block(text: &str) -> Vec<BlockUsage> {
    let mut list = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        let rest: Vec<&str> = words.collect();
        let mut add = |operation, bytes: &str| {
            list.extend(bytes.parse().ok().map(|bytes| BlockUsage { major, minor, operation, bytes }));
        };
        match rest.as_slice() {
            ["Read", bytes] => add("read", bytes),
            ["Write", bytes] => add("write", bytes),
            pairs => {
                for pair in pairs {
                    match pair.split_once('=') {
                        Some(("rbytes", bytes)) => add("read", bytes),
                        Some(("wbytes", bytes)) => add("write", bytes),
                        _ => {}
                    }
                }
            }
        }
    }
    list
}

/// The text of /proc/net/dev without the loopback.
fn networks(text: &str) -> BTreeMap<String, NetworkUsage> {
    let device = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] = numbers[..] else {
            return None;
        };
        let usage = NetworkUsage { rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped };
        Some((name.trim().to_owned(), usage))
    };
    text.lines().filter_map(device).filter(|(name, _)| name != "lo").collect()
}

/// The machine's CPU time and how many CPUs it has, from the text of /proc/stat.
fn system(text: &str) -> (u64, u32) {
    let mut lines = text.lines();
    // user, nice, system, idle, iowait, irq, softirq, steal: guest time is in the first two (proc(5)).
    let ticks: u64 = lines.next().unwrap_or_default().split_whitespace().skip(1).take(8).filter_map(|word| word.parse::<u64>().ok()).sum();
    let cpus = lines.take_while(|line| line.starts_with("cpu")).count();
    (ticks * (1_000_000_000 / TICKS), u32::try_from(cpus).unwrap_or(u32::MAX))
}

fn machine_memory() -> u64 {
    let meminfo = text(Path::new("/proc/meminfo"));
    meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).map(number).unwrap_or(0) * 1024
}

fn read(config: &ContainerdConfig, task: &TaskId, pid: i32) -> Usage {
    let mut usage = Usage { read_at: now(), ..Usage::default() };
    let file = |hierarchy: &str, name: &str| text(&cgroup(config, hierarchy, task).join(name));
    (usage.cpu_system, usage.cpus) = system(&text(Path::new("/proc/stat")));
    usage.networks = networks(&text(Path::new(&format!("/proc/{pid}/net/dev"))));
    let machine = machine_memory();
    if is_unified() {
        let cpu = table(&file("", "cpu.stat"));
        let micros = |name: &str| cpu.get(name).copied().unwrap_or(0) * 1000;
        (usage.cpu_total, usage.cpu_user, usage.cpu_kernel) = (micros("usage_usec"), micros("user_usec"), micros("system_usec"));
        usage.throttled_time = micros("throttled_usec");
        let plain = |name: &str| cpu.get(name).copied().unwrap_or(0);
        (usage.periods, usage.throttled_periods) = (plain("nr_periods"), plain("nr_throttled"));
        usage.memory = number(&file("", "memory.current"));
        usage.memory_peak = number(&file("", "memory.peak"));
        usage.memory_limit = Some(number(&file("", "memory.max"))).filter(|limit| *limit > 0).unwrap_or(machine);
        usage.memory_failures = table(&file("", "memory.events")).get("max").copied().unwrap_or(0);
        usage.memory_details = table(&file("", "memory.stat"));
        usage.block = block(&file("", "io.stat"));
    } else {
        usage.cpu_total = number(&file("cpuacct", "cpuacct.usage"));
        let cpu = table(&file("cpuacct", "cpuacct.stat"));
        let ticks = |name: &str| cpu.get(name).copied().unwrap_or(0) * (1_000_000_000 / TICKS);
        (usage.cpu_user, usage.cpu_kernel) = (ticks("user"), ticks("system"));
        let periods = table(&file("cpu", "cpu.stat"));
        let plain = |name: &str| periods.get(name).copied().unwrap_or(0);
        (usage.periods, usage.throttled_periods, usage.throttled_time) =
            (plain("nr_periods"), plain("nr_throttled"), plain("throttled_time"));
        usage.memory = number(&file("memory", "memory.usage_in_bytes"));
        usage.memory_peak = number(&file("memory", "memory.max_usage_in_bytes"));
        // No limit is a number beyond all memory.
        usage.memory_limit =
            Some(number(&file("memory", "memory.limit_in_bytes"))).filter(|limit| *limit > 0).unwrap_or(machine).min(machine);
        usage.memory_failures = number(&file("memory", "memory.failcnt"));
        usage.memory_details = table(&file("memory", "memory.stat"));
        usage.block = block(&file("blkio", "blkio.throttle.io_service_bytes"));
    }
    usage.pids = number(&file("pids", "pids.current"));
    usage.pids_limit = number(&file("pids", "pids.max"));
    usage
}

/// The processes of a cgroup and of those below it.
fn pids(dir: &Path, found: &mut Vec<i32>) {
    found.extend(text(&dir.join("cgroup.procs")).lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids(&entry.path(), found);
        }
    }
}

/// Keeps the rows of these processes. Titles and columns as `ps` prints them; the last column may have spaces.
fn rows_of(output: &str, pids: &[i32]) -> Option<(Vec<String>, Vec<Vec<String>>)> {
    let mut lines = output.lines();
    let titles: Vec<String> = lines.next()?.split_whitespace().map(str::to_owned).collect();
    let pid_at = titles.iter().position(|title| title == "PID")?;
    let row = |line: &str| {
        let mut fields = Vec::new();
        let mut rest = line.trim_start();
        while fields.len() + 1 < titles.len() && !rest.is_empty() {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            fields.push(rest[..end].to_owned());
            rest = rest[end..].trim_start();
        }
        fields.push(rest.trim_end().to_owned());
        fields
    };
    let is_wanted = |fields: &Vec<String>| fields.get(pid_at).and_then(|pid| pid.parse().ok()).is_some_and(|pid| pids.contains(&pid));
    let rows = lines.map(row).filter(is_wanted).collect();
    Some((titles, rows))
}

impl Containers {
    /// What a container uses at this moment; `None` if it does not run.
    ///
    /// # Errors
    /// If there is none.
    pub fn usage(&self, id: &TaskId) -> Result<Option<Usage>, ContainersError> {
        let facts = self.facts(id)?;
        let pid = facts.status.container.as_ref().map_or(0, |container| container.pid);
        Ok(facts.is_running.then(|| read(self.0.executor.config(), id, pid)))
    }

    /// Its processes as the host's `ps` prints them with these arguments (`-ef` if there are none): titles and rows.
    ///
    /// # Errors
    /// If it does not run, or `ps` does not like the arguments.
    pub async fn processes(&self, id: &TaskId, arguments: &str) -> Result<(Vec<String>, Vec<Vec<String>>), ContainersError> {
        let facts = self.running(id)?;
        let mut wanted = Vec::new();
        pids(&cgroup(self.0.executor.config(), "pids", id), &mut wanted);
        let arguments = if arguments.trim().is_empty() { "-ef" } else { arguments };
        let mut command = tokio::process::Command::new("ps");
        command.args(arguments.split_whitespace()).stdin(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(PS_LIMIT, command.output()).await {
            Ok(output) => output.map_err(|error| ContainersError::NoPs { reason: error.to_string() })?,
            Err(_) => return Err(ContainersError::Ps { words: format!("no answer within {} s", PS_LIMIT.as_secs()) }),
        };
        if !output.status.success() {
            return Err(ContainersError::Ps { words: String::from_utf8_lossy(&output.stderr).trim().to_owned() });
        }
        let no_pid = || ContainersError::Ps { words: "Couldn't find PID field in ps output".into() };
        let rows = rows_of(&String::from_utf8_lossy(&output.stdout), &wanted).ok_or_else(no_pid)?;
        self.0.engine.board.tell(&facts.task, What::Top);
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_block_counters_are_read() {
        let one = |operation, bytes| BlockUsage { major: 8, minor: 0, operation, bytes };
        assert_eq!(block("8:0 Read 5\n8:0 Write 7\n8:0 Sync 0\n8:0 Total 12\nTotal 12\n"), [one("read", 5), one("write", 7)]);
        assert_eq!(block("8:0 rbytes=5 wbytes=7 rios=1 wios=1\n"), [one("read", 5), one("write", 7)]);
    }

    #[test]
    fn the_kernel_s_tables_are_read() {
        let stat = "cpu  10 0 20 30 0 0 0 0 5 0\ncpu0 1 2\ncpu1 3 4\nintr 5\n";
        assert_eq!(system(stat), (600_000_000, 2));
        let dev =
            "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 11 12 13 14 0 0 0 0 21 22 23 24 0 0 0 0\n";
        let found = networks(dev);
        assert_eq!((found.len(), found["eth0"].rx_bytes, found["eth0"].tx_dropped), (1, 11, 24));
        assert_eq!(table("a 1\nb x\nc 3\n"), BTreeMap::from([("a".into(), 1), ("c".into(), 3)]));
        assert_eq!((number("max\n"), number("12\n")), (0, 12));
    }

    #[test]
    fn the_rows_of_a_container_are_found_in_ps() {
        let output = "UID          PID    PPID  C CMD\nroot           1       0  0 init\nroot          77       1  0 sleep 5 and more\n";
        let (titles, rows) = rows_of(output, &[77, 99]).unwrap();
        assert_eq!(titles, ["UID", "PID", "PPID", "C", "CMD"]);
        assert_eq!(rows, [["root", "77", "1", "0", "sleep 5 and more"]]);
        assert!(rows_of("CMD\nsleep\n", &[1]).is_none());
    }
}
