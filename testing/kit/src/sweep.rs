//! Takes away everything that a lab or a cluster made, whatever state it is in, and what killed tests left behind.
//!
//! Everything made carries a tag, `skl<pid>-<number>`: the directory below /tmp, the namespaces, the cgroups.

use crate::process::run;
use anyhow::Result;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const TAG: &str = "skl";

/// A tag that nothing else on this machine has.
pub(crate) fn new_tag() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{TAG}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A directory below /tmp: short, because unix socket paths end at 107 bytes.
pub(crate) fn new_dir(tag: &str) -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix(&format!("{tag}.")).rand_bytes(3).tempdir_in("/tmp")?)
}

/// What there is to take away.
#[derive(Debug, Clone, Default)]
pub(crate) struct Debris {
    /// Mounts below it go, and processes whose command lines name it.
    pub dir: PathBuf,
    /// The hosts' directories: it, or some below it.
    pub hosts: Vec<PathBuf>,
    pub namespaces: Vec<String>,
    pub cgroups: Vec<String>,
}

/// Sweeps and prints what could not be taken away.
pub(crate) fn sweep_loudly(debris: &Debris) {
    for problem in sweep(debris) {
        eprintln!("clean-up: {problem}");
    }
}

/// Goes on after each failure and returns them all.
pub(crate) fn sweep(debris: &Debris) -> Vec<String> {
    let mut problems = Vec::new();
    thaw(&debris.dir);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes_of(debris);
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
    for mount in mounts_under(&debris.dir) {
        if let Err(error) = umount2(mount.as_str(), MntFlags::MNT_DETACH) {
            problems.push(format!("cannot unmount {mount}: {error}"));
        }
    }
    for namespace in &debris.namespaces {
        if Path::new("/run/netns").join(namespace).exists()
            && let Err(error) = run("ip", &["netns", "del", namespace]).and_then(crate::Output::success)
        {
            problems.push(format!("cannot delete namespace {namespace}: {error}"));
        }
    }
    debris.cgroups.iter().for_each(|name| remove_cgroups(name));
    problems
}

/// Once per process: what tests left that were killed before they could take it away.
pub(crate) fn clear_the_dead() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let names = [names_in("/run/netns"), names_in("/tmp"), crate::audit::hierarchies().iter().flat_map(names_in).collect()].concat();
        let tags: BTreeSet<&str> = names.iter().filter_map(|name| tag_of(name)).filter(|tag| is_dead(tag)).collect();
        for tag in tags {
            eprintln!("taking away what {tag} left");
            crate::dockerd::stop_leftovers(tag);
            let of_tag = |names: Vec<String>| names.into_iter().filter(|name| tag_of(name) == Some(tag)).collect::<Vec<_>>();
            let namespaces = of_tag(names_in("/run/netns"));
            let cgroups: BTreeSet<String> = of_tag(crate::audit::hierarchies().iter().flat_map(names_in).collect()).into_iter().collect();
            let dirs = of_tag(names_in("/tmp"));
            let debris = Debris { namespaces, cgroups: cgroups.into_iter().collect(), ..Debris::default() };
            for dir in &dirs {
                let dir = Path::new("/tmp").join(dir);
                let hosts = host_dirs(&dir);
                sweep_loudly(&Debris { dir: dir.clone(), hosts, ..debris.clone() });
                let _ = std::fs::remove_dir_all(&dir);
            }
            if dirs.is_empty() {
                sweep_loudly(&Debris { dir: format!("/tmp/{tag}.").into(), ..debris });
            }
        }
    });
}

/// The directory and those below it: whichever is a host's.
pub(crate) fn host_dirs(dir: &Path) -> Vec<PathBuf> {
    let below = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    std::iter::once(dir.to_owned()).chain(below).collect()
}

fn names_in(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// `skl123-4` of `skl123-4h` or `skl123-4.x9`; nothing of other names.
fn tag_of(name: &str) -> Option<&str> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let pid = digits(name.strip_prefix(TAG)?);
    let number = digits(name.get(TAG.len() + pid..)?.strip_prefix('-')?);
    (pid > 0 && number > 0).then(|| &name[..TAG.len() + pid + 1 + number])
}

fn is_dead(tag: &str) -> bool {
    let pid = tag[TAG.len()..].split('-').next().unwrap_or_default();
    std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).map_or(true, |stat| is_zombie(&stat))
}

fn is_zombie(stat: &str) -> bool {
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

/// Every process that was started for these hosts: its command line names the directory, it lives in one of the network
/// namespaces, or it is the container behind one of the shims.
fn processes_of(debris: &Debris) -> Vec<Pid> {
    use std::os::linux::fs::MetadataExt;
    let needle = debris.dir.to_string_lossy().into_owned();
    let inode = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.st_dev(), found.st_ino()));
    let mut ours: Vec<_> = debris.namespaces.iter().filter_map(|name| inode(&Path::new("/run/netns").join(name))).collect();
    for host in &debris.hosts {
        let tasks = std::fs::read_dir(host.join("run/netns")).into_iter().flatten().flatten();
        ours.extend(tasks.filter_map(|entry| inode(&entry.path())));
    }
    let init_pids: Vec<i32> = debris.hosts.iter().flat_map(|host| init_pids(host)).collect();
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
        let zombie = std::fs::read_to_string(path.join("stat")).is_ok_and(|stat| is_zombie(&stat));
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

/// A disk that a killed test left stuck: whoever waits for it cannot even be killed.
fn thaw(dir: &Path) {
    for mount in mounts_under(dir).iter().filter(|mount| mount.ends_with("/data")) {
        let _ = run("fsfreeze", &["-u", mount]);
    }
}

/// The cgroups in every hierarchy, which hold no process any more.
fn remove_cgroups(name: &str) {
    for group in crate::audit::cgroups(name) {
        let _ = std::fs::remove_dir(group);
    }
    for hierarchy in crate::audit::hierarchies() {
        let _ = std::fs::remove_dir(hierarchy.join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_the_names_made_from_it() {
        assert_eq!(tag_of("skl123-4h"), Some("skl123-4"));
        assert_eq!(tag_of("skl123-45.xyz"), Some("skl123-45"));
        assert_eq!(tag_of("skl123-4"), Some("skl123-4"));
        for other in ["skl", "skl123", "skl-4", "skl12x-4", "sklabc", "x", "skl123-"] {
            assert_eq!(tag_of(other), None, "{other}");
        }
        assert!(!is_dead(&new_tag()) && is_dead("skl999999999-0"));
    }
}
