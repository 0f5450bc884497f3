//! The leader's loop that signs what waits (spec wire-behaviour 4.3): renewals, and new nodes that could not be signed at once.

use super::authority::Authority;
use crate::clock::system_time;
use crate::drive::{DriveError, Failed, after_failure, chain};
use crate::shared::Shared;
use skep_failpoint::failpoint;
use skep_store::{FeedEvent, ProposeError, View};
use skep_types::{Action, Change, ClusterView as _, IssuanceState, Membership, Node, NodeId, Object};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// After a failure that may pass, all that waits is tried again after this time (`SK/ca/server.go`).
const RETRY: Duration = Duration::from_secs(10);
/// Nodes signed in one transaction; fewer after a race was lost, for a node that changed meanwhile spoils the whole transaction.
const BATCH: usize = 128;

/// Signs until the term ends.
pub(super) async fn sign(shared: &Shared) -> Result<(), DriveError> {
    let (view, mut feed) = shared.watch();
    let mut signer = Signer { shared, waiting: waiting_nodes(&view), authority: None, size: BATCH };
    drop(view);
    loop {
        let is_done = signer.sign_waiting().await?;
        shared.ca.waiting.store(signer.waiting.len(), Ordering::Relaxed);
        let retry = async { if is_done { std::future::pending().await } else { tokio::time::sleep(RETRY).await } };
        tokio::select! {
            () = retry => {}
            event = feed.next() => signer.note(event, &mut feed)?,
        }
        // What came meanwhile is signed together.
        while let Some(event) = feed.try_next() {
            signer.note(Some(event), &mut feed)?;
        }
    }
}

struct Signer<'a> {
    shared: &'a Shared,
    waiting: BTreeSet<NodeId>,
    authority: Option<Arc<Authority>>,
    size: usize,
}

impl Signer<'_> {
    fn note(&mut self, event: Option<FeedEvent>, feed: &mut skep_store::Feed) -> Result<(), DriveError> {
        match event {
            Some(FeedEvent::Commit(commit)) => self.waiting.extend(commit.changes.iter().filter_map(waiting_in)),
            Some(FeedEvent::Resync) => {
                let view = self.shared.store.view();
                feed.resume(view.version());
                self.waiting = waiting_nodes(&view);
            }
            None => return Err(DriveError::StoreClosed),
        }
        Ok(())
    }

    /// Signs for all that wait. `false`: something has to be tried again later.
    async fn sign_waiting(&mut self) -> Result<bool, DriveError> {
        while !self.waiting.is_empty() {
            let Some(nodes) = self.next_batch() else { return Ok(false) };
            if nodes.is_empty() {
                continue;
            }
            let (signed, all) = self.certify(nodes).await?;
            if signed.is_empty() {
                return Ok(false);
            }
            failpoint!("manager.ca.signed");
            let actions = signed.iter().map(|node| Action::Update(Object::Node(node.clone()))).collect();
            match self.shared.propose(actions).await {
                Ok(_) => {
                    failpoint!("manager.ca.committed");
                    for node in signed {
                        tracing::info!(node = %node.id, state = ?node.certificate.state, "certificate decided");
                        self.waiting.remove(&node.id);
                    }
                    self.size = (self.size * 2).min(BATCH);
                    if !all {
                        return Ok(false);
                    }
                }
                // Certificates take little room, but requests may be long.
                Err(ProposeError::TooLarge { .. }) if signed.len() > 1 => self.size = signed.len() / 2,
                Err(error) => match after_failure(error) {
                    // A node moved on: look at all of them again.
                    Failed::Stale => self.size = (signed.len() / 2).max(1),
                    Failed::Pause => return Ok(false),
                    Failed::End(error) => return Err(error),
                },
            }
        }
        Ok(true)
    }

    /// Nodes that still wait, as they are now; `None` if nothing can be signed now.
    fn next_batch(&mut self) -> Option<Vec<Arc<Node>>> {
        let view = self.shared.store.view();
        let cluster = view.cluster()?;
        match Authority::of(cluster, self.authority.take()) {
            Ok(authority) => self.authority = Some(authority),
            Err(error) => {
                tracing::warn!(error = %chain(&error), waiting = self.waiting.len(), "certificates cannot be signed now");
                return None;
            }
        }
        let looked_at: Vec<NodeId> = self.waiting.iter().take(self.size).cloned().collect();
        let mut nodes = Vec::with_capacity(looked_at.len());
        for id in looked_at {
            match view.node(&id).filter(|node| waits(node)) {
                Some(node) => nodes.push(node.clone()),
                None => drop(self.waiting.remove(&id)),
            }
        }
        Some(nodes)
    }

    /// The nodes with their decisions, and whether all were decided: what is not is tried again. Signing takes its time, in which
    /// heartbeats must go on.
    async fn certify(&self, nodes: Vec<Arc<Node>>) -> Result<(Vec<Arc<Node>>, bool), DriveError> {
        let Some(authority) = self.authority.clone() else { return Ok((Vec::new(), false)) };
        let now = self.shared.now();
        if let Some((external, cluster)) = authority.outside() {
            return Ok(external.certify(&self.shared.security, cluster, nodes, system_time(now)).await);
        }
        let work = move || {
            let mut signed = Vec::with_capacity(nodes.len());
            for node in nodes {
                match authority.certify(&node, now) {
                    Some(Ok(certificate)) => signed.push(Arc::new(Node { certificate, ..Node::clone(&node) })),
                    Some(Err(error)) => {
                        tracing::warn!(node = %node.id, error = %chain(&error), "the certificate cannot be signed now");
                        return (signed, false);
                    }
                    None => return (signed, false), // never: nobody outside signs
                }
            }
            (signed, true)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| DriveError::Panicked("CA"))
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
