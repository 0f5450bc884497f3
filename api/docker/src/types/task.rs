//! A task as the cluster has it.

use super::common::{Head, ObjectVersion, Time};
use super::driver::Driver;
use super::resources::GenericResource;
use super::service_spec::PortConfig;
use super::task_spec::TaskSpec;
use super::value::is_default;
use serde::Serialize;
use skep_types::Labels;

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub(crate) head: Head,
    /// Of tasks without a service; clients put the others' together from service, slot and id.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    pub labels: Labels,
    pub spec: TaskSpec,
    #[serde(rename = "ServiceID", skip_serializing_if = "is_default")]
    pub service_id: String,
    /// Absent for tasks of global services.
    #[serde(skip_serializing_if = "is_default")]
    pub slot: u64,
    #[serde(rename = "NodeID", skip_serializing_if = "is_default")]
    pub node_id: String,
    pub status: TaskStatus,
    #[serde(skip_serializing_if = "is_default")]
    pub desired_state: String,
    #[serde(skip_serializing_if = "is_default")]
    pub networks_attachments: Vec<NetworkAttachment>,
    #[serde(skip_serializing_if = "is_default")]
    pub generic_resources: Vec<GenericResource>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) job_iteration: Option<ObjectVersion>,
    /// Volumes of the cluster: `null`, since there are none.
    pub volumes: Option<()>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskStatus {
    pub(crate) timestamp: Time,
    #[serde(skip_serializing_if = "is_default")]
    pub state: String,
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
    #[serde(skip_serializing_if = "is_default")]
    pub err: String,
    #[serde(skip_serializing_if = "is_default")]
    pub container_status: Option<ContainerStatus>,
    pub port_status: PortStatus,
}

/// Characters of a task's id.
const TASK_ID: usize = 25;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerStatus {
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    #[serde(rename = "PID")]
    pub pid: i32,
    pub exit_code: i32,
}

/// Ports in host mode as they really are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortStatus {
    #[serde(skip_serializing_if = "is_default")]
    pub ports: Vec<PortConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkAttachment {
    pub network: AttachedNetwork,
    /// CIDR texts.
    #[serde(skip_serializing_if = "is_default")]
    pub addresses: Vec<String>,
}

/// The network as it was when the task got its addresses: the second form in which this API has networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttachedNetwork {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub(crate) head: Head,
    pub spec: AttachedNetworkSpec,
    pub driver_state: Driver,
    #[serde(rename = "IPAMOptions", skip_serializing_if = "is_default")]
    pub ipam_options: Option<IpamOptions>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttachedNetworkSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    pub labels: Labels,
    #[serde(skip_serializing_if = "is_default")]
    pub driver_configuration: Option<Driver>,
    #[serde(rename = "IPv6Enabled", skip_serializing_if = "is_default")]
    pub ipv6_enabled: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub internal: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub attachable: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub ingress: bool,
    #[serde(rename = "IPAMOptions", skip_serializing_if = "is_default")]
    pub ipam_options: Option<IpamOptions>,
    pub scope: &'static str,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamOptions {
    pub driver: Driver,
    #[serde(skip_serializing_if = "is_default")]
    pub configs: Vec<IpamConfig>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamConfig {
    #[serde(skip_serializing_if = "is_default")]
    pub subnet: String,
    #[serde(skip_serializing_if = "is_default")]
    pub range: String,
    #[serde(skip_serializing_if = "is_default")]
    pub gateway: String,
}

impl From<&skep_types::Task> for Task {
    fn from(task: &skep_types::Task) -> Self {
        Self {
            id: task.id.to_string(),
            head: (&task.meta).into(),
            name: task.annotations.name.clone(),
            labels: task.annotations.labels.clone(),
            spec: task.spec.as_ref().into(),
            service_id: task.service_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            slot: task.slot,
            node_id: task.node_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            status: (&task.status).into(),
            desired_state: task.desired_state.to_string(),
            networks_attachments: task.networks.iter().map(Into::into).collect(),
            generic_resources: task.assigned_generic_resources.iter().map(Into::into).collect(),
            job_iteration: task.job_iteration.map(Into::into),
            volumes: None,
        }
    }
}

/// As this API calls it. Nodes of the original have ids of their own for containers, which are longer.
fn shown(id: String) -> String {
    match id.parse() {
        Ok(task) if id.len() == TASK_ID => crate::container_id(&task),
        _ => id,
    }
}

impl From<&skep_types::TaskStatus> for TaskStatus {
    fn from(status: &skep_types::TaskStatus) -> Self {
        let container = |status: &skep_types::ContainerStatus| {
            let skep_types::ContainerStatus { container_id, pid, exit_code } = status.clone();
            ContainerStatus { container_id: shown(container_id), pid, exit_code }
        };
        Self {
            timestamp: status.timestamp.into(),
            state: status.state.to_string(),
            message: status.message.clone(),
            err: status.err.clone(),
            container_status: status.container.as_ref().map(container),
            port_status: PortStatus { ports: status.ports.iter().map(Into::into).collect() },
        }
    }
}

impl From<&skep_types::NetworkAttachment> for NetworkAttachment {
    fn from(attachment: &skep_types::NetworkAttachment) -> Self {
        Self { network: attachment.network.as_ref().into(), addresses: attachment.addresses.clone() }
    }
}

impl From<&skep_types::Network> for AttachedNetwork {
    fn from(network: &skep_types::Network) -> Self {
        Self {
            id: network.id.to_string(),
            head: (&network.meta).into(),
            spec: (&network.spec).into(),
            driver_state: network.driver_state.as_ref().map(Into::into).unwrap_or_default(),
            ipam_options: network.ipam.as_ref().map(Into::into),
        }
    }
}

impl From<&skep_types::NetworkSpec> for AttachedNetworkSpec {
    fn from(spec: &skep_types::NetworkSpec) -> Self {
        Self {
            name: spec.annotations.name.clone(),
            labels: spec.annotations.labels.clone(),
            driver_configuration: spec.driver.as_ref().map(Into::into),
            ipv6_enabled: spec.ipv6_enabled,
            internal: spec.internal,
            attachable: spec.attachable,
            ingress: spec.ingress,
            ipam_options: spec.ipam.as_ref().map(Into::into),
            scope: "swarm",
        }
    }
}

impl From<&skep_types::IpamOptions> for IpamOptions {
    fn from(options: &skep_types::IpamOptions) -> Self {
        let config = |config: &skep_types::IpamConfig| IpamConfig {
            subnet: config.subnet.clone(),
            range: config.range.clone(),
            gateway: config.gateway.clone(),
        };
        Self { driver: (&options.driver).into(), configs: options.configs.iter().map(config).collect() }
    }
}
