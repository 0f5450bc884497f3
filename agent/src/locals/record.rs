//! What is remembered of a container that is no task.

use super::policy::{RestartWish, Restarts};
use crate::executor::ImageReady;
use crate::records::Recorded;
use serde::{Deserialize, Serialize};
use skep_types::{Annotations, ContainerSpec, Driver, Meta, NetworkAttachment, PortConfig, ResourceRequirements, Timestamp};
use skep_types::{Endpoint, EndpointSpec, Task, TaskId, TaskSpec, TaskState, TaskStatus};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A container that somebody wants.
#[derive(Debug, Clone)]
pub struct LocalWish {
    pub id: TaskId,
    pub name: String,
    pub spec: ContainerSpec,
    pub resources: Option<ResourceRequirements>,
    /// Of this node.
    pub ports: Vec<PortConfig>,
    /// Of those the node chooses one number of a range for, by their place among the ports: the last number; the first is the port's.
    pub ranges: BTreeMap<usize, u32>,
    /// Empty = this node's own network.
    pub networks: Vec<NetworkAttachment>,
    pub log_driver: Option<Driver>,
    /// A name under which this node has the image.
    pub reference: String,
    pub restart: RestartWish,
    pub auto_remove: bool,
    /// Its input ends with that of the first who attaches to it.
    pub stdin_once: bool,
    /// As it was asked for, for whoever asked: nothing here reads it.
    pub asked: String,
}

/// One container, as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Local {
    /// What it runs, in the words of a task: one that no manager knows.
    pub task: Arc<Task>,
    /// `None` until its parts are there: what a crash left half made is removed.
    pub image: Option<ImageReady>,
    pub status: TaskStatus,
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// See [`LocalWish::ranges`]; what was asked for is in the endpoint's `spec`, what was chosen for this life beside it.
    #[serde(default)]
    pub ranges: BTreeMap<usize, u32>,
    pub restart: RestartWish,
    pub auto_remove: bool,
    #[serde(default)]
    pub stdin_once: bool,
    #[serde(default)]
    pub restarts: Restarts,
    /// Somebody stopped or killed it: it is not started again by itself.
    #[serde(default)]
    pub is_stopped: bool,
    /// It is being removed; with the volumes that have no name, if true.
    #[serde(default)]
    pub going: Option<bool>,
    #[serde(default)]
    pub asked: String,
    /// It waits to be started again.
    #[serde(skip)]
    pub is_restarting: bool,
    /// Lives that ended since the agent began.
    #[serde(skip)]
    pub ends: u64,
    #[serde(skip)]
    pub is_gone: bool,
    /// Something of an earlier life may be left.
    #[serde(skip)]
    pub has_remains: bool,
}

impl Recorded for Local {
    fn id(&self) -> &TaskId {
        &self.task.id
    }
}

impl Local {
    pub(super) fn new(wish: LocalWish, now: Timestamp) -> Self {
        let mut spec = TaskSpec::new(wish.spec);
        (spec.resources, spec.log_driver) = (wish.resources, wish.log_driver.clone());
        let endpoint = EndpointSpec { ports: wish.ports.clone(), ..EndpointSpec::default() };
        let task = Task {
            id: wish.id,
            meta: Meta { created_at: now, updated_at: now, ..Meta::default() },
            spec: Arc::new(spec),
            spec_version: None,
            service_id: None,
            slot: 0,
            node_id: None,
            annotations: Annotations { name: wish.name, ..Annotations::default() },
            service_annotations: Annotations::default(),
            status: TaskStatus::default(),
            desired_state: TaskState::Running,
            networks: wish.networks,
            endpoint: Some(Endpoint { spec: endpoint, ports: wish.ports, ..Endpoint::default() }),
            log_driver: wish.log_driver,
            assigned_generic_resources: Vec::new(),
            job_iteration: None,
        };
        Self {
            task: Arc::new(task),
            image: None,
            status: TaskStatus { timestamp: now, state: TaskState::Ready, ..TaskStatus::default() },
            started_at: None,
            ranges: wish.ranges,
            restart: wish.restart,
            auto_remove: wish.auto_remove,
            stdin_once: wish.stdin_once,
            restarts: Restarts::default(),
            is_stopped: false,
            going: None,
            asked: wish.asked,
            is_restarting: false,
            ends: 0,
            is_gone: false,
            has_remains: false,
        }
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status.state == TaskState::Running
    }

    #[must_use]
    pub fn exit_code(&self) -> i32 {
        self.status.container.as_ref().map_or(0, |container| container.exit_code)
    }

    pub(super) fn change_task(&mut self, change: impl FnOnce(&mut Task)) {
        change(Arc::make_mut(&mut self.task));
    }
}
