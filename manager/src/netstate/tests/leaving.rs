//! Tasks that are to stop, and who is waited for.

use super::world::*;
use crate::netstate::index::Index;
use skep_proto::skep::network_endpoint::Readiness;
use skep_types::*;

#[test]
fn a_task_becomes_ready_when_it_runs_and_leaves_when_it_is_not_wanted() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Assigned);
    world.put_task(2, 2, &[2], TaskState::Running);
    let steps =
        [(TaskState::Preparing, Readiness::Planned), (TaskState::Starting, Readiness::Starting), (TaskState::Running, Readiness::Ready)];
    for (state, readiness) in steps {
        world.report(1, state);
        world.take_all();
        assert_eq!(world.readiness(2, 1), Some(readiness));
    }
    world.want(1, TaskState::Shutdown);
    world.take_all();
    assert_eq!(world.readiness(2, 1), Some(Readiness::Leaving));
    world.report(1, TaskState::Shutdown);
    world.take_all();
    assert_eq!(world.readiness(2, 1), None);
}

#[test]
fn a_task_that_leaves_is_cleared_after_the_last_acknowledgement_and_not_before() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Running);
    world.put_task(2, 2, &[2], TaskState::Running);
    world.take_all();
    world.want(1, TaskState::Shutdown);
    // What was acknowledged is older.
    world.acknowledge(2);
    world.take(1);
    world.acknowledge(1);
    world.take(1);
    assert!(world.cleared(1).is_empty());
    world.take(2);
    world.take(1);
    assert!(world.cleared(1).is_empty(), "told is not done");
    world.acknowledge(2);
    world.take_all();
    assert_eq!(world.cleared(1), [task(1).to_string()]);
    assert!(world.cleared(2).is_empty(), "its own node alone is told");
    // A new stream of the node is told again, until the task has ended.
    world.follow(1);
    assert_eq!(world.cleared(1), [task(1).to_string()]);
    world.report(1, TaskState::Shutdown);
    world.follow(1);
    assert!(world.cleared(1).is_empty());
}

#[test]
fn a_node_that_is_down_or_gone_does_not_hold_a_task_up() {
    for gone in [false, true] {
        let mut world = World::of_two();
        world.put_task(1, 1, &[2], TaskState::Running);
        world.put_task(2, 2, &[2], TaskState::Running);
        world.take_all();
        world.want(1, TaskState::Shutdown);
        world.take_all();
        world.acknowledge(1);
        world.take_all();
        assert!(world.cleared(1).is_empty());
        match gone {
            true => world.remove(Kind::Node, node(2).as_str()),
            false => world.put_node(2, Some((2, "192.0.2.1")), NodeState::Down),
        }
        world.take_all();
        assert_eq!(world.cleared(1), [task(1).to_string()]);
    }
}

#[test]
fn a_new_leader_starts_from_the_store_and_waits_for_new_acknowledgements() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Running);
    world.put_task(2, 2, &[2], TaskState::Running);
    world.want(1, TaskState::Shutdown);
    world.index = Index::new(&world.view());
    world.follow(1);
    world.follow(2);
    assert_eq!(world.readiness(2, 1), Some(Readiness::Leaving));
    world.acknowledge(1);
    world.take_all();
    assert!(world.cleared(1).is_empty());
    world.acknowledge(2);
    world.take_all();
    assert_eq!(world.cleared(1), [task(1).to_string()]);
}

#[test]
fn a_new_leader_waits_for_nodes_whose_tasks_it_reads_after_the_one_that_leaves() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Running);
    world.put_task(2, 2, &[2], TaskState::Running);
    world.want(1, TaskState::Shutdown);
    // Nobody else is waited for when the first of them is read.
    world.put_node(1, Some((1, "192.0.2.1")), NodeState::Down);
    world.index = Index::new(&world.view());
    world.put_node(1, Some((1, "192.0.2.1")), NodeState::Ready);
    world.follow(1);
    world.follow(2);
    assert!(world.cleared(1).is_empty());
    [1, 2].into_iter().for_each(|node| world.acknowledge(node));
    world.take_all();
    assert_eq!(world.cleared(1), [task(1).to_string()]);
}

#[test]
fn what_was_cleared_for_a_node_that_was_away_is_looked_at_again_when_it_comes_to_hear_of_it() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Running);
    world.put_task(2, 2, &[2], TaskState::Running);
    world.take_all();
    [1, 2].into_iter().for_each(|node| world.acknowledge(node));
    // Both are away when the task is to stop, so nobody is waited for; the other one comes back first.
    world.put_node(1, Some((1, "192.0.2.1")), NodeState::Down);
    world.want(1, TaskState::Shutdown);
    world.put_node(2, Some((2, "192.0.2.1")), NodeState::Down);
    world.put_node(2, Some((2, "192.0.2.1")), NodeState::Ready);
    world.put_node(1, Some((1, "192.0.2.1")), NodeState::Ready);
    world.clear_again(1);
    world.follow(1);
    world.acknowledge(1);
    world.follow(2);
    assert!(world.cleared(1).is_empty());
    world.acknowledge(2);
    world.take_all();
    assert_eq!(world.cleared(1), [task(1).to_string()]);
    // By the next stream, too, without a wait.
    world.clear_again(1);
    world.follow(1);
    assert_eq!(world.cleared(1), [task(1).to_string()]);
}

#[test]
fn a_node_that_does_not_answer_holds_no_task_up_until_it_does_again() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Running);
    world.put_task(2, 2, &[2], TaskState::Running);
    world.take_all();
    world.acknowledge(1);
    world.acknowledge(2);
    assert!(world.index.waited_for(|_| true).is_empty(), "no task waits");
    world.want(1, TaskState::Shutdown);
    world.take_all();
    world.acknowledge(1);
    world.take_all();
    assert!(world.cleared(1).is_empty());
    assert_eq!(world.index.waited_for(|id| *id == node(2)), [node(2)]);
    let before = world.index.acknowledged(&network(2));
    world.answers(2, false);
    world.take_all();
    assert_eq!(world.cleared(1), [task(1).to_string()]);
    assert_eq!(world.index.acknowledged(&network(2)), before, "its address is not free yet");
    // It is back: the next task waits for it.
    world.answers(2, true);
    world.put_task(3, 1, &[2], TaskState::Running);
    world.want(3, TaskState::Shutdown);
    world.take_all();
    world.acknowledge(1);
    world.take_all();
    assert_eq!(world.cleared(1).len(), 1);
    world.acknowledge(2);
    world.take_all();
    assert_eq!(world.cleared(1).len(), 2);
}
