//! Nodes: get, list, update, remove.

use super::errors::{id, invalid, missing, out_of_sequence};
use super::filter;
use super::validate;
use crate::clock::timestamp;
use crate::shared::Shared;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use skep_ca::PeerIdentity;
use skep_plan::CannotGo;
use skep_proto::{ToWire as _, parse_required, v1};
use skep_types::{
    Action, Availability, Cluster, ClusterView, FieldError, Kind, Node, NodeId, NodeRole, NodeSpec, NodeState, Object, Task, TaskState,
    TaskStatus, Timestamp, UpdateOrder, Version,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::Status;

/// Removed nodes are remembered for this long after their certificates ended (spec wire-behaviour 6).
const FORGET_REMOVED_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// By this plugin (type, name) our agents say that their node can be a manager.
const ENGINE_PLUGIN: (&str, &str) = ("Skep", "manager");

fn answer(shared: &Shared, node: &Node) -> v1::Node {
    let mut wire = node.to_wire();
    wire.manager_status = shared.manager_status(&node.id).map(|status| status.to_wire());
    wire
}

pub(super) fn get(shared: &Shared, request: &v1::GetNodeRequest) -> Result<v1::GetNodeResponse, Status> {
    let id: NodeId = id("node_id", &request.node_id)?;
    let view = shared.store.view();
    let node = view.node(&id).ok_or_else(|| missing(Kind::Node, id.as_str()))?;
    Ok(v1::GetNodeResponse { node: Some(answer(shared, node)) })
}

pub(super) fn list(shared: &Shared, request: v1::ListNodesRequest) -> v1::ListNodesResponse {
    let filters = request.filters.unwrap_or_default();
    let view = shared.store.view();
    let nodes = view.nodes().filter(|node| filter::nodes(&filters, node)).map(|node| answer(shared, node)).collect();
    v1::ListNodesResponse { nodes }
}

pub(super) async fn update(shared: &Shared, request: v1::UpdateNodeRequest) -> Result<v1::UpdateNodeResponse, Status> {
    let id: NodeId = id("node_id", &request.node_id)?;
    let version: Version = parse_required("node_version", request.node_version).map_err(invalid)?;
    let spec: NodeSpec = parse_required("spec", request.spec).map_err(invalid)?;
    validate::labels(&spec.annotations).map_err(|error| invalid(error.inside("spec.annotations")))?;
    if spec.drain_order == UpdateOrder::StartFirst && spec.availability != Availability::Drain {
        return Err(invalid(FieldError::new("spec.drain_order", "START_FIRST is for nodes whose availability is DRAIN")));
    }
    let is_demoted = |node: &Node| node.spec.desired_role == NodeRole::Manager && spec.desired_role == NodeRole::Worker;
    if shared.store.view().node(&id).is_some_and(|node| is_demoted(node)) {
        check_departure(shared, &id).await?;
    }
    let new = {
        let view = shared.store.view();
        let node = view.node(&id).ok_or_else(|| missing(Kind::Node, id.as_str()))?;
        if node.meta.version != version {
            return Err(out_of_sequence());
        }
        match (node.spec.desired_role, spec.desired_role) {
            (NodeRole::Manager, NodeRole::Worker)
                if !view.nodes().any(|other| other.id != id && other.spec.desired_role == NodeRole::Manager) =>
            {
                return Err(last_manager());
            }
            (NodeRole::Worker, NodeRole::Manager) => check_promotion(node)?,
            _ => {}
        }
        Node { spec, ..Node::clone(node) }
    };
    shared.write(vec![Action::Update(Object::Node(Arc::new(new)))]).await?;
    let view = shared.store.view();
    let node = view.node(&id).ok_or_else(|| missing(Kind::Node, id.as_str()))?;
    Ok(v1::UpdateNodeResponse { node: Some(answer(shared, node)) })
}

fn last_manager() -> Status {
    Status::failed_precondition("attempting to demote the last manager of the swarm; promote another node first")
}

/// Whether the raft group can do without a node. Whoever never came in, or is out already, may go.
async fn check_departure(shared: &Shared, id: &NodeId) -> Result<(), Status> {
    let members = shared.raft_members();
    let Some(member) = members.iter().find(|member| member.node == id.as_str()) else { return Ok(()) };
    match shared.can_go(member.raft_id).await {
        Ok(()) => Ok(()),
        Err(CannotGo::Last) => Err(last_manager()),
        Err(reason) => Err(Status::failed_precondition(format!("node {id} cannot be demoted: {reason}"))),
    }
}

/// Only nodes that run this software can be managers beside this one: raft groups of the original are another language.
fn check_promotion(node: &Node) -> Result<(), Status> {
    let Some(description) = &node.description else {
        let text = format!("node {} has not said yet what it is; promote it when it is ready", node.id);
        return Err(Status::failed_precondition(text));
    };
    let plugins = description.engine.iter().flat_map(|engine| &engine.plugins);
    if plugins.into_iter().any(|plugin| plugin.kind == ENGINE_PLUGIN.0 && plugin.name == ENGINE_PLUGIN.1) {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "node {} ({}) does not run skepd and cannot be a manager of this cluster; it may stay a worker",
        node.id,
        node.display_name()
    )))
}

pub(super) async fn remove(shared: &Shared, request: v1::RemoveNodeRequest) -> Result<v1::RemoveNodeResponse, Status> {
    let id: NodeId = id("node_id", &request.node_id)?;
    let actions = {
        let view = shared.store.view();
        let node = view.node(&id).ok_or_else(|| missing(Kind::Node, id.as_str()))?;
        if shared.manager_status(&id).is_some() {
            return Err(Status::failed_precondition(format!(
                "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
            )));
        }
        if node.status.state == NodeState::Ready && !request.force {
            return Err(Status::failed_precondition(format!("node {id} is not down and can't be removed; stop it first, or use force")));
        }
        removal(&view, &id, None, shared.now()).ok_or_else(|| Status::internal("the cluster object is missing"))?
    };
    skep_failpoint::failpoint!("manager.control.node.removing");
    shared.write(actions).await?;
    Ok(v1::RemoveNodeResponse {})
}

/// What takes a node out of the cluster, if it still has that version; `None` if it, or the cluster, is not there.
pub fn removal(view: &dyn ClusterView, id: &NodeId, version: Option<Version>, now: Timestamp) -> Option<Vec<Action>> {
    let (cluster, node) = (view.cluster()?, view.node(id)?);
    let mut actions = vec![
        Action::Update(Object::Cluster(Arc::new(without(cluster, node, now)))),
        Action::Remove { kind: Kind::Node, id: id.to_string(), version },
    ];
    actions.extend(view.tasks_on_node(id).filter(|task| task.status.state < TaskState::Complete).map(|task| orphaned(task, now)));
    Some(actions)
}

/// The cluster that no longer lets this node in.
fn without(cluster: &Cluster, node: &Node, now: Timestamp) -> Cluster {
    let mut cluster = cluster.clone();
    drop_old_removals(&mut cluster, now);
    cluster.blacklisted_certificates.insert(node.id.clone(), certificate_end(&node.certificate.certificate));
    cluster
}

/// Forgets removed nodes whose certificates ended long ago.
pub(super) fn drop_old_removals(cluster: &mut Cluster, now: Timestamp) {
    cluster.blacklisted_certificates.retain(|_, end| end.is_none_or(|end| now < end + FORGET_REMOVED_AFTER));
}

/// When the first certificate of a chain ends; `None` if that cannot be told.
fn certificate_end(pem: &[u8]) -> Option<Timestamp> {
    first_certificate(pem).map(|peer| timestamp(peer.not_after))
}

/// When the certificate that the store has of a node became valid.
pub(crate) fn certificate_start(node: &Node) -> Option<SystemTime> {
    first_certificate(&node.certificate.certificate).map(|peer| peer.not_before)
}

fn first_certificate(pem: &[u8]) -> Option<PeerIdentity> {
    let leaf = CertificateDer::from_pem_slice(pem).ok()?;
    PeerIdentity::of_chain(&[leaf]).ok()
}

fn orphaned(task: &Task, now: Timestamp) -> Action {
    let status = TaskStatus {
        timestamp: now,
        state: TaskState::Orphaned,
        message: "node removed".into(),
        err: "the task's node was removed from the cluster".into(),
        applied_at: Some(now),
        ..task.status.clone()
    };
    Action::SetTaskStatus { task: task.id.clone(), status }
}
