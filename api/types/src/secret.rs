//! Secrets and configs: payloads delivered to the tasks that reference them.

use crate::{Annotations, ConfigId, Driver, Meta, SecretId, Sensitive};
use serde::{Deserialize, Serialize};

/// Largest payload of a secret, bytes (`SK/api/validation/secrets.go`).
pub const SECRET_MAX_BYTES: usize = 500 * 1024 - 1;
/// Largest payload of a config, bytes.
pub const CONFIG_MAX_BYTES: usize = 1000 * 1024 - 1;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecretSpec {
    pub annotations: Annotations,
    pub data: Sensitive<Vec<u8>>,
    pub templating: Option<Driver>,
    pub driver: Option<Driver>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    pub id: SecretId,
    #[serde(default)]
    pub meta: Meta,
    #[serde(default)]
    pub spec: SecretSpec,
    #[serde(default)]
    pub internal: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigSpec {
    pub annotations: Annotations,
    pub data: Sensitive<Vec<u8>>,
    pub templating: Option<Driver>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub id: ConfigId,
    #[serde(default)]
    pub meta: Meta,
    #[serde(default)]
    pub spec: ConfigSpec,
}

/// Where in the container a payload appears. `mode` holds Unix permission bits with Go's FileMode bits for
/// setuid (23), setgid (22) and sticky (20), as it travels on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileTarget {
    pub name: String,
    /// Decimal text; empty = the container's root.
    pub uid: String,
    pub gid: String,
    pub mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretReference {
    pub secret_id: SecretId,
    pub secret_name: String,
    /// `None` in specs that came without a target; refused by [`crate::check`].
    pub file: Option<FileTarget>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigTarget {
    File(FileTarget),
    /// Used by the runtime itself, not mounted.
    Runtime,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReference {
    pub config_id: ConfigId,
    pub config_name: String,
    pub target: Option<ConfigTarget>,
}
