//! Why a task is as it is.

use super::service::waiting_for_a_node;
use super::{Finding, Verdict, ago, name_of, tally, waiting};
use crate::scheduler::Scheduler;
use crate::slot::age;
use skep_types::{Availability, ClusterView, NodeState, Service, Task, TaskState, Timestamp};

/// Where it is and in what state, and why it is there and not elsewhere.
#[must_use]
pub fn explain_task(view: &dyn ClusterView, task: &Task, now: Timestamp) -> Vec<Finding> {
    let service = task.service_id.as_ref().and_then(|id| view.service(id)).map(AsRef::as_ref);
    let is_wanted = task.desired_state <= TaskState::Complete;
    let mut findings = vec![state(view, task, now)];
    match task.status.state {
        TaskState::Pending if is_wanted => findings.push(waiting_for_a_node(view, &Scheduler::new(view), &[task])),
        there if (TaskState::Assigned..=TaskState::Running).contains(&there) => {
            if is_wanted {
                findings.push(placement(view, task));
            }
            findings.extend(lost(view, task));
        }
        _ => {}
    }
    if !is_wanted || task.status.state.is_terminal() {
        findings.extend(farewell(view, service, task));
    }
    findings
}

fn state(view: &dyn ClusterView, task: &Task, now: Timestamp) -> Finding {
    let status = &task.status;
    let place = task.node_id.as_ref().map(|node| format!(" on {}", name_of(view, node))).unwrap_or_default();
    let said = [status.message.as_str(), status.err.as_str()].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": ");
    let said = if said.is_empty() { said } else { format!(" ({said})") };
    let text =
        format!("{} is {}{place}{said}, said {}; wanted {}", task.name(), status.state, ago(now, status.timestamp), task.desired_state);
    let verdict = match status.state {
        TaskState::Failed | TaskState::Rejected | TaskState::Orphaned => Verdict::Wrong,
        TaskState::Running | TaskState::Complete | TaskState::Shutdown => Verdict::Fine,
        _ => Verdict::Note,
    };
    Finding::new(verdict, text)
}

/// Why there: what the scheduler compares, and what speaks against the other nodes now.
fn placement(view: &dyn ClusterView, task: &Task) -> Finding {
    let Some(home) = &task.node_id else { return Finding::new(Verdict::Note, "it has no node yet") };
    let is_global = task.slot == 0 && task.job_iteration.is_none() && task.service_id.is_some();
    if is_global {
        return Finding::new(Verdict::Fine, "its service is global: it belongs to this node");
    }
    let siblings = task.service_id.iter().flat_map(|id| view.tasks_of_service(id)).filter(|other| {
        other.desired_state <= TaskState::Complete && (TaskState::Assigned..=TaskState::Running).contains(&other.status.state)
    });
    let homes = tally(siblings.filter_map(|other| other.node_id.as_ref()).map(|node| name_of(view, node)));
    let spread = task.spec.placement.as_ref().map(|placement| placement.spread.join(", ")).filter(|spread| !spread.is_empty());
    let first = spread.map(|spread| format!("evenly over {spread}, then ")).unwrap_or_default();
    let text =
        format!("of the nodes that suited, tasks go {first}where the service has fewest, then where fewest run; the service is on {homes}");
    let mut finding = Finding::new(Verdict::Fine, text);
    let mut others = Scheduler::new(view).verdicts(task);
    others.retain(|verdict| verdict.node.id != *home);
    finding.nodes = waiting::groups(task, &others);
    finding
}

fn lost(view: &dyn ClusterView, task: &Task) -> Option<Finding> {
    let id = task.node_id.as_ref()?;
    let text = match view.node(id) {
        None => "its node was removed: what became of the task is not known".to_owned(),
        Some(node) if node.status.state == NodeState::Down => {
            format!("{} is down: what became of the task since is not known", node.display_name())
        }
        Some(_) => return None,
    };
    Some(Finding::new(Verdict::Wrong, text))
}

/// Why it is to end or ended, and what came after it.
fn farewell(view: &dyn ClusterView, service: Option<&Service>, task: &Task) -> Vec<Finding> {
    let mut findings = Vec::new();
    let node = task.node_id.as_ref().and_then(|node| view.node(node));
    match (service, node) {
        (None, _) if task.service_id.is_some() => findings.push(Finding::new(Verdict::Note, "its service was removed")),
        (Some(service), _) if task.spec_version != service.spec_version => {
            findings.push(Finding::new(Verdict::Note, "its service's spec was changed since, and it is of an older one"));
        }
        (_, Some(node)) if node.spec.availability == Availability::Drain => {
            findings.push(Finding::new(Verdict::Note, format!("{} is drained", node.display_name())));
        }
        _ => {}
    }
    let is_of_slot = |other: &&std::sync::Arc<Task>| {
        other.slot == task.slot
            && (task.slot != 0 || other.node_id == task.node_id)
            && other.id != task.id
            && other.desired_state <= TaskState::Complete
    };
    let next = task.service_id.iter().flat_map(|id| view.tasks_of_service(id)).filter(is_of_slot).max_by(|a, b| age(a).cmp(&age(b)));
    findings.push(match next {
        Some(next) => {
            let place = next.node_id.as_ref().map(|node| format!(" on {}", name_of(view, node))).unwrap_or_default();
            Finding::new(Verdict::Fine, format!("in its place is {}, {}{place}", next.name(), next.status.state))
        }
        None => Finding::new(Verdict::Note, "nothing took its place; `swarmctl explain service` tells why"),
    });
    findings
}
