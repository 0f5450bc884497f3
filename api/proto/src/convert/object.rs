//! Any object of the store, as `Watch` and tools carry it.

use super::{FromWire, ToWire, plain};
use crate::v1;
use skep_types::{FieldError, Object};
use std::sync::Arc;
use v1::object::Object as Wire;

impl FromWire for Object {
    type Wire = v1::Object;
    fn from_wire(wire: v1::Object) -> Result<Self, FieldError> {
        let unsupported = |field: &str| Err(FieldError::new(field, "objects of this kind are not supported"));
        match wire.object {
            Some(Wire::Node(object)) => plain::from("node", object).map(Arc::new).map(Self::Node),
            Some(Wire::Service(object)) => plain::from("service", object).map(Arc::new).map(Self::Service),
            Some(Wire::Network(object)) => plain::from("network", object).map(Arc::new).map(Self::Network),
            Some(Wire::Task(object)) => plain::from("task", object).map(Arc::new).map(Self::Task),
            Some(Wire::Cluster(object)) => plain::from("cluster", object).map(Arc::new).map(Self::Cluster),
            Some(Wire::Secret(object)) => plain::from("secret", object).map(Arc::new).map(Self::Secret),
            Some(Wire::Config(object)) => plain::from("config", object).map(Arc::new).map(Self::Config),
            Some(Wire::Resource(_)) => unsupported("resource"),
            Some(Wire::Extension(_)) => unsupported("extension"),
            Some(Wire::Volume(_)) => unsupported("volume"),
            None => Err(FieldError::new("", "is empty; one kind of object must be given")),
        }
    }
}

impl ToWire for Object {
    type Wire = v1::Object;

    /// Nothing is redacted: for clients, see [`crate::redact_cluster`] and [`crate::redact_secret`].
    fn to_wire(&self) -> v1::Object {
        let object = match self {
            Self::Node(object) => Wire::Node(object.to_wire()),
            Self::Service(object) => Wire::Service(object.to_wire()),
            Self::Network(object) => Wire::Network(object.to_wire()),
            Self::Task(object) => Wire::Task(object.to_wire()),
            Self::Cluster(object) => Wire::Cluster(object.to_wire()),
            Self::Secret(object) => Wire::Secret(object.to_wire()),
            Self::Config(object) => Wire::Config(object.to_wire()),
        };
        v1::Object { object: Some(object) }
    }
}
