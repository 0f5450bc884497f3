//! `node drain`: gives a node's tasks up and waits until they stopped and run elsewhere, or tells what keeps them.

use super::change;
use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::resolve;
use crate::{output, when};
use skep_proto::{FromWire, v1};
use skep_types::{Availability, Node, NodeState, Service, ServiceId, ServiceMode, Task, TaskState, UpdateOrder};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(250);

/// What keeps the node is told at most so often, and only if it has changed.
const TELL_AGAIN: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
pub struct Flags {
    node: String,
    /// Stop waiting after this time; the node stays drained
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = crate::flags::duration)]
    timeout: Duration,
    /// start-first: tasks of services whose --update-order is start-first serve there until others do in their place; tasks of all
    /// other services stop first
    #[arg(long, value_name = "ORDER", default_value = "stop-first", value_parser = crate::flags::order)]
    order: UpdateOrder,
    /// Do not wait until the tasks run elsewhere
    #[arg(long, short = 'd')]
    detach: bool,
}

/// A slot that had a task on the node. Tasks of global services are not replaced.
type Slot = (ServiceId, u64);

pub async fn run(flags: &Flags, connection: &Connection) -> Result<(), Failure> {
    let name = &flags.node;
    let node = Node::from_wire(resolve::node(connection, name).await?)?;
    let mut there = tasks(on_node(&node), connection).await?;
    there.retain(is_here);
    let slots: BTreeSet<Slot> = there.iter().filter_map(slot_of).collect();
    change(name, connection, |spec| {
        (spec.availability, spec.drain_order) = (Availability::Drain, flags.order);
        Ok(())
    })
    .await?;
    if flags.order == UpdateOrder::StartFirst {
        for line in stopping_first(&services(connection).await?, &there) {
            eprintln!("{}", output::plain(&line));
        }
    }
    if !flags.detach {
        wait(&node, &slots, flags.timeout, connection).await?;
    }
    output::put(&format!("{name}\n"))
}

async fn wait(node: &Node, slots: &BTreeSet<Slot>, timeout: Duration, connection: &Connection) -> Result<(), Failure> {
    let began = Instant::now();
    let mut told: (Vec<String>, Instant) = (Vec::new(), began);
    loop {
        let now = resolve::node(connection, node.id.as_str()).await?;
        let now = Node::from_wire(now)?;
        if now.spec.availability != Availability::Drain {
            return Err(Failure::new(Exit::Conflict, format!("node {} is drained no more: somebody else changed it", node.display_name())));
        }
        let mut found = tasks(on_node(node), connection).await?;
        let services: BTreeSet<&ServiceId> = slots.iter().map(|(service, _)| service).collect();
        for service in services {
            let filters = v1::list_tasks_request::Filters { service_ids: vec![service.to_string()], ..Default::default() };
            found.extend(tasks(filters, connection).await?);
        }
        let blockers = blockers(&now, slots, &found);
        if blockers.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= timeout {
            let words = blockers.iter().map(|line| format!("\n  {line}")).collect::<String>();
            let what = format!("node {} takes no new tasks, but after {} it is not empty:", node.display_name(), when::about(timeout));
            return Err(Failure::new(Exit::NotConverged, format!("{what}{words}")));
        }
        if told.1.elapsed() >= TELL_AGAIN && (told.0 != blockers || told.1 == began) {
            blockers.iter().for_each(|line| eprintln!("{}", output::plain(line)));
            told = (blockers, Instant::now());
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = tokio::signal::ctrl_c() => {
                eprintln!("Going on in the background; `swarmctl node ps {}` shows what is left.", node.display_name());
                return Ok(());
            }
        }
    }
}

fn on_node(node: &Node) -> v1::list_tasks_request::Filters {
    v1::list_tasks_request::Filters { node_ids: vec![node.id.to_string()], ..Default::default() }
}

async fn tasks(filters: v1::list_tasks_request::Filters, connection: &Connection) -> Result<Vec<Task>, Failure> {
    let answer = connection.control().list_tasks(v1::ListTasksRequest { filters: Some(filters) }).await?;
    Ok(answer.into_inner().tasks.into_iter().map(Task::from_wire).collect::<Result<_, _>>()?)
}

async fn services(connection: &Connection) -> Result<Vec<Service>, Failure> {
    let answer = connection.control().list_services(v1::ListServicesRequest::default()).await?;
    Ok(answer.into_inner().services.into_iter().map(Service::from_wire).collect::<Result<_, _>>()?)
}

/// The services of these tasks that do not let a replacement start first, and why, a line each.
fn stopping_first(services: &[Service], tasks: &[Task]) -> Vec<String> {
    let there: BTreeSet<&ServiceId> = tasks.iter().filter_map(|task| task.service_id.as_ref()).collect();
    let tell = |service: &Service| {
        let order = service.spec.update.as_ref().map(|config| config.order).unwrap_or_default();
        let why = match service.spec.mode {
            ServiceMode::Global => "it is global: its tasks run nowhere else instead",
            ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => "it is a job",
            ServiceMode::Replicated { .. } if order == UpdateOrder::StartFirst => return None,
            ServiceMode::Replicated { .. } => "its --update-order is stop-first",
        };
        Some(format!("{} stops first: {why}", service.name()))
    };
    services.iter().filter(|service| there.contains(&service.id)).filter_map(tell).collect()
}

/// A process of it may be on its node.
fn is_here(task: &Task) -> bool {
    (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
}

fn slot_of(task: &Task) -> Option<Slot> {
    task.service_id.clone().filter(|_| task.slot != 0).map(|service| (service, task.slot))
}

/// What has to happen before the node counts as empty, a line each: tasks there that stop or serve until others do, and those in their
/// place that do not run.
fn blockers(node: &Node, slots: &BTreeSet<Slot>, tasks: &[Task]) -> Vec<String> {
    let mut lines = BTreeSet::new();
    let is_down = node.status.state == NodeState::Down;
    let failed = last_failures(tasks);
    for task in tasks.iter().filter(|task| task.service_id.is_some()) {
        let is_on_it = task.node_id.as_ref() == Some(&node.id);
        let is_wanted = task.desired_state <= TaskState::Complete;
        // Of a node that is down nothing will be heard; its tasks are replaced all the same.
        if is_on_it && is_here(task) && !is_down {
            lines.insert(match (is_wanted, slot_of(task).and_then(|slot| failed.get(&slot))) {
                (false, _) => format!("{} still stops there ({}){}", task.name(), task.status.state, grace(task)),
                (true, None) => format!("{} still runs there: none runs in its place yet", task.name()),
                (true, Some(why)) => format!("{} still runs there: the one in its place failed: {why}", task.name()),
            });
            continue;
        }
        let is_successor = is_wanted && slot_of(task).is_some_and(|slot| slots.contains(&slot));
        // What a job had to do is done wherever it was done.
        let is_settled = task.status.state == TaskState::Complete || (task.status.state == TaskState::Running && !is_on_it);
        if is_successor && !is_settled {
            let why = if task.status.err.is_empty() { String::new() } else { format!(": {}", task.status.err) };
            lines.insert(format!("{} is {} and not yet running elsewhere{why}", task.name(), task.status.state));
        }
    }
    lines.into_iter().collect()
}

/// What the newest task of a slot that ended badly said, of slots where one before it is still wanted.
fn last_failures(tasks: &[Task]) -> BTreeMap<Slot, &str> {
    let mut found = BTreeMap::<Slot, &Task>::new();
    for task in tasks.iter().filter(|task| matches!(task.status.state, TaskState::Failed | TaskState::Rejected)) {
        let Some(slot) = slot_of(task) else { continue };
        let is_wanted =
            |other: &&Task| slot_of(other).as_ref() == Some(&slot) && other.desired_state <= TaskState::Complete && is_here(other);
        let after_it = tasks.iter().find(is_wanted).is_some_and(|other| other.meta.created_at < task.meta.created_at);
        if after_it && found.get(&slot).is_none_or(|known| known.meta.created_at < task.meta.created_at) {
            found.insert(slot, task);
        }
    }
    found.into_iter().map(|(slot, task)| (slot, task.status.err.as_str())).collect()
}

/// How long it may take to stop, if its service says so.
fn grace(task: &Task) -> String {
    let grace = task.spec.container().and_then(|container| container.stop_grace_period);
    grace.map_or_else(String::new, |grace| format!(", which may take {}", when::about(grace)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{NodeId, ServiceMode, ServiceSpec, TaskId, TaskSpec, Timestamp};
    use std::sync::Arc;

    fn task(number: u64, node: Option<u64>, desired: TaskState, state: TaskState) -> Task {
        let spec = ServiceSpec {
            annotations: skep_types::Annotations { name: "web".into(), ..Default::default() },
            task: Arc::new(TaskSpec::new(skep_types::ContainerSpec::default())),
            mode: ServiceMode::Replicated { replicas: 1 },
            update: None,
            rollback: None,
            networks: Vec::new(),
            endpoint: None,
        };
        let service = skep_types::Service::new(ServiceId::for_test(1), spec);
        let mut task = Task::of_service(TaskId::for_test(number), &service, 1, None, Timestamp::default());
        (task.node_id, task.desired_state, task.status.state) = (node.map(NodeId::for_test), desired, state);
        task
    }

    #[test]
    fn a_node_is_empty_when_its_tasks_stopped_and_run_elsewhere() {
        let node = Node::new(NodeId::for_test(1));
        let slots = BTreeSet::from([(ServiceId::for_test(1), 1)]);
        let (shutdown, running) = (TaskState::Shutdown, TaskState::Running);
        let stops = task(1, Some(1), shutdown, running);
        let mut waits = task(2, None, TaskState::Ready, TaskState::Pending);
        waits.status.err = "no suitable node (no room on 2 nodes)".into();
        let lines = blockers(&node, &slots, &[stops.clone(), waits.clone()]);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("still stops there (running)")), "{lines:?}");
        assert!(lines.iter().any(|line| line.ends_with("not yet running elsewhere: no suitable node (no room on 2 nodes)")), "{lines:?}");
        let stopped = task(1, Some(1), shutdown, shutdown);
        assert_eq!(blockers(&node, &slots, &[stopped.clone(), waits]).len(), 1);
        assert_eq!(blockers(&node, &slots, &[stopped.clone(), task(2, Some(2), running, running)]), Vec::<String>::new());
        assert_eq!(blockers(&node, &slots, &[stopped]), Vec::<String>::new(), "its service was scaled down or removed");
        let done = task(1, Some(1), TaskState::Complete, TaskState::Complete);
        assert_eq!(blockers(&node, &slots, &[done]), Vec::<String>::new(), "a job that ended there runs nowhere else");
    }

    #[test]
    fn a_node_that_is_down_is_not_waited_for_but_the_replacements_are() {
        let mut node = Node::new(NodeId::for_test(1));
        node.status.state = NodeState::Down;
        let slots = BTreeSet::from([(ServiceId::for_test(1), 1)]);
        let lost = task(1, Some(1), TaskState::Shutdown, TaskState::Running);
        assert_eq!(blockers(&node, &slots, std::slice::from_ref(&lost)), Vec::<String>::new());
        assert_eq!(blockers(&node, &slots, &[lost, task(2, Some(2), TaskState::Running, TaskState::Starting)]).len(), 1);
    }

    #[test]
    fn what_serves_until_others_do_keeps_the_node_and_says_why() {
        let node = Node::new(NodeId::for_test(1));
        let slots = BTreeSet::from([(ServiceId::for_test(1), 1)]);
        let running = TaskState::Running;
        let mut serves = task(1, Some(1), running, running);
        serves.meta.created_at = Timestamp::from_secs(1);
        let begins = task(2, Some(2), running, TaskState::Preparing);
        let lines = blockers(&node, &slots, &[serves.clone(), begins]);
        assert!(lines.iter().any(|line| line.ends_with("still runs there: none runs in its place yet")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("is preparing and not yet running elsewhere")), "{lines:?}");
        assert_eq!(lines.len(), 2, "{lines:?}");
        let mut failed = task(3, Some(2), TaskState::Shutdown, TaskState::Rejected);
        failed.meta.created_at = Timestamp::from_secs(2);
        failed.status.err = "no such image".into();
        let lines = blockers(&node, &slots, &[serves, failed]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].ends_with("the one in its place failed: no such image"), "{lines:?}");
    }

    #[test]
    fn services_that_stop_first_say_why() {
        let of = |number: u64, name: &str, mode: ServiceMode, order: UpdateOrder| {
            let spec = ServiceSpec {
                annotations: skep_types::Annotations { name: name.into(), ..Default::default() },
                task: Arc::new(TaskSpec::new(skep_types::ContainerSpec::default())),
                mode,
                update: Some(skep_types::UpdateConfig { order, ..Default::default() }),
                rollback: None,
                networks: Vec::new(),
                endpoint: None,
            };
            skep_types::Service::new(ServiceId::for_test(number), spec)
        };
        let replicated = || ServiceMode::Replicated { replicas: 1 };
        let services = [
            of(1, "web", replicated(), UpdateOrder::StartFirst),
            of(2, "db", replicated(), UpdateOrder::StopFirst),
            of(3, "agent", ServiceMode::Global, UpdateOrder::StartFirst),
            of(4, "elsewhere", replicated(), UpdateOrder::StopFirst),
        ];
        let there = |service: &Service| Task::of_service(TaskId::for_test(1), service, 1, None, Timestamp::default());
        let tasks: Vec<Task> = services[..3].iter().map(there).collect();
        let lines = stopping_first(&services, &tasks);
        assert_eq!(
            lines,
            ["db stops first: its --update-order is stop-first", "agent stops first: it is global: its tasks run nowhere else instead"]
        );
    }
}
