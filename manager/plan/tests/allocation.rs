//! Networks, virtual IPs, ports and addresses.

mod world;

use proptest::prelude::*;
use skep_plan::{Allocator, FreedAddresses, FreedLately};
use skep_types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use world::*;

/// Plans and commits until the allocator has nothing left to give.
fn allocate(world: &mut World, allocator: &mut Allocator) {
    for _ in 0..30 {
        // Every node knows everything at once.
        allocator.settle(Version(world.version), world.now);
        allocator.acknowledge(&|_| Some(Version(world.version)));
        let plan = allocator.plan(world, world.now);
        if plan.is_empty() {
            assert_eq!(plan.wake_at, None);
            return;
        }
        for change in world.commit(plan.changes) {
            allocator.observe(&change);
        }
    }
    panic!("allocation does not come to rest");
}

fn feed(allocator: &mut Allocator, changes: Vec<Change>) {
    changes.iter().for_each(|change| allocator.observe(change));
}

fn with_ingress() -> World {
    let mut world = World::new();
    world.add_network(1, "ingress", |spec| {
        spec.ingress = true;
        spec.ipv6_enabled = true;
    });
    world
}

fn publish(spec: &mut ServiceSpec, published: u32, target: u32) {
    let port = PortConfig { target_port: target, published_port: published, ..PortConfig::default() };
    spec.endpoint.get_or_insert_default().ports.push(port);
}

fn join(spec: &mut ServiceSpec, network: &str) {
    task_spec(spec).networks.push(NetworkAttachmentConfig { target: network.into(), ..NetworkAttachmentConfig::default() });
}

fn ports(world: &World, id: &ServiceId) -> Vec<u32> {
    world.service(id).endpoint.iter().flat_map(|endpoint| &endpoint.ports).map(|port| port.published_port).collect()
}

fn vips(world: &World, id: &ServiceId) -> Vec<String> {
    world.service(id).endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips).map(|vip| vip.addr.clone()).collect()
}

#[test]
fn the_first_network_gets_what_swarm_gives_it() {
    let mut world = with_ingress();
    world.add_network(2, "back", |_| {});
    world.add_network(3, "host", |spec| spec.driver = Some(Driver { name: "host".into(), ..Driver::default() }));
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let network = |number| world.network(&NetworkId::for_test(number)).expect("there");
    let ipam = |number| network(number).ipam.clone().expect("allocated").configs;
    assert_eq!((ipam(1)[0].subnet.as_str(), ipam(1)[0].gateway.as_str()), ("10.0.0.0/24", "10.0.0.1"));
    assert!(ipam(1)[1].subnet.starts_with("fd") && ipam(1)[1].subnet.ends_with("::/64"), "{}", ipam(1)[1].subnet);
    assert_eq!(ipam(2).len(), 1);
    assert_eq!(ipam(2)[0].subnet, "10.0.1.0/24");
    let vni = |number| network(number).driver_state.as_ref().expect("allocated").options.get(VXLAN_IDS_OPTION).cloned();
    assert_eq!((vni(1), vni(2), vni(3)), (Some("4096".into()), Some("4097".into()), None));
    assert_eq!(network(3).driver_state.as_ref().map(|driver| driver.name.as_str()), Some("host"));
    assert!(ipam(3).is_empty());
}

#[test]
fn a_bridge_has_addresses_of_the_cluster_and_no_node_has_one_on_it() {
    let mut world = with_ingress();
    let bridge = |spec: &mut NetworkSpec| spec.driver = Some(Driver { name: "bridge".into(), ..Driver::default() });
    world.add_network(2, "near", bridge);
    world.add_network(3, "named-by-each-node", |spec| {
        bridge(spec);
        spec.annotations.labels.insert(PREDEFINED_LABEL.into(), "true".into());
    });
    world.add_node(1, |_| {});
    let id = world.add_service(1, |spec| {
        replicas(spec, 2);
        join(spec, "near");
    });
    world.settle(&id);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let near = world.network(&NetworkId::for_test(2)).expect("there");
    let state = near.driver_state.as_ref().expect("allocated");
    assert_eq!((state.name.as_str(), state.options.get(VXLAN_IDS_OPTION).map(String::as_str)), ("bridge", Some("4097")));
    assert!(
        world.network(&NetworkId::for_test(3)).is_some_and(|network| network.ipam.as_ref().is_some_and(|ipam| ipam.configs.is_empty()))
    );
    assert_eq!(vips(&world, &id), ["10.0.1.2/24"]);
    let addresses: BTreeSet<String> = world.live().iter().flat_map(|task| task.networks[0].addresses.clone()).collect();
    assert_eq!(addresses, ["10.0.1.3/24", "10.0.1.4/24"].map(String::from).into());
    for task in world.live() {
        let task = Arc::new(Task { node_id: Some(NodeId::for_test(1)), ..Task::clone(&task) });
        feed(&mut allocator, world.commit(vec![Action::Update(Object::Task(task))]));
    }
    allocate(&mut world, &mut allocator);
    let node = world.node(&NodeId::for_test(1)).expect("there");
    let attached: Vec<&str> = node.attachments.iter().map(|attachment| attachment.network.spec.annotations.name.as_str()).collect();
    assert_eq!(attached, ["ingress"], "it ends at the node");
}

#[test]
fn a_published_service_gets_a_virtual_ip_and_its_tasks_addresses_of_both_families() {
    let mut world = with_ingress();
    let id = world.add_service(1, |spec| {
        replicas(spec, 2);
        publish(spec, 8080, 80);
        publish(spec, 0, 81);
    });
    world.settle(&id);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    assert_eq!(ports(&world, &id), [8080, 30_000]);
    let both = vips(&world, &id);
    assert_eq!((both.len(), both[0].as_str()), (2, "10.0.0.2/24"), "one of each family");
    assert!(both[1].starts_with("fd") && both[1].ends_with("::2/64"), "{}", both[1]);
    let addresses: BTreeSet<_> = world.live().iter().map(|task| task.networks[0].addresses.clone()).collect();
    let v4: Vec<_> = addresses.iter().map(|both| both[0].clone()).collect();
    assert_eq!(v4, ["10.0.0.3/24", "10.0.0.4/24"]);
    assert!(addresses.iter().all(|both| both.len() == 2 && both[1].starts_with("fd") && both[1].ends_with("/64")));
    assert!(world.live().iter().all(|task| task.status.state == TaskState::Pending && task.endpoint == world.service(&id).endpoint));
    assert_eq!(allocator.port_holder(Protocol::Tcp, 8080), Some(&id));
    // A new leader gives nothing anew, and does not give anything twice.
    let mut other = Allocator::new(&world);
    assert!(other.plan(&world, world.now).is_empty());
    let more = world.add_service(2, |spec| publish(spec, 0, 80));
    feed(&mut other, vec![Change::Created(Object::Service(Arc::clone(world.service_by_name("service2").expect("added"))))]);
    allocate(&mut world, &mut other);
    assert_eq!((ports(&world, &more), vips(&world, &more)[0].as_str()), (vec![30_001], "10.0.0.5/24"));
}

#[test]
fn a_chosen_port_stays_over_updates_and_a_removed_one_is_free_again() {
    let mut world = with_ingress();
    let id = world.add_service(1, |spec| publish(spec, 0, 80));
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    world.update_service(&id, |spec| publish(spec, 9000, 90));
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    assert_eq!(ports(&world, &id), [30_000, 9000]);
    let other = world.add_service(2, |spec| publish(spec, 9000, 80));
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let problem = "port 9000/tcp is already published by service service1; choose another one or leave it out";
    assert_eq!(allocator.problem_of_service(&other), Some(problem));
    world.settle(&other);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let waiting = world.live().into_iter().find(|task| task.service_id.as_ref() == Some(&other)).expect("made");
    assert_eq!((waiting.status.state, waiting.status.err.as_str()), (TaskState::New, problem));
    let gone = world.remove(Kind::Service, id.as_str());
    feed(&mut allocator, gone);
    allocate(&mut world, &mut allocator);
    assert_eq!(ports(&world, &other), [9000]);
    let task = world.task(&waiting.id);
    assert_eq!((task.status.state, task.status.err.as_str()), (TaskState::Pending, ""));
}

#[test]
fn services_share_a_number_at_different_addresses() {
    fn at(spec: &mut ServiceSpec, last: u8) {
        let place = PublishPlace::Address([192, 0, 2, last].into());
        spec.endpoint = Some(EndpointSpec {
            ports: vec![PortConfig { target_port: 80, published_port: 8080, place, ..PortConfig::default() }],
            ..EndpointSpec::default()
        });
    }
    fn move_to(world: &mut World, id: &ServiceId, last: u8) -> Vec<Change> {
        let mut spec = world.service(id).spec.clone();
        at(&mut spec, last);
        let service = skep_plan::updated(world.service(id), spec, world.service(id).meta.version, world.now);
        world.commit(vec![Action::Update(Object::Service(Arc::new(service)))])
    }
    let mut world = with_ingress();
    let one = world.add_service(1, |spec| at(spec, 1));
    let two = world.add_service(2, |spec| at(spec, 2));
    let late = world.add_service(3, |spec| publish(spec, 8080, 80));
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    assert_eq!((ports(&world, &one), ports(&world, &two)), (vec![8080], vec![8080]));
    assert!(
        allocator
            .problem_of_service(&late)
            .is_some_and(|words| words.starts_with("port 8080/tcp is already published by service service1"))
    );
    // A service may move its own port to a place that meets the old one; then the old one is free.
    let moved = move_to(&mut world, &one, 3);
    feed(&mut allocator, moved);
    allocate(&mut world, &mut allocator);
    let place = |world: &World, id: &ServiceId| world.service(id).endpoint.as_ref().unwrap().ports[0].place.clone();
    assert_eq!(place(&world, &one), PublishPlace::Address([192, 0, 2, 3].into()));
    let taken = move_to(&mut world, &two, 1);
    feed(&mut allocator, taken);
    allocate(&mut world, &mut allocator);
    assert_eq!(place(&world, &two), PublishPlace::Address([192, 0, 2, 1].into()));
    for id in [&one, &two] {
        assert!(allocator.problem_of_service(&late).is_some());
        let gone = world.remove(Kind::Service, id.as_str());
        feed(&mut allocator, gone);
        allocate(&mut world, &mut allocator);
    }
    assert_eq!(ports(&world, &late), [8080], "with the last of them it is free");
}

#[test]
fn addresses_return_when_a_task_ends_but_late() {
    let mut world = World::new();
    world.add_network(1, "back", |spec| {
        let config = IpamConfig { subnet: "10.9.0.0/29".into(), ..IpamConfig::default() };
        spec.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
    });
    let id = world.add_service(1, |spec| {
        replicas(spec, 4);
        join(spec, "back");
    });
    world.settle(&id);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let addresses = |world: &World| -> BTreeMap<u64, String> {
        world
            .live()
            .iter()
            .filter(|task| !task.networks.is_empty())
            .map(|task| (task.slot, task.networks[0].addresses[0].clone()))
            .collect()
    };
    // .1 is the gateway, .2 the virtual IP; .3 to .6 are the tasks'.
    assert_eq!(addresses(&world).into_values().collect::<Vec<_>>(), ["10.9.0.3/29", "10.9.0.4/29", "10.9.0.5/29", "10.9.0.6/29"]);
    world.update_service(&id, |spec| replicas(spec, 5));
    let service = Change::Updated {
        old: Object::Service(Arc::new(world.service(&id).clone())),
        new: Object::Service(Arc::new(world.service(&id).clone())),
    };
    allocator.observe(&service);
    let plan = world.plan_service(&id);
    let made = world.commit(plan.changes);
    feed(&mut allocator, made);
    allocate(&mut world, &mut allocator);
    let fifth = world.live().pop().expect("five");
    assert_eq!(fifth.status.err, "network back has no free address left");
    let second = world.live()[1].id.clone();
    let ended = world.report(&second, TaskState::Failed);
    feed(&mut allocator, ended);
    allocate(&mut world, &mut allocator);
    assert_eq!(world.task(&fifth.id).networks[0].addresses, ["10.9.0.4/29"]);
}

/// A network with room for one task and a service with one task on it.
fn narrow() -> (World, ServiceId, Allocator) {
    let mut world = World::new();
    world.add_network(1, "back", |spec| {
        let config = IpamConfig { subnet: "10.9.0.0/30".into(), ..IpamConfig::default() };
        spec.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
    });
    let id = world.add_service(1, |spec| {
        spec.endpoint = Some(EndpointSpec { mode: ResolutionMode::DnsRoundRobin, ..EndpointSpec::default() });
        join(spec, "back");
    });
    world.settle(&id);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    (world, id, allocator)
}

/// The only task ends and another is made.
fn replace_task(world: &mut World, service: &ServiceId, mut tell: impl FnMut(Vec<Change>)) -> (Task, TaskId) {
    let first = Task::clone(&world.live()[0]);
    tell(world.report(&first.id, TaskState::Failed));
    world.pass(std::time::Duration::from_secs(10));
    let plan = world.plan_service(service);
    tell(world.commit(plan.changes));
    let new = world.all_tasks().into_iter().find(|task| task.status.state == TaskState::New).expect("made");
    (first, new.id.clone())
}

fn plan_once(world: &mut World, allocator: &mut Allocator) -> Option<Timestamp> {
    let plan = allocator.plan(world, world.now);
    let made = world.commit(plan.changes);
    feed(allocator, made);
    plan.wake_at
}

#[test]
fn a_freed_address_is_given_again_when_every_node_knows_it() {
    let (mut world, id, mut allocator) = narrow();
    let (first, second) = replace_task(&mut world, &id, |changes| feed(&mut allocator, changes));
    let freed = Version(world.version);
    allocator.settle(freed, world.now);
    assert!(plan_once(&mut world, &mut allocator).is_some_and(|wake| wake > world.now), "it looks again by itself");
    assert_eq!(world.task(&second).status.err, "network back has no free address left");
    allocator.acknowledge(&|_| Some(Version(freed.0 - 1)));
    plan_once(&mut world, &mut allocator);
    assert_eq!(world.task(&second).status.state, TaskState::New);
    allocator.acknowledge(&|_| Some(freed));
    plan_once(&mut world, &mut allocator);
    assert_eq!(world.task(&second).networks[0].addresses, first.networks[0].addresses);
}

#[test]
fn a_new_leader_keeps_what_was_freed_lately_and_a_silent_node_keeps_it_for_a_minute() {
    let (mut world, id, mut allocator) = narrow();
    let (first, second) = replace_task(&mut world, &id, |changes| feed(&mut allocator, changes));
    let mut allocator = Allocator::new(&world);
    allocator.settle(Version(world.version), world.now);
    allocator.acknowledge(&|_| None);
    plan_once(&mut world, &mut allocator);
    assert_eq!(world.task(&second).status.state, TaskState::New);
    world.pass(std::time::Duration::from_secs(61));
    allocator.settle(Version(world.version), world.now);
    plan_once(&mut world, &mut allocator);
    assert_eq!(world.task(&second).networks[0].addresses, first.networks[0].addresses);
}

/// A network with room for one virtual IP, whose service was removed, and another service that wants one. The changes that led here are
/// what another manager than the leader heard of.
fn removed_service() -> (World, ServiceId, FreedAddresses) {
    let mut world = World::new();
    world.add_network(1, "back", |spec| {
        let config = IpamConfig { subnet: "10.9.0.0/30".into(), ..IpamConfig::default() };
        spec.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
    });
    let on_back = |spec: &mut ServiceSpec| {
        replicas(spec, 0);
        join(spec, "back");
    };
    let first = world.add_service(1, on_back);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    assert_eq!(vips(&world, &first), ["10.9.0.2/30"]);
    let mut heard = FreedAddresses::new(None);
    let removed = world.remove(Kind::Service, first.as_str());
    removed.iter().for_each(|change| heard.observe(Version(world.version), change, secs(1)));
    let second = world.add_service(2, on_back);
    (world, second, heard)
}

#[test]
fn a_virtual_ip_freed_before_a_leader_began_is_given_when_all_nodes_heard_of_the_new_leader() {
    let (mut world, second, mut heard) = removed_service();
    let mut allocator = Allocator::new(&world);
    allocator.remember(&heard.lately(secs(20)));
    let freed = Version(world.version - 1);
    allocator.settle(Version(world.version), world.now);
    assert!(plan_once(&mut world, &mut allocator).is_some_and(|wake| wake > world.now), "it looks again by itself");
    assert!(vips(&world, &second).is_empty());
    assert_eq!(allocator.problem_of_service(&second), Some("network back has no free address left"));
    allocator.acknowledge(&|_| Some(Version(freed.0 - 1)));
    plan_once(&mut world, &mut allocator);
    assert!(vips(&world, &second).is_empty());
    // One that is built anew in between keeps back what the one before it did.
    let mut renewed = Allocator::new(&world);
    renewed.inherit(&allocator);
    renewed.settle(Version(world.version), world.now);
    plan_once(&mut world, &mut renewed);
    assert!(vips(&world, &second).is_empty());
    for mut allocator in [renewed, allocator] {
        let mut world = world.clone();
        allocator.acknowledge(&|_| Some(freed));
        plan_once(&mut world, &mut allocator);
        assert_eq!(vips(&world, &second), ["10.9.0.2/30"]);
    }
}

#[test]
fn a_leader_that_does_not_know_what_was_freed_gives_no_address_of_older_networks_until_their_nodes_answer() {
    let (mut world, second, _) = removed_service();
    let mut allocator = Allocator::new(&world);
    allocator.remember(&FreedLately { incomplete: true, ..FreedLately::default() });
    allocator.settle(Version(world.version), world.now);
    plan_once(&mut world, &mut allocator);
    assert!(vips(&world, &second).is_empty());
    let why = "network back waits for its nodes to know which of its addresses are free";
    assert_eq!(allocator.problem_of_service(&second), Some(why));
    // A network that this leader made has no past.
    let network = world.add_network(2, "new", |_| ());
    let third = world.add_service(3, |spec| {
        replicas(spec, 0);
        join(spec, "new");
    });
    let objects =
        [Object::Network(world.network(&network).expect("made").clone()), Object::Service(Arc::new(world.service(&third).clone()))];
    objects.into_iter().for_each(|object| allocator.observe(&Change::Created(object)));
    for _ in 0..3 {
        plan_once(&mut world, &mut allocator);
    }
    assert_eq!(vips(&world, &third).len(), 1);
    allocator.acknowledge(&|_| Some(Version(world.version)));
    plan_once(&mut world, &mut allocator);
    assert_eq!(vips(&world, &second), ["10.9.0.2/30"]);
}

#[test]
fn nodes_that_follow_networks_get_a_number_and_no_address() {
    let mut world = with_ingress();
    let overlay = |underlay: &str| Some(NodeOverlay { underlay: underlay.into(), ..NodeOverlay::default() });
    let nodes: Vec<NodeId> = (1..=3).map(|number| world.add_node(number, |node| node.overlay = overlay("192.0.2.1"))).collect();
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let indexes = |world: &World| nodes.iter().filter_map(|id| Some(world.node(id)?.overlay.as_ref()?.index)).collect::<Vec<_>>();
    assert_eq!(indexes(&world), [1, 2, 3]);
    assert!(nodes.iter().all(|id| world.node(id).expect("there").attachments.is_empty()));
    let gone = world.remove(Kind::Node, nodes[0].as_str());
    feed(&mut allocator, gone);
    let joined = world.add_node(4, |node| node.overlay = overlay("192.0.2.4"));
    feed(&mut allocator, vec![Change::Created(Object::Node(Arc::clone(world.node(&joined).expect("there"))))]);
    allocate(&mut world, &mut allocator);
    assert_eq!(world.node(&joined).expect("there").overlay.as_ref().map(|overlay| overlay.index), Some(4), "numbers come back late");
}

#[test]
fn nodes_get_an_address_on_the_networks_their_tasks_use() {
    let mut world = with_ingress();
    let node = world.add_node(1, |_| {});
    world.add_network(2, "back", |_| {});
    let id = world.add_service(1, |spec| join(spec, "back"));
    world.settle(&id);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let names = |world: &World| -> Vec<String> {
        world.node(&node).expect("there").attachments.iter().map(|attachment| attachment.network.spec.annotations.name.clone()).collect()
    };
    assert_eq!(names(&world), ["ingress"]);
    let mut task = Task::clone(&world.live()[0]);
    task.node_id = Some(node.clone());
    task.status.state = TaskState::Assigned;
    let id = task.id.clone();
    let placed = world.commit(vec![Action::Update(Object::Task(Arc::new(task)))]);
    feed(&mut allocator, placed);
    allocate(&mut world, &mut allocator);
    assert_eq!(names(&world), ["ingress", "back"]);
    assert_eq!(world.node(&node).expect("there").attachments[1].addresses, ["10.0.1.4/24"]);
    let ended = world.report(&id, TaskState::Shutdown);
    feed(&mut allocator, ended);
    allocate(&mut world, &mut allocator);
    assert_eq!(names(&world), ["ingress"]);
}

#[test]
fn a_node_that_found_no_address_free_gets_the_first_that_is() {
    let mut world = World::new();
    let node = world.add_node(1, |_| {});
    world.add_network(1, "back", |spec| {
        let config = IpamConfig { subnet: "10.9.0.0/29".into(), ..IpamConfig::default() };
        spec.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
    });
    let id = world.add_service(1, |spec| {
        replicas(spec, 4);
        join(spec, "back");
    });
    world.settle(&id);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let mut task = Task::clone(&world.live()[0]);
    task.node_id = Some(node.clone());
    task.status.state = TaskState::Assigned;
    let placed = world.commit(vec![Action::Update(Object::Task(Arc::new(task)))]);
    feed(&mut allocator, placed);
    allocate(&mut world, &mut allocator);
    assert!(world.node(&node).expect("there").attachments.is_empty());
    let other = world.live()[3].id.clone();
    let ended = world.report(&other, TaskState::Failed);
    feed(&mut allocator, ended);
    allocate(&mut world, &mut allocator);
    assert_eq!(world.node(&node).expect("there").attachments[0].addresses, ["10.9.0.6/29"]);
}

#[test]
fn what_a_lost_plan_gave_out_is_free_again() {
    let mut world = with_ingress();
    let id = world.add_service(1, |spec| publish(spec, 0, 80));
    let mut allocator = Allocator::new(&world);
    let lost = allocator.plan(&world, world.now);
    assert_eq!(allocator.plan(&world, world.now), lost, "the same subnet again");
    allocate(&mut world, &mut allocator);
    assert_eq!((ports(&world, &id), vips(&world, &id)[0].as_str()), (vec![30_000], "10.0.0.2/24"));
}

#[test]
fn a_service_without_networks_needs_nothing() {
    let mut world = World::new();
    let id = world.add_service(1, |_| {});
    world.settle(&id);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    assert_eq!(world.service(&id).endpoint, None);
    assert_eq!(world.live()[0].status.state, TaskState::Pending);
}

#[test]
fn a_network_that_overlaps_says_so() {
    let mut world = with_ingress();
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let id = world.add_network(2, "back", |spec| {
        let config = IpamConfig { subnet: "10.0.0.128/25".into(), ..IpamConfig::default() };
        spec.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
    });
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let problem = "subnet 10.0.0.128/25 overlaps with another network of the cluster; choose another one or leave it out";
    assert_eq!(allocator.problem_of_network(&id), Some(problem));
}

/// Two services with a task each on one network, and two nodes with numbers.
fn two_services() -> (World, [ServiceId; 2], Allocator) {
    let mut world = World::new();
    world.add_network(1, "back", |_| {});
    for number in 1..=2 {
        world.add_node(number, |node| node.overlay = Some(NodeOverlay { underlay: format!("192.0.2.{number}"), ..NodeOverlay::default() }));
    }
    let ids = [1, 2].map(|number| {
        world.pass(std::time::Duration::from_secs(1));
        world.add_service(number, |spec| join(spec, "back"))
    });
    for id in &ids {
        world.settle(id);
    }
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    (world, ids, allocator)
}

fn address_of_task(world: &World, service: &ServiceId) -> String {
    let live = world.live();
    let task = live.iter().rfind(|task| task.service_id.as_ref() == Some(service)).expect("there");
    task.networks[0].addresses[0].clone()
}

#[test]
fn an_audit_finds_nothing_where_nothing_is_wrong() {
    let (world, _, mut allocator) = two_services();
    let audit = allocator.audit(&world);
    assert!(audit.is_clean() && audit.changes.is_empty(), "{audit:?}");
}

#[test]
fn what_nobody_was_told_of_is_found_by_an_audit() {
    let (mut world, [first, second], mut allocator) = two_services();
    // The allocator is not told that this one goes; and not of a task that comes with an address.
    let gone = address_of_task(&world, &first);
    let vip = vips(&world, &first)[0].clone();
    let id = world.live().iter().find(|task| task.service_id.as_ref() == Some(&first)).expect("there").id.clone();
    world.remove(Kind::Task, id.as_str());
    world.remove(Kind::Service, first.as_str());
    let mut new = Task::clone(&world.live()[0]);
    (new.id, new.service_id) = (TaskId::for_test(77), Some(second));
    new.networks[0].addresses = vec!["10.0.0.99/24".into()];
    let network = new.networks[0].network.id.clone();
    world.commit(vec![Action::Create(Object::Task(Arc::new(new)))]);
    let audit = allocator.audit(&world);
    let words = |text: &str| format!("address {} of network {network}", text.split('/').next().unwrap());
    let mut leaked = vec![words(&gone), words(&vip)];
    leaked.sort();
    assert_eq!((audit.leaked, audit.missed), (leaked, vec![words("10.0.0.99")]));
    assert_eq!((audit.doubled.len(), audit.mended, audit.changes.len()), (0, 3, 0));
    assert!(allocator.audit(&world).is_clean(), "it is set right at once");
    allocate(&mut world, &mut allocator);
    check_unique(&world);
}

#[test]
fn what_two_have_is_taken_from_one_of_them_and_given_to_no_third() {
    let (mut world, [first, second], _) = two_services();
    let vip = vips(&world, &first)[0].clone();
    let node = |world: &World, number| Node::clone(world.node(&NodeId::for_test(number)).expect("there"));
    // Service 2 and the task of service 1 get the virtual IP of service 1, node 2 the number of node 1.
    let mut service = world.service(&second).clone();
    service.endpoint.as_mut().expect("allocated").virtual_ips[0].addr = vip.clone();
    let mut task = Task::clone(&world.live().into_iter().find(|task| task.service_id.as_ref() == Some(&first)).expect("there"));
    task.networks[0].addresses = vec![vip.clone()];
    let mut same = node(&world, 2);
    same.overlay.as_mut().expect("set").index = 1;
    let objects = [Object::Service(Arc::new(service)), Object::Task(Arc::new(task.clone())), Object::Node(Arc::new(same))];
    world.commit(objects.map(Action::Update).into());
    let mut allocator = Allocator::new(&world);
    let audit = allocator.audit(&world);
    assert_eq!((audit.doubled.len(), audit.mended, audit.leaked.len(), audit.missed.len()), (2, 2, 0, 0), "{audit:?}");
    assert!(audit.doubled[0].contains(&format!("is had by service {first} and service {second}, task {}", task.id)), "{audit:?}");
    let made = world.commit(audit.changes);
    feed(&mut allocator, made);
    let ended = world.report(&task.id, TaskState::Shutdown);
    feed(&mut allocator, ended);
    allocate(&mut world, &mut allocator);
    assert_eq!(vips(&world, &first), [vip.clone()], "the older service keeps it");
    assert_ne!(vips(&world, &second), [vip.clone()]);
    let index = |world: &World, number| node(world, number).overlay.expect("set").index;
    assert_eq!((index(&world, 1), index(&world, 2)), (1, 2), "the younger node gets another");
    // Had it become free when the others let go, it would be somebody's by now.
    let third = world.add_service(3, |spec| {
        replicas(spec, 250);
        join(spec, "back");
    });
    world.settle(&third);
    let mut changes = vec![Change::Created(Object::Service(Arc::new(world.service(&third).clone())))];
    changes.extend(
        world.live().into_iter().filter(|task| task.service_id.as_ref() == Some(&third)).map(|task| Change::Created(Object::Task(task))),
    );
    feed(&mut allocator, changes);
    allocate(&mut world, &mut allocator);
    check_unique(&world);
    assert!(allocator.audit(&world).is_clean());
}

#[test]
fn two_networks_with_one_vxlan_id_are_for_people_to_part() {
    let (mut world, _, mut allocator) = two_services();
    world.add_network(2, "other", |_| {});
    let mut other = Network::clone(world.network(&NetworkId::for_test(2)).expect("there"));
    let first = world.network(&NetworkId::for_test(1)).expect("there").clone();
    other.driver_state = first.driver_state.clone();
    other.ipam = Some(IpamOptions::default());
    let known = world.network(&NetworkId::for_test(2)).expect("there").clone();
    feed(&mut allocator, vec![Change::Created(Object::Network(known))]);
    let same = world.commit(vec![Action::Update(Object::Network(Arc::new(other)))]);
    feed(&mut allocator, same);
    let audit = allocator.audit(&world);
    assert_eq!((audit.doubled.len(), audit.mended, audit.changes.len()), (1, 0, 0));
    assert!(audit.doubled[0].starts_with("VXLAN id 4096 ") && audit.doubled[0].ends_with("remove and make anew all but one of them"));
    let gone = world.remove(Kind::Network, NetworkId::for_test(2).as_str());
    feed(&mut allocator, gone);
    assert!(allocator.audit(&world).is_clean(), "the other one has it still");
}

#[test]
fn a_network_keeps_its_addresses_when_another_option_of_its_driver_changes() {
    let (mut world, _, mut allocator) = two_services();
    let mut network = Network::clone(world.network(&NetworkId::for_test(1)).expect("there"));
    network.driver_state.as_mut().expect("allocated").options.insert("mtu".into(), "1400".into());
    let changed = world.commit(vec![Action::Update(Object::Network(Arc::new(network)))]);
    feed(&mut allocator, changed);
    assert!(allocator.audit(&world).is_clean());
}

/// A pool with room for one network, and a network and a service that wait.
#[test]
fn whoever_waits_for_a_subnet_is_told_why_and_gets_the_first_that_is_free() {
    let mut world = World::new();
    world.set_pools(&["10.9.0.0/28"], 28);
    world.add_network(1, "first", |_| {});
    let waiting = world.add_network(2, "second", |_| {});
    let service = world.add_service(1, |spec| join(spec, "second"));
    world.settle(&service);
    let mut allocator = Allocator::new(&world);
    allocate(&mut world, &mut allocator);
    let reason = "the address pools of the cluster are used up for subnets of /28; remove networks or give a subnet";
    assert_eq!(allocator.problem_of_network(&waiting), Some(reason));
    assert_eq!(allocator.problem_of_service(&service).map(str::to_owned), Some(format!("network second has no subnet yet: {reason}")));
    let task = world.live()[0].id.clone();
    assert_eq!(world.task(&task).status.err, format!("network second has no subnet yet: {reason}"));
    let gone = world.remove(Kind::Network, NetworkId::for_test(1).as_str());
    feed(&mut allocator, gone);
    allocate(&mut world, &mut allocator);
    let task = world.task(&task);
    assert_eq!((task.status.state, task.status.err.as_str()), (TaskState::Pending, ""));
    assert_eq!(task.networks[0].addresses, ["10.9.0.3/28"]);
}

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
fn check_unique(world: &World) {
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
