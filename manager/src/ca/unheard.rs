//! Nodes that were let in and never heard of.
//!
//! A node whose question was answered too late, or by a leader that fell, asks again with the same key. It is the same node: letting
//! it in once more would leave one behind that never comes, and that every root rotation would wait for.

use skep_ca::{NodeRole, key_of_request};
use skep_types::{ClusterView, Node, NodeId};
use std::collections::HashMap;
use std::sync::Arc;

/// Entries before those that were heard of are dropped for the first time.
const SOME: usize = 1024;

/// Finds them by the public key in their request and the role they were given.
#[derive(Debug)]
pub(super) struct Unheard {
    by_key: HashMap<(NodeRole, Vec<u8>), NodeId>,
    /// When there are so many entries, those that were heard of go.
    full: usize,
}

impl Unheard {
    /// As a new leader finds them. Some microseconds for each.
    pub(super) fn of(view: &dyn ClusterView) -> Self {
        let unheard = view.nodes().filter(|node| is_unheard(node));
        let by_key: HashMap<_, _> =
            unheard.filter_map(|node| Some(((node.role, key_of_request(&node.certificate.csr)?), node.id.clone()))).collect();
        let full = SOME.max(2 * by_key.len());
        Self { by_key, full }
    }

    /// The node with this key, if it was never heard of and still has this role.
    pub(super) fn find(&self, key: &[u8], role: NodeRole, view: &dyn ClusterView) -> Option<Arc<Node>> {
        let node = view.node(self.by_key.get(&(role, key.to_vec()))?)?;
        (is_unheard(node) && node.role == role).then(|| node.clone())
    }

    /// This node is about to be let in. If that fails, nobody will be found.
    pub(super) fn note(&mut self, key: Vec<u8>, node: &Node, view: &dyn ClusterView) {
        if self.by_key.len() >= self.full {
            self.by_key.retain(|_, id| view.node(id).is_some_and(|node| is_unheard(node)));
            self.full = SOME.max(2 * self.by_key.len());
        }
        self.by_key.insert((node.role, key), node.id.clone());
    }
}

/// A description comes with the first session.
fn is_unheard(node: &Node) -> bool {
    node.description.is_none()
}
