//! What a service's containers are made of.

use super::mount::Mount;
use super::privileges::Privileges;
use super::reference::{ConfigReference, SecretReference};
use super::value::{given_length, is_default, list, maybe, maybe_length, nanos, words};
use serde::{Deserialize, Serialize};
use skep_types::{FieldError, HealthConfig, Labels, Sensitive};

words!(isolation: skep_types::Isolation { "default" = Default, "process" = Process, "hyperv" = HyperV });

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub image: String,
    #[serde(skip_serializing_if = "is_default")]
    pub labels: Labels,
    /// Instead of the image's entrypoint.
    #[serde(skip_serializing_if = "is_default")]
    pub command: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub hostname: String,
    #[serde(skip_serializing_if = "is_default")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub dir: String,
    #[serde(skip_serializing_if = "is_default")]
    pub user: String,
    #[serde(skip_serializing_if = "is_default")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub privileges: Option<Privileges>,
    #[serde(skip_serializing_if = "is_default")]
    pub init: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub stop_signal: String,
    #[serde(rename = "TTY", skip_serializing_if = "is_default")]
    pub tty: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub open_stdin: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub mounts: Vec<Mount>,
    /// Nanoseconds; 0 = at once.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_grace_period: Option<i64>,
    #[serde(skip_serializing_if = "is_default")]
    pub healthcheck: Option<Healthcheck>,
    /// `IP name [alias…]`.
    #[serde(skip_serializing_if = "is_default")]
    pub hosts: Vec<String>,
    #[serde(rename = "DNSConfig", skip_serializing_if = "is_default")]
    pub dns_config: Option<DnsConfig>,
    #[serde(skip_serializing_if = "is_default")]
    pub secrets: Vec<SecretReference>,
    #[serde(skip_serializing_if = "is_default")]
    pub configs: Vec<ConfigReference>,
    #[serde(skip_serializing_if = "is_default")]
    pub isolation: String,
    #[serde(skip_serializing_if = "is_default")]
    pub sysctls: Labels,
    #[serde(skip_serializing_if = "is_default")]
    pub capability_add: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub capability_drop: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub ulimits: Vec<Ulimit>,
    #[serde(skip_serializing_if = "is_default")]
    pub oom_score_adj: i64,
}

/// Lengths of time in nanoseconds; 0 = the image's or the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    #[serde(skip_serializing_if = "is_default")]
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub retries: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsConfig {
    #[serde(skip_serializing_if = "is_default")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    pub name: String,
    pub hard: i64,
    pub soft: i64,
}

/// What the kernel and the hosts file can have, before placeholders are filled in.
///
/// # Errors
/// For line ends and other characters that nobody can see.
pub(crate) fn host_name(text: String) -> Result<String, FieldError> {
    match text.chars().find(|character| character.is_control()) {
        None => Ok(text),
        Some(character) => Err(FieldError::new("Hostname", format!("{text:?} has the character {character:?}; give a name without it"))),
    }
}

impl TryFrom<ContainerSpec> for skep_types::ContainerSpec {
    type Error = FieldError;

    /// Neither the credentials (a header) nor the limit of processes (of the resources) are here.
    fn try_from(json: ContainerSpec) -> Result<Self, FieldError> {
        Ok(Self {
            image: json.image,
            labels: json.labels,
            command: json.command,
            args: json.args,
            hostname: host_name(json.hostname)?,
            env: json.env,
            dir: json.dir,
            user: json.user,
            groups: json.groups,
            privileges: maybe("Privileges", json.privileges)?,
            init: json.init,
            tty: json.tty,
            open_stdin: json.open_stdin,
            read_only: json.read_only,
            stop_signal: json.stop_signal,
            mounts: list("Mounts", json.mounts)?,
            stop_grace_period: maybe_length("StopGracePeriod", json.stop_grace_period)?,
            registry_auth: Sensitive::default(),
            secrets: list("Secrets", json.secrets)?,
            configs: list("Configs", json.configs)?,
            hosts: json.hosts,
            dns: json.dns_config.map(Into::into),
            healthcheck: maybe("Healthcheck", json.healthcheck)?,
            isolation: isolation::from("Isolation", &json.isolation)?,
            pids_limit: 0,
            sysctls: json.sysctls,
            capability_add: json.capability_add,
            capability_drop: json.capability_drop,
            ulimits: json.ulimits.into_iter().map(Into::into).collect(),
            oom_score_adj: json.oom_score_adj,
        })
    }
}

impl From<&skep_types::ContainerSpec> for ContainerSpec {
    fn from(wish: &skep_types::ContainerSpec) -> Self {
        // Credentials are never shown; the limit of processes is shown with the resources.
        let skep_types::ContainerSpec { registry_auth: _, pids_limit: _, .. } = wish;
        Self {
            image: wish.image.clone(),
            labels: wish.labels.clone(),
            command: wish.command.clone(),
            args: wish.args.clone(),
            hostname: wish.hostname.clone(),
            env: wish.env.clone(),
            dir: wish.dir.clone(),
            user: wish.user.clone(),
            groups: wish.groups.clone(),
            privileges: wish.privileges.as_ref().map(Into::into),
            init: wish.init,
            stop_signal: wish.stop_signal.clone(),
            tty: wish.tty,
            open_stdin: wish.open_stdin,
            read_only: wish.read_only,
            mounts: wish.mounts.iter().map(Into::into).collect(),
            stop_grace_period: wish.stop_grace_period.map(nanos),
            healthcheck: wish.healthcheck.as_ref().map(Into::into),
            hosts: wish.hosts.clone(),
            dns_config: wish.dns.as_ref().map(Into::into),
            secrets: wish.secrets.iter().map(Into::into).collect(),
            configs: wish.configs.iter().map(Into::into).collect(),
            isolation: isolation::to(wish.isolation).to_owned(),
            sysctls: wish.sysctls.clone(),
            capability_add: wish.capability_add.clone(),
            capability_drop: wish.capability_drop.clone(),
            ulimits: wish.ulimits.iter().map(Into::into).collect(),
            oom_score_adj: wish.oom_score_adj,
        }
    }
}

impl TryFrom<Healthcheck> for HealthConfig {
    type Error = FieldError;

    fn try_from(json: Healthcheck) -> Result<Self, FieldError> {
        let Healthcheck { test, interval, timeout, start_period, start_interval, retries } = json;
        Ok(Self {
            test,
            interval: given_length("Interval", interval)?,
            timeout: given_length("Timeout", timeout)?,
            retries,
            start_period: given_length("StartPeriod", start_period)?,
            start_interval: given_length("StartInterval", start_interval)?,
        })
    }
}

impl From<&HealthConfig> for Healthcheck {
    fn from(wish: &HealthConfig) -> Self {
        let HealthConfig { test, interval, timeout, retries, start_period, start_interval } = wish;
        let nanos = |length: &Option<_>| length.map_or(0, nanos);
        Self {
            test: test.clone(),
            interval: nanos(interval),
            timeout: nanos(timeout),
            start_period: nanos(start_period),
            start_interval: nanos(start_interval),
            retries: *retries,
        }
    }
}

impl From<DnsConfig> for skep_types::DnsConfig {
    fn from(json: DnsConfig) -> Self {
        let DnsConfig { nameservers, search, options } = json;
        Self { nameservers, search, options }
    }
}

impl From<&skep_types::DnsConfig> for DnsConfig {
    fn from(wish: &skep_types::DnsConfig) -> Self {
        let skep_types::DnsConfig { nameservers, search, options } = wish.clone();
        Self { nameservers, search, options }
    }
}

impl From<Ulimit> for skep_types::Ulimit {
    fn from(json: Ulimit) -> Self {
        let Ulimit { name, hard, soft } = json;
        Self { name, soft, hard }
    }
}

impl From<&skep_types::Ulimit> for Ulimit {
    fn from(wish: &skep_types::Ulimit) -> Self {
        let skep_types::Ulimit { name, soft, hard } = wish.clone();
        Self { name, hard, soft }
    }
}
