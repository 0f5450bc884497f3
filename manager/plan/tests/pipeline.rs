//! Everything together, driven as the manager drives it: a service is only planned when a change concerns it or it asked to be,
//! the caches see each change once. A lost wake-up shows as a service that never gets where it should.

mod world;

use proptest::prelude::*;
use skep_plan::{Allocator, Orchestrator, Plan, Scheduler, plan_enforcement, plan_service};
use skep_types::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use world::*;

struct Leader {
    allocator: Allocator,
    scheduler: Scheduler,
    orchestrator: Orchestrator,
    /// For the constraint enforcer.
    nodes: BTreeSet<NodeId>,
    wake: Option<Timestamp>,
    other_wakes: Vec<Timestamp>,
}

impl Leader {
    fn elected(world: &World) -> Self {
        Self {
            allocator: Allocator::new(world),
            scheduler: Scheduler::new(world),
            orchestrator: Orchestrator::new(world),
            nodes: BTreeSet::new(),
            wake: None,
            other_wakes: Vec::new(),
        }
    }

    fn observe(&mut self, changes: &[Change]) {
        for change in changes {
            self.allocator.observe(change);
            self.scheduler.observe(change);
            self.orchestrator.observe(change);
            if let Object::Node(node) = change.object() {
                self.nodes.insert(node.id.clone());
            }
        }
    }

    fn carry_out(&mut self, world: &mut World, plan: Plan) -> bool {
        let busy = !plan.is_empty();
        let changes = world.commit(plan.changes);
        self.observe(&changes);
        busy
    }

    /// Works until nothing is left to do at this moment.
    fn work(&mut self, world: &mut World) {
        self.step(world);
        self.nothing_was_overlooked(world);
    }

    fn step(&mut self, world: &mut World) {
        for _ in 0..200 {
            let mut busy = false;
            for node in std::mem::take(&mut self.nodes) {
                busy |= self.carry_out(world, plan_enforcement(world, &node));
            }
            let mut ids = world.ids();
            let plan = self.orchestrator.plan(world, &mut ids, world.now);
            self.wake = plan.wake_at;
            busy |= self.carry_out(world, plan);
            let plan = self.orchestrator.plan_reaping(world);
            busy |= self.carry_out(world, plan);
            self.other_wakes.clear();
            self.allocator.settle(Version(world.version), world.now);
            self.allocator.acknowledge(&|_| Some(Version(world.version)));
            let plan = self.allocator.plan(world, world.now);
            self.other_wakes.extend(plan.wake_at);
            busy |= self.carry_out(world, plan);
            let plan = self.scheduler.schedule(world.now);
            self.other_wakes.extend(plan.wake_at);
            busy |= self.carry_out(world, plan);
            if !busy {
                return;
            }
        }
        panic!("the leader does not come to rest");
    }

    /// Looking at all slots of all services finds nothing that looking at some of them did not.
    fn nothing_was_overlooked(&self, world: &mut World) {
        let services: Vec<ServiceId> = world.services().map(|service| service.id.clone()).collect();
        for id in services {
            let mut ids = world.ids();
            let Plan { changes, wake_at } = plan_service(&*world, &id, &mut ids, world.now);
            assert!(changes.is_empty(), "{id}: {changes:#?}");
            assert!(wake_at.is_none_or(|wake| self.wake.is_some_and(|known| known <= wake)), "{id}: {wake_at:?}, {:?}", self.wake);
            let reaping = skep_plan::plan_reaping(&*world, &id).changes;
            assert!(reaping.is_empty(), "{id}: {reaping:#?}");
        }
    }

    /// The orchestrator knows what one that begins now finds out: both end with the same wishes and tasks.
    fn decides_as_a_new_one(&mut self, world: &mut World) {
        let mut other = world.clone();
        let mut begun = Orchestrator::new(&other);
        let others_wake = orchestrate(&mut begun, &mut other, |_| {});
        let (allocator, scheduler, nodes) = (&mut self.allocator, &mut self.scheduler, &mut self.nodes);
        let wake = orchestrate(&mut self.orchestrator, world, |change| {
            allocator.observe(change);
            scheduler.observe(change);
            if let Object::Node(node) = change.object() {
                nodes.insert(node.id.clone());
            }
        });
        assert_eq!(wishes(world), wishes(&other));
        assert!(others_wake.is_none_or(|theirs| wake.is_some_and(|ours| ours <= theirs)), "{wake:?} is after {others_wake:?}");
        self.wake = wake;
    }

    /// Everything is decided and then taken back, as if another write had been first.
    fn decide_in_vain(&mut self, world: &World) {
        let mut draft = world.clone();
        let mut tried = Vec::new();
        for _ in 0..3 {
            for decider in 0..3 {
                let mut ids = draft.ids();
                let plan = match decider {
                    0 => self.orchestrator.plan(&draft, &mut ids, draft.now),
                    1 => self.allocator.plan(&draft, draft.now),
                    _ => self.scheduler.schedule(draft.now),
                };
                let changes = draft.commit(plan.changes);
                self.observe(&changes);
                tried.extend(changes);
            }
            let plan = self.orchestrator.plan_reaping(&draft);
            let changes = draft.commit(plan.changes);
            self.observe(&changes);
            tried.extend(changes);
        }
        let undone: Vec<Change> = tried
            .into_iter()
            .rev()
            .map(|change| match change {
                Change::Created(object) => Change::Removed(object),
                Change::Removed(object) => Change::Created(object),
                Change::Updated { old, new } => Change::Updated { old: new, new: old },
            })
            .collect();
        self.observe(&undone);
    }

    fn next_wake(&self) -> Option<Timestamp> {
        self.wake.iter().chain(&self.other_wakes).min().copied()
    }

    fn let_agents_obey(&mut self, world: &mut World) -> bool {
        let mut any = false;
        for task in world.all_tasks() {
            let state = task.status.state;
            let node = task.node_id.as_ref().and_then(|id| world.node(id));
            if state < TaskState::Assigned || state.is_terminal() || node.is_none_or(|node| node.status.state == NodeState::Down) {
                continue;
            }
            let next = match task.desired_state {
                TaskState::Shutdown | TaskState::Remove => TaskState::Shutdown,
                TaskState::Ready => TaskState::Ready,
                _ => TaskState::Running,
            };
            if next > state {
                let changes = world.report(&task.id, next);
                self.observe(&changes);
                any = true;
            }
        }
        any
    }

    /// Time goes on, from wake-up to wake-up, until nobody has anything left to do.
    fn run(&mut self, world: &mut World, time: Duration) {
        let end = world.now + time;
        loop {
            self.work(world);
            if self.let_agents_obey(world) {
                continue;
            }
            match self.next_wake().filter(|wake| *wake <= end) {
                Some(wake) => world.now = world.now.max(wake),
                None => break,
            }
        }
        world.now = world.now.max(end);
    }
}

#[test]
fn a_task_that_fails_among_many_is_replaced_without_a_look_at_the_others() {
    let mut world = World::new();
    (1..=3).for_each(|number| drop(world.add_node(number, |_| {})));
    world.add_service(1, |spec| {
        replicas(spec, 20);
        restart(spec, RestartCondition::Any, secs(1), 0);
    });
    let mut leader = Leader::elected(&world);
    leader.run(&mut world, secs(10));
    assert_eq!(world.running().len(), 20);
    for round in 0..8 {
        let failed = world.running()[3].clone();
        world.no_walks = true;
        let changes = world.report(&failed.id, TaskState::Failed);
        leader.observe(&changes);
        leader.step(&mut world);
        assert_eq!(world.task(&failed.id).desired_state, TaskState::Shutdown, "round {round}");
        world.pass(secs(1));
        leader.step(&mut world);
        while leader.let_agents_obey(&mut world) {
            leader.step(&mut world);
        }
        world.no_walks = false;
        assert_eq!(world.running().len(), 20);
        let kept = world.all_tasks().into_iter().filter(|task| task.slot == failed.slot).count();
        assert_eq!(kept, (round + 2).min(5), "history is trimmed as well");
        leader.nothing_was_overlooked(&mut world);
    }
    // A node that goes takes its own tasks with it, not the others.
    world.no_walks = true;
    let changes = world.change_node(&NodeId::for_test(1), |node| node.status.state = NodeState::Down);
    leader.observe(&changes);
    leader.step(&mut world);
    world.no_walks = false;
    leader.run(&mut world, secs(100));
    assert!(world.running().iter().all(|task| task.node_id != Some(NodeId::for_test(1))) && world.running().len() == 20);
}

/// Only the orchestrator, until it proposes nothing.
fn orchestrate(orchestrator: &mut Orchestrator, world: &mut World, mut tell: impl FnMut(&Change)) -> Option<Timestamp> {
    for _ in 0..100 {
        let mut ids = world.ids();
        let plan = orchestrator.plan(&*world, &mut ids, world.now);
        if plan.is_empty() {
            return plan.wake_at;
        }
        for change in world.commit(plan.changes) {
            orchestrator.observe(&change);
            tell(&change);
        }
    }
    panic!("the orchestrator does not come to rest");
}

/// What is wanted of each task, and the state of updates; new tasks without the ids that chance gave them.
fn wishes(world: &World) -> Vec<String> {
    let task = |task: Arc<Task>| {
        let id = if task.status.state == TaskState::New { String::new() } else { task.id.to_string() };
        format!("{:?} {} {:?} {id} {:?} {:?}", task.service_id, task.slot, task.node_id, task.desired_state, task.spec_version)
    };
    let service = |service: &Arc<Service>| {
        // In how many commits they do it may differ.
        let status = service.update_status.clone().map(|status| UpdateStatus { began: Version::default(), ..status });
        format!("{} {status:?}", service.id)
    };
    let mut all: Vec<String> = world.all_tasks().into_iter().map(task).chain(world.services().map(service)).collect();
    all.sort();
    all
}

#[derive(Debug, Clone)]
enum Event {
    History(u8),
    Replicas(u8, u8),
    Image(u8, u8),
    Order(u8, bool),
    Kill(u8),
    Reject(u8),
    Availability(u8, u8),
    State(u8, bool),
    Label(u8, bool),
    Time(u16),
    NewLeader,
    AgentsOnly,
}

/// What is tried after an event.
#[derive(Debug, Clone, Copy)]
enum Trial {
    None,
    InVain,
    AsNew,
}

fn trial() -> impl Strategy<Value = Trial> {
    prop_oneof![Just(Trial::None), Just(Trial::InVain), Just(Trial::AsNew)]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0u8..3, 0u8..7).prop_map(|(service, count)| Event::Replicas(service, count)),
        (0u8..3, 0u8..4).prop_map(|(service, image)| Event::Image(service, image)),
        (0u8..3, any::<bool>()).prop_map(|(service, start_first)| Event::Order(service, start_first)),
        any::<u8>().prop_map(Event::Kill),
        any::<u8>().prop_map(Event::Reject),
        (1u8..4, 0u8..3).prop_map(|(node, availability)| Event::Availability(node, availability)),
        (1u8..4, any::<bool>()).prop_map(|(node, up)| Event::State(node, up)),
        (1u8..4, any::<bool>()).prop_map(|(node, ssd)| Event::Label(node, ssd)),
        (0u16..15_000).prop_map(Event::Time),
        Just(Event::NewLeader),
        Just(Event::AgentsOnly),
        (0u8..3).prop_map(Event::History),
    ]
}

fn happen(world: &mut World, leader: &mut Leader, services: &[ServiceId], (event, trial): (Event, Trial)) {
    let node_id = |number: u8| NodeId::for_test(u64::from(number));
    let before: Vec<_> = services.iter().filter_map(|id| world.service(id).clone().into()).collect::<Vec<Service>>();
    let changes = match event {
        Event::Replicas(service, count) => {
            let id = &services[usize::from(service)];
            if matches!(world.service(id).spec.mode, ServiceMode::Replicated { .. }) {
                world.update_service(id, |spec| replicas(spec, u64::from(count)));
            }
            Vec::new()
        }
        Event::Image(service, number) => {
            world.update_service(&services[usize::from(service)], |spec| image(spec, &format!("web:{number}")));
            Vec::new()
        }
        Event::Order(service, start_first) => {
            let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
            world.update_service(&services[usize::from(service)], |spec| {
                spec.update = Some(UpdateConfig { order, ..UpdateConfig::default() })
            });
            Vec::new()
        }
        Event::Kill(index) | Event::Reject(index) => {
            let tasks: Vec<_> = world
                .all_tasks()
                .into_iter()
                .filter(|task| (TaskState::Assigned..=TaskState::Running).contains(&task.status.state))
                .collect();
            match tasks.get(usize::from(index) % tasks.len().max(1)) {
                Some(task) => world.report(&task.id, if index % 2 == 0 { TaskState::Failed } else { TaskState::Rejected }),
                None => Vec::new(),
            }
        }
        Event::Availability(node, availability) => {
            let availability = [Availability::Active, Availability::Pause, Availability::Drain][usize::from(availability)];
            world.change_node(&node_id(node), |node| node.spec.availability = availability)
        }
        Event::State(node, up) => {
            world.change_node(&node_id(node), |node| node.status.state = if up { NodeState::Ready } else { NodeState::Down })
        }
        Event::Label(node, ssd) => world.change_node(&node_id(node), |node| {
            node.spec.annotations.labels.insert("disk".into(), if ssd { "ssd" } else { "hdd" }.into());
        }),
        Event::Time(millis) => {
            leader.run(world, Duration::from_millis(u64::from(millis)));
            Vec::new()
        }
        Event::NewLeader => {
            *leader = Leader::elected(world);
            Vec::new()
        }
        Event::History(limit) => world.set_history(i64::from(limit)),
        Event::AgentsOnly => {
            leader.let_agents_obey(world);
            Vec::new()
        }
    };
    leader.observe(&changes);
    for old in before {
        let new = world.service(&old.id).clone();
        if old.spec != new.spec || old.spec_version != new.spec_version {
            leader.observe(&[Change::Updated { old: Object::Service(old.into()), new: Object::Service(new.into()) }]);
        }
    }
    match trial {
        Trial::None => {}
        Trial::InVain => leader.decide_in_vain(world),
        Trial::AsNew => leader.decides_as_a_new_one(world),
    }
}

/// The service has all its tasks running, of the newest spec; `nodes` = how many can take tasks.
fn check_served(world: &World, id: &ServiceId, nodes: usize) {
    let service = world.service(id);
    let wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas } => usize::try_from(replicas).expect("small"),
        _ => nodes,
    };
    let live: Vec<_> = world.live().into_iter().filter(|task| task.service_id.as_ref() == Some(id)).collect();
    assert_eq!(live.len(), wanted, "{}: {live:#?}", service.name());
    for task in live {
        assert_eq!(task.status.state, TaskState::Running);
        assert_eq!(task.spec.container().expect("a container").image, "web:9");
    }
    let done = service.update_status.as_ref().is_none_or(|status| status.state == UpdateState::Completed);
    assert!(done, "{:?}", service.update_status);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn once_faults_stop_everything_runs_as_wanted(events in prop::collection::vec((event(), trial()), 0..40)) {
        let mut world = World::new();
        world.add_network(1, "ingress", |spec| spec.ingress = true);
        world.add_network(2, "back", |_| {});
        (1..=3).for_each(|number| drop(world.add_node(number, |_| {})));
        let web = world.add_service(1, |spec| {
            replicas(spec, 3);
            restart(spec, RestartCondition::Any, secs(1), 0);
            let port = PortConfig { target_port: 80, published_port: 8080, ..PortConfig::default() };
            spec.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
        });
        let everywhere = world.add_service(2, |spec| {
            spec.mode = ServiceMode::Global;
            task_spec(spec).networks.push(NetworkAttachmentConfig { target: "back".into(), ..NetworkAttachmentConfig::default() });
        });
        let ssd = world.add_service(3, |spec| {
            replicas(spec, 2);
            restart(spec, RestartCondition::OnFailure, Duration::ZERO, 0);
            task_spec(spec).placement = Some(Placement { constraints: vec!["node.labels.disk != hdd".into()], ..Placement::default() });
        });
        let services = [web, everywhere, ssd];
        let mut leader = Leader::elected(&world);
        leader.run(&mut world, secs(10));
        for event in events {
            happen(&mut world, &mut leader, &services, event);
        }
        for number in 1..=3 {
            let changes = world.change_node(&NodeId::for_test(number), |node| {
                node.status.state = NodeState::Ready;
                node.spec.availability = Availability::Active;
                node.spec.annotations.labels.clear();
            });
            leader.observe(&changes);
        }
        for service in 0..3 {
            happen(&mut world, &mut leader, &services, (Event::Image(service, 9), Trial::None));
        }
        leader.run(&mut world, secs(300));
        for id in &services {
            check_served(&world, id, 3);
        }
        prop_assert_eq!(leader.next_wake(), None);
        prop_assert_eq!(leader.scheduler.pending(), 0);

        // Each kind of trouble by itself, with nothing else that would wake the leader.
        let (one, two, three) = (NodeId::for_test(1), NodeId::for_test(2), NodeId::for_test(3));
        let changes = world.change_node(&three, |node| node.spec.availability = Availability::Drain);
        leader.observe(&changes);
        leader.run(&mut world, secs(100));
        prop_assert!(world.live().iter().all(|task| task.node_id.as_ref() != Some(&three)), "a drained node is empty");
        let changes = world.change_node(&two, |node| drop(node.spec.annotations.labels.insert("disk".into(), "hdd".into())));
        leader.observe(&changes);
        leader.run(&mut world, secs(100));
        let strays = world.live().into_iter().filter(|task| task.service_id.as_ref() == Some(&services[2]) && task.node_id.as_ref() == Some(&two)).count();
        prop_assert_eq!(strays, 0, "constraints are enforced");
        let changes = world.change_node(&two, |node| node.status.state = NodeState::Down);
        leader.observe(&changes);
        leader.run(&mut world, secs(100));
        prop_assert!(world.live().iter().all(|task| task.node_id.as_ref() == Some(&one)), "only one node is left");
        for id in &services {
            check_served(&world, id, 1);
        }
    }
}
