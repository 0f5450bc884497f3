//! The cluster's objects, by way of the services that this node's manager offers on the local socket.

mod logs; // of services and tasks
mod network; // networks
mod node; // nodes
mod payload; // secrets and configs
mod reach; // other nodes
mod service; // services
mod settings; // the cluster itself
mod task; // tasks

use super::manager::Manager;
use super::state::{has_leader, swarm_state};
use crate::router::Routes;
use crate::status::Board;
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use skep_docker_api::{
    ApiError, Cluster, ClusterEntry, ErrorKind, LogRecord, LogSelect, LogSource, NodeEntry, Rotation, Select, TaskCounts, TaskSelect,
};
use skep_types::{
    ClusterSpec, Config, ConfigSpec, Network, NetworkSpec, NodeSpec, Secret, SecretSpec, Sensitive, Service, ServiceSpec, Task,
};
use std::sync::Arc;

const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of \
    the managers are online.";

/// Every call, on every node: where there is no manager it refuses in dockerd's words.
pub struct ClusterCalls {
    manager: Manager,
    board: Board,
}

impl ClusterCalls {
    pub fn new(routes: &Routes, board: Board) -> Self {
        Self { manager: Manager::new(routes), board }
    }

    /// Asks the manager, if there is one.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, ApiError>> + Send) -> Result<T, ApiError> {
        self.board.started().await;
        if let Some(refusal) = swarm_state(&self.board, false).refusal() {
            return Err(refusal);
        }
        call.await.map_err(|error| match error.kind {
            // It waited for a leader in vain, or for the others' word that this manager still is the one.
            ErrorKind::Unavailable | ErrorKind::ResourceExhausted if !has_leader(&self.board) => {
                ApiError::rpc(ErrorKind::Unknown, NO_LEADER)
            }
            _ => error,
        })
    }
}

#[async_trait]
impl Cluster for ClusterCalls {
    async fn cluster(&self) -> Result<ClusterEntry, ApiError> {
        self.ask(settings::get(&self.manager)).await
    }

    async fn update_cluster(&self, version: u64, spec: ClusterSpec, rotation: Rotation) -> Result<(), ApiError> {
        self.ask(settings::update(&self.manager, version, &spec, rotation)).await
    }

    async fn unlock_key(&self) -> Result<Option<Sensitive<String>>, ApiError> {
        self.ask(settings::unlock_key(&self.manager)).await
    }

    async fn list_nodes(&self, select: &Select) -> Result<Vec<NodeEntry>, ApiError> {
        self.ask(node::list(&self.manager, select)).await
    }

    async fn get_node(&self, id: &str) -> Result<NodeEntry, ApiError> {
        self.ask(node::get(&self.manager, id)).await
    }

    async fn update_node(&self, id: &str, version: u64, spec: NodeSpec) -> Result<(), ApiError> {
        self.ask(node::update(&self.manager, id, version, &spec)).await
    }

    async fn remove_node(&self, id: &str, force: bool) -> Result<(), ApiError> {
        self.ask(node::remove(&self.manager, id, force)).await
    }

    async fn list_services(&self, select: &Select) -> Result<Vec<Arc<Service>>, ApiError> {
        self.ask(service::list(&self.manager, select)).await
    }

    async fn get_service(&self, id: &str) -> Result<Service, ApiError> {
        self.ask(service::get(&self.manager, id, false)).await
    }

    async fn service_with_defaults(&self, id: &str) -> Result<Service, ApiError> {
        self.ask(service::get(&self.manager, id, true)).await
    }

    async fn count_tasks(&self, services: &[String]) -> Result<Vec<TaskCounts>, ApiError> {
        self.ask(service::count_tasks(&self.manager, services)).await
    }

    async fn create_service(&self, spec: ServiceSpec) -> Result<Service, ApiError> {
        self.ask(service::create(&self.manager, &spec)).await
    }

    async fn update_service(&self, id: &str, version: u64, spec: ServiceSpec, rollback: bool) -> Result<Service, ApiError> {
        self.ask(service::update(&self.manager, id, version, &spec, rollback)).await
    }

    async fn remove_service(&self, id: &str) -> Result<(), ApiError> {
        self.ask(service::remove(&self.manager, id)).await
    }

    fn advice(&self, spec: &ServiceSpec) -> Vec<String> {
        skep_manager::advice(spec).iter().map(ToString::to_string).collect()
    }

    async fn list_tasks(&self, select: &TaskSelect) -> Result<Vec<Arc<Task>>, ApiError> {
        self.ask(task::list(&self.manager, select)).await
    }

    async fn get_task(&self, id: &str) -> Result<Task, ApiError> {
        self.ask(task::get(&self.manager, id)).await
    }

    async fn list_secrets(&self, select: &Select) -> Result<Vec<Secret>, ApiError> {
        self.ask(payload::list_secrets(&self.manager, select)).await
    }

    async fn get_secret(&self, id: &str) -> Result<Secret, ApiError> {
        self.ask(payload::get_secret(&self.manager, id)).await
    }

    async fn create_secret(&self, spec: SecretSpec) -> Result<Secret, ApiError> {
        self.ask(payload::create_secret(&self.manager, &spec)).await
    }

    async fn update_secret(&self, id: &str, version: u64, spec: SecretSpec) -> Result<(), ApiError> {
        self.ask(payload::update_secret(&self.manager, id, version, &spec)).await
    }

    async fn remove_secret(&self, id: &str) -> Result<(), ApiError> {
        self.ask(payload::remove_secret(&self.manager, id)).await
    }

    async fn list_configs(&self, select: &Select) -> Result<Vec<Config>, ApiError> {
        self.ask(payload::list_configs(&self.manager, select)).await
    }

    async fn get_config(&self, id: &str) -> Result<Config, ApiError> {
        self.ask(payload::get_config(&self.manager, id)).await
    }

    async fn create_config(&self, spec: ConfigSpec) -> Result<Config, ApiError> {
        self.ask(payload::create_config(&self.manager, &spec)).await
    }

    async fn update_config(&self, id: &str, version: u64, spec: ConfigSpec) -> Result<(), ApiError> {
        self.ask(payload::update_config(&self.manager, id, version, &spec)).await
    }

    async fn remove_config(&self, id: &str) -> Result<(), ApiError> {
        self.ask(payload::remove_config(&self.manager, id)).await
    }

    async fn list_networks(&self, select: &Select) -> Result<Vec<Network>, ApiError> {
        self.ask(network::list(&self.manager, select)).await
    }

    async fn get_network(&self, id: &str) -> Result<Network, ApiError> {
        self.ask(network::get(&self.manager, id)).await
    }

    async fn create_network(&self, spec: NetworkSpec) -> Result<Network, ApiError> {
        self.ask(network::create(&self.manager, &spec)).await
    }

    async fn remove_network(&self, id: &str) -> Result<(), ApiError> {
        self.ask(network::remove(&self.manager, id)).await
    }

    async fn logs(&self, source: LogSource, select: LogSelect) -> Result<BoxStream<'static, Result<LogRecord, ApiError>>, ApiError> {
        self.ask(logs::subscribe(&self.manager, source, select)).await
    }
}
