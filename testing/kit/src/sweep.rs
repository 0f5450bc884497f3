//! Takes away everything that a lab made, whatever state it is in.

use crate::process::run;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};

/// Goes on after each failure and returns them all.
pub(crate) fn sweep(dir: &Path, namespaces: &[String], cgroup: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes_of(dir, namespaces);
        if left.is_empty() {
            break;
        }
        for pid in &left {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        if Instant::now() > deadline {
            problems.push(format!("processes {left:?} do not die"));
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for mount in mounts_under(dir) {
        if let Err(error) = umount2(mount.as_str(), MntFlags::MNT_DETACH) {
            problems.push(format!("cannot unmount {mount}: {error}"));
        }
    }
    for namespace in namespaces {
        if Path::new("/run/netns").join(namespace).exists()
            && let Err(error) = run("ip", &["netns", "del", namespace]).and_then(crate::Output::success)
        {
            problems.push(format!("cannot delete namespace {namespace}: {error}"));
        }
    }
    remove_cgroups(cgroup);
    problems
}

/// Every process that was started for the lab: its command line names the lab's directory, it lives in one of its network
/// namespaces, or it is the container behind one of its shims.
fn processes_of(dir: &Path, namespaces: &[String]) -> Vec<Pid> {
    use std::os::linux::fs::MetadataExt;
    let needle = dir.to_string_lossy().into_owned();
    let inode = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.st_dev(), found.st_ino()));
    let mut ours: Vec<_> = namespaces.iter().filter_map(|name| inode(&Path::new("/run/netns").join(name))).collect();
    let tasks = std::fs::read_dir(dir.join("run/netns")).into_iter().flatten().flatten();
    ours.extend(tasks.filter_map(|entry| inode(&entry.path())));
    let init_pids: Vec<i32> = init_pids(dir);
    let me = std::process::id();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid.unsigned_abs() == me {
            continue;
        }
        let path = entry.path();
        let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let named = String::from_utf8_lossy(&command).contains(&needle);
        let inside = inode(&path.join("ns/net")).is_some_and(|net| ours.contains(&net));
        // A zombie has no command line and cannot be killed twice.
        let zombie =
            std::fs::read_to_string(path.join("stat")).is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')));
        if (named || inside || init_pids.contains(&pid)) && !zombie {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

fn init_pids(dir: &Path) -> Vec<i32> {
    let tasks = dir.join("cstate/io.containerd.runtime.v2.task/skep");
    let entries = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("init.pid")).ok()?.trim().parse().ok()).collect()
}

/// Mount points below `dir`, the innermost first.
pub(crate) fn mounts_under(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let needle = format!("{}/", dir.display());
    let mut found: Vec<String> =
        text.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.starts_with(&needle)).map(str::to_owned).collect();
    found.reverse();
    found
}

/// The lab's cgroups in every hierarchy, which hold no process any more.
fn remove_cgroups(name: &str) {
    for group in crate::audit::cgroups(name) {
        let _ = std::fs::remove_dir(group);
    }
    for hierarchy in crate::audit::hierarchies() {
        let _ = std::fs::remove_dir(hierarchy.join(name));
    }
}
