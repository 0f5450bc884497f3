//! Configuration: defaults, then the file, then the flags.

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use serde::Deserialize;
use skep_netlb::LbDriver;
use skep_types::GenericResource;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration file is looked for when none is named; it may be missing.
const DEFAULT_FILE: &str = "/etc/skep/skepd.toml";

const DAY: Duration = Duration::from_secs(86_400);

/// Flags of the daemon; each wins over the same key of the file.
#[derive(Debug, Default, Clone, Args)]
pub struct Flags {
    /// Configuration file (TOML, the same names as the flags with underscores)
    #[arg(long, value_name = "FILE", env = "SKEPD_CONFIG")]
    pub config: Option<PathBuf>,
    /// State that must survive a reboot: identity, cluster state, tasks, logs, volumes [default: /var/lib/skep]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Sockets and namespaces [default: /run/skep]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// containerd's socket [default: /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCKET")]
    pub containerd: Option<PathBuf>,
    /// Namespace in containerd [default: skep]
    #[arg(long, value_name = "NAME")]
    pub containerd_namespace: Option<String>,
    /// Cgroup that holds the tasks' cgroups [default: /skep]
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<String>,
    /// Address of the cluster port [default: 0.0.0.0:2377]
    #[arg(long, value_name = "IP:PORT")]
    pub listen_addr: Option<SocketAddr>,
    /// Address that other nodes reach this one at, with or without port [default: found out]
    #[arg(long, value_name = "IP[:PORT]")]
    pub advertise_addr: Option<String>,
    /// Address of this machine that other nodes send the packets of overlay networks to [default: the one that managers see]
    #[arg(long, value_name = "IP")]
    pub data_path_addr: Option<IpAddr>,
    /// What spreads connections over tasks: nftables, ipvs, or auto, which is nftables [default: auto]
    #[arg(long, value_name = "NAME")]
    pub lb_driver: Option<LbDriver>,
    /// What encrypts packets of encrypted networks: kernel, userspace, auto (the kernel where it can), or off: then this node gets no
    /// tasks of such networks [default: auto]
    #[arg(long, value_name = "NAME")]
    pub wireguard: Option<Wireguard>,
    /// UDP port of encrypted networks; the one after it is used too, while keys are changed [default: 51820]
    #[arg(long, value_name = "PORT")]
    pub wireguard_port: Option<u16>,
    /// On a manager: after this time all nodes make new keys for encrypted networks [default: 86400]
    #[arg(long, value_name = "SECONDS")]
    pub tunnel_key_lifetime: Option<u32>,
    /// Registries that are spoken to without TLS (those on loopback always are)
    #[arg(long, value_name = "HOST:PORT")]
    pub insecure_registry: Vec<String>,
    /// Where the Docker API of this node answers: a Unix socket of root's (see --docker-group), or off [default: docker.sock in the run
    /// directory]
    #[arg(long, value_name = "PATH|off")]
    pub docker_socket: Option<PathBuf>,
    /// Where the cluster answers as one Docker host, whose containers are those of tasks on all nodes: a Unix socket, which works on
    /// managers, or off [default: docker-cluster.sock in the run directory]
    #[arg(long, value_name = "PATH|off")]
    pub docker_cluster_socket: Option<PathBuf>,
    /// Group that may use those sockets too, and so everything on this node and in its cluster; asks for a --docker-socket outside of
    /// the run directory, which is root's alone; --docker-cluster-socket is the group's too if it is outside
    #[arg(long, value_name = "GROUP")]
    pub docker_group: Option<String>,
    /// On a manager: where the Docker API answers on TCP, by TLS 1.3, to clients with a certificate from `swarmctl cluster client-cert` and
    /// to managers; usually port 2376 [default: off]
    #[arg(long, value_name = "IP:PORT")]
    pub docker_tls_listen: Option<SocketAddr>,
    /// Host name or IP address that clients of --docker-tls-listen call this node by, besides its host name, localhost, the address that it
    /// listens on and the one it advertises; others are refused
    #[arg(long, value_name = "NAME")]
    pub docker_tls_name: Vec<String>,
    /// What --docker-tls-listen shows: node, or cluster, which is what --docker-cluster-socket shows [default: node]
    #[arg(long, value_name = "NAME")]
    pub docker_tls_view: Option<DockerView>,
    /// Label of this node's engine, for constraints on engine.labels
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// What tasks can reserve of this node by --generic-resource: a count (ssd=3), or one individual (gpu=UUID-1), once for each
    #[arg(long, value_name = "KIND=COUNT|KIND=NAME")]
    pub generic_resource: Vec<String>,
    /// What is logged: error, warn, info, debug, trace, or per module as in skep_agent=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// Where to: journald, text or auto (journald under systemd) [default: auto]
    #[arg(long, value_name = "KIND")]
    pub log_format: Option<LogFormat>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Auto,
    Journald,
    Text,
}

/// Whose containers the Docker API is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DockerView {
    #[default]
    Node,
    Cluster,
}

/// By what packets are encrypted, if by anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wireguard {
    #[default]
    Auto,
    Kernel,
    Userspace,
    Off,
}

/// The file. A key that is not known is an error: a misspelt one would be ignored otherwise.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    containerd: Option<PathBuf>,
    containerd_namespace: Option<String>,
    cgroup_parent: Option<String>,
    listen_addr: Option<SocketAddr>,
    advertise_addr: Option<String>,
    data_path_addr: Option<IpAddr>,
    lb_driver: Option<String>,
    wireguard: Option<Wireguard>,
    wireguard_port: Option<u16>,
    tunnel_key_lifetime: Option<u32>,
    insecure_registries: Vec<String>,
    docker_socket: Option<PathBuf>,
    docker_cluster_socket: Option<PathBuf>,
    docker_group: Option<String>,
    docker_tls_listen: Option<SocketAddr>,
    docker_tls_names: Vec<String>,
    docker_tls_view: Option<DockerView>,
    labels: std::collections::BTreeMap<String, String>,
    generic_resources: Vec<String>,
    log_level: Option<String>,
    log_format: Option<LogFormat>,
}

/// Counts and individuals, each kind one of the two.
fn generic_resources<'a>(given: impl Iterator<Item = &'a String>) -> Result<Vec<GenericResource>> {
    let mut all: Vec<GenericResource> = Vec::new();
    for text in given {
        let refuse = |why: &str| anyhow!("--generic-resource {text}: {why}");
        let (kind, value) = text.split_once('=').map(|(kind, value)| (kind.trim(), value.trim())).unwrap_or_default();
        if kind.is_empty() || value.is_empty() {
            return Err(refuse("write KIND=COUNT or KIND=NAME"));
        }
        let new = match value.parse::<i64>() {
            Ok(count) if count < 0 => return Err(refuse("there cannot be less than none")),
            Ok(value) => GenericResource::Discrete { kind: kind.into(), value },
            Err(_) => GenericResource::Named { kind: kind.into(), value: value.into() },
        };
        for other in &all {
            let (GenericResource::Named { kind: known, .. } | GenericResource::Discrete { kind: known, .. }) = other;
            let both_named = matches!((other, &new), (GenericResource::Named { .. }, GenericResource::Named { .. }));
            if known == kind && (!both_named || *other == new) {
                return Err(refuse("the kind is given already; give one count, or individuals with different names"));
            }
        }
        all.push(new);
    }
    Ok(all)
}

/// What the daemon runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub containerd: PathBuf,
    pub containerd_namespace: String,
    pub cgroup_parent: String,
    /// As configured; see [`Self::listen`].
    pub listen_addr: Option<SocketAddr>,
    pub advertise_addr: Option<String>,
    pub data_path_addr: Option<IpAddr>,
    pub lb_driver: LbDriver,
    pub wireguard: Wireguard,
    /// And the one after it.
    pub wireguard_port: u16,
    pub tunnel_key_lifetime: Duration,
    pub insecure_registries: Vec<String>,
    /// `None`: the Docker API is off.
    pub docker_socket: Option<PathBuf>,
    /// The same for the cluster as one host.
    pub docker_cluster_socket: Option<PathBuf>,
    pub docker_group: Option<String>,
    /// `None`: no TCP.
    pub docker_tls_listen: Option<SocketAddr>,
    pub docker_tls_names: Vec<String>,
    pub docker_tls_view: DockerView,
    pub labels: std::collections::BTreeMap<String, String>,
    pub generic_resources: Vec<GenericResource>,
    pub log_level: String,
    pub log_format: LogFormat,
}

impl Config {
    /// # Errors
    /// Names the file or flag and what is wrong with it.
    pub fn load(flags: &Flags) -> Result<Self> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read(Path::new(DEFAULT_FILE))?,
            None => File::default(),
        };
        Self::merge(flags.clone(), file)
    }

    fn merge(flags: Flags, file: File) -> Result<Self> {
        let mut labels = file.labels;
        for label in flags.label {
            let Some((key, value)) = label.split_once('=') else { bail!("--label {label}: write KEY=VALUE") };
            labels.insert(key.to_owned(), value.to_owned());
        }
        let generic_resources = generic_resources(flags.generic_resource.iter().chain(&file.generic_resources))?;
        let lb_driver = file.lb_driver.map(|name| name.parse::<LbDriver>()).transpose().context("lb_driver")?;
        let run_dir = flags.run_dir.or(file.run_dir).unwrap_or_else(|| "/run/skep".into());
        let or_off = |asked: Option<PathBuf>, name: &str| {
            let socket = asked.unwrap_or_else(|| run_dir.join(name));
            (socket != Path::new("off")).then_some(socket)
        };
        let docker_socket = or_off(flags.docker_socket.or(file.docker_socket), "docker.sock");
        let docker_cluster_socket = or_off(flags.docker_cluster_socket.or(file.docker_cluster_socket), "docker-cluster.sock");
        let config = Self {
            data_dir: flags.data_dir.or(file.data_dir).unwrap_or_else(|| "/var/lib/skep".into()),
            docker_socket,
            docker_cluster_socket,
            docker_group: flags.docker_group.or(file.docker_group).filter(|name| !name.is_empty()),
            docker_tls_listen: flags.docker_tls_listen.or(file.docker_tls_listen),
            docker_tls_names: flags.docker_tls_name.into_iter().chain(file.docker_tls_names).collect(),
            docker_tls_view: flags.docker_tls_view.or(file.docker_tls_view).unwrap_or_default(),
            run_dir,
            containerd: flags.containerd.or(file.containerd).unwrap_or_else(|| "/run/containerd/containerd.sock".into()),
            containerd_namespace: flags.containerd_namespace.or(file.containerd_namespace).unwrap_or_else(|| "skep".into()),
            cgroup_parent: flags.cgroup_parent.or(file.cgroup_parent).unwrap_or_else(|| "/skep".into()),
            listen_addr: flags.listen_addr.or(file.listen_addr),
            advertise_addr: flags.advertise_addr.or(file.advertise_addr).filter(|text| !text.is_empty()),
            data_path_addr: flags.data_path_addr.or(file.data_path_addr),
            lb_driver: flags.lb_driver.or(lb_driver).unwrap_or_default(),
            wireguard: flags.wireguard.or(file.wireguard).unwrap_or_default(),
            wireguard_port: flags.wireguard_port.or(file.wireguard_port).unwrap_or(51820),
            tunnel_key_lifetime: flags
                .tunnel_key_lifetime
                .or(file.tunnel_key_lifetime)
                .map_or(DAY, |secs| Duration::from_secs(secs.into())),
            insecure_registries: flags.insecure_registry.into_iter().chain(file.insecure_registries).collect(),
            labels,
            generic_resources,
            log_level: flags.log_level.or(file.log_level).unwrap_or_else(|| "info".into()),
            log_format: flags.log_format.or(file.log_format).unwrap_or_default(),
        };
        config.check()?;
        Ok(config)
    }

    /// Without any file.
    #[cfg(test)]
    pub fn of_flags(flags: Flags) -> Result<Self> {
        Self::merge(flags, File::default())
    }

    fn check(&self) -> Result<()> {
        for (name, dir) in [("data_dir", &self.data_dir), ("run_dir", &self.run_dir), ("containerd", &self.containerd)] {
            ensure!(dir.is_absolute(), "{name}: {} is not an absolute path", dir.display());
        }
        ensure!(self.data_dir != self.run_dir, "data_dir and run_dir are both {}; they must differ", self.data_dir.display());
        // sun_path holds 108 bytes with the terminating zero (unix(7)).
        let socket = self.socket();
        ensure!(
            socket.as_os_str().len() < 108,
            "run_dir: {} is too long for a socket's path; choose a shorter one",
            self.run_dir.display()
        );
        if let Some(socket) = &self.docker_socket {
            let is_good = socket.is_absolute() && socket.as_os_str().len() < 108;
            ensure!(is_good, "docker_socket: {} is not an absolute path of less than 108 bytes, nor off", socket.display());
            ensure!(
                self.docker_group.is_none() || !socket.starts_with(&self.run_dir),
                "docker_group: the group cannot reach {}, for {} is root's alone; put the socket elsewhere, such as --docker-socket /run/docker.sock",
                socket.display(),
                self.run_dir.display()
            );
        }
        if let Some(socket) = &self.docker_cluster_socket {
            let is_good = socket.is_absolute() && socket.as_os_str().len() < 108;
            ensure!(is_good, "docker_cluster_socket: {} is not an absolute path of less than 108 bytes, nor off", socket.display());
            ensure!(
                self.docker_socket.as_ref() != Some(socket),
                "docker_cluster_socket: {} is docker_socket too; they differ in what they answer",
                socket.display()
            );
        }
        if let Some(address) = self.docker_tls_listen {
            ensure!(address.port() != 0, "docker_tls_listen: port 0 would change with every start; choose a port, such as 2376");
            ensure!(
                address.port() != self.listen().port(),
                "docker_tls_listen: port {} is the cluster port; choose another",
                address.port()
            );
        }
        for name in &self.docker_tls_names {
            skep_ca::check_server_name(name).map_err(|error| anyhow!("docker_tls_names: {error}"))?;
        }
        ensure!(self.listen().port() != 0, "listen_addr: port 0 would change with every start; choose a port");
        if let Some(asked) = &self.advertise_addr {
            crate::address::advertised(asked, self.listen())?;
        }
        if let Some(ip) = self.data_path_addr {
            let is_usable = !ip.is_unspecified() && !ip.is_multicast();
            ensure!(is_usable, "data_path_addr: nobody can be reached at {ip}; name an address of this machine");
        }
        let ports = 1..u16::MAX;
        ensure!(ports.contains(&self.wireguard_port), "wireguard_port: {} and the one after it are no ports", self.wireguard_port);
        ensure!(!self.tunnel_key_lifetime.is_zero(), "tunnel_key_lifetime: keys cannot be changed all the time; at least 1");
        let name = &self.containerd_namespace;
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        ensure!(
            !name.is_empty() && name.len() <= 76 && name.chars().all(good),
            "containerd_namespace: {name:?} is not a name containerd takes"
        );
        let parent = &self.cgroup_parent;
        let steps = parent.strip_prefix('/').map(|rest| rest.split('/').all(|step| !matches!(step, "" | "." | "..")));
        ensure!(steps == Some(true) && !parent.contains('\0'), "cgroup_parent: {parent:?} is not an absolute path such as /skep");
        Ok(())
    }

    /// Where the cluster port listens unless a command says otherwise.
    pub fn listen(&self) -> SocketAddr {
        self.listen_addr.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 2377)))
    }

    /// The local socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("skep.sock")
    }
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in the configuration file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file() {
        let file: File = toml::from_str("data_dir = \"/a\"\nrun_dir = \"/b\"\n[labels]\nzone = \"x\"").unwrap();
        let flags = Flags { data_dir: Some("/c".into()), ..Flags::default() };
        let config = Config::merge(flags, file).unwrap();
        assert_eq!((config.data_dir, config.run_dir), ("/c".into(), "/b".into()));
        assert_eq!(config.labels["zone"], "x");
        let file: File = toml::from_str("generic_resources = [\"gpu=UUID-1\", \"gpu=UUID-2\"]").unwrap();
        let config = Config::merge(Flags { generic_resource: vec!["ssd=3".into()], ..Flags::default() }, file).unwrap();
        let gpu = |name: &str| GenericResource::Named { kind: "gpu".into(), value: name.into() };
        let ssd = GenericResource::Discrete { kind: "ssd".into(), value: 3 };
        assert_eq!(config.generic_resources, [ssd, gpu("UUID-1"), gpu("UUID-2")]);
    }

    #[test]
    fn the_docker_api_answers_beside_the_local_socket_unless_it_is_off() {
        let socket =
            |text: Option<&str>| Config::of_flags(Flags { docker_socket: text.map(Into::into), ..Flags::default() }).unwrap().docker_socket;
        assert_eq!(socket(None).unwrap(), Path::new("/run/skep/docker.sock"));
        let both = Config::of_flags(Flags::default()).unwrap();
        assert_eq!(both.docker_cluster_socket.unwrap(), Path::new("/run/skep/docker-cluster.sock"));
        assert_eq!(socket(Some("off")), None);
        let flags = Flags { docker_socket: Some("/run/docker.sock".into()), docker_group: Some("docker".into()), ..Flags::default() };
        assert_eq!(Config::of_flags(flags).unwrap().docker_group.as_deref(), Some("docker"));
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        assert!(toml::from_str::<File>("datadir = \"/a\"").unwrap_err().to_string().contains("datadir"));
    }

    #[test]
    fn values_that_cannot_work_are_refused_with_their_name() {
        for (flags, name) in [
            (Flags { data_dir: Some("relative".into()), ..Flags::default() }, "data_dir"),
            (Flags { run_dir: Some(format!("/{}", "x".repeat(120)).into()), ..Flags::default() }, "run_dir"),
            (Flags { listen_addr: Some(SocketAddr::from(([0, 0, 0, 0], 0))), ..Flags::default() }, "listen_addr"),
            (Flags { advertise_addr: Some("0.0.0.0".into()), ..Flags::default() }, "advertise_addr"),
            (Flags { data_path_addr: Some(IpAddr::from([0, 0, 0, 0])), ..Flags::default() }, "data_path_addr"),
            (Flags { wireguard_port: Some(65535), ..Flags::default() }, "wireguard_port"),
            (Flags { tunnel_key_lifetime: Some(0), ..Flags::default() }, "tunnel_key_lifetime"),
            (Flags { containerd_namespace: Some("a/b".into()), ..Flags::default() }, "containerd_namespace"),
            (Flags { cgroup_parent: Some("/a/../b".into()), ..Flags::default() }, "cgroup_parent"),
            (Flags { cgroup_parent: Some("/".into()), ..Flags::default() }, "cgroup_parent"),
            (Flags { docker_socket: Some("docker.sock".into()), ..Flags::default() }, "docker_socket"),
            (Flags { docker_group: Some("docker".into()), ..Flags::default() }, "docker_group"),
            (Flags { docker_cluster_socket: Some("x.sock".into()), ..Flags::default() }, "docker_cluster_socket"),
            (Flags { docker_cluster_socket: Some("/run/skep/docker.sock".into()), ..Flags::default() }, "docker_cluster_socket"),
            (Flags { docker_tls_listen: Some(SocketAddr::from(([0, 0, 0, 0], 0))), ..Flags::default() }, "docker_tls_listen"),
            (Flags { docker_tls_listen: Some(SocketAddr::from(([0, 0, 0, 0], 2377))), ..Flags::default() }, "docker_tls_listen"),
            (Flags { docker_tls_name: vec!["swarm-manager".into()], ..Flags::default() }, "docker_tls_names"),
            (Flags { docker_tls_name: vec!["box:2376".into()], ..Flags::default() }, "docker_tls_names"),
            (Flags { label: vec!["x".into()], ..Flags::default() }, "--label"),
            (Flags { generic_resource: vec!["gpu".into()], ..Flags::default() }, "--generic-resource gpu"),
            (Flags { generic_resource: vec!["gpu=-1".into()], ..Flags::default() }, "--generic-resource gpu=-1"),
            (Flags { generic_resource: vec!["gpu=2".into(), "gpu=a".into()], ..Flags::default() }, "--generic-resource gpu=a"),
            (Flags { generic_resource: vec!["gpu=a".into(), "gpu=a".into()], ..Flags::default() }, "--generic-resource gpu=a"),
        ] {
            let error = Config::merge(flags, File::default()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
