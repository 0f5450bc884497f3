//! A driver by name with its options: of logs, volumes, secrets, templates.

use super::value::is_default;
use serde::{Deserialize, Serialize};
use skep_types::Labels;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Driver {
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub options: Labels,
}

impl From<Driver> for skep_types::Driver {
    fn from(json: Driver) -> Self {
        let Driver { name, options } = json;
        Self { name, options }
    }
}

impl From<&skep_types::Driver> for Driver {
    fn from(driver: &skep_types::Driver) -> Self {
        let skep_types::Driver { name, options } = driver;
        Self { name: name.clone(), options: options.clone() }
    }
}
