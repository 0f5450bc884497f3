//! Rolling updates, their failures, rollbacks.

use super::*;

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
fn an_update_clears_away_what_the_one_before_it_began() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| {
        replicas(spec, 3);
        spec.update = Some(UpdateConfig { parallelism: 0, order: UpdateOrder::StartFirst, ..UpdateConfig::default() });
    });
    world.converge(&id);
    world.update_service(&id, |spec| image(spec, "web:2"));
    world.settle(&id);
    world.place_all();
    assert_eq!(world.live_slots(), [1, 1, 2, 2, 3, 3]);
    world.update_service(&id, |spec| {
        image(spec, "web:3");
        spec.update = None;
    });
    world.settle(&id);
    // It goes through the slots one by one; nothing of the update before may stand where their new tasks have to go.
    assert_eq!(world.live_slots(), [1, 2, 3]);
    assert_eq!(images(&world), ["web:1"; 2], "those that run go on");
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
        let reaping = plan_reaping(&*world, id);
        world.commit(reaping.changes);
        world.obey();
        world.pass(secs(1));
    }
}

#[test]
fn what_an_update_is_judged_by_is_kept_until_it_is_over() {
    for history in [0, 1, 2, 5] {
        let mut world = cluster(2);
        world.set_history(history);
        let id = world.add_service(1, |spec| {
            replicas(spec, 4);
            restart(spec, RestartCondition::Any, Duration::ZERO, 0);
            // The first slot fails often before it is the turn of the second.
            spec.update = Some(UpdateConfig { delay: secs(20), max_failure_ratio: 0.3, ..UpdateConfig::default() });
        });
        world.converge(&id);
        failing_update(&mut world, &id);
        assert_eq!(state(&world, &id), UpdateState::Paused, "history {history}: two of four slots failed");
        assert_eq!(images(&world).iter().filter(|image| *image == "web:1").count(), 2, "history {history}");
        let kept = world.all_tasks().iter().filter(|task| task.slot == 1).count();
        assert!(kept <= usize::try_from(history).unwrap() + 2, "history {history}: {kept} tasks in one slot");
    }
}

#[test]
fn an_update_counts_its_own_tasks_whatever_the_clock_was_set_to() {
    for step in [-3_600, 3_600] {
        let mut world = cluster(2);
        let id = world.add_service(1, |spec| replicas(spec, 3));
        world.converge(&id);
        world.update_service(&id, |spec| image(spec, "web:2"));
        world.settle(&id);
        world.place_all();
        world.now = Timestamp(world.now.0 + step * 1_000_000_000);
        world.settle(&id);
        let begun = world.live().into_iter().filter(|task| task.spec.container().expect("a container").image == "web:2");
        assert_eq!(begun.count(), 1, "one slot at a time, {step} s");
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
    // What clients send back that read it with defaults.
    let told = skep_plan::with_defaults(world.service(&id)).spec;
    assert_ne!(told.task, world.service(&id).spec.task);
    world.update_service(&id, |spec| *spec = told);
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
fn who_may_come_to_a_port_changes_without_new_tasks() {
    let with = |change: fn(&mut PortConfig)| {
        move |spec: &mut ServiceSpec| {
            let mut port = PortConfig { published_port: 8080, target_port: 80, ..PortConfig::default() };
            change(&mut port);
            spec.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
        }
    };
    let mut world = cluster(1);
    let id = world.add_service(1, with(|_| {}));
    world.converge(&id);
    let tasks = |world: &World| world.live().iter().map(|task| task.id.clone()).collect::<Vec<_>>();
    let first = tasks(&world);
    for change in
        [(|port| port.affinity = Affinity::Source) as fn(&mut PortConfig), |port| port.allow = vec!["192.0.2.0/24".parse().unwrap()]]
    {
        world.update_service(&id, with(change));
        world.converge(&id);
        assert_eq!(tasks(&world), first, "every node is told of the service itself");
    }
    for change in [(|port| port.place = PublishPlace::Interface("eth1".into())) as fn(&mut PortConfig), |port| {
        (port.publish_mode, port.allow) = (PublishMode::Host, vec!["192.0.2.0/24".parse().unwrap()]);
    }] {
        let before = tasks(&world);
        world.update_service(&id, with(change));
        world.converge(&id);
        assert_ne!(tasks(&world), before, "a task has its host ports, and where it is reached, from its beginning");
    }
}
