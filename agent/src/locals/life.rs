//! The lives of a container that is no task: started, watched, ended, started again, removed.

use super::policy::{End, Next, Restarts};
use super::ports::{Taken, choose};
use super::{Entry, Local, Locals};
use crate::containers::ContainersError;
use crate::error::ExecError;
use crate::executor::{Executor, Found, ImageReady, Started};
use crate::health::{self, HealthCheck};
use crate::task::drive::now;
use crate::task::{Event, Outcome};
use skep_failpoint::failpoint;
use skep_types::{ContainerStatus, HealthConfig, Task, TaskId, TaskState, TaskStatus};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// For the end of a process that was killed to be seen and its network to be gone.
const END_LIMIT: Duration = Duration::from_secs(60);
/// Between two attempts to remove what a life left.
const RETRY: Duration = Duration::from_secs(1);
const RETRIES: u32 = 5;
/// The code of a process whose end nobody saw (as dockerd).
const UNKNOWN_CODE: i32 = 255;

/// As a shell's, for a program that cannot be started.
fn code_of(error: &ExecError) -> i32 {
    match error {
        ExecError::CommandNotFound { .. } => 127,
        ExecError::CommandNotExecutable { .. } => 126,
        _ => 128,
    }
}

impl Locals {
    /// Goes on with all that there are: what runs is watched, what is half made or half removed is removed, what is wanted running is
    /// started. After the survey.
    pub fn recover(&self) {
        for entry in self.entries() {
            let local = entry.local();
            let id = local.task.id.clone();
            self.0.board.remember(&id);
            let found = self.0.executor.found_local(&id);
            if let (Some(Found::Running(started)), None, Some(_)) = (&found, local.going, &local.image) {
                self.runs(&entry, started.clone(), false);
                continue;
            }
            let this = self.clone();
            self.0.work.spawn(async move { this.recover_ended(&entry, found).await });
        }
    }

    async fn recover_ended(&self, entry: &Arc<Entry>, found: Option<Found>) {
        let local = entry.local();
        if local.image.is_none() || local.going.is_some() {
            let _turn = entry.turn.lock().await;
            return self.clear_somehow(entry, local.going.unwrap_or(true)).await;
        }
        entry.state.send_modify(|local| local.has_remains = true);
        if local.is_running() {
            let unknown = Outcome { exit_code: UNKNOWN_CODE, words: None };
            let outcome = match found {
                Some(Found::Ended(outcome)) => outcome,
                _ => unknown,
            };
            return self.ended(entry, outcome).await;
        }
        {
            let _turn = entry.turn.lock().await;
            if local.auto_remove && local.started_at.is_some() {
                return self.clear_somehow(entry, true).await;
            }
            self.retire(entry).await;
        }
        let begins = local.restart.at_begin(local.exit_code(), local.is_stopped, local.restarts);
        if begins && local.started_at.is_some() {
            self.again(entry, Duration::ZERO);
        }
    }

    /// Starts its process. One that runs is left as it is.
    ///
    /// # Errors
    /// If it cannot be started; it is as if it had not been then, or gone if it was to go with its process.
    pub async fn start(&self, id: &TaskId) -> Result<(), ContainersError> {
        let (this, entry) = (self.clone(), self.entry(id)?);
        self.owned(async move {
            Entry::renew(&entry.again);
            let _turn = entry.turn.lock().await;
            entry.state.send_modify(|local| (local.is_restarting, local.restarts) = (false, Restarts::default()));
            this.start_now(&entry).await
        })
        .await
    }

    async fn start_now(&self, entry: &Arc<Entry>) -> Result<(), ContainersError> {
        let local = entry.local();
        let id = &local.task.id;
        let Some(image) = local.image.as_ref().filter(|_| !local.is_gone && local.going.is_none()) else {
            return Err(ContainersError::NotFound { container: id.to_string() });
        };
        if local.is_running() {
            return Ok(());
        }
        if local.has_remains {
            self.retire(entry).await;
        }
        let starting = async {
            let task = self.join(entry).await?;
            failpoint!("agent.local.joined");
            let task = self.prepare(entry, &local, &task, image).await?;
            failpoint!("agent.local.prepared");
            self.0.executor.start(&task).await
        };
        match starting.await {
            Ok(started) => {
                failpoint!("agent.local.started");
                self.runs(entry, started, true);
                self.open_ports(entry).await;
                Ok(())
            }
            Err(error) => {
                self.change(entry, |local| {
                    let status = &mut local.status;
                    status.err = error.words();
                    status.container.get_or_insert_default().exit_code = code_of(&error);
                    local.ends += 1;
                });
                self.retire(entry).await;
                if local.auto_remove {
                    self.clear_somehow(entry, true).await;
                }
                Err(error.into())
            }
        }
    }

    /// Prepares it as `joined` has it, with the first free port of each range that it has; others may take one between the look and the grasp.
    async fn prepare(&self, entry: &Arc<Entry>, local: &Local, joined: &Arc<Task>, image: &ImageReady) -> Result<Arc<Task>, ExecError> {
        let wish = joined.endpoint.as_ref().map(|endpoint| endpoint.spec.ports.clone()).unwrap_or_default();
        let mut taken = Taken::default();
        loop {
            let mut task = Arc::clone(joined);
            if !local.ranges.is_empty() {
                let ports = choose(&wish, &local.ranges, &taken)?;
                if let Some(endpoint) = &mut Arc::make_mut(&mut task).endpoint {
                    endpoint.ports = ports;
                }
            }
            match self.0.executor.prepare_local(&task, image).await {
                Err(ExecError::Network(error)) if taken.note(&error, &wish, &local.ranges) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    if !local.ranges.is_empty() {
                        self.change(entry, |local| local.task = Arc::clone(&task));
                    }
                    return Ok(task);
                }
            }
        }
    }

    /// Its process runs: it is watched until it ends.
    fn runs(&self, entry: &Arc<Entry>, started: Started, is_new: bool) {
        let Started { container, health } = started;
        let local = self.change(entry, |local| {
            if is_new {
                (local.started_at, local.is_stopped) = (Some(now()), false);
            }
            local.has_remains = true;
            let ports = if is_new { Vec::new() } else { std::mem::take(&mut local.status.ports) };
            let container = Some(ContainerStatus { exit_code: 0, ..container.clone() });
            local.status = TaskStatus { timestamp: now(), state: TaskState::Running, container, ports, ..TaskStatus::default() };
        });
        if is_new {
            self.0.board.saw(&local.task, &Event::Started { container, health: health.clone() });
        }
        let watching = Entry::renew(&entry.watching);
        if let Some(check) = HealthCheck::merge(health.as_ref(), None).ok().flatten() {
            self.0.work.spawn(self.clone().look_after_health(Arc::clone(&local.task), check, watching));
        }
        let ended = self.0.executor.ended(&local.task.id);
        let (this, entry) = (self.clone(), Arc::clone(entry));
        self.0.work.spawn(async move {
            tokio::select! {
                () = this.0.stop.cancelled() => {}
                outcome = ended => if let Ok(outcome) = outcome {
                    this.ended(&entry, outcome).await;
                },
            }
        });
    }

    /// Probes until `watching` is cancelled. Bad health is told, and no more: nobody asked for anything to be done about it.
    async fn look_after_health(self, task: Arc<skep_types::Task>, check: HealthCheck, watching: CancellationToken) {
        let executor: Arc<dyn Executor> = Arc::new(self.0.executor.clone());
        let (events, mut inbox) = mpsc::channel(2);
        self.0.board.watched(&task.id, false);
        let probing = async {
            let mut check = check;
            loop {
                let report = (events.clone(), self.0.board.clone());
                health::watch(Arc::clone(&executor), task.id.clone(), check.clone(), false, report, watching.clone()).await;
                if watching.is_cancelled() {
                    return;
                }
                // It was unhealthy: the time for its start is over.
                check = later(check);
            }
        };
        let telling = async {
            while let Some(event) = inbox.recv().await {
                self.0.board.saw(&task, &event);
            }
        };
        tokio::select! {
            () = probing => {}
            () = telling => {}
            () = self.0.stop.cancelled() => watching.cancel(),
        }
    }

    async fn open_ports(&self, entry: &Arc<Entry>) {
        let local = entry.local();
        let task = &local.task;
        let has_ports = task.endpoint.as_ref().is_some_and(|endpoint| !endpoint.ports.is_empty());
        if !has_ports && local.places.is_none() {
            return;
        }
        match self.0.network.serve(task).await {
            Ok(ports) => drop(self.change(entry, |local| local.status.ports = ports)),
            Err(error) => tracing::warn!(container = %task.id, %error, "the ports of a container are not open yet"),
        }
    }

    /// Its process has ended.
    async fn ended(&self, entry: &Arc<Entry>, outcome: Outcome) {
        let _turn = entry.turn.lock().await;
        let before = entry.local();
        if !before.is_running() {
            return;
        }
        let id = &before.task.id;
        entry.watching.lock().expect("no panic while held").cancel();
        // Who is attached hears its last words and the end of them.
        self.0.executor.drain(id).await;
        let ran = before.started_at.map_or(Duration::ZERO, |at| now().since(at));
        let end = End { exit_code: outcome.exit_code, is_by_hand: before.is_stopped, ran };
        let mut restarts = before.restarts;
        let next = before.restart.after(end, &mut restarts);
        let state = if outcome.exit_code == 0 { TaskState::Complete } else { TaskState::Failed };
        self.change(entry, |local| {
            let err = outcome.words.clone().unwrap_or_default();
            let container = ContainerStatus { container_id: id.to_string(), pid: 0, exit_code: outcome.exit_code };
            local.status = TaskStatus { timestamp: now(), state, err, container: Some(container), ..TaskStatus::default() };
            (local.restarts, local.is_restarting) = (restarts, next != Next::Rest);
            local.ends += 1;
        });
        failpoint!("agent.local.end_recorded");
        self.0.board.saw(&before.task, &Event::Ended(outcome));
        if before.auto_remove {
            return self.clear_somehow(entry, true).await;
        }
        self.retire(entry).await;
        if let Next::Again(pause) = next {
            self.again(entry, pause);
        }
    }

    /// Removes what the last life left, but for what the next goes on with.
    pub(super) async fn retire(&self, entry: &Entry) {
        let id = entry.state.borrow().task.id.clone();
        for attempt in 1..=RETRIES {
            match self.0.executor.retire(&id).await {
                Ok(()) => {
                    entry.state.send_modify(|local| local.has_remains = false);
                    break;
                }
                Err(error) if attempt == RETRIES || self.0.stop.is_cancelled() => {
                    tracing::warn!(container = %id, error = %error.words(), "could not remove what a process left; its next start tries again");
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
        self.let_go(entry);
    }

    /// Nobody waits for it to succeed.
    async fn clear_somehow(&self, entry: &Entry, with_volumes: bool) {
        self.change(entry, |local| local.going = Some(with_volumes));
        let id = entry.state.borrow().task.id.clone();
        for attempt in 1..=RETRIES {
            match self.clear(entry, with_volumes).await {
                Ok(()) => return,
                Err(error) if attempt == RETRIES || self.0.stop.is_cancelled() => {
                    tracing::warn!(container = %id, error = %error.words(), "could not remove a container; the next start of the daemon tries again");
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Starts it after a pause, unless somebody does something with it meanwhile. One that cannot be started is tried again as if it had
    /// ended with what that says.
    fn again(&self, entry: &Arc<Entry>, pause: Duration) {
        entry.state.send_modify(|local| local.is_restarting = true);
        let (this, entry, token) = (self.clone(), Arc::clone(entry), Entry::renew(&entry.again));
        self.0.work.spawn(async move {
            let mut pause = pause;
            loop {
                tokio::select! {
                    () = this.0.stop.cancelled() => return,
                    () = token.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                let _turn = entry.turn.lock().await;
                if token.is_cancelled() || this.0.stop.is_cancelled() {
                    return;
                }
                entry.state.send_modify(|local| local.is_restarting = false);
                let Err(error) = this.start_now(&entry).await else { return };
                let local = entry.local();
                tracing::info!(container = %local.task.id, error = %error.words(), "a container could not be started again");
                let mut restarts = local.restarts;
                let end = End { exit_code: local.exit_code(), is_by_hand: local.is_stopped, ran: Duration::ZERO };
                let Next::Again(longer) = local.restart.after(end, &mut restarts) else { return };
                entry.state.send_modify(|local| (local.restarts, local.is_restarting) = (restarts, true));
                pause = longer;
            }
        });
    }

    /// Somebody ends it: it is not started again by itself. `None`: it is no container of this kind.
    pub fn ends_by_hand(&self, id: &TaskId) -> Option<Local> {
        let entry = self.entry(id).ok()?;
        Entry::renew(&entry.again);
        Some(self.change(&entry, |local| (local.is_stopped, local.is_restarting) = (true, false)))
    }

    /// Waits until the end of its process was seen.
    pub async fn rest(&self, id: &TaskId) {
        let Some(mut following) = self.follow(id) else { return };
        let resting = following.wait_for(|local| !local.is_running() || local.is_gone);
        if tokio::time::timeout(END_LIMIT, resting).await.is_err() {
            tracing::warn!(container = %id, "the end of a container's process is not seen");
        }
    }

    /// Removes it and all that is its own. It must not run.
    ///
    /// # Errors
    /// If it runs, or something of it cannot be removed: it is still there then.
    pub async fn remove(&self, id: &TaskId, with_volumes: bool) -> Result<(), ContainersError> {
        let (this, entry) = (self.clone(), self.entry(id)?);
        self.owned(async move {
            Entry::renew(&entry.again);
            let _turn = entry.turn.lock().await;
            let local = entry.local();
            if local.is_gone {
                return Ok(());
            }
            if local.is_running() {
                return Err(ContainersError::Running { container: local.task.id.to_string() });
            }
            let with_volumes = with_volumes || local.auto_remove;
            this.change(&entry, |local| local.going = Some(with_volumes));
            failpoint!("agent.local.going");
            let cleared = this.clear(&entry, with_volumes).await;
            if cleared.is_err() {
                this.change(&entry, |local| local.going = None);
            }
            cleared
        })
        .await
    }

    /// Ends and removes all: of a node that leaves.
    pub async fn remove_all(&self) {
        for entry in self.entries() {
            let task = Arc::clone(&entry.state.borrow().task);
            let id = task.id.clone();
            self.ends_by_hand(&id);
            if entry.local().is_running() {
                let _ = self.0.executor.end(&task, libc::SIGKILL, Some(Duration::ZERO)).await; // if it is still there, removing says so
                self.rest(&id).await;
            }
            match self.remove(&id, false).await {
                Ok(()) | Err(ContainersError::NotFound { .. }) => {}
                Err(error) => tracing::warn!(container = %id, error = %error.words(), "a container may be left"),
            }
        }
    }
}

/// The same check without a time in which failures do not count.
fn later(check: HealthCheck) -> HealthCheck {
    let config = HealthConfig { start_period: None, ..check.to_config() };
    HealthCheck::merge(Some(&config), None).ok().flatten().unwrap_or(check)
}
