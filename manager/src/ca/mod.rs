//! The services `CA` and `NodeCA`: how nodes get and renew their certificates (spec wire-behaviour 4.2 to 4.4).

mod signer;

pub(crate) use signer::sign;

use crate::authorize::{Caller, caller};
use crate::control::errors::{self, id, invalid, missing};
use crate::shared::Shared;
use skep_ca::{NodeRole, role_of_token};
use skep_proto::{ToWire as _, parse, v1};
use skep_store::{ApplyError, FeedEvent, ProposeError};
use skep_types::{
    Action, Availability, Certificate, ClusterView as _, FieldError, IssuanceState, Kind, Membership, Node, NodeId, NodeSpec, Object,
    Version,
};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// A new id that is taken is drawn again this often (`SK/ca/server.go`).
const ID_ATTEMPTS: usize = 3;
/// A renewal that loses a race with another write of the node is decided anew this often.
const RENEWAL_ATTEMPTS: usize = 20;
/// Far above any certificate request.
const MAX_CSR: usize = 16 * 1024;
/// A status call without a deadline ends after this time; callers ask again.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What nodes call to get certificates.
#[derive(Clone)]
pub(crate) struct CaService {
    shared: Arc<Shared>,
}

impl CaService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A new node with the role that its token gives.
    async fn admit(&self, csr: Vec<u8>, token: &str, availability: Availability) -> Result<NodeId, Status> {
        let (role, vxlan_port) = {
            let view = self.shared.store.view();
            let cluster = view.cluster().ok_or_else(|| Status::aborted("the CA has not started yet"))?;
            let tokens = &cluster.root_ca.join_tokens;
            let role = role_of_token(token, &tokens.manager.0, &tokens.worker.0)
                .ok_or_else(|| Status::invalid_argument("token: A valid join token is necessary to join this cluster"))?;
            (role, cluster.vxlan_port)
        };
        for _ in 0..ID_ATTEMPTS {
            let id = NodeId::from_random(rand::random());
            let node = new_node(id.clone(), role, csr.clone(), availability, vxlan_port);
            match self.shared.propose(vec![Action::Create(Object::Node(Arc::new(node)))]).await {
                Ok(_) => {
                    tracing::info!(node = %id, %role, "node admitted");
                    return Ok(id);
                }
                Err(ProposeError::Refused(ApplyError::IdTaken { .. })) => {}
                Err(error) => return Err(errors::propose(error)),
            }
        }
        Err(Status::unavailable("no free node id was found; try again"))
    }

    /// A known node wants a new certificate: with the role it has, not the one it wishes.
    async fn renew(&self, id: &NodeId, csr: Vec<u8>) -> Result<Membership, Status> {
        for _ in 0..RENEWAL_ATTEMPTS {
            let node = {
                let view = self.shared.store.view();
                let node = view.node(id).ok_or_else(|| missing(Kind::Node, id.as_str()))?;
                let certificate = Certificate {
                    role: node.role,
                    csr: csr.clone(),
                    state: IssuanceState::Renew,
                    cn: id.to_string(),
                    ..Certificate::default()
                };
                Node { certificate, ..Node::clone(node) }
            };
            let membership = node.spec.membership;
            match self.shared.propose(vec![Action::Update(Object::Node(Arc::new(node)))]).await {
                Ok(_) => return Ok(membership),
                Err(ProposeError::Refused(ApplyError::Stale { .. })) => {}
                Err(error) => return Err(errors::propose(error)),
            }
        }
        Err(Status::unavailable("the node is being changed too often; try again"))
    }
}

fn new_node(id: NodeId, role: NodeRole, csr: Vec<u8>, availability: Availability, vxlan_port: u32) -> Node {
    let certificate = Certificate { role, csr, state: IssuanceState::Pending, cn: id.to_string(), ..Certificate::default() };
    Node {
        spec: NodeSpec { desired_role: role, membership: Membership::Accepted, availability, ..NodeSpec::default() },
        certificate,
        role,
        vxlan_port,
        ..Node::new(id)
    }
}

/// Whose certificate a caller may renew: its own.
fn renewing(caller: &Caller) -> Option<&NodeId> {
    caller.node.as_ref().filter(|_| caller.local || caller.role.is_some())
}

#[tonic::async_trait]
impl v1::ca_server::Ca for CaService {
    async fn get_root_ca_certificate(
        &self,
        _: Request<v1::GetRootCaCertificateRequest>,
    ) -> Result<Response<v1::GetRootCaCertificateResponse>, Status> {
        let view = self.shared.store.view();
        let cluster = view.cluster().ok_or_else(|| Status::aborted("the CA has not started yet"))?;
        Ok(Response::new(v1::GetRootCaCertificateResponse { certificate: cluster.root_ca.ca_cert.clone() }))
    }

    /// An empty key means that managers are not locked.
    async fn get_unlock_key(&self, _: Request<v1::GetUnlockKeyRequest>) -> Result<Response<v1::GetUnlockKeyResponse>, Status> {
        let view = self.shared.store.view();
        let cluster = view.cluster().ok_or_else(|| Status::aborted("the CA has not started yet"))?;
        let key = cluster.unlock_keys.iter().find(|key| key.subsystem == skep_ca::MANAGER_NAME);
        Ok(Response::new(v1::GetUnlockKeyResponse {
            unlock_key: key.map(|key| key.key.0.clone()).unwrap_or_default(),
            version: Some(Version::to_wire(&cluster.meta.version)),
        }))
    }
}

#[tonic::async_trait]
impl v1::node_ca_server::NodeCa for CaService {
    async fn issue_node_certificate(
        &self,
        request: Request<v1::IssueNodeCertificateRequest>,
    ) -> Result<Response<v1::IssueNodeCertificateResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        if request.csr.is_empty() {
            return Err(invalid(FieldError::new("csr", "is missing")));
        }
        if request.csr.len() > MAX_CSR {
            return Err(invalid(FieldError::new("csr", format!("is {} bytes long; at most {MAX_CSR} are accepted", request.csr.len()))));
        }
        let availability: Availability = parse("availability", request.availability).map_err(invalid)?;
        let (node_id, membership) = match renewing(&caller) {
            Some(node) => (node.clone(), self.renew(node, request.csr).await?),
            None => (self.admit(request.csr, &request.token, availability).await?, Membership::Accepted),
        };
        skep_failpoint::failpoint!("manager.ca.requested");
        Ok(Response::new(v1::IssueNodeCertificateResponse { node_id: node_id.to_string(), node_membership: membership.to_wire() }))
    }

    /// Held open until the certificate is there, was refused, or is asked to be renewed.
    async fn node_certificate_status(
        &self,
        request: Request<v1::NodeCertificateStatusRequest>,
    ) -> Result<Response<v1::NodeCertificateStatusResponse>, Status> {
        let id: NodeId = id("node_id", &request.get_ref().node_id)?;
        let (mut view, mut feed) = self.shared.watch();
        let wait = async {
            loop {
                let node = view.node(&id).ok_or_else(|| missing(Kind::Node, id.as_str()))?.clone();
                if matches!(node.certificate.state, IssuanceState::Issued | IssuanceState::Failed | IssuanceState::Rotate) {
                    return Ok(node.certificate.to_wire());
                }
                loop {
                    match feed.next().await {
                        Some(FeedEvent::Commit(commit)) if !commit.changes.iter().any(|change| change.object().id() == id.as_str()) => {}
                        Some(FeedEvent::Commit(_)) => break,
                        Some(FeedEvent::Resync) => {
                            feed.resume(self.shared.store.view().version());
                            break;
                        }
                        None => return Err(Status::unavailable("this manager stops")),
                    }
                }
                view = self.shared.store.view();
            }
        };
        let certificate: v1::Certificate = tokio::select! {
            outcome = wait => outcome?,
            () = self.shared.stop.cancelled() => return Err(Status::unavailable("this manager stops")),
            () = tokio::time::sleep(LONGEST_WAIT) => return Err(Status::deadline_exceeded("the certificate is not issued yet; ask again")),
        };
        Ok(Response::new(v1::NodeCertificateStatusResponse { status: certificate.status.clone(), certificate: Some(certificate) }))
    }
}
