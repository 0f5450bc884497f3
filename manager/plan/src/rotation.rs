//! Moving every node to the certificates of a new root, a few at a time.
//!
//! While the root changes, the old one is trusted and the new one signs (spec wire-behaviour 4.7). A node is over when it reports
//! that the new root signed its certificate. Nodes that are not are asked to renew, in batches, for each renewal is a handshake
//! and a signature; when none is left the new root can take the old one's place.

use skep_types::{Certificate, IssuanceState, Node, NodeId};
use std::sync::Arc;
use std::time::Duration;

/// Nodes asked at once (`SK/ca/reconciler.go`, `IssuanceStateRotateMaxBatchSize`).
pub const ROTATION_BATCH: usize = 30;
/// Between two batches (`SK/ca/reconciler.go`, `defaultRotationReconcileInterval`).
pub const ROTATION_INTERVAL: Duration = Duration::from_secs(3);

/// The new root as nodes report it: raw DER of its name and of its SubjectPublicKeyInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationTarget {
    pub subject: Vec<u8>,
    pub public_key: Vec<u8>,
}

/// What a rotation needs now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotation {
    /// These nodes are to be asked to renew: their objects, changed so.
    Ask(Vec<Arc<Node>>),
    /// All that are not over were asked already or renew by themselves. So many there are, the first of them is named.
    Wait { left: usize, first: NodeId },
    /// Every node reports the new root.
    Finish,
}

/// Decides what a root rotation needs next. It reads nothing but the nodes: a new leader goes on where the last one ended.
///
/// A node that never reported its certificate, because it is down or never came, keeps the rotation from ending: whoever gave it up
/// removes it.
#[must_use]
pub fn plan_rotation<'a>(nodes: impl Iterator<Item = &'a Arc<Node>>, target: &RotationTarget) -> Rotation {
    let mut asked = Vec::new();
    let (mut left, mut first) = (0, None);
    for node in nodes.filter(|node| !is_over(node, target)) {
        left += 1;
        first.get_or_insert(&node.id);
        if asked.len() < ROTATION_BATCH && may_be_asked(node) {
            let certificate = Certificate { state: IssuanceState::Rotate, ..node.certificate.clone() };
            asked.push(Arc::new(Node { certificate, ..Node::clone(node) }));
        }
    }
    match first {
        None => Rotation::Finish,
        Some(first) if asked.is_empty() => Rotation::Wait { left, first: first.clone() },
        Some(_) => Rotation::Ask(asked),
    }
}

fn is_over(node: &Node, target: &RotationTarget) -> bool {
    // A certificate that is being made will be reported; until then nobody knows who signs it.
    let reported = node.description.as_ref().and_then(|description| description.tls_info.as_ref());
    reported.is_some_and(|info| info.cert_issuer_subject == target.subject && info.cert_issuer_public_key == target.public_key)
}

fn may_be_asked(node: &Node) -> bool {
    match node.certificate.state {
        IssuanceState::Renew | IssuanceState::Pending | IssuanceState::Rotate => false,
        IssuanceState::Unknown | IssuanceState::Issued | IssuanceState::Failed => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{NodeDescription, TlsInfo};
    use std::collections::BTreeMap;

    fn target(number: u8) -> RotationTarget {
        RotationTarget { subject: b"swarm-ca".to_vec(), public_key: vec![number] }
    }

    /// A node that reports the certificate of this root.
    fn node(id: u64, root: u8, state: IssuanceState) -> Arc<Node> {
        let RotationTarget { subject, public_key } = target(root);
        let tls_info = Some(TlsInfo { trust_root: Vec::new(), cert_issuer_subject: subject, cert_issuer_public_key: public_key });
        let description = Some(NodeDescription { tls_info, ..NodeDescription::default() });
        Arc::new(Node { description, certificate: Certificate { state, ..Certificate::default() }, ..Node::new(NodeId::for_test(id)) })
    }

    fn asked(rotation: Rotation) -> Vec<NodeId> {
        match rotation {
            Rotation::Ask(nodes) => {
                assert!(nodes.iter().all(|node| node.certificate.state == IssuanceState::Rotate));
                nodes.iter().map(|node| node.id.clone()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nodes_of_the_old_root_are_asked_once() {
        use IssuanceState::{Failed, Issued, Pending, Renew, Rotate, Unknown};
        let states = [Issued, Renew, Pending, Rotate, Failed, Unknown];
        let nodes: Vec<_> = states.into_iter().zip(1..).map(|(state, id)| node(id, 1, state)).collect();
        let first = plan_rotation(nodes.iter(), &target(2));
        assert_eq!(asked(first), [1, 5, 6].map(NodeId::for_test));
        let on_their_way = [&nodes[1], &nodes[2], &nodes[3]];
        assert_eq!(plan_rotation(on_their_way.into_iter(), &target(2)), Rotation::Wait { left: 3, first: NodeId::for_test(2) });
    }

    #[test]
    fn a_node_that_never_reported_keeps_the_old_root_in_place() {
        let silent = Arc::new(Node::new(NodeId::for_test(2)));
        let nodes = [node(1, 2, IssuanceState::Issued), silent];
        assert_eq!(asked(plan_rotation(nodes.iter(), &target(2))), [NodeId::for_test(2)]);
        let mut tells_nothing = Node::clone(&nodes[1]);
        tells_nothing.description = Some(NodeDescription::default());
        tells_nothing.certificate.state = IssuanceState::Rotate;
        let nodes = [nodes[0].clone(), Arc::new(tells_nothing)];
        assert_eq!(plan_rotation(nodes.iter(), &target(2)), Rotation::Wait { left: 1, first: NodeId::for_test(2) });
    }

    #[test]
    fn a_key_of_the_same_name_is_not_the_same_root() {
        let nodes = [node(1, 1, IssuanceState::Issued)];
        assert_eq!(asked(plan_rotation(nodes.iter(), &target(2))).len(), 1);
        assert_eq!(plan_rotation(nodes.iter(), &target(1)), Rotation::Finish);
    }

    #[test]
    fn a_thousand_nodes_are_asked_thirty_at_a_time_until_all_are_over() {
        let mut nodes: BTreeMap<NodeId, Arc<Node>> =
            (0..1_000).map(|id| node(id, 1, IssuanceState::Issued)).map(|node| (node.id.clone(), node)).collect();
        let mut rounds = 0;
        loop {
            match plan_rotation(nodes.values(), &target(2)) {
                Rotation::Ask(asked) => {
                    assert!(asked.len() <= ROTATION_BATCH);
                    // They renew and report before the next round.
                    for renewed in asked {
                        let id = renewed.id.clone();
                        let over = Node { description: node(0, 2, IssuanceState::Issued).description.clone(), ..Node::clone(&renewed) };
                        nodes.insert(id, Arc::new(over));
                    }
                }
                Rotation::Wait { left, .. } => panic!("{left} nodes hang"),
                Rotation::Finish => break,
            }
            rounds += 1;
        }
        assert_eq!(rounds, 1_000usize.div_ceil(ROTATION_BATCH));
    }

    #[test]
    fn a_cluster_without_nodes_has_nothing_to_wait_for() {
        assert_eq!(plan_rotation([].iter(), &target(1)), Rotation::Finish);
    }
}
