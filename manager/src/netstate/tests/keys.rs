//! Keys of encrypted networks.

use super::world::*;
use skep_types::*;
use std::collections::BTreeSet;

#[test]
fn keys_are_told_to_those_that_share_an_encrypted_network_and_to_no_others() {
    let mut world = World::of_two();
    for number in [1, 2] {
        world.put_task(number, number, &[1, 2], TaskState::Running);
        world.tell_keys(number, &[4]);
    }
    world.take_all();
    let keys = |world: &World, number| {
        let peer = &world.known(1)[network(number).as_str()].peers[&2];
        peer.keys.iter().map(|key| key.epoch).collect::<Vec<_>>()
    };
    assert_eq!((keys(&world, 1), keys(&world, 2)), (vec![], vec![]), "nothing is encrypted");
    world.encrypt(2);
    world.put_task(3, 1, &[2], TaskState::Running);
    world.put_task(4, 1, &[1], TaskState::Running);
    world.follow(1);
    world.take_all();
    assert_eq!((keys(&world, 1), keys(&world, 2)), (vec![], vec![4]));
    world.tell_keys(2, &[4, 5]);
    assert_eq!(world.touches.iter().collect::<BTreeSet<_>>(), [&node(1), &node(2)].into());
    world.take_all();
    assert_eq!(keys(&world, 2), [4, 5]);
    world.put_node(3, Some((3, "192.0.2.3")), NodeState::Ready);
    world.tell_keys(3, &[4]);
    world.tell_keys(3, &[4, 5]);
    assert!(world.touches.is_empty(), "it is on no encrypted network");
}

#[test]
fn a_step_to_new_keys_is_in_place_when_every_node_that_can_encrypt_says_so() {
    let mut world = World::of_two();
    world.put_epochs(TunnelEpochs { oldest: 4, step: KeyStep::Settled, since: None });
    for number in [1, 2] {
        world.tell_keys(number, &[4]);
        world.take(number);
        world.acknowledge(number);
    }
    let progress = |world: &World| {
        let progress = world.index.progress();
        (progress.all_told, progress.all_in_place)
    };
    assert_eq!(progress(&world), (true, true));
    world.put_epochs(TunnelEpochs { oldest: 4, step: KeyStep::Making, since: None });
    assert_eq!(progress(&world), (false, false));
    world.take_all();
    for number in [1, 2] {
        world.tell_keys(number, &[4, 5]);
    }
    assert_eq!(progress(&world), (true, false));
    world.acknowledge(1);
    assert_eq!(progress(&world), (true, false));
    world.acknowledge(2);
    assert_eq!(progress(&world), (true, true));
    // A node that cannot encrypt is not waited for.
    world.put_node(3, Some((3, "192.0.2.3")), NodeState::Ready);
    assert_eq!(progress(&world), (true, true));
    world.remove(Kind::Node, node(2).as_str());
    assert_eq!(progress(&world), (true, true));
}
