//! Virtual addresses, ports, addresses of tasks.

use super::*;
use std::collections::BTreeSet;
use std::sync::Arc;

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
