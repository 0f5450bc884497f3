//! Whether and when a task that ended is started again by its own node because no manager can be reached. Pure.
//!
//! It follows the task's restart policy as a manager would, with one difference: the task is not replaced but runs again under
//! its own id, and for managers it never stopped RUNNING. Attempts that a manager made before in the same slot are not known here.

use serde::{Deserialize, Serialize};
use skep_types::{RestartCondition, RestartPolicy, Task, TaskState, TaskStatus, Timestamp};
use std::time::Duration;

/// Delay of a policy that does not say (wire-behaviour 11.3).
const DEFAULT_DELAY: Duration = Duration::from_secs(5);
/// After so many restarts within [`BRAKE_WINDOW`] a policy without delay does not spin.
const BRAKE_AFTER: usize = 3;
const BRAKE_WINDOW: Duration = Duration::from_secs(30);
const BRAKE: Duration = Duration::from_secs(2);
/// Times kept at most; a policy that allows more within its window is held to this many.
const KEPT_TIMES: usize = 256;

/// What this node did for a task on its own; part of its record, so that no attempt is forgotten over a restart of skepd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Alone {
    /// How often it was started again.
    pub restarts: u64,
    /// When, the newest last.
    times: Vec<Timestamp>,
    /// It ended by itself after it had run, and no manager has acknowledged that yet.
    pub unheard: bool,
}

impl Alone {
    /// Counts one more attempt.
    pub fn note(&mut self, now: Timestamp) {
        self.restarts += 1;
        if self.times.len() == KEPT_TIMES {
            self.times.remove(0);
        }
        self.times.push(now);
    }

    /// What people read behind a task's message; empty if there is nothing to say.
    #[must_use]
    pub fn words(&self) -> String {
        match self.restarts {
            0 => String::new(),
            1 => "; restarted once on this node while no manager could be reached".into(),
            times => format!("; restarted {times} times on this node while no manager could be reached"),
        }
    }

    fn since(&self, time: Timestamp) -> usize {
        self.times.iter().filter(|at| **at > time).count()
    }
}

/// How long after its end the task is to be started again; `None`: it stays as it is.
#[must_use]
pub fn restart_after(task: &Task, status: &TaskStatus, alone: &Alone) -> Option<Duration> {
    if !alone.unheard || task.desired_state != TaskState::Running || task.job_iteration.is_some() {
        return None;
    }
    let policy = task.spec.restart.clone().unwrap_or(RestartPolicy { condition: RestartCondition::Any, ..RestartPolicy::default() });
    match (policy.condition, status.state) {
        (RestartCondition::Any, TaskState::Complete | TaskState::Failed) | (RestartCondition::OnFailure, TaskState::Failed) => {}
        _ => return None,
    }
    let attempts = match policy.window.filter(|window| !window.is_zero()) {
        Some(window) => alone.since(status.timestamp - window) as u64,
        None => alone.restarts,
    };
    if policy.max_attempts > 0 && attempts >= policy.max_attempts {
        return None;
    }
    let brake = if alone.since(status.timestamp - BRAKE_WINDOW) >= BRAKE_AFTER { BRAKE } else { Duration::ZERO };
    Some(policy.delay.unwrap_or(DEFAULT_DELAY).max(brake))
}

/// How long to wait from `now`. A clock that jumped makes nobody wait longer than the delay.
#[must_use]
pub fn wait(after: Duration, ended: Timestamp, now: Timestamp) -> Duration {
    after.saturating_sub(now.since(ended))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::task;
    use std::sync::Arc;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_secs(seconds)
    }

    fn with(policy: Option<RestartPolicy>) -> Task {
        let mut task = task(1, "busybox");
        Arc::make_mut(&mut task.spec).restart = policy;
        task
    }

    fn policy(condition: RestartCondition, max_attempts: u64, window: Option<Duration>) -> Task {
        with(Some(RestartPolicy { condition, delay: Some(SECOND), max_attempts, window }))
    }

    fn ended(state: TaskState, seconds: i64) -> TaskStatus {
        TaskStatus { state, timestamp: at(seconds), ..TaskStatus::default() }
    }

    fn unheard() -> Alone {
        Alone { unheard: true, ..Alone::default() }
    }

    #[test]
    fn the_policy_s_condition_and_delay_decide() {
        let failed = ended(TaskState::Failed, 0);
        let complete = ended(TaskState::Complete, 0);
        let any = policy(RestartCondition::Any, 0, None);
        assert_eq!(restart_after(&any, &failed, &unheard()), Some(SECOND));
        assert_eq!(restart_after(&any, &complete, &unheard()), Some(SECOND));
        let on_failure = policy(RestartCondition::OnFailure, 0, None);
        assert_eq!(restart_after(&on_failure, &failed, &unheard()), Some(SECOND));
        assert_eq!(restart_after(&on_failure, &complete, &unheard()), None);
        assert_eq!(restart_after(&policy(RestartCondition::Never, 0, None), &failed, &unheard()), None);
        assert_eq!(restart_after(&with(None), &failed, &unheard()), Some(5 * SECOND), "no policy is any after 5 s");
        assert_eq!(restart_after(&with(Some(RestartPolicy::default())), &failed, &unheard()), None, "an empty one is never");
    }

    #[test]
    fn jobs_and_tasks_that_are_to_stop_or_that_a_manager_knows_of_stay_as_they_are() {
        let failed = ended(TaskState::Failed, 0);
        let any = policy(RestartCondition::Any, 0, None);
        assert_eq!(restart_after(&any, &failed, &Alone::default()), None, "a manager was told");
        for state in [TaskState::Shutdown, TaskState::Rejected, TaskState::Running] {
            assert_eq!(restart_after(&any, &ended(state, 0), &unheard()), None);
        }
        let stopping = Task { desired_state: TaskState::Shutdown, ..any.clone() };
        assert_eq!(restart_after(&stopping, &failed, &unheard()), None);
        let job = Task { desired_state: TaskState::Complete, ..any };
        assert_eq!(restart_after(&job, &failed, &unheard()), None);
    }

    #[test]
    fn attempts_are_counted_in_the_window_or_altogether() {
        let mut alone = unheard();
        alone.note(at(10));
        alone.note(at(100));
        let failed = ended(TaskState::Failed, 110);
        assert_eq!(restart_after(&policy(RestartCondition::Any, 2, None), &failed, &alone), None);
        assert!(restart_after(&policy(RestartCondition::Any, 3, None), &failed, &alone).is_some());
        assert!(restart_after(&policy(RestartCondition::Any, 2, Some(60 * SECOND)), &failed, &alone).is_some());
        assert_eq!(restart_after(&policy(RestartCondition::Any, 1, Some(60 * SECOND)), &failed, &alone), None);
    }

    #[test]
    fn a_task_that_fails_at_once_does_not_spin() {
        let task = with(Some(RestartPolicy { condition: RestartCondition::Any, delay: Some(Duration::ZERO), ..RestartPolicy::default() }));
        let mut alone = unheard();
        for number in 0..3 {
            assert_eq!(restart_after(&task, &ended(TaskState::Failed, number), &alone), Some(Duration::ZERO));
            alone.note(at(number));
        }
        assert_eq!(restart_after(&task, &ended(TaskState::Failed, 3), &alone), Some(BRAKE));
        assert_eq!(restart_after(&task, &ended(TaskState::Failed, 60), &alone), Some(Duration::ZERO));
        (0..1_000).for_each(|number| alone.note(at(number)));
        assert_eq!((alone.restarts, alone.times.len()), (1_003, KEPT_TIMES));
    }

    #[test]
    fn a_clock_that_jumps_back_makes_nobody_wait_for_ever() {
        assert_eq!(wait(5 * SECOND, at(100), at(102)), 3 * SECOND);
        assert_eq!(wait(5 * SECOND, at(100), at(200)), Duration::ZERO);
        assert_eq!(wait(5 * SECOND, at(100), at(10)), 5 * SECOND);
    }
}
