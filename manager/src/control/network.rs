//! Networks: create, get, list, remove. There is no update.

use super::errors::{id, invalid, missing};
use super::filter;
use super::validate;
use crate::shared::Shared;
use skep_proto::{ToWire as _, parse_required, v1};
use skep_store::View;
use skep_types::{
    Action, ClusterView as _, FieldError, Kind, Network, NetworkId, NetworkSpec, Object, PREDEFINED_LABEL, Service, Task, TaskState,
};
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
    let driver = spec.driver.as_ref().map_or("overlay", |driver| driver.name.as_str());
    if spec.ingress && driver != "overlay" {
        return Err(Status::unimplemented(format!(
            "spec.ingress: the network of published ports spans all nodes; it cannot have driver {driver:?}, use \"overlay\""
        )));
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
        // In any version: who orders it names none, and all that is ever written to a network is what the allocator gives it.
        Action::Remove { kind: Kind::Network, id: network.id.to_string(), version: None }
    };
    shared.write(vec![action]).await?;
    Ok(v1::RemoveNetworkResponse {})
}

fn check_unused(view: &View, network: &Network) -> Result<(), Status> {
    let name = &network.spec.annotations.name;
    if network.is_predefined() {
        return Err(Status::failed_precondition(format!("{name} is a pre-defined network and cannot be removed")));
    }
    let named = |target: &str| target == network.id.as_str() || target.to_lowercase() == name.to_lowercase();
    let uses = |service: &&Arc<Service>| {
        service.networks().iter().any(|wanted| named(&wanted.target)) || (is_ingress(network) && service.publishes_on_ingress())
    };
    let services: Vec<&Arc<Service>> = view.services().filter(uses).collect();
    // Tasks of services that were updated to be without it, and containers attached from outside.
    let is_told = |task: &Task| services.iter().any(|service| task.service_id.as_ref() == Some(&service.id));
    let live = |task: &&Arc<Task>| task.status.state <= TaskState::Running && task.desired_state <= TaskState::Running;
    // Tasks of a service that is gone are about to be told to end: `docker stack rm` removes networks right after services.
    let is_doomed = |task: &Task| task.service_id.as_ref().is_some_and(|service| view.service(service).is_none());
    let on_it = |task: &&Arc<Task>| task.networks.iter().any(|attachment| attachment.network.id == network.id);
    let tasks = view.tasks().filter(live).filter(on_it).filter(|task| !is_told(task) && !is_doomed(task));
    let mut services: Vec<String> = services.iter().map(|service| service.name().to_owned()).collect();
    services.sort_unstable();
    let users: Vec<String> =
        [listed("service", services), listed("task", tasks.map(|task| task.id.to_string()).collect())].into_iter().flatten().collect();
    if users.is_empty() {
        return Ok(());
    }
    Err(Status::failed_precondition(format!("network {name} is in use by {}", users.join(" and "))))
}

/// So many users are named at most.
const MOST_NAMED: usize = 20;

/// `None` if there is none.
fn listed(what: &str, mut names: Vec<String>) -> Option<String> {
    let more = names.len().saturating_sub(MOST_NAMED);
    names.truncate(MOST_NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let plural = if names.len() > 1 { "s" } else { "" };
    (!names.is_empty()).then(|| format!("{what}{plural} {}{rest}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_listed_up_to_a_number() {
        let names = |count: usize| (1..=count).map(|number| format!("s{number}")).collect::<Vec<_>>();
        assert_eq!(listed("service", names(0)), None);
        assert_eq!(listed("service", names(1)).as_deref(), Some("service s1"));
        assert_eq!(listed("service", names(3)).as_deref(), Some("services s1, s2, s3"));
        assert!(listed("task", names(22)).is_some_and(|text| text.starts_with("tasks s1,") && text.ends_with("s20 and 2 more")));
    }
}
