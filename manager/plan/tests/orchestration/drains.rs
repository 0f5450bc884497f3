//! Drains in either order: what serves on the node until others do, and what stops first.

use super::*;

fn drain(world: &mut World, number: u64, order: UpdateOrder) {
    world.change_node(&NodeId::for_test(number), |node| {
        (node.spec.availability, node.spec.drain_order) = (Availability::Drain, order);
    });
}

/// A service whose tasks run on node 1; node 2 came later.
fn on_the_first(order: UpdateOrder, change: impl FnOnce(&mut ServiceSpec)) -> (World, ServiceId) {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| {
        replicas(spec, 2);
        spec.update = Some(UpdateConfig { order, ..UpdateConfig::default() });
        change(spec);
    });
    world.converge(&id);
    world.add_node(2, |_| {});
    (world, id)
}

fn on_node(number: u64, tasks: &[Arc<Task>]) -> usize {
    let node = NodeId::for_test(number);
    tasks.iter().filter(|task| task.node_id.as_ref() == Some(&node)).count()
}

#[test]
fn a_drained_node_serves_until_its_tasks_run_elsewhere() {
    let (mut world, id) = on_the_first(UpdateOrder::StartFirst, |_| {});
    drain(&mut world, 1, UpdateOrder::StartFirst);
    for _ in 0..10 {
        world.settle(&id);
        let served: std::collections::BTreeSet<u64> = world.running().iter().map(|task| task.slot).collect();
        assert_eq!(served.len(), 2, "a slot is not served");
        assert!(world.live().len() <= 4, "one more in each slot at most");
        world.obey();
    }
    assert_eq!((on_node(1, &world.live()), on_node(2, &world.running())), (0, 2));
    assert!(world.settle(&id).is_none() && world.plan_service(&id).is_empty());
    assert_eq!(world.service(&id).update_status, None, "a drain is no update");
}

#[test]
fn what_does_not_start_first_itself_stops_first_on_every_drained_node() {
    let (mut world, id) = on_the_first(UpdateOrder::StopFirst, |_| {});
    drain(&mut world, 1, UpdateOrder::StartFirst);
    world.settle(&id);
    assert_eq!(on_node(1, &world.live()), 0);
    let (mut world, id) = on_the_first(UpdateOrder::StartFirst, |_| {});
    drain(&mut world, 1, UpdateOrder::StopFirst);
    world.settle(&id);
    assert_eq!(on_node(1, &world.live()), 0, "nor does what starts first where the drain does not ask for it");
    let (mut world, id) = on_the_first(UpdateOrder::StartFirst, |spec| spec.mode = ServiceMode::Global);
    world.converge(&id);
    drain(&mut world, 1, UpdateOrder::StartFirst);
    world.settle(&id);
    assert_eq!(on_node(1, &world.live()), 0, "a global service runs nowhere else instead");
}

#[test]
fn what_nothing_replaces_goes_on_serving_and_goes_when_the_node_is_drained_otherwise() {
    let (mut world, id) = on_the_first(UpdateOrder::StartFirst, |_| {});
    drain(&mut world, 1, UpdateOrder::StartFirst);
    for _ in 0..5 {
        world.settle(&id); // nobody places the new tasks
        world.pass(secs(60));
    }
    assert_eq!((world.running().len(), world.live().len()), (2, 4));
    drain(&mut world, 1, UpdateOrder::StopFirst);
    world.settle(&id);
    assert_eq!((on_node(1, &world.live()), world.live().len()), (0, 2), "the new tasks are those that are there");
}

#[test]
fn a_replacement_that_fails_is_tried_again_after_its_delay_and_given_up_after_its_attempts() {
    let (mut world, id) = on_the_first(UpdateOrder::StartFirst, |spec| restart(spec, RestartCondition::Any, secs(5), 2));
    drain(&mut world, 1, UpdateOrder::StartFirst);
    let mut failures = 0;
    for _ in 0..100 {
        world.settle(&id);
        world.place_all();
        let is_new =
            |task: &Arc<Task>| task.node_id == Some(NodeId::for_test(2)) && task.slot == 1 && task.desired_state == TaskState::Running;
        let new: Vec<_> = world.live().into_iter().filter(is_new).filter(|task| !task.status.state.is_terminal()).collect();
        assert!(new.len() <= 1, "one at a time");
        for task in new {
            world.report(&task.id, TaskState::Failed);
            failures += 1;
            let before = world.all_tasks().len();
            world.settle(&id);
            let made: Vec<_> = world.live().into_iter().filter(|task| task.slot == 1 && task.status.state == TaskState::New).collect();
            assert!(world.all_tasks().len() <= before + 1 && made.iter().all(|task| task.desired_state == TaskState::Ready), "no delay");
        }
        world.pass(secs(1));
    }
    assert_eq!(failures, 3, "one and two more attempts");
    assert_eq!(on_node(1, &world.running()), 2, "the old ones serve on");
}

#[test]
fn a_drain_that_is_taken_back_leaves_one_task_in_each_slot() {
    let (mut world, id) = on_the_first(UpdateOrder::StartFirst, |_| {});
    drain(&mut world, 1, UpdateOrder::StartFirst);
    world.settle(&id);
    world.place_all();
    assert_eq!(world.live_slots(), [1, 1, 2, 2]);
    world.change_node(&NodeId::for_test(1), |node| {
        (node.spec.availability, node.spec.drain_order) = (Availability::Active, UpdateOrder::StopFirst);
    });
    world.converge(&id);
    assert_eq!((world.live_slots(), on_node(1, &world.running())), (vec![1, 2], 2), "those that ran run on");
}

#[test]
fn a_spec_that_changes_in_a_drain_is_what_runs_elsewhere() {
    let (mut world, id) = on_the_first(UpdateOrder::StartFirst, |_| {});
    drain(&mut world, 1, UpdateOrder::StartFirst);
    world.settle(&id);
    world.update_service(&id, |spec| image(spec, "web:2"));
    for _ in 0..20 {
        world.settle(&id);
        let served: std::collections::BTreeSet<u64> = world.running().iter().map(|task| task.slot).collect();
        assert_eq!(served.len(), 2, "a slot is not served");
        world.obey();
    }
    assert_eq!(images(&world), ["web:2"; 2]);
    assert_eq!(on_node(2, &world.running()), 2);
}

#[test]
fn a_paused_update_does_not_hold_a_drain_up() {
    let (mut world, id) = on_the_first(UpdateOrder::StartFirst, |_| {});
    let mut service = world.service(&id).clone();
    service.update_status = Some(UpdateStatus { state: UpdateState::Paused, ..UpdateStatus::default() });
    world.replace_service(service);
    drain(&mut world, 1, UpdateOrder::StartFirst);
    world.converge(&id);
    assert_eq!((on_node(1, &world.live()), on_node(2, &world.running())), (0, 2));
}

#[test]
fn a_node_that_is_lost_in_its_drain_is_not_waited_for() {
    let (mut world, id) = on_the_first(UpdateOrder::StartFirst, |_| {});
    drain(&mut world, 1, UpdateOrder::StartFirst);
    world.settle(&id);
    world.change_node(&NodeId::for_test(1), |node| node.status.state = NodeState::Down);
    world.settle(&id);
    assert_eq!((on_node(1, &world.live()), world.live_slots()), (0, vec![1, 2]));
}
