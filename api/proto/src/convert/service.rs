//! Services: what to run, how many times, where, and how to change it.

use super::{FromWire, ToWire, message, number, plain};
use crate::v1;
use skep_types::{
    Affinity, ContainerSpec, Endpoint, EndpointSpec, FailureAction, FieldError, JobStatus, Placement, PortConfig, Protocol, PublishMode,
    PublishPlace, ResolutionMode, ResourceKind, ResourceReference, RestartCondition, RestartPolicy, Runtime, Service, ServiceMode,
    ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus, VirtualIp, client_range,
};
use v1::service_spec::Mode;

number!(RestartCondition, v1::restart_policy::RestartCondition { Never = None, OnFailure = OnFailure, Any = Any });
number!(FailureAction, v1::update_config::FailureAction { Pause = Pause, Continue = Continue, Rollback = Rollback });
number!(UpdateOrder, v1::update_config::UpdateOrder { StopFirst = StopFirst, StartFirst = StartFirst });
number!(UpdateState, v1::update_status::UpdateState {
    Unknown = Unknown,
    Updating = Updating,
    Paused = Paused,
    Completed = Completed,
    RollbackStarted = RollbackStarted,
    RollbackPaused = RollbackPaused,
    RollbackCompleted = RollbackCompleted,
});
number!(ResolutionMode, v1::endpoint_spec::ResolutionMode { Vip = Vip, DnsRoundRobin = Dnsrr });
number!(Protocol, v1::port_config::Protocol { Tcp = Tcp, Udp = Udp, Sctp = Sctp });
number!(PublishMode, v1::port_config::PublishMode { Ingress = Ingress, Host = Host });
number!(Affinity, v1::port_config::Affinity { None = None, Source = Source });
number!(ResourceKind, v1::ResourceType { Task = Task, Secret = Secret, Config = Config, Volume = Volume });

message!(RestartPolicy <=> v1::RestartPolicy { condition, delay, max_attempts, window });
message!(Placement <=> v1::Placement { constraints, spread: preferences => spread, platforms, max_replicas });
message!(EndpointSpec <=> v1::EndpointSpec { mode, ports });
message!(VirtualIp <=> v1::endpoint::VirtualIp { network_id, addr });
message!(Endpoint <=> v1::Endpoint { spec => full, ports, virtual_ips });
message!(UpdateStatus <=> v1::UpdateStatus { state, started_at, completed_at, message => as_is } keeps { began });
message!(JobStatus <=> v1::JobStatus { iteration: job_iteration => full, last_execution });
message!(ResourceReference <=> v1::ResourceReference { resource_id, kind: resource_type });
message!(TaskSpec <=> v1::TaskSpec {
    runtime => oneof,
    resources,
    restart,
    placement,
    log_driver,
    networks,
    force_update,
    resource_references,
});
message!(Service <=> v1::Service {
    id,
    meta => full,
    spec => full,
    spec_version,
    previous_spec,
    previous_spec_version,
    endpoint,
    update_status,
    job_status,
    pending_delete,
});

/// The one message with a deprecated field, which is why it is spelled out.
#[expect(deprecated, reason = "`networks` is the old form of `task.networks`; peers still send it")]
mod spec {
    use super::{ServiceSpec, v1};
    use crate::convert::message;
    message!(ServiceSpec <=> v1::ServiceSpec {
        annotations => full,
        task => full,
        mode => oneof,
        update,
        rollback,
        networks,
        endpoint,
    });
}

impl FromWire for UpdateConfig {
    type Wire = v1::UpdateConfig;

    /// A config that is there says what it says: parallelism 0 is "all at once", an absent monitor stays absent.
    fn from_wire(wire: v1::UpdateConfig) -> Result<Self, FieldError> {
        let v1::UpdateConfig { parallelism, delay, failure_action, monitor, max_failure_ratio, order } = wire;
        // Also refuses what is not a number.
        if !(0.0..=1.0).contains(&max_failure_ratio) {
            return Err(FieldError::new("max_failure_ratio", format!("{max_failure_ratio} is not within 0..=1")));
        }
        Ok(Self {
            parallelism,
            delay: super::full::from("delay", delay)?,
            failure_action: plain::from("failure_action", failure_action)?,
            monitor: plain::from("monitor", monitor)?,
            max_failure_ratio,
            order: plain::from("order", order)?,
        })
    }
}

impl ToWire for UpdateConfig {
    type Wire = v1::UpdateConfig;
    fn to_wire(&self) -> v1::UpdateConfig {
        v1::UpdateConfig {
            parallelism: self.parallelism,
            delay: Some(self.delay.to_wire()),
            failure_action: self.failure_action.to_wire(),
            monitor: self.monitor.to_wire(),
            max_failure_ratio: self.max_failure_ratio,
            order: self.order.to_wire(),
        }
    }
}

impl FromWire for PortConfig {
    type Wire = v1::PortConfig;
    fn from_wire(wire: v1::PortConfig) -> Result<Self, FieldError> {
        let v1::PortConfig { name, protocol, target_port, published_port, publish_mode, address, interface, affinity, allow } = wire;
        for (field, port) in [("target_port", target_port), ("published_port", published_port)] {
            if port > u32::from(u16::MAX) {
                return Err(FieldError::new(field, format!("{port} is not a port; ports end at 65535")));
            }
        }
        Ok(Self {
            name: plain::from("name", name)?,
            protocol: plain::from("protocol", protocol)?,
            target_port,
            published_port,
            publish_mode: plain::from("publish_mode", publish_mode)?,
            place: publish_place(&address, interface)?,
            affinity: plain::from("affinity", affinity)?,
            allow: allow
                .iter()
                .enumerate()
                .map(|(index, text)| client_range(text).map_err(|error| error.at(index).inside("allow")))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl ToWire for PortConfig {
    type Wire = v1::PortConfig;
    fn to_wire(&self) -> v1::PortConfig {
        v1::PortConfig {
            name: self.name.clone(),
            protocol: self.protocol.to_wire(),
            target_port: self.target_port,
            published_port: self.published_port,
            publish_mode: self.publish_mode.to_wire(),
            address: self.place.address().map(|address| address.to_string()).unwrap_or_default(),
            interface: self.place.interface().unwrap_or_default().to_owned(),
            affinity: self.affinity.to_wire(),
            allow: self.allow.iter().map(ToString::to_string).collect(),
        }
    }
}

/// The two fields that say where on a node a port answers.
fn publish_place(address: &str, interface: String) -> Result<PublishPlace, FieldError> {
    match (address, interface.as_str()) {
        ("", "") => Ok(PublishPlace::Everywhere),
        ("", _) => Ok(PublishPlace::Interface(plain::from("interface", interface)?)),
        (address, "") => {
            address.parse().map(PublishPlace::Address).map_err(|_| FieldError::new("address", format!("{address:?} is not an IP address")))
        }
        _ => Err(FieldError::new("interface", "is given together with an address; give one of the two")),
    }
}

/// A count that genuine peers read as signed, and refuse when it is negative then.
fn count(field: &str, number: u64) -> Result<u64, FieldError> {
    if i64::try_from(number).is_ok() { Ok(number) } else { Err(FieldError::new(field, "is negative as a signed number; give 0 or more")) }
}

impl FromWire for ServiceMode {
    type Wire = Option<Mode>;
    fn from_wire(wire: Option<Mode>) -> Result<Self, FieldError> {
        match wire {
            Some(Mode::Replicated(v1::ReplicatedService { replicas })) => {
                Ok(Self::Replicated { replicas: count("replicated.replicas", replicas)? })
            }
            Some(Mode::Global(v1::GlobalService {})) => Ok(Self::Global),
            Some(Mode::ReplicatedJob(v1::ReplicatedJob { max_concurrent, total_completions })) => Ok(Self::ReplicatedJob {
                max_concurrent: count("replicated_job.max_concurrent", max_concurrent)?,
                total_completions: count("replicated_job.total_completions", total_completions)?,
            }),
            Some(Mode::GlobalJob(v1::GlobalJob {})) => Ok(Self::GlobalJob),
            None => Err(FieldError::new("mode", "is missing; give replicated, global, replicated_job or global_job")),
        }
    }
}

impl ToWire for ServiceMode {
    type Wire = Option<Mode>;
    fn to_wire(&self) -> Option<Mode> {
        Some(match *self {
            Self::Replicated { replicas } => Mode::Replicated(v1::ReplicatedService { replicas }),
            Self::Global => Mode::Global(v1::GlobalService {}),
            Self::ReplicatedJob { max_concurrent, total_completions } => {
                Mode::ReplicatedJob(v1::ReplicatedJob { max_concurrent, total_completions })
            }
            Self::GlobalJob => Mode::GlobalJob(v1::GlobalJob {}),
        })
    }
}

impl FromWire for Runtime {
    type Wire = Option<v1::task_spec::Runtime>;
    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        use v1::task_spec::Runtime as Wire;
        match wire {
            Some(Wire::Container(container)) => Ok(Self::Container(Box::new(plain::from::<ContainerSpec>("container", container)?))),
            Some(Wire::Attachment(v1::NetworkAttachmentSpec { container_id })) => {
                Ok(Self::Attachment { container_id: plain::from("attachment.container_id", container_id)? })
            }
            Some(Wire::Generic(v1::GenericRuntimeSpec { kind, payload })) => {
                let prost_types::Any { type_url, value } = payload.unwrap_or_default();
                Ok(Self::Generic {
                    kind: plain::from("generic.kind", kind)?,
                    type_url: plain::from("generic.payload.type_url", type_url)?,
                    payload: value,
                })
            }
            None => Err(FieldError::new("runtime", "is missing; give container, generic or attachment")),
        }
    }
}

impl ToWire for Runtime {
    type Wire = Option<v1::task_spec::Runtime>;
    fn to_wire(&self) -> Self::Wire {
        use v1::task_spec::Runtime as Wire;
        Some(match self {
            Self::Container(container) => Wire::Container(container.to_wire()),
            Self::Attachment { container_id } => Wire::Attachment(v1::NetworkAttachmentSpec { container_id: container_id.clone() }),
            Self::Generic { kind, type_url, payload } => Wire::Generic(v1::GenericRuntimeSpec {
                kind: kind.clone(),
                payload: Some(prost_types::Any { type_url: type_url.clone(), value: payload.clone() }),
            }),
        })
    }
}

/// Placement preferences: spreading is the only kind there is.
pub(super) mod spread {
    use super::{FieldError, plain};
    use crate::v1::{PlacementPreference, SpreadOver, placement_preference::Preference};

    pub fn from(label: &str, wire: Vec<PlacementPreference>) -> Result<Vec<String>, FieldError> {
        let descriptor = |(index, preference): (usize, PlacementPreference)| {
            match preference.preference {
                Some(Preference::Spread(over)) => plain::from("spread.spread_descriptor", over.spread_descriptor),
                None => Err(FieldError::new("", "is empty; give spread")),
            }
            .map_err(|error| error.at(index).inside(label))
        };
        wire.into_iter().enumerate().map(descriptor).collect()
    }

    pub fn to(value: &[String]) -> Vec<PlacementPreference> {
        let preference = |descriptor: &String| PlacementPreference {
            preference: Some(Preference::Spread(SpreadOver { spread_descriptor: descriptor.clone() })),
        };
        value.iter().map(preference).collect()
    }
}
