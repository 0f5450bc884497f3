//! Replicas, restarts, updates, rollbacks, global services and jobs, seen from outside.

mod world;

use proptest::prelude::*;
use skep_plan::{NODE_DOWN_PERIOD, plan_enforcement, plan_orphans, plan_reaping};
use skep_types::*;
use std::sync::Arc;
use std::time::Duration;
use world::*;

fn cluster(nodes: u64) -> World {
    let mut world = World::new();
    for number in 1..=nodes {
        world.add_node(number, |_| {});
    }
    world
}

fn kill(world: &mut World, slot: u64) -> TaskId {
    let task = world.running().into_iter().find(|task| task.slot == slot).expect("runs");
    world.report(&task.id, TaskState::Failed);
    task.id.clone()
}

#[test]
fn a_new_service_gets_its_replicas_in_slots_from_one() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| replicas(spec, 3));
    assert_eq!(world.settle(&id), None);
    assert_eq!(world.live_slots(), [1, 2, 3]);
    assert!(world.all_tasks().iter().all(|task| task.desired_state == TaskState::Running && task.status.state == TaskState::New));
    assert_eq!(world.service(&id).update_status, None);
}

#[test]
fn scaling_up_fills_the_lowest_free_slots_and_restarts_nothing() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| replicas(spec, 3));
    world.converge(&id);
    let second = world.live()[1].id.clone();
    world.remove(Kind::Task, second.as_str());
    let before: Vec<_> = world.live().iter().map(|task| task.id.clone()).collect();
    world.update_service(&id, |spec| replicas(spec, 5));
    world.converge(&id);
    assert_eq!(world.live_slots(), [1, 2, 3, 4, 5]);
    assert!(before.iter().all(|id| world.live().iter().any(|task| task.id == *id)));
    assert_eq!(world.service(&id).update_status, None);
}

#[test]
fn scaling_down_takes_unplaced_tasks_first_and_then_evens_out_the_nodes() {
    let mut world = cluster(2);
    let (one, two) = (NodeId::for_test(1), NodeId::for_test(2));
    let id = world.add_service(1, |spec| replicas(spec, 6));
    world.settle(&id);
    let homes = [Some(&one), Some(&one), Some(&one), Some(&two), None, Some(&two)];
    for (task, home) in world.live().iter().zip(homes) {
        let mut task = Task::clone(task);
        task.node_id = home.cloned();
        task.status.state = if home.is_some() { TaskState::Running } else { TaskState::Pending };
        world.commit(vec![Action::Update(Object::Task(Arc::new(task)))]);
    }
    world.update_service(&id, |spec| replicas(spec, 5));
    world.settle(&id);
    assert_eq!(world.live_slots(), [1, 2, 3, 4, 6], "slot 5 has no node");
    world.update_service(&id, |spec| replicas(spec, 3));
    world.settle(&id);
    assert_eq!(world.live_slots(), [1, 2, 4], "the third copy on one node and the second of either go, highest slots first");
    assert!(world.all_tasks().iter().filter(|task| ![1, 2, 4].contains(&task.slot)).all(|task| task.desired_state == TaskState::Remove));
}

#[test]
fn the_tasks_of_a_removed_service_are_removed() {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| replicas(spec, 2));
    world.converge(&id);
    world.remove(Kind::Service, id.as_str());
    world.settle(&id);
    assert!(world.all_tasks().iter().all(|task| task.desired_state == TaskState::Remove));
    assert!(plan_reaping(&world, &id).is_empty(), "they still run");
    world.obey();
    let plan = plan_reaping(&world, &id);
    world.commit(plan.changes);
    assert!(world.all_tasks().is_empty());
}

#[test]
fn a_failed_task_is_replaced_only_after_the_delay() {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| replicas(spec, 1));
    world.converge(&id);
    let failed = kill(&mut world, 1);
    let wake = world.settle(&id).expect("waits for the delay");
    assert_eq!(wake, world.now + secs(5));
    assert_eq!(world.task(&failed).desired_state, TaskState::Shutdown);
    let new = world.live()[0].clone();
    assert_eq!((new.slot, new.desired_state), (1, TaskState::Ready));
    world.obey();
    world.pass(Duration::from_millis(4_999));
    assert_eq!(world.settle(&id), Some(wake));
    world.pass(Duration::from_millis(1));
    world.converge(&id);
    assert_eq!(world.running()[0].id, new.id);
}

#[test]
fn a_delay_of_zero_starts_the_replacement_at_once() {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| restart(spec, RestartCondition::Any, Duration::ZERO, 0));
    world.converge(&id);
    for _ in 0..10 {
        world.pass(Duration::from_millis(300));
        kill(&mut world, 1);
        assert_eq!(world.settle(&id), None);
        assert_eq!(world.live()[0].desired_state, TaskState::Running);
        world.converge(&id);
    }
}

#[test]
fn a_task_that_can_never_start_does_not_spin_even_without_a_delay() {
    for history in [5, 1, 0] {
        let mut world = cluster(1);
        world.set_history(history);
        let id = world.add_service(1, |spec| restart(spec, RestartCondition::Any, Duration::ZERO, 0));
        let (start, mut attempts) = (world.now, 0);
        while world.now.since(start) < secs(60) {
            let wake = world.settle(&id);
            world.place_all();
            let reaping = plan_reaping(&world, &id);
            world.commit(reaping.changes);
            for task in world.live().iter().filter(|task| task.status.state == TaskState::Assigned) {
                attempts += 1;
                world.report(&task.id, TaskState::Rejected);
            }
            world.pass(match wake {
                Some(wake) if wake > world.now => wake.since(world.now),
                _ => Duration::from_millis(1),
            });
        }
        assert!((20..150).contains(&attempts), "{attempts} attempts in a minute with history {history}");
    }
}

#[test]
fn conditions_decide_whether_an_ended_task_is_replaced() {
    let cases = [
        (RestartCondition::Never, TaskState::Failed, false),
        (RestartCondition::Never, TaskState::Complete, false),
        (RestartCondition::OnFailure, TaskState::Failed, true),
        (RestartCondition::OnFailure, TaskState::Complete, false),
        (RestartCondition::Any, TaskState::Complete, true),
    ];
    for (condition, end, replaced) in cases {
        let mut world = cluster(1);
        let id = world.add_service(1, |spec| restart(spec, condition, secs(1), 0));
        world.converge(&id);
        let task = world.running()[0].id.clone();
        world.report(&task, end);
        world.settle(&id);
        assert_eq!(world.live().len(), usize::from(replaced), "{condition:?} {end}");
        world.pass(secs(100));
        world.settle(&id);
        assert_eq!(world.all_tasks().len(), 1 + usize::from(replaced), "{condition:?} {end}: a dead slot stays dead");
    }
}

#[test]
fn used_up_attempts_leave_the_slot_dead_until_the_spec_changes() {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| restart(spec, RestartCondition::Any, secs(1), 2));
    for _ in 0..10 {
        world.converge(&id);
        world.pass(secs(1));
        world.converge(&id);
        if let Some(task) = world.running().first() {
            world.report(&task.id, TaskState::Failed);
        }
        let reaping = plan_reaping(&world, &id);
        world.commit(reaping.changes);
    }
    assert_eq!(world.all_tasks().len(), 3, "one and two restarts");
    assert!(world.live().is_empty());
    world.update_service(&id, |spec| image(spec, "web:2"));
    world.converge(&id);
    assert_eq!(world.running().len(), 1);
}

#[test]
fn attempts_outside_the_window_do_not_count() {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| {
        restart(spec, RestartCondition::Any, secs(1), 1);
        task_spec(spec).restart.as_mut().expect("set").window = Some(secs(60));
    });
    for _ in 0..4 {
        world.converge(&id);
        world.pass(secs(1));
        world.converge(&id);
        world.pass(secs(70));
        kill(&mut world, 1);
    }
    world.converge(&id);
    world.pass(secs(1));
    world.converge(&id);
    world.pass(secs(10));
    kill(&mut world, 1);
    world.settle(&id);
    assert!(world.live().is_empty(), "twice within a minute");
}

#[test]
fn tasks_of_a_drained_node_move_at_once_but_wait_for_the_old_ones_to_stop() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| replicas(spec, 1));
    world.converge(&id);
    let old = world.running()[0].clone();
    world.change_node(old.node_id.as_ref().expect("placed"), |node| node.spec.availability = Availability::Drain);
    let wake = world.settle(&id);
    assert_eq!(wake, Some(world.now + secs(60)));
    let new = world.live()[0].clone();
    assert_eq!(new.desired_state, TaskState::Ready, "the old one has not stopped");
    world.report(&old.id, TaskState::Shutdown);
    world.settle(&id);
    assert_eq!(world.task(&new.id).desired_state, TaskState::Running);
}

#[test]
fn a_stop_that_never_comes_is_waited_for_a_minute() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| replicas(spec, 1));
    world.converge(&id);
    let old = world.running()[0].clone();
    world.change_node(old.node_id.as_ref().expect("placed"), |node| node.spec.availability = Availability::Drain);
    world.settle(&id);
    world.pass(secs(60));
    assert_eq!(world.settle(&id), None);
    assert_eq!(world.live()[0].desired_state, TaskState::Running);
}

#[test]
fn tasks_of_a_lost_node_are_replaced_once_after_the_delay() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| replicas(spec, 2));
    world.converge(&id);
    let lost = world.running()[0].node_id.clone().expect("placed");
    world.change_node(&lost, |node| node.status.state = NodeState::Down);
    assert_eq!(world.settle(&id), Some(world.now + secs(5)));
    assert_eq!(world.live_slots(), [1, 2]);
    world.pass(secs(5));
    world.converge(&id);
    assert_eq!(world.running().len(), 2);
    assert_eq!(world.all_tasks().len(), 3);
    let down = world.now;
    assert_eq!(plan_orphans(&world, &lost, down, NODE_DOWN_PERIOD, world.now).wake_at, Some(down + secs(86_400)));
    world.pass(secs(86_400));
    let plan = plan_orphans(&world, &lost, down, NODE_DOWN_PERIOD, world.now);
    assert_eq!(plan.changes.len(), 1);
    world.commit(plan.changes);
    assert!(plan_orphans(&world, &lost, down, NODE_DOWN_PERIOD, world.now).is_empty());
}

fn images(world: &World) -> Vec<String> {
    world.running().iter().map(|task| task.spec.container().expect("a container").image.clone()).collect()
}

fn state(world: &World, id: &ServiceId) -> UpdateState {
    world.service(id).update_status.as_ref().map_or(UpdateState::Unknown, |status| status.state)
}

#[test]
fn an_update_goes_through_the_slots_one_by_one_and_stops_first() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| replicas(spec, 3));
    world.converge(&id);
    world.update_service(&id, |spec| image(spec, "web:2"));
    let mut least = 3;
    for _ in 0..40 {
        world.settle(&id);
        least = least.min(world.live().iter().filter(|task| task.desired_state == TaskState::Running).count());
        let live_slots = world.live_slots();
        assert_eq!(live_slots, [1, 2, 3], "one live task in each slot");
        world.obey();
    }
    assert_eq!(least, 2, "one slot at a time");
    assert_eq!(images(&world), ["web:2"; 3]);
    assert_eq!(state(&world, &id), UpdateState::Updating, "still watching");
    world.pass(secs(5));
    world.converge(&id);
    assert_eq!(state(&world, &id), UpdateState::Completed);
    assert!(world.service(&id).update_status.as_ref().expect("set").completed_at.is_some());
}

#[test]
fn start_first_keeps_every_slot_served() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| {
        replicas(spec, 3);
        spec.update = Some(UpdateConfig { parallelism: 2, order: UpdateOrder::StartFirst, ..UpdateConfig::default() });
    });
    world.converge(&id);
    world.update_service(&id, |spec| image(spec, "web:2"));
    for _ in 0..40 {
        world.settle(&id);
        let served: std::collections::BTreeSet<u64> = world.running().iter().map(|task| task.slot).collect();
        assert_eq!(served.len(), 3);
        assert!(world.live().len() <= 5, "two surplus tasks at most");
        world.obey();
    }
    assert_eq!(images(&world), ["web:2"; 3]);
}

#[test]
fn the_delay_of_an_update_lies_between_its_slots() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| {
        replicas(spec, 2);
        spec.update = Some(UpdateConfig { delay: secs(10), ..UpdateConfig::default() });
    });
    world.converge(&id);
    world.update_service(&id, |spec| image(spec, "web:2"));
    let wake = world.converge(&id).expect("the delay");
    assert_eq!(images(&world), ["web:2", "web:1"]);
    assert_eq!(wake, world.now + secs(10));
    world.pass(secs(10));
    world.converge(&id);
    assert_eq!(images(&world), ["web:2", "web:2"]);
    assert_eq!(state(&world, &id), UpdateState::Updating);
    world.pass(secs(10));
    world.converge(&id);
    assert_eq!(state(&world, &id), UpdateState::Updating, "delay + 1 s");
    world.pass(secs(1));
    world.converge(&id);
    assert_eq!(state(&world, &id), UpdateState::Completed);
}

/// Runs an update to web:2 whose tasks all fail at start.
fn failing_update(world: &mut World, id: &ServiceId) {
    world.update_service(id, |spec| image(spec, "web:2"));
    for _ in 0..60 {
        world.settle(id);
        world.place_all();
        let bad: Vec<_> = world
            .all_tasks()
            .into_iter()
            .filter(|task| !task.status.state.is_terminal() && task.spec.container().expect("a container").image == "web:2")
            .collect();
        for task in bad {
            let end = if task.desired_state >= TaskState::Shutdown { TaskState::Shutdown } else { TaskState::Rejected };
            world.report(&task.id, end);
        }
        world.settle(id);
        world.obey();
        world.pass(secs(1));
    }
}

#[test]
fn a_failing_update_pauses_and_leaves_the_other_slots_alone() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| replicas(spec, 3));
    world.converge(&id);
    failing_update(&mut world, &id);
    assert_eq!(state(&world, &id), UpdateState::Paused);
    assert_eq!(images(&world), ["web:1"; 2]);
    let message = &world.service(&id).update_status.as_ref().expect("set").message;
    assert!(message.starts_with("update paused due to failure or early termination of task "), "{message}");
}

#[test]
fn a_failing_update_is_rolled_back_once() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| {
        replicas(spec, 3);
        spec.update = Some(UpdateConfig { failure_action: FailureAction::Rollback, ..UpdateConfig::default() });
    });
    world.converge(&id);
    failing_update(&mut world, &id);
    world.converge(&id);
    world.pass(secs(10));
    world.converge(&id);
    assert_eq!(images(&world), ["web:1"; 3]);
    assert_eq!(state(&world, &id), UpdateState::RollbackCompleted);
    assert_eq!(world.service(&id).previous_spec, None);
}

#[test]
fn failures_up_to_the_ratio_are_let_pass() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| {
        replicas(spec, 4);
        spec.update = Some(UpdateConfig { max_failure_ratio: 0.25, ..UpdateConfig::default() });
    });
    world.converge(&id);
    world.update_service(&id, |spec| image(spec, "web:2"));
    world.settle(&id);
    world.place_all();
    let first = world.live().into_iter().find(|task| task.spec.container().expect("a container").image == "web:2").expect("begun");
    world.report(&first.id, TaskState::Rejected);
    for _ in 0..20 {
        world.converge(&id);
        world.pass(secs(1));
    }
    assert_eq!(state(&world, &id), UpdateState::Completed);
    assert_eq!(images(&world), ["web:2"; 4]);
}

#[test]
fn a_task_that_fails_after_the_monitor_time_does_not_stop_the_update() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| {
        replicas(spec, 2);
        spec.update = Some(UpdateConfig { delay: secs(20), ..UpdateConfig::default() });
    });
    world.converge(&id);
    world.update_service(&id, |spec| image(spec, "web:2"));
    world.converge(&id);
    world.pass(secs(6));
    kill(&mut world, 1);
    world.converge(&id);
    assert_eq!(state(&world, &id), UpdateState::Updating);
    world.pass(secs(14));
    world.converge(&id);
    world.pass(secs(4));
    kill(&mut world, 2);
    world.converge(&id);
    assert_eq!(state(&world, &id), UpdateState::Paused, "within the monitor time of the second");
}

#[test]
fn a_manual_rollback_swaps_the_specs() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| replicas(spec, 2));
    world.converge(&id);
    world.update_service(&id, |spec| image(spec, "web:2"));
    world.converge(&id);
    world.pass(secs(6));
    world.converge(&id);
    let swapped = skep_plan::rolled_back_by_user(world.service(&id), world.now).expect("has a previous spec");
    world.replace_service(swapped);
    world.converge(&id);
    assert_eq!(images(&world), ["web:1"; 2]);
    world.pass(secs(6));
    world.converge(&id);
    assert_eq!(state(&world, &id), UpdateState::RollbackCompleted);
    assert!(world.service(&id).previous_spec.is_some());
}

#[test]
fn only_what_changed_restarts() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| replicas(spec, 2));
    world.converge(&id);
    let before: Vec<_> = world.running().iter().map(|task| task.id.clone()).collect();
    world.update_service(&id, |spec| {
        spec.annotations.labels.insert("team".into(), "blue".into());
    });
    world.converge(&id);
    world.update_service(&id, |spec| {
        task_spec(spec).placement = Some(Placement { constraints: vec!["node.role == worker".into()], ..Placement::default() });
    });
    world.converge(&id);
    assert_eq!(world.running().iter().map(|task| task.id.clone()).collect::<Vec<_>>(), before);
    assert_eq!(state(&world, &id), UpdateState::Unknown);
    world.update_service(&id, |spec| task_spec(spec).force_update += 1);
    world.converge(&id);
    assert!(world.running().iter().all(|task| !before.contains(&task.id)), "forced");
}

#[test]
fn a_global_service_follows_its_nodes() {
    let mut world = cluster(3);
    let id = world.add_service(1, |spec| {
        spec.mode = ServiceMode::Global;
        task_spec(spec).placement = Some(Placement { constraints: vec!["node.labels.disk == ssd".into()], ..Placement::default() });
    });
    assert_eq!(world.settle(&id), None);
    assert!(world.all_tasks().is_empty());
    let (one, two) = (NodeId::for_test(1), NodeId::for_test(2));
    for node in [&one, &two] {
        world.change_node(node, |node| {
            node.spec.annotations.labels.insert("disk".into(), "SSD".into());
        });
    }
    world.converge(&id);
    let homes: Vec<_> = world.running().iter().filter_map(|task| task.node_id.clone()).collect();
    assert_eq!(homes, [one.clone(), two.clone()]);
    world.change_node(&one, |node| node.spec.availability = Availability::Drain);
    world.converge(&id);
    assert_eq!(world.running().len(), 1);
    world.change_node(&one, |node| node.spec.availability = Availability::Active);
    world.converge(&id);
    assert_eq!(world.running().len(), 2, "back again");
    world.change_node(&one, |node| node.spec.availability = Availability::Pause);
    let task = world.running().into_iter().find(|task| task.node_id == Some(one.clone())).expect("kept on a paused node");
    world.report(&task.id, TaskState::Failed);
    world.converge(&id);
    assert_eq!(world.live().len(), 1, "not restarted on a paused node");
    world.remove(Kind::Node, two.as_str());
    world.converge(&id);
    assert!(world.all_tasks().iter().all(|task| task.node_id != Some(two.clone())), "tasks of a removed node are deleted");
}

#[test]
fn a_global_service_is_updated_node_by_node() {
    let mut world = cluster(3);
    let id = world.add_service(1, |spec| spec.mode = ServiceMode::Global);
    world.converge(&id);
    world.update_service(&id, |spec| image(spec, "web:2"));
    world.converge(&id);
    assert_eq!(images(&world), ["web:2"; 3]);
    world.pass(secs(6));
    world.converge(&id);
    assert_eq!(state(&world, &id), UpdateState::Completed);
}

#[test]
fn a_job_runs_to_its_completions_a_few_at_a_time_and_again_when_updated() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| spec.mode = ServiceMode::ReplicatedJob { max_concurrent: 2, total_completions: 5 });
    let complete = |world: &mut World| {
        for _ in 0..10 {
            world.converge(&id);
            let running = world.running();
            assert!(running.len() <= 2);
            for task in running {
                world.report(&task.id, TaskState::Complete);
            }
        }
    };
    complete(&mut world);
    let done = |world: &World| {
        world
            .all_tasks()
            .iter()
            .filter(|task| task.status.state == TaskState::Complete)
            .map(|task| task.slot)
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(done(&world), (0..5).collect());
    assert_eq!(world.all_tasks().len(), 5);
    world.update_service(&id, |_| {});
    complete(&mut world);
    assert_eq!(world.all_tasks().iter().filter(|task| task.job_iteration == Some(Version(1))).count(), 5);
    assert!(
        world.all_tasks().iter().filter(|task| task.job_iteration == Some(Version(0))).all(|task| task.desired_state == TaskState::Remove)
    );
}

#[test]
fn a_failed_task_of_a_job_is_tried_again() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| {
        spec.mode = ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 1 };
        restart(spec, RestartCondition::OnFailure, secs(1), 0);
    });
    world.converge(&id);
    kill(&mut world, 0);
    world.converge(&id);
    world.pass(secs(1));
    world.converge(&id);
    let task = world.running()[0].clone();
    world.report(&task.id, TaskState::Complete);
    assert_eq!(world.converge(&id), None);
    assert!(world.running().is_empty());
}

#[test]
fn history_is_kept_up_to_the_limit() {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| restart(spec, RestartCondition::Any, Duration::ZERO, 0));
    for _ in 0..9 {
        world.converge(&id);
        world.pass(secs(1));
        kill(&mut world, 1);
    }
    world.converge(&id);
    assert_eq!(world.all_tasks().len(), 10);
    let newest = world.running()[0].id.clone();
    let plan = plan_reaping(&world, &id);
    world.commit(plan.changes);
    assert_eq!(world.all_tasks().len(), 5);
    assert!(world.all_tasks().iter().any(|task| task.id == newest));
    assert!(plan_reaping(&world, &id).is_empty());
}

#[test]
fn tasks_that_a_node_may_not_run_any_more_are_rejected() {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| {
        replicas(spec, 3);
        let task = task_spec(spec);
        task.resources = Some(ResourceRequirements {
            reservations: Resources { memory_bytes: 2 << 30, ..Resources::default() },
            ..ResourceRequirements::default()
        });
    });
    world.converge(&id);
    let node = NodeId::for_test(1);
    assert!(plan_enforcement(&world, &node, world.now).is_empty());
    world.change_node(&node, |node| node.description.as_mut().expect("described").resources.memory_bytes = 5 << 30);
    let plan = plan_enforcement(&world, &node, world.now);
    assert_eq!(plan.changes.len(), 1, "two of three still fit");
    world.commit(plan.changes);
    assert!(plan_enforcement(&world, &node, world.now).is_empty());
    let rejected = world.all_tasks().into_iter().find(|task| task.status.state == TaskState::Rejected).expect("one");
    assert_eq!(rejected.status.err, "the node does not have the reserved resources any more: needs 2048 MiB of memory, 1024 MiB free");
}

#[derive(Debug, Clone)]
enum Event {
    Scale(u64),
    Image(u8),
    Kill(u8),
    Drain(u8),
    Activate(u8),
    Down(u8),
    Up(u8),
    Obey,
    Pass(u16),
    Order(bool, u8),
    Reap,
    DeleteTask(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (0u64..7).prop_map(Event::Scale),
        1 => (0u8..4).prop_map(Event::Image),
        1 => any::<u8>().prop_map(Event::Kill),
        1 => (1u8..4).prop_map(Event::Drain),
        1 => (1u8..4).prop_map(Event::Activate),
        1 => (1u8..4).prop_map(Event::Down),
        1 => (1u8..4).prop_map(Event::Up),
        3 => Just(Event::Obey),
        2 => (0u16..20_000).prop_map(Event::Pass),
        1 => (any::<bool>(), 0u8..3).prop_map(|(start_first, action)| Event::Order(start_first, action)),
        1 => Just(Event::Reap),
        1 => any::<u8>().prop_map(Event::DeleteTask),
    ]
}

fn play(world: &mut World, id: &ServiceId, event: Event) {
    let node = |number: u8| NodeId::for_test(u64::from(number));
    match event {
        Event::Scale(count) => {
            if matches!(world.service(id).spec.mode, ServiceMode::Replicated { .. }) {
                world.update_service(id, |spec| replicas(spec, count));
            }
        }
        Event::Image(number) => world.update_service(id, |spec| image(spec, &format!("web:{number}"))),
        Event::Kill(index) => {
            let running = world.running();
            if !running.is_empty() {
                let id = running[usize::from(index) % running.len()].id.clone();
                world.report(&id, if index % 2 == 0 { TaskState::Failed } else { TaskState::Complete });
            }
        }
        Event::Drain(number) => drop(world.change_node(&node(number), |node| node.spec.availability = Availability::Drain)),
        Event::Activate(number) => drop(world.change_node(&node(number), |node| node.spec.availability = Availability::Active)),
        Event::Down(number) => drop(world.change_node(&node(number), |node| node.status.state = NodeState::Down)),
        Event::Up(number) => drop(world.change_node(&node(number), |node| node.status.state = NodeState::Ready)),
        Event::Obey => {
            if world.nodes().any(|node| node.status.state == NodeState::Ready && node.spec.availability == Availability::Active) {
                world.obey();
            }
        }
        Event::Pass(millis) => world.pass(Duration::from_millis(u64::from(millis))),
        Event::Order(start_first, action) => {
            let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
            let failure_action = [FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback][usize::from(action)];
            world.update_service(id, |spec| spec.update = Some(UpdateConfig { order, failure_action, ..UpdateConfig::default() }));
        }
        Event::Reap => {
            let plan = plan_reaping(world, id);
            world.commit(plan.changes);
            assert!(plan_reaping(world, id).is_empty(), "reaping a reaped service removes nothing");
        }
        Event::DeleteTask(index) => {
            let tasks = world.all_tasks();
            if !tasks.is_empty() {
                let id = tasks[usize::from(index) % tasks.len()].id.clone();
                world.remove(Kind::Task, id.as_str());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// `settle` panics if planning does not come to rest; `World` if any state goes back.
    #[test]
    fn planning_comes_to_rest_and_faults_heal(global in any::<bool>(), events in prop::collection::vec(event(), 0..50)) {
        let mut world = cluster(3);
        let id = world.add_service(1, |spec| {
            replicas(spec, 3);
            if global {
                spec.mode = ServiceMode::Global;
            }
        });
        for event in events {
            play(&mut world, &id, event);
            world.settle(&id);
            let mut stable = std::collections::BTreeMap::new();
            for task in world.live() {
                *stable.entry((task.slot, if global { task.node_id.clone() } else { None })).or_insert(0) += 1;
            }
            prop_assert!(stable.values().all(|count| *count <= 2), "at most an old and a new task live in a slot");
        }
        // Faults stop: every slot is served by the wanted spec again.
        for number in 1..=3 {
            world.change_node(&NodeId::for_test(number), |node| {
                node.status.state = NodeState::Ready;
                node.spec.availability = Availability::Active;
            });
        }
        world.update_service(&id, |spec| image(spec, "web:last"));
        for _ in 0..60 {
            world.converge(&id);
            world.pass(secs(2));
        }
        let wanted = match world.service(&id).spec.mode {
            ServiceMode::Replicated { replicas } => usize::try_from(replicas).expect("small"),
            _ => 3,
        };
        prop_assert_eq!(images(&world), vec!["web:last".to_owned(); wanted]);
        prop_assert_eq!(world.live().len(), wanted);
    }
}
