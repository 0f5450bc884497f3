use super::*;
use crate::network::fixtures::{attached, back, overlay, peer, table, web};
use crate::network::picture::{NetworkPicture, PeerKey, Readiness};
use crate::network::wanted::wanted;
use skep_netlb::{Keyring, Wanted};
use skep_types::{ENCRYPTED_OPTION, Network};
use std::sync::Arc;

const ENDS: Ends = Ends { driver: Driver::Auto, port: 51820 };

fn own(epochs: &[u32]) -> Own {
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path()).unwrap();
    let keys = epochs.iter().map(|epoch| (*epoch, keyring.key(KeyEpoch(*epoch)).unwrap())).collect();
    Own { ends: Some(ENDS), keys }
}

fn encrypted() -> Arc<Network> {
    let mut network = (*overlay(2, "back", false)).clone();
    let options = [(ENCRYPTED_OPTION.to_owned(), String::new())].into();
    network.spec.driver = Some(skep_types::Driver { name: "overlay".into(), options });
    Arc::new(network)
}

fn keyed(index: u32, epochs: &[u32]) -> PeerNode {
    let key = |epoch: &u32| PeerKey { epoch: *epoch, public: [(index * 10 + epoch) as u8; 32], port: 51820 + (*epoch as u16) % 2 };
    PeerNode { keys: [epochs.first().map(key), epochs.get(1).map(key)], ..peer(index) }
}

/// This node, which is the first, and these on one encrypted network, with a task of `web` on each.
fn picture(epochs: Option<(u32, u32, u32)>, others: Vec<PeerNode>) -> Picture {
    let tasks: Vec<(u64, u32, Readiness)> = others.iter().map(|node| (u64::from(node.index), node.index, Readiness::Ready)).collect();
    let mut known = NetworkPicture { network: encrypted(), ..back(&[1], &tasks) };
    known.peers.extend(others.into_iter().map(|node| (node.index, node)));
    let epochs = epochs.map(|(oldest, sending, newest)| Epochs { oldest, sending, newest });
    Picture { node_index: 1, epochs, networks: [(known.network.id.clone(), known)].into(), ..Picture::default() }
}

fn backends(wanted: &Wanted) -> Vec<String> {
    wanted.networks.iter().flat_map(|network| &network.vips).flat_map(|vip| &vip.backends).map(ToString::to_string).collect()
}

fn held() -> BTreeMap<TaskId, Held> {
    let mut one = web(1, true);
    let mut task = (*one.task).clone();
    task.networks = vec![attached(encrypted(), "10.0.2.11/24")];
    one.task = Arc::new(task);
    table(vec![one])
}

#[test]
fn an_encrypted_network_spans_the_nodes_with_keys_and_no_others() {
    let own = own(&[4]);
    let picture = picture(Some((4, 4, 4)), vec![keyed(2, &[4]), peer(3)]);
    let wanted = wanted(&held(), &picture, &own);
    let [network] = wanted.networks.as_slice() else { panic!("{wanted:?}") };
    let overlay = network.overlay.as_ref().unwrap();
    assert_eq!(overlay.peers.iter().map(|peer| peer.node_index).collect::<Vec<_>>(), [2]);
    assert_eq!(backends(&wanted), ["10.0.2.11", "10.0.2.12"], "nothing leads to where nothing can go");
    let encryption = wanted.encryption.unwrap();
    assert_eq!((encryption.networks, encryption.node_index, encryption.sending), ([network.network.id.clone()].into(), 1, KeyEpoch(4)));
    let [tunnel] = encryption.tunnels.as_slice() else { panic!("{:?}", encryption.tunnels) };
    assert_eq!((tunnel.epoch, tunnel.port, tunnel.key.public()), (KeyEpoch(4), 51820, own.keys[&4].public()));
    let endpoint = "198.18.0.2:51820".parse().unwrap();
    assert_eq!(tunnel.peers, [TunnelPeer { node_index: 2, key: PublicKey([24; 32]), endpoint }]);
}

#[test]
fn without_keys_it_ends_at_this_node_and_is_never_in_clear() {
    let picture = |epochs| picture(epochs, vec![keyed(2, &[4])]);
    let cases = [
        ("the node does not encrypt", picture(Some((4, 4, 4))), Own { ends: None, ..own(&[4]) }),
        ("its key is not made yet", picture(Some((4, 4, 4))), own(&[])),
        ("it has none to send by", picture(Some((4, 5, 5))), own(&[4])),
        ("no epoch was told", picture(None), own(&[4])),
        ("it has no number", Picture { node_index: 0, ..picture(Some((4, 4, 4))) }, own(&[4])),
        ("nobody told of the network", Picture { networks: BTreeMap::new(), ..picture(Some((4, 4, 4))) }, own(&[4])),
    ];
    for (why, picture, own) in cases {
        let wanted = wanted(&held(), &picture, &own);
        let [network] = wanted.networks.as_slice() else { panic!("{why}: {wanted:?}") };
        assert_eq!(network.overlay, None, "{why}");
        assert_eq!(backends(&wanted), ["10.0.2.11"], "{why}");
    }
}

#[test]
fn while_keys_change_there_are_two_tunnels() {
    let both = own(&[4, 5]);
    let picture = picture(Some((4, 5, 5)), vec![keyed(2, &[4, 5]), keyed(3, &[4])]);
    let encryption = both.encryption(&held(), &picture).unwrap();
    let told: Vec<_> =
        encryption.tunnels.iter().map(|t| (t.epoch.0, t.port, t.peers.iter().map(|p| p.node_index).collect::<Vec<_>>())).collect();
    assert_eq!(told, [(4, 51820, vec![2, 3]), (5, 51821, vec![2])]);
    assert_eq!(encryption.sending, KeyEpoch(5));
    assert_eq!(both.public().iter().map(|key| (key.epoch, key.port)).collect::<Vec<_>>(), [(4, 51820), (5, 51821)]);
    // It has its new key a moment later than it is told of it; the old tunnels go on.
    let old = own(&[4]);
    let picture = Picture { epochs: Some(Epochs { oldest: 4, sending: 4, newest: 5 }), ..picture };
    assert_eq!(old.encryption(&held(), &picture).unwrap().tunnels.len(), 1);
}

#[test]
fn a_key_is_one_node_s() {
    let own = own(&[4]);
    let thief = |index, public| PeerNode { keys: [Some(PeerKey { epoch: 4, public, port: 1 }), None], ..peer(index) };
    let stolen = own.keys[&4].public().0;
    let picture = picture(Some((4, 4, 4)), vec![keyed(2, &[4]), thief(3, [24; 32]), thief(4, stolen)]);
    let encryption = own.encryption(&held(), &picture).unwrap();
    assert_eq!(encryption.tunnels[0].peers.iter().map(|peer| peer.node_index).collect::<Vec<_>>(), [2]);
}

#[test]
fn networks_in_clear_are_none_of_its_business() {
    let table = table(vec![web(1, true)]);
    let known = back(&[1, 2], &[]);
    let picture = Picture { node_index: 1, networks: [(known.network.id.clone(), known)].into(), ..Picture::default() };
    let wanted = wanted(&table, &picture, &own(&[4]));
    assert_eq!(wanted.encryption, None);
    assert!(wanted.networks.iter().any(|network| network.overlay.is_some()));
}
