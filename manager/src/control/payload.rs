//! Secrets and configs: create, get, list, update (labels only), remove. What differs between the two is small.

use super::errors::{id, invalid, missing, out_of_sequence};
use super::filter::{self, common};
use super::validate;
use crate::shared::Shared;
use skep_proto::{ToWire as _, parse_required, redact_secret, v1};
use skep_types::{
    Action, Annotations, ClusterView as _, Config, ConfigId, ConfigSpec, FieldError, Kind, Object, ResourceKind, Secret, SecretId,
    SecretSpec, TaskSpec, Version,
};
use std::sync::Arc;
use tonic::Status;

/// A secret as clients see it: without its data.
fn answer(secret: &Secret) -> v1::Secret {
    let mut wire = secret.to_wire();
    redact_secret(&mut wire);
    wire
}

pub(super) async fn create_secret(shared: &Shared, request: v1::CreateSecretRequest) -> Result<v1::CreateSecretResponse, Status> {
    let spec: SecretSpec = parse_required("spec", request.spec).map_err(invalid)?;
    validate::secret(&spec).map_err(|error| invalid(error.inside("spec")))?;
    if spec.driver.is_some() {
        return Err(Status::unimplemented("spec.driver: secret drivers are not supported"));
    }
    let secret = Secret { id: SecretId::from_random(rand::random()), meta: Default::default(), spec, internal: false };
    let id = secret.id.clone();
    shared.write(vec![Action::Create(Object::Secret(Arc::new(secret)))]).await?;
    let view = shared.store.view();
    let secret = view.secret(&id).ok_or_else(|| missing(Kind::Secret, id.as_str()))?;
    tracing::info!(secret = %id, "secret created");
    Ok(v1::CreateSecretResponse { secret: Some(answer(secret)) })
}

pub(super) fn get_secret(shared: &Shared, request: &v1::GetSecretRequest) -> Result<v1::GetSecretResponse, Status> {
    let id: SecretId = id("secret_id", &request.secret_id)?;
    let view = shared.store.view();
    let secret = view.secret(&id).ok_or_else(|| missing(Kind::Secret, id.as_str()))?;
    Ok(v1::GetSecretResponse { secret: Some(answer(secret)) })
}

pub(super) fn list_secrets(shared: &Shared, request: v1::ListSecretsRequest) -> v1::ListSecretsResponse {
    let filters = request.filters.unwrap_or_default();
    let view = shared.store.view();
    let wanted = |secret: &&Arc<Secret>| {
        !secret.internal
            && common!(filters).any(secret.id.as_str(), &secret.spec.annotations.name)
            && filter::labels(&filters.labels, &secret.spec.annotations.labels)
    };
    v1::ListSecretsResponse { secrets: view.secrets().filter(wanted).map(|secret| answer(secret)).collect() }
}

pub(super) async fn update_secret(shared: &Shared, request: v1::UpdateSecretRequest) -> Result<v1::UpdateSecretResponse, Status> {
    let id: SecretId = id("secret_id", &request.secret_id)?;
    let version: Version = parse_required("secret_version", request.secret_version).map_err(invalid)?;
    let spec: SecretSpec = parse_required("spec", request.spec).map_err(invalid)?;
    let new = {
        let view = shared.store.view();
        let secret = view.secret(&id).ok_or_else(|| missing(Kind::Secret, id.as_str()))?;
        check_version(secret.meta.version, version)?;
        let same_data = spec.data.0.is_empty() || spec.data == secret.spec.data;
        let same = same_data && spec.driver == secret.spec.driver && spec.templating == secret.spec.templating;
        let annotations = only_labels(&secret.spec.annotations, spec.annotations, same)?;
        Secret { spec: SecretSpec { annotations, ..secret.spec.clone() }, ..Secret::clone(secret) }
    };
    shared.write(vec![Action::Update(Object::Secret(Arc::new(new)))]).await?;
    let view = shared.store.view();
    let secret = view.secret(&id).ok_or_else(|| missing(Kind::Secret, id.as_str()))?;
    Ok(v1::UpdateSecretResponse { secret: Some(answer(secret)) })
}

pub(super) async fn remove_secret(shared: &Shared, request: v1::RemoveSecretRequest) -> Result<v1::RemoveSecretResponse, Status> {
    let id: SecretId = id("secret_id", &request.secret_id)?;
    let action = {
        let view = shared.store.view();
        let secret = view.secret(&id).ok_or_else(|| missing(Kind::Secret, id.as_str()))?;
        let uses = |spec: &TaskSpec| {
            refers(spec, ResourceKind::Secret, id.as_str())
                || spec.container().is_some_and(|container| container.secrets.iter().any(|reference| reference.secret_id == id))
        };
        check_unused(shared, Kind::Secret, &secret.spec.annotations.name, uses)?;
        Action::Remove { kind: Kind::Secret, id: id.to_string(), version: Some(secret.meta.version) }
    };
    shared.write(vec![action]).await?;
    tracing::info!(secret = %id, "secret removed");
    Ok(v1::RemoveSecretResponse {})
}

pub(super) async fn create_config(shared: &Shared, request: v1::CreateConfigRequest) -> Result<v1::CreateConfigResponse, Status> {
    let spec: ConfigSpec = parse_required("spec", request.spec).map_err(invalid)?;
    validate::config(&spec).map_err(|error| invalid(error.inside("spec")))?;
    let config = Config { id: ConfigId::from_random(rand::random()), meta: Default::default(), spec };
    let id = config.id.clone();
    shared.write(vec![Action::Create(Object::Config(Arc::new(config)))]).await?;
    let view = shared.store.view();
    let config = view.config(&id).ok_or_else(|| missing(Kind::Config, id.as_str()))?;
    Ok(v1::CreateConfigResponse { config: Some(config.to_wire()) })
}

pub(super) fn get_config(shared: &Shared, request: &v1::GetConfigRequest) -> Result<v1::GetConfigResponse, Status> {
    let id: ConfigId = id("config_id", &request.config_id)?;
    let view = shared.store.view();
    let config = view.config(&id).ok_or_else(|| missing(Kind::Config, id.as_str()))?;
    Ok(v1::GetConfigResponse { config: Some(config.to_wire()) })
}

pub(super) fn list_configs(shared: &Shared, request: v1::ListConfigsRequest) -> v1::ListConfigsResponse {
    let filters = request.filters.unwrap_or_default();
    let view = shared.store.view();
    let wanted = |config: &&Arc<Config>| {
        common!(filters).any(config.id.as_str(), &config.spec.annotations.name)
            && filter::labels(&filters.labels, &config.spec.annotations.labels)
    };
    v1::ListConfigsResponse { configs: view.configs().filter(wanted).map(|config| config.to_wire()).collect() }
}

pub(super) async fn update_config(shared: &Shared, request: v1::UpdateConfigRequest) -> Result<v1::UpdateConfigResponse, Status> {
    let id: ConfigId = id("config_id", &request.config_id)?;
    let version: Version = parse_required("config_version", request.config_version).map_err(invalid)?;
    let spec: ConfigSpec = parse_required("spec", request.spec).map_err(invalid)?;
    let new = {
        let view = shared.store.view();
        let config = view.config(&id).ok_or_else(|| missing(Kind::Config, id.as_str()))?;
        check_version(config.meta.version, version)?;
        let same = (spec.data.0.is_empty() || spec.data == config.spec.data) && spec.templating == config.spec.templating;
        let annotations = only_labels(&config.spec.annotations, spec.annotations, same)?;
        Config { spec: ConfigSpec { annotations, ..config.spec.clone() }, ..Config::clone(config) }
    };
    shared.write(vec![Action::Update(Object::Config(Arc::new(new)))]).await?;
    let view = shared.store.view();
    let config = view.config(&id).ok_or_else(|| missing(Kind::Config, id.as_str()))?;
    Ok(v1::UpdateConfigResponse { config: Some(config.to_wire()) })
}

pub(super) async fn remove_config(shared: &Shared, request: v1::RemoveConfigRequest) -> Result<v1::RemoveConfigResponse, Status> {
    let id: ConfigId = id("config_id", &request.config_id)?;
    let action = {
        let view = shared.store.view();
        let config = view.config(&id).ok_or_else(|| missing(Kind::Config, id.as_str()))?;
        let uses = |spec: &TaskSpec| {
            refers(spec, ResourceKind::Config, id.as_str())
                || spec.container().is_some_and(|container| container.configs.iter().any(|reference| reference.config_id == id))
        };
        check_unused(shared, Kind::Config, &config.spec.annotations.name, uses)?;
        Action::Remove { kind: Kind::Config, id: id.to_string(), version: Some(config.meta.version) }
    };
    shared.write(vec![action]).await?;
    Ok(v1::RemoveConfigResponse {})
}

fn check_version(stored: Version, given: Version) -> Result<(), Status> {
    if stored == given { Ok(()) } else { Err(out_of_sequence()) }
}

/// Only labels may change: tasks hold what the rest was when they started.
fn only_labels(before: &Annotations, after: Annotations, rest_is_same: bool) -> Result<Annotations, Status> {
    if after.name != before.name || !rest_is_same {
        return Err(invalid(FieldError::new("spec", "only updates to Labels are allowed; create another one under a new name")));
    }
    validate::labels(&after).map_err(|error| invalid(error.inside("spec.annotations")))?;
    Ok(after)
}

fn refers(spec: &TaskSpec, kind: ResourceKind, id: &str) -> bool {
    spec.resource_references.iter().any(|reference| reference.kind == kind && reference.resource_id == id)
}

fn check_unused(shared: &Shared, kind: Kind, name: &str, uses: impl Fn(&TaskSpec) -> bool) -> Result<(), Status> {
    let view = shared.store.view();
    let users: Vec<&str> = view.services().filter(|service| uses(&service.spec.task)).map(|service| service.name()).collect();
    if users.is_empty() {
        return Ok(());
    }
    let word = if kind == Kind::Secret { "secret" } else { "config" };
    let services = if users.len() == 1 { "service" } else { "services" };
    Err(Status::invalid_argument(format!("{word} '{name}' is in use by the following {services}: {}", users.join(", "))))
}
