//! Letting new nodes in: many at a time, each with its certificate at once.
//!
//! A cluster that starts again has thousands of nodes joining within seconds. What waits is taken together: signed on one thread,
//! written in one transaction, and found signed by the question that each node asks next. When the authority cannot sign now, or
//! somebody outside has to be asked, the nodes are written as waiting, and the signer's loop comes to them.

use super::authority::Authority;
use super::unheard::Unheard;
use crate::control::errors;
use crate::drive::{DriveError, Failed, after_failure, chain};
use crate::shared::Shared;
use skep_ca::{NodeRole, check_request, key_of_request};
use skep_failpoint::failpoint;
use skep_store::{ProposeError, View};
use skep_types::{
    Action, Availability, Certificate, Cluster, ClusterView as _, IssuanceState, Membership, Node, NodeId, NodeSpec, Object, Timestamp,
    UpdateOrder,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Status;

/// Nodes that may wait to be let in, with a request of at most 16 KiB each. Beyond that, callers wait for a place.
const WAITING: usize = 1024;
/// How long a caller waits: genuine nodes give up after 5 s (spec wire-behaviour 4.2).
const PATIENCE: Duration = Duration::from_secs(4);
/// Nodes in one transaction: with requests of usual size some 300 KiB.
const BATCH: usize = 128;
/// When so many came together, more are coming: the batch waits for them, but not longer than they leave between each other, and
/// not for ever. A single node never waits.
const BUSY: usize = 3;
const GAP: Duration = Duration::from_millis(10);
const GATHER: Duration = Duration::from_millis(200);
/// A write that is refused, for an id is taken or a node changed, is drafted again this often (`SK/ca/server.go`).
const ATTEMPTS: usize = 3;

/// A node that wants to join, with a token that was right.
#[derive(Debug)]
pub(super) struct Admission {
    pub csr: Vec<u8>,
    pub role: NodeRole,
    pub availability: Availability,
}

#[derive(Debug)]
struct Waiting {
    admission: Admission,
    answer: oneshot::Sender<Result<NodeId, Status>>,
}

/// Where nodes wait for the leader's loop.
#[derive(Debug)]
pub(super) struct Admissions {
    queue: mpsc::Sender<Waiting>,
    /// Held by the loop of the term.
    waiting: Mutex<mpsc::Receiver<Waiting>>,
}

impl Default for Admissions {
    fn default() -> Self {
        // Full: see `PATIENCE`.
        let (queue, waiting) = mpsc::channel(WAITING);
        Self { queue, waiting: Mutex::new(waiting) }
    }
}

impl Admissions {
    /// Waits until the node is in the store.
    pub(super) async fn ask(&self, admission: Admission) -> Result<NodeId, Status> {
        let busy = || Status::unavailable("too many nodes are joining at this moment; try again");
        let asked = async {
            let (answer, answered) = oneshot::channel();
            self.queue.send(Waiting { admission, answer }).await.map_err(|_| busy())?;
            // The term ended on the way. The node may have been let in; nobody told it who it is, so that it asks again.
            answered.await.unwrap_or_else(|_| Err(Status::unavailable("the leader has changed; try again")))
        };
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(busy()))
    }
}

/// Lets nodes in until the term ends.
pub(super) async fn admit(shared: &Shared) -> Result<(), DriveError> {
    let mut queue = shared.ca.admissions.waiting.lock().await;
    let view = shared.store.view();
    let mut unheard = tokio::task::spawn_blocking(move || Unheard::of(&view)).await.map_err(|_| DriveError::Panicked("CA"))?;
    let mut authority = None;
    let mut busy = false;
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        if queue.recv_many(&mut batch, BATCH).await == 0 {
            return Ok(()); // never: the desk holds a sender
        }
        let end = Instant::now() + GATHER;
        busy |= batch.len() >= BUSY;
        while busy && batch.len() < BATCH {
            let free = BATCH - batch.len();
            if timeout_at(end.min(Instant::now() + GAP), queue.recv_many(&mut batch, free)).await.is_err() {
                break;
            }
        }
        // Whoever gave up is not let in: it will ask again.
        batch.retain(|waiting| !waiting.answer.is_closed());
        busy = batch.len() >= BUSY;
        let mut size = BATCH;
        while !batch.is_empty() {
            let rest = batch.split_off(batch.len().min(size));
            match admit_batch(shared, batch, &mut authority, &mut unheard).await? {
                Batch::Done => batch = rest,
                Batch::TooLarge(mut again) => {
                    size = (again.len() / 2).max(1);
                    again.extend(rest);
                    batch = again;
                }
            }
        }
    }
}

enum Batch {
    Done,
    TooLarge(Vec<Waiting>),
}

async fn admit_batch(
    shared: &Shared,
    batch: Vec<Waiting>,
    authority: &mut Option<Arc<Authority>>,
    unheard: &mut Unheard,
) -> Result<Batch, DriveError> {
    let Some(cluster) = shared.store.view().cluster().cloned() else {
        batch.into_iter().for_each(|waiting| drop(waiting.answer.send(Err(Status::aborted("the CA has not started yet")))));
        return Ok(Batch::Done);
    };
    *authority = match Authority::of(&cluster, authority.take()) {
        Ok(authority) => Some(authority),
        Err(error) => {
            tracing::debug!(%error, "nodes are let in without a certificate, for the authority cannot sign now");
            None
        }
    };
    let mut attempt = 0;
    let mut batch = batch;
    loop {
        let view = shared.store.view();
        let candidates = batch.into_iter().map(|waiting| Candidate::of(waiting, unheard, &view)).collect();
        let (drafts, refused) = draft(candidates, authority.clone(), &cluster, shared.now()).await?;
        for (waiting, refusal) in refused {
            let _ = waiting.answer.send(Err(refusal));
        }
        if drafts.is_empty() {
            return Ok(Batch::Done);
        }
        // Before the write: nobody may hear of its outcome.
        for Draft { key, node, .. } in &drafts {
            unheard.note(key.clone(), node, &view);
        }
        drop(view);
        failpoint!("manager.ca.drafted");
        match shared.propose(drafts.iter().map(Draft::action).collect()).await {
            Ok(_) => {
                failpoint!("manager.ca.admitted");
                let nodes: Vec<_> = drafts.iter().map(|draft| draft.node.clone()).collect();
                renew_if_root_moved(shared, authority.as_deref(), &nodes).await?;
                for Draft { waiting, node, is_new, .. } in drafts {
                    tracing::info!(node = %node.id, role = %node.role, state = ?node.certificate.state, again = !is_new, "node admitted");
                    let _ = waiting.answer.send(Ok(node.id.clone()));
                }
                return Ok(Batch::Done);
            }
            // An id that is taken is drawn again, a node that changed meanwhile is looked at again.
            Err(ProposeError::Refused(_)) if attempt < ATTEMPTS => {
                attempt += 1;
                batch = drafts.into_iter().map(|draft| draft.waiting).collect();
            }
            // Long requests: fewer at a time. No single node comes near the limit.
            Err(ProposeError::TooLarge { .. }) if drafts.len() > 1 => {
                return Ok(Batch::TooLarge(drafts.into_iter().map(|draft| draft.waiting).collect()));
            }
            Err(error) => {
                for Draft { waiting, .. } in drafts {
                    let _ = waiting.answer.send(Err(errors::propose(error.clone())));
                }
                return match after_failure(error) {
                    Failed::Stale | Failed::Pause => Ok(Batch::Done),
                    Failed::End(error) => Err(error),
                };
            }
        }
    }
}

/// A node that waits, and the one that it is if it asked before.
struct Candidate {
    waiting: Waiting,
    key: Vec<u8>,
    known: Option<Arc<Node>>,
}

impl Candidate {
    fn of(waiting: Waiting, unheard: &Unheard, view: &View) -> Self {
        // What has no key is refused when it is to be signed.
        let key = key_of_request(&waiting.admission.csr).unwrap_or_default();
        let known = unheard.find(&key, waiting.admission.role, view);
        Self { waiting, key, known }
    }

    /// The node to be, without a certificate. One that is known stays who it is, with the new request.
    fn node(&self, vxlan_port: u32) -> Node {
        let Admission { csr, role, availability } = &self.waiting.admission;
        let id = self.known.as_ref().map_or_else(|| NodeId::from_random(rand::random()), |known| known.id.clone());
        let certificate =
            Certificate { role: *role, csr: csr.clone(), state: IssuanceState::Pending, cn: id.to_string(), ..Certificate::default() };
        match &self.known {
            Some(known) => {
                let drain_order = UpdateOrder::default();
                let spec = NodeSpec { availability: *availability, drain_order, ..known.spec.clone() };
                Node { spec, certificate, ..Node::clone(known) }
            }
            None => {
                let spec =
                    NodeSpec { desired_role: *role, membership: Membership::Accepted, availability: *availability, ..NodeSpec::default() };
                Node { spec, certificate, role: *role, vxlan_port, ..Node::new(id) }
            }
        }
    }
}

/// What is to be written for a node that waits.
struct Draft {
    waiting: Waiting,
    key: Vec<u8>,
    node: Arc<Node>,
    is_new: bool,
}

impl Draft {
    fn action(&self) -> Action {
        let object = Object::Node(self.node.clone());
        if self.is_new { Action::Create(object) } else { Action::Update(object) }
    }
}

/// The nodes to be, with certificates if they can be had now; and the refusals of requests that nobody can sign.
async fn draft(
    candidates: Vec<Candidate>,
    authority: Option<Arc<Authority>>,
    cluster: &Cluster,
    now: Timestamp,
) -> Result<(Vec<Draft>, Vec<(Waiting, Status)>), DriveError> {
    let vxlan_port = cluster.vxlan_port;
    let work = move || {
        let (mut drafts, mut refused) = (Vec::with_capacity(candidates.len()), Vec::new());
        for candidate in candidates {
            let mut node = candidate.node(vxlan_port);
            let problem = match authority.as_ref().and_then(|authority| authority.certify(&node, now)) {
                Some(Ok(certificate)) if certificate.state == IssuanceState::Failed => Some(certificate.err),
                Some(Ok(certificate)) => {
                    node.certificate = certificate;
                    None
                }
                // Signed later; that it can be is settled now.
                Some(Err(_)) | None => check_request(&node.certificate.csr).err().map(|error| chain(&error)),
            };
            let Candidate { waiting, key, known } = candidate;
            match problem {
                Some(problem) => refused.push((waiting, Status::invalid_argument(format!("csr: {problem}")))),
                None => drafts.push(Draft { waiting, key, node: Arc::new(node), is_new: known.is_none() }),
            }
        }
        (drafts, refused)
    };
    // A batch takes some 20 ms of computing, in which heartbeats must go on.
    tokio::task::spawn_blocking(work).await.map_err(|_| DriveError::Panicked("CA"))
}

/// A root rotation may have begun and even ended between signing and writing, and nobody waited for nodes that were not there yet.
/// They are signed again before they hear of their certificates.
async fn renew_if_root_moved(shared: &Shared, authority: Option<&Authority>, nodes: &[Arc<Node>]) -> Result<(), DriveError> {
    let Some(authority) = authority else { return Ok(()) };
    loop {
        let actions: Vec<Action> = {
            let view = shared.store.view();
            if view.cluster().is_some_and(|cluster| authority.is_of(cluster)) {
                return Ok(());
            }
            let written = nodes.iter().filter_map(|node| view.node(&node.id));
            let unchanged = written.filter(|node| node.certificate.state == IssuanceState::Issued);
            let renewed = unchanged.map(|node| {
                let certificate = Certificate { state: IssuanceState::Renew, ..node.certificate.clone() };
                Action::Update(Object::Node(Arc::new(Node { certificate, ..Node::clone(node) })))
            });
            renewed.collect()
        };
        if actions.is_empty() {
            return Ok(());
        }
        match shared.propose(actions).await.map_err(after_failure) {
            Ok(_) => return Ok(()),
            Err(Failed::Stale) => {}
            Err(Failed::Pause) => crate::drive::pause().await,
            Err(Failed::End(error)) => return Err(error),
        }
    }
}
