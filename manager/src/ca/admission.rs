//! Letting new nodes in: many at a time, each with its certificate at once.
//!
//! A cluster that starts again has thousands of nodes joining within seconds. What waits is taken together: signed on one thread,
//! written in one transaction, and found signed by the question that each node asks next. When the authority cannot sign now, or
//! somebody outside has to be asked, the nodes are written as waiting, and the signer's loop comes to them.

use super::authority::Authority;
use crate::control::errors;
use crate::drive::{DriveError, Failed, after_failure};
use crate::shared::Shared;
use skep_ca::NodeRole;
use skep_failpoint::failpoint;
use skep_store::{ApplyError, ProposeError};
use skep_types::{
    Action, Availability, Certificate, Cluster, ClusterView as _, IssuanceState, Membership, Node, NodeId, NodeSpec, Object, Timestamp,
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
/// A new id that is taken is drawn again this often (`SK/ca/server.go`).
const ID_ATTEMPTS: usize = 3;

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
            match admit_batch(shared, batch, &mut authority).await? {
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

async fn admit_batch(shared: &Shared, batch: Vec<Waiting>, authority: &mut Option<Arc<Authority>>) -> Result<Batch, DriveError> {
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
        let (drafts, refused) = draft(batch, authority.clone(), &cluster, shared.now()).await?;
        for (waiting, refusal) in refused {
            let _ = waiting.answer.send(Err(refusal));
        }
        if drafts.is_empty() {
            return Ok(Batch::Done);
        }
        let actions = drafts.iter().map(|(_, node)| Action::Create(Object::Node(node.clone()))).collect();
        failpoint!("manager.ca.drafted");
        match shared.propose(actions).await {
            Ok(_) => {
                failpoint!("manager.ca.admitted");
                let nodes: Vec<_> = drafts.iter().map(|(_, node)| node.clone()).collect();
                renew_if_root_moved(shared, authority.as_deref(), &nodes).await?;
                for (waiting, node) in drafts {
                    tracing::info!(node = %node.id, role = %node.role, state = ?node.certificate.state, "node admitted");
                    let _ = waiting.answer.send(Ok(node.id.clone()));
                }
                return Ok(Batch::Done);
            }
            Err(ProposeError::Refused(ApplyError::IdTaken { .. })) if attempt < ID_ATTEMPTS => {
                attempt += 1;
                batch = drafts.into_iter().map(|(waiting, _)| waiting).collect();
            }
            // Long requests: fewer at a time. No single node comes near the limit.
            Err(ProposeError::TooLarge { .. }) if drafts.len() > 1 => {
                return Ok(Batch::TooLarge(drafts.into_iter().map(|(waiting, _)| waiting).collect()));
            }
            Err(error) => {
                for (waiting, _) in drafts {
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

type Drafts = Vec<(Waiting, Arc<Node>)>;

/// The nodes to be, with certificates if they can be had now; and the refusals of requests that nobody can sign.
async fn draft(
    batch: Vec<Waiting>,
    authority: Option<Arc<Authority>>,
    cluster: &Cluster,
    now: Timestamp,
) -> Result<(Drafts, Vec<(Waiting, Status)>), DriveError> {
    let vxlan_port = cluster.vxlan_port;
    let work = move || {
        let (mut drafts, mut refused) = (Vec::with_capacity(batch.len()), Vec::new());
        for waiting in batch {
            let mut node = new_node(NodeId::from_random(rand::random()), &waiting.admission, vxlan_port);
            if let Some(Ok(certificate)) = authority.as_ref().and_then(|authority| authority.certify(&node, now)) {
                if certificate.state == IssuanceState::Failed {
                    refused.push((waiting, Status::invalid_argument(format!("csr: {}", certificate.err))));
                    continue;
                }
                node.certificate = certificate;
            }
            drafts.push((waiting, Arc::new(node)));
        }
        (drafts, refused)
    };
    // A batch takes some 20 ms of computing, in which heartbeats must go on.
    tokio::task::spawn_blocking(work).await.map_err(|_| DriveError::Panicked("CA"))
}

fn new_node(id: NodeId, admission: &Admission, vxlan_port: u32) -> Node {
    let Admission { csr, role, availability } = admission;
    let certificate =
        Certificate { role: *role, csr: csr.clone(), state: IssuanceState::Pending, cn: id.to_string(), ..Certificate::default() };
    Node {
        spec: NodeSpec { desired_role: *role, membership: Membership::Accepted, availability: *availability, ..NodeSpec::default() },
        certificate,
        role: *role,
        vxlan_port,
        ..Node::new(id)
    }
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
