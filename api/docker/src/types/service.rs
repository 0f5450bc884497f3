//! A service as the cluster has it.

use super::common::{Head, ObjectVersion, Time};
use super::service_spec::{EndpointSpec, PortConfig, ServiceSpec};
use super::value::is_default;
use crate::TaskCounts;
use serde::Serialize;

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Service {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub(crate) head: Head,
    pub spec: ServiceSpec,
    #[serde(skip_serializing_if = "is_default")]
    pub previous_spec: Option<ServiceSpec>,
    pub endpoint: Endpoint,
    #[serde(skip_serializing_if = "is_default")]
    pub update_status: Option<UpdateStatus>,
    /// In lists that ask for it.
    #[serde(skip_serializing_if = "is_default")]
    pub service_status: Option<ServiceStatus>,
    #[serde(skip_serializing_if = "is_default")]
    pub job_status: Option<JobStatus>,
}

/// What the cluster gave the service; `{"Spec":{}}` for one that needs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Endpoint {
    pub spec: EndpointSpec,
    #[serde(skip_serializing_if = "is_default")]
    pub ports: Vec<PortConfig>,
    #[serde(rename = "VirtualIPs", skip_serializing_if = "is_default")]
    pub virtual_ips: Vec<VirtualIp>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VirtualIp {
    #[serde(rename = "NetworkID", skip_serializing_if = "is_default")]
    pub network_id: String,
    /// CIDR text.
    #[serde(skip_serializing_if = "is_default")]
    pub addr: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct UpdateStatus {
    #[serde(skip_serializing_if = "is_default")]
    pub state: String,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) started_at: Option<Time>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) completed_at: Option<Time>,
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceStatus {
    pub running_tasks: u64,
    pub desired_tasks: u64,
    pub completed_tasks: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct JobStatus {
    pub(crate) job_iteration: ObjectVersion,
    pub(crate) last_execution: Time,
}

/// The answer to a created service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateResponse {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(skip_serializing_if = "is_default")]
    pub warnings: Vec<String>,
}

/// The answer to an updated one; `null` where there are no warnings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct UpdateResponse {
    pub warnings: Option<Vec<String>>,
}

impl From<&skep_types::Service> for Service {
    fn from(service: &skep_types::Service) -> Self {
        let skep_types::Service {
            id,
            meta,
            spec,
            spec_version: _,
            previous_spec,
            previous_spec_version: _,
            endpoint,
            update_status,
            job_status,
            pending_delete: _,
        } = service;
        Self {
            id: id.to_string(),
            head: meta.into(),
            spec: spec.into(),
            previous_spec: previous_spec.as_ref().map(Into::into),
            endpoint: endpoint.as_ref().map(Into::into).unwrap_or_default(),
            update_status: update_status.as_ref().map(Into::into),
            service_status: None,
            job_status: job_status.as_ref().map(Into::into),
        }
    }
}

impl From<&skep_types::Endpoint> for Endpoint {
    fn from(endpoint: &skep_types::Endpoint) -> Self {
        let skep_types::Endpoint { spec, ports, virtual_ips } = endpoint;
        Self {
            spec: spec.into(),
            ports: ports.iter().map(Into::into).collect(),
            virtual_ips: virtual_ips.iter().map(|ip| VirtualIp { network_id: ip.network_id.to_string(), addr: ip.addr.clone() }).collect(),
        }
    }
}

impl From<&skep_types::UpdateStatus> for UpdateStatus {
    fn from(status: &skep_types::UpdateStatus) -> Self {
        let skep_types::UpdateStatus { state, started_at, completed_at, message, .. } = status;
        Self {
            state: state.to_string(),
            started_at: started_at.map(Into::into),
            completed_at: completed_at.map(Into::into),
            message: message.clone(),
        }
    }
}

impl From<&skep_types::JobStatus> for JobStatus {
    fn from(status: &skep_types::JobStatus) -> Self {
        let skep_types::JobStatus { iteration, last_execution } = status;
        Self { job_iteration: (*iteration).into(), last_execution: last_execution.map(Into::into).unwrap_or_default() }
    }
}

impl From<&TaskCounts> for ServiceStatus {
    fn from(counts: &TaskCounts) -> Self {
        let TaskCounts { service_id: _, desired, running, completed } = counts;
        Self { running_tasks: *running, desired_tasks: *desired, completed_tasks: *completed }
    }
}
