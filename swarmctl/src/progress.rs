//! Waiting until a service is as wanted, with a bar for each slot.

use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::output::plain;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use skep_proto::{FromWire, v1};
use skep_types::{Service, ServiceMode, Task, TaskState, UpdateState};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often the tasks are looked at.
const POLL: Duration = Duration::from_millis(100);

/// How long all tasks must stay up before the service counts as converged: one that dies at once has died by then.
const STABLE: Duration = Duration::from_secs(1);

/// More slots than this share one bar.
const MOST_BARS: usize = 20;

/// The way of a task from nothing to running, in steps of a bar.
const STEPS: u64 = 8;

/// Where one slot is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    /// `2` or, for global services, the node.
    name: String,
    state: TaskState,
    error: String,
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snapshot {
    slots: Vec<Slot>,
    done: usize,
    wanted: usize,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    OnTheWay,
    Converged,
    /// The update was paused or rolled back; what the manager says of it.
    GaveUp(String),
}

/// The step of a bar for a state; also what "further" means for the slot's shown task.
fn step(state: TaskState) -> u64 {
    match state {
        TaskState::New => 0,
        TaskState::Pending => 1,
        TaskState::Assigned => 2,
        TaskState::Accepted => 3,
        TaskState::Preparing => 4,
        TaskState::Ready => 5,
        TaskState::Starting => 6,
        TaskState::Running => 7,
        TaskState::Complete => STEPS,
        TaskState::Shutdown | TaskState::Failed | TaskState::Rejected | TaskState::Remove | TaskState::Orphaned => 0,
    }
}

/// Reads the state of a service off its tasks. `nodes` = how many nodes a global service is to run on.
fn look(service: &Service, tasks: &[Task], nodes: usize) -> Snapshot {
    let is_job = service.spec.mode.is_job();
    let goal = if is_job { TaskState::Complete } else { TaskState::Running };
    let mut by_slot: BTreeMap<(u64, String), &Task> = BTreeMap::new();
    let of_this_run = |task: &&Task| {
        if is_job {
            task.job_iteration == service.job_status.map(|status| status.iteration)
        } else {
            task.desired_state <= TaskState::Running
        }
    };
    for task in tasks.iter().filter(of_this_run) {
        let node = match service.spec.mode {
            ServiceMode::Global | ServiceMode::GlobalJob => task.node_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            _ => String::new(),
        };
        let shown = by_slot.entry((task.slot, node)).or_insert(task);
        // The task of the wanted spec counts, and among those the newest.
        if (task.spec == service.spec.task, task.meta.created_at) > (shown.spec == service.spec.task, shown.meta.created_at) {
            *shown = task;
        }
    }
    let current = |task: &Task| is_job || task.spec == service.spec.task;
    let done = by_slot.values().filter(|task| task.status.state == goal && current(task)).count();
    let wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas: wanted } | ServiceMode::ReplicatedJob { total_completions: wanted, .. } => {
            usize::try_from(wanted).unwrap_or(usize::MAX)
        }
        ServiceMode::Global | ServiceMode::GlobalJob => nodes,
    };
    let status = service.update_status.clone().unwrap_or_default();
    let outcome = match status.state {
        UpdateState::Paused | UpdateState::RollbackPaused => Outcome::GaveUp(status.message),
        UpdateState::RollbackCompleted => Outcome::GaveUp(format!("rolled back: {}", status.message)),
        UpdateState::Updating | UpdateState::RollbackStarted => Outcome::OnTheWay,
        UpdateState::Unknown | UpdateState::Completed if done >= wanted && (is_job || by_slot.len() == wanted) => Outcome::Converged,
        UpdateState::Unknown | UpdateState::Completed => Outcome::OnTheWay,
    };
    let slot = |((number, node), task): (&(u64, String), &&Task)| Slot {
        name: if node.is_empty() { number.to_string() } else { node.chars().take(12).collect() },
        state: if current(task) { task.status.state } else { TaskState::New },
        error: task.status.err.clone(),
    };
    let mut slots: Vec<Slot> = by_slot.iter().map(slot).collect();
    // The reason of a slot that keeps failing is in its last finished task while the next one waits.
    for slot in slots.iter_mut().filter(|slot| slot.error.is_empty() && slot.state < TaskState::Starting) {
        let failed = tasks.iter().filter(|task| task.slot.to_string() == slot.name && task.status.state >= TaskState::Failed);
        if let Some(last) = failed.max_by_key(|task| task.meta.created_at) {
            slot.error.clone_from(&last.status.err);
        }
    }
    Snapshot { slots, done, wanted, outcome }
}

/// Waits until the service is as wanted and has stayed so for a second. Ctrl-C ends the waiting, not the change.
pub async fn wait(connection: &Connection, service_id: &str, quiet: bool, rolling_back: bool) -> Result<(), Failure> {
    let mut view = View::new(quiet);
    let mut stable_since: Option<Instant> = None;
    loop {
        let snapshot = fetch(connection, service_id).await?;
        view.show(&snapshot);
        match &snapshot.outcome {
            Outcome::GaveUp(reason) if rolling_back && reason.starts_with("rolled back") => return view.finish("rolled back"),
            Outcome::GaveUp(reason) => {
                view.clear();
                return Err(Failure::new(Exit::NotConverged, format!("service {service_id}: {reason}")));
            }
            Outcome::OnTheWay => stable_since = None,
            Outcome::Converged => {
                let since = *stable_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= STABLE {
                    return view.finish("converged");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = tokio::signal::ctrl_c() => {
                view.clear();
                eprintln!("Going on in the background; `swarmctl service ps {service_id}` shows how far it is.");
                return Ok(());
            }
        }
    }
}

async fn fetch(connection: &Connection, service_id: &str) -> Result<Snapshot, Failure> {
    let mut client = connection.control();
    let request = v1::GetServiceRequest { service_id: service_id.into(), insert_defaults: false };
    let service = client.get_service(request).await?.into_inner().service.ok_or_else(|| Failure::failed("the service vanished"))?;
    let filters = v1::list_tasks_request::Filters { service_ids: vec![service_id.into()], ..Default::default() };
    let tasks = client.list_tasks(v1::ListTasksRequest { filters: Some(filters) }).await?.into_inner().tasks;
    let statuses =
        client.list_service_statuses(v1::ListServiceStatusesRequest { services: vec![service_id.into()] }).await?.into_inner().statuses;
    let desired = statuses.first().map_or(0, |status| status.desired_tasks);
    let service = Service::from_wire(service)?;
    let tasks = tasks.into_iter().map(Task::from_wire).collect::<Result<Vec<_>, _>>()?;
    Ok(look(&service, &tasks, usize::try_from(desired).unwrap_or(usize::MAX)))
}

/// Bars on a terminal, a line for each news otherwise.
struct View {
    quiet: bool,
    bars: Option<MultiProgress>,
    total: Option<ProgressBar>,
    slots: BTreeMap<String, ProgressBar>,
    last_line: String,
}

impl View {
    fn new(quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self { quiet, bars, total: None, slots: BTreeMap::new(), last_line: String::new() }
    }

    fn show(&mut self, snapshot: &Snapshot) {
        let line = format!("overall progress: {} out of {} tasks", snapshot.done, snapshot.wanted);
        let Some(bars) = &self.bars else {
            let errors: Vec<&str> = snapshot.slots.iter().map(|slot| slot.error.as_str()).filter(|error| !error.is_empty()).collect();
            let line = match errors.first() {
                Some(error) => format!("{line} ({})", plain(error)),
                None => line,
            };
            if !self.quiet && line != self.last_line {
                eprintln!("{line}");
                self.last_line = line;
            }
            return;
        };
        let bare = ProgressStyle::with_template("{msg}").expect("a valid template");
        self.total.get_or_insert_with(|| bars.add(ProgressBar::new(1)).with_style(bare)).set_message(line);
        if snapshot.slots.len() > MOST_BARS {
            return;
        }
        let width = snapshot.wanted.to_string().len();
        for slot in &snapshot.slots {
            let bar = self.slots.entry(slot.name.clone()).or_insert_with(|| {
                let style = ProgressStyle::with_template("{prefix}: {msg:<40} [{bar:40}]").expect("a valid template").progress_chars("=> ");
                bars.add(ProgressBar::new(STEPS - 1)).with_style(style)
            });
            bar.set_prefix(match slot.name.parse::<u64>() {
                Ok(number) => format!("{number:>width$}/{}", snapshot.wanted),
                Err(_) => plain(&slot.name).into_owned(),
            });
            bar.set_position(step(slot.state));
            bar.set_message(if slot.error.is_empty() { slot.state.to_string() } else { plain(&slot.error).chars().take(60).collect() });
        }
        let gone: Vec<String> = self.slots.keys().filter(|name| !snapshot.slots.iter().any(|slot| slot.name == **name)).cloned().collect();
        for name in gone {
            if let Some(bar) = self.slots.remove(&name) {
                bar.finish_and_clear();
            }
        }
    }

    fn clear(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }

    fn finish(&self, what: &str) -> Result<(), Failure> {
        for bar in self.slots.values().chain(&self.total) {
            bar.abandon();
        }
        if self.quiet { Ok(()) } else { crate::output::put(&format!("Service {what}.\n")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Annotations, ContainerSpec, ServiceId, ServiceSpec, TaskId, TaskSpec, Timestamp, UpdateStatus, Version};
    use std::sync::Arc;

    fn service(replicas: u64) -> Service {
        let task = TaskSpec::new(ContainerSpec { image: "x".into(), ..ContainerSpec::default() });
        Service {
            spec_version: Some(Version(0)),
            ..Service::new(
                ServiceId::for_test(1),
                ServiceSpec {
                    annotations: Annotations { name: "web".into(), ..Annotations::default() },
                    task: Arc::new(task),
                    mode: ServiceMode::Replicated { replicas },
                    update: None,
                    rollback: None,
                    networks: Vec::new(),
                    endpoint: None,
                },
            )
        }
    }

    fn task(service: &Service, number: u64, slot: u64, state: TaskState) -> Task {
        let mut task = Task::of_service(TaskId::for_test(number), service, slot, None, Timestamp(0));
        task.status.state = state;
        task.meta.created_at = Timestamp(i64::try_from(number).unwrap());
        task
    }

    #[test]
    fn converged_means_every_slot_runs_the_wanted_spec() {
        let service = service(2);
        let one = task(&service, 1, 1, TaskState::Running);
        let two = task(&service, 2, 2, TaskState::Starting);
        assert_eq!(look(&service, &[one.clone(), two.clone()], 0).outcome, Outcome::OnTheWay);
        let two = Task { status: skep_types::TaskStatus { state: TaskState::Running, ..two.status }, ..two };
        assert_eq!(look(&service, &[one.clone(), two.clone()], 0).outcome, Outcome::Converged);
        let mut old = two;
        Arc::make_mut(&mut old.spec).force_update = 9;
        assert_eq!(look(&service, &[one, old], 0).outcome, Outcome::OnTheWay);
    }

    #[test]
    fn a_slot_that_keeps_failing_shows_why() {
        let service = service(1);
        let mut failed = task(&service, 1, 1, TaskState::Rejected);
        failed.desired_state = TaskState::Shutdown;
        failed.status.err = "no such image".into();
        let snapshot = look(&service, &[failed, task(&service, 2, 1, TaskState::Assigned)], 0);
        assert_eq!(snapshot.slots[0].error, "no such image");
    }

    #[test]
    fn a_paused_update_is_a_failure_with_its_reason() {
        let mut service = service(1);
        service.update_status =
            Some(UpdateStatus { state: UpdateState::Paused, message: "update paused".into(), ..UpdateStatus::default() });
        assert_eq!(look(&service, &[], 0).outcome, Outcome::GaveUp("update paused".into()));
    }
}
