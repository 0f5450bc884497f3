//! I5: whether the cluster is as its users want it, once faults have stopped.

use crate::raft::short;
use crate::world::World;
use skep_plan::{Constraints, is_task_dirty};
use skep_store::View;
use skep_types::{Availability, ClusterView as _, NodeState, Service, ServiceMode, Task, TaskState, UpdateState};
use std::sync::Arc;

/// An update that waits for its user.
#[must_use]
pub fn is_paused(service: &Service) -> bool {
    let state = service.update_status.as_ref().map(|status| status.state);
    matches!(state, Some(UpdateState::Paused | UpdateState::RollbackPaused))
}

/// What is not as it should be; `None` if all is.
#[must_use]
pub fn missing(world: &World) -> Option<String> {
    let view = world.raft.view();
    if let Some(node) = view.nodes().find(|node| node.status.state != NodeState::Ready) {
        return Some(format!("node {} is {:?}", short(node.id.as_str()), node.status.state));
    }
    if let Some(manager) = (0..world.managers.len()).find(|manager| world.managers[*manager].applied < world.raft.log.len()) {
        return Some(format!("manager {manager} is behind"));
    }
    view.services().find_map(|service| service_missing(&view, service)).or_else(|| left_over(world, &view))
}

fn service_missing(view: &View, service: &Arc<Service>) -> Option<String> {
    let name = service.name();
    let state = service.update_status.as_ref().map_or(UpdateState::Unknown, |status| status.state);
    if matches!(state, UpdateState::Updating | UpdateState::RollbackStarted | UpdateState::Paused | UpdateState::RollbackPaused) {
        return Some(format!("the update of {name} is {state:?}"));
    }
    let tasks: Vec<&Arc<Task>> = view.tasks_of_service(&service.id).collect();
    let iteration = service.job_status.map(|status| status.iteration);
    let complete = tasks.iter().filter(|task| task.status.state == TaskState::Complete && task.job_iteration == iteration).count() as u64;
    let live: Vec<&&Arc<Task>> = tasks.iter().filter(|task| task.desired_state <= TaskState::Running).collect();
    let places = || {
        let constraints = Constraints::of(service.spec.task.placement.as_ref());
        view.nodes().filter(|node| node.spec.availability == Availability::Active && constraints.match_node(node)).count() as u64
    };
    let wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::Global => places(),
        ServiceMode::ReplicatedJob { total_completions, .. } => {
            // A task that was lost from sight may complete after another one did in its place.
            return (complete < total_completions).then(|| format!("{complete} tasks of job {name} completed, not {total_completions}"));
        }
        ServiceMode::GlobalJob => {
            return (complete < places()).then(|| format!("global job {name} completed on {complete} nodes of {}", places()));
        }
    };
    if live.len() as u64 != wanted {
        return Some(format!("{name} has {} tasks, not {wanted}", live.len()));
    }
    let idle = live.iter().find(|task| task.status.state != TaskState::Running || task.desired_state != TaskState::Running);
    if let Some(task) = idle {
        return Some(format!("task {} of {name} is {} ({}), to be {}", task.id, task.status.state, task.status.err, task.desired_state));
    }
    live.iter().find(|task| is_task_dirty(view, service, task)).map(|task| format!("task {} of {name} has an old spec", task.id))
}

/// What runs though it should not, or should run and does not.
fn left_over(world: &World, view: &View) -> Option<String> {
    let leaving = view.tasks().find(|task| task.desired_state >= TaskState::Shutdown && !task.status.state.is_terminal());
    if let Some(task) = leaving {
        return Some(format!("task {} is {} and should be stopped", task.id, task.status.state));
    }
    if let Some(task) = view.tasks().find(|task| task.desired_state == TaskState::Remove) {
        return Some(format!("task {} is {} and should be deleted", task.id, task.status.state));
    }
    for (node, agent) in world.agents.iter() {
        if let Some(sick) = agent.containers.values().find(|container| container.alive && container.sick) {
            return Some(format!("task {} is unhealthy and runs on", sick.task));
        }
        for container in agent.containers.values() {
            let task = view.task(&container.task);
            if container.alive != task.is_some_and(|task| task.status.state == TaskState::Running && task.node_id.as_ref() == Some(node)) {
                let what = if container.alive { "runs on" } else { "should run on" };
                return Some(format!("the container of task {} {what} node {}", container.task, short(node.as_str())));
            }
            if task.is_none() {
                return Some(format!("remains of task {} are on node {}", container.task, short(node.as_str())));
            }
        }
    }
    let forgotten = world.agents.iter().find_map(|(node, agent)| Some((node, agent.tasks().find(|id| view.task(id).is_none())?)));
    if let Some((node, task)) = forgotten {
        return Some(format!("node {} still keeps task {task}", short(node.as_str())));
    }
    let ghost = view.tasks().find(|task| {
        let agent = task.node_id.as_ref().and_then(|node| world.agents.get(node));
        task.status.state == TaskState::Running
            && !agent.is_some_and(|agent| agent.containers.get(&task.id).is_some_and(|container| container.alive))
    });
    ghost.map(|task| format!("task {} is said to run and has no container", task.id))
}
