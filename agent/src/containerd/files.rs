//! The files of one task on the host: `<run>/tasks/<id>/` with fifos, a small memory file system for secrets and configs, and
//! `container.json`, what the next agent must know of the container; `<data>/agent/etc/<id>/` with `hosts`, `resolv.conf` and
//! `hostname`.

use crate::error::ExecError;
use crate::executor::Sandbox;
use crate::logs::LogOptions;
use crate::payloads::Payloads;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};
use skep_failpoint::failpoint;
use skep_types::template;
use skep_types::{ConfigTarget, ContainerSpec, FileTarget, HealthConfig, Task};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What the next agent must know to go on with a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    #[serde(default)]
    pub health: Option<HealthConfig>,
    /// Number.
    pub stop_signal: i32,
    #[serde(default)]
    pub terminal: bool,
    pub log: LogOptions,
    pub snapshotter: String,
    /// Volumes that live as long as the task.
    #[serde(default)]
    pub own_volumes: Vec<String>,
}

/// The directory of one task.
#[derive(Debug, Clone)]
pub struct TaskDir(PathBuf);

impl TaskDir {
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the directory.
    pub fn create(&self) -> Result<(), ExecError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(ExecError::io("make the directory", &self.0))
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<(), ExecError> {
        let path = self.join(name);
        fs::write(&path, text).map_err(ExecError::io("write", &path))?;
        // Read by whoever runs in the container; the directory itself is root's only.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(ExecError::io("set the mode of", &path))
    }

    pub fn make_fifo(&self, name: &str) -> Result<PathBuf, ExecError> {
        let path = self.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))
            .map_err(|errno| ExecError::io("make the pipe", &path)(errno.into()))?;
        Ok(path)
    }

    /// Removes the pipes whose names begin so, of an agent that is gone. A shim that is just starting a process on one waits for the
    /// other end, and answers nobody while it waits: opening it lets the shim go on.
    pub fn abandon_fifos(&self, prefix: &str) {
        let is_ours = |entry: &fs::DirEntry| {
            entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) && entry.file_type().is_ok_and(|kind| kind.is_fifo())
        };
        for path in fs::read_dir(&self.0).into_iter().flatten().flatten().filter(is_ours).map(|entry| entry.path()) {
            // Both ends, so that this waits for nobody itself.
            let other_end = fs::OpenOptions::new().read(true).write(true).open(&path);
            if let Err(error) = other_end.and_then(|_| fs::remove_file(&path)) {
                tracing::warn!(path = %path.display(), %error, "the pipe of an earlier health check is left");
            }
        }
    }

    /// A new place to mount a part of a volume on, a directory or a file.
    pub fn new_pin(&self, dir: bool) -> Result<PathBuf, ExecError> {
        let pins = self.join("pins");
        fs::create_dir_all(&pins).map_err(ExecError::io("make the directory", &pins))?;
        let count = fs::read_dir(&pins).map_err(ExecError::io("read", &pins))?.count();
        let path = pins.join(count.to_string());
        let made = if dir { fs::create_dir(&path) } else { fs::File::create_new(&path).map(drop) };
        made.map_err(ExecError::io("make", &path))?;
        Ok(path)
    }

    /// Unmounts and removes them one by one: what is still mounted must never be emptied.
    fn remove_pins(&self) -> Result<(), ExecError> {
        let pins = self.join("pins");
        let Ok(entries) = fs::read_dir(&pins) else { return Ok(()) };
        for path in entries.flatten().map(|entry| entry.path()) {
            while umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
            let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
            removed.map_err(ExecError::io("remove", &path))?;
        }
        Ok(())
    }

    pub fn keep(&self, kept: &Kept) -> Result<(), ExecError> {
        let text = serde_json::to_vec(kept).map_err(|error| ExecError::io("write", &self.0)(error.into()))?;
        self.write("container.json", text)
    }

    pub fn kept(&self) -> Option<Kept> {
        serde_json::from_slice(&fs::read(self.join("container.json")).ok()?).ok()
    }

    /// Removes everything, mounts first.
    pub fn remove(&self) -> Result<(), ExecError> {
        for name in ["payloads", "rootfs"] {
            let path = self.join(name);
            if path.exists() {
                // Not mounted is as good as unmounted.
                let _ = umount2(&path, MntFlags::MNT_DETACH);
            }
        }
        self.remove_pins()?;
        failpoint!("agent.files.unmounted");
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ExecError::io("remove", &self.0)(error)),
            _ => Ok(()),
        }
    }
}

/// The host's name servers that a container with a network of its own can reach, and the search domains and options.
fn host_dns() -> (Vec<String>, Vec<String>, Vec<String>) {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let (mut servers, mut search, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().map(str::to_owned)),
            Some("search") => search = words.map(str::to_owned).collect(),
            Some("options") => options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    (servers, search, options)
}

/// The text of `resolv.conf`.
pub fn resolv_conf(spec: &ContainerSpec, sandbox: &Sandbox) -> String {
    let (mut servers, mut search, mut options) = host_dns();
    if sandbox.namespace.is_some() {
        // The host's own resolver does not answer in another namespace.
        servers.retain(|server| !server.starts_with("127.") && server != "::1");
    }
    if let Some(dns) = &spec.dns {
        for (mine, given) in [(&mut servers, &dns.nameservers), (&mut search, &dns.search), (&mut options, &dns.options)] {
            if !given.is_empty() {
                mine.clone_from(given);
            }
        }
    }
    if !sandbox.nameservers.is_empty() {
        // They ask whom the service names. A program must not try a search domain first: that question would go out.
        servers = sandbox.nameservers.iter().map(ToString::to_string).collect();
        let is_ndots = |option: &String| option.starts_with("ndots:");
        let asked = spec.dns.as_ref().is_some_and(|dns| dns.options.iter().any(is_ndots));
        if !asked {
            options.retain(|option| !is_ndots(option));
            options.push("ndots:0".into());
        }
    }
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    for (word, list) in [("search", search), ("options", options)] {
        if !list.is_empty() && list != ["."] {
            text.push_str(&format!("{word} {}\n", list.join(" ")));
        }
    }
    text
}

/// The text of `hosts` of a container whose own addresses are others now; what else is in it stays.
pub fn other_addresses(text: &str, hostname: &str, before: &[IpAddr], now: &[IpAddr]) -> String {
    let own = |address: &IpAddr| format!("{address}\t{hostname}");
    let old: Vec<String> = before.iter().map(own).collect();
    let kept = text.lines().filter(|line| !old.iter().any(|own| own == line)).map(str::to_owned);
    kept.chain(now.iter().map(own)).map(|line| line + "\n").collect()
}

/// The text of `hosts`.
pub fn hosts(spec: &ContainerSpec, hostname: &str, sandbox: &Sandbox) -> Result<String, ExecError> {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for line in &spec.hosts {
        let bad = || ExecError::BadSpec { field: "hosts", problem: format!("{line:?} is not an address followed by names") };
        let mut words = line.split_whitespace();
        let address: std::net::IpAddr = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
        let names: Vec<&str> = words.collect();
        if names.is_empty() || line.contains('\n') {
            return Err(bad());
        }
        text.push_str(&format!("{address}\t{}\n", names.join(" ")));
    }
    for address in &sandbox.addresses {
        text.push_str(&format!("{address}\t{hostname}\n"));
    }
    Ok(text)
}

/// A payload that was written for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadFile {
    pub source: PathBuf,
    pub target: String,
}

/// Writes the secrets and configs of a task into a memory file system of its own. Those that are templates are filled in first.
pub fn write_payloads(
    dir: &TaskDir,
    task: &Task,
    spec: &ContainerSpec,
    payloads: &Payloads,
    node: &template::NodeFacts,
) -> Result<Vec<PayloadFile>, ExecError> {
    let mut wanted: Vec<(String, Vec<u8>, &FileTarget)> = Vec::new();
    for reference in &spec.secrets {
        let name = &reference.secret_name;
        let missing = || ExecError::PayloadMissing { kind: "secret", name: name.clone() };
        let secret = payloads.secret(&reference.secret_id, &task.id).ok_or_else(missing)?;
        let target = reference.file.as_ref();
        let target = target.ok_or_else(|| ExecError::BadSpec { field: "secrets", problem: "a reference has no target".into() })?;
        let path = if target.name.starts_with('/') { target.name.clone() } else { format!("/run/secrets/{}", target.name) };
        let data = fill_in("secret", name, &secret.spec.data.0, secret.spec.templating.as_ref(), |text| {
            template::expand_payload("", text, &spec.env, task, node).map_err(|_| {
                // What exactly is wrong would tell a part of it to whoever may see tasks.
                let problem = format!("secret {name} has a placeholder that is not known or has no end");
                ExecError::BadSpec { field: "secrets", problem }
            })
        })?;
        wanted.push((path, data, target));
    }
    for reference in &spec.configs {
        let name = &reference.config_name;
        let missing = || ExecError::PayloadMissing { kind: "config", name: name.clone() };
        let config = payloads.config(&reference.config_id).ok_or_else(missing)?;
        let Some(ConfigTarget::File(target)) = &reference.target else { continue };
        let path = if target.name.starts_with('/') { target.name.clone() } else { format!("/{}", target.name) };
        let data = fill_in("config", name, &config.spec.data.0, config.spec.templating.as_ref(), |text| {
            Ok(template::expand_payload(&format!("config {name}"), text, &spec.env, task, node)?)
        })?;
        wanted.push((path, data, target));
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let root = dir.join("payloads");
    fs::create_dir(&root).map_err(ExecError::io("make the directory", &root))?;
    failpoint!("agent.payloads.directory");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), &root, Some("tmpfs"), flags, Some("mode=0700"))
        .map_err(|errno| ExecError::io("mount a memory file system on", &root)(errno.into()))?;
    failpoint!("agent.payloads.mounted");
    let mut files = Vec::new();
    for (index, (target_path, data, target)) in wanted.into_iter().enumerate() {
        let source = root.join(index.to_string());
        let id = |text: &str| {
            let bad = || ExecError::BadSpec { field: "secrets", problem: format!("{text:?} is not a decimal uid or gid") };
            if text.is_empty() { Ok(0) } else { text.parse::<u32>().map_err(|_| bad()) }
        };
        fs::write(&source, data).map_err(ExecError::io("write", &source))?;
        std::os::unix::fs::lchown(&source, Some(id(&target.uid)?), Some(id(&target.gid)?))
            .map_err(ExecError::io("change the owner of", &source))?;
        fs::set_permissions(&source, fs::Permissions::from_mode(unix_mode(target.mode)))
            .map_err(ExecError::io("set the mode of", &source))?;
        files.push(PayloadFile { source, target: target_path });
    }
    Ok(files)
}

/// The payload as the task is to see it.
fn fill_in(
    kind: &'static str,
    name: &str,
    data: &[u8],
    driver: Option<&skep_types::Driver>,
    expand: impl Fn(&str) -> Result<String, ExecError>,
) -> Result<Vec<u8>, ExecError> {
    match driver.map_or("", |driver| driver.name.as_str()) {
        "" => Ok(data.to_vec()),
        "golang" => {
            let not_text = |_| ExecError::BadSpec { field: kind, problem: format!("{name} is no UTF-8 text and cannot be a template") };
            expand(std::str::from_utf8(data).map_err(not_text)?).map(String::into_bytes)
        }
        other => Err(ExecError::Unsupported {
            what: format!("expanding {kind} {name} as a template of {other:?}"),
            cure: "; use \"golang\", or expand it before it is created",
        }),
    }
}

/// Unix mode bits of Go's FileMode, whose setuid, setgid and sticky are bits 23, 22 and 20.
pub fn unix_mode(go: u32) -> u32 {
    let bit = |from: u32, to: u32| if go & (1 << from) != 0 { to } else { 0 };
    (go & 0o777) | bit(23, 0o4000) | bit(22, 0o2000) | bit(20, 0o1000)
}

/// The host name of a task: the service's wish, else the node's own on its network, else part of the task's id.
pub fn hostname(spec: &ContainerSpec, task: &Task, sandbox: &Sandbox, node: &template::NodeFacts) -> String {
    if !spec.hostname.is_empty() {
        spec.hostname.clone()
    } else if sandbox.namespace.is_none() {
        node.hostname.clone()
    } else {
        task.id.as_str().chars().take(12).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::DnsConfig;

    #[test]
    fn hosts_hold_the_service_s_lines_and_the_task_itself() {
        let spec = ContainerSpec { hosts: vec!["10.0.0.9 db db.local".into()], ..ContainerSpec::default() };
        let sandbox = Sandbox { addresses: vec!["10.0.0.5".parse().unwrap()], ..Sandbox::default() };
        let text = hosts(&spec, "web1", &sandbox).unwrap();
        assert!(text.ends_with("10.0.0.9\tdb db.local\n10.0.0.5\tweb1\n"), "{text}");
        let spec = ContainerSpec { hosts: vec!["db 10.0.0.9".into()], ..ContainerSpec::default() };
        assert!(hosts(&spec, "web1", &sandbox).is_err());
    }

    #[test]
    fn hosts_of_a_container_that_changes_networks_keep_what_is_not_its_own() {
        let address = |text: &str| text.parse().unwrap();
        let text = "127.0.0.1\tlocalhost\n10.0.0.5\tweb1\n10.0.0.9\tweb1 db\n";
        let new = other_addresses(text, "web1", &[address("10.0.0.5")], &[address("10.0.0.5"), address("10.0.1.5")]);
        assert_eq!(new, "127.0.0.1\tlocalhost\n10.0.0.9\tweb1 db\n10.0.0.5\tweb1\n10.0.1.5\tweb1\n");
    }

    #[test]
    fn dns_settings_of_the_service_win() {
        let dns = DnsConfig { nameservers: vec!["9.9.9.9".into()], search: vec!["a".into(), "b".into()], options: vec!["ndots:2".into()] };
        let spec = ContainerSpec { dns: Some(dns), ..ContainerSpec::default() };
        assert_eq!(resolv_conf(&spec, &Sandbox::default()), "nameserver 9.9.9.9\nsearch a b\noptions ndots:2\n");
        let sandbox = Sandbox { namespace: Some("/x".into()), nameservers: vec!["127.0.0.11".parse().unwrap()], ..Sandbox::default() };
        assert!(resolv_conf(&ContainerSpec::default(), &sandbox).starts_with("nameserver 127.0.0.11\n"));
        assert!(resolv_conf(&ContainerSpec::default(), &sandbox).ends_with("ndots:0\n"));
        assert_eq!(resolv_conf(&spec, &sandbox), "nameserver 127.0.0.11\nsearch a b\noptions ndots:2\n", "the server asks 9.9.9.9");
        let plain = ContainerSpec { dns: Some(DnsConfig { options: vec!["timeout:1".into()], ..DnsConfig::default() }), ..spec };
        assert!(resolv_conf(&plain, &sandbox).ends_with("options timeout:1 ndots:0\n"));
    }

    #[test]
    fn only_templates_are_filled_in_and_must_be_text() {
        let driver = |name: &str| skep_types::Driver { name: name.into(), ..Default::default() };
        let fill = |data: &[u8], name: &str| {
            fill_in("config", "c", data, Some(&driver(name)), |text| Ok(text.replace("{{x}}", "1"))).map_err(|error| error.to_string())
        };
        assert_eq!(fill(b"\xff{{x}}", "").unwrap(), b"\xff{{x}}");
        assert_eq!(fill(b"a{{x}}", "golang").unwrap(), b"a1");
        assert!(fill(b"\xff", "golang").unwrap_err().contains("UTF-8"));
        assert!(fill(b"a", "jinja").unwrap_err().contains("jinja"));
    }

    #[test]
    fn go_s_mode_bits_become_unix_s() {
        assert_eq!(unix_mode(0o444), 0o444);
        assert_eq!(unix_mode(0o755 | 1 << 23), 0o4755);
    }
}
