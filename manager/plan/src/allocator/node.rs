//! The numbers of nodes in networks that span hosts, and the addresses of those of the original on the networks that their tasks
//! use (wire-behaviour 16.4). Ours route by endpoint and need no address of their own.

use super::{Allocator, Lease, addresses, is_overlay};
use crate::Plan;
use skep_types::{Action, ClusterView, NetworkAttachment, NetworkId, Node, NodeId, NodeOverlay, Object};
use std::sync::Arc;

fn index(node: &Node) -> Option<u32> {
    node.overlay.as_ref().map(|overlay| overlay.index).filter(|index| *index != 0)
}

impl Allocator {
    pub(super) fn observe_node(&mut self, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>) {
        if matches!((old, new), (Some(old), Some(new)) if old.attachments == new.attachments && old.overlay == new.overlay) {
            return;
        }
        let (index_before, index_after) = (old.and_then(|old| index(old)), new.and_then(|new| index(new)));
        if index_before != index_after {
            if let Some(index) = index_after {
                let is_known = self.leases.remove(&Lease::NodeIndex(index));
                if !self.node_indexes.claim(u128::from(index)) && !is_known {
                    self.share(Lease::NodeIndex(index));
                }
            }
            if let Some(index) = index_before
                && !self.another_has(&Lease::NodeIndex(index))
            {
                self.node_indexes.release(u128::from(index));
            }
        }
        let before = old.map(|old| addresses(&old.attachments)).unwrap_or_default();
        let after = new.map(|new| addresses(&new.attachments)).unwrap_or_default();
        self.exchange_addresses(&before, &after);
        match (old, new) {
            (_, Some(new)) => {
                self.uses.entry(new.id.clone()).or_default();
                self.dirty_nodes.insert(new.id.clone());
            }
            (Some(old), None) => {
                self.uses.remove(&old.id);
                self.dirty_nodes.remove(&old.id);
                self.stuck_nodes.remove(&old.id);
            }
            (None, None) => {}
        }
    }

    pub(super) fn note_use(&mut self, node: &NodeId, network: &NetworkId) {
        let uses = self.uses.entry(node.clone()).or_default().entry(network.clone()).or_default();
        *uses += 1;
        if *uses == 1 {
            self.dirty_nodes.insert(node.clone());
        }
    }

    pub(super) fn drop_use(&mut self, node: &NodeId, network: &NetworkId) {
        let Some(networks) = self.uses.get_mut(node) else { return };
        if let Some(uses) = networks.get_mut(network) {
            *uses = uses.saturating_sub(1);
            if *uses == 0 {
                networks.remove(network);
                self.dirty_nodes.insert(node.clone());
            }
        }
    }

    pub(super) fn plan_nodes(&mut self, view: &dyn ClusterView, plan: &mut Plan) {
        for id in std::mem::take(&mut self.dirty_nodes) {
            let Some(node) = view.node(&id) else { continue };
            let (overlay, attachments) = (self.number(node), self.attach(view, node));
            if attachments != node.attachments || overlay != node.overlay {
                self.dirty_nodes.insert(id);
                plan.changes.push(Action::Update(Object::Node(Arc::new(Node { overlay, attachments, ..Node::clone(node) }))));
            }
        }
    }

    /// The node as its peers are to know it.
    fn number(&mut self, node: &Node) -> Option<NodeOverlay> {
        let overlay = node.overlay.clone()?;
        if overlay.index != 0 {
            return Some(overlay);
        }
        let index = self.node_indexes.take().and_then(|index| u32::try_from(index).ok()).unwrap_or_default();
        if index != 0 {
            self.leases.insert(Lease::NodeIndex(index));
        }
        Some(NodeOverlay { index, ..overlay })
    }

    fn attach(&mut self, view: &dyn ClusterView, node: &Node) -> Vec<NetworkAttachment> {
        if node.overlay.is_some() {
            return Vec::new();
        }
        let used = self.uses.get(&node.id).into_iter().flatten().map(|(network, _)| network);
        let others = used.filter(|network| self.ingress.as_ref() != Some(network));
        let wanted: Vec<NetworkId> = self.ingress.iter().chain(others).cloned().collect();
        let mut attachments = Vec::new();
        for id in wanted {
            let Some(network) = view.network(&id).filter(|network| is_overlay(network) && network.ipam.is_some()) else { continue };
            let known = node.attachments.iter().find(|attachment| attachment.network.id == id && attachment.network.ipam == network.ipam);
            if let Some(known) = known {
                attachments.push(known.clone());
                continue;
            }
            let is_closed = self.embargo.is_closed(&id);
            let v4 = self
                .networks
                .get_mut(&id)
                .filter(|_| !is_closed)
                .into_iter()
                .flatten()
                .filter(|subnet| matches!(subnet.net, ipnet::IpNet::V4(_)));
            let Some(given) = v4.into_iter().find_map(|subnet| subnet.take()) else {
                // None free: the node goes without until one is.
                self.stuck_nodes.insert(node.id.clone());
                continue;
            };
            self.leases.insert(Lease::Address(id, given.addr()));
            attachments.push(NetworkAttachment {
                network: Arc::clone(network),
                addresses: vec![given.to_string()],
                aliases: Vec::new(),
                driver_attachment_opts: Default::default(),
            });
        }
        attachments
    }
}
