//! What every object has: version, times, name and labels.

use crate::{Timestamp, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Key and value pairs, sorted so that every manager sees the same order.
pub type Labels = BTreeMap<String, String>;

/// Set by the store, never by a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Revision of the commit that last wrote the object; the token of optimistic concurrency.
    pub version: Version,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Revision of the commit that made the object: what came first, whatever clocks of leaders said. Never on the wire; zero in stores
    /// that an older version wrote.
    #[serde(default, skip_serializing_if = "Version::is_zero")]
    pub created: Version,
}

/// Name and labels that a user gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Annotations {
    pub name: String,
    pub labels: Labels,
    /// Extra index entries (`Annotations.indices`), kept for clients that use custom filters.
    pub indices: Vec<(String, String)>,
}

/// A driver by name with its options: of networks, logs, volumes, secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Driver {
    pub name: String,
    pub options: Labels,
}
