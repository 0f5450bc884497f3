//! Ends what is open for a node at the moment it loses its rights: a check at the beginning of a call says nothing about a
//! stream that lives for weeks.
//!
//! A node has two rights, each with a token that streams hold: to be in the cluster, and to rule it. [`follow`] compares what
//! the store says after each commit and cancels. It runs on every manager: streams end where they enter.

use crate::cut::Cut;
use crate::shared::Shared;
use skep_store::{FeedEvent, View};
use skep_types::{Change, ClusterView as _, NodeId, NodeRole, Object};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// What a stream needs its node to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// In the cluster.
    Belong,
    /// A manager.
    Rule,
}

struct Tokens {
    belong: CancellationToken,
    /// A child of the other: who is not in the cluster does not rule it.
    rule: CancellationToken,
}

/// The rights of nodes that have streams open, or had.
#[derive(Default)]
pub(crate) struct Revocations(Mutex<HashMap<NodeId, Tokens>>);

impl Revocations {
    /// Cancelled when the node loses the right.
    pub(crate) fn token(&self, node: &NodeId, right: Right) -> CancellationToken {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = nodes.entry(node.clone()).or_insert_with(|| {
            let belong = CancellationToken::new();
            Tokens { rule: belong.child_token(), belong }
        });
        match right {
            Right::Belong => tokens.belong.clone(),
            Right::Rule => tokens.rule.clone(),
        }
    }

    fn revoke(&self, node: &NodeId, right: Right) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match right {
            Right::Belong => {
                if let Some(tokens) = nodes.remove(node) {
                    tokens.belong.cancel();
                }
            }
            Right::Rule => {
                if let Some(tokens) = nodes.get_mut(node) {
                    let new = tokens.belong.child_token();
                    std::mem::replace(&mut tokens.rule, new).cancel();
                }
            }
        }
    }

    /// All nodes anew: changes were missed.
    fn compare(&self, view: &View) {
        let known: Vec<NodeId> = self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        for node in known {
            if view.cluster().is_some_and(|cluster| cluster.blacklisted_certificates.contains_key(&node)) {
                self.revoke(&node, Right::Belong);
            } else if view.node(&node).is_some_and(|node| node.role != NodeRole::Manager) {
                self.revoke(&node, Right::Rule);
            }
        }
    }

    fn note(&self, change: &Change) {
        match change {
            Change::Updated { old: Object::Cluster(old), new: Object::Cluster(new) } => {
                for node in new.blacklisted_certificates.keys().filter(|node| !old.blacklisted_certificates.contains_key(*node)) {
                    self.revoke(node, Right::Belong);
                }
            }
            Change::Updated { old: Object::Node(old), new: Object::Node(new) } if old.role != new.role && new.role != NodeRole::Manager => {
                self.revoke(&new.id, Right::Rule);
            }
            _ => {}
        }
    }
}

/// Cuts a stream of `node`; `forwarder` is the manager that passes it on.
pub(crate) fn cut(revoked: CancellationToken, forwarder: Option<CancellationToken>) -> Cut {
    Box::pin(async move {
        let forwarder = async {
            match forwarder {
                Some(forwarder) => forwarder.cancelled_owned().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = revoked.cancelled_owned() => Status::permission_denied("this node has lost the right to make this call"),
            // The node behind it did nothing wrong: it may come another way.
            () = forwarder => Status::unavailable("the manager that passed this call on is not a manager any more; ask another"),
        }
    })
}

/// Revokes as the store changes, until the manager stops.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let (view, mut feed) = shared.watch();
    shared.revocations.compare(&view);
    drop(view);
    loop {
        let event = tokio::select! {
            event = feed.next() => event,
            () = shared.stop.cancelled() => return,
        };
        match event {
            Some(FeedEvent::Commit(commit)) => commit.changes.iter().for_each(|change| shared.revocations.note(change)),
            Some(FeedEvent::Resync) => {
                let view = shared.store.view();
                feed.resume(view.version());
                shared.revocations.compare(&view);
            }
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::Node;

    #[test]
    fn a_node_that_no_longer_rules_keeps_what_workers_may_have() {
        let revocations = Revocations::default();
        let id = NodeId::for_test(1);
        let (belongs, rules) = (revocations.token(&id, Right::Belong), revocations.token(&id, Right::Rule));
        let manager = Node { role: NodeRole::Manager, ..Node::new(id.clone()) };
        let worker = Node { role: NodeRole::Worker, ..manager.clone() };
        let demoted = Change::Updated { old: Object::Node(Arc::new(manager)), new: Object::Node(Arc::new(worker)) };
        revocations.note(&demoted);
        assert!(rules.is_cancelled() && !belongs.is_cancelled());
        // Promoted again, it may open new ones.
        assert!(!revocations.token(&id, Right::Rule).is_cancelled());
        let rules = revocations.token(&id, Right::Rule);
        revocations.revoke(&id, Right::Belong);
        assert!(rules.is_cancelled() && belongs.is_cancelled());
    }
}
