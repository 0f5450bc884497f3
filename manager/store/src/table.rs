//! The objects of the cluster in persistent maps: a copy costs a few reference counts and never changes.

mod apply;
mod hash;
mod index;
mod object;
mod query;

pub use apply::ApplyError;
pub use hash::StateHash;
pub(crate) use hash::{StateHasher, encode_object};

use crate::table::index::TaskIndex;
use crate::table::object::{Stored, Table};
use skep_types::{Cluster, Config, Network, Node, NodeId, Object, Secret, Service, ServiceId, Task, TaskSpec, TaskState, Version};
use std::sync::Arc;

/// Every object of the cluster with its indexes, at one revision.
///
/// Pure: no clock, no random source, no I/O. The same transactions in the same order give the same tables everywhere.
/// Cloning is cheap and the clones are independent.
#[derive(Clone, Default)]
pub struct Tables {
    revision: Version,
    clusters: Table<Cluster>,
    nodes: Table<Node>,
    services: Table<Service>,
    tasks: Table<Task>,
    networks: Table<Network>,
    secrets: Table<Secret>,
    configs: Table<Config>,
    tasks_by_service: TaskIndex<ServiceId>,
    tasks_by_node: TaskIndex<NodeId>,
    tasks_by_state: TaskIndex<TaskState>,
}

impl Tables {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The revision of the last transaction that changed something; 0 for empty tables.
    #[must_use]
    pub fn revision(&self) -> Version {
        self.revision
    }

    /// Number of objects of all kinds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clusters.len()
            + self.nodes.len()
            + self.services.len()
            + self.tasks.len()
            + self.networks.len()
            + self.secrets.len()
            + self.configs.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every object, sorted by kind and id. Tasks come after services, so that loading in this order can share specs.
    pub fn objects(&self) -> impl Iterator<Item = Object> + '_ {
        fn all<T: Stored>(table: &Table<T>) -> impl Iterator<Item = Object> + '_ {
            table.values().map(|object| T::wrap(Arc::clone(object)))
        }
        all(&self.clusters)
            .chain(all(&self.nodes))
            .chain(all(&self.networks))
            .chain(all(&self.secrets))
            .chain(all(&self.configs))
            .chain(all(&self.services))
            .chain(all(&self.tasks))
    }

    /// The spec that a task would share with its service.
    pub(crate) fn service_spec(&self, task: &Task) -> Option<&Arc<TaskSpec>> {
        task.service_id.as_ref().and_then(|id| self.services.get(id)).map(|service| &service.spec.task)
    }

    /// Puts back an object that a snapshot held, as it is.
    pub(crate) fn restore(&mut self, object: Object) {
        match object {
            Object::Cluster(object) => drop(self.clusters.put(object)),
            Object::Node(object) => drop(self.nodes.put(object)),
            Object::Network(object) => drop(self.networks.put(object)),
            Object::Secret(object) => drop(self.secrets.put(object)),
            Object::Config(object) => drop(self.configs.put(object)),
            Object::Service(object) => drop(self.services.put(object)),
            Object::Task(mut object) => {
                self.share_spec(&mut object);
                drop(self.put_task(object));
            }
        }
    }

    pub(crate) fn set_revision(&mut self, revision: Version) {
        self.revision = revision;
    }

    /// Tasks that came through the log carry a copy of their service's spec each: hold one instead of a thousand.
    fn share_spec(&self, task: &mut Arc<Task>) {
        let Some(shared) = self.service_spec(task) else { return };
        if !Arc::ptr_eq(shared, &task.spec) && **shared == *task.spec {
            Arc::make_mut(task).spec = Arc::clone(shared);
        }
    }

    fn put_task(&mut self, task: Arc<Task>) -> Option<Arc<Task>> {
        let old = self.tasks.put(Arc::clone(&task));
        if let Some(old) = &old {
            self.unindex(old, Some(&task));
        }
        if let Some(service) = &task.service_id {
            self.tasks_by_service.insert(service, &task);
        }
        if let Some(node) = &task.node_id {
            self.tasks_by_node.insert(node, &task);
        }
        self.tasks_by_state.insert(&task.status.state, &task);
        old
    }

    fn take_task(&mut self, id: &skep_types::TaskId) -> Option<Arc<Task>> {
        let old = self.tasks.take(id)?;
        self.unindex(&old, None);
        Some(old)
    }

    /// Removes `old` from the index entries that `new` will not overwrite.
    fn unindex(&mut self, old: &Task, new: Option<&Task>) {
        if let Some(service) = &old.service_id
            && new.is_none_or(|new| new.service_id.as_ref() != Some(service))
        {
            self.tasks_by_service.remove(service, &old.id);
        }
        if let Some(node) = &old.node_id
            && new.is_none_or(|new| new.node_id.as_ref() != Some(node))
        {
            self.tasks_by_node.remove(node, &old.id);
        }
        if new.is_none_or(|new| new.status.state != old.status.state) {
            self.tasks_by_state.remove(&old.status.state, &old.id);
        }
    }
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tables").field("revision", &self.revision.0).field("objects", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests;
