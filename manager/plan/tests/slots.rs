//! Where a task goes while another one of its slot has not stopped.

mod world;

use skep_plan::Scheduler;
use skep_types::*;
use std::sync::Arc;
use world::*;

fn task(number: u64, node: Option<&NodeId>, desired: TaskState, state: TaskState) -> Task {
    let service = skep_plan::new_service(ServiceId::for_test(1), spec("web", 1), Timestamp::default());
    let mut task = Task::of_service(TaskId::for_test(number), &service, 1, None, Timestamp::default());
    (task.node_id, task.desired_state, task.status.state) = (node.cloned(), desired, state);
    task
}

fn create(world: &mut World, task: Task) {
    world.commit(vec![Action::Create(Object::Task(Arc::new(task)))]);
}

/// The node that the task gets, and else what it is told.
fn place(world: &World, scheduler: &mut Scheduler) -> Result<NodeId, String> {
    match &scheduler.schedule(world.now).changes[..] {
        [Action::Update(Object::Task(task))] => Ok(task.node_id.clone().expect("placed")),
        [Action::SetTaskStatus { status, .. }] => Err(status.err.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_task_does_not_go_where_another_one_of_its_slot_still_stops() {
    let mut world = World::new();
    let (here, other) = (world.add_node(1, |_| {}), world.add_node(2, |_| {}));
    create(&mut world, task(1, Some(&here), TaskState::Shutdown, TaskState::Running));
    create(&mut world, task(2, None, TaskState::Running, TaskState::Pending));
    assert_eq!(place(&world, &mut Scheduler::new(&world)), Ok(other.clone()));
    world.change_node(&other, |node| node.spec.availability = Availability::Pause);
    let mut scheduler = Scheduler::new(&world);
    let words = place(&world, &mut scheduler).unwrap_err();
    assert!(words.contains("another task of the slot still stops on 1 node"), "{words}");
    for change in world.report(&TaskId::for_test(1), TaskState::Shutdown) {
        scheduler.observe(&change);
    }
    assert_eq!(place(&world, &mut scheduler), Ok(here));
}

#[test]
fn a_task_that_waits_may_lie_where_the_one_before_it_stops() {
    let mut world = World::new();
    let here = world.add_node(1, |_| {});
    create(&mut world, task(1, Some(&here), TaskState::Shutdown, TaskState::Running));
    create(&mut world, task(2, None, TaskState::Ready, TaskState::Pending));
    assert_eq!(place(&world, &mut Scheduler::new(&world)), Ok(here));
}

#[test]
fn a_task_that_waits_does_not_lie_where_one_stops_whose_slot_was_given_up() {
    let mut world = World::new();
    let (here, other) = (world.add_node(1, |_| {}), world.add_node(2, |_| {}));
    create(&mut world, task(1, Some(&here), TaskState::Remove, TaskState::Running));
    create(&mut world, task(2, None, TaskState::Ready, TaskState::Pending));
    assert_eq!(place(&world, &mut Scheduler::new(&world)), Ok(other));
}
