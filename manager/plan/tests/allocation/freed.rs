//! When addresses that were freed are given again.

use super::*;
use skep_plan::{FreedAddresses, FreedLately};
use std::collections::BTreeMap;
use std::sync::Arc;

#[test]
fn addresses_return_when_a_task_ends_but_late() {
    let mut world = World::new();
    let (id, mut allocator) = crowded(&mut world);
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
