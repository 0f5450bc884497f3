//! Replicas, restarts, updates, rollbacks, global services and jobs, seen from outside.

mod drains; // in either order
mod other_modes; // global services, jobs, the history that is kept
mod random; // whatever happens, planning comes to rest and faults heal
mod restarts; // replica counts, and what becomes of tasks that end or lose their node
mod updates; // rolling updates, failures, rollbacks
#[path = "../world/mod.rs"]
mod world;

use skep_plan::{NODE_DOWN_PERIOD, plan_enforcement, plan_orphans, plan_reaping};
use skep_types::*;
use std::sync::Arc;
use std::time::Duration;
use world::*;

fn cluster(nodes: u64) -> World {
    let mut world = World::new();
    for number in 1..=nodes {
        world.add_node(number, |_| {});
    }
    world
}

fn kill(world: &mut World, slot: u64) -> TaskId {
    let task = world.running().into_iter().find(|task| task.slot == slot).expect("runs");
    world.report(&task.id, TaskState::Failed);
    task.id.clone()
}

fn images(world: &World) -> Vec<String> {
    world.running().iter().map(|task| task.spec.container().expect("a container").image.clone()).collect()
}

fn state(world: &World, id: &ServiceId) -> UpdateState {
    world.service(id).update_status.as_ref().map_or(UpdateState::Unknown, |status| status.state)
}
