//! Why a node has the tasks it has, and gets others or not.

use super::{Finding, NAMED, Verdict, count, tally, waiting};
use crate::resources::{Bytes, Cpus};
use crate::scheduler::Scheduler;
use skep_types::{Availability, ClusterView, Node, NodeState, Task, TaskState, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Its state, its load, what still holds a drain up, and what it says to tasks that wait.
#[must_use]
pub fn explain_node(view: &dyn ClusterView, node: &Node, now: Timestamp) -> Vec<Finding> {
    let there = |task: &&Arc<Task>| (TaskState::Assigned..=TaskState::Running).contains(&task.status.state);
    let tasks: Vec<&Arc<Task>> = view.tasks_on_node(&node.id).filter(there).collect();
    let mut findings = vec![readiness(node, now), load(node, &tasks)];
    if node.spec.availability == Availability::Drain && !tasks.is_empty() {
        let (stay, stop): (Vec<_>, Vec<_>) = tasks.iter().partition(|task| task.desired_state <= TaskState::Complete);
        if !stop.is_empty() {
            let text = format!("the drain is not over: {} still here: {}", count(stop.len(), "task"), services(&stop));
            findings.push(
                Finding::new(Verdict::Note, text)
                    .cure("a task is gone when it has stopped; its grace period is the service's --stop-grace-period"),
            );
        }
        if !stay.is_empty() {
            let text = format!(
                "the drain starts first: {} here until others run in their place: {}",
                verb(stay.len(), "serves", "serve"),
                services(&stay)
            );
            findings.push(
                Finding::new(Verdict::Note, text)
                    .cure("`swarmctl explain service` tells what keeps the others from running")
                    .cure(format!("`swarmctl node drain --order stop-first {}` does not wait for them", node.display_name())),
            );
        }
    }
    findings.extend(pending(view, node));
    findings
}

fn verb(number: usize, one: &str, many: &str) -> String {
    format!("{} {}", count(number, "task"), if number == 1 { one } else { many })
}

fn services(tasks: &[&Arc<Task>]) -> String {
    tally(tasks.iter().map(|task| task.service_annotations.name.clone()))
}

fn readiness(node: &Node, now: Timestamp) -> Finding {
    let name = node.display_name();
    let why = if node.status.message.is_empty() { String::new() } else { format!(" ({})", node.status.message) };
    match (node.status.state, node.spec.availability) {
        (NodeState::Down, _) => {
            let since = super::ago(now, node.meta.updated_at);
            Finding::new(Verdict::Wrong, format!("it is down{why}, written {since}: its tasks are replaced elsewhere"))
                .cure("start its skepd, or see to the network between it and the managers")
                .cure(format!("`swarmctl node rm --force {name}` if it does not come back"))
        }
        (NodeState::Unknown, _) => Finding::new(Verdict::Wrong, format!("nothing was heard of it since this manager leads{why}")),
        (NodeState::Disconnected, _) => {
            Finding::new(Verdict::Note, format!("its daemon is stopped{why}: it keeps its tasks and gets no new ones"))
        }
        (NodeState::Ready, Availability::Active) => Finding::new(Verdict::Fine, "it is ready and takes tasks"),
        (NodeState::Ready, availability) => {
            let what = if availability == Availability::Pause {
                "paused: it keeps its tasks and gets no new ones"
            } else {
                "drained: it has to give up its tasks"
            };
            Finding::new(Verdict::Note, format!("it is {what}")).cure(format!("`swarmctl node update --availability active {name}`"))
        }
    }
}

fn load(node: &Node, tasks: &[&Arc<Task>]) -> Finding {
    let total = node.description.as_ref().map(|description| description.resources.clone()).unwrap_or_default();
    let reserved = |amount: fn(&skep_types::Resources) -> i64| -> i64 {
        tasks.iter().filter_map(|task| task.spec.resources.as_ref()).map(|resources| amount(&resources.reservations)).sum()
    };
    let (cpus, memory) = (reserved(|resources| resources.nano_cpus), reserved(|resources| resources.memory_bytes));
    let whose = if tasks.is_empty() { String::new() } else { format!(": {}", services(tasks)) };
    let text = format!(
        "{}{whose}; reserved are {} of {} and {} of {} of memory",
        count(tasks.len(), "task"),
        Cpus(cpus),
        Cpus(total.nano_cpus),
        Bytes(memory),
        Bytes(total.memory_bytes)
    );
    Finding::new(Verdict::Fine, text)
}

/// What it says to each service whose tasks wait.
fn pending(view: &dyn ClusterView, node: &Node) -> Vec<Finding> {
    let mut kinds = BTreeMap::<_, &Task>::new();
    for task in view.tasks_in_state(TaskState::Pending).filter(|task| task.desired_state <= TaskState::Complete) {
        if task.node_id.as_ref().is_none_or(|id| *id == node.id) {
            kinds.entry((task.service_id.clone(), task.spec_version)).or_insert(task);
        }
    }
    if kinds.is_empty() {
        return Vec::new();
    }
    let scheduler = Scheduler::new(view);
    let tell = |task: &Task| {
        let mut verdicts = scheduler.verdicts(task);
        verdicts.retain(|verdict| verdict.node.id == node.id);
        let reason = waiting::groups(task, &verdicts).pop().map(|group| group.reason).unwrap_or_default();
        let mut finding = Finding::new(Verdict::Note, format!("tasks of {} wait, and this node: {reason}", task.service_annotations.name));
        finding.cures = waiting::cures(view, task, &verdicts);
        finding
    };
    kinds.into_values().take(NAMED).map(tell).collect()
}
