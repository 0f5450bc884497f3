//! The service `skep.v1.Raft`: calls of other managers.

use super::admit::{Calling, Known, NotAdmitted, admit};
use super::call_of;
use crate::authorize::{ConnectionInfo, caller};
use crate::control::certificate_start;
use crate::drive::chain;
use crate::shared::Shared;
use skep_proto::skep::raft_server::Raft;
use skep_proto::skep::{RaftCallRequest, RaftCallResponse, raft_call_request::Kind};
use skep_store::AnswerError;
use skep_types::{ClusterView as _, NodeRole};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// A batch has at most 64 entries, and an entry fits a log segment of 4 MiB; snapshots come in pieces of 1 MiB.
pub(crate) const MAX_RAFT_MESSAGE: usize = 65 * (4 << 20);

/// Answers for this manager's store.
#[derive(Clone)]
pub(crate) struct RaftService {
    shared: Arc<Shared>,
}

impl RaftService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn admit(&self, request: &Request<RaftCallRequest>, kind: Kind) -> Result<(), Status> {
        let RaftCallRequest { from, target, .. } = *request.get_ref();
        let own = self.shared.store.raft_id();
        if target != own {
            // It was replaced, or restored from a backup: what was meant for the old one must not reach the new one.
            return Err(Status::failed_precondition(format!("this is raft member {own}; {target} is not here any more")));
        }
        let caller = caller(request)?;
        let node = caller.node()?;
        if from == own || from == 0 || *node == self.shared.local.id {
            return Err(Status::invalid_argument(format!("from: raft member {from} does not call member {own}")));
        }
        let peer = request.extensions().get::<ConnectionInfo>().and_then(|connection| connection.peer.as_deref());
        let since = peer.map(|peer| peer.not_before).ok_or_else(|| Status::permission_denied("raft calls need a certificate"))?;
        let members = self.shared.group.members();
        if members.iter().any(|member| member.raft_id == from && member.member.node_id == node.as_str()) {
            return Ok(());
        }
        let view = self.shared.store.view();
        let stored = view.node(node).map(|node| &**node);
        let known = Known {
            members: &members,
            node: stored,
            // Read only if it matters.
            certified: stored.filter(|node| node.role != NodeRole::Manager).and_then(certificate_start),
            leader: self.shared.store.leadership().borrow().leader.as_ref().map(|(leader, _)| *leader),
        };
        admit(Calling { call: call_of(kind), from, node, since }, known).map_err(|refusal| {
            match refusal {
                NotAdmitted::Forged { .. } => {
                    tracing::warn!(%node, from, why = %refusal, "raft call refused");
                    Status::permission_denied(refusal.to_string())
                }
                // Those who do not know it yet ask again and again.
                NotAdmitted::Replaced { .. } | NotAdmitted::Removed { .. } => {
                    tracing::debug!(%node, from, why = %refusal, "raft call refused");
                    Status::not_found(refusal.to_string())
                }
            }
        })
    }
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn call(&self, request: Request<RaftCallRequest>) -> Result<Response<RaftCallResponse>, Status> {
        let kind = Kind::try_from(request.get_ref().kind)
            .map_err(|_| Status::unimplemented(format!("kind: this manager knows no raft call {}", request.get_ref().kind)))?;
        self.admit(&request, kind)?;
        let RaftCallRequest { from, payload, .. } = request.into_inner();
        match self.shared.store.answer_from(from, call_of(kind), &payload).await {
            Ok(payload) => Ok(Response::new(RaftCallResponse { payload })),
            Err(error @ (AnswerError::Forged { .. } | AnswerError::Impossible { .. })) => {
                tracing::warn!(%error, "raft call refused");
                Err(Status::permission_denied(error.to_string()))
            }
            Err(error @ (AnswerError::Codec(_) | AnswerError::Gap(_))) => {
                tracing::warn!(error = %chain(&error), "a raft call could not be understood");
                Err(Status::invalid_argument(chain(&error)))
            }
            Err(error) => Err(Status::unavailable(chain(&error))),
        }
    }
}
