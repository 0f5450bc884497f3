//! What objects hold against what is taken to be in use.

use super::random::check_unique;
use super::*;
use std::sync::Arc;

/// Two services with a task each on one network, and two nodes with numbers.
pub fn two_services() -> (World, [ServiceId; 2], Allocator) {
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
