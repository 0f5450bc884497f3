//! Secrets and configs that a container is given.

use super::value::is_default;
use serde::{Deserialize, Serialize};
use skep_types::{BadId, ConfigTarget, FieldError, FileTarget as Target};

/// Where in the container: all keys are always there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FileTarget {
    pub name: String,
    #[serde(rename = "UID")]
    pub uid: String,
    #[serde(rename = "GID")]
    pub gid: String,
    /// Permission bits, with Go's bits for setuid, setgid and sticky.
    pub mode: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SecretReference {
    pub file: Option<FileTarget>,
    #[serde(rename = "SecretID")]
    pub secret_id: String,
    pub secret_name: String,
}

/// For the runtime itself, in no file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeTarget {}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConfigReference {
    #[serde(skip_serializing_if = "is_default")]
    pub file: Option<FileTarget>,
    #[serde(skip_serializing_if = "is_default")]
    pub runtime: Option<RuntimeTarget>,
    #[serde(rename = "ConfigID")]
    pub config_id: String,
    pub config_name: String,
}

impl From<FileTarget> for Target {
    fn from(json: FileTarget) -> Self {
        let FileTarget { name, uid, gid, mode } = json;
        Self { name, uid, gid, mode }
    }
}

impl From<&Target> for FileTarget {
    fn from(target: &Target) -> Self {
        let Target { name, uid, gid, mode } = target.clone();
        Self { name, uid, gid, mode }
    }
}

fn id<T: std::str::FromStr<Err = BadId>>(field: &str, text: &str) -> Result<T, FieldError> {
    text.parse().map_err(|error: BadId| FieldError::new(field, error.to_string()))
}

impl TryFrom<SecretReference> for skep_types::SecretReference {
    type Error = FieldError;

    fn try_from(json: SecretReference) -> Result<Self, FieldError> {
        let SecretReference { file, secret_id, secret_name } = json;
        Ok(Self { secret_id: id("SecretID", &secret_id)?, secret_name, file: file.map(Into::into) })
    }
}

impl From<&skep_types::SecretReference> for SecretReference {
    fn from(wish: &skep_types::SecretReference) -> Self {
        let skep_types::SecretReference { secret_id, secret_name, file } = wish;
        Self { file: file.as_ref().map(Into::into), secret_id: secret_id.to_string(), secret_name: secret_name.clone() }
    }
}

impl TryFrom<ConfigReference> for skep_types::ConfigReference {
    type Error = FieldError;

    fn try_from(json: ConfigReference) -> Result<Self, FieldError> {
        let ConfigReference { file, runtime, config_id, config_name } = json;
        let target = match (file, runtime) {
            (Some(file), None) => Some(ConfigTarget::File(file.into())),
            (None, Some(RuntimeTarget {})) => Some(ConfigTarget::Runtime),
            (None, None) => None,
            (Some(_), Some(_)) => return Err(FieldError::new("Runtime", "is given together with File; give one of the two")),
        };
        Ok(Self { config_id: id("ConfigID", &config_id)?, config_name, target })
    }
}

impl From<&skep_types::ConfigReference> for ConfigReference {
    fn from(wish: &skep_types::ConfigReference) -> Self {
        let skep_types::ConfigReference { config_id, config_name, target } = wish;
        let (file, runtime) = match target {
            Some(ConfigTarget::File(file)) => (Some(file.into()), None),
            Some(ConfigTarget::Runtime) => (None, Some(RuntimeTarget {})),
            None => (None, None),
        };
        Self { file, runtime, config_id: config_id.to_string(), config_name: config_name.clone() }
    }
}
