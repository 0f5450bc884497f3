//! Services: what to run, how many times, where, and how to change it.

use crate::{
    Annotations, ContainerSpec, Driver, FieldError, Meta, NetworkAttachmentConfig, NetworkId, Platform, ResourceRequirements, ServiceId,
    Timestamp, Version,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How many tasks a service has and whether they end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceMode {
    Replicated { replicas: u64 },
    Global,
    ReplicatedJob { max_concurrent: u64, total_completions: u64 },
    GlobalJob,
}

impl ServiceMode {
    #[must_use]
    pub fn is_job(&self) -> bool {
        matches!(self, Self::ReplicatedJob { .. } | Self::GlobalJob)
    }
}

/// When a task that ended is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    /// The wire's zero: a policy that is present but says nothing never restarts.
    #[default]
    Never,
    OnFailure,
    Any,
}

/// How often and how soon. An absent policy means `Any` after 5 s without a limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    /// `None` = 5 s.
    pub delay: Option<Duration>,
    /// 0 = no limit.
    pub max_attempts: u64,
    /// Attempts are counted within this time; `None` or zero = since the spec changed.
    pub window: Option<Duration>,
}

/// Where tasks may and should go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// `key == value` or `key != value`; all must hold.
    pub constraints: Vec<String>,
    /// Descriptors to spread over, such as `node.labels.rack`.
    pub spread: Vec<String>,
    pub platforms: Vec<Platform>,
    /// Per node; 0 = no limit.
    pub max_replicas: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    #[default]
    Pause,
    Continue,
    Rollback,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOrder {
    #[default]
    StopFirst,
    StartFirst,
}

/// How a change is rolled out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateConfig {
    /// Slots at a time; 0 = all at once.
    pub parallelism: u64,
    pub delay: Duration,
    pub failure_action: FailureAction,
    /// `None` = 5 s.
    pub monitor: Option<Duration>,
    /// 0..=1.
    pub max_failure_ratio: f32,
    pub order: UpdateOrder,
}

impl Eq for UpdateConfig {}

impl Default for UpdateConfig {
    /// What an absent config means (wire-behaviour 12).
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: Some(Duration::from_secs(5)),
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// How clients find a service: one address for all tasks, or the addresses of all tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResolutionMode {
    #[default]
    Vip,
    DnsRoundRobin,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As users write it: `tcp`, `udp`, `sctp`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// `Ingress`: every node answers; `Host`: only the node that runs the task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PublishMode {
    #[default]
    Ingress,
    Host,
}

/// Where on a node a published port answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PublishPlace {
    /// On all addresses.
    #[default]
    Everywhere,
    /// Connections to that address of the node; nodes without it do not answer.
    Address(IpAddr),
    /// Connections that come in by that link of the node, to whichever of its addresses.
    Interface(String),
}

impl PublishPlace {
    /// Whether one connection could be meant for both. A link may have any address, so those two always meet.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(one), Self::Address(other)) => one == other,
            (Self::Interface(one), Self::Interface(other)) => one == other,
            _ => true,
        }
    }

    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        if let Self::Address(address) = self { Some(*address) } else { None }
    }

    #[must_use]
    pub fn interface(&self) -> Option<&str> {
        if let Self::Interface(link) = self { Some(link) } else { None }
    }
}

impl fmt::Display for PublishPlace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everywhere => out.write_str("all addresses"),
            Self::Address(address) => write!(out, "address {address}"),
            Self::Interface(link) => write!(out, "interface {link}"),
        }
    }
}

/// What connections of one client have in common.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Affinity {
    /// Nothing: each may come to another task.
    #[default]
    None,
    /// The task, as long as it lives and no new one takes its share of the clients over.
    Source,
}

/// A port of the tasks that is reachable from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortConfig {
    pub name: String,
    pub protocol: Protocol,
    /// 1..=65535.
    pub target_port: u32,
    /// 0 = chosen for you (ingress: 30000..=32767 by the manager; host: by the node).
    pub published_port: u32,
    pub publish_mode: PublishMode,
    pub place: PublishPlace,
    pub affinity: Affinity,
    /// Clients within these only; empty = all.
    pub allow: Vec<IpNet>,
}

impl PortConfig {
    /// Whether both want the same number and a connection could be meant for either.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.published_port == other.published_port && self.protocol == other.protocol && self.place.meets(&other.place)
    }
}

/// Clients that may come, as people write them: a network, or one address.
///
/// # Errors
/// What is neither, and a network with bits beyond its prefix, which is a slip more often than not.
pub fn client_range(text: &str) -> Result<IpNet, FieldError> {
    let wrong = || FieldError::new("", format!("{text:?} is neither a network, such as 192.0.2.0/24 or 2001:db8::/32, nor an address"));
    let range = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| wrong())?,
    };
    if range == range.trunc() {
        Ok(range)
    } else {
        Err(FieldError::new("", format!("{text:?} has bits beyond its prefix; write {} or {}", range.trunc(), range.addr())))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSpec {
    pub mode: ResolutionMode,
    pub ports: Vec<PortConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    pub network_id: NetworkId,
    /// CIDR text.
    pub addr: String,
}

/// What the allocator gave a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// The spec this was allocated for.
    pub spec: EndpointSpec,
    /// With every ingress port filled in.
    pub ports: Vec<PortConfig>,
    pub virtual_ips: Vec<VirtualIp>,
}

/// What a task runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Runtime {
    Container(Box<ContainerSpec>),
    /// A container that somebody else started, attached to a network.
    Attachment {
        container_id: String,
    },
    /// A kind unknown to us, carried along: kind, payload type URL, payload.
    Generic {
        kind: String,
        type_url: String,
        payload: Vec<u8>,
    },
}

impl From<ContainerSpec> for Runtime {
    fn from(container: ContainerSpec) -> Self {
        Self::Container(Box::new(container))
    }
}

/// What a task may read besides secrets and configs of its container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceReference {
    pub resource_id: String,
    pub kind: ResourceKind,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResourceKind {
    #[default]
    Task,
    Secret,
    Config,
    Volume,
}

/// The part of a service that its tasks share. `Arc`ed in tasks: a thousand replicas hold one copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub runtime: Runtime,
    #[serde(default)]
    pub resources: Option<ResourceRequirements>,
    /// `None` = `Any` after 5 s; see [`RestartPolicy`].
    #[serde(default)]
    pub restart: Option<RestartPolicy>,
    #[serde(default)]
    pub placement: Option<Placement>,
    #[serde(default)]
    pub log_driver: Option<Driver>,
    #[serde(default)]
    pub networks: Vec<NetworkAttachmentConfig>,
    /// A new number makes every task dirty.
    #[serde(default)]
    pub force_update: u64,
    #[serde(default)]
    pub resource_references: Vec<ResourceReference>,
}

impl TaskSpec {
    /// Runs `runtime` with nothing asked for besides.
    #[must_use]
    pub fn new(runtime: impl Into<Runtime>) -> Self {
        Self {
            runtime: runtime.into(),
            resources: None,
            restart: None,
            placement: None,
            log_driver: None,
            networks: Vec::new(),
            force_update: 0,
            resource_references: Vec::new(),
        }
    }

    #[must_use]
    pub fn container(&self) -> Option<&ContainerSpec> {
        match &self.runtime {
            Runtime::Container(container) => Some(container),
            Runtime::Attachment { .. } | Runtime::Generic { .. } => None,
        }
    }
}

/// What a user wants of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    #[serde(default)]
    pub annotations: Annotations,
    pub task: Arc<TaskSpec>,
    pub mode: ServiceMode,
    /// `None` = [`UpdateConfig::default`]; must be `None` for jobs.
    #[serde(default)]
    pub update: Option<UpdateConfig>,
    #[serde(default)]
    pub rollback: Option<UpdateConfig>,
    /// Deprecated form of `task.networks`.
    #[serde(default)]
    pub networks: Vec<NetworkAttachmentConfig>,
    #[serde(default)]
    pub endpoint: Option<EndpointSpec>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    #[default]
    Unknown,
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

/// As Docker's API has it.
impl fmt::Display for UpdateState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Unknown => "",
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
        })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub message: String,
    /// Revision of the commit with which it began, set by the store: tasks made before are not its work, whatever clocks of leaders
    /// said. Never on the wire.
    #[serde(skip_serializing_if = "Version::is_zero")]
    pub began: Version,
}

/// Which run of a job this is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobStatus {
    pub iteration: Version,
    pub last_execution: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    #[serde(default)]
    pub meta: Meta,
    pub spec: ServiceSpec,
    /// The version a client sent with the update that set `spec`; compared only with itself and [`Task::spec_version`](crate::Task).
    #[serde(default)]
    pub spec_version: Option<Version>,
    #[serde(default)]
    pub previous_spec: Option<ServiceSpec>,
    #[serde(default)]
    pub previous_spec_version: Option<Version>,
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    #[serde(default)]
    pub update_status: Option<UpdateStatus>,
    #[serde(default)]
    pub job_status: Option<JobStatus>,
    #[serde(default)]
    pub pending_delete: bool,
}

impl Service {
    /// One that nobody has looked at yet.
    #[must_use]
    pub fn new(id: ServiceId, spec: ServiceSpec) -> Self {
        Self {
            id,
            meta: Meta::default(),
            spec,
            spec_version: None,
            previous_spec: None,
            previous_spec_version: None,
            endpoint: None,
            update_status: None,
            job_status: None,
            pending_delete: false,
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.annotations.name
    }

    /// The networks of the tasks: those of the task spec, else the deprecated ones of the service.
    #[must_use]
    pub fn networks(&self) -> &[NetworkAttachmentConfig] {
        if self.spec.task.networks.is_empty() { &self.spec.networks } else { &self.spec.task.networks }
    }

    /// Whether any port is answered by every node, which puts the service on the ingress network.
    #[must_use]
    pub fn publishes_on_ingress(&self) -> bool {
        self.spec.endpoint.as_ref().is_some_and(|endpoint| endpoint.ports.iter().any(|port| port.publish_mode == PublishMode::Ingress))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_meet_unless_they_are_two_addresses_or_two_links() {
        let address = |last| PublishPlace::Address(IpAddr::from([192, 0, 2, last]));
        let link = |name: &str| PublishPlace::Interface(name.into());
        for apart in [(address(1), address(2)), (link("eth0"), link("eth1"))] {
            assert!(!apart.0.meets(&apart.1) && !apart.1.meets(&apart.0), "{apart:?}");
        }
        for meet in
            [(address(1), address(1)), (link("eth0"), link("eth0")), (address(1), link("eth0")), (PublishPlace::Everywhere, address(1))]
        {
            assert!(meet.0.meets(&meet.1) && meet.1.meets(&meet.0), "{meet:?}");
        }
    }

    #[test]
    fn clients_are_networks_or_addresses() {
        let range = |text: &str| client_range(text).map(|range| range.to_string());
        assert_eq!(range("192.0.2.0/24").unwrap(), "192.0.2.0/24");
        assert_eq!(range("2001:db8::1").unwrap(), "2001:db8::1/128");
        assert_eq!(range("0.0.0.0/0").unwrap(), "0.0.0.0/0");
        assert!(range("10.0.0.1/8").unwrap_err().problem.contains("write 10.0.0.0/8 or 10.0.0.1"));
        for wrong in ["", "here", "10.0.0.0/33", "10.0.0/8"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }
}
