//! What is wrong with a spec because of what else is in the cluster, or because of what the service is now.

use crate::allocator::{is_ingress, resolve_network};
use skep_types::{
    ClusterView, ConfigReference, FieldError, PublishMode, PublishPlace, SecretReference, Service, ServiceId, ServiceMode, ServiceSpec,
};

/// Why a service cannot be created or updated now. Each kind has its own error code on the wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// ALREADY_EXISTS. Clients match the beginning of the text.
    #[error("name conflicts with an existing object: service {0} already exists; choose another name or update that service")]
    NameTaken(String),
    /// INVALID_ARGUMENT.
    #[error(transparent)]
    Field(FieldError),
    /// FAILED_PRECONDITION.
    #[error("{field}: the service publishes ports through the ingress network, but the cluster has none; create one, or publish in host mode", field = .0)]
    NoIngress(&'static str),
}

/// Names, ports, networks, secrets and configs against the rest of the cluster. `own` = the service that is updated.
///
/// # Errors
/// [`Conflict`] for the first that collides or is missing.
pub fn check_conflicts(view: &dyn ClusterView, spec: &ServiceSpec, own: Option<&ServiceId>) -> Result<(), Conflict> {
    let name = &spec.annotations.name;
    if view.service_by_name(name).is_some_and(|holder| Some(&holder.id) != own) {
        return Err(Conflict::NameTaken(name.clone()));
    }
    check_networks(view, spec).map_err(|error| Conflict::Field(error.inside("spec")))?;
    check_ports(view, spec, own).map_err(|error| Conflict::Field(error.inside("spec")))?;
    let publishes = spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports).any(|port| port.publish_mode == PublishMode::Ingress);
    if publishes && !view.networks().any(|network| is_ingress(network)) {
        return Err(Conflict::NoIngress("spec.endpoint.ports"));
    }
    if let Some(container) = spec.task.container() {
        let inside = |error: FieldError| Conflict::Field(error.inside("spec.task.container"));
        check_secrets(view, &container.secrets).map_err(inside)?;
        check_configs(view, &container.configs).map_err(inside)?;
    }
    Ok(())
}

/// Who shares the host's network has no other, and is reached at the host's own ports.
fn check_host(name: &str, field: &str, networks: usize, spec: &ServiceSpec) -> Result<(), FieldError> {
    if networks > 1 {
        let problem =
            format!("the tasks share the host's network on {name:?} and cannot be on others as well; name this one alone, or leave it out");
        return Err(FieldError::new(field, problem));
    }
    let mut ports = spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports).enumerate();
    match ports.find(|(_, port)| port.publish_mode == PublishMode::Ingress) {
        Some((index, _)) => {
            let problem = format!(
                "no port leads to tasks on network {name:?}: they listen on the host's own ports; publish none, or use another network"
            );
            Err(FieldError::new(format!("endpoint.ports[{index}].publish_mode"), problem))
        }
        None => Ok(()),
    }
}

fn check_networks(view: &dyn ClusterView, spec: &ServiceSpec) -> Result<(), FieldError> {
    for (field, networks) in [("task.networks", &spec.task.networks), ("networks", &spec.networks)] {
        for (index, config) in networks.iter().enumerate() {
            let field = format!("{field}[{index}].target");
            match resolve_network(view, &config.target) {
                Some(network) if is_ingress(network) => {
                    return Err(FieldError::new(field, "a service joins the ingress network by publishing a port, not by naming it"));
                }
                Some(network) if network.driver() == skep_types::NetworkDriver::Host => {
                    check_host(&network.spec.annotations.name, &field, networks.len(), spec)?
                }
                Some(_) => {}
                None => return Err(FieldError::new(field, format!("network {:?} does not exist", config.target))),
            }
        }
    }
    Ok(())
}

/// A port in ingress mode collides with any use of it by another service at a place that meets its own; host mode only with
/// ingress mode.
fn check_ports(view: &dyn ClusterView, spec: &ServiceSpec, own: Option<&ServiceId>) -> Result<(), FieldError> {
    let wanted: Vec<_> =
        spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports).enumerate().filter(|(_, port)| port.published_port != 0).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    for other in view.services().filter(|other| Some(&other.id) != own) {
        let allocated = other.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        let asked = other.spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        for taken in allocated.chain(asked).filter(|taken| taken.published_port != 0) {
            let collides = |port: &skep_types::PortConfig| {
                port.meets(taken) && (port.publish_mode == PublishMode::Ingress || taken.publish_mode == PublishMode::Ingress)
            };
            if let Some((index, port)) = wanted.iter().find(|(_, port)| collides(port)) {
                let places = if (&port.place, &taken.place) == (&PublishPlace::Everywhere, &PublishPlace::Everywhere) {
                    String::new()
                } else {
                    format!(" on {}, which meets {}", taken.place, port.place)
                };
                let problem = format!(
                    "port {} is already in use by service {} ({}){places}; choose another one or leave it out",
                    port.published_port,
                    other.name(),
                    other.id
                );
                return Err(FieldError::new(format!("endpoint.ports[{index}].published_port"), problem));
            }
        }
    }
    Ok(())
}

fn check_secrets(view: &dyn ClusterView, secrets: &[SecretReference]) -> Result<(), FieldError> {
    for (index, wanted) in secrets.iter().enumerate() {
        let found = view.secret(&wanted.secret_id);
        if found.is_none_or(|secret| secret.spec.annotations.name != wanted.secret_name) {
            let problem = format!("secret {} with id {} does not exist", wanted.secret_name, wanted.secret_id);
            return Err(FieldError::new(format!("secrets[{index}].secret_id"), problem));
        }
    }
    Ok(())
}

fn check_configs(view: &dyn ClusterView, configs: &[ConfigReference]) -> Result<(), FieldError> {
    for (index, wanted) in configs.iter().enumerate() {
        let found = view.config(&wanted.config_id);
        if found.is_none_or(|config| config.spec.annotations.name != wanted.config_name) {
            let problem = format!("config {} with id {} does not exist", wanted.config_name, wanted.config_id);
            return Err(FieldError::new(format!("configs[{index}].config_id"), problem));
        }
    }
    Ok(())
}

/// What an update may not change: UNIMPLEMENTED.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    #[error("spec.annotations.name: a service cannot be renamed from {from} to {to}; create a new one and remove this")]
    Rename { from: String, to: String },
    #[error("spec.mode: the mode of a service cannot change; create a new one and remove this")]
    Mode,
    #[error("spec.networks: changing only these deprecated networks is not supported; use spec.task.networks")]
    Networks,
}

/// # Errors
/// [`Unsupported`] if `new` differs from the service in a way that cannot be carried out.
pub fn check_change(service: &Service, new: &ServiceSpec) -> Result<(), Unsupported> {
    let old = &service.spec;
    if old.annotations.name != new.annotations.name {
        return Err(Unsupported::Rename { from: old.annotations.name.clone(), to: new.annotations.name.clone() });
    }
    let same_mode = matches!(
        (&old.mode, &new.mode),
        (ServiceMode::Replicated { .. }, ServiceMode::Replicated { .. })
            | (ServiceMode::Global, ServiceMode::Global)
            | (ServiceMode::ReplicatedJob { .. }, ServiceMode::ReplicatedJob { .. })
            | (ServiceMode::GlobalJob, ServiceMode::GlobalJob)
    );
    if !same_mode {
        return Err(Unsupported::Mode);
    }
    let in_use = !old.networks.is_empty() || !new.networks.is_empty();
    if in_use && old.task.networks.is_empty() && new.task.networks.is_empty() && old.networks != new.networks {
        return Err(Unsupported::Networks);
    }
    Ok(())
}
