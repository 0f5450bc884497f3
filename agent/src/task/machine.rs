//! Decides what to do with a task next: an event in, actions out, no clock and no I/O.
//!
//! Observed states go forward only (wire-behaviour 10). One operation is under way at a time: while it is, wishes are
//! remembered and looked at when it ends.
//!
//! ```text
//! ASSIGNED ─► ACCEPTED ─► PREPARING ─► READY ─┬─(desired RUNNING)─► STARTING ─► RUNNING ─► COMPLETE | FAILED
//!                             │               └─(desired READY) waits            │
//!                             └─► REJECTED                            (stop) ─► SHUTDOWN
//! ```

use skep_types::{ContainerStatus, HealthConfig, TaskState};
use std::time::Duration;

/// After an operation that failed for a reason that may pass (`SK/agent/exec/controller.go`).
pub const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub exit_code: i32,
    /// Why, if more is known than the code says, such as the memory limit; for people.
    pub words: Option<String>,
}

/// What is there of a task when its agent starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    Nothing,
    /// No process, but remains that preparing replaces and releasing removes.
    Remains,
    /// Its process runs.
    Running {
        container: ContainerStatus,
        healthcheck: bool,
    },
    /// Its process ended while nobody looked.
    Ended(Outcome),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The manager's wish; lower wishes than the present one are ignored (wire-behaviour 9.4).
    Desired(TaskState),
    /// No assignment names the task any more: stop it and remove every trace.
    Unassigned,
    Prepared,
    Started {
        container: ContainerStatus,
        /// If there is a check, RUNNING waits for [`Event::Healthy`].
        health: Option<HealthConfig>,
    },
    /// [`Action::Start`] did nothing: another task has to be gone first. For people, which.
    Held {
        words: String,
    },
    /// It may be started now.
    Free,
    Healthy,
    Unhealthy(String),
    Ended(Outcome),
    /// [`Action::Stop`] is done: no process, no network.
    Stopped(Option<Outcome>),
    /// [`Action::Release`] is done.
    Released,
    /// The operation under way failed. Temporary: it is tried again.
    OperationFailed {
        temporary: bool,
        words: String,
    },
    RetryDue,
    /// No manager can be reached, and by its policy the task that ended by itself is to run again. For [`Machine::can_restart`].
    Restart,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Tell the manager and the disk.
    Report { state: TaskState, message: &'static str, err: String },
    /// Pull, create; answer with `Prepared`.
    Prepare,
    /// Give up what `Prepare` waits for; it will answer soon.
    Cancel,
    /// Start; answer with `Started`, or with `Held`.
    Start,
    /// Until nobody holds the task any more; answer with `Free`. Given up without a word when something else is to be done.
    Wait,
    /// The process runs: watch its health and its end.
    Watch,
    /// The task answers: let traffic come.
    Serve,
    /// No more traffic, signal, grace, kill; release all; answer with `Stopped`.
    Stop,
    /// Remove what a process that ended left; answer with `Released`.
    Release,
    /// Come back with `RetryDue` after this time.
    RetryAfter(Duration),
    /// Remove logs and records; the machine is at its end.
    Forget,
}

/// The operation under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    Preparing {
        cancelled: bool,
    },
    Starting,
    /// Held: it is started when another task is gone.
    Waiting,
    Stopping,
    Releasing,
    /// Waits before it tries again.
    Retrying,
    Gone,
}

/// The state of one task.
#[derive(Debug, Clone)]
pub struct Machine {
    state: TaskState,
    desired: TaskState,
    unassigned: bool,
    doing: Doing,
    container: Option<ContainerStatus>,
    /// A process was started and its end is not known.
    alive: bool,
    /// Everything but logs and records is gone.
    released: bool,
    /// Why the task is being stopped although nobody wishes it: its health check.
    failing: Option<String>,
    /// It is being started again while its state stays RUNNING.
    restarting: bool,
}

impl Machine {
    /// A task that has `state` and of which `recovered` is there; the first actions to take.
    #[must_use]
    pub fn new(state: TaskState, desired: TaskState, recovered: Recovered) -> (Self, Vec<Action>) {
        let mut machine = Self {
            state,
            desired,
            unassigned: false,
            doing: Doing::Nothing,
            container: None,
            alive: false,
            released: state.is_terminal() && recovered == Recovered::Nothing,
            failing: None,
            restarting: false,
        };
        let mut actions = Vec::new();
        machine.resume(recovered, &mut actions);
        machine.proceed(&mut actions);
        (machine, actions)
    }

    #[must_use]
    pub fn state(&self) -> TaskState {
        self.state
    }

    #[must_use]
    pub fn desired(&self) -> TaskState {
        self.desired
    }

    /// Whether it ended by itself, nothing is left of it, and nobody wants it gone.
    #[must_use]
    pub fn can_restart(&self) -> bool {
        matches!(self.state, TaskState::Failed | TaskState::Complete)
            && self.doing == Doing::Nothing
            && self.released
            && !self.unassigned
            && self.desired < TaskState::Shutdown
    }

    /// Its container, as far as known; kept after its end.
    #[must_use]
    pub fn container(&self) -> Option<&ContainerStatus> {
        self.container.as_ref()
    }

    fn resume(&mut self, recovered: Recovered, actions: &mut Vec<Action>) {
        match recovered {
            Recovered::Running { container, healthcheck } if (TaskState::Starting..=TaskState::Running).contains(&self.state) => {
                if self.state == TaskState::Running {
                    self.container = Some(container);
                    self.alive = true;
                    // One that is being stopped may have got the signal already.
                    actions.extend((!self.must_stop()).then_some(Action::Serve));
                    actions.push(Action::Watch);
                } else {
                    self.started(container, healthcheck, actions);
                }
            }
            Recovered::Ended(outcome) if (TaskState::Starting..=TaskState::Running).contains(&self.state) => self.ended(outcome, actions),
            // Started by a process that died before it could write so down, or the end of it: stop it and begin again.
            Recovered::Running { .. } | Recovered::Ended(_) | Recovered::Remains | Recovered::Nothing => match self.state {
                // It was being stopped when the agent died.
                TaskState::Running if self.must_stop() => self.advance(TaskState::Shutdown, "shutdown", String::new(), actions),
                TaskState::Running => {
                    let err = "the task's process was gone when the agent came back; was the machine restarted?".to_owned();
                    self.advance(TaskState::Failed, "failed", err, actions);
                }
                // What READY and STARTING promise is made anew; the observed state does not go back.
                TaskState::Ready | TaskState::Starting => {
                    self.doing = Doing::Preparing { cancelled: false };
                    actions.push(Action::Prepare);
                }
                _ => {}
            },
        }
    }

    /// Takes one event in; the actions are to be carried out in their order.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Desired(desired) => self.desired = self.desired.max(desired),
            Event::Unassigned => self.unassigned = true,
            Event::Prepared => self.prepared(&mut actions),
            Event::Started { container, health } if self.doing == Doing::Starting => {
                self.doing = Doing::Nothing;
                self.started(container, health.is_some(), &mut actions);
            }
            Event::Held { words } if self.doing == Doing::Starting => {
                self.doing = Doing::Waiting;
                actions.push(Action::Report { state: self.state, message: "waiting to be started", err: words });
                actions.push(Action::Wait);
            }
            Event::Free if self.doing == Doing::Waiting => {
                self.doing = Doing::Starting;
                actions.push(Action::Start);
            }
            Event::Healthy if self.state == TaskState::Starting && self.alive => self.running(&mut actions),
            Event::Unhealthy(words) if self.alive && self.failing.is_none() => self.failing = Some(words),
            // While it is being stopped, the end is what we wait for; `Stopped` tells.
            Event::Ended(outcome) if self.alive && self.doing != Doing::Stopping => self.ended(outcome, &mut actions),
            Event::Stopped(outcome) => self.stopped(outcome, &mut actions),
            Event::Released => {
                self.released = true;
                self.doing = Doing::Nothing;
            }
            Event::OperationFailed { temporary, words } => self.operation_failed(temporary, words, &mut actions),
            Event::RetryDue if self.doing == Doing::Retrying => self.doing = Doing::Nothing,
            Event::Restart if self.can_restart() => self.restart(&mut actions),
            Event::Started { .. } | Event::Held { .. } | Event::Free | Event::Healthy | Event::Unhealthy(_) => {}
            Event::Ended(_) | Event::RetryDue | Event::Restart => {}
        }
        self.proceed(&mut actions);
        actions
    }

    /// The one way back: no manager has heard of the end, so for them the task is RUNNING all the time.
    fn restart(&mut self, actions: &mut Vec<Action>) {
        self.state = TaskState::Running;
        (self.restarting, self.released, self.failing) = (true, false, None);
        self.doing = Doing::Preparing { cancelled: false };
        actions.push(Action::Report { state: self.state, message: "starting again", err: String::new() });
        actions.push(Action::Prepare);
    }

    fn prepared(&mut self, actions: &mut Vec<Action>) {
        self.doing = Doing::Nothing;
        if self.state < TaskState::Ready {
            self.advance(TaskState::Ready, "prepared", String::new(), actions);
        } else if (self.state == TaskState::Starting || self.restarting) && !self.must_stop() {
            self.doing = Doing::Starting;
            actions.push(Action::Start);
        }
    }

    fn started(&mut self, container: ContainerStatus, healthcheck: bool, actions: &mut Vec<Action>) {
        self.container = Some(container);
        self.alive = true;
        let again = std::mem::take(&mut self.restarting);
        if healthcheck && !again {
            // The same state with new details: container id and pid.
            self.advance(TaskState::Starting, "waiting to become healthy", String::new(), actions);
        } else {
            self.running(actions);
        }
        actions.push(Action::Watch);
    }

    fn running(&mut self, actions: &mut Vec<Action>) {
        // In this order: who reads RUNNING may connect.
        actions.push(Action::Serve);
        self.advance(TaskState::Running, "started", String::new(), actions);
    }

    fn ended(&mut self, outcome: Outcome, actions: &mut Vec<Action>) {
        self.alive = false;
        self.note_exit(&outcome);
        if self.must_stop() && self.failing.is_none() {
            // It ended between two attempts to stop it.
            self.advance(TaskState::Shutdown, "shutdown", String::new(), actions);
            return;
        }
        let words = outcome.words.or_else(|| self.failing.take());
        match (outcome.exit_code, words) {
            (0, None) => self.advance(TaskState::Complete, "finished", String::new(), actions),
            (code, None) => self.advance(TaskState::Failed, "failed", format!("task: non-zero exit ({code})"), actions),
            (code, Some(words)) => self.advance(TaskState::Failed, "failed", format!("{words} (exit code {code})"), actions),
        }
    }

    fn stopped(&mut self, outcome: Option<Outcome>, actions: &mut Vec<Action>) {
        self.doing = Doing::Nothing;
        (self.alive, self.restarting) = (false, false);
        self.released = true;
        if let Some(outcome) = &outcome {
            self.note_exit(outcome);
        }
        if self.state.is_terminal() {
            return;
        }
        match self.failing.take() {
            Some(words) => self.advance(TaskState::Failed, "failed", words, actions),
            None => self.advance(TaskState::Shutdown, "shutdown", String::new(), actions),
        }
    }

    fn note_exit(&mut self, outcome: &Outcome) {
        if let Some(container) = &mut self.container {
            container.exit_code = outcome.exit_code;
        }
    }

    fn operation_failed(&mut self, temporary: bool, words: String, actions: &mut Vec<Action>) {
        let failed = std::mem::replace(&mut self.doing, Doing::Nothing);
        if matches!(failed, Doing::Preparing { cancelled: true }) {
            return; // it failed because we asked it to
        }
        // Stopping and releasing have no way out but success.
        if temporary || matches!(failed, Doing::Stopping | Doing::Releasing) {
            self.doing = Doing::Retrying;
            if !self.state.is_terminal() {
                actions.push(Action::Report { state: self.state, message: "will be tried again", err: words });
            }
            actions.push(Action::RetryAfter(RETRY_DELAY));
            return;
        }
        self.restarting = false;
        let state = if self.state < TaskState::Starting { TaskState::Rejected } else { TaskState::Failed };
        self.advance(state, if state == TaskState::Rejected { "rejected" } else { "failed" }, words, actions);
    }

    fn advance(&mut self, state: TaskState, message: &'static str, err: String, actions: &mut Vec<Action>) {
        debug_assert!(state >= self.state, "observed states go forward");
        self.state = state;
        actions.push(Action::Report { state, message, err });
    }

    fn must_stop(&self) -> bool {
        self.unassigned || self.desired >= TaskState::Shutdown || self.failing.is_some()
    }

    /// Begins the next operation when none is under way.
    fn proceed(&mut self, actions: &mut Vec<Action>) {
        loop {
            match self.doing {
                Doing::Nothing => {}
                Doing::Preparing { cancelled: false } if self.must_stop() => {
                    self.doing = Doing::Preparing { cancelled: true };
                    actions.push(Action::Cancel);
                    return;
                }
                Doing::Waiting if self.must_stop() => self.doing = Doing::Nothing,
                // A wish to stop need not wait for the next attempt.
                Doing::Retrying if self.must_stop() && (self.state < TaskState::Starting || self.restarting) && !self.alive => {
                    self.doing = Doing::Nothing;
                }
                _ => return,
            }
            if self.state.is_terminal() {
                if !self.released {
                    self.doing = Doing::Releasing;
                    actions.push(Action::Release);
                } else if self.unassigned {
                    self.doing = Doing::Gone;
                    actions.push(Action::Forget);
                }
                return;
            }
            if self.must_stop() {
                self.doing = Doing::Stopping;
                actions.push(Action::Stop);
                return;
            }
            match self.state {
                TaskState::New | TaskState::Pending | TaskState::Assigned if self.state < self.desired => {
                    self.advance(TaskState::Accepted, "accepted", String::new(), actions);
                }
                TaskState::Accepted if self.state < self.desired => {
                    self.advance(TaskState::Preparing, "preparing", String::new(), actions);
                }
                // This one may pass the desired state.
                TaskState::Preparing => {
                    self.doing = Doing::Preparing { cancelled: false };
                    actions.push(Action::Prepare);
                    return;
                }
                TaskState::Ready if self.state < self.desired => {
                    self.advance(TaskState::Starting, "starting", String::new(), actions);
                    self.doing = Doing::Starting;
                    actions.push(Action::Start);
                    return;
                }
                TaskState::Starting | TaskState::Running if !self.alive && (self.state == TaskState::Starting || self.restarting) => {
                    // After a temporary failure; what is there is not known, so all is made anew.
                    self.doing = Doing::Preparing { cancelled: false };
                    actions.push(Action::Prepare);
                    return;
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
