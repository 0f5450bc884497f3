//! What the tasks of a service share.

use super::container_spec::ContainerSpec;
use super::driver::Driver;
use super::resources::ResourceRequirements;
use super::value::{is_default, maybe_length, nanos, words};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skep_types::{FieldError, Labels, NetworkAttachmentConfig as NetworkWish, RestartCondition, Runtime};

words!(condition: skep_types::RestartCondition { "none" = Never, "on-failure" = OnFailure, "any" = Any });

const CONTAINER: &str = "container";
const ATTACHMENT: &str = "attachment";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaskSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub container_spec: Option<ContainerSpec>,
    /// Refused.
    #[serde(skip_serializing_if = "is_default")]
    pub plugin_spec: Option<Value>,
    /// Never of a service; shown of tasks that attach a container from outside.
    #[serde(skip_serializing_if = "is_default")]
    pub network_attachment_spec: Option<NetworkAttachmentSpec>,
    #[serde(skip_serializing_if = "is_default")]
    pub resources: Option<ResourceRequirements>,
    #[serde(skip_serializing_if = "is_default")]
    pub restart_policy: Option<RestartPolicy>,
    #[serde(skip_serializing_if = "is_default")]
    pub placement: Option<Placement>,
    #[serde(skip_serializing_if = "is_default")]
    pub networks: Vec<NetworkAttachmentConfig>,
    #[serde(skip_serializing_if = "is_default")]
    pub log_driver: Option<Driver>,
    pub force_update: u64,
    /// `container` or nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub runtime: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkAttachmentSpec {
    #[serde(rename = "ContainerID")]
    pub container_id: String,
}

/// Lengths of time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    #[serde(skip_serializing_if = "is_default")]
    pub condition: String,
    #[serde(skip_serializing_if = "is_default")]
    pub delay: Option<i64>,
    #[serde(skip_serializing_if = "is_default")]
    pub max_attempts: Option<u64>,
    #[serde(skip_serializing_if = "is_default")]
    pub window: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Placement {
    #[serde(skip_serializing_if = "is_default")]
    pub constraints: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub preferences: Vec<PlacementPreference>,
    #[serde(skip_serializing_if = "is_default")]
    pub max_replicas: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub platforms: Vec<Platform>,
}

/// Spreading is the only kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PlacementPreference {
    pub spread: Option<SpreadOver>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SpreadOver {
    pub spread_descriptor: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Platform {
    #[serde(skip_serializing_if = "is_default")]
    pub architecture: String,
    #[serde(rename = "OS", skip_serializing_if = "is_default")]
    pub os: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkAttachmentConfig {
    /// Id or name.
    #[serde(skip_serializing_if = "is_default")]
    pub target: String,
    #[serde(skip_serializing_if = "is_default")]
    pub aliases: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub driver_opts: Labels,
}

impl TaskSpec {
    /// What runs, without the limit of processes.
    fn runtime(container: Option<ContainerSpec>, plugin: Option<Value>, runtime: &str) -> Result<skep_types::ContainerSpec, FieldError> {
        match runtime {
            "" | CONTAINER if plugin.is_none() => {}
            "" | CONTAINER | "plugin" => {
                let problem = "services of plugins are not supported; install the plugin on each node, or run it as a container";
                return Err(FieldError::new("PluginSpec", problem));
            }
            other => return Err(FieldError::new("Runtime", format!("{other:?} is not supported; services run containers"))),
        }
        let container = container.ok_or_else(|| FieldError::new("ContainerSpec", "is missing; a service needs an image"))?;
        container.try_into().map_err(|error: FieldError| error.inside("ContainerSpec"))
    }
}

impl TryFrom<TaskSpec> for skep_types::TaskSpec {
    type Error = FieldError;

    fn try_from(json: TaskSpec) -> Result<Self, FieldError> {
        let TaskSpec {
            container_spec,
            plugin_spec,
            network_attachment_spec,
            resources,
            restart_policy,
            placement,
            networks,
            log_driver,
            force_update,
            runtime,
        } = json;
        if network_attachment_spec.is_some() {
            let problem = "is made by containers that join a network, not by services; leave it out";
            return Err(FieldError::new("NetworkAttachmentSpec", problem));
        }
        let mut container = TaskSpec::runtime(container_spec, plugin_spec, &runtime)?;
        let resources = resources.map(ResourceRequirements::into_wish).transpose().map_err(|error| error.inside("Resources"))?;
        container.pids_limit = resources.as_ref().map_or(0, |(_, pids)| *pids);
        Ok(Self {
            runtime: container.into(),
            resources: resources.map(|(wish, _)| wish),
            restart: restart_policy.map(TryInto::try_into).transpose().map_err(|error: FieldError| error.inside("RestartPolicy"))?,
            placement: placement.map(TryInto::try_into).transpose().map_err(|error: FieldError| error.inside("Placement"))?,
            log_driver: log_driver.map(Into::into),
            networks: networks.into_iter().map(Into::into).collect(),
            force_update,
            // Kept from the service as it is, see `unsaid`.
            resource_references: Vec::new(),
        })
    }
}

impl From<&skep_types::TaskSpec> for TaskSpec {
    fn from(wish: &skep_types::TaskSpec) -> Self {
        let skep_types::TaskSpec { runtime, resources, restart, placement, log_driver, networks, force_update, resource_references: _ } =
            wish;
        let (container_spec, attachment, runtime) = match runtime {
            Runtime::Container(container) => (Some(container.as_ref().into()), None, CONTAINER),
            Runtime::Attachment { container_id } => (None, Some(NetworkAttachmentSpec { container_id: container_id.clone() }), ATTACHMENT),
            // What it holds is for its own kind of client.
            Runtime::Generic { kind, .. } => (None, None, kind.as_str()),
        };
        let pids = wish.container().map_or(0, |container| container.pids_limit);
        Self {
            container_spec,
            plugin_spec: None,
            network_attachment_spec: attachment,
            resources: ResourceRequirements::of_wish(resources.as_ref(), pids),
            restart_policy: restart.as_ref().map(Into::into),
            placement: placement.as_ref().map(Into::into),
            networks: networks.iter().map(Into::into).collect(),
            log_driver: log_driver.as_ref().map(Into::into),
            force_update: *force_update,
            runtime: runtime.to_owned(),
        }
    }
}

impl TryFrom<RestartPolicy> for skep_types::RestartPolicy {
    type Error = FieldError;

    /// A policy without a condition restarts always, as the daemon reads it.
    fn try_from(json: RestartPolicy) -> Result<Self, FieldError> {
        let RestartPolicy { condition: word, delay, max_attempts, window } = json;
        Ok(Self {
            condition: if word.is_empty() { RestartCondition::Any } else { condition::from("Condition", &word)? },
            delay: maybe_length("Delay", delay)?,
            max_attempts: max_attempts.unwrap_or_default(),
            window: maybe_length("Window", window)?,
        })
    }
}

impl From<&skep_types::RestartPolicy> for RestartPolicy {
    fn from(wish: &skep_types::RestartPolicy) -> Self {
        let skep_types::RestartPolicy { condition: when, delay, max_attempts, window } = wish;
        Self {
            condition: condition::to(*when).to_owned(),
            delay: delay.map(nanos),
            max_attempts: Some(*max_attempts),
            window: window.map(nanos),
        }
    }
}

impl TryFrom<Placement> for skep_types::Placement {
    type Error = FieldError;

    fn try_from(json: Placement) -> Result<Self, FieldError> {
        let Placement { constraints, preferences, max_replicas, platforms } = json;
        let descriptor = |(index, preference): (usize, PlacementPreference)| match preference.spread {
            Some(spread) => Ok(spread.spread_descriptor),
            None => Err(FieldError::new("Spread", "is missing; spreading is the only preference there is").at(index).inside("Preferences")),
        };
        Ok(Self {
            constraints,
            spread: preferences.into_iter().enumerate().map(descriptor).collect::<Result<_, _>>()?,
            platforms: platforms.into_iter().map(|Platform { architecture, os }| skep_types::Platform { architecture, os }).collect(),
            max_replicas,
        })
    }
}

impl From<&skep_types::Placement> for Placement {
    fn from(wish: &skep_types::Placement) -> Self {
        let skep_types::Placement { constraints, spread, platforms, max_replicas } = wish;
        let preference = |descriptor: &String| PlacementPreference { spread: Some(SpreadOver { spread_descriptor: descriptor.clone() }) };
        Self {
            constraints: constraints.clone(),
            preferences: spread.iter().map(preference).collect(),
            max_replicas: *max_replicas,
            platforms: platforms.iter().map(Into::into).collect(),
        }
    }
}

impl From<&skep_types::Platform> for Platform {
    fn from(platform: &skep_types::Platform) -> Self {
        let skep_types::Platform { architecture, os } = platform.clone();
        Self { architecture, os }
    }
}

impl From<NetworkAttachmentConfig> for NetworkWish {
    fn from(json: NetworkAttachmentConfig) -> Self {
        let NetworkAttachmentConfig { target, aliases, driver_opts } = json;
        Self { target, aliases, addresses: Vec::new(), driver_attachment_opts: driver_opts }
    }
}

impl From<&NetworkWish> for NetworkAttachmentConfig {
    fn from(wish: &NetworkWish) -> Self {
        // Addresses cannot be said here; see `unsaid`.
        let NetworkWish { target, aliases, addresses: _, driver_attachment_opts } = wish.clone();
        Self { target, aliases, driver_opts: driver_attachment_opts }
    }
}
