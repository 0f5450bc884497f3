//! Networks: create, get, list, remove. There is no update.

use super::errors::{id, invalid, missing};
use super::filter;
use super::validate;
use crate::shared::Shared;
use skep_proto::{ToWire as _, parse_required, v1};
use skep_store::View;
use skep_types::{Action, ClusterView as _, FieldError, Kind, Network, NetworkId, NetworkSpec, Object, PREDEFINED_LABEL, TaskState};
use std::sync::Arc;
use tonic::Status;

pub(super) async fn create(shared: &Shared, request: v1::CreateNetworkRequest) -> Result<v1::CreateNetworkResponse, Status> {
    let spec: NetworkSpec = parse_required("spec", request.spec).map_err(invalid)?;
    validate::network(&spec).map_err(|error| invalid(error.inside("spec")))?;
    check_kind(&spec)?;
    if spec.ingress && shared.store.view().networks().any(|network| is_ingress(network)) {
        return Err(Status::already_exists("an ingress network is already present; remove it first"));
    }
    let network = Network::new(NetworkId::from_random(rand::random()), spec);
    let id = network.id.clone();
    shared.write(vec![Action::Create(Object::Network(Arc::new(network)))]).await?;
    let view = shared.store.view();
    let network = view.network(&id).ok_or_else(|| missing(Kind::Network, id.as_str()))?;
    Ok(v1::CreateNetworkResponse { network: Some(network.to_wire()) })
}

/// What is no question of a single field.
fn check_kind(spec: &NetworkSpec) -> Result<(), Status> {
    if spec.annotations.labels.contains_key(PREDEFINED_LABEL) {
        return Err(Status::permission_denied(format!("label {PREDEFINED_LABEL} is for internally created predefined networks only")));
    }
    if !spec.config_from.is_empty() {
        return Err(Status::unimplemented("spec.network: taking a network's configuration from another is not supported"));
    }
    Ok(())
}

pub(super) fn is_ingress(network: &Network) -> bool {
    let annotations = &network.spec.annotations;
    network.spec.ingress || (annotations.name == "ingress" && annotations.labels.contains_key("com.docker.swarm.internal"))
}

fn find<'a>(view: &'a View, network_id: &str, name: &str) -> Result<&'a Arc<Network>, Status> {
    if network_id.is_empty() && name.is_empty() {
        return Err(invalid(FieldError::new("network_id", "is missing; give the id or the name of a network")));
    }
    if !network_id.is_empty() {
        let id: NetworkId = id("network_id", network_id)?;
        return view.network(&id).ok_or_else(|| missing(Kind::Network, network_id));
    }
    view.network_by_name(name).ok_or_else(|| missing(Kind::Network, name))
}

pub(super) fn get(shared: &Shared, request: &v1::GetNetworkRequest) -> Result<v1::GetNetworkResponse, Status> {
    let view = shared.store.view();
    let network = find(&view, &request.network_id, &request.name)?;
    Ok(v1::GetNetworkResponse { network: Some(network.to_wire()) })
}

pub(super) fn list(shared: &Shared, request: v1::ListNetworksRequest) -> v1::ListNetworksResponse {
    let filters = request.filters.unwrap_or_default();
    let view = shared.store.view();
    let networks = view.networks().filter(|network| filter::networks(&filters, network)).map(|network| network.to_wire()).collect();
    v1::ListNetworksResponse { networks }
}

pub(super) async fn remove(shared: &Shared, request: v1::RemoveNetworkRequest) -> Result<v1::RemoveNetworkResponse, Status> {
    let action = {
        let view = shared.store.view();
        let network = find(&view, &request.network_id, &request.name)?;
        check_unused(&view, network)?;
        Action::Remove { kind: Kind::Network, id: network.id.to_string(), version: Some(network.meta.version) }
    };
    shared.write(vec![action]).await?;
    Ok(v1::RemoveNetworkResponse {})
}

fn check_unused(view: &View, network: &Network) -> Result<(), Status> {
    let name = &network.spec.annotations.name;
    if network.is_predefined() {
        return Err(Status::failed_precondition(format!("{name} is a pre-defined network and cannot be removed")));
    }
    for service in view.services() {
        let uses = service.networks().iter().any(|wanted| wanted.target == network.id.as_str() || wanted.target == *name);
        if uses || (is_ingress(network) && service.publishes_on_ingress()) {
            return Err(Status::failed_precondition(format!("network {name} is in use by service {}", service.name())));
        }
    }
    let live = |task: &&Arc<skep_types::Task>| task.status.state <= TaskState::Running && task.desired_state <= TaskState::Running;
    let on_it = |task: &&Arc<skep_types::Task>| task.networks.iter().any(|attachment| attachment.network.id == network.id);
    match view.tasks().filter(live).find(on_it) {
        Some(task) => Err(Status::failed_precondition(format!("network {name} is in use by task {}", task.id))),
        None => Ok(()),
    }
}
