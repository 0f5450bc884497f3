//! Who is told what.

use super::world::*;
use skep_types::*;

#[test]
fn interest_begins_with_the_first_task_and_ends_with_the_last() {
    let mut world = World::of_two();
    assert_eq!(world.known(1).keys().collect::<Vec<_>>(), [network(1).as_str()], "every node answers published ports");
    world.put_task(1, 1, &[2], TaskState::Assigned);
    world.put_task(2, 2, &[2], TaskState::Assigned);
    world.put_task(3, 2, &[2], TaskState::Assigned);
    world.take_all();
    let known = &world.known(1)[network(2).as_str()];
    assert_eq!(known.peers.keys().collect::<Vec<_>>(), [&1, &2]);
    assert_eq!(known.endpoints.len(), 3);
    world.report(2, TaskState::Failed);
    world.take_all();
    assert_eq!(world.known(1)[network(2).as_str()].peers.len(), 2);
    world.remove(Kind::Task, task(3).as_str());
    world.take_all();
    assert!(!world.known(2).contains_key(network(2).as_str()));
    let known = &world.known(1)[network(2).as_str()];
    assert_eq!((known.peers.len(), known.endpoints.len()), (1, 1));
}

#[test]
fn a_change_without_interest_says_nothing() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Running);
    world.take_all();
    let before = world.streams[&node(2)].messages;
    world.report(1, TaskState::Running);
    world.put_task(3, 1, &[2], TaskState::Starting);
    world.put_service(1, &[(2, "10.0.2.2/24")], &[2]);
    world.want(3, TaskState::Shutdown);
    // A node that is ready again, a new explanation: nobody has to know.
    world.put_node(1, Some((1, "192.0.2.1")), NodeState::Unknown);
    world.take_all();
    assert_eq!(world.streams[&node(2)].messages, before);
    let before = world.streams[&node(1)].messages;
    world.report(1, TaskState::Running);
    world.put_network(3, false, true);
    world.take_all();
    assert_eq!(world.streams[&node(1)].messages, before);
}

#[test]
fn a_change_is_said_once_to_each_node_that_has_to_know_it() {
    let mut world = World::new();
    world.put_network(1, true, true);
    world.put_network(2, false, true);
    world.put_network(3, false, true);
    for number in 1..=40 {
        world.put_node(number, Some((number as u32, "192.0.2.1")), NodeState::Ready);
        world.put_task(number, number, &[2 + number % 2], TaskState::Starting);
    }
    world.report(8, TaskState::Running);
    let even: Vec<NodeId> = (1..=20).map(|half| node(2 * half)).collect();
    assert_eq!(world.touches, even, "those with a task on the same network");
    world.want(8, TaskState::Shutdown);
    assert_eq!(world.touches, even);
    world.put_task(100, 1, &[1], TaskState::Assigned);
    world.report(100, TaskState::Running);
    assert_eq!(world.touches.len(), 40, "every node answers published ports");
}

#[test]
fn nodes_that_only_pass_connections_on_do_not_know_each_other() {
    let mut world = World::of_two();
    world.put_node(3, Some((3, "192.0.2.3")), NodeState::Ready);
    world.follow(3);
    let peers = |world: &World, viewer: u64| world.known(viewer)[network(1).as_str()].peers.keys().copied().collect::<Vec<_>>();
    assert_eq!((peers(&world, 1), peers(&world, 3)), (vec![1], vec![3]));
    world.put_task(1, 1, &[1], TaskState::Running);
    world.take_all();
    assert_eq!((peers(&world, 1), peers(&world, 2), peers(&world, 3)), (vec![1, 2, 3], vec![1, 2], vec![1, 3]));
    world.report(1, TaskState::Failed);
    world.take_all();
    assert_eq!((peers(&world, 1), peers(&world, 2)), (vec![1], vec![2]));
}

/// SC10: bytes times the nodes with an interest, whatever else there is.
#[test]
fn an_endpoint_that_changes_costs_each_node_that_has_to_know_it_the_same_few_bytes() {
    let mut each = Vec::new();
    for nodes in [10, 50, 250] {
        let mut world = World::new();
        world.put_network(2, false, true);
        world.put_network(3, false, true);
        for number in 1..=nodes {
            world.put_node(number, Some((number as u32, "192.0.2.1")), NodeState::Ready);
            world.put_task(number, number, &[2 + number % 2], TaskState::Starting);
        }
        (1..=nodes).for_each(|number| world.follow(number));
        let before: Vec<usize> = (1..=nodes).map(|number| world.streams[&node(number)].bytes).collect();
        world.report(8, TaskState::Running);
        world.take_all();
        let told: Vec<usize> = (1..=nodes).zip(before).map(|(number, before)| world.streams[&node(number)].bytes - before).collect();
        let (even, odd): (Vec<usize>, Vec<usize>) = told.chunks(2).map(|pair| (pair[1], pair[0])).unzip();
        assert!(odd.iter().all(|bytes| *bytes == 0), "they are on another network");
        // Each message names its node by its number, which may take a byte more.
        assert!(even.iter().all(|bytes| bytes.abs_diff(even[0]) < 3), "{even:?}");
        eprintln!("SC10: {nodes} nodes, {} with an interest: {} bytes each", even.len(), even[0]);
        each.push(even[0]);
    }
    // Numbers of revisions grow by a byte or two.
    assert!(each[0] > 0 && each.iter().all(|bytes| *bytes < 250 && bytes.abs_diff(each[0]) < 8), "{each:?}");
}
