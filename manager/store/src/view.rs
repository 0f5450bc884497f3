//! A cheap handle on the tables at one moment.

use crate::table::Tables;
use skep_types::{
    Cluster, ClusterView, Config, ConfigId, Network, NetworkId, Node, NodeId, Objects, Secret, SecretId, Service, ServiceId, Task, TaskId,
    TaskState, Version,
};
use std::ops::Deref;
use std::sync::Arc;

/// The cluster at one revision: immutable, one reference count to clone, valid for as long as it is held.
///
/// It keeps the objects it shows in memory; do not hold one for hours.
#[derive(Clone, Debug, Default)]
pub struct View(Arc<Tables>);

impl View {
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.0
    }
}

impl From<Tables> for View {
    fn from(tables: Tables) -> Self {
        Self(Arc::new(tables))
    }
}

impl Deref for View {
    type Target = Tables;
    fn deref(&self) -> &Tables {
        &self.0
    }
}

macro_rules! delegate {
    ($(fn $name:ident(&self $(, $arg:ident: $type:ty)?) -> $out:ty;)*) => {
        impl ClusterView for View {
            $(fn $name(&self $(, $arg: $type)?) -> $out {
                ClusterView::$name(&*self.0 $(, $arg)?)
            })*
        }
    };
}

delegate! {
    fn version(&self) -> Version;
    fn cluster(&self) -> Option<&Arc<Cluster>>;
    fn node(&self, id: &NodeId) -> Option<&Arc<Node>>;
    fn nodes(&self) -> Objects<'_, Node>;
    fn service(&self, id: &ServiceId) -> Option<&Arc<Service>>;
    fn service_by_name(&self, name: &str) -> Option<&Arc<Service>>;
    fn services(&self) -> Objects<'_, Service>;
    fn task(&self, id: &TaskId) -> Option<&Arc<Task>>;
    fn tasks(&self) -> Objects<'_, Task>;
    fn tasks_of_service(&self, id: &ServiceId) -> Objects<'_, Task>;
    fn tasks_on_node(&self, id: &NodeId) -> Objects<'_, Task>;
    fn tasks_in_state(&self, state: TaskState) -> Objects<'_, Task>;
    fn network(&self, id: &NetworkId) -> Option<&Arc<Network>>;
    fn network_by_name(&self, name: &str) -> Option<&Arc<Network>>;
    fn networks(&self) -> Objects<'_, Network>;
    fn secret(&self, id: &SecretId) -> Option<&Arc<Secret>>;
    fn secret_by_name(&self, name: &str) -> Option<&Arc<Secret>>;
    fn secrets(&self) -> Objects<'_, Secret>;
    fn config(&self, id: &ConfigId) -> Option<&Arc<Config>>;
    fn config_by_name(&self, name: &str) -> Option<&Arc<Config>>;
    fn configs(&self) -> Objects<'_, Config>;
}
