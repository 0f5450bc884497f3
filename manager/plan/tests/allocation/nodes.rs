//! Numbers and addresses of nodes.

use super::*;
use std::sync::Arc;

#[test]
fn nodes_that_follow_networks_get_a_number_and_no_address() {
    let mut world = with_ingress();
    let overlay = |underlay: &str| Some(NodeOverlay { underlay: underlay.into(), ..NodeOverlay::default() });
    let nodes: Vec<NodeId> = (1..=3).map(|number| world.add_node(number, |node| node.overlay = overlay("192.0.2.1"))).collect();
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let indexes = |world: &World| nodes.iter().filter_map(|id| Some(world.node(id)?.overlay.as_ref()?.index)).collect::<Vec<_>>();
    assert_eq!(indexes(&world), [1, 2, 3]);
    assert!(nodes.iter().all(|id| world.node(id).expect("there").attachments.is_empty()));
    let gone = world.remove(Kind::Node, nodes[0].as_str());
    feed(&mut allocator, gone);
    let joined = world.add_node(4, |node| node.overlay = overlay("192.0.2.4"));
    feed(&mut allocator, vec![Change::Created(Object::Node(Arc::clone(world.node(&joined).expect("there"))))]);
    allocate(&mut world, &mut allocator);
    assert_eq!(world.node(&joined).expect("there").overlay.as_ref().map(|overlay| overlay.index), Some(4), "numbers come back late");
}

#[test]
fn nodes_get_an_address_on_the_networks_their_tasks_use() {
    let mut world = with_ingress();
    let node = world.add_node(1, |_| {});
    world.add_network(2, "back", |_| {});
    let id = world.add_service(1, |spec| join(spec, "back"));
    world.settle(&id);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let names = |world: &World| -> Vec<String> {
        world.node(&node).expect("there").attachments.iter().map(|attachment| attachment.network.spec.annotations.name.clone()).collect()
    };
    assert_eq!(names(&world), ["ingress"]);
    let mut task = Task::clone(&world.live()[0]);
    task.node_id = Some(node.clone());
    task.status.state = TaskState::Assigned;
    let id = task.id.clone();
    let placed = world.commit(vec![Action::Update(Object::Task(Arc::new(task)))]);
    feed(&mut allocator, placed);
    allocate(&mut world, &mut allocator);
    assert_eq!(names(&world), ["ingress", "back"]);
    assert_eq!(world.node(&node).expect("there").attachments[1].addresses, ["10.0.1.4/24"]);
    let ended = world.report(&id, TaskState::Shutdown);
    feed(&mut allocator, ended);
    allocate(&mut world, &mut allocator);
    assert_eq!(names(&world), ["ingress"]);
}

#[test]
fn a_node_that_found_no_address_free_gets_the_first_that_is() {
    let mut world = World::new();
    let node = world.add_node(1, |_| {});
    let (_, mut allocator) = crowded(&mut world);
    let mut task = Task::clone(&world.live()[0]);
    task.node_id = Some(node.clone());
    task.status.state = TaskState::Assigned;
    let placed = world.commit(vec![Action::Update(Object::Task(Arc::new(task)))]);
    feed(&mut allocator, placed);
    allocate(&mut world, &mut allocator);
    assert!(world.node(&node).expect("there").attachments.is_empty());
    let other = world.live()[3].id.clone();
    let ended = world.report(&other, TaskState::Failed);
    feed(&mut allocator, ended);
    allocate(&mut world, &mut allocator);
    assert_eq!(world.node(&node).expect("there").attachments[0].addresses, ["10.9.0.6/29"]);
}
