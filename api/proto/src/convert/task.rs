//! Tasks and their status.

use super::{ToWire, message, number};
use crate::v1;
use skep_types::{ContainerStatus, FieldError, PortConfig, Task, TaskState, TaskStatus};

number!(TaskState, v1::TaskState {
    New = New,
    Pending = Pending,
    Assigned = Assigned,
    Accepted = Accepted,
    Preparing = Preparing,
    Ready = Ready,
    Starting = Starting,
    Running = Running,
    Complete = Complete,
    Shutdown = Shutdown,
    Failed = Failed,
    Rejected = Rejected,
    Remove = Remove,
    Orphaned = Orphaned,
});

message!(ContainerStatus <=> v1::ContainerStatus { container_id, pid, exit_code });
message!(TaskStatus <=> v1::TaskStatus {
    timestamp => unset_is_zero,
    state,
    message => as_is,
    err => as_is,
    container: runtime_status => container_status,
    ports: port_status => port_status,
    applied_by => maybe_id,
    applied_at,
} keeps { running_since });
// `volumes` are CSI volumes, which a scheduler of the original picks; specs that ask for one keep their mount.
message!(Task <=> v1::Task {
    id,
    meta => full,
    spec => full,
    spec_version,
    service_id => maybe_id,
    slot,
    node_id => maybe_id,
    annotations => full,
    service_annotations => full,
    status => full,
    desired_state,
    networks,
    endpoint,
    log_driver,
    assigned_generic_resources,
    job_iteration,
} drops { volumes });

/// The only choice of the oneof `runtime_status`.
pub(super) mod container_status {
    use super::{ContainerStatus, FieldError, ToWire};
    use crate::{convert::plain, v1::task_status::RuntimeStatus};

    pub fn from(_label: &str, wire: Option<RuntimeStatus>) -> Result<Option<ContainerStatus>, FieldError> {
        wire.map(|RuntimeStatus::Container(status)| plain::from("container", status)).transpose()
    }

    pub fn to(value: &Option<ContainerStatus>) -> Option<RuntimeStatus> {
        value.as_ref().map(|status| RuntimeStatus::Container(status.to_wire()))
    }
}

/// A message round a list.
pub(super) mod port_status {
    use super::{FieldError, PortConfig, ToWire};
    use crate::{convert::plain, v1::PortStatus};

    pub fn from(label: &str, wire: Option<PortStatus>) -> Result<Vec<PortConfig>, FieldError> {
        plain::from("ports", wire.unwrap_or_default().ports).map_err(|error| error.inside(label))
    }

    pub fn to(value: &[PortConfig]) -> Option<PortStatus> {
        (!value.is_empty()).then(|| PortStatus { ports: value.iter().map(ToWire::to_wire).collect() })
    }
}
