//! What a process uses, as the kernel counts it.

use std::path::PathBuf;

/// Clock ticks a second of the times in /proc (`USER_HZ`), the same on every Linux of today.
const TICKS: f64 = 100.0;

/// Memory and CPU time of one process at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Usage {
    /// KiB of memory that is its own or shared and in RAM.
    pub rss_kib: u64,
    /// The highest `rss_kib` so far.
    pub peak_kib: u64,
    /// Seconds on a CPU since it began, all threads, those that ended too; in hundredths.
    pub cpu_seconds: f64,
    pub threads: u64,
}

/// Of a process that lives; all zero of one that does not.
#[must_use]
pub fn usage_of(pid: u32) -> Usage {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let status = std::fs::read_to_string(dir.join("status")).unwrap_or_default();
    let stat = std::fs::read_to_string(dir.join("stat")).unwrap_or_default();
    parse(&status, &stat)
}

fn parse(status: &str, stat: &str) -> Usage {
    let field = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    // The name may hold anything, also blanks and brackets; fields are counted after it (proc(5)).
    let after_name: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| after_name.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    Usage { rss_kib: field("VmRSS:"), peak_kib: field("VmHWM:"), cpu_seconds: (ticks(11) + ticks(12)) / TICKS, threads: field("Threads:") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_understood_whatever_the_program_is_called() {
        let status = "Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nThreads:\t7\n";
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 7 0 1 2 3";
        assert_eq!(parse(status, stat), Usage { rss_kib: 200, peak_kib: 300, cpu_seconds: 2.0, threads: 7 });
    }

    #[test]
    fn this_process_uses_memory_and_one_that_is_not_there_none() {
        assert!(usage_of(std::process::id()).rss_kib > 0);
        assert_eq!(usage_of(u32::MAX), Usage::default());
    }
}
