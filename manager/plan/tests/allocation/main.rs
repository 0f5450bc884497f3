//! Networks, virtual IPs, ports and addresses.

mod audit; // what objects hold against what is taken to be in use
mod freed; // when addresses are given again
mod networks; // subnets and numbers of networks
mod nodes; // numbers and addresses of nodes
mod random; // whatever happens, nothing is given twice
mod services; // virtual addresses, ports, addresses of tasks
#[path = "../world/mod.rs"]
mod world;

use skep_plan::Allocator;
use skep_types::*;
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

/// A service of four tasks on a network that has just as many addresses.
fn crowded(world: &mut World) -> (ServiceId, Allocator) {
    world.add_network(1, "back", |spec| {
        let config = IpamConfig { subnet: "10.9.0.0/29".into(), ..IpamConfig::default() };
        spec.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
    });
    let id = world.add_service(1, |spec| {
        replicas(spec, 4);
        join(spec, "back");
    });
    world.settle(&id);
    let mut allocator = Allocator::new(world);
    allocate(world, &mut allocator);
    (id, allocator)
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
