//! The tables as deciders see them.

use super::Tables;
use skep_types::{
    Cluster, ClusterView, Config, ConfigId, Network, NetworkId, Node, NodeId, Objects, Secret, SecretId, Service, ServiceId, Task, TaskId,
    TaskState, Version,
};
use std::sync::Arc;

impl ClusterView for Tables {
    fn version(&self) -> Version {
        self.revision
    }
    fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.clusters.first()
    }
    fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }
    fn nodes(&self) -> Objects<'_, Node> {
        Box::new(self.nodes.values())
    }
    fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }
    fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get_by_name(name)
    }
    fn services(&self) -> Objects<'_, Service> {
        Box::new(self.services.values())
    }
    fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }
    fn tasks(&self) -> Objects<'_, Task> {
        Box::new(self.tasks.values())
    }
    fn tasks_of_service(&self, id: &ServiceId) -> Objects<'_, Task> {
        Box::new(self.tasks_by_service.of(id))
    }
    fn tasks_on_node(&self, id: &NodeId) -> Objects<'_, Task> {
        Box::new(self.tasks_by_node.of(id))
    }
    fn tasks_in_state(&self, state: TaskState) -> Objects<'_, Task> {
        Box::new(self.tasks_by_state.of(&state))
    }
    fn network(&self, id: &NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }
    fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks.get_by_name(name)
    }
    fn networks(&self) -> Objects<'_, Network> {
        Box::new(self.networks.values())
    }
    fn secret(&self, id: &SecretId) -> Option<&Arc<Secret>> {
        self.secrets.get(id)
    }
    fn secret_by_name(&self, name: &str) -> Option<&Arc<Secret>> {
        self.secrets.get_by_name(name)
    }
    fn secrets(&self) -> Objects<'_, Secret> {
        Box::new(self.secrets.values())
    }
    fn config(&self, id: &ConfigId) -> Option<&Arc<Config>> {
        self.configs.get(id)
    }
    fn config_by_name(&self, name: &str) -> Option<&Arc<Config>> {
        self.configs.get_by_name(name)
    }
    fn configs(&self) -> Objects<'_, Config> {
        Box::new(self.configs.values())
    }
}
