//! Nodes.

use crate::docker::manager::{Manager, answer, read};
use skep_docker_api::{ApiError, NodeEntry, Select};
use skep_proto::{ToWire as _, v1};
use skep_types::NodeSpec;
use std::collections::BTreeSet;
use v1::list_nodes_request::Filters;

/// The control API joins kinds of filters by "and": for "or" it is asked twice.
pub async fn list(manager: &Manager, select: &Select) -> Result<Vec<NodeEntry>, ApiError> {
    let Select { ids, names } = select;
    let mut found = Vec::new();
    if !ids.is_empty() || names.is_empty() {
        found = ask(manager, Filters { id_prefixes: ids.clone(), ..Filters::default() }).await?;
    }
    if !names.is_empty() {
        let known: BTreeSet<_> = found.iter().map(|entry| entry.node.id.clone()).collect();
        let named = ask(manager, Filters { names: names.clone(), ..Filters::default() }).await?;
        found.extend(named.into_iter().filter(|entry| !known.contains(&entry.node.id)));
    }
    Ok(found)
}

async fn ask(manager: &Manager, filters: Filters) -> Result<Vec<NodeEntry>, ApiError> {
    let request = v1::ListNodesRequest { filters: Some(filters) };
    answer(manager.control().list_nodes(request)).await?.nodes.into_iter().map(entry).collect()
}

fn entry(mut wire: v1::Node) -> Result<NodeEntry, ApiError> {
    let manager = wire.manager_status.take().map(|status| read("node", status)).transpose()?;
    Ok(NodeEntry { node: read("node", wire)?, manager })
}

pub async fn get(manager: &Manager, id: &str) -> Result<NodeEntry, ApiError> {
    let wire = answer(manager.control().get_node(v1::GetNodeRequest { node_id: id.to_owned() })).await?.node;
    entry(wire.ok_or_else(|| ApiError::internal("the manager answered without the node"))?)
}

pub async fn update(manager: &Manager, id: &str, version: u64, spec: &NodeSpec) -> Result<(), ApiError> {
    let node_version = Some(v1::Version { index: version });
    let request = v1::UpdateNodeRequest { node_id: id.to_owned(), node_version, spec: Some(spec.to_wire()) };
    answer(manager.control().update_node(request)).await.map(drop)
}

pub async fn remove(manager: &Manager, id: &str, force: bool) -> Result<(), ApiError> {
    answer(manager.control().remove_node(v1::RemoveNodeRequest { node_id: id.to_owned(), force })).await.map(drop)
}
