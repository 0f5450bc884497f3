//! Carries out what the machine of one task decides: one async task per task, fed by messages.

use super::isolated::{self, Alone};
use super::machine::{Action, Event, Machine, Recovered};
use super::slots::{self, Slots};
use crate::board::Board;
use crate::error::ExecError;
use crate::executor::{Executor, Found, Network, Started};
use crate::health::{self, HealthCheck};
use crate::payloads::Payloads;
use crate::reach::Reach;
use crate::records::{Record, Records};
use crate::reports::Reports;
use skep_failpoint::failpoint;
use skep_types::{HealthConfig, PortConfig, Task, TaskState, TaskStatus, Timestamp};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long traffic may take to be let in; after it the task counts as running anyhow and the network repairs itself.
const SERVE_LIMIT: Duration = Duration::from_secs(5);
/// Commands wait here while the task is busy with one; the sender waits when it is full.
pub(crate) const COMMANDS: usize = 16;

/// What all tasks of a node share.
pub(crate) struct Context {
    pub executor: Arc<dyn Executor>,
    pub network: Arc<dyn Network>,
    pub payloads: Payloads,
    pub records: Records,
    pub reports: Reports,
    pub reach: Reach,
    /// For those who look and listen.
    pub board: Board,
    /// The worker writes what is wanted, the drivers what runs.
    pub slots: watch::Sender<Slots>,
}

/// What the worker says to a task.
#[derive(Debug)]
pub(crate) enum Command {
    Update(Box<Task>),
    Unassign,
}

/// The clock of this node.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

struct Driver {
    context: Arc<Context>,
    task: Arc<Task>,
    status: TaskStatus,
    /// What was done without a manager.
    alone: Alone,
    unassigned: bool,
    machine: Machine,
    health: Option<HealthConfig>,
    ports: Vec<PortConfig>,
    /// Operations under way; dropped with the driver.
    work: JoinSet<()>,
    events: mpsc::Sender<Event>,
    cancel: CancellationToken,
    /// Ends the watching of health.
    watching: CancellationToken,
}

/// Drives one task until it is forgotten. Cancelling `stop` leaves the task as it is: the next agent goes on from there.
pub(crate) async fn drive(
    context: Arc<Context>,
    record: Record,
    found: Option<Found>,
    mut commands: mpsc::Receiver<Command>,
    stop: CancellationToken,
) {
    let Record { task, status, alone, unassigned } = record;
    let (recovered, health) = recovered(found);
    // Sized for every operation and watcher of one task to report at once.
    let (events, mut inbox) = mpsc::channel(8);
    // One that was being removed is not served again on the way.
    let desired = if unassigned { task.desired_state.max(TaskState::Shutdown) } else { task.desired_state };
    let (machine, actions) = Machine::new(status.state, desired, recovered);
    let mut driver = Driver {
        context,
        task: Arc::new(task),
        status,
        alone,
        unassigned,
        machine,
        health,
        ports: Vec::new(),
        work: JoinSet::new(),
        events,
        cancel: CancellationToken::new(),
        watching: CancellationToken::new(),
    };
    driver.save();
    let mut gone = driver.carry_out(actions).await;
    if unassigned {
        let actions = driver.machine.step(Event::Unassigned);
        gone = driver.carry_out(actions).await;
    }
    while !gone {
        let (shared, id, restart) = (Arc::clone(&driver.context), driver.task.id.clone(), driver.restart_after());
        let event = tokio::select! {
            () = stop.cancelled() => return,
            Some(event) = inbox.recv() => event,
            () = shared.reports.heard(&id), if driver.alone.unheard => {
                driver.alone.unheard = false;
                driver.save();
                continue;
            }
            () = alone_for(&shared.reach, restart.unwrap_or_default()), if restart.is_some() => {
                failpoint!("agent.isolated.restart");
                driver.alone.note(now());
                Event::Restart
            }
            Some(_) = driver.work.join_next(), if !driver.work.is_empty() => continue,
            command = commands.recv() => match command {
                Some(Command::Update(task)) => match driver.update(*task) {
                    Some(event) => event,
                    None => continue,
                },
                Some(Command::Unassign) => {
                    driver.unassigned = true;
                    driver.save();
                    Event::Unassigned
                }
                None => return,
            },
        };
        if let Event::Started { health, .. } = &event {
            driver.health.clone_from(health);
        }
        if matches!(event, Event::Prepared | Event::Ended(_) | Event::Stopped(_) | Event::Released) {
            driver.context.slots.send_if_modified(|slots| slots.ended(&driver.task.id));
        }
        driver.context.board.saw(&driver.task, &event);
        let actions = driver.machine.step(event);
        gone = driver.carry_out(actions).await;
    }
}

fn recovered(found: Option<Found>) -> (Recovered, Option<HealthConfig>) {
    match found {
        None | Some(Found::Logs) => (Recovered::Nothing, None),
        Some(Found::Remains) => (Recovered::Remains, None),
        Some(Found::Ended(outcome)) => (Recovered::Ended(outcome), None),
        Some(Found::Running(Started { container, health })) => (Recovered::Running { container, healthcheck: health.is_some() }, health),
    }
}

/// Returns when this node is cut off and `wait` is over.
async fn alone_for(reach: &Reach, wait: Duration) {
    tokio::join!(tokio::time::sleep(wait), reach.cut_off());
}

impl Driver {
    /// How long from now until the task is to be started again, if no manager can be reached.
    fn restart_after(&self) -> Option<Duration> {
        let after = isolated::restart_after(&self.task, &self.status, &self.alone).filter(|_| self.machine.can_restart())?;
        Some(isolated::wait(after, self.status.timestamp, now()))
    }

    /// Takes a newer edition of the task in; `None` if it says nothing new (wire-behaviour 9.4).
    fn update(&mut self, mut task: Task) -> Option<Event> {
        if task.desired_state < self.machine.desired() {
            return None;
        }
        task.status = self.task.status.clone();
        task.meta = self.task.meta;
        if task == *self.task {
            return None;
        }
        let desired = task.desired_state;
        self.task = Arc::new(task);
        self.save();
        Some(Event::Desired(desired))
    }

    /// Does the actions in order; true when the task is forgotten.
    async fn carry_out(&mut self, actions: Vec<Action>) -> bool {
        let last_report = actions.iter().rposition(|action| matches!(action, Action::Report { .. }));
        for (index, action) in actions.into_iter().enumerate() {
            match action {
                // Only the last state of a step is worth a write and a message.
                Action::Report { state, message, err } if Some(index) == last_report => self.report(state, message, err),
                Action::Report { .. } => {}
                Action::Prepare => self.prepare(),
                Action::Cancel => self.cancel.cancel(),
                Action::Start => self.start(),
                Action::Wait => self.wait(),
                Action::Serve => self.serve().await,
                Action::Watch => self.watch(),
                Action::Stop => self.stop(),
                Action::Release => self.release(),
                Action::RetryAfter(delay) => self.spawn(async move {
                    tokio::time::sleep(delay).await;
                    Event::RetryDue
                }),
                Action::Forget => {
                    self.forget().await;
                    return true;
                }
            }
        }
        false
    }

    /// Runs an operation; what it returns is the machine's next event.
    fn spawn(&mut self, operation: impl Future<Output = Event> + Send + 'static) {
        let events = self.events.clone();
        self.work.spawn(async move {
            // The receiver lives as long as the driver, which owns this task.
            let _ = events.send(operation.await).await;
        });
    }

    fn report(&mut self, state: TaskState, message: &str, err: String) {
        let before = self.status.state;
        match state {
            TaskState::Failed | TaskState::Complete if before == TaskState::Running => self.alone.unheard = true,
            TaskState::Failed | TaskState::Complete => {}
            _ => self.alone.unheard = false,
        }
        let words = if state == TaskState::Running { self.alone.words() } else { String::new() };
        let container = self.machine.container().cloned().filter(|_| state >= TaskState::Starting);
        let status = TaskStatus {
            timestamp: self.status.timestamp,
            state,
            message: format!("{message}{words}"),
            err,
            container,
            ports: self.ports.clone(),
            ..TaskStatus::default()
        };
        if status == self.status {
            return; // a repeated attempt failed as the one before
        }
        if status.err.is_empty() {
            tracing::info!(task = %self.task.id, state = %state, "task state");
        } else {
            tracing::info!(task = %self.task.id, state = %state, err = status.err, "task state");
        }
        self.status = TaskStatus { timestamp: now(), ..status };
        failpoint!("agent.report.before_record");
        self.save();
        failpoint!("agent.report.recorded");
        if before > state {
            self.context.reports.take_back(&self.task.id, self.status.clone());
        } else {
            self.context.reports.put(&self.task.id, self.status.clone());
        }
    }

    fn save(&self) {
        let (task, status, alone) = ((*self.task).clone(), self.status.clone(), self.alone.clone());
        let record = Record { task, status, alone, unassigned: self.unassigned };
        if let Err(error) = self.context.records.save(&record) {
            // The task goes on; after a crash it would be found in its last recorded state.
            tracing::warn!(task = %self.task.id, %error, "could not record a task's state on disk");
        }
    }

    fn prepare(&mut self) {
        self.cancel = CancellationToken::new();
        let (context, task, cancel) = (Arc::clone(&self.context), Arc::clone(&self.task), self.cancel.clone());
        self.spawn(async move {
            match context.executor.prepare(&task, &context.payloads, &cancel).await {
                Ok(()) => Event::Prepared,
                Err(error) => failed(&error),
            }
        });
    }

    fn start(&mut self) {
        let (context, task) = (Arc::clone(&self.context), Arc::clone(&self.task));
        self.spawn(async move {
            // Looked at and entered in one step: nobody who is to be waited for comes between.
            let mut entered = Ok(());
            context.slots.send_modify(|slots| entered = slots.start(&task.id));
            if let Err(before) = entered {
                return Event::Held { words: slots::waits_for(&before) };
            }
            match context.executor.start(&task).await {
                Ok(started) => {
                    failpoint!("agent.start.done");
                    Event::Started { container: started.container, health: started.health }
                }
                Err(error) => failed(&error),
            }
        });
    }

    /// As long as the other task takes to stop, which its grace period limits: there is no time after which two of a slot may run.
    fn wait(&mut self) {
        let (mut slots, id) = (self.context.slots.subscribe(), self.task.id.clone());
        self.spawn(async move {
            // The context, and with it the sender, lives as long as this driver.
            let _ = slots.wait_for(|slots| slots.before(&id).is_none()).await;
            Event::Free
        });
    }

    async fn serve(&mut self) {
        match tokio::time::timeout(SERVE_LIMIT, self.context.network.serve(&self.task)).await {
            Ok(Ok(ports)) => self.ports = ports,
            Ok(Err(error)) => tracing::warn!(task = %self.task.id, %error, "the network does not serve the task yet"),
            Err(_) => tracing::warn!(task = %self.task.id, "the network is slow to serve the task"),
        }
        failpoint!("agent.serve.done");
    }

    fn watch(&mut self) {
        let (executor, task) = (Arc::clone(&self.context.executor), self.task.id.clone());
        let ended = executor.ended(&task);
        self.spawn(async move {
            match ended.await {
                Ok(outcome) => {
                    executor.drain(&task).await;
                    Event::Ended(outcome)
                }
                // Released meanwhile: who did that knows the end.
                Err(_) => std::future::pending().await,
            }
        });
        self.watching = CancellationToken::new();
        let check = HealthCheck::merge(self.health.as_ref(), None).ok().flatten();
        if let Some(check) = check {
            let healthy = self.machine.state() == TaskState::Running;
            let (executor, watching) = (Arc::clone(&self.context.executor), self.watching.clone());
            self.context.board.watched(&self.task.id, healthy);
            let report = (self.events.clone(), self.context.board.clone());
            self.work.spawn(health::watch(executor, self.task.id.clone(), check, healthy, report, watching));
        }
    }

    fn stop(&mut self) {
        self.watching.cancel();
        let (context, task) = (Arc::clone(&self.context), Arc::clone(&self.task));
        self.spawn(async move {
            // Out of every VIP before the signal (DESIGN 3.7).
            context.network.withdraw(&task.id).await;
            failpoint!("agent.stop.withdrawn");
            // One that fails or leaves with its node is nobody's to clear: no manager knows of it yet.
            if task.desired_state >= TaskState::Shutdown {
                context.network.cleared(&task.id).await;
            }
            failpoint!("agent.stop.cleared");
            match context.executor.stop(&task).await {
                Ok(outcome) => Event::Stopped(outcome),
                Err(error) => failed(&error),
            }
        });
    }

    fn release(&mut self) {
        self.watching.cancel();
        let (context, task) = (Arc::clone(&self.context), Arc::clone(&self.task));
        self.spawn(async move {
            context.network.withdraw(&task.id).await;
            failpoint!("agent.release.withdrawn");
            match context.executor.release(&task.id).await {
                Ok(()) => Event::Released,
                Err(error) => {
                    tracing::warn!(task = %task.id, error = %error.words(), "could not remove what a task left; trying again");
                    failed(&error)
                }
            }
        });
    }

    async fn forget(&mut self) {
        if let Err(error) = self.context.executor.forget(&self.task.id).await {
            tracing::warn!(task = %self.task.id, error = %error.words(), "could not remove a task's logs");
        }
        failpoint!("agent.forget.logs_removed");
        if let Err(error) = self.context.records.remove(&self.task.id) {
            tracing::warn!(task = %self.task.id, %error, "could not remove a task's record");
        }
        self.context.reports.forget(&self.task.id);
        self.context.board.forget(&self.task);
    }
}

fn failed(error: &ExecError) -> Event {
    Event::OperationFailed { temporary: error.is_temporary(), words: error.words() }
}
