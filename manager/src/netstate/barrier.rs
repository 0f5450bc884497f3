//! Who has to know that a task leaves before it may be stopped, and who does. Pure: the caller brings the time.
//!
//! The picture of who has an interest in what, and of who still answers. Whoever says things to nodes tells it what it said and what
//! it heard, and learns which nodes have to be told something now.

use super::answering::Answering;
use super::dirty::Dirty;
use super::index::{Index, Out};
use skep_proto::skep::NetworkChanges;
use skep_types::{Change, ClusterView, NetworkId, NodeId, Version};
use tokio::time::Instant;

/// While a manager leads.
pub struct Barrier {
    pub(super) index: Index,
    answering: Answering,
}

impl Barrier {
    /// As a new leader begins: it knows of no acknowledgement.
    #[must_use]
    pub fn new(view: &dyn ClusterView, now: Instant) -> Self {
        Self { index: Index::new(view), answering: Answering::new(now) }
    }

    /// For who lost commits: everything is looked at again.
    pub(super) fn renew(&mut self, view: &dyn ClusterView) {
        self.index = self.index.renewed(view);
    }

    /// Takes in one commit.
    pub fn observe(&mut self, version: Version, changes: &[Change], out: Out) {
        self.index.observe(version, changes, out);
    }

    /// A node has a stream now, by which it is told everything.
    pub fn opened(&mut self, node: &NodeId, now: Instant, out: Out) {
        self.answering.opened(node, now);
        self.index.answers(node, true, out);
        self.index.clear_again(node, out);
    }

    /// Its stream ended.
    pub fn closed(&mut self, node: &NodeId, now: Instant) {
        self.answering.closed(node, now);
    }

    /// What a node has to be told, which is said to it now.
    pub fn say(&mut self, node: &NodeId, dirty: Dirty, now: Instant) -> NetworkChanges {
        let changes = self.index.difference(node, dirty);
        self.answering.told(node, Version(changes.revision), now);
        changes
    }

    /// A node has everything up to this revision in place.
    pub fn acknowledge(&mut self, node: &NodeId, programmed: Version, now: Instant, out: Out) {
        self.answering.acknowledged(node, programmed, now);
        self.index.acknowledge(node, programmed, out);
        self.index.answers(node, true, out);
    }

    /// The node said something that is no acknowledgement.
    pub fn heard(&mut self, node: &NodeId, now: Instant) {
        self.answering.heard(node, now);
    }

    /// The node could not do what it was told; it goes on trying.
    pub fn failed(&mut self, node: &NodeId, now: Instant) {
        self.answering.failed(node, now);
    }

    /// Tasks that are to stop wait no longer for nodes that do not answer any more: these, from now on.
    pub fn look_for_silent(&mut self, now: Instant, out: Out) -> Vec<NodeId> {
        let silent = self.index.waited_for(|node| self.answering.is_silent(node, now));
        silent.iter().for_each(|node| self.index.answers(node, false, out));
        silent
    }

    /// Every node that uses or may come to use what it knows of the network has everything up to this revision in place.
    #[must_use]
    pub fn acknowledged(&self, network: &NetworkId) -> Version {
        self.index.acknowledged(network)
    }
}
