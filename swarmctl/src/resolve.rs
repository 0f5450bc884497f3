//! Names, ids and unambiguous beginnings of ids to objects.

use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use skep_proto::skep::StatusRequest;
use skep_proto::v1;

/// Picks by full id, then by name, then by the beginning of the id; more than one of the best kind is an error.
fn pick<T>(kind: &str, wanted: &str, found: Vec<T>, id: impl Fn(&T) -> &str, name: impl Fn(&T) -> &str) -> Result<T, Failure> {
    let by_id = found.iter().position(|item| id(item) == wanted);
    if let Some(index) = by_id {
        return Ok(found.into_iter().nth(index).expect("the position was just found"));
    }
    let named = found.iter().filter(|item| name(item) == wanted).count();
    let mut matching: Vec<T> =
        found.into_iter().filter(|item| if named > 0 { name(item) == wanted } else { id(item).starts_with(wanted) }).collect();
    match matching.len() {
        0 => Err(Failure::not_found(kind, wanted, &format!("`swarmctl {kind} ls` lists what there is"))),
        1 => Ok(matching.remove(0)),
        n => Err(Failure::new(Exit::Conflict, format!("{wanted:?} means {n} {kind}s; use the full id"))),
    }
}

fn annotations_name(annotations: Option<&v1::Annotations>) -> &str {
    annotations.map(|found| found.name.as_str()).unwrap_or_default()
}

pub async fn service(connection: &Connection, wanted: &str) -> Result<v1::Service, Failure> {
    let mut client = connection.control();
    let by_name = v1::list_services_request::Filters { names: vec![wanted.into()], ..Default::default() };
    let by_id = v1::list_services_request::Filters { id_prefixes: vec![wanted.into()], ..Default::default() };
    let mut found = Vec::new();
    for filters in [by_id, by_name] {
        found.extend(client.list_services(v1::ListServicesRequest { filters: Some(filters) }).await?.into_inner().services);
    }
    found.dedup_by(|a, b| a.id == b.id);
    pick("service", wanted, found, |item| &item.id, |item| annotations_name(item.spec.as_ref().and_then(|spec| spec.annotations.as_ref())))
}

pub async fn network(connection: &Connection, wanted: &str) -> Result<v1::Network, Failure> {
    let found = connection.control().list_networks(v1::ListNetworksRequest::default()).await?.into_inner().networks;
    pick("network", wanted, found, |item| &item.id, |item| annotations_name(item.spec.as_ref().and_then(|spec| spec.annotations.as_ref())))
}

pub async fn node(connection: &Connection, wanted: &str) -> Result<v1::Node, Failure> {
    let own;
    let wanted = if wanted == "self" {
        own = connection.node().status(StatusRequest::default()).await?.into_inner().node_id;
        own.as_str()
    } else {
        wanted
    };
    let found = connection.control().list_nodes(v1::ListNodesRequest::default()).await?.into_inner().nodes;
    pick("node", wanted, found, |item| &item.id, |item| item.description.as_ref().map(|known| known.hostname.as_str()).unwrap_or_default())
}

/// A task by id or by its name, `service.slot` or `service.slot.id`.
pub async fn task(connection: &Connection, wanted: &str) -> Result<v1::Task, Failure> {
    let mut client = connection.control();
    let by_id = v1::list_tasks_request::Filters { id_prefixes: vec![wanted.into()], ..Default::default() };
    let mut found = client.list_tasks(v1::ListTasksRequest { filters: Some(by_id) }).await?.into_inner().tasks;
    if found.is_empty()
        && let Some((service_name, rest)) = wanted.split_once('.')
        && let Ok(service) = service(connection, service_name).await
    {
        let of_service = v1::list_tasks_request::Filters { service_ids: vec![service.id], ..Default::default() };
        let all = client.list_tasks(v1::ListTasksRequest { filters: Some(of_service) }).await?.into_inner().tasks;
        let (slot, id) = rest.split_once('.').unwrap_or((rest, ""));
        found = all.into_iter().filter(|task| task.slot.to_string() == slot && task.id.starts_with(id)).collect();
        // Of a slot's history, the live one is meant unless an id says otherwise.
        if id.is_empty() {
            found.retain(|task| task.desired_state <= v1::TaskState::Running as i32);
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        _ => pick("task", wanted, found, |item| &item.id, |_| ""),
    }
}

pub async fn secret(connection: &Connection, wanted: &str) -> Result<v1::Secret, Failure> {
    let filters = v1::list_secrets_request::Filters { names: vec![wanted.into()], id_prefixes: vec![wanted.into()], ..Default::default() };
    let found = connection.control().list_secrets(v1::ListSecretsRequest { filters: Some(filters) }).await?.into_inner().secrets;
    pick("secret", wanted, found, |item| &item.id, |item| annotations_name(item.spec.as_ref().and_then(|spec| spec.annotations.as_ref())))
}

pub async fn config(connection: &Connection, wanted: &str) -> Result<v1::Config, Failure> {
    let filters = v1::list_configs_request::Filters { names: vec![wanted.into()], id_prefixes: vec![wanted.into()], ..Default::default() };
    let found = connection.control().list_configs(v1::ListConfigsRequest { filters: Some(filters) }).await?.into_inner().configs;
    pick("config", wanted, found, |item| &item.id, |item| annotations_name(item.spec.as_ref().and_then(|spec| spec.annotations.as_ref())))
}
