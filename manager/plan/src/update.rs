//! Rolling updates and rollbacks (wire-behaviour 12), derived from the store alone.
//!
//! What the original keeps in worker goroutines is read off the tasks: a slot is in work while its first task of the new spec version
//! has not come to RUNNING (or to its end), and for `delay` after that; a slot failed if such a task ended before or within
//! `monitor` after it ran (`TaskStatus::running_since`). So a new leader goes on where the old one stopped.

use crate::dirty::Dirt;
use crate::restart;
use crate::slot::{Context, Run, Slot};
use skep_types::{
    Action, FailureAction, Object, Service, ServiceMode, Task, TaskId, TaskState, Timestamp, UpdateConfig, UpdateOrder, UpdateState,
    UpdateStatus, Version,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Monitor time of a config that does not say.
pub const DEFAULT_MONITOR: Duration = Duration::from_secs(5);

/// How far an update is.
struct Progress<K> {
    /// Slots to do, in order.
    waiting: Vec<K>,
    /// Slots that keep a worker busy.
    busy: usize,
    /// Slots that were begun.
    begun: usize,
    failed: usize,
    failed_task: Option<TaskId>,
    /// A slot whose new task has neither run nor ended.
    unsettled: bool,
    /// When the last slot came to RUNNING or to its end.
    last_reached: Option<Timestamp>,
}

struct Settings {
    config: UpdateConfig,
    rolling_back: bool,
}

impl Settings {
    fn of(service: &Service) -> Self {
        let status = service.update_status.as_ref();
        let rolling_back = status.is_some_and(|status| status.state == UpdateState::RollbackStarted);
        let config = if rolling_back { &service.spec.rollback } else { &service.spec.update };
        Self { config: config.clone().unwrap_or_default(), rolling_back }
    }

    fn monitor(&self) -> Duration {
        self.config.monitor.unwrap_or(DEFAULT_MONITOR)
    }

    /// How long nothing may fail after the last slot before the update counts as done.
    fn quiet_time(&self) -> Duration {
        match self.config.failure_action {
            FailureAction::Continue => Duration::ZERO,
            _ if self.config.delay >= self.monitor() => self.config.delay + Duration::from_secs(1),
            _ => self.monitor(),
        }
    }

    fn is_failure(&self, run: &Run) -> bool {
        run.ended_by_itself() && run.task.status.running_since.is_none_or(|since| run.reported() <= since + self.monitor())
    }
}

/// An update or a rollback goes on.
pub(crate) fn is_under_way(service: &Service) -> bool {
    let state = service.update_status.as_ref().map(|status| status.state);
    matches!(state, Some(UpdateState::Updating | UpdateState::RollbackStarted))
}

/// The service lets two tasks of a slot run at once while one takes the other's place.
pub(crate) fn starts_first(service: &Service) -> bool {
    matches!(service.spec.mode, ServiceMode::Replicated { .. }) && Settings::of(service).config.order == UpdateOrder::StartFirst
}

/// Whether the task is work of the present update of its service. A rollback has a spec version that tasks from before it have, too.
fn is_of_update(service: &Service, task: &Task) -> bool {
    let began = service.update_status.as_ref().map_or(Version::default(), |status| status.began);
    service.spec_version.is_some() && task.spec_version == service.spec_version && task.meta.created >= began
}

/// What an update that goes on is judged by, of the tasks of one slot, oldest first: the last one from before it, for without that the
/// slot would seem to be new, and the first of its own that failed. They stay until it is over, whatever history is kept.
pub(crate) fn evidence<'a>(service: &Service, tasks: &[&'a Arc<Task>]) -> Vec<&'a TaskId> {
    if !is_under_way(service) {
        return Vec::new();
    }
    let settings = Settings::of(service);
    let before = tasks.iter().rfind(|task| !is_of_update(service, task));
    let failed = tasks.iter().find(|task| is_of_update(service, task) && settings.is_failure(&Run::stored(task)));
    before.into_iter().chain(failed).map(|task| &task.id).collect()
}

/// Does what the update of a service asks for next. `is_open` says whether a slot may get a new task now, `create` makes it.
pub(crate) fn step<'a, K: Ord + Clone>(
    context: &mut Context<'a>,
    slots: &mut BTreeMap<K, Slot>,
    dirt: &Dirt<'_>,
    is_open: impl Fn(&Context<'a>, &K) -> bool,
    mut create: impl FnMut(&mut Context<'a>, &K, TaskState) -> Option<Run>,
) {
    let state = context.service.update_status.as_ref().map_or(UpdateState::Unknown, |status| status.state);
    if matches!(state, UpdateState::Paused | UpdateState::RollbackPaused) {
        return;
    }
    let settings = Settings::of(context.service);
    let active = is_under_way(context.service);
    let mut progress = survey(context, slots, dirt, &settings, active);
    progress.waiting.retain(|key| is_open(context, key));
    if !active {
        if progress.waiting.is_empty() && progress.begun == 0 {
            return;
        }
        set_status(context, UpdateState::Updating, "update in progress", true);
    } else if let Some(failed) = progress.failed_task.as_ref().filter(|_| is_over_ratio(&settings.config, &progress)) {
        react(context, &settings, failed);
        return;
    }
    let order = settings.config.order;
    let workers = match settings.config.parallelism {
        0 => usize::MAX,
        parallelism => usize::try_from(parallelism).unwrap_or(usize::MAX).saturating_sub(progress.busy),
    };
    for key in progress.waiting.iter().take(workers) {
        let first = if order == UpdateOrder::StartFirst { TaskState::Running } else { TaskState::Ready };
        let Some(run) = create(context, key, first) else { break };
        let slot = slots.get_mut(key).expect("only known slots wait");
        if order == UpdateOrder::StopFirst {
            slot.runs.iter_mut().filter(|run| run.is_live()).for_each(|run| run.want(TaskState::Shutdown));
        }
        slot.runs.push(run);
    }
    if active && progress.waiting.is_empty() && !progress.unsettled {
        finish(context, &settings, progress.last_reached);
    }
}

fn survey<K: Ord + Clone>(
    context: &mut Context<'_>,
    slots: &mut BTreeMap<K, Slot>,
    dirt: &Dirt<'_>,
    settings: &Settings,
    active: bool,
) -> Progress<K> {
    let mut progress =
        Progress { waiting: Vec::new(), busy: 0, begun: 0, failed: 0, failed_task: None, unsettled: false, last_reached: None };
    for (key, slot) in slots.iter_mut() {
        if slot.newest().is_none_or(|run| run.desired >= TaskState::Remove) {
            continue;
        }
        let begun = active && note_begun(context, slot, settings, &mut progress);
        let clean_lives = slot.live().any(|run| !dirt.is_dirty(&run.task));
        let needs_work = match slot.is_live() {
            true => slot.live().count() > 1 || slot.live().any(|run| dirt.is_dirty(&run.task)),
            false => slot.newest().is_some_and(|run| dirt.is_dirty(&run.task)),
        };
        if !needs_work {
            continue;
        }
        if clean_lives {
            drop_others(context, slot, dirt, settings.config.order);
            continue;
        }
        // What an earlier update began here is not wanted any more, and may stand where another slot's new task has to go.
        keep_best(slot);
        if !(begun && has_given_up(context, slot)) {
            progress.waiting.push(key.clone());
        }
    }
    progress
}

/// Takes a slot into account that this update has given a task. Returns whether it has.
fn note_begun<K>(context: &mut Context<'_>, slot: &Slot, settings: &Settings, progress: &mut Progress<K>) -> bool {
    let of_update = |run: &&Run| run.fresh || is_of_update(context.service, &run.task);
    // A slot without an older task was added by scaling.
    let replaced = slot.runs.iter().any(|run| !of_update(&run));
    if !replaced || !slot.runs.iter().any(|run| of_update(&run)) {
        return false;
    }
    progress.begun += 1;
    match slot.runs.iter().filter(of_update).filter_map(Run::reached_running).min() {
        None => {
            progress.busy += 1;
            progress.unsettled = true;
        }
        Some(reached) => {
            progress.last_reached = progress.last_reached.max(Some(reached));
            let free = context.time.due(reached, settings.config.delay);
            if context.now < free {
                progress.busy += 1;
                context.plan.wake(free);
            }
        }
    }
    if let Some(run) = slot.runs.iter().filter(of_update).find(|run| settings.is_failure(run)) {
        progress.failed += 1;
        progress.failed_task.get_or_insert_with(|| run.task.id.clone());
    }
    true
}

/// Start-first: the new task of a slot ended and may not be restarted. The slot stays with its old task.
fn has_given_up(context: &Context<'_>, slot: &Slot) -> bool {
    let version = context.service.spec_version;
    let newest = slot.runs.iter().rposition(|run| run.task.spec_version == version);
    newest.is_some_and(|index| slot.runs[index].observed().is_terminal() && !restart::is_allowed(context, slot, index))
}

/// Leaves one task in a slot that has a clean one; start-first waits until that one runs.
fn drop_others(context: &Context<'_>, slot: &mut Slot, dirt: &Dirt<'_>, order: UpdateOrder) {
    let is_old: Vec<bool> = slot.runs.iter().map(|run| dirt.is_dirty(&run.task) || context.outstays(run)).collect();
    let rank = |index: usize, run: &Run| (!is_old[index], run.observed() == TaskState::Running, run.observed().min(TaskState::Running));
    let Some(best) = (0..slot.runs.len()).filter(|index| slot.runs[*index].is_live()).max_by_key(|index| rank(*index, &slot.runs[*index]))
    else {
        return;
    };
    let runs = slot.runs[best].observed() == TaskState::Running;
    for (index, run) in slot.runs.iter_mut().enumerate() {
        if index != best && run.is_live() && (runs || order == UpdateOrder::StopFirst || !is_old[index]) {
            run.want(TaskState::Shutdown);
        }
    }
}

/// Of several old tasks that an earlier update left in a slot one goes on serving.
fn keep_best(slot: &mut Slot) {
    let rank = |run: &Run| (run.observed() == TaskState::Running, !run.observed().is_terminal(), run.observed());
    let best = (0..slot.runs.len()).filter(|index| slot.runs[*index].is_live()).max_by_key(|index| rank(&slot.runs[*index]));
    for (index, run) in slot.runs.iter_mut().enumerate() {
        if run.is_live() && Some(index) != best {
            run.want(TaskState::Shutdown);
        }
    }
}

fn is_over_ratio<K>(config: &UpdateConfig, progress: &Progress<K>) -> bool {
    let total = progress.begun + progress.waiting.len();
    config.failure_action != FailureAction::Continue && total > 0 && progress.failed as f32 / total as f32 > config.max_failure_ratio
}

/// Too many failed: pause, or go back to the spec before.
fn react(context: &mut Context<'_>, settings: &Settings, failed: &TaskId) {
    let cause = format!("due to failure or early termination of task {failed}");
    let to_roll_back = settings.config.failure_action == FailureAction::Rollback && !settings.rolling_back;
    match (settings.rolling_back, to_roll_back.then(|| rolled_back(context.service)).flatten()) {
        (true, _) => set_status(context, UpdateState::RollbackPaused, &format!("rollback paused {cause}"), false),
        (false, Some(mut service)) => {
            let message = format!("update rolled back {cause}");
            service.update_status = Some(UpdateStatus {
                state: UpdateState::RollbackStarted,
                started_at: Some(context.now),
                message,
                ..UpdateStatus::default()
            });
            context.plan.changes.push(Action::Update(Object::Service(Arc::new(service))));
        }
        (false, None) if to_roll_back => {
            set_status(context, UpdateState::Paused, &format!("update paused {cause}; there is no earlier spec to roll back to"), false);
        }
        (false, None) => set_status(context, UpdateState::Paused, &format!("update paused {cause}"), false),
    }
}

/// The service with the spec it had before; nothing to go back to after that.
fn rolled_back(service: &Service) -> Option<Service> {
    let mut restored = service.clone();
    restored.spec = restored.previous_spec.take()?;
    restored.spec_version = restored.previous_spec_version.take();
    Some(restored)
}

fn finish(context: &mut Context<'_>, settings: &Settings, last_reached: Option<Timestamp>) {
    let due = last_reached.map(|moment| context.time.due(moment, settings.quiet_time()));
    match due.filter(|due| context.now < *due) {
        Some(due) => context.plan.wake(due),
        None if settings.rolling_back => set_status(context, UpdateState::RollbackCompleted, "rollback completed", false),
        None => set_status(context, UpdateState::Completed, "update completed", false),
    }
}

fn set_status(context: &mut Context<'_>, state: UpdateState, message: &str, begins: bool) {
    let mut service = Service::clone(context.service);
    let before = service.update_status.take().unwrap_or_default();
    let done = matches!(state, UpdateState::Completed | UpdateState::RollbackCompleted);
    service.update_status = Some(UpdateStatus {
        state,
        started_at: if begins { Some(context.now) } else { before.started_at },
        completed_at: done.then_some(context.now),
        message: message.to_owned(),
        began: before.began,
    });
    context.plan.changes.push(Action::Update(Object::Service(Arc::new(service))));
}
