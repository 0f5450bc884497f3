//! The services `CA` and `NodeCA`: how nodes get and renew their certificates (spec wire-behaviour 4.2 to 4.4).

mod admission; // new nodes, many at a time
mod authority; // what signs at this moment
mod external; // a CA outside the cluster
mod ghosts; // who was let in and never came
mod guests; // certificates that are no node's
mod root; // which root the cluster shall have
mod rotate; // moving to a new root
mod signer; // what waits for a certificate
mod throttle; // wrong tokens per address
mod unheard; // who asks again

pub(crate) use external::{check_entries, check_signs, cross_sign, pin_entries};
pub(crate) use guests::CertificatesService;
pub(crate) use root::{WantedRoot, check_lifetime, requires_external, wanted_root};

use crate::authorize::{Caller, caller};
use crate::control::errors::{self, id, invalid, missing};
use crate::drive::{DriveError, Term, chain};
use crate::shared::Shared;
use admission::{Admission, Admissions};
use skep_ca::{MAX_CSR, NodeRole, role_of_token};
use skep_proto::{ToWire as _, parse, v1};
use skep_store::{ApplyError, FeedEvent, ProposeError};
use skep_types::{
    Action, Availability, Certificate, ClusterView as _, FieldError, IssuanceState, Kind, Membership, Node, NodeId, Object, Version,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use throttle::Throttle;
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

/// A renewal that loses a race with another write of the node is decided anew this often.
const RENEWAL_ATTEMPTS: usize = 20;
/// A status call without a deadline ends after this time; callers ask again.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// New nodes that may be without a certificate because nobody can sign now. More are not let in.
const MOST_UNSIGNED: usize = 4096;

/// Where the CA's services meet the leader's loops.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    admissions: Admissions,
    throttle: Mutex<Throttle>,
    /// Nodes that wait for a certificate, as the signer knows.
    waiting: AtomicUsize,
    /// The cluster's root settings have changed.
    pub(crate) rotation: Notify,
}

/// Lets nodes in, signs certificates and rotates the root until the term ends.
pub(crate) async fn run(shared: Arc<Shared>, term: Term) -> Result<(), DriveError> {
    let loops =
        async { tokio::try_join!(admission::admit(&shared), signer::sign(&shared), rotate::rotate(&shared), ghosts::clear(&shared)) };
    tokio::select! {
        () = term.stop.cancelled() => Ok(()),
        outcome = loops => outcome.map(|_| ()),
    }
}

/// What nodes call to get certificates.
#[derive(Clone)]
pub(crate) struct CaService {
    shared: Arc<Shared>,
}

impl CaService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The role that a token gives, if this caller may present one now.
    fn role_of(&self, caller: &Caller, token: &str) -> Result<NodeRole, Status> {
        let (now, throttle) = (Instant::now(), &self.shared.ca.throttle);
        let lock = || throttle.lock().unwrap_or_else(PoisonError::into_inner);
        lock().check(caller.addr, now).map_err(|wait| {
            let seconds = wait.as_secs() + 1;
            Status::resource_exhausted(format!("too many wrong join tokens came from this address; wait {seconds} s"))
        })?;
        let view = self.shared.store.view();
        let cluster = view.cluster().ok_or_else(|| Status::aborted("the CA has not started yet"))?;
        let tokens = &cluster.root_ca.join_tokens;
        role_of_token(token, &tokens.manager.0, &tokens.worker.0).ok_or_else(|| {
            lock().failed(caller.addr, now);
            tracing::warn!(from = ?caller.addr, "a wrong join token was presented");
            Status::invalid_argument("token: A valid join token is necessary to join this cluster")
        })
    }

    /// A new node with the role that its token gives.
    async fn admit(&self, caller: &Caller, csr: Vec<u8>, token: &str, availability: Availability) -> Result<NodeId, Status> {
        let role = self.role_of(caller, token)?;
        {
            let leadership = self.shared.store.leadership();
            let now = leadership.borrow();
            if !now.is_leader {
                let leader = now.leader.clone().map(|(_, member)| member);
                return Err(errors::propose(ProposeError::NotLeader { leader }));
            }
        }
        let unsigned = self.shared.ca.waiting.load(Ordering::Relaxed);
        if unsigned >= MOST_UNSIGNED {
            let problem = format!("{unsigned} nodes wait for a certificate that nobody can sign now; see the leader's log, then try again");
            return Err(Status::resource_exhausted(problem));
        }
        self.shared.ca.admissions.ask(Admission { csr, role, availability }).await
    }

    /// A known node wants a new certificate: with the role it has, not the one it wishes.
    async fn renew(&self, id: &NodeId, csr: Vec<u8>) -> Result<Membership, Status> {
        // Found out before the record of the present certificate is gone.
        skep_ca::check_request(&csr).map_err(|error| invalid(FieldError::new("csr", chain(&error))))?;
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
        Ok(Response::new(v1::GetUnlockKeyResponse {
            unlock_key: cluster.unlock_key().map(|key| key.bytes().to_vec()).unwrap_or_default(),
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
            None => (self.admit(&caller, request.csr, &request.token, availability).await?, Membership::Accepted),
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
