//! What a user wants of a service.

use super::task_spec::{NetworkAttachmentConfig, TaskSpec};
use super::value::{given_length, is_default, length, nanos, ratio, words};
use serde::{Deserialize, Serialize};
use skep_types::{
    Annotations, EndpointSpec as EndpointWish, FieldError, Labels, PortConfig as PortWish, ServiceMode as Mode, UpdateConfig as UpdateWish,
};
use std::sync::Arc;

words!(failure_action: skep_types::FailureAction { "pause" = Pause, "continue" = Continue, "rollback" = Rollback });
words!(order: skep_types::UpdateOrder { "stop-first" = StopFirst, "start-first" = StartFirst });
words!(resolution: skep_types::ResolutionMode { "vip" = Vip, "dnsrr" = DnsRoundRobin });
words!(protocol: skep_types::Protocol { "tcp" = Tcp, "udp" = Udp, "sctp" = Sctp });
words!(publish_mode: skep_types::PublishMode { "ingress" = Ingress, "host" = Host });

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    pub labels: Labels,
    pub task_template: TaskSpec,
    pub mode: ServiceMode,
    #[serde(skip_serializing_if = "is_default")]
    pub update_config: Option<UpdateConfig>,
    #[serde(skip_serializing_if = "is_default")]
    pub rollback_config: Option<UpdateConfig>,
    /// The old form of `TaskTemplate.Networks`.
    #[serde(skip_serializing_if = "is_default")]
    pub networks: Vec<NetworkAttachmentConfig>,
    #[serde(skip_serializing_if = "is_default")]
    pub endpoint_spec: Option<EndpointSpec>,
}

/// One at most; none means one replica.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceMode {
    #[serde(skip_serializing_if = "is_default")]
    pub replicated: Option<ReplicatedService>,
    #[serde(skip_serializing_if = "is_default")]
    pub global: Option<GlobalService>,
    #[serde(skip_serializing_if = "is_default")]
    pub replicated_job: Option<ReplicatedJob>,
    #[serde(skip_serializing_if = "is_default")]
    pub global_job: Option<GlobalJob>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ReplicatedService {
    #[serde(skip_serializing_if = "is_default")]
    pub replicas: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalService {}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ReplicatedJob {
    #[serde(skip_serializing_if = "is_default")]
    pub max_concurrent: Option<u64>,
    #[serde(skip_serializing_if = "is_default")]
    pub total_completions: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalJob {}

/// Lengths of time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateConfig {
    /// 0 = all at once.
    pub parallelism: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub delay: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub failure_action: String,
    /// 0 = 5 s.
    #[serde(skip_serializing_if = "is_default")]
    pub monitor: i64,
    #[serde(serialize_with = "ratio::serialize")]
    pub max_failure_ratio: f32,
    pub order: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub mode: String,
    #[serde(skip_serializing_if = "is_default")]
    pub ports: Vec<PortConfig>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortConfig {
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: String,
    #[serde(skip_serializing_if = "is_default")]
    pub target_port: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub published_port: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub publish_mode: String,
}

impl TryFrom<ServiceSpec> for skep_types::ServiceSpec {
    type Error = FieldError;

    fn try_from(json: ServiceSpec) -> Result<Self, FieldError> {
        let ServiceSpec { name, labels, task_template, mode, update_config, rollback_config, networks, endpoint_spec } = json;
        let update =
            |field: &str, config: Option<UpdateConfig>| config.map(UpdateWish::try_from).transpose().map_err(|error| error.inside(field));
        Ok(Self {
            annotations: Annotations { name, labels, indices: Vec::new() },
            task: Arc::new(task_template.try_into().map_err(|error: FieldError| error.inside("TaskTemplate"))?),
            mode: mode.try_into()?,
            update: update("UpdateConfig", update_config)?,
            rollback: update("RollbackConfig", rollback_config)?,
            networks: networks.into_iter().map(Into::into).collect(),
            endpoint: endpoint_spec.map(EndpointWish::try_from).transpose().map_err(|error| error.inside("EndpointSpec"))?,
        })
    }
}

impl From<&skep_types::ServiceSpec> for ServiceSpec {
    fn from(wish: &skep_types::ServiceSpec) -> Self {
        let skep_types::ServiceSpec { annotations, task, mode, update, rollback, networks, endpoint } = wish;
        Self {
            name: annotations.name.clone(),
            labels: annotations.labels.clone(),
            task_template: task.as_ref().into(),
            mode: mode.into(),
            update_config: update.as_ref().map(Into::into),
            rollback_config: rollback.as_ref().map(Into::into),
            networks: networks.iter().map(Into::into).collect(),
            endpoint_spec: endpoint.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<ServiceMode> for Mode {
    type Error = FieldError;

    fn try_from(json: ServiceMode) -> Result<Self, FieldError> {
        let ServiceMode { replicated, global, replicated_job, global_job } = json;
        match (replicated, global, replicated_job, global_job) {
            (None, None, None, None) => Ok(Self::Replicated { replicas: 1 }),
            (Some(ReplicatedService { replicas }), None, None, None) => Ok(Self::Replicated { replicas: replicas.unwrap_or(1) }),
            (None, Some(GlobalService {}), None, None) => Ok(Self::Global),
            (None, None, Some(ReplicatedJob { max_concurrent, total_completions }), None) => {
                let max_concurrent = max_concurrent.unwrap_or(1);
                Ok(Self::ReplicatedJob { max_concurrent, total_completions: total_completions.unwrap_or(max_concurrent) })
            }
            (None, None, None, Some(GlobalJob {})) => Ok(Self::GlobalJob),
            _ => Err(FieldError::new("Mode", "must specify only one service mode")),
        }
    }
}

impl From<&Mode> for ServiceMode {
    fn from(mode: &Mode) -> Self {
        let none = Self::default();
        match *mode {
            Mode::Replicated { replicas } => Self { replicated: Some(ReplicatedService { replicas: Some(replicas) }), ..none },
            Mode::Global => Self { global: Some(GlobalService {}), ..none },
            Mode::ReplicatedJob { max_concurrent, total_completions } => {
                let job = ReplicatedJob { max_concurrent: Some(max_concurrent), total_completions: Some(total_completions) };
                Self { replicated_job: Some(job), ..none }
            }
            Mode::GlobalJob => Self { global_job: Some(GlobalJob {}), ..none },
        }
    }
}

impl TryFrom<UpdateConfig> for UpdateWish {
    type Error = FieldError;

    /// Zeros say what they say, but for an observation time of zero, which is the default.
    fn try_from(json: UpdateConfig) -> Result<Self, FieldError> {
        let UpdateConfig { parallelism, delay, failure_action: action, monitor, max_failure_ratio, order: word } = json;
        Ok(Self {
            parallelism,
            delay: length("Delay", delay)?,
            failure_action: failure_action::from("FailureAction", &action)?,
            monitor: given_length("Monitor", monitor)?,
            max_failure_ratio,
            order: order::from("Order", &word)?,
        })
    }
}

impl From<&UpdateWish> for UpdateConfig {
    fn from(wish: &UpdateWish) -> Self {
        let UpdateWish { parallelism, delay, failure_action: action, monitor, max_failure_ratio, order: turn } = wish;
        Self {
            parallelism: *parallelism,
            delay: nanos(*delay),
            failure_action: failure_action::to(*action).to_owned(),
            monitor: monitor.map_or(0, nanos),
            max_failure_ratio: *max_failure_ratio,
            order: order::to(*turn).to_owned(),
        }
    }
}

impl TryFrom<EndpointSpec> for EndpointWish {
    type Error = FieldError;

    fn try_from(json: EndpointSpec) -> Result<Self, FieldError> {
        let EndpointSpec { mode, ports } = json;
        Ok(Self { mode: resolution::from("Mode", &mode)?, ports: super::value::list("Ports", ports)? })
    }
}

impl From<&EndpointWish> for EndpointSpec {
    fn from(wish: &EndpointWish) -> Self {
        let EndpointWish { mode, ports } = wish;
        Self { mode: resolution::to(*mode).to_owned(), ports: ports.iter().map(Into::into).collect() }
    }
}

impl TryFrom<PortConfig> for PortWish {
    type Error = FieldError;

    /// Who may come, where and to which task cannot be said here; see `unsaid`.
    fn try_from(json: PortConfig) -> Result<Self, FieldError> {
        let PortConfig { name, protocol: kind, target_port, published_port, publish_mode: mode } = json;
        Ok(Self {
            name,
            protocol: protocol::from("Protocol", &kind)?,
            target_port,
            published_port,
            publish_mode: publish_mode::from("PublishMode", &mode)?,
            ..Self::default()
        })
    }
}

impl From<&PortWish> for PortConfig {
    fn from(wish: &PortWish) -> Self {
        let PortWish { name, protocol: kind, target_port, published_port, publish_mode: mode, place: _, affinity: _, allow: _ } = wish;
        Self {
            name: name.clone(),
            protocol: protocol::to(*kind).to_owned(),
            target_port: *target_port,
            published_port: *published_port,
            publish_mode: publish_mode::to(*mode).to_owned(),
        }
    }
}
