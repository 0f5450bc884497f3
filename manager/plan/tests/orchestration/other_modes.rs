//! Global services, jobs, and the history that is kept.

use super::*;

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
fn tasks_that_a_node_may_not_run_any_more_are_asked_to_stop_and_said_to_run_until_they_did() {
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
    assert!(plan_enforcement(&world, &node).is_empty());
    world.change_node(&node, |node| node.description.as_mut().expect("described").resources.memory_bytes = 5 << 30);
    let plan = plan_enforcement(&world, &node);
    assert_eq!(plan.changes.len(), 1, "two of three still fit");
    world.commit(plan.changes);
    assert!(plan_enforcement(&world, &node).is_empty());
    let asked = world.all_tasks().into_iter().find(|task| task.desired_state == TaskState::Shutdown).expect("one").id.clone();
    assert_eq!(world.task(&asked).status.state, TaskState::Running);
    // Its place is filled when it has stopped, or on another node.
    let plan = world.plan_service(&id);
    world.commit(plan.changes);
    let second = world.all_tasks().into_iter().find(|task| task.slot == world.task(&asked).slot && task.id != asked).expect("made").clone();
    assert_eq!(second.desired_state, TaskState::Ready);
}

#[test]
fn an_update_of_a_global_service_begins_nothing_on_nodes_it_no_longer_wants() {
    let mut world = cluster(3);
    let id = world.add_service(1, |spec| spec.mode = ServiceMode::Global);
    world.converge(&id);
    world.change_node(&NodeId::for_test(2), |node| drop(node.spec.annotations.labels.insert("zone".into(), "a".into())));
    world.update_service(&id, |spec| {
        image(spec, "web:2");
        task_spec(spec).placement = Some(Placement { constraints: vec!["node.labels.zone == a".into()], ..Placement::default() });
    });
    for _ in 0..20 {
        world.converge(&id);
        world.pass(secs(2));
    }
    let new: Vec<_> =
        world.all_tasks().into_iter().filter(|task| task.spec.container().is_some_and(|spec| spec.image == "web:2")).collect();
    assert_eq!(new.len(), 1);
    assert_eq!(new[0].node_id, Some(NodeId::for_test(2)));
    assert_eq!(world.live().len(), 1);
}

#[test]
fn a_job_that_is_rolled_back_runs_again_and_no_rollback_goes_on() {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| spec.mode = ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 1 });
    world.converge(&id);
    world.update_service(&id, |spec| image(spec, "web:2"));
    world.converge(&id);
    let swapped = skep_plan::rolled_back_by_user(world.service(&id), world.now).expect("has a previous spec");
    world.replace_service(swapped);
    world.converge(&id);
    assert_eq!(world.service(&id).update_status, None);
    assert_eq!(images(&world), ["web:1"]);
    assert_eq!(world.running()[0].job_iteration, Some(Version(2)));
}

#[test]
fn a_node_that_comes_back_stops_its_old_global_task_before_it_runs_the_new_one() {
    let mut world = cluster(1);
    let (node, id) = (NodeId::for_test(1), world.add_service(1, |spec| spec.mode = ServiceMode::Global));
    world.converge(&id);
    let old = world.running()[0].id.clone();
    world.change_node(&node, |node| node.status.state = NodeState::Down);
    world.settle(&id);
    world.change_node(&node, |node| node.status.state = NodeState::Ready);
    world.settle(&id);
    let new = world.live()[0].clone();
    assert_eq!((new.desired_state, world.task(&old).status.state), (TaskState::Ready, TaskState::Running));
    world.report(&old, TaskState::Shutdown);
    world.settle(&id);
    assert_eq!(world.task(&new.id).desired_state, TaskState::Running);
}

#[test]
fn a_global_job_that_failed_on_a_paused_node_is_tried_again_when_the_node_is_active() {
    let mut world = cluster(1);
    let (node, id) = (
        NodeId::for_test(1),
        world.add_service(1, |spec| {
            spec.mode = ServiceMode::GlobalJob;
            restart(spec, RestartCondition::OnFailure, Duration::ZERO, 0);
        }),
    );
    world.converge(&id);
    world.change_node(&node, |node| node.spec.availability = Availability::Pause);
    kill(&mut world, 0);
    world.converge(&id);
    assert!(world.live().is_empty());
    world.change_node(&node, |node| node.spec.availability = Availability::Active);
    world.converge(&id);
    let task = world.running()[0].clone();
    world.report(&task.id, TaskState::Complete);
    assert_eq!(world.converge(&id), None);
    assert!(world.running().is_empty());
}

#[test]
fn a_global_job_is_not_done_again_on_a_node_that_was_away_when_it_completed() {
    let mut world = cluster(1);
    let (node, id) = (NodeId::for_test(1), world.add_service(1, |spec| spec.mode = ServiceMode::GlobalJob));
    world.converge(&id);
    let first = world.running()[0].id.clone();
    world.change_node(&node, |node| node.status.state = NodeState::Down);
    world.settle(&id);
    world.change_node(&node, |node| node.status.state = NodeState::Ready);
    world.settle(&id);
    let second = world.live()[0].id.clone();
    assert_eq!((world.task(&second).desired_state, second != first), (TaskState::Ready, true));
    world.report(&first, TaskState::Complete);
    // On a drained node nobody looked after the one that waits.
    world.change_node(&node, |node| node.spec.availability = Availability::Drain);
    world.settle(&id);
    assert_eq!(world.task(&second).desired_state, TaskState::Shutdown);
    world.change_node(&node, |node| node.spec.availability = Availability::Active);
    assert_eq!(world.converge(&id), None);
    assert!(world.running().is_empty());
}
