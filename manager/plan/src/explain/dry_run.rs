//! Where the tasks of a service that does not exist would go: the real scheduler, fed with tasks that nobody stores.

use super::service::waiting_for_a_node;
use super::{Finding, Verdict, waiting};
use crate::allocator::resolve_network;
use crate::constraint::Constraints;
use crate::revise::new_service;
use crate::scheduler::Scheduler;
use skep_types::{
    Action, Availability, Change, ClusterView, Labels, Network, NetworkAttachment, Node, NodeState, Object, Service, ServiceId,
    ServiceMode, ServiceSpec, Task, TaskId, TaskState, Timestamp, Version,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Of more tasks than this only the first are tried.
const TASKS: u64 = 10_000;

/// The tasks of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub node: Arc<Node>,
    pub tasks: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// By the nodes' names.
    pub placed: Vec<Placed>,
    /// Tasks that would wait.
    pub unplaced: usize,
    pub findings: Vec<Finding>,
}

/// What would happen to a new service of this spec. Addresses and ports are not tried: only the nodes.
#[must_use]
pub fn plan_placement(view: &dyn ClusterView, spec: ServiceSpec, now: Timestamp) -> Placement {
    // Ids of random bytes are never made of zeros.
    let service = Service { spec_version: Some(Version(0)), ..new_service(ServiceId::from_random([0; 17]), spec, now) };
    let mut scheduler = Scheduler::new(view);
    let mut findings = Vec::new();
    let tasks = tasks(view, &service, now, &mut findings);
    let mut pending: BTreeMap<TaskId, Arc<Task>> = BTreeMap::new();
    for task in tasks {
        scheduler.observe(&Change::Created(Object::Task(Arc::clone(&task))));
        pending.insert(task.id.clone(), task);
    }
    let mut homes = BTreeMap::<String, Placed>::new();
    // Each round places something of ours or is the last.
    loop {
        let before = pending.len();
        for action in scheduler.schedule(now).changes {
            let Action::Update(Object::Task(new)) = action else { continue };
            let node = new.node_id.as_ref().and_then(|id| view.node(id));
            let (Some(old), Some(node)) = (pending.remove(&new.id), node) else { continue };
            homes
                .entry(format!("{} {}", node.display_name(), node.id))
                .or_insert_with(|| Placed { node: Arc::clone(node), tasks: 0 })
                .tasks += 1;
            scheduler.observe(&Change::Updated { old: Object::Task(old), new: Object::Task(new) });
        }
        if pending.is_empty() || pending.len() == before {
            break;
        }
    }
    let mut alike = BTreeMap::<_, Vec<&Task>>::new();
    for task in pending.values() {
        alike.entry(task.node_id.clone()).or_default().push(task);
    }
    findings.extend(alike.values().map(|alike| waiting_for_a_node(view, &scheduler, alike)));
    Placement { placed: homes.into_values().collect(), unplaced: pending.len(), findings }
}

/// A task as its allocator would leave it, but for addresses. No stored task has its id: random bytes are never that regular.
pub(super) fn task_of(view: &dyn ClusterView, service: &Service, number: u64, slot: u64, now: Timestamp) -> Task {
    let default_log = view.cluster().and_then(|cluster| cluster.spec.task_log_driver.as_ref());
    let mut bytes = [0; 17];
    bytes[1..9].copy_from_slice(&(number + 1).to_be_bytes());
    let mut task = Task::of_service(TaskId::from_random(bytes), service, slot, default_log, now);
    let networks = service.networks().iter().filter_map(|wanted| resolve_network(view, &wanted.target));
    let attach = |network: &Arc<Network>| NetworkAttachment {
        network: Arc::clone(network),
        addresses: Vec::new(),
        aliases: Vec::new(),
        driver_attachment_opts: Labels::default(),
    };
    task.networks = networks.map(attach).collect();
    task.status.state = TaskState::Pending;
    task
}

/// The tasks that the service's orchestrator would make first, as the allocator would leave them.
fn tasks(view: &dyn ClusterView, service: &Service, now: Timestamp, findings: &mut Vec<Finding>) -> Vec<Arc<Task>> {
    let make = |number: u64, slot: u64| task_of(view, service, number, slot, now);
    let several = |wanted: u64, findings: &mut Vec<Finding>| {
        if wanted > TASKS {
            findings.push(Finding::new(Verdict::Note, format!("only the first {TASKS} of {wanted} tasks were tried")));
        }
        (0..wanted.min(TASKS)).map(|number| Arc::new(make(number, number + 1))).collect()
    };
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => several(replicas, findings),
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            let at_once = if max_concurrent == 0 { total_completions } else { max_concurrent.min(total_completions) };
            if at_once < total_completions {
                findings.push(Finding::new(
                    Verdict::Note,
                    format!("{at_once} of {total_completions} begin; the others follow as these complete"),
                ));
            }
            several(at_once, findings)
        }
        ServiceMode::Global | ServiceMode::GlobalJob => {
            let constraints = Constraints::of(service.spec.task.placement.as_ref());
            let takes = |node: &Node| {
                node.status.state == NodeState::Ready && node.spec.availability == Availability::Active && constraints.match_node(node)
            };
            let (with, without): (Vec<_>, Vec<_>) = view.nodes().partition(|node| takes(node));
            if !without.is_empty() {
                let mut verdicts = Scheduler::new(view).verdicts(&make(0, 0));
                let without: BTreeSet<_> = without.into_iter().map(|node| &node.id).collect();
                verdicts.retain(|verdict| without.contains(&verdict.node.id));
                let mut finding = Finding::new(Verdict::Note, "nodes that get no task:");
                finding.nodes = waiting::groups(&make(0, 0), &verdicts);
                findings.push(finding);
            }
            let on = |(number, node): (usize, &Arc<Node>)| Arc::new(Task { node_id: Some(node.id.clone()), ..make(number as u64, 0) });
            with.into_iter().enumerate().map(on).collect()
        }
    }
}
