//! Whatever happens, nothing is given twice.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug, Clone)]
enum Step {
    Network(u8),
    Service { ports: Vec<(u8, bool)>, networks: Vec<u8>, count: u8 },
    Update(u8, Vec<(u8, bool)>),
    Remove(u8),
    End(u8),
    Delete(u8),
    Place(u8, u8),
    LosePlan,
    NewLeader,
}

fn some_ports() -> impl Strategy<Value = Vec<(u8, bool)>> {
    prop::collection::vec((1u8..4, any::<bool>()), 0..3)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u8..5).prop_map(Step::Network),
        (some_ports(), prop::collection::vec(1u8..5, 0..2), 0u8..5).prop_map(|(ports, networks, count)| Step::Service {
            ports,
            networks,
            count
        }),
        (any::<u8>(), some_ports()).prop_map(|(index, ports)| Step::Update(index, ports)),
        any::<u8>().prop_map(Step::Remove),
        any::<u8>().prop_map(Step::End),
        any::<u8>().prop_map(Step::Delete),
        (any::<u8>(), 1u8..4).prop_map(|(task, node)| Step::Place(task, node)),
        Just(Step::LosePlan),
        Just(Step::NewLeader),
    ]
}

fn set_ports(spec: &mut ServiceSpec, ports: &[(u8, bool)]) {
    spec.endpoint = None;
    for (number, given) in ports {
        publish(spec, if *given { 8000 + u32::from(*number) } else { 0 }, u32::from(*number));
    }
}

/// Everything that must be unique, collected from the store.
pub fn check_unique(world: &World) {
    let mut seen = BTreeSet::new();
    let mut take = |what: String| assert!(seen.insert(what.clone()), "{what} was given twice");
    for network in world.networks() {
        for config in network.ipam.iter().flat_map(|ipam| &ipam.configs) {
            take(config.subnet.clone());
            take(config.gateway.clone());
        }
    }
    let bare = |text: &str| text.split('/').next().unwrap_or(text).to_owned();
    for service in world.services() {
        if let Some(endpoint) = &service.endpoint {
            endpoint.virtual_ips.iter().for_each(|vip| take(bare(&vip.addr)));
            endpoint.ports.iter().for_each(|port| take(format!("port {}", port.published_port)));
        }
    }
    let of_tasks = world.tasks().filter(|task| task.status.state <= TaskState::Running).flat_map(|task| &task.networks);
    let of_nodes = world.nodes().flat_map(|node| &node.attachments);
    of_tasks.chain(of_nodes).flat_map(|attachment| &attachment.addresses).for_each(|address| take(bare(address)));
}

fn service_ids(world: &World) -> Vec<ServiceId> {
    world.services().map(|service| service.id.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn nothing_is_ever_given_twice(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = with_ingress();
        (1..=2).for_each(|number| drop(world.add_node(number, |_| {})));
        world.add_node(3, |node| node.overlay = Some(NodeOverlay { underlay: "192.0.2.3".into(), ..NodeOverlay::default() }));
        let mut allocator = Allocator::new(&world);
        let mut number = 100;
        for step in steps {
            number += 1;
            let before = world.clone();
            let services = service_ids(&world);
            let tasks = world.all_tasks();
            let pick_service = |index: u8| services.get(usize::from(index) % services.len().max(1));
            let pick_task = |index: u8| tasks.get(usize::from(index) % tasks.len().max(1));
            match step {
                Step::Network(name) => {
                    if world.network_by_name(&format!("net{name}")).is_none() {
                        world.add_network(number, &format!("net{name}"), |spec| {
                            let config = IpamConfig { subnet: format!("10.7.{name}.0/28"), ..IpamConfig::default() };
                            spec.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
                        });
                    }
                }
                Step::Service { ports, networks, count } => {
                    world.add_service(number, |spec| {
                        replicas(spec, u64::from(count));
                        set_ports(spec, &ports);
                        networks.iter().for_each(|name| join(spec, &format!("net{name}")));
                    });
                }
                Step::Update(index, ports) => if let Some(id) = pick_service(index) {
                    world.update_service(id, |spec| set_ports(spec, &ports));
                },
                Step::Remove(index) => if let Some(id) = pick_service(index) {
                    world.remove(Kind::Service, id.as_str());
                },
                Step::End(index) => if let Some(task) = pick_task(index) {
                    world.report(&task.id, TaskState::Failed);
                },
                Step::Delete(index) => if let Some(task) = pick_task(index) {
                    world.remove(Kind::Task, task.id.as_str());
                },
                Step::Place(index, node) => if let Some(task) = pick_task(index).filter(|task| task.status.state == TaskState::Pending) {
                    let mut task = Task::clone(task);
                    task.node_id = Some(NodeId::for_test(u64::from(node)));
                    task.status.state = TaskState::Running;
                    world.commit(vec![Action::Update(Object::Task(Arc::new(task)))]);
                },
                Step::LosePlan => drop(allocator.plan(&world, world.now)),
                Step::NewLeader => allocator = Allocator::new(&world),
            }
            for id in service_ids(&world).into_iter().chain(services) {
                let plan = world.plan_service(&id);
                world.commit(plan.changes);
            }
            feed(&mut allocator, difference(&before, &world));
            allocate(&mut world, &mut allocator);
            check_unique(&world);
            let audit = allocator.audit(&world);
            prop_assert!(audit.is_clean(), "{:?}", audit);
            // Both know the same: what was fed and what is read anew. Only the first of several reasons to wait may differ.
            let anew = Allocator::new(&world).plan(&world, world.now);
            let gives = anew.changes.iter().any(|action| !matches!(action, Action::SetTaskStatus { status, .. } if status.state == TaskState::New));
            prop_assert!(!gives, "{:?}", anew.changes);
        }
    }
}

/// The changes between two states, as the store's feed would tell them.
fn difference(before: &World, after: &World) -> Vec<Change> {
    let all = |world: &World| -> BTreeMap<(Kind, String), Object> {
        let networks = world.networks().map(|network| Object::Network(Arc::clone(network)));
        let services = world.services().map(|service| Object::Service(Arc::clone(service)));
        let nodes = world.nodes().map(|node| Object::Node(Arc::clone(node)));
        let tasks = world.tasks().map(|task| Object::Task(Arc::clone(task)));
        let objects = networks.chain(services).chain(nodes).chain(tasks);
        objects.map(|object| ((object.kind(), object.id().to_owned()), object)).collect()
    };
    let (old, new) = (all(before), all(after));
    let mut changes = Vec::new();
    for (key, object) in &new {
        match old.get(key) {
            None => changes.push(Change::Created(object.clone())),
            Some(known) if known.version() != object.version() => changes.push(Change::Updated { old: known.clone(), new: object.clone() }),
            Some(_) => {}
        }
    }
    changes.extend(old.iter().filter(|(key, _)| !new.contains_key(*key)).map(|(_, object)| Change::Removed(object.clone())));
    changes
}
