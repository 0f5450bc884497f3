//! When a task that ended is replaced: condition, delay, attempts, window (wire-behaviour 11.3).
//!
//! Nothing is remembered between calls. Attempts are counted in the slot's stored tasks (the reaper keeps
//! `max_attempts + 1` of them), the delay runs from the creation of the replacement, which waits with desired state READY.

use crate::slot::{Context, Host, Run, Slot};
use skep_types::{NodeId, RestartCondition, RestartPolicy, TaskSpec, TaskState, Timestamp};
use std::time::Duration;

/// Delay of a policy that does not say.
pub const DEFAULT_DELAY: Duration = Duration::from_secs(5);

/// The new task starts after this time even if the old one still has not stopped.
pub const MAX_STOP_WAIT: Duration = Duration::from_secs(60);

/// A task that ran for less counts as one that could not start.
const FLASH: Duration = Duration::from_millis(50);

/// Only starts this recent count for the brake.
const BRAKE_WINDOW: Duration = Duration::from_secs(30);

/// The policy of a task; an absent one restarts always.
pub(crate) fn policy(spec: &TaskSpec) -> RestartPolicy {
    spec.restart.clone().unwrap_or(RestartPolicy { condition: RestartCondition::Any, ..RestartPolicy::default() })
}

/// Whether the policy lets `slot.runs[index]` be replaced.
pub(crate) fn is_allowed(context: &Context<'_>, slot: &Slot, index: usize) -> bool {
    let run = &slot.runs[index];
    let policy = policy(&run.task.spec);
    let is_job = run.task.job_iteration.is_some();
    match policy.condition {
        RestartCondition::Never => return false,
        RestartCondition::OnFailure if run.observed() == TaskState::Complete => return false,
        RestartCondition::Any if is_job && run.observed() == TaskState::Complete => return false,
        RestartCondition::OnFailure | RestartCondition::Any => {}
    }
    // Counters start again with a new spec version, and the replacement will be of the new one.
    if policy.max_attempts == 0 || (run.task.spec_version != context.service.spec_version && !is_job) {
        return true;
    }
    restarts(&slot.runs[..=index], policy.window) < policy.max_attempts
}

/// Whether a place without a task to wait for gets one: it has had none, or its last one was asked to stop; or that failed while nothing
/// new was begun there, and may be tried again.
pub(crate) fn may_begin(context: &Context<'_>, slot: &Slot) -> bool {
    let newest = slot.runs.len().checked_sub(1);
    newest.is_none_or(|newest| !slot.runs[newest].ended_by_itself() || is_allowed(context, slot, newest))
}

/// How many of the tasks up to the last one replaced one that had ended by itself, within `window` before the last one's end.
fn restarts(runs: &[Run], window: Option<Duration>) -> u64 {
    let Some(last) = runs.last() else { return 0 };
    let same_spec = |run: &&Run| run.task.spec_version == last.task.spec_version && run.task.job_iteration == last.task.job_iteration;
    let streak = runs.iter().rev().take_while(same_spec).count();
    let since = window.filter(|window| !window.is_zero()).map(|window| last.reported() - window);
    let counts = |pair: &&[Run]| pair[0].ended_by_itself() && since.is_none_or(|since| pair[1].created > since);
    runs[runs.len() - streak..].windows(2).filter(counts).count() as u64
}

/// How long `slot.runs[index]`, made with desired state READY, waits before it may run.
fn delay(context: &Context<'_>, slot: &Slot, index: usize) -> Duration {
    let run = &slot.runs[index];
    let Some(before) = replaced(&slot.runs, index) else { return Duration::ZERO };
    if before.task.spec != run.task.spec {
        return Duration::ZERO; // an update, not a restart
    }
    let by_policy = policy(&run.task.spec).delay.unwrap_or(DEFAULT_DELAY);
    let wanted = match before.observed() {
        TaskState::Complete | TaskState::Failed | TaskState::Rejected | TaskState::Orphaned => by_policy,
        // Stopped on request. A drained node's tasks move at once, a lost node's do not.
        _ if context.host(before.task.node_id.as_ref()).is_silent() => by_policy,
        _ => Duration::ZERO,
    };
    wanted.max(brake(context, older(&slot.runs, index), run.created))
}

/// Those of a slot that were there when `runs[index]` was made. One write may make two for a slot, one of which an update starts first:
/// neither came before the other.
fn older(runs: &[Run], index: usize) -> &[Run] {
    let run = &runs[index];
    let came_before = |other: &Run| !other.fresh && (run.fresh || run.made.is_zero() || other.made < run.made);
    let count = runs[..index].iter().take_while(|other| came_before(other)).count();
    &runs[..count]
}

/// What `runs[index]` was made to replace: the newest of those before it that is not wanted any more.
///
/// Where new tasks start first, one of another spec may have stood beside it and ended since: that one it does not replace. Who is
/// told to stop in favour of another does not end by itself, or did so before.
pub(crate) fn replaced(runs: &[Run], index: usize) -> Option<&Run> {
    let run = &runs[index];
    let stood_beside = |other: &Run| {
        let ended_since = !run.fresh && !run.made.is_zero() && other.task.meta.version > run.made;
        other.task.spec != run.task.spec && other.ended_by_itself() && ended_since
    };
    let gone = || older(runs, index).iter().filter(|other| !other.is_live() && !stood_beside(other));
    let last = gone().next_back()?;
    // Of two that one write made, it is the one that ended by itself.
    gone().rfind(|other| other.made == last.made && other.ended_by_itself()).or(Some(last))
}

/// A delay of zero must not let a task that cannot start spin: after three attempts in a row without any run worth the name, the next
/// ones come more slowly.
fn brake(context: &Context<'_>, before: &[Run], created: Timestamp) -> Duration {
    let flashed = |run: &&Run| {
        run.ended_by_itself()
            && run.created + BRAKE_WINDOW > created
            && run.task.status.running_since.is_none_or(|since| run.reported().since(since) < FLASH)
    };
    let in_a_row = before.iter().rev().take_while(flashed).count();
    // Where no history is kept, what came before the last task cannot be seen.
    let unseen = if (0..4).contains(&context.retention) && in_a_row > 0 { 2 } else { 0 };
    match in_a_row + unseen {
        0..=2 => Duration::ZERO,
        3 => Duration::from_millis(500),
        4 => Duration::from_secs(1),
        _ => Duration::from_secs(2),
    }
}

/// Replaces the tasks of a slot that ended or whose node is lost. `home` = the node that a replacement is bound to.
pub(crate) fn replace_ended(
    context: &mut Context<'_>,
    slot: &mut Slot,
    number: u64,
    home: Option<&NodeId>,
    is_dirty: &dyn Fn(&Run) -> bool,
) {
    for index in 0..slot.runs.len() {
        let run = &slot.runs[index];
        if run.fresh || !run.is_live() || has_served(run) {
            continue;
        }
        let host = context.host(run.task.node_id.as_ref());
        let ended = run.observed().is_terminal();
        if !ended && !host.gives_up_tasks() {
            continue;
        }
        if run.desired == TaskState::Ready && ended {
            // It failed before its own delay was over: that delay still holds.
            let due = run.due(context.time, delay(context, slot, index));
            if context.now < due {
                context.plan.wake(due);
                continue;
            }
        }
        let allowed = is_allowed(context, slot, index);
        if allowed && context.outstays(run) {
            replace_beside(context, slot, index, number, is_dirty);
            continue;
        }
        slot.runs[index].want(TaskState::Shutdown);
        let covered = slot.live().any(|other| !is_dirty(other) && !context.outstays(other));
        let stays_empty = home.is_some() && host != Host::Fine; // a global service leaves a node that takes no new tasks
        if allowed && !covered && !stays_empty {
            match context.create(number, home.cloned(), TaskState::Ready) {
                Some(replacement) => slot.runs.push(replacement),
                // Not now: leave the old one as it is, so that the next plan finds it again.
                None => slot.runs[index].desired = slot.runs[index].task.desired_state,
            }
        }
    }
}

/// Sees to another task beside one that goes when that one serves. If none can, because its attempts are used up, the slot stays with
/// what it has.
fn replace_beside(context: &mut Context<'_>, slot: &mut Slot, index: usize, number: u64, is_dirty: &dyn Fn(&Run) -> bool) {
    let others: Vec<TaskState> = slot.live().filter(|other| !is_dirty(other) && !context.outstays(other)).map(Run::observed).collect();
    if !others.is_empty() {
        if others.contains(&TaskState::Running) {
            slot.runs[index].want(TaskState::Shutdown);
        }
        return;
    }
    let newest = slot.runs.len() - 1;
    // After one that failed beside it the next one waits, as after any other.
    let first = if newest == index { TaskState::Running } else { TaskState::Ready };
    if (newest == index || is_allowed(context, slot, newest))
        && let Some(replacement) = context.create(number, None, first)
    {
        slot.runs.push(replacement);
    }
}

/// A job's task that completed has done what was wanted of it.
fn has_served(run: &Run) -> bool {
    run.task.job_iteration.is_some() && run.observed() == TaskState::Complete
}

/// Lets tasks that wait with desired state READY run once their delay is over and those before them have stopped.
///
/// A task on another node is waited for as long as [`MAX_STOP_WAIT`], one on a lost node not at all. On one node two of a slot never run:
/// after that time the slot's new task is made once more, for a node where nothing stops; the task of a global service (`home`) waits on.
pub(crate) fn release_waiting(context: &mut Context<'_>, slot: &mut Slot, number: u64, home: Option<&NodeId>) {
    for index in 0..slot.runs.len() {
        let run = &slot.runs[index];
        if run.desired != TaskState::Ready || run.observed().is_terminal() {
            continue;
        }
        let due = run.due(context.time, delay(context, slot, index));
        if context.now < due {
            context.plan.wake(due);
            continue;
        }
        let patience = run.due(context.time, MAX_STOP_WAIT);
        let hold = slot.runs.iter().filter_map(|other| hold(context, run, other)).max();
        if hold.is_some() && context.now < patience {
            context.plan.wake(patience);
            continue;
        }
        let goal = if run.task.job_iteration.is_some() { TaskState::Complete } else { TaskState::Running };
        if hold != Some(Hold::Here) {
            slot.runs[index].want(goal);
        } else if home.is_none()
            && let Some(elsewhere) = context.create(number, None, goal)
        {
            slot.runs[index].want(TaskState::Shutdown);
            slot.runs.push(elsewhere);
        }
    }
}

/// What a waiting task waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hold {
    /// A task of its slot stops on another node.
    Elsewhere,
    /// One may still run on its own node. Nothing is heard of a lost node, but when it comes back it has both.
    Here,
}

/// `other` was told to stop, had a node, and has not said that it stopped.
fn hold(context: &Context<'_>, waiting: &Run, other: &Run) -> Option<Hold> {
    let stops = other.desired >= TaskState::Shutdown && (TaskState::Assigned..=TaskState::Running).contains(&other.observed());
    let node = other.task.node_id.as_ref().filter(|_| stops)?;
    if waiting.task.node_id.as_ref() == Some(node) {
        return Some(Hold::Here);
    }
    (!context.host(Some(node)).is_silent()).then_some(Hold::Elsewhere)
}
