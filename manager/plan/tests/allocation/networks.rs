//! Subnets and numbers of networks.

use super::audit::two_services;
use super::*;
use std::collections::BTreeSet;
use std::sync::Arc;

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
