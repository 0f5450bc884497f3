//! Tasks: one attempt at running one slot, and the states it goes through.

use crate::{
    Annotations, Driver, Endpoint, GenericResource, Meta, NetworkAttachment, NodeId, PortConfig, Service, ServiceId, TaskId, TaskSpec,
    Timestamp, Version,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Where a task is, or should get to. The numbers are the wire's; observed state only grows, so it works as a Lamport
/// clock: the greater of two reports is the right one (`SK/api/types.proto`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(i32)]
pub enum TaskState {
    /// Made by an orchestrator.
    #[default]
    New = 0,
    /// Has its addresses, waits for a node.
    Pending = 64,
    /// Has a node; from here on the agent sees it.
    Assigned = 192,
    Accepted = 256,
    /// Networks, volumes, image, container are being made.
    Preparing = 320,
    /// Prepared; waits here unless it is wanted running.
    Ready = 384,
    /// Started; waits to become healthy.
    Starting = 448,
    Running = 512,
    /// Ended with exit code 0.
    Complete = 576,
    /// Stopped on request.
    Shutdown = 640,
    /// An error at or after starting, or a non-zero exit code.
    Failed = 704,
    /// Could not be run on its node.
    Rejected = 768,
    /// Only ever desired: delete after shutdown.
    Remove = 800,
    /// Its node was gone for too long.
    Orphaned = 832,
}

impl TaskState {
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// The state with this number on the wire.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as i32 == number)
    }

    /// Past running: it will never run again.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        })
    }
}

/// The container behind a task, known from STARTING on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    pub container_id: String,
    pub pid: i32,
    pub exit_code: i32,
}

/// What is known of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskStatus {
    /// When the reporter saw it, by the reporter's clock.
    pub timestamp: Timestamp,
    pub state: TaskState,
    /// Short, for people.
    pub message: String,
    /// Why it failed or waits; empty while all is well.
    pub err: String,
    pub container: Option<ContainerStatus>,
    /// Host-mode ports as they really are.
    pub ports: Vec<PortConfig>,
    /// The manager that took the report, and when by its clock.
    pub applied_by: Option<NodeId>,
    pub applied_at: Option<Timestamp>,
    /// When the task first became RUNNING, by the manager's clock if it took the report. Kept by [`TaskStatus::advance`]
    /// and not on the wire; without it a later manager could not tell whether a task failed within the monitor time.
    pub running_since: Option<Timestamp>,
}

/// An observed state must not go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a task cannot go back from {from} to {to}")]
pub struct WentBack {
    pub from: TaskState,
    pub to: TaskState,
}

impl TaskStatus {
    /// The only way to change an observed status: forward, or the same state with new details.
    ///
    /// # Errors
    /// [`WentBack`] if `newer` has a lower state; nothing is changed then.
    pub fn advance(&mut self, mut newer: Self) -> Result<(), WentBack> {
        if newer.state < self.state {
            return Err(WentBack { from: self.state, to: newer.state });
        }
        newer.running_since = self.running_since.or(match newer.state {
            TaskState::Running => Some(newer.applied_at.unwrap_or(newer.timestamp)),
            _ => None,
        });
        *self = newer;
        Ok(())
    }
}

/// One attempt at running one slot of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    #[serde(default)]
    pub meta: Meta,
    pub spec: Arc<TaskSpec>,
    #[serde(default)]
    pub spec_version: Option<Version>,
    /// `None` for a network attachment of a container outside any service.
    #[serde(default)]
    pub service_id: Option<ServiceId>,
    /// From 1 for replicated services, from 0 for replicated jobs; 0 for global ones.
    #[serde(default)]
    pub slot: u64,
    #[serde(default)]
    pub node_id: Option<NodeId>,
    #[serde(default)]
    pub annotations: Annotations,
    #[serde(default)]
    pub service_annotations: Annotations,
    #[serde(default)]
    pub status: TaskStatus,
    #[serde(default)]
    pub desired_state: TaskState,
    #[serde(default)]
    pub networks: Vec<NetworkAttachment>,
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    #[serde(default)]
    pub log_driver: Option<Driver>,
    #[serde(default)]
    pub assigned_generic_resources: Vec<GenericResource>,
    /// Present = the task belongs to a job.
    #[serde(default)]
    pub job_iteration: Option<Version>,
}

impl Task {
    /// A task of `service` as an orchestrator makes it (`SK/manager/orchestrator/task.go`): observed NEW, desired RUNNING
    /// (COMPLETE for jobs). The log driver is the service's, else the cluster's default.
    #[must_use]
    pub fn of_service(id: TaskId, service: &Service, slot: u64, default_log_driver: Option<&Driver>, now: Timestamp) -> Self {
        let is_job = service.spec.mode.is_job();
        Self {
            id,
            meta: Meta::default(),
            spec: Arc::clone(&service.spec.task),
            spec_version: service.spec_version,
            service_id: Some(service.id.clone()),
            slot,
            node_id: None,
            annotations: Annotations::default(),
            service_annotations: service.spec.annotations.clone(),
            status: TaskStatus { timestamp: now, state: TaskState::New, message: "created".into(), ..TaskStatus::default() },
            desired_state: if is_job { TaskState::Complete } else { TaskState::Running },
            networks: Vec::new(),
            endpoint: service.spec.endpoint.clone().map(|spec| Endpoint { spec, ..Endpoint::default() }),
            log_driver: service.spec.task.log_driver.as_ref().or(default_log_driver).cloned(),
            assigned_generic_resources: Vec::new(),
            job_iteration: service.job_status.filter(|_| is_job).map(|status| status.iteration),
        }
    }

    /// `<service>.<slot>.<task id>`, with the node id instead of a slot for global services (`SK/api/naming/naming.go`).
    #[must_use]
    pub fn name(&self) -> String {
        if !self.annotations.name.is_empty() {
            return self.annotations.name.clone();
        }
        let service = &self.service_annotations.name;
        match (&self.node_id, self.slot) {
            (Some(node), 0) if self.job_iteration.is_none() => format!("{service}.{node}.{}", self.id),
            (_, slot) => format!("{service}.{slot}.{}", self.id),
        }
    }
}
