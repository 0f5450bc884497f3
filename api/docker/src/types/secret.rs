//! Secrets and configs.

use super::common::Head;
use super::driver::Driver;
use super::value::is_default;
use crate::body::Base64;
use serde::{Deserialize, Serialize};
use skep_types::{
    Annotations, Config as ClusterConfig, ConfigSpec as WantedConfig, Labels, Secret as ClusterSecret, SecretSpec as WantedSecret,
    Sensitive,
};

/// Of a secret or a config.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Payload<S> {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub head: Head,
    pub spec: S,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct SecretSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    pub labels: Labels,
    /// Only in requests.
    #[serde(skip_serializing)]
    pub data: Base64,
    #[serde(skip_serializing_if = "is_default")]
    pub driver: Option<Driver>,
    #[serde(skip_serializing_if = "is_default")]
    pub templating: Option<Driver>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ConfigSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    pub labels: Labels,
    #[serde(skip_serializing_if = "Base64::is_empty")]
    pub data: Base64,
    #[serde(skip_serializing_if = "is_default")]
    pub templating: Option<Driver>,
}

impl From<&ClusterSecret> for Payload<SecretSpec> {
    fn from(secret: &ClusterSecret) -> Self {
        let WantedSecret { annotations, data: _, templating, driver } = &secret.spec;
        let spec = SecretSpec {
            name: annotations.name.clone(),
            labels: annotations.labels.clone(),
            data: Base64::default(),
            driver: driver.as_ref().map(Into::into),
            templating: templating.as_ref().map(Into::into),
        };
        Self { id: secret.id.to_string(), head: (&secret.meta).into(), spec }
    }
}

impl From<&ClusterConfig> for Payload<ConfigSpec> {
    fn from(config: &ClusterConfig) -> Self {
        let WantedConfig { annotations, data, templating } = &config.spec;
        let spec = ConfigSpec {
            name: annotations.name.clone(),
            labels: annotations.labels.clone(),
            data: Base64(data.0.clone()),
            templating: templating.as_ref().map(Into::into),
        };
        Self { id: config.id.to_string(), head: (&config.meta).into(), spec }
    }
}

impl From<SecretSpec> for WantedSecret {
    fn from(json: SecretSpec) -> Self {
        let SecretSpec { name, labels, data, driver, templating } = json;
        let annotations = Annotations { name, labels, indices: Vec::new() };
        Self { annotations, data: Sensitive(data.0), templating: templating.map(Into::into), driver: driver.map(Into::into) }
    }
}

impl From<ConfigSpec> for WantedConfig {
    fn from(json: ConfigSpec) -> Self {
        let ConfigSpec { name, labels, data, templating } = json;
        let annotations = Annotations { name, labels, indices: Vec::new() };
        Self { annotations, data: Sensitive(data.0), templating: templating.map(Into::into) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{ConfigId, SecretId};

    #[test]
    fn data_of_configs_is_shown_and_that_of_secrets_never() {
        let json = serde_json::json!({"name": "x", "Labels": {"a": "b"}, "Data": "aGk=", "Templating": {"Name": "golang"}});
        let spec: SecretSpec = crate::body::from_value(json.clone()).unwrap();
        let secret = ClusterSecret { id: SecretId::for_test(1), meta: Default::default(), spec: spec.into(), internal: false };
        assert_eq!(secret.spec.data.0, b"hi");
        let shown = serde_json::to_value(Payload::from(&secret)).unwrap();
        assert_eq!(shown["Spec"], serde_json::json!({"Name": "x", "Labels": {"a": "b"}, "Templating": {"Name": "golang"}}));
        let spec: ConfigSpec = crate::body::from_value(json).unwrap();
        let config = ClusterConfig { id: ConfigId::for_test(1), meta: Default::default(), spec: spec.into() };
        assert_eq!(serde_json::to_value(Payload::from(&config)).unwrap()["Spec"]["Data"], "aGk=");
    }
}
