//! Networks.

use crate::docker::manager::{Manager, answer, read_all, read_one};
use skep_docker_api::{ApiError, Select};
use skep_proto::{ToWire as _, v1};
use skep_types::{Network, NetworkSpec};
use std::collections::BTreeSet;
use v1::list_networks_request::Filters;

/// The control API joins kinds of filters by "and": for "or" it is asked twice.
pub async fn list(manager: &Manager, select: &Select) -> Result<Vec<Network>, ApiError> {
    let Select { ids, names } = select;
    let mut found = Vec::new();
    if !ids.is_empty() || names.is_empty() {
        found = ask(manager, Filters { id_prefixes: ids.clone(), ..Filters::default() }).await?;
    }
    if !names.is_empty() {
        let known: BTreeSet<_> = found.iter().map(|network| network.id.clone()).collect();
        let named = ask(manager, Filters { names: names.clone(), ..Filters::default() }).await?;
        found.extend(named.into_iter().filter(|network| !known.contains(&network.id)));
    }
    Ok(found)
}

async fn ask(manager: &Manager, filters: Filters) -> Result<Vec<Network>, ApiError> {
    let request = v1::ListNetworksRequest { filters: Some(filters), ..Default::default() };
    read_all("network", answer(manager.control().list_networks(request)).await?.networks)
}

pub async fn get(manager: &Manager, id: &str) -> Result<Network, ApiError> {
    let request = v1::GetNetworkRequest { network_id: id.to_owned(), ..Default::default() };
    read_one("network", answer(manager.control().get_network(request)).await?.network)
}

pub async fn create(manager: &Manager, spec: &NetworkSpec) -> Result<Network, ApiError> {
    let request = v1::CreateNetworkRequest { spec: Some(spec.to_wire()) };
    read_one("network", answer(manager.control().create_network(request)).await?.network)
}

pub async fn remove(manager: &Manager, id: &str) -> Result<(), ApiError> {
    let request = v1::RemoveNetworkRequest { name: String::new(), network_id: id.to_owned() };
    answer(manager.control().remove_network(request)).await.map(drop)
}
