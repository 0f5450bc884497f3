//! The leader's CA loop: signs what waits (spec wire-behaviour 4.3).

use crate::clock::system_time;
use crate::drive::{DriveError, Failed, Term, after_failure};
use crate::shared::Shared;
use skep_ca::{BadKey, CaError, RootCa, Secret, Subject};
use skep_failpoint::failpoint;
use skep_store::{FeedEvent, View};
use skep_types::{Action, Certificate, Change, Cluster, ClusterView as _, IssuanceState, Membership, Node, NodeId, Object};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// After a failure that may pass, all that waits is tried again after this time (`SK/ca/server.go`).
const RETRY: Duration = Duration::from_secs(10);

/// Signs until the term ends.
pub(crate) async fn sign(shared: Arc<Shared>, term: Term) -> Result<(), DriveError> {
    let (view, mut feed) = shared.watch();
    let mut waiting = waiting_nodes(&view);
    drop(view);
    loop {
        let is_done = sign_waiting(&shared, &mut waiting).await?;
        let retry = async { if is_done { std::future::pending().await } else { tokio::time::sleep(RETRY).await } };
        tokio::select! {
            () = term.stop.cancelled() => return Ok(()),
            () = retry => {}
            event = feed.next() => match event {
                Some(FeedEvent::Commit(commit)) => waiting.extend(commit.changes.iter().filter_map(waiting_in)),
                Some(FeedEvent::Resync) => {
                    let view = shared.store.view();
                    feed.resume(view.version());
                    waiting = waiting_nodes(&view);
                }
                None => return Err(DriveError::StoreClosed),
            },
        }
    }
}

fn waiting_nodes(view: &View) -> BTreeSet<NodeId> {
    view.nodes().filter(|node| waits(node)).map(|node| node.id.clone()).collect()
}

fn waiting_in(change: &Change) -> Option<NodeId> {
    match change {
        Change::Created(Object::Node(node)) | Change::Updated { new: Object::Node(node), .. } if waits(node) => Some(node.id.clone()),
        _ => None,
    }
}

fn waits(node: &Node) -> bool {
    match node.certificate.state {
        IssuanceState::Renew => true,
        IssuanceState::Pending => node.spec.membership == Membership::Accepted,
        IssuanceState::Unknown | IssuanceState::Issued | IssuanceState::Failed | IssuanceState::Rotate => false,
    }
}

/// Signs for all that wait. `false`: something has to be tried again later.
async fn sign_waiting(shared: &Shared, waiting: &mut BTreeSet<NodeId>) -> Result<bool, DriveError> {
    while let Some(id) = waiting.first().cloned() {
        let node = {
            let view = shared.store.view();
            let (Some(node), Some(cluster)) = (view.node(&id).filter(|node| waits(node)), view.cluster()) else {
                waiting.remove(&id);
                continue;
            };
            match issue(cluster, node, shared) {
                Ok(certificate) => Node { certificate, ..Node::clone(node) },
                Err(error) => {
                    tracing::warn!(node = %id, error = %error, "the certificate cannot be signed now");
                    return Ok(false);
                }
            }
        };
        let state = node.certificate.state;
        failpoint!("manager.ca.signed");
        match shared.propose(vec![Action::Update(Object::Node(Arc::new(node)))]).await.map_err(after_failure) {
            Ok(_) => {
                failpoint!("manager.ca.committed");
                tracing::info!(node = %id, ?state, "certificate decided");
                waiting.remove(&id);
            }
            // The node moved on: look at it again.
            Err(Failed::Stale) => {}
            Err(Failed::Pause) => return Ok(false),
            Err(Failed::End(error)) => return Err(error),
        }
    }
    Ok(true)
}

/// The certificate record with its decision: issued, or failed for good. An error may pass.
fn issue(cluster: &Cluster, node: &Node, shared: &Shared) -> Result<Certificate, CaError> {
    let root = root_of(cluster)?;
    let subject = Subject { node: node.id.clone(), role: node.role, cluster: cluster.id.clone() };
    let lifetime = cluster.spec.ca_config.node_cert_expiry.unwrap_or(skep_ca::DEFAULT_LIFETIME);
    let wanted = &node.certificate;
    Ok(match root.issue(&wanted.csr, &subject, lifetime, system_time(shared.now())) {
        Ok(issued) => Certificate {
            state: IssuanceState::Issued,
            certificate: issued.chain_pem.into_bytes(),
            role: node.role,
            err: String::new(),
            ..wanted.clone()
        },
        Err(error @ CaError::Request(_)) => {
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
            Certificate { state: IssuanceState::Failed, err: reason, certificate: Vec::new(), ..wanted.clone() }
        }
        Err(error) => return Err(error),
    })
}

/// The authority as the store has it: during a root rotation the new key signs and the old root is trusted.
fn root_of(cluster: &Cluster) -> Result<RootCa, CaError> {
    let text = |pem: &[u8]| String::from_utf8_lossy(pem).into_owned();
    let secret = |pem: &[u8]| Secret::new(text(pem));
    let ca = &cluster.root_ca;
    match &ca.root_rotation {
        Some(rotation) if !rotation.ca_key.0.is_empty() => {
            let old = skep_ca::RootBundle::parse(&text(&ca.ca_cert))?;
            RootCa::during_rotation(&old, &text(&rotation.ca_cert), &secret(&rotation.ca_key.0), &text(&rotation.cross_signed_ca_cert))
        }
        _ if ca.ca_key.0.is_empty() => Err(BadKey::NotPem.into()),
        _ => RootCa::load(&text(&ca.ca_cert), &secret(&ca.ca_key.0)),
    }
}
