//! CPU time: of a tree of processes, of the kernel's own threads, of the whole machine.
//!
//! A tree is a group of the cpuacct controller: it counts in nanoseconds, keeps what processes used that have ended, and does
//! not see what the rest of the machine does. Kernel threads (freeing namespaces, RCU) belong to nobody's tree; they are
//! counted for the whole machine, and what they use anyway is taken off by the idle baseline.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

const CPUACCT: &str = "/sys/fs/cgroup/cpuacct";
/// The kernel's flag of its own threads (`include/linux/sched.h`).
const PF_KTHREAD: u64 = 0x0020_0000;
/// Ticks a second of the times in /proc (`USER_HZ`), the same on every Linux of today.
const TICKS: f64 = 100.0;

/// A group of processes whose CPU time is counted together. Removed when dropped.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// # Errors
    /// If the machine has no cpuacct controller of cgroup v1, or not for us.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(Path::new(CPUACCT).join("tasks").exists(), "{CPUACCT} is not a cgroup v1 controller: CPU time cannot be attributed here");
        let path = Path::new(CPUACCT).join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make the group {}", path.display()))?;
        Ok(Self(path))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Runs `work` on a thread inside the group; processes it starts are born there.
    ///
    /// # Errors
    /// Those of `work`, and if the thread cannot enter the group.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // 0 stands for the thread that writes.
                std::fs::write(self.0.join("tasks"), "0").with_context(|| format!("cannot enter {}", self.0.display()))?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..50 {
            match std::fs::remove_dir(&self.0) {
                Ok(()) => return,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        }
        eprintln!("clean-up: the group {} is still in use", self.0.display());
    }
}

/// The group of that name below the controller's root, whether it exists or not.
#[must_use]
pub fn group_path(name: &str) -> PathBuf {
    Path::new(CPUACCT).join(name)
}

/// Seconds used so far by the groups and all below them. One that does not exist used none.
#[must_use]
pub fn tree_seconds(groups: &[PathBuf]) -> f64 {
    let usage = |group: &PathBuf| std::fs::read_to_string(group.join("cpuacct.usage")).ok()?.trim().parse::<f64>().ok();
    groups.iter().filter_map(usage).sum::<f64>() / 1e9
}

/// Seconds used so far by each of the kernel's own threads that live now, by process id.
#[must_use]
pub fn kernel_threads() -> BTreeMap<u32, f64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name, which may hold anything: state, ppid, pgrp, session, tty, tpgid, flags.
        let flags = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(6)).and_then(|flags| flags.parse::<u64>().ok());
        if flags.is_some_and(|flags| flags & PF_KTHREAD != 0) {
            let text = std::fs::read_to_string(entry.path().join("schedstat")).unwrap_or_default();
            let nanos = text.split(' ').next().and_then(|on_cpu| on_cpu.parse::<f64>().ok()).unwrap_or(0.0);
            found.insert(pid, nanos / 1e9);
        }
    }
    found
}

/// What passed between two looks at the kernel's threads. One that ended meanwhile takes its last moments with it, but not
/// those before.
fn kernel_between(earlier: &BTreeMap<u32, f64>, later: &BTreeMap<u32, f64>) -> f64 {
    later.iter().map(|(pid, used)| (used - earlier.get(pid).copied().unwrap_or(0.0)).max(0.0)).sum()
}

/// Seconds in which the machine's CPUs did anything, or were taken from it (steal).
#[must_use]
pub fn machine_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line: Vec<f64> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal (proc(5)); guest time is part of user.
    [0, 1, 2, 5, 6, 7].iter().filter_map(|index| line.get(*index)).sum::<f64>() / TICKS
}

/// Seconds used so far by this program itself.
#[must_use]
pub fn own_seconds() -> f64 {
    process_seconds(std::process::id())
}

/// Seconds used so far by a process that lives, without its children.
#[must_use]
pub fn process_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (field(11) + field(12)) / TICKS
}

/// The clocks at one moment.
#[derive(Debug, Clone)]
pub struct Reading {
    at: Instant,
    tree: f64,
    kernel: BTreeMap<u32, f64>,
    machine: f64,
    own: f64,
}

/// What passed between two readings, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    pub wall: f64,
    pub tree: f64,
    pub kernel: f64,
    pub machine: f64,
    pub own: f64,
}

impl Reading {
    #[must_use]
    pub fn take(groups: &[PathBuf]) -> Self {
        Self { at: Instant::now(), tree: tree_seconds(groups), kernel: kernel_threads(), machine: machine_seconds(), own: own_seconds() }
    }

    #[must_use]
    pub fn until(&self, later: &Self) -> Spent {
        Spent {
            wall: (later.at - self.at).as_secs_f64(),
            tree: later.tree - self.tree,
            kernel: kernel_between(&self.kernel, &later.kernel),
            machine: later.machine - self.machine,
            own: later.own - self.own,
        }
    }
}

impl Spent {
    /// The share of the machine that neither the tree, nor the kernel, nor this program used: somebody else's.
    #[must_use]
    pub fn foreign_share(&self) -> f64 {
        let cpus = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        ((self.machine - self.tree - self.kernel - self.own) / (self.wall * cpus)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_of_ours_used_is_foreign() {
        let cpus = std::thread::available_parallelism().unwrap().get() as f64;
        let spent = Spent { wall: 1.0, tree: 0.2, kernel: 0.1, machine: 0.4 + 0.5 * cpus, own: 0.1 };
        assert!((spent.foreign_share() - 0.5).abs() < 1e-9);
        let quiet = Spent { wall: 1.0, tree: 0.2, kernel: 0.0, machine: 0.1, own: 0.0 };
        assert!(quiet.foreign_share().abs() < 1e-9, "ticks are coarser than nanoseconds");
    }

    #[test]
    fn a_kernel_thread_that_ended_takes_nothing_off() {
        let earlier = BTreeMap::from([(2, 5.0), (3, 100.0)]);
        let later = BTreeMap::from([(2, 5.5), (4, 0.25)]);
        assert!((kernel_between(&earlier, &later) - 0.75).abs() < 1e-9);
    }

    #[test]
    fn the_machine_and_this_program_have_used_something() {
        assert!(machine_seconds() > 0.0);
        assert!(own_seconds() >= 0.0);
    }
}
