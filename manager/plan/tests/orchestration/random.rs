//! Whatever happens, planning comes to rest and faults heal.

use super::*;
use proptest::prelude::*;

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
