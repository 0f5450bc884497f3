//! The addresses of nodes on the networks that their tasks use (wire-behaviour 16.4).

use super::{Allocator, Lease, addresses, is_overlay};
use crate::Plan;
use skep_types::{Action, ClusterView, NetworkAttachment, NetworkId, Node, NodeId, Object};
use std::sync::Arc;

impl Allocator {
    pub(super) fn observe_node(&mut self, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>) {
        if matches!((old, new), (Some(old), Some(new)) if old.attachments == new.attachments) {
            return;
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
            let attachments = self.attach(view, node);
            if attachments != node.attachments {
                self.dirty_nodes.insert(id);
                plan.changes.push(Action::Update(Object::Node(Arc::new(Node { attachments, ..Node::clone(node) }))));
            }
        }
    }

    fn attach(&mut self, view: &dyn ClusterView, node: &Node) -> Vec<NetworkAttachment> {
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
            let v4 = self.networks.get_mut(&id).into_iter().flatten().filter(|subnet| matches!(subnet.net, ipnet::IpNet::V4(_)));
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
