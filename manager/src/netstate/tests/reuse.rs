//! Addresses that are given again, on a network with hardly any.
//!
//! With gossip, a mass redeploy left nodes with old places of addresses that others had by then, and traffic went to the wrong node
//! (moby/moby#52661).

use super::world::*;
use crate::netstate::index::Index;
use proptest::prelude::*;
use skep_plan::{Allocator, FreedAddresses};
use skep_types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const NODES: u64 = 3;
const TASKS: u64 = 6;

#[derive(Debug, Clone)]
enum Step {
    /// A task begins, on that node.
    Begin(u64, u64),
    End(u64),
    /// The task is gone from the store.
    Remove(u64),
    Take(u64),
    Acknowledge(u64),
    /// Another manager leads, which followed all the time.
    Leader,
    /// Events were lost: the leader looks at everything anew.
    Renew,
}

fn step() -> impl Strategy<Value = Step> {
    let (task, node) = (1..=TASKS, 1..=NODES);
    prop_oneof![
        6 => (task.clone(), node.clone()).prop_map(|(task, node)| Step::Begin(task, node)),
        3 => task.clone().prop_map(Step::End),
        3 => task.prop_map(Step::Remove),
        5 => node.clone().prop_map(Step::Take),
        5 => node.prop_map(Step::Acknowledge),
        1 => Just(Step::Leader),
        1 => Just(Step::Renew),
    ]
}

/// The world with what gives out addresses.
struct Cluster {
    world: World,
    allocator: Allocator,
    /// Of a manager that does not lead.
    freed: FreedAddresses,
    /// The latest task of each number: no two ever have one id.
    ids: BTreeMap<u64, u64>,
    now: Timestamp,
}

impl Cluster {
    /// A network with two addresses for tasks: 10.0.2.2 and 10.0.2.3 are left after the gateway.
    fn new() -> Self {
        let mut world = World::new();
        for number in 1..=NODES {
            world.put_node(number, Some((number as u32, "192.0.2.1")), NodeState::Ready);
        }
        world.put_network(2, false, true);
        let mut network = Network::clone(world.tables.network(&network(2)).unwrap());
        let config =
            IpamConfig { subnet: "10.0.2.0/24".into(), range: "10.0.2.0/30".into(), gateway: "10.0.2.1".into(), ..IpamConfig::default() };
        network.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
        world.write(Object::Network(Arc::new(network)));
        (1..=NODES).for_each(|number| world.follow(number));
        let allocator = Allocator::new(&world.view());
        Self { world, allocator, freed: FreedAddresses::new(None), ids: BTreeMap::new(), now: Timestamp(0) }
    }

    /// Commits, and tells everybody who watches the store.
    fn commit(&mut self, actions: &[Action]) {
        for change in self.world.commit(actions) {
            self.allocator.observe(&change);
            self.freed.observe(self.world.index.version, &change, Duration::ZERO);
        }
    }

    fn id(&self, number: u64) -> u64 {
        self.ids.get(&number).copied().unwrap_or(number)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Begin(number, on) => {
                if self.world.tables.task(&task(self.id(number))).is_none() {
                    let id = self.id(number) + TASKS;
                    self.ids.insert(number, id);
                    let mut new = self.world.task(id, on, &[], TaskState::New);
                    new.service_id = None;
                    new.node_id = None;
                    let target = network(2).to_string();
                    let config = NetworkAttachmentConfig { target, ..NetworkAttachmentConfig::default() };
                    Arc::make_mut(&mut new.spec).networks = vec![config];
                    new.service_annotations.name = on.to_string();
                    self.commit(&[Action::Create(Object::Task(Arc::new(new)))]);
                }
            }
            Step::End(number) => {
                let number = self.id(number);
                if self.world.tables.task(&task(number)).is_some_and(|task| task.node_id.is_some()) {
                    let status = TaskStatus { state: TaskState::Failed, ..TaskStatus::default() };
                    self.commit(&[Action::SetTaskStatus { task: task(number), status }]);
                }
            }
            Step::Remove(number) => {
                let number = self.id(number);
                if self.world.tables.task(&task(number)).is_some() {
                    self.commit(&[Action::Remove { kind: Kind::Task, id: task(number).to_string(), version: None }]);
                }
            }
            Step::Take(number) => self.world.take(number),
            Step::Acknowledge(number) => self.world.acknowledge(number),
            Step::Leader => {
                let view = self.world.view();
                self.world.index = Index::new(&view);
                (1..=NODES).for_each(|number| self.world.connect(number));
                self.allocator = Allocator::new(&view);
                self.allocator.remember(&self.freed.lately(Duration::ZERO));
            }
            Step::Renew => {
                let mut allocator = Allocator::new(&self.world.view());
                allocator.inherit(&self.allocator);
                self.allocator = allocator;
            }
        }
        self.allocate();
    }

    /// What the leader does after each change: gives addresses, and places who has one.
    fn allocate(&mut self) {
        for _ in 0..4 {
            self.allocator.settle(self.world.index.version, self.now);
            let index = &self.world.index;
            self.allocator.acknowledge(&|network| Some(index.acknowledged(network)));
            let plan = self.allocator.plan(&self.world.view(), self.now);
            self.commit(&plan.changes);
            let pending: Vec<Arc<Task>> = self.world.view().tasks_in_state(TaskState::Pending).cloned().collect();
            for task in pending {
                let mut placed = Task::clone(&task);
                placed.node_id = Some(node(task.service_annotations.name.parse().unwrap()));
                placed.status.state = TaskState::Running;
                self.commit(&[Action::Update(Object::Task(Arc::new(placed)))]);
            }
        }
    }

    /// Who has an address, as the store says and as each node with a task on the network knows it.
    fn holders(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut holders = BTreeMap::<String, BTreeSet<String>>::new();
        let view = self.world.view();
        let live = |task: &&Arc<Task>| task.status.state <= TaskState::Running;
        for task in view.tasks().filter(live) {
            for address in task.networks.iter().flat_map(|attachment| &attachment.addresses) {
                holders.entry(address.clone()).or_default().insert(task.id.to_string());
            }
        }
        for number in 1..=NODES {
            let is_on_it = self.world.index.networks.get(&network(2)).is_some_and(|net| net.hosts.contains_key(&node(number)));
            let known = self.world.known(number).get(network(2).as_str()).filter(|_| is_on_it);
            for endpoint in known.into_iter().flat_map(|known| known.endpoints.values()) {
                for address in &endpoint.addresses {
                    holders.entry(address.clone()).or_default().insert(endpoint.task_id.clone());
                }
            }
        }
        holders
    }
}

/// Two nodes with a task each on network 2, of which the second ends. Returns the revision at which its address was free.
fn one_left() -> (World, Version) {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Running);
    world.put_task(2, 2, &[2], TaskState::Running);
    world.take_all();
    [1, 2].into_iter().for_each(|number| world.acknowledge(number));
    world.report(2, TaskState::Failed);
    let freed = world.index.version;
    (world, freed)
}

#[test]
fn a_node_that_left_a_network_is_waited_for_until_it_has_taken_it_out() {
    let (mut world, freed) = one_left();
    world.take_all();
    world.acknowledge(1);
    assert!(world.index.acknowledged(&network(2)) < freed, "the node has the network in place yet");
    // A task that stops does not wait for it: no connection comes from there.
    world.want(1, TaskState::Shutdown);
    world.take(1);
    world.acknowledge(1);
    world.take(1);
    assert_eq!(world.cleared(1), [task(1).to_string()]);
    // It comes back, and goes again.
    world.put_task(3, 2, &[2], TaskState::Running);
    assert!(world.index.acknowledged(&network(2)) < freed);
    world.report(3, TaskState::Failed);
    assert!(world.index.acknowledged(&network(2)) < freed);
    world.acknowledge(2);
    assert_eq!(world.index.acknowledged(&network(2)), freed);
    world.take_all();
    [1, 2].into_iter().for_each(|number| world.acknowledge(number));
    assert_eq!(world.index.acknowledged(&network(2)), world.index.version);
    assert!(world.index.networks[&network(2)].acks.nodes().eq([&node(1)]), "the other one is not waited for any more");
}

#[test]
fn a_node_that_is_down_is_not_waited_for_after_it_left() {
    let (mut world, freed) = one_left();
    world.take_all();
    world.acknowledge(1);
    world.put_node(2, Some((2, "192.0.2.1")), NodeState::Down);
    assert!(world.index.acknowledged(&network(2)) >= freed);
    world.put_node(2, Some((2, "192.0.2.1")), NodeState::Ready);
    assert!(world.index.acknowledged(&network(2)) < freed);
    world.remove(Kind::Node, node(2).as_str());
    assert!(world.index.acknowledged(&network(2)) >= freed);
}

#[test]
fn a_new_leader_does_not_know_who_left_and_waits_for_all_that_are_up() {
    let (mut world, freed) = one_left();
    world.put_node(3, Some((3, "192.0.2.3")), NodeState::Down);
    world.index = Index::new(&world.view());
    [1, 2].into_iter().for_each(|number| world.connect(number));
    world.take_all();
    world.acknowledge(1);
    assert!(world.index.acknowledged(&network(2)) < freed, "nothing was heard of node 2");
    world.put_task(3, 2, &[2], TaskState::Running);
    assert!(world.index.acknowledged(&network(2)) < freed);
    world.acknowledge(2);
    assert!(world.index.acknowledged(&network(2)) >= freed, "who is down is not waited for");
    // The same when everything is looked at anew.
    world.report(3, TaskState::Failed);
    let freed = world.index.version;
    world.index = world.index.renewed(&world.view());
    world.take(1);
    world.acknowledge(1);
    assert!(world.index.acknowledged(&network(2)) < freed);
    world.take(2);
    world.acknowledge(2);
    assert!(world.index.acknowledged(&network(2)) >= freed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn moby_52661_nobody_has_an_address_that_a_node_knows_as_anothers(steps in prop::collection::vec(step(), 1..120)) {
        let mut cluster = Cluster::new();
        for step in steps {
            cluster.step(step);
            for (address, tasks) in cluster.holders() {
                prop_assert!(tasks.len() == 1, "{} is had by {:?}", address, tasks);
            }
        }
        // It is not kept for ever either: when all nodes have heard of everything, and what a leader that looked at everything anew was
        // too careful about has waited for a minute, whoever waits gets one, if there is one.
        for _ in 0..3 {
            cluster.now = cluster.now + Duration::from_secs(61);
            for number in 1..=NODES {
                cluster.step(Step::Take(number));
                cluster.step(Step::Acknowledge(number));
            }
        }
        let view = cluster.world.view();
        let (waiting, running) = (view.tasks_in_state(TaskState::New).count(), view.tasks_in_state(TaskState::Running).count());
        prop_assert!(waiting == 0 || running == 2, "{} wait and {} have one", waiting, running);
    }
}
