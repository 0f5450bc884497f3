//! Secrets and configs.

use crate::docker::manager::{Manager, answer, read_all, read_one};
use skep_docker_api::{ApiError, Select};
use skep_proto::{ToWire as _, v1};
use skep_types::{Config, ConfigSpec, Secret, SecretSpec};

/// The control API takes names and beginnings of ids of these as alternatives.
pub async fn list_secrets(manager: &Manager, select: &Select) -> Result<Vec<Secret>, ApiError> {
    let Select { ids, names } = select.clone();
    let filters = v1::list_secrets_request::Filters { names, id_prefixes: ids, ..Default::default() };
    let request = v1::ListSecretsRequest { filters: Some(filters) };
    read_all("secret", answer(manager.control().list_secrets(request)).await?.secrets)
}

pub async fn get_secret(manager: &Manager, id: &str) -> Result<Secret, ApiError> {
    let request = v1::GetSecretRequest { secret_id: id.to_owned() };
    read_one("secret", answer(manager.control().get_secret(request)).await?.secret)
}

pub async fn create_secret(manager: &Manager, spec: &SecretSpec) -> Result<Secret, ApiError> {
    let request = v1::CreateSecretRequest { spec: Some(spec.to_wire()) };
    read_one("secret", answer(manager.control().create_secret(request)).await?.secret)
}

pub async fn update_secret(manager: &Manager, id: &str, version: u64, spec: &SecretSpec) -> Result<(), ApiError> {
    let secret_version = Some(v1::Version { index: version });
    let request = v1::UpdateSecretRequest { secret_id: id.to_owned(), secret_version, spec: Some(spec.to_wire()) };
    answer(manager.control().update_secret(request)).await.map(drop)
}

pub async fn remove_secret(manager: &Manager, id: &str) -> Result<(), ApiError> {
    answer(manager.control().remove_secret(v1::RemoveSecretRequest { secret_id: id.to_owned() })).await.map(drop)
}

pub async fn list_configs(manager: &Manager, select: &Select) -> Result<Vec<Config>, ApiError> {
    let Select { ids, names } = select.clone();
    let filters = v1::list_configs_request::Filters { names, id_prefixes: ids, ..Default::default() };
    let request = v1::ListConfigsRequest { filters: Some(filters) };
    read_all("config", answer(manager.control().list_configs(request)).await?.configs)
}

pub async fn get_config(manager: &Manager, id: &str) -> Result<Config, ApiError> {
    let request = v1::GetConfigRequest { config_id: id.to_owned() };
    read_one("config", answer(manager.control().get_config(request)).await?.config)
}

pub async fn create_config(manager: &Manager, spec: &ConfigSpec) -> Result<Config, ApiError> {
    let request = v1::CreateConfigRequest { spec: Some(spec.to_wire()) };
    read_one("config", answer(manager.control().create_config(request)).await?.config)
}

pub async fn update_config(manager: &Manager, id: &str, version: u64, spec: &ConfigSpec) -> Result<(), ApiError> {
    let config_version = Some(v1::Version { index: version });
    let request = v1::UpdateConfigRequest { config_id: id.to_owned(), config_version, spec: Some(spec.to_wire()) };
    answer(manager.control().update_config(request)).await.map(drop)
}

pub async fn remove_config(manager: &Manager, id: &str) -> Result<(), ApiError> {
    answer(manager.control().remove_config(v1::RemoveConfigRequest { config_id: id.to_owned() })).await.map(drop)
}
