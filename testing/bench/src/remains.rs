//! What a task leaves in the kernel until it is gone: shims, namespaces, mounts, cgroups.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where to look; cheap enough to be asked every few milliseconds.
#[derive(Debug, Clone)]
pub struct Places {
    /// The mounts as one of the daemons sees them, and which of them count: those below these directories.
    pub mountinfo: PathBuf,
    pub mounts_below: Vec<PathBuf>,
    /// Directories with a file per network namespace.
    pub namespaces: Vec<PathBuf>,
    /// Parent groups, below every hierarchy, with a group per task.
    pub cgroups: Vec<String>,
    /// What a shim's command line holds.
    pub shim: String,
}

impl Places {
    /// What is there, a line each, apart from shims.
    #[must_use]
    pub fn look(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let text = std::fs::read_to_string(&self.mountinfo).unwrap_or_default();
        for point in text.lines().filter_map(|line| line.split(' ').nth(4)) {
            if self.mounts_below.iter().any(|dir| Path::new(point).starts_with(dir)) {
                found.insert(format!("mount {point}"));
            }
        }
        for dir in &self.namespaces {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                found.insert(format!("namespace {}", entry.path().display()));
            }
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            for parent in &self.cgroups {
                for entry in std::fs::read_dir(hierarchy.path().join(parent)).into_iter().flatten().flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        found.insert(format!("cgroup {}", entry.path().display()));
                    }
                }
            }
        }
        found
    }

    /// The shims that live now. Reads all of /proc: not for a polling loop.
    #[must_use]
    pub fn shims(&self) -> Vec<u32> {
        pids(|command| command.contains("containerd-shim") && command.contains(&self.shim))
    }
}

/// Processes whose command line is as wanted, arguments separated by blanks.
#[must_use]
pub fn pids(wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if wanted(&String::from_utf8_lossy(&command).replace('\0', " ")) {
            found.push(pid);
        }
    }
    found
}

/// Whether a process exists and has not ended. A zombie is its parent's business and holds nothing.
#[must_use]
pub fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// The processes of containerd's tasks, from the files its shims keep.
#[must_use]
pub fn init_pids(state: &Path, namespace: &str) -> Vec<u32> {
    let tasks = state.join("io.containerd.runtime.v2.task").join(namespace);
    let pid = |dir: PathBuf| std::fs::read_to_string(dir.join("init.pid")).ok()?.trim().parse().ok();
    std::fs::read_dir(tasks).into_iter().flatten().flatten().filter_map(|entry| pid(entry.path())).collect()
}

/// Removes a parent group and what is below it from every hierarchy, where no process is left in it.
pub fn remove_groups(name: &str) {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let parent = hierarchy.path().join(name);
        for entry in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = std::fs::remove_dir(parent);
    }
}
