//! What tasks may use and what is kept free for them.

use super::value::{is_default, list};
use serde::{Deserialize, Serialize};
use skep_types::{FieldError, GenericResource as Generic, ResourceRequirements as Wish};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ResourceRequirements {
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Option<Limit>,
    #[serde(skip_serializing_if = "is_default")]
    pub reservations: Option<Resources>,
    /// From 1.52 on; taken from everybody, because it can be carried out.
    #[serde(skip_serializing_if = "is_default")]
    pub swap_bytes: Option<i64>,
    #[serde(skip_serializing_if = "is_default")]
    pub memory_swappiness: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Limit {
    #[serde(rename = "NanoCPUs", skip_serializing_if = "is_default")]
    pub nano_cpus: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub memory_bytes: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub pids: i64,
}

/// Of a task that reserves them, or of a node that has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resources {
    #[serde(rename = "NanoCPUs", skip_serializing_if = "is_default")]
    pub nano_cpus: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub memory_bytes: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub generic_resources: Vec<GenericResource>,
}

/// One of the two is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GenericResource {
    #[serde(skip_serializing_if = "is_default")]
    pub named_resource_spec: Option<NamedGenericResource>,
    #[serde(skip_serializing_if = "is_default")]
    pub discrete_resource_spec: Option<DiscreteGenericResource>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NamedGenericResource {
    #[serde(skip_serializing_if = "is_default")]
    pub kind: String,
    #[serde(skip_serializing_if = "is_default")]
    pub value: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DiscreteGenericResource {
    #[serde(skip_serializing_if = "is_default")]
    pub kind: String,
    #[serde(skip_serializing_if = "is_default")]
    pub value: i64,
}

impl ResourceRequirements {
    /// What the cluster keeps with the resources, and the limit of processes, which it keeps with the container.
    pub(crate) fn into_wish(self) -> Result<(Wish, i64), FieldError> {
        let Self { limits, reservations, swap_bytes, memory_swappiness } = self;
        let limits = limits.unwrap_or_default();
        let reservations = reservations.unwrap_or_default();
        let generic = list("GenericResources", reservations.generic_resources).map_err(|error| error.inside("Reservations"))?;
        let wish = Wish {
            limits: skep_types::Resources { nano_cpus: limits.nano_cpus, memory_bytes: limits.memory_bytes, generic: Vec::new() },
            reservations: skep_types::Resources { nano_cpus: reservations.nano_cpus, memory_bytes: reservations.memory_bytes, generic },
            swap_bytes,
            memory_swappiness,
        };
        Ok((wish, limits.pids))
    }

    /// The other way round; `None`: nothing is asked for. A half in which nothing is asked for is left out: Terraform would take an
    /// empty one for a difference.
    pub(crate) fn of_wish(wish: Option<&Wish>, pids: i64) -> Option<Self> {
        if wish.is_none() && pids == 0 {
            return None;
        }
        let Wish { limits, reservations, swap_bytes, memory_swappiness } = wish.cloned().unwrap_or_default();
        let limits = Limit { nano_cpus: limits.nano_cpus, memory_bytes: limits.memory_bytes, pids };
        Some(Self {
            limits: (limits != Limit::default()).then_some(limits),
            reservations: (reservations != skep_types::Resources::default()).then(|| (&reservations).into()),
            swap_bytes,
            memory_swappiness,
        })
    }
}

impl From<&skep_types::Resources> for Resources {
    fn from(amount: &skep_types::Resources) -> Self {
        let skep_types::Resources { nano_cpus, memory_bytes, generic } = amount;
        Self { nano_cpus: *nano_cpus, memory_bytes: *memory_bytes, generic_resources: generic.iter().map(Into::into).collect() }
    }
}

impl TryFrom<GenericResource> for Generic {
    type Error = FieldError;

    fn try_from(json: GenericResource) -> Result<Self, FieldError> {
        match (json.named_resource_spec, json.discrete_resource_spec) {
            (Some(NamedGenericResource { kind, value }), None) => Ok(Self::Named { kind, value }),
            (None, Some(DiscreteGenericResource { kind, value })) => Ok(Self::Discrete { kind, value }),
            _ => Err(FieldError::new("", "must be either a NamedResourceSpec or a DiscreteResourceSpec")),
        }
    }
}

impl From<&Generic> for GenericResource {
    fn from(resource: &Generic) -> Self {
        match resource.clone() {
            Generic::Named { kind, value } => {
                Self { named_resource_spec: Some(NamedGenericResource { kind, value }), discrete_resource_spec: None }
            }
            Generic::Discrete { kind, value } => {
                Self { named_resource_spec: None, discrete_resource_spec: Some(DiscreteGenericResource { kind, value }) }
            }
        }
    }
}
