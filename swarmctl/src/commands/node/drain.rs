//! `node drain`: gives a node's tasks up and waits until they stopped and run elsewhere, or tells what keeps them.

use super::change;
use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::resolve;
use crate::{output, when};
use skep_proto::{FromWire, v1};
use skep_types::{Availability, Node, NodeState, ServiceId, Task, TaskState};
use std::collections::BTreeSet;
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
    /// Do not wait until the tasks run elsewhere
    #[arg(long, short = 'd')]
    detach: bool,
}

/// A slot that had a task on the node. Tasks of global services are not replaced.
type Slot = (ServiceId, u64);

pub async fn run(flags: &Flags, connection: &Connection) -> Result<(), Failure> {
    let name = &flags.node;
    let node = Node::from_wire(resolve::node(connection, name).await?)?;
    let slots: BTreeSet<Slot> = tasks(on_node(&node), connection).await?.iter().filter(|task| is_here(task)).filter_map(slot_of).collect();
    change(name, connection, |spec| {
        spec.availability = Availability::Drain;
        Ok(())
    })
    .await?;
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

/// A process of it may be on its node.
fn is_here(task: &Task) -> bool {
    (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
}

fn slot_of(task: &Task) -> Option<Slot> {
    task.service_id.clone().filter(|_| task.slot != 0).map(|service| (service, task.slot))
}

/// What has to happen before the node counts as empty, a line each: tasks there that stop, and those in their place that do not run.
fn blockers(node: &Node, slots: &BTreeSet<Slot>, tasks: &[Task]) -> Vec<String> {
    let mut lines = BTreeSet::new();
    let is_down = node.status.state == NodeState::Down;
    for task in tasks.iter().filter(|task| task.service_id.is_some()) {
        let is_on_it = task.node_id.as_ref() == Some(&node.id);
        // Of a node that is down nothing will be heard; its tasks are replaced all the same.
        if is_on_it && is_here(task) && !is_down {
            lines.insert(format!("{} still stops there ({})", task.name(), task.status.state));
        }
        let is_successor = task.desired_state <= TaskState::Complete && slot_of(task).is_some_and(|slot| slots.contains(&slot));
        // What a job had to do is done wherever it was done.
        let is_settled = task.status.state == TaskState::Complete || (task.status.state == TaskState::Running && !is_on_it);
        if is_successor && !is_settled {
            let why = if task.status.err.is_empty() { String::new() } else { format!(": {}", task.status.err) };
            lines.insert(format!("{} is {} and not yet running elsewhere{why}", task.name(), task.status.state));
        }
    }
    lines.into_iter().collect()
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
}
