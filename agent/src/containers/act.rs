//! A hand on a container: signals, stopping, pausing, removing.

use super::{Containers, ContainersError};
use crate::board::What;
use crate::containerd::signal_number;
use skep_types::{Task, TaskId};
use std::sync::Arc;
use std::time::Duration;

/// As Docker's.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// For an end to be told, which waits for the last of the log.
const TOLD_LIMIT: Duration = Duration::from_secs(6);
const TOLD_LOOK: Duration = Duration::from_millis(5);

/// How long a container may take to end by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Patience {
    /// As its service says.
    #[default]
    Own,
    For(Duration),
    Forever,
}

fn number(signal: &str) -> Result<i32, ContainersError> {
    signal_number(signal).map_err(|_| ContainersError::BadSignal { signal: signal.to_owned() })
}

impl Containers {
    /// Sends a signal, by name or number, to a container's own process.
    ///
    /// # Errors
    /// If it has none, or there is no such signal.
    pub async fn kill(&self, id: &TaskId, signal: &str) -> Result<(), ContainersError> {
        let signal = number(if signal.is_empty() { "KILL" } else { signal })?;
        let facts = self.running(id)?;
        if [libc::SIGKILL, libc::SIGTERM, self.0.executor.stop_signal(id)].contains(&signal) {
            self.0.locals.ends_by_hand(id);
        }
        if !self.0.executor.signal(id, "", signal).await? {
            return Err(ContainersError::NotRunning { container: id.to_string() });
        }
        self.0.engine.board.tell(&facts.task, What::Kill { signal });
        Ok(())
    }

    /// Asks a container's process to end, and kills it when patience is over. False if it has none. The task ended by itself then,
    /// as its manager sees it, and is replaced if its service says so.
    ///
    /// # Errors
    /// If there is no such container or signal.
    pub async fn stop(&self, id: &TaskId, signal: Option<&str>, patience: Patience) -> Result<bool, ContainersError> {
        let ended = self.end(id, signal, patience).await?;
        Ok(ended.is_some_and(|(task, had_one)| {
            self.0.engine.board.tell(&task, What::Stop);
            had_one
        }))
    }

    /// Whose process it was, and whether there was one. `None`: it did not run.
    async fn end(&self, id: &TaskId, signal: Option<&str>, patience: Patience) -> Result<Option<(Arc<Task>, bool)>, ContainersError> {
        let signal = signal.map(number).transpose()?;
        let facts = self.facts(id)?;
        let is_local = self.0.locals.ends_by_hand(id).is_some();
        if !facts.is_running {
            return Ok(None);
        }
        let signal = signal.unwrap_or_else(|| self.0.executor.stop_signal(id));
        let patience = match patience {
            Patience::Own => Some(facts.spec.stop_grace_period.unwrap_or(DEFAULT_GRACE)),
            Patience::For(length) => Some(length),
            Patience::Forever => None,
        };
        if facts.is_paused {
            self.0.executor.unpause(id).await?;
        }
        let had_one = self.0.executor.end(&facts.task, signal, patience).await?;
        if is_local {
            self.0.locals.rest(id).await;
        }
        // Who listens hears that it died before that it was stopped.
        let told = async {
            while !self.0.engine.board.told_end(id) {
                tokio::time::sleep(TOLD_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(TOLD_LIMIT, told).await;
        Ok(Some((facts.task, had_one)))
    }

    /// Ends a container's process and starts another. A task's is not started: its service puts another task in its place.
    ///
    /// # Errors
    /// See [`stop`](Self::stop) and [`start`](Self::start).
    pub async fn restart(&self, id: &TaskId, signal: Option<&str>, patience: Patience) -> Result<(), ContainersError> {
        let had_one = self.stop(id, signal, patience).await?;
        if had_one && !self.is_local(id) {
            return Ok(());
        }
        self.start(id).await?;
        self.0.engine.board.tell(&self.facts(id)?.task, What::Restart);
        Ok(())
    }

    /// Freezes all its processes.
    ///
    /// # Errors
    /// If it has none, or they are frozen.
    pub async fn pause(&self, id: &TaskId) -> Result<(), ContainersError> {
        let facts = self.running(id)?;
        if facts.is_paused {
            return Err(ContainersError::AlreadyPaused { container: id.to_string() });
        }
        self.0.executor.pause(id).await?;
        self.0.engine.board.tell(&facts.task, What::Pause);
        Ok(())
    }

    /// # Errors
    /// If it has no processes, or they are not frozen.
    pub async fn unpause(&self, id: &TaskId) -> Result<(), ContainersError> {
        let facts = self.running(id)?;
        if !facts.is_paused {
            return Err(ContainersError::NotPaused { container: id.to_string() });
        }
        self.0.executor.unpause(id).await?;
        self.0.engine.board.tell(&facts.task, What::Unpause);
        Ok(())
    }

    /// Of a container with a terminal. Characters.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn resize(&self, id: &TaskId, width: u32, height: u32) -> Result<(), ContainersError> {
        let facts = self.running(id)?;
        self.0.executor.resize(id, "", width, height).await?;
        self.0.engine.board.tell(&facts.task, What::Resize { width, height });
        Ok(())
    }

    /// Kills what runs and shows the container to nobody any more. What its task leaves is cleaned away by the task itself; one that is no
    /// task's is removed, and with it the volumes that nobody gave a name if wanted.
    ///
    /// # Errors
    /// If there is none, or its process cannot be killed.
    pub async fn remove(&self, id: &TaskId, with_volumes: bool) -> Result<(), ContainersError> {
        self.end(id, Some("KILL"), Patience::For(Duration::ZERO)).await?;
        if self.0.locals.get(id).is_some() {
            return self.0.locals.remove(id, with_volumes).await;
        }
        self.hide(id)
    }

    /// Waits until a container's process has ended: now if it has none, and else the next time. Its exit code.
    ///
    /// # Errors
    /// If there is none, or the agent ends.
    pub async fn wait(&self, id: &TaskId, until_next: bool) -> Result<i32, ContainersError> {
        let mut tasks = self.0.engine.tasks.clone();
        // An end may come and go between two looks: those are woken by the board.
        let (_, mut happenings) = self.0.engine.board.listen();
        let mut has_run = !until_next;
        loop {
            let facts = match self.facts(id) {
                Ok(facts) => facts,
                // Gone meanwhile: with what code is not known.
                Err(_) if has_run && until_next => return Ok(0),
                Err(error) => return Err(error),
            };
            has_run |= facts.is_running;
            if !facts.is_running && has_run && facts.status.state >= skep_types::TaskState::Complete {
                return Ok(facts.status.container.map_or(0, |container| container.exit_code));
            }
            tokio::select! {
                () = self.0.stop.cancelled() => return Err(ContainersError::Ending),
                alive = tasks.changed() => if !alive { return Err(ContainersError::Ending) },
                happened = happenings.recv() => match happened {
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return Err(ContainersError::Ending),
                    // The status follows at once; nobody tells when it is there.
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                },
                // As a last resort: a status that changes without any happening.
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
        }
    }

    /// Waits until a container is there no more; the last exit code that was seen.
    ///
    /// # Errors
    /// If there is none, or the agent ends.
    pub async fn wait_removed(&self, id: &TaskId) -> Result<i32, ContainersError> {
        let mut tasks = self.0.engine.tasks.clone();
        let mut code = self.facts(id)?.status.container.map_or(0, |container| container.exit_code);
        while let Ok(facts) = self.facts(id) {
            code = facts.status.container.map_or(code, |container| container.exit_code);
            tokio::select! {
                () = self.0.stop.cancelled() => return Err(ContainersError::Ending),
                alive = tasks.changed() => if !alive { return Err(ContainersError::Ending) },
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
        Ok(code)
    }
}
