//! Why a service is as it is.

use super::{Finding, Verdict, about, ago, count, dry_run, name_of, remedy, tally, waiting};
use crate::restart;
use crate::scheduler::Scheduler;
use skep_types::{ClusterView, NodeState, RestartCondition, Service, ServiceMode, Task, TaskState, Timestamp, UpdateState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A task that is being made ready for longer than this is worth a word.
const SLOW_START: Duration = Duration::from_secs(30);

/// What there is, then what is wrong, then the rest.
#[must_use]
pub fn explain_service(view: &dyn ClusterView, service: &Service, now: Timestamp) -> Vec<Finding> {
    let tasks: Vec<&Arc<Task>> = view.tasks_of_service(&service.id).collect();
    let mut findings = Vec::new();
    findings.extend(rollout(service, &tasks, now));
    findings.extend(unplaced(view, &tasks));
    findings.extend(failures(view, service, &tasks, now));
    findings.extend(given_up(service, &tasks));
    findings.extend(under_way(view, &tasks, now));
    findings.extend(on_lost_nodes(view, &tasks));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict as u8));
    findings.insert(0, summary(view, service, &tasks));
    if service.pending_delete {
        findings.insert(0, Finding::new(Verdict::Note, "the service is being removed"));
    }
    findings
}

fn runs(task: &Task) -> bool {
    task.status.state == TaskState::Running && task.desired_state <= TaskState::Complete
}

fn summary(view: &dyn ClusterView, service: &Service, tasks: &[&Arc<Task>]) -> Finding {
    let running: Vec<_> = tasks.iter().filter(|task| runs(task)).collect();
    let homes = tally(running.iter().filter_map(|task| task.node_id.as_ref()).map(|node| name_of(view, node)));
    let homes = if homes.is_empty() { homes } else { format!(", on {homes}") };
    let completed =
        |task: &&&Arc<Task>| task.status.state == TaskState::Complete && service.job_status.map(|job| job.iteration) == task.job_iteration;
    let done = tasks.iter().filter(completed).count();
    let (text, enough) = match service.spec.mode {
        ServiceMode::Replicated { replicas: 0 } => ("0 replicas are asked for".to_owned(), false),
        ServiceMode::Replicated { replicas } => {
            (format!("{} of {replicas} tasks run{homes}", running.len()), running.len() as u64 >= replicas)
        }
        ServiceMode::Global => {
            let nodes = view.nodes().count();
            let text = format!(
                "global: {} {} on {}{homes}",
                count(running.len(), "task"),
                if running.len() == 1 { "runs" } else { "run" },
                count(nodes, "node")
            );
            (text, running.len() == nodes)
        }
        ServiceMode::ReplicatedJob { total_completions, .. } => {
            (format!("job: {done} of {total_completions} completed, {} running{homes}", running.len()), done as u64 >= total_completions)
        }
        ServiceMode::GlobalJob => (format!("global job: completed on {}, {} running{homes}", count(done, "node"), running.len()), true),
    };
    let mut finding = Finding::new(if enough { Verdict::Fine } else { Verdict::Note }, text);
    if matches!(service.spec.mode, ServiceMode::Global | ServiceMode::GlobalJob) {
        finding.nodes = left_out(view, service, tasks);
    }
    finding
}

/// Nodes without a task of a global service, and why.
fn left_out(view: &dyn ClusterView, service: &Service, tasks: &[&Arc<Task>]) -> Vec<super::NodeGroup> {
    let has: BTreeSet<_> = tasks.iter().filter_map(|task| task.node_id.as_ref()).collect();
    let task = dry_run::task_of(view, service, 0, 0, Timestamp::default());
    let verdicts = Scheduler::new(view).verdicts(&task);
    let without: Vec<_> = verdicts.into_iter().filter(|verdict| !has.contains(&verdict.node.id)).collect();
    waiting::groups(&task, &without)
}

fn rollout(service: &Service, tasks: &[&Arc<Task>], now: Timestamp) -> Option<Finding> {
    let status = service.update_status.as_ref()?;
    let new = tasks.iter().filter(|task| runs(task) && task.spec_version == service.spec_version).count();
    let old = tasks.iter().filter(|task| runs(task)).count() - new;
    let since = status.started_at.map(|at| format!(", begun {}", ago(now, at))).unwrap_or_default();
    let name = service.name();
    let because = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
    let counts = format!("{new} of the new spec run, {old} of the old");
    Some(match status.state {
        UpdateState::Paused => Finding::new(Verdict::Wrong, format!("the update is paused{because}; {counts}"))
            .cure(format!("`swarmctl service rollback {name}`: back to the spec before"))
            .cure(format!("`swarmctl service update --force {name}` or another change: goes on")),
        UpdateState::RollbackPaused => Finding::new(Verdict::Wrong, format!("the rollback is paused{because}; {counts}"))
            .cure(format!("`swarmctl service update` of {name} with what makes its tasks run")),
        UpdateState::Updating => Finding::new(Verdict::Note, format!("an update is under way{since}; {counts}")),
        UpdateState::RollbackStarted => Finding::new(Verdict::Note, format!("a rollback is under way{since}{because}; {counts}")),
        UpdateState::RollbackCompleted => Finding::new(Verdict::Note, format!("the last update was rolled back{because}")),
        UpdateState::Completed | UpdateState::Unknown => return None,
    })
}

/// Tasks that wait for addresses or a node.
fn unplaced(view: &dyn ClusterView, tasks: &[&Arc<Task>]) -> Vec<Finding> {
    let wanted = |task: &&&Arc<Task>| task.desired_state <= TaskState::Complete;
    let mut findings = Vec::new();
    let mut stuck = BTreeMap::<&str, usize>::new();
    for task in tasks.iter().filter(wanted).filter(|task| task.status.state == TaskState::New && !task.status.err.is_empty()) {
        *stuck.entry(&task.status.err).or_default() += 1;
    }
    findings.extend(stuck.into_iter().map(|(why, number)| {
        let verb = if number == 1 { "waits" } else { "wait" };
        let finding = Finding::new(Verdict::Wrong, format!("{} {verb} for networks and addresses: {why}", count(number, "task")));
        remedy::against(why).into_iter().fold(finding, Finding::cure)
    }));
    let pending: Vec<_> = tasks.iter().filter(wanted).filter(|task| task.status.state == TaskState::Pending).collect();
    if pending.is_empty() {
        return findings;
    }
    let scheduler = Scheduler::new(view);
    // Tasks of one spec need the same; those bound to their node have it alone to ask.
    let mut kinds = BTreeMap::<_, Vec<&Task>>::new();
    for task in pending {
        kinds.entry((task.spec_version, task.node_id.clone())).or_default().push(task);
    }
    findings.extend(kinds.into_values().map(|alike| waiting_for_a_node(view, &scheduler, &alike)));
    findings
}

/// Why tasks that need the same have no node.
pub(super) fn waiting_for_a_node(view: &dyn ClusterView, scheduler: &Scheduler, alike: &[&Task]) -> Finding {
    let first = alike[0];
    let mut verdicts = scheduler.verdicts(first);
    let (verb, number) = (if alike.len() == 1 { "waits" } else { "wait" }, count(alike.len(), "task"));
    let text = match &first.node_id {
        Some(node) => {
            verdicts.retain(|verdict| verdict.node.id == *node);
            format!("{number} {verb} for {}, where it belongs", name_of(view, node))
        }
        None if verdicts.is_empty() => format!("{number} {verb} for a node: the cluster has none"),
        None if verdicts.iter().all(|verdict| !verdict.misfits.is_empty()) => format!("{number} {verb} for a node: none takes it now"),
        None => format!("{number} {verb} for a node"),
    };
    let mut finding = Finding::new(Verdict::Wrong, text);
    finding.cures = waiting::cures(view, first, &verdicts);
    finding.nodes = waiting::groups(first, &verdicts);
    finding
}

/// Tasks of the present spec that ended badly, by what they said.
fn failures(view: &dyn ClusterView, service: &Service, tasks: &[&Arc<Task>], now: Timestamp) -> Vec<Finding> {
    let failed = |task: &&&Arc<Task>| {
        task.spec_version == service.spec_version && matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
    };
    let mut alike = BTreeMap::<(TaskState, &str), Vec<&Task>>::new();
    for task in tasks.iter().filter(failed) {
        alike.entry((task.status.state, &task.status.err)).or_default().push(task);
    }
    let any_runs = tasks.iter().any(|task| runs(task) && task.spec_version == service.spec_version);
    let tell = |((state, err), tasks): ((TaskState, &str), Vec<&Task>)| {
        let last = tasks.iter().map(|task| task.status.timestamp).max().unwrap_or_default();
        let homes = tally(tasks.iter().filter_map(|task| task.node_id.as_ref()).map(|node| name_of(view, node)));
        let what = if state == TaskState::Rejected { "could not be started" } else { "failed" };
        let why = if err.is_empty() { "no reason was given" } else { err };
        let text = format!("{} {what}: {why} (on {homes}, last {})", count(tasks.len(), "task"), ago(now, last));
        let finding = Finding::new(if any_runs { Verdict::Note } else { Verdict::Wrong }, text);
        match (state, remedy::against(err)) {
            (_, Some(cure)) => finding.cure(cure),
            (TaskState::Rejected, None) => finding.cure("set right what the node says, then `swarmctl service update`"),
            _ => finding.cure(format!("`swarmctl service logs {}` shows what the tasks wrote", service.name())),
        }
    };
    alike.into_iter().map(tell).collect()
}

/// Slots whose last task ended and that get no other.
fn given_up(service: &Service, tasks: &[&Arc<Task>]) -> Option<Finding> {
    if service.spec.mode.is_job() || service.pending_delete {
        return None;
    }
    let slot = |task: &Task| (task.slot, task.node_id.clone().filter(|_| task.slot == 0));
    let is_live = |task: &&&Arc<Task>| task.desired_state <= TaskState::Running && !task.status.state.is_terminal();
    let live: BTreeSet<_> = tasks.iter().filter(is_live).map(|task| slot(task)).collect();
    // Those whose end nobody has dealt with yet are still wanted.
    let ended = |task: &&&Arc<Task>| {
        matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
            && task.desired_state > TaskState::Complete
            && task.spec_version == service.spec_version
    };
    let left: BTreeSet<_> = tasks.iter().filter(ended).map(|task| slot(task)).filter(|slot| !live.contains(slot)).collect();
    let wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas as usize,
        _ => usize::MAX,
    };
    let missing = left.len().min(wanted.saturating_sub(live.len()));
    if missing == 0 {
        return None;
    }
    let policy = restart::policy(&service.spec.task);
    let within = match policy.window {
        Some(window) if !window.is_zero() => format!(" within its --restart-window of {}", about(window)),
        _ => String::new(),
    };
    let (why, cure) = match (policy.condition, policy.max_attempts) {
        (RestartCondition::Never, _) => ("--restart-condition is none".to_owned(), "--restart-condition any"),
        (RestartCondition::OnFailure, 0) => ("--restart-condition is on-failure, and it ended well".to_owned(), "--restart-condition any"),
        (RestartCondition::OnFailure, attempts) => {
            (format!("its --restart-max-attempts {attempts} are used up{within}, or it ended well"), "--restart-max-attempts 0")
        }
        (RestartCondition::Any, attempts) if attempts > 0 => {
            (format!("its --restart-max-attempts {attempts} are used up{within}"), "--restart-max-attempts 0")
        }
        (RestartCondition::Any, _) => return None,
    };
    let text = format!("{} not restarted: {why}", if missing == 1 { "1 task is".into() } else { format!("{missing} tasks are") });
    Some(Finding::new(Verdict::Wrong, text).cure(format!("`swarmctl service update {cure} {0}`; --force begins anew", service.name())))
}

/// Tasks on their way up or down.
fn under_way(view: &dyn ClusterView, tasks: &[&Arc<Task>], now: Timestamp) -> Vec<Finding> {
    let mut findings = Vec::new();
    let begins = |task: &&Arc<Task>| {
        task.desired_state <= TaskState::Complete && (TaskState::Assigned..TaskState::Running).contains(&task.status.state)
    };
    let (waits, begin): (Vec<&Arc<Task>>, Vec<&Arc<Task>>) =
        tasks.iter().copied().filter(begins).partition(|task| task.desired_state == TaskState::Ready);
    if !waits.is_empty() {
        let longest =
            waits.iter().map(|task| restart::policy(&task.spec).delay.unwrap_or(restart::DEFAULT_DELAY)).max().unwrap_or_default();
        let text =
            format!("{} for the restart delay ({}) or for the task before to stop", verb(waits.len(), "waits", "wait"), about(longest));
        findings.push(Finding::new(Verdict::Note, text));
    }
    for task in begin {
        let (node, since) = (task.node_id.as_ref().map_or_else(String::new, |node| name_of(view, node)), task.status.timestamp);
        let slow = now.since(since) >= SLOW_START;
        let health = if task.status.state == TaskState::Starting { "; it runs, but is not healthy yet" } else { "" };
        let said = if task.status.message.is_empty() { String::new() } else { format!(" ({})", task.status.message) };
        let text = format!("{} is {} on {node}{said}, last heard {}{health}", task.name(), task.status.state, ago(now, since));
        findings.push(Finding::new(if slow { Verdict::Wrong } else { Verdict::Note }, text));
    }
    let stops = |task: &&&Arc<Task>| {
        task.desired_state > TaskState::Complete
            && (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
            && !is_lost(view, task)
    };
    let stopping = tasks.iter().filter(stops).count();
    if stopping > 0 {
        findings.push(Finding::new(Verdict::Note, verb(stopping, "is being stopped", "are being stopped")));
    }
    findings
}

fn verb(number: usize, one: &str, many: &str) -> String {
    format!("{} {}", count(number, "task"), if number == 1 { one } else { many })
}

fn is_lost(view: &dyn ClusterView, task: &Task) -> bool {
    let node = task.node_id.as_ref().and_then(|node| view.node(node));
    node.is_some_and(|node| node.status.state == NodeState::Down)
}

fn on_lost_nodes(view: &dyn ClusterView, tasks: &[&Arc<Task>]) -> Option<Finding> {
    let lost = |task: &&&Arc<Task>| (TaskState::Assigned..=TaskState::Running).contains(&task.status.state) && is_lost(view, task);
    let lost: Vec<_> = tasks.iter().filter(lost).collect();
    if lost.is_empty() {
        return None;
    }
    let homes = tally(lost.iter().filter_map(|task| task.node_id.as_ref()).map(|node| name_of(view, node)));
    let text = format!("of {} nothing is heard any more, the node is down: {homes}; others take their place", count(lost.len(), "task"));
    Some(Finding::new(Verdict::Note, text))
}
