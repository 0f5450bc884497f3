//! What the unit tests of this crate share.

use skep_types::{Annotations, ContainerSpec, Meta, Task, TaskId, TaskSpec, TaskState, TaskStatus};
use std::sync::Arc;

/// A task of service `web` that is assigned and wanted running.
pub(crate) fn task(number: u64, image: &str) -> Task {
    task_with(number, ContainerSpec { image: image.into(), ..ContainerSpec::default() })
}

pub(crate) fn task_with(number: u64, container: ContainerSpec) -> Task {
    Task {
        id: TaskId::for_test(number),
        meta: Meta::default(),
        spec: Arc::new(TaskSpec::new(container)),
        spec_version: None,
        service_id: Some("service1".parse().unwrap()),
        slot: 1,
        node_id: Some("node1".parse().unwrap()),
        annotations: Annotations::default(),
        service_annotations: Annotations { name: "web".into(), ..Annotations::default() },
        status: TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() },
        desired_state: TaskState::Running,
        networks: Vec::new(),
        endpoint: None,
        log_driver: None,
        assigned_generic_resources: Vec::new(),
        job_iteration: None,
    }
}
