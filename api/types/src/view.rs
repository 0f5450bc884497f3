//! How deciders see the cluster, and how they say what should change.

use crate::{
    Cluster, Config, ConfigId, Network, NetworkId, Node, NodeId, Secret, SecretId, Service, ServiceId, Task, TaskId, TaskState, TaskStatus,
    Version,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The kinds of object the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    Cluster,
    Node,
    Service,
    Task,
    Network,
    Secret,
    Config,
}

/// Any object of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    Cluster(Arc<Cluster>),
    Node(Arc<Node>),
    Service(Arc<Service>),
    Task(Arc<Task>),
    Network(Arc<Network>),
    Secret(Arc<Secret>),
    Config(Arc<Config>),
}

impl Object {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Cluster(_) => Kind::Cluster,
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::Task(_) => Kind::Task,
            Self::Network(_) => Kind::Network,
            Self::Secret(_) => Kind::Secret,
            Self::Config(_) => Kind::Config,
        }
    }

    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Cluster(object) => object.id.as_str(),
            Self::Node(object) => object.id.as_str(),
            Self::Service(object) => object.id.as_str(),
            Self::Task(object) => object.id.as_str(),
            Self::Network(object) => object.id.as_str(),
            Self::Secret(object) => object.id.as_str(),
            Self::Config(object) => object.id.as_str(),
        }
    }

    #[must_use]
    pub fn version(&self) -> Version {
        match self {
            Self::Cluster(object) => object.meta.version,
            Self::Node(object) => object.meta.version,
            Self::Service(object) => object.meta.version,
            Self::Task(object) => object.meta.version,
            Self::Network(object) => object.meta.version,
            Self::Secret(object) => object.meta.version,
            Self::Config(object) => object.meta.version,
        }
    }
}

/// One change to one object, as proposed to the store.
///
/// The actions of one proposal are applied together or not at all. The store fills `meta` in: `version` from the commit,
/// times from the proposal's time stamp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Fails if the id, or for named kinds the name (ignoring case), is taken.
    Create(Object),
    /// Replaces the object. Fails as stale if the stored version is not the object's `meta.version`, i.e. the version it was
    /// decided on.
    Update(Object),
    /// Fails as stale if `version` is given and not the stored one; removing what is gone is not an error.
    Remove { kind: Kind, id: String, version: Option<Version> },
    /// A report about a task. Ignored if the task is gone or would go back; never stale.
    SetTaskStatus { task: TaskId, status: TaskStatus },
    /// A wish for a task. Ignored if the task is gone or its desired state is already as high; never stale.
    SetTaskDesired { task: TaskId, desired: TaskState },
}

/// What happened to an object in a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Created(Object),
    Updated { old: Object, new: Object },
    Removed(Object),
}

impl Change {
    /// The object as it is now, or as it last was.
    #[must_use]
    pub fn object(&self) -> &Object {
        match self {
            Self::Created(object) | Self::Updated { new: object, .. } | Self::Removed(object) => object,
        }
    }
}

/// An iterator over shared objects of a view.
pub type Objects<'a, T> = Box<dyn Iterator<Item = &'a Arc<T>> + 'a>;

/// The cluster at one moment, immutable. Lookups cost O(log n) or less; iterators cost O(what they return).
///
/// The store's views implement it, and so does whatever a test or the simulator builds.
pub trait ClusterView {
    fn version(&self) -> Version;
    fn cluster(&self) -> Option<&Arc<Cluster>>;
    fn node(&self, id: &NodeId) -> Option<&Arc<Node>>;
    fn nodes(&self) -> Objects<'_, Node>;
    fn service(&self, id: &ServiceId) -> Option<&Arc<Service>>;
    /// Names are compared ignoring case.
    fn service_by_name(&self, name: &str) -> Option<&Arc<Service>>;
    fn services(&self) -> Objects<'_, Service>;
    fn task(&self, id: &TaskId) -> Option<&Arc<Task>>;
    fn tasks(&self) -> Objects<'_, Task>;
    fn tasks_of_service(&self, id: &ServiceId) -> Objects<'_, Task>;
    fn tasks_on_node(&self, id: &NodeId) -> Objects<'_, Task>;
    /// Tasks whose observed state is exactly this one; how the allocator (NEW) and the scheduler (PENDING) find their work.
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
