//! Amounts of CPU, memory and named things; platforms.

use super::{FromWire, ToWire, message, plain};
use crate::v1;
use skep_types::{FieldError, GenericResource, Platform, ResourceRequirements, Resources};
use v1::generic_resource::Resource;

message!(Platform <=> v1::Platform { architecture, os });
message!(Resources <=> v1::Resources { nano_cpus, memory_bytes, generic });
message!(ResourceRequirements <=> v1::ResourceRequirements { limits => full, reservations => full, swap_bytes, memory_swappiness });

impl FromWire for GenericResource {
    type Wire = v1::GenericResource;
    fn from_wire(wire: v1::GenericResource) -> Result<Self, FieldError> {
        match wire.resource {
            Some(Resource::NamedResourceSpec(v1::NamedGenericResource { kind, value })) => Ok(Self::Named {
                kind: plain::from("named_resource_spec.kind", kind)?,
                value: plain::from("named_resource_spec.value", value)?,
            }),
            Some(Resource::DiscreteResourceSpec(v1::DiscreteGenericResource { kind, value })) => {
                Ok(Self::Discrete { kind: plain::from("discrete_resource_spec.kind", kind)?, value })
            }
            None => Err(FieldError::new("", "is empty; give named_resource_spec or discrete_resource_spec")),
        }
    }
}

impl ToWire for GenericResource {
    type Wire = v1::GenericResource;
    fn to_wire(&self) -> v1::GenericResource {
        let resource = match self.clone() {
            Self::Named { kind, value } => Resource::NamedResourceSpec(v1::NamedGenericResource { kind, value }),
            Self::Discrete { kind, value } => Resource::DiscreteResourceSpec(v1::DiscreteGenericResource { kind, value }),
        };
        v1::GenericResource { resource: Some(resource) }
    }
}
