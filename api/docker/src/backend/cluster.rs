//! The cluster, by way of this node's manager.

use crate::ApiError;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use skep_types::{
    ClusterSpec, Config, ConfigSpec, ManagerStatus, Network, NetworkSpec, Node, NodeSpec, Secret, SecretSpec, Sensitive, Service,
    ServiceSpec, Task, TaskState, Timestamp, TlsInfo,
};
use std::sync::Arc;
use std::time::Duration;

/// Narrows a list down at its source: objects that any of this holds for; nothing given: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Select {
    /// Beginnings of ids.
    pub ids: Vec<String>,
    /// Full names; of nodes their host's too.
    pub names: Vec<String>,
}

impl Select {
    /// What a client may mean by a text.
    #[must_use]
    pub fn meant_by(text: &str) -> Self {
        Self { ids: vec![text.to_owned()], names: vec![text.to_owned()] }
    }
}

/// The same for tasks, but that each field must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskSelect {
    /// Beginnings of ids.
    pub ids: Vec<String>,
    /// Full ids.
    pub services: Vec<String>,
    /// Full ids.
    pub nodes: Vec<String>,
    pub desired_states: Vec<TaskState>,
    /// Only tasks of their service's present spec.
    pub up_to_date: bool,
}

/// The cluster, and by which root and issuer its nodes' certificates should be: during a rotation the new ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEntry {
    pub cluster: skep_types::Cluster,
    pub tls: TlsInfo,
}

/// A node, and its place among the managers if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEntry {
    pub node: Node,
    pub manager: Option<ManagerStatus>,
}

/// Orders that go with an update of the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotation {
    pub worker_token: bool,
    pub manager_token: bool,
    pub unlock_key: bool,
}

/// How many tasks a service has and should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskCounts {
    pub service_id: String,
    pub desired: u64,
    pub running: u64,
    pub completed: u64,
}

/// Whose logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogSource {
    /// Full id.
    Service(String),
    /// Full id.
    Task(String),
}

/// Which part of the logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogSelect {
    pub stdout: bool,
    pub stderr: bool,
    /// Goes on until the caller drops the stream.
    pub follow: bool,
    pub since: Option<Timestamp>,
    /// The last so many lines of each task; `None` = all.
    pub tail: Option<u64>,
}

/// A line of a task, with its line end as the task wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    pub service_id: String,
    pub node_id: String,
    pub task_id: String,
    /// When it was written, by the node's clock.
    pub at: Timestamp,
    /// Else standard output.
    pub is_stderr: bool,
    pub data: Bytes,
    /// What the service's logging options add, such as labels.
    pub attributes: Vec<(String, String)>,
}

/// Reads and changes of the cluster's objects. Every call ends within the cluster's own time limits.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// Without keys; with join tokens.
    async fn cluster(&self) -> Result<ClusterEntry, ApiError>;
    async fn update_cluster(&self, version: u64, spec: ClusterSpec, rotation: Rotation) -> Result<(), ApiError>;
    /// `None`: managers are not locked.
    async fn unlock_key(&self) -> Result<Option<Sensitive<String>>, ApiError>;

    async fn list_nodes(&self, select: &Select) -> Result<Vec<NodeEntry>, ApiError>;
    async fn get_node(&self, id: &str) -> Result<NodeEntry, ApiError>;
    async fn update_node(&self, id: &str, version: u64, spec: NodeSpec) -> Result<(), ApiError>;
    async fn remove_node(&self, id: &str, force: bool) -> Result<(), ApiError>;

    /// Shared with whoever keeps them: a list copies nothing.
    async fn list_services(&self, select: &Select) -> Result<Vec<Arc<Service>>, ApiError>;
    async fn get_service(&self, id: &str) -> Result<Service, ApiError>;
    /// With what its absent parts mean written out.
    async fn service_with_defaults(&self, id: &str) -> Result<Service, ApiError>;
    /// By full ids.
    async fn count_tasks(&self, services: &[String]) -> Result<Vec<TaskCounts>, ApiError>;
    async fn create_service(&self, spec: ServiceSpec) -> Result<Service, ApiError>;
    /// `rollback`: the previous spec is put in force and `spec` does not matter.
    async fn update_service(&self, id: &str, version: u64, spec: ServiceSpec, rollback: bool) -> Result<Service, ApiError>;
    async fn remove_service(&self, id: &str) -> Result<(), ApiError>;
    /// What of a service is allowed but will not work as hoped, in words.
    fn advice(&self, spec: &ServiceSpec) -> Vec<String>;

    /// Shared, as services.
    async fn list_tasks(&self, select: &TaskSelect) -> Result<Vec<Arc<Task>>, ApiError>;
    async fn get_task(&self, id: &str) -> Result<Task, ApiError>;

    /// Without data.
    async fn list_secrets(&self, select: &Select) -> Result<Vec<Secret>, ApiError>;
    /// Without data.
    async fn get_secret(&self, id: &str) -> Result<Secret, ApiError>;
    async fn create_secret(&self, spec: SecretSpec) -> Result<Secret, ApiError>;
    async fn update_secret(&self, id: &str, version: u64, spec: SecretSpec) -> Result<(), ApiError>;
    async fn remove_secret(&self, id: &str) -> Result<(), ApiError>;

    async fn list_configs(&self, select: &Select) -> Result<Vec<Config>, ApiError>;
    async fn get_config(&self, id: &str) -> Result<Config, ApiError>;
    async fn create_config(&self, spec: ConfigSpec) -> Result<Config, ApiError>;
    async fn update_config(&self, id: &str, version: u64, spec: ConfigSpec) -> Result<(), ApiError>;
    async fn remove_config(&self, id: &str) -> Result<(), ApiError>;

    async fn list_networks(&self, select: &Select) -> Result<Vec<Network>, ApiError>;
    async fn get_network(&self, id: &str) -> Result<Network, ApiError>;
    async fn create_network(&self, spec: NetworkSpec) -> Result<Network, ApiError>;
    async fn remove_network(&self, id: &str) -> Result<(), ApiError>;

    /// Ends when all is told that was asked for; what it could not get of a node comes as an error in its place.
    async fn logs(&self, source: LogSource, select: LogSelect) -> Result<BoxStream<'static, Result<LogRecord, ApiError>>, ApiError>;
}

/// What a manager takes at most before it answers, dockerd's `swarmRequestTimeout`.
pub const CALL_LIMIT: Duration = Duration::from_secs(20);
