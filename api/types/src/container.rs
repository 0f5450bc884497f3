//! What a container of a task is made of.

use crate::{ConfigReference, Driver, Labels, SecretReference, Sensitive};
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountType {
    #[default]
    Bind,
    Volume,
    Tmpfs,
    /// Windows only; refused.
    NamedPipe,
    /// A CSI volume of the cluster.
    Cluster,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    #[default]
    RPrivate,
    Private,
    RShared,
    Shared,
    RSlave,
    Slave,
}

/// A hint of Docker Desktop; meaningless on Linux but kept, so that answers read back as they were sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountConsistency {
    #[default]
    Default,
    Consistent,
    Cached,
    Delegated,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BindOptions {
    pub propagation: MountPropagation,
    pub non_recursive: bool,
    pub create_mountpoint: bool,
    pub read_only_non_recursive: bool,
    pub read_only_force_recursive: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeOptions {
    /// Do not fill an empty volume from the image.
    pub no_copy: bool,
    pub labels: Labels,
    pub driver: Option<Driver>,
    pub subpath: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TmpfsOptions {
    /// 0 = no limit of its own.
    pub size_bytes: i64,
    /// Go FileMode bits; 0 = 1777.
    pub mode: u32,
    pub options: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    pub kind: MountType,
    pub source: String,
    pub target: String,
    pub read_only: bool,
    pub consistency: MountConsistency,
    pub bind: Option<BindOptions>,
    pub volume: Option<VolumeOptions>,
    pub tmpfs: Option<TmpfsOptions>,
}

/// `test` is empty (inherit from the image), `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`. A zero length of
/// time or count means the default: interval 30 s, timeout 30 s, retries 3, start period 0 s, start interval 5 s.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthConfig {
    pub test: Vec<String>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub retries: i32,
    pub start_period: Option<Duration>,
    pub start_interval: Option<Duration>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelinuxContext {
    pub disable: bool,
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Default,
    Unconfined,
    /// A profile in Docker's JSON form.
    Custom(Vec<u8>),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    #[default]
    Default,
    Disabled,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CredentialSpec {
    File(String),
    Registry(String),
    Config(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Privileges {
    pub credential_spec: Option<CredentialSpec>,
    pub selinux: Option<SelinuxContext>,
    pub seccomp: Option<Seccomp>,
    pub apparmor: Option<AppArmor>,
    pub no_new_privileges: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    #[default]
    Default,
    Process,
    HyperV,
}

/// A container: image, command, limits of its own, mounts, secrets. All absent parts mean the image's or runtime's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    pub image: String,
    pub labels: Labels,
    /// Replaces the image's entrypoint.
    pub command: Vec<String>,
    /// Arguments of `command`; without `command` they replace the image's command.
    pub args: Vec<String>,
    pub hostname: String,
    /// `NAME=value`, or `NAME` to remove the image's.
    pub env: Vec<String>,
    pub dir: String,
    /// `name|uid[:group|gid]`.
    pub user: String,
    pub groups: Vec<String>,
    pub privileges: Option<Privileges>,
    /// Run an init process as pid 1; `None` = the node's default.
    pub init: Option<bool>,
    pub tty: bool,
    pub open_stdin: bool,
    pub read_only: bool,
    /// Name or number; empty = the image's, else SIGTERM.
    pub stop_signal: String,
    pub mounts: Vec<Mount>,
    /// Between the stop signal and SIGKILL; `None` = 10 s.
    pub stop_grace_period: Option<Duration>,
    /// base64url JSON, as in the header `X-Registry-Auth`; empty = none.
    pub registry_auth: Sensitive<String>,
    pub secrets: Vec<SecretReference>,
    pub configs: Vec<ConfigReference>,
    /// Lines of the hosts file: `IP name [alias…]`.
    pub hosts: Vec<String>,
    pub dns: Option<DnsConfig>,
    pub healthcheck: Option<HealthConfig>,
    pub isolation: Isolation,
    /// 0 = the runtime's default.
    pub pids_limit: i64,
    pub sysctls: Labels,
    pub capability_add: Vec<String>,
    pub capability_drop: Vec<String>,
    pub ulimits: Vec<Ulimit>,
    pub oom_score_adj: i64,
}
