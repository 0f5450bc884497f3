//! The processes that people began, or are about to begin, in containers of this node. No I/O, no clock of its own.

use super::ContainersError;
use crate::containerd::Program;
use skep_types::TaskId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// That run or wait to be started, of all containers together: each costs a process and some pipes.
const LIMIT: usize = 512;
/// One that was never started is forgotten after this, and so is one that ended: as dockerd.
const KEPT: Duration = Duration::from_secs(5 * 60);
/// Ended ones that are remembered.
const ENDED_LIMIT: usize = 4096;

/// What somebody wants to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecWish {
    pub program: Program,
    pub has_stdout: bool,
    pub has_stderr: bool,
    /// As they came: nothing here reads them.
    pub detach_keys: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecPhase {
    Created,
    /// Being started.
    Starting,
    Running {
        pid: u32,
    },
    Ended {
        exit_code: i32,
    },
}

/// One of them.
#[derive(Debug, Clone)]
pub struct ExecView {
    pub id: String,
    pub task: TaskId,
    pub wish: Arc<ExecWish>,
    pub phase: ExecPhase,
}

struct Entry {
    view: ExecView,
    since: Instant,
}

#[derive(Default)]
pub(super) struct Execs(Mutex<BTreeMap<String, Entry>>);

impl Execs {
    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<String, Entry>) -> R) -> R {
        act(&mut self.0.lock().expect("no panic while held"))
    }

    pub fn create(&self, id: &str, task: &TaskId, wish: ExecWish, now: Instant) -> Result<(), ContainersError> {
        self.with(|table| {
            let is_old = |entry: &Entry| now.saturating_duration_since(entry.since) > KEPT;
            table.retain(|_, entry| match entry.view.phase {
                ExecPhase::Created | ExecPhase::Ended { .. } => !is_old(entry),
                ExecPhase::Starting | ExecPhase::Running { .. } => true,
            });
            let ended = table.values().filter(|entry| matches!(entry.view.phase, ExecPhase::Ended { .. })).count();
            if table.len() - ended >= LIMIT || ended >= ENDED_LIMIT {
                return Err(ContainersError::TooManyExecs { limit: LIMIT });
            }
            let view = ExecView { id: id.to_owned(), task: task.clone(), wish: Arc::new(wish), phase: ExecPhase::Created };
            table.insert(id.to_owned(), Entry { view, since: now });
            Ok(())
        })
    }

    pub fn get(&self, id: &str) -> Result<ExecView, ContainersError> {
        let found = self.with(|table| table.get(id).map(|entry| entry.view.clone()));
        found.ok_or_else(|| ContainersError::NoSuchExec { exec: id.to_owned() })
    }

    /// From created to starting, once.
    pub fn begin(&self, id: &str) -> Result<ExecView, ContainersError> {
        self.with(|table| {
            let entry = table.get_mut(id).ok_or_else(|| ContainersError::NoSuchExec { exec: id.to_owned() })?;
            if entry.view.phase != ExecPhase::Created {
                return Err(ContainersError::AlreadyRun { exec: id.to_owned() });
            }
            entry.view.phase = ExecPhase::Starting;
            Ok(entry.view.clone())
        })
    }

    pub fn set(&self, id: &str, phase: ExecPhase, now: Instant) {
        self.with(|table| {
            if let Some(entry) = table.get_mut(id) {
                (entry.view.phase, entry.since) = (phase, now);
            }
        });
    }

    /// Ids of those of a container that did not end.
    pub fn of(&self, task: &TaskId) -> Vec<String> {
        let lives = |entry: &&Entry| entry.view.task == *task && !matches!(entry.view.phase, ExecPhase::Ended { .. });
        self.with(|table| table.values().filter(lives).map(|entry| entry.view.id.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_is_begun_once_and_forgotten_some_time_after_its_end() {
        let (execs, task, begin) = (Execs::default(), TaskId::for_test(1), Instant::now());
        execs.create("a", &task, ExecWish::default(), begin).unwrap();
        execs.create("b", &task, ExecWish::default(), begin).unwrap();
        assert_eq!(execs.begin("a").unwrap().phase, ExecPhase::Starting);
        assert!(matches!(execs.begin("a"), Err(ContainersError::AlreadyRun { .. })));
        assert!(matches!(execs.begin("x"), Err(ContainersError::NoSuchExec { .. })));
        execs.set("a", ExecPhase::Ended { exit_code: 3 }, begin);
        assert_eq!(execs.of(&task), ["b"]);
        execs.create("c", &task, ExecWish::default(), begin + KEPT).unwrap();
        assert_eq!(execs.get("a").unwrap().phase, ExecPhase::Ended { exit_code: 3 });
        execs.create("d", &task, ExecWish::default(), begin + KEPT + Duration::from_secs(1)).unwrap();
        assert!(execs.get("a").is_err() && execs.get("b").is_err());
        assert_eq!(execs.of(&task), ["c", "d"]);
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let (execs, task, now) = (Execs::default(), TaskId::for_test(1), Instant::now());
        for number in 0..LIMIT {
            execs.create(&number.to_string(), &task, ExecWish::default(), now).unwrap();
        }
        assert!(matches!(execs.create("x", &task, ExecWish::default(), now), Err(ContainersError::TooManyExecs { .. })));
        execs.set("0", ExecPhase::Ended { exit_code: 0 }, now);
        execs.create("x", &task, ExecWish::default(), now).unwrap();
    }
}
