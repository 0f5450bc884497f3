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
        let mut spec = TaskSpec::from(task.spec.as_ref());
        if spec.container_spec.is_some() {
            // dockerd says it of services only.
            spec.runtime = String::new();
        }
        Self {
            id: task.id.to_string(),
            head: (&task.meta).into(),
            name: task.annotations.name.clone(),
            labels: task.annotations.labels.clone(),
            spec,
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use skep_types::{Annotations, ContainerSpec, Network as ClusterNetwork, NetworkId, NetworkSpec, Service, ServiceId, ServiceMode};
    use skep_types::{ServiceSpec, TaskId, TaskState, Timestamp};
    use std::sync::Arc;

    fn task() -> skep_types::Task {
        let spec = ServiceSpec {
            annotations: Annotations { name: "web".into(), ..Annotations::default() },
            task: Arc::new(skep_types::TaskSpec::new(ContainerSpec { image: "nginx".into(), ..ContainerSpec::default() })),
            mode: ServiceMode::Replicated { replicas: 1 },
            update: None,
            rollback: None,
            networks: Vec::new(),
            endpoint: None,
        };
        let service = Service::new(ServiceId::for_test(1), spec);
        skep_types::Task::of_service(TaskId::for_test(2), &service, 3, None, Timestamp(1_700_000_000_000_000_000))
    }

    fn shown(task: &skep_types::Task) -> Value {
        serde_json::to_value(Task::from(task)).unwrap()
    }

    #[test]
    fn what_is_not_there_yet_is_left_out_and_what_clients_look_for_is_there() {
        let mut task = task();
        let zero = "0001-01-01T00:00:00Z";
        let wanted = json!({
            "ID": "0000000000000000000000002", "Version": {}, "CreatedAt": zero, "UpdatedAt": zero, "Labels": {},
            "Spec": {"ContainerSpec": {"Image": "nginx", "Isolation": "default"}, "ForceUpdate": 0},
            "ServiceID": "0000000000000000000000001", "Slot": 3,
            "Status": {"Timestamp": "2023-11-14T22:13:20Z", "State": "new", "Message": "created", "PortStatus": {}},
            "DesiredState": "running", "Volumes": null
        });
        assert_eq!(shown(&task), wanted);
        task.slot = 0;
        assert!(shown(&task).get("Slot").is_none(), "of a global service");
    }

    #[test]
    fn a_running_task_tells_its_container_ports_and_networks() {
        let mut task = task();
        task.status.state = TaskState::Running;
        task.status.container = Some(skep_types::ContainerStatus { container_id: "c".into(), pid: 7, exit_code: 0 });
        let port = skep_types::PortConfig {
            target_port: 80,
            published_port: 8080,
            publish_mode: skep_types::PublishMode::Host,
            ..Default::default()
        };
        task.status.ports = vec![port];
        let annotations = Annotations { name: "back".into(), ..Annotations::default() };
        let mut network =
            ClusterNetwork::new(NetworkId::for_test(4), NetworkSpec { annotations, attachable: true, ..NetworkSpec::default() });
        let subnet = skep_types::IpamConfig { subnet: "10.0.1.0/24".into(), gateway: "10.0.1.1".into(), ..Default::default() };
        network.ipam = Some(skep_types::IpamOptions { driver: Default::default(), configs: vec![subnet] });
        task.networks = vec![skep_types::NetworkAttachment {
            network: Arc::new(network),
            addresses: vec!["10.0.1.3/24".into()],
            aliases: vec!["web".into()],
            driver_attachment_opts: Default::default(),
        }];
        let shown = shown(&task);
        assert_eq!(shown["Status"]["ContainerStatus"], json!({"ContainerID": "c", "PID": 7, "ExitCode": 0}));
        let port = json!({"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"});
        assert_eq!(shown["Status"]["PortStatus"], json!({"Ports": [port]}));
        let attachment = &shown["NetworksAttachments"][0];
        assert_eq!(attachment["Addresses"], json!(["10.0.1.3/24"]));
        assert_eq!(attachment["Network"]["Spec"], json!({"Name": "back", "Labels": {}, "Attachable": true, "Scope": "swarm"}));
        let ipam = json!({"Driver": {}, "Configs": [{"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1"}]});
        assert_eq!((&attachment["Network"]["IPAMOptions"], &attachment["Network"]["DriverState"]), (&ipam, &json!({})));
    }
}
