//! Replica counts, and what becomes of tasks that end or lose their node.

use super::*;

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

/// A service of one task on one of two nodes, which is drained: the task, and when the plan wants to be made again.
fn drained() -> (World, ServiceId, Arc<Task>, Option<Timestamp>) {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| replicas(spec, 1));
    world.converge(&id);
    let old = world.running()[0].clone();
    world.change_node(old.node_id.as_ref().expect("placed"), |node| node.spec.availability = Availability::Drain);
    let wake = world.settle(&id);
    (world, id, old, wake)
}

#[test]
fn tasks_of_a_drained_node_move_at_once_but_wait_for_the_old_ones_to_stop() {
    let (mut world, id, old, wake) = drained();
    assert_eq!(wake, Some(world.now + secs(60)));
    let new = world.live()[0].clone();
    assert_eq!(new.desired_state, TaskState::Ready, "the old one has not stopped");
    world.report(&old.id, TaskState::Shutdown);
    world.settle(&id);
    assert_eq!(world.task(&new.id).desired_state, TaskState::Running);
}

#[test]
fn a_stop_that_never_comes_is_waited_for_a_minute() {
    let (mut world, id, ..) = drained();
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

/// A service of one task on the only node, which gets another image: the old task still stops when the new one is placed.
fn replaced(mode: ServiceMode) -> (World, ServiceId, Arc<Task>) {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| spec.mode = mode);
    world.converge(&id);
    let old = world.running()[0].clone();
    world.update_service(&id, |spec| image(spec, "web:2"));
    world.settle(&id);
    world.place_all();
    (world, id, old)
}

#[test]
fn two_tasks_of_a_slot_never_run_on_one_node() {
    let (mut world, id, old) = replaced(ServiceMode::Replicated { replicas: 1 });
    let beside = world.live()[0].clone();
    assert_eq!(beside.node_id, old.node_id);
    world.pass(secs(60));
    world.settle(&id);
    // It does not run beside the old one; another one may run where nothing stops.
    let elsewhere = world.live();
    assert_eq!(elsewhere.len(), 1);
    assert_eq!((elsewhere[0].desired_state, elsewhere[0].node_id.as_ref()), (TaskState::Running, None));
    assert_eq!(world.task(&beside.id).desired_state, TaskState::Shutdown);
}

#[test]
fn a_slot_of_a_global_service_waits_for_its_old_task_however_long_that_stops() {
    let (mut world, id, old) = replaced(ServiceMode::Global);
    world.pass(secs(600));
    world.settle(&id);
    assert_eq!(world.live()[0].desired_state, TaskState::Ready);
    world.report(&old.id, TaskState::Shutdown);
    world.settle(&id);
    assert_eq!(world.live()[0].desired_state, TaskState::Running);
}

#[test]
fn a_leader_with_another_clock_waits_neither_too_little_nor_for_ever() {
    for ahead in [-3_600, 3_600] {
        let (mut world, id, ..) = drained();
        let new = world.live()[0].clone();
        let begun = Timestamp(world.now.0 + ahead * 1_000_000_000);
        let mut ids = world.ids();
        let beginning = skep_plan::Beginning { at: begun, revision: world.version() };
        let mut plan =
            |seconds| skep_plan::plan_service(&world, &id, &mut ids, skep_plan::Time::of_leader(begun + secs(seconds), beginning));
        let early = plan(59);
        assert_eq!((early.changes, early.wake_at), (vec![], Some(begun + secs(60))), "{ahead} s ahead");
        assert_eq!(plan(60).changes, [Action::SetTaskDesired { task: new.id.clone(), desired: TaskState::Running }]);
    }
}

#[test]
fn a_clock_that_was_set_back_forgets_no_delay() {
    let mut world = cluster(1);
    let id = world.add_service(1, |spec| replicas(spec, 1));
    world.converge(&id);
    world.now = Timestamp(world.now.0 - 3_600 * 1_000_000_000);
    kill(&mut world, 1);
    assert_eq!(world.settle(&id), Some(world.now + secs(5)), "by its time the new task came before the one that failed");
    assert_eq!(world.live()[0].desired_state, TaskState::Ready);
}

#[test]
fn a_task_that_waits_for_its_delay_waits_beside_one_of_an_update_that_starts_first() {
    let mut world = cluster(2);
    let id = world.add_service(1, |spec| {
        replicas(spec, 1);
        spec.update = Some(UpdateConfig { order: UpdateOrder::StartFirst, ..UpdateConfig::default() });
    });
    world.converge(&id);
    kill(&mut world, 1);
    world.settle(&id);
    let waiting = world.live()[0].clone();
    world.update_service(&id, |spec| image(spec, "web:2"));
    world.settle(&id);
    assert_eq!(world.live().len(), 2, "the new one starts first");
    let reaping = plan_reaping(&world, &id);
    world.commit(reaping.changes);
    world.settle(&id);
    assert_eq!(world.task(&waiting.id).desired_state, TaskState::Ready, "it failed a moment ago");
}

#[test]
fn of_two_that_one_write_made_for_a_slot_neither_replaces_the_other() {
    let mut world = cluster(1);
    let start_first = UpdateConfig { order: UpdateOrder::StartFirst, ..UpdateConfig::default() };
    let id = world.add_service(1, |spec| spec.update = Some(start_first));
    world.converge(&id);
    let failed = kill(&mut world, 1);
    world.commit(vec![Action::SetTaskDesired { task: failed.clone(), desired: TaskState::Shutdown }]);
    // The update comes at the same time as the replacement of what failed, and starts first. By their ids it was the other way round.
    let now = world.now;
    let made = |world: &World, id: u64, desired| {
        let mut task = Task::of_service(TaskId::for_test(id), &Arc::new(world.service(&ServiceId::for_test(1)).clone()), 1, None, now);
        task.desired_state = desired;
        task
    };
    let replacement = made(&world, u64::MAX, TaskState::Ready);
    world.update_service(&id, |spec| image(spec, "web:2"));
    let updated = made(&world, u64::MAX - 1, TaskState::Running);
    let (replacement, updated) = (Arc::new(replacement), Arc::new(updated));
    world.commit([&replacement, &updated].map(|task| Action::Create(Object::Task(Arc::clone(task)))).into());
    world.obey();
    world.pass(secs(3));
    world.report(&updated.id, TaskState::Failed);
    world.settle(&id);
    let again = world.live().into_iter().find(|task| task.meta.created_at == world.now).expect("made just now").id.clone();
    let desired = |world: &World, id: &TaskId| world.task(id).desired_state;
    assert_eq!(desired(&world, &replacement.id), TaskState::Ready, "its delay is that of the one that failed");
    world.set_history(0);
    assert!(plan_reaping(&world, &id).is_empty(), "what says how long they wait is kept");
    world.pass(secs(2));
    world.converge(&id);
    assert_eq!((desired(&world, &replacement.id), desired(&world, &again)), (TaskState::Running, TaskState::Ready));
    world.report(&replacement.id, TaskState::Failed);
    assert_eq!(world.converge(&id), Some(world.now + secs(3)));
    assert_eq!(desired(&world, &again), TaskState::Ready, "it replaces the one of its own spec, not the other that stood beside");
    world.pass(secs(3));
    world.converge(&id);
    assert_eq!(world.running().iter().map(|task| &task.id).collect::<Vec<_>>(), [&again]);
}

#[test]
fn of_two_that_one_write_made_the_one_that_failed_says_how_long_its_replacement_waits() {
    let mut world = cluster(1);
    let id = world.add_service(1, |_| {});
    world.converge(&id);
    let failed = kill(&mut world, 1);
    world.commit(vec![Action::SetTaskDesired { task: failed, desired: TaskState::Shutdown }]);
    let made = |world: &World, number: u64| {
        let service = Arc::new(world.service(&ServiceId::for_test(1)).clone());
        let mut task = Task::of_service(TaskId::for_test(number), &service, 1, None, world.now);
        task.desired_state = TaskState::Running;
        Arc::new(task)
    };
    // By their ids the one that goes is the newer one.
    let (fails, goes) = (made(&world, u64::MAX - 1), made(&world, u64::MAX));
    world.commit([&fails, &goes].map(|task| Action::Create(Object::Task(Arc::clone(task)))).into());
    world.place_all();
    world.obey();
    world.pass(secs(1));
    world.commit(vec![Action::SetTaskDesired { task: goes.id.clone(), desired: TaskState::Shutdown }]);
    world.report(&fails.id, TaskState::Failed);
    world.settle(&id);
    let again = world.live().into_iter().find(|task| task.meta.created_at == world.now).expect("made just now").id.clone();
    world.report(&goes.id, TaskState::Shutdown);
    world.pass(secs(1));
    world.settle(&id);
    assert_eq!(world.task(&again).desired_state, TaskState::Ready, "what it replaces failed a second ago");
    world.pass(secs(4));
    world.settle(&id);
    assert_eq!(world.task(&again).desired_state, TaskState::Running);
}
