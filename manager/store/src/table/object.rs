//! What all kinds of object have in common, and the table of one kind.

use imbl::OrdMap;
use skep_types::{
    Cluster, ClusterId, Config, ConfigId, Kind, Meta, Network, NetworkId, Node, NodeId, Object, Secret, SecretId, Service, ServiceId, Task,
    TaskId,
};
use std::sync::Arc;

/// An object with an id and [`Meta`].
pub(super) trait Stored: Clone + PartialEq {
    type Id: Clone + Ord + std::str::FromStr + std::fmt::Display;
    const KIND: Kind;
    fn id(&self) -> &Self::Id;
    fn meta(&self) -> &Meta;
    fn meta_mut(&mut self) -> &mut Meta;
    /// The name that no other object of the kind may have, ignoring case; empty for kinds whose names are free.
    fn unique_name(&self) -> &str;
    fn wrap(object: Arc<Self>) -> Object;
}

macro_rules! stored {
    ($type:ident, $id:ident, |$object:ident| $name:expr) => {
        impl Stored for $type {
            type Id = $id;
            const KIND: Kind = Kind::$type;
            fn id(&self) -> &$id {
                &self.id
            }
            fn meta(&self) -> &Meta {
                &self.meta
            }
            fn meta_mut(&mut self) -> &mut Meta {
                &mut self.meta
            }
            fn unique_name(&self) -> &str {
                let $object = self;
                $name
            }
            fn wrap(object: Arc<Self>) -> Object {
                Object::$type(object)
            }
        }
    };
}

stored!(Cluster, ClusterId, |_object| "");
stored!(Node, NodeId, |_object| "");
stored!(Task, TaskId, |_object| "");
stored!(Service, ServiceId, |object| &object.spec.annotations.name);
stored!(Network, NetworkId, |object| &object.spec.annotations.name);
stored!(Secret, SecretId, |object| &object.spec.annotations.name);
stored!(Config, ConfigId, |object| &object.spec.annotations.name);

/// The form in which names are compared (`SK/manager/state/store/by.go` lowers them as well).
fn folded(name: &str) -> Arc<str> {
    name.to_lowercase().into()
}

/// The objects of one kind by id and by name. An empty name is not a name.
#[derive(Clone)]
pub(super) struct Table<T: Stored> {
    by_id: OrdMap<T::Id, Arc<T>>,
    by_name: OrdMap<Arc<str>, T::Id>,
}

impl<T: Stored> Default for Table<T> {
    fn default() -> Self {
        Self { by_id: OrdMap::new(), by_name: OrdMap::new() }
    }
}

impl<T: Stored> Table<T> {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn get(&self, id: &T::Id) -> Option<&Arc<T>> {
        self.by_id.get(id)
    }

    pub(super) fn get_by_name(&self, name: &str) -> Option<&Arc<T>> {
        if name.is_empty() {
            return None;
        }
        self.by_name.get(&folded(name)).and_then(|id| self.by_id.get(id))
    }

    /// Sorted by id.
    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.by_id.values()
    }

    pub(super) fn first(&self) -> Option<&Arc<T>> {
        self.by_id.get_min().map(|(_, object)| object)
    }

    /// Inserts or replaces; the former object comes back.
    pub(super) fn put(&mut self, object: Arc<T>) -> Option<Arc<T>> {
        let old = self.by_id.insert(object.id().clone(), Arc::clone(&object));
        let old_name = old.as_ref().map_or("", |old| old.unique_name());
        if old_name != object.unique_name() {
            if !old_name.is_empty() {
                self.by_name.remove(&folded(old_name));
            }
            if !object.unique_name().is_empty() {
                self.by_name.insert(folded(object.unique_name()), object.id().clone());
            }
        } else if old.is_none() && !old_name.is_empty() {
            self.by_name.insert(folded(old_name), object.id().clone());
        }
        old
    }

    pub(super) fn take(&mut self, id: &T::Id) -> Option<Arc<T>> {
        let old = self.by_id.remove(id)?;
        if !old.unique_name().is_empty() {
            self.by_name.remove(&folded(old.unique_name()));
        }
        Some(old)
    }
}
