//! Who is on a network: containers of this node, nodes, services.

use crate::types::network::{Endpoint, Network, Peer, ServiceInfo, TaskInfo, is_ingress};
use crate::{ApiError, Backend, PlaceHere, Select, TaskSelect, container_id};
use skep_types::{Network as ClusterNetwork, NodeId, PublishMode, Service, Task, TaskId, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

fn is_live(task: &Task) -> bool {
    task.status.state <= TaskState::Running && task.desired_state <= TaskState::Running
}

/// Ids of the cluster's networks that a service is to be on or a live task is on; where this node is no manager, of those it knows.
pub(super) async fn used(backend: &Backend) -> Result<BTreeSet<String>, ApiError> {
    if !backend.node.swarm().await.is_manager {
        return Ok(backend.containers.networks().await?.iter().map(|here| here.network.id.to_string()).collect());
    }
    let services = backend.cluster.list_services(&Select::default()).await?;
    let tasks = backend.cluster.list_tasks(&TaskSelect::default()).await?;
    let wanted = services.iter().flat_map(|service| service.networks()).map(|wanted| wanted.target.clone());
    let attached = tasks.iter().filter(|task| is_live(task)).flat_map(|task| &task.networks);
    Ok(wanted.chain(attached.map(|attachment| attachment.network.id.to_string())).collect())
}

/// Adds containers of this node and the nodes with tasks; `verbose` also services with all their tasks.
pub(super) async fn fill(backend: &Backend, object: &ClusterNetwork, network: &mut Network, verbose: bool) -> Result<(), ApiError> {
    let state = backend.node.swarm().await;
    if !state.is_manager {
        // What other nodes have on it managers know.
        let here = backend.containers.networks().await?.into_iter().find(|here| here.network.id == object.id);
        network.containers = here.map(|here| here.places.into_iter().map(|place| (place.container.clone(), endpoint_of(place))).collect());
        return Ok(());
    }
    let tasks = backend.cluster.list_tasks(&TaskSelect::default()).await?;
    let tasks: Vec<&Task> = tasks.iter().map(Arc::as_ref).filter(|task| is_live(task) && address(task, object).is_some()).collect();
    let here: BTreeMap<String, Endpoint> = tasks
        .iter()
        .filter(|task| task.node_id.as_ref().is_some_and(|node| node.as_str() == state.node_id))
        .filter_map(|task| Some((container_of(task)?, endpoint(task, object))))
        .filter(|(container, _)| !container.is_empty())
        .collect();
    // Null on a node that has no task on it, as dockerd.
    network.containers = (!here.is_empty()).then_some(here);
    let on_it: BTreeSet<&NodeId> = tasks.iter().filter_map(|task| task.node_id.as_ref()).collect();
    let nodes = backend.cluster.list_nodes(&Select::default()).await?;
    let peers = nodes.iter().map(|entry| &entry.node).filter(|node| on_it.contains(&node.id));
    network.peers = peers
        .map(|node| Peer {
            name: format!("{}-{}", node.display_name(), &node.id.as_str()[..node.id.as_str().len().min(12)]),
            ip: node.overlay.as_ref().map_or_else(|| node.status.addr.clone(), |overlay| overlay.underlay.clone()),
        })
        .collect();
    if verbose {
        let services = backend.cluster.list_services(&Select::default()).await?;
        network.services = services.iter().filter_map(|service| info(service, object, &tasks)).collect();
    }
    Ok(())
}

/// The container that has the place. What an attachment stands for is called by its task, or as whoever attached it did.
fn container_of(task: &Task) -> Option<String> {
    let named = &task.status.container.as_ref()?.container_id;
    let plain = named.strip_prefix("container:").and_then(|id| id.parse::<TaskId>().ok());
    Some(plain.map_or_else(|| named.clone(), |id| container_id(&id)))
}

/// CIDR.
fn address<'a>(task: &'a Task, object: &ClusterNetwork) -> Option<&'a str> {
    let attachment = task.networks.iter().find(|attachment| attachment.network.id == object.id)?;
    Some(attachment.addresses.iter().find(|address| !address.contains(':')).map(String::as_str).unwrap_or_default())
}

fn endpoint(task: &Task, object: &ClusterNetwork) -> Endpoint {
    let own = task.networks.iter().filter(|attachment| attachment.network.id == object.id);
    let addresses = own.flat_map(|attachment| attachment.addresses.clone()).collect();
    endpoint_of(PlaceHere { name: task.name(), endpoint: container_id(&task.id), addresses, ..PlaceHere::default() })
}

fn endpoint_of(place: PlaceHere) -> Endpoint {
    let (v6, v4): (Vec<String>, Vec<String>) = place.addresses.into_iter().partition(|address| address.contains(':'));
    let first = |addresses: Vec<String>| addresses.into_iter().next().unwrap_or_default();
    Endpoint { name: place.name, endpoint_id: place.endpoint, ipv4_address: first(v4), ipv6_address: first(v6), ..Endpoint::default() }
}

fn bare(cidr: &str) -> String {
    cidr.split('/').next().unwrap_or_default().to_owned()
}

fn info(service: &Service, object: &ClusterNetwork, tasks: &[&Task]) -> Option<(String, ServiceInfo)> {
    let own = tasks.iter().filter(|task| task.service_id.as_ref() == Some(&service.id));
    let tasks: Vec<TaskInfo> = own
        .map(|task| TaskInfo {
            name: task.name(),
            endpoint_id: String::new(),
            endpoint_ip: bare(address(task, object).unwrap_or_default()),
            info: task.node_id.iter().map(|node| ("Node ID".to_owned(), node.to_string())).collect(),
        })
        .collect();
    let vip = service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips).find(|vip| vip.network_id == object.id);
    if tasks.is_empty() && vip.is_none() {
        return None;
    }
    let published = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports).filter(|port| port.publish_mode == PublishMode::Ingress);
    let ports =
        published.filter(|_| is_ingress(object)).map(|port| format!("Target: {}, Publish: {}", port.target_port, port.published_port));
    let vip = vip.map(|vip| bare(&vip.addr)).unwrap_or_default();
    Some((service.name().to_owned(), ServiceInfo { vip, ports: ports.collect(), local_lb_index: 0, tasks }))
}
