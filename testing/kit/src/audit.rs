use crate::host::Host;
use crate::process::run;
use crate::sweep::mounts_under;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;

/// Everything that exists of a host: links, namespaces, mounts, rules, cgroups, processes, files, containerd's objects.
/// A line each, so that two inventories can be compared and the difference read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// Takes stock of a host. Of containerd only if it was started: there is nothing without it.
    ///
    /// # Errors
    /// If one of the sources cannot be read: an audit that saw nothing proves nothing.
    pub fn take(host: &Host) -> Result<Self> {
        let mut lines = BTreeSet::new();
        let namespace = host.namespace();
        let links: serde_json::Value = serde_json::from_str(&run("ip", &["-n", namespace, "-j", "link"])?.success()?)?;
        for link in links.as_array().into_iter().flatten() {
            lines.insert(format!("link {}", link["ifname"].as_str().unwrap_or("?")));
        }
        for family in ["-4", "-6"] {
            // What the kernel adds for the cable's own addresses is the test's.
            for line in
                run("ip", &[family, "-n", namespace, "route"])?.success()?.lines().filter(|line| !line.contains("dev eth0 proto kernel"))
            {
                lines.insert(format!("route {family} {}", line.trim()));
            }
            for line in run("ip", &[family, "-n", namespace, "rule"])?.success()?.lines() {
                lines.insert(format!("rule {family} {}", line.trim()));
            }
        }
        let net = format!("--net=/run/netns/{namespace}");
        let rules: serde_json::Value = serde_json::from_str(&run("nsenter", &[&net, "nft", "-j", "list", "ruleset"])?.success()?)?;
        for item in rules["nftables"].as_array().into_iter().flatten() {
            for kind in ["table", "chain", "map", "set"] {
                let found = &item[kind];
                if found.is_object() {
                    let name = |key: &str| found[key].as_str().unwrap_or("").to_owned();
                    lines.insert(format!("nft {kind} {} {} {}", name("family"), name("table"), name("name")));
                    for element in found["elem"].as_array().into_iter().flatten() {
                        lines.insert(format!("nft element {} {} {}", name("table"), name("name"), without_slot(element)));
                    }
                }
            }
        }
        for mount in mounts_under(host.dir()) {
            lines.insert(format!("mount {mount}"));
        }
        for (what, arguments) in [
            ("snapshot", &["snapshots", "ls"][..]),
            ("container", &["containers", "ls", "-q"]),
            ("containerd task", &["tasks", "ls", "-q"]),
            ("lease", &["leases", "ls", "-q"]),
        ] {
            if host.containerd_pid().is_none() {
                continue;
            }
            for line in host.ctr(arguments)?.success()?.lines() {
                lines.insert(format!("{what} {}", line.split_whitespace().next().unwrap_or_default()));
            }
        }
        for dir in ["run/netns", "run/tasks", "data/agent/tasks", "data/agent/etc", "data/agent/logs", "data/agent/volumes"] {
            for entry in std::fs::read_dir(host.dir().join(dir)).into_iter().flatten().flatten() {
                lines.insert(format!("file {dir}/{}", entry.file_name().to_string_lossy()));
            }
        }
        for group in cgroups(host.cgroup()) {
            lines.insert(format!("cgroup {group}"));
        }
        for shim in shims(host.dir()) {
            lines.insert(format!("shim {shim}"));
        }
        Ok(Self(lines))
    }

    /// What is there now and was not before.
    #[must_use]
    pub fn leaked_since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).filter(|line| !is_frame(line)).cloned().collect()
    }

    /// What was there before and is gone.
    #[must_use]
    pub fn lost_since(&self, before: &Self) -> Vec<String> {
        before.0.difference(&self.0).filter(|line| !is_frame(line)).cloned().collect()
    }

    /// # Errors
    /// If anything is there that was not before, with the list of it.
    pub fn same_as(&self, before: &Self) -> Result<()> {
        let (leaked, lost) = (self.leaked_since(before), self.lost_since(before));
        ensure!(leaked.is_empty() && lost.is_empty(), "leaked: {leaked:#?}\nlost: {lost:#?}");
        Ok(())
    }

    /// How many lines begin with `kind`.
    #[must_use]
    pub fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|line| line.starts_with(kind)).count()
    }
}

/// The two tables of rules with their chains and maps: made once, whatever is published, and removed when the node leaves its
/// cluster. What changes with services, and so could leak, are the elements.
fn is_frame(line: &str) -> bool {
    ["nft table", "nft chain", "nft map", "nft set"].iter().any(|frame| line.starts_with(frame))
}

/// A backend's element without the number of its slot: which of several backends has which slot means nothing.
fn without_slot(element: &serde_json::Value) -> String {
    let mut element = element.clone();
    if let Some(key) = element.get_mut(0).and_then(|key| key.get_mut("concat")).and_then(serde_json::Value::as_array_mut)
        && key.len() == 3
        && key[2].is_u64()
    {
        key.truncate(2);
    }
    element.to_string()
}

/// Where cgroup hierarchies are mounted: one for version 2, one for each controller of version 1.
pub(crate) fn hierarchies() -> Vec<std::path::PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(root.to_owned()).chain(below.filter(|path| path.is_dir())).collect()
}

/// The cgroups inside `name`, in every hierarchy.
pub(crate) fn cgroups(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        for group in std::fs::read_dir(hierarchy.join(name)).into_iter().flatten().flatten() {
            if group.path().is_dir() {
                found.push(group.path().to_string_lossy().into_owned());
            }
        }
    }
    found
}

fn shims(dir: &Path) -> Vec<String> {
    let needle = dir.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains("containerd-shim") && command.contains(&needle) {
            let id = command.split(" -id ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("?");
            found.push(id.to_owned());
        }
    }
    found
}
