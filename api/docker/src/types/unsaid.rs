//! What a service may have that this API has no words for: it stays as it is when a client reads the service, changes something
//! and writes it back, as all of them do.

use skep_types::{PortConfig, ResourceRequirements, Service, ServiceSpec, TaskSpec};
use std::sync::Arc;

/// Carries over from the service as it is. A port or network counts as the same one if all that can be said of it is the same.
pub(crate) fn keep(spec: &mut ServiceSpec, service: &Service) {
    let known = &service.spec;
    spec.annotations.indices.clone_from(&known.annotations.indices);
    if let (Some(endpoint), Some(known)) = (&mut spec.endpoint, &known.endpoint) {
        let mut rest: Vec<&PortConfig> = known.ports.iter().collect();
        for port in &mut endpoint.ports {
            if let Some(index) = rest.iter().position(|known| said(known) == *port) {
                *port = rest.swap_remove(index).clone();
            }
        }
    }
    keep_of_task(Arc::make_mut(&mut spec.task), &known.task);
    for network in &mut spec.networks {
        if let Some(known) = known.networks.iter().find(|known| known.target == network.target) {
            network.addresses.clone_from(&known.addresses);
        }
    }
}

fn keep_of_task(task: &mut TaskSpec, known: &TaskSpec) {
    task.resource_references.clone_from(&known.resource_references);
    // Empty and absent are one and the same to clients; to tasks it would be another spec, for which they would be replaced.
    let is_empty = |wish: &Option<ResourceRequirements>| wish.as_ref().is_none_or(|wish| *wish == ResourceRequirements::default());
    if is_empty(&task.resources) && is_empty(&known.resources) {
        task.resources.clone_from(&known.resources);
    }
    for network in &mut task.networks {
        if let Some(known) = known.networks.iter().find(|known| known.target == network.target) {
            network.addresses.clone_from(&known.addresses);
        }
    }
}

/// The port without what cannot be said.
fn said(port: &PortConfig) -> PortConfig {
    PortConfig {
        name: port.name.clone(),
        protocol: port.protocol,
        target_port: port.target_port,
        published_port: port.published_port,
        publish_mode: port.publish_mode,
        ..PortConfig::default()
    }
}
