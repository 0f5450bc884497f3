//! Why things are as they are, and where a service would go: the gRPC service `Explanations`, which the original has not. What is said comes
//! from `skep-plan`; here it is asked and put on the wire.

use super::errors::{id, invalid, missing};
use super::service;
use crate::authorize::caller;
use crate::shared::Shared;
use prost::Message as _;
use skep_plan::{Finding, NodeGroup, Placement, Verdict};
use skep_proto::skep::explanations_server::Explanations;
use skep_proto::skep::get_explanation_request::Kind as Wanted;
use skep_proto::skep::{self, Explanation, GetExplanationRequest, GetPlacementRequest, GetPlacementResponse};
use skep_proto::v1;
use skep_store::View;
use skep_types::{ClusterView as _, FieldError, Kind, NodeId, ServiceId, TaskId, Timestamp};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// A spec inside of a request is not weighed before it is read, and two bytes of it may become some hundred: so it may not be long.
const MAX_SPEC: usize = 128 << 10;

/// What clients call.
#[derive(Clone)]
pub(crate) struct ExplanationsService {
    shared: Arc<Shared>,
}

impl ExplanationsService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// All nodes and tasks are read, which would keep connections from their next call.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce(&View, Timestamp) -> T + Send + 'static) -> Result<T, Status> {
        let (view, now) = (self.shared.store.view(), self.shared.now());
        tokio::task::spawn_blocking(move || work(&view, now))
            .await
            .map_err(|_| Status::internal("explaining it failed; see this manager's log"))
    }
}

#[tonic::async_trait]
impl Explanations for ExplanationsService {
    async fn get(&self, request: Request<GetExplanationRequest>) -> Result<Response<Explanation>, Status> {
        caller(&request)?;
        let GetExplanationRequest { kind, id: wanted } = request.into_inner();
        let kind = Wanted::try_from(kind)
            .map_err(|_| invalid(FieldError::new("kind", format!("{kind} is not known; use 0 (SERVICE), 1 (TASK) or 2 (NODE)"))))?;
        let findings = self.aside(move |view, now| explain(view, kind, &wanted, now)).await??;
        Ok(Response::new(Explanation { findings: findings.into_iter().map(on_the_wire).collect() }))
    }

    async fn get_placement(&self, request: Request<GetPlacementRequest>) -> Result<Response<GetPlacementResponse>, Status> {
        caller(&request)?;
        let bytes = request.into_inner().spec;
        if bytes.len() > MAX_SPEC {
            let problem = format!("is {} bytes long; at most {MAX_SPEC} can be tried without being stored", bytes.len());
            return Err(invalid(FieldError::new("spec", problem)));
        }
        let spec = v1::ServiceSpec::decode(bytes.as_slice())
            .map_err(|error| invalid(FieldError::new("spec", format!("is not an encoded ServiceSpec: {error}"))))?;
        let spec = service::acceptable(&self.shared, Some(spec))?;
        let Placement { placed, unplaced, findings } = self.aside(move |view, now| skep_plan::plan_placement(view, spec, now)).await?;
        let placed = placed.into_iter().map(|one| skep::PlacedTasks {
            node_id: one.node.id.to_string(),
            node_name: one.node.display_name().to_owned(),
            tasks: one.tasks as u64,
        });
        let findings = findings.into_iter().map(on_the_wire).collect();
        Ok(Response::new(GetPlacementResponse { placed: placed.collect(), unplaced: unplaced as u64, findings }))
    }
}

fn explain(view: &View, kind: Wanted, wanted: &str, now: Timestamp) -> Result<Vec<Finding>, Status> {
    match kind {
        Wanted::Service => {
            let id: ServiceId = id("id", wanted)?;
            let service = view.service(&id).ok_or_else(|| missing(Kind::Service, wanted))?;
            Ok(skep_plan::explain_service(view, service, now))
        }
        Wanted::Task => {
            let id: TaskId = id("id", wanted)?;
            let task = view.task(&id).ok_or_else(|| missing(Kind::Task, wanted))?;
            Ok(skep_plan::explain_task(view, task, now))
        }
        Wanted::Node => {
            let id: NodeId = id("id", wanted)?;
            let node = view.node(&id).ok_or_else(|| missing(Kind::Node, wanted))?;
            Ok(skep_plan::explain_node(view, node, now))
        }
    }
}

fn on_the_wire(finding: Finding) -> skep::Finding {
    let Finding { verdict, text, nodes, cures } = finding;
    let verdict = match verdict {
        Verdict::Fine => skep::finding::Verdict::Fine,
        Verdict::Note => skep::finding::Verdict::Note,
        Verdict::Wrong => skep::finding::Verdict::Wrong,
    };
    let group = |NodeGroup { reason, count, names }| skep::NodeGroup { reason, count: count as u64, names };
    skep::Finding { verdict: verdict as i32, text, nodes: nodes.into_iter().map(group).collect(), cures }
}
