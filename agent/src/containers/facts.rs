//! What there is to know of a container, from what the agent knows anyway: no question goes to containerd.

use super::{Containers, ContainersError};
use crate::board::HealthView;
use crate::containerd::{ContainerdConfig, Story};
use crate::locals::Local;
use skep_types::template;
use skep_types::{ContainerSpec, HealthConfig, Task, TaskId, TaskState, TaskStatus};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One container.
#[derive(Debug, Clone)]
pub struct ContainerFacts {
    pub task: Arc<Task>,
    /// With placeholders filled in.
    pub spec: ContainerSpec,
    /// As this node observed it.
    pub status: TaskStatus,
    /// As it was made; `None` of one that was made by an agent that kept no such notes.
    pub story: Option<Story>,
    pub is_running: bool,
    pub is_paused: bool,
    pub is_oom_killed: bool,
    pub health: Option<HealthView>,
    /// The check in force: the service's or the image's.
    pub healthcheck: Option<HealthConfig>,
    /// Ids of what people run in it.
    pub execs: Vec<String>,
    /// Where its `hosts`, `resolv.conf` and `hostname` are.
    pub etc: PathBuf,
    pub cgroup_parent: String,
    /// Of a container that is no task: what there is besides.
    pub local: Option<Local>,
}

/// The directories of a container's cgroup: of each hierarchy of version 1, or the one of version 2.
pub(super) fn cgroup(config: &ContainerdConfig, hierarchy: &str, task: &TaskId) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let root = if is_unified() { root.to_owned() } else { root.join(hierarchy) };
    root.join(config.cgroup_parent.trim_start_matches('/')).join(task.as_str())
}

/// Whether the machine has cgroups of version 2 only.
pub(super) fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Whether its processes are frozen.
fn is_paused(config: &ContainerdConfig, task: &TaskId) -> bool {
    let dir = cgroup(config, "freezer", task);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    if is_unified() {
        return read("cgroup.events").lines().any(|line| line == "frozen 1");
    }
    matches!(read("freezer.state").trim(), "FROZEN" | "FREEZING")
}

impl Containers {
    /// All containers that were made, whatever became of them, in order of their tasks' ids.
    #[must_use]
    pub fn list(&self) -> Vec<ContainerFacts> {
        let tasks = self.0.engine.tasks.now();
        let locals = self.0.locals.list();
        tasks.values().filter_map(|task| self.look(task)).chain(locals.into_iter().filter_map(|local| self.look_local(local))).collect()
    }

    /// # Errors
    /// If there is none.
    pub fn facts(&self, id: &TaskId) -> Result<ContainerFacts, ContainersError> {
        let found = match self.0.locals.get(id) {
            Some(local) => self.look_local(local),
            None => self.look(&self.task(id)?),
        };
        found.ok_or_else(|| ContainersError::NotFound { container: id.to_string() })
    }

    /// # Errors
    /// If there is none, or it has no process.
    pub(super) fn running(&self, id: &TaskId) -> Result<ContainerFacts, ContainersError> {
        let facts = self.facts(id)?;
        if facts.is_running { Ok(facts) } else { Err(ContainersError::NotRunning { container: id.to_string() }) }
    }

    fn look(&self, task: &Arc<Task>) -> Option<ContainerFacts> {
        let spec = task.spec.container()?;
        let spec = template::expand(spec, task, &self.0.executor.config().node).unwrap_or_else(|_| spec.clone());
        let status = self.0.engine.reports.newest(&task.id).unwrap_or_else(|| task.status.clone());
        self.put_together(task, spec, status)
    }

    fn look_local(&self, local: Local) -> Option<ContainerFacts> {
        let facts = self.put_together(&local.task, local.task.spec.container()?.clone(), local.status.clone())?;
        Some(ContainerFacts { is_running: local.is_running(), local: Some(local), ..facts })
    }

    fn put_together(&self, task: &Arc<Task>, spec: ContainerSpec, status: TaskStatus) -> Option<ContainerFacts> {
        let config = self.0.executor.config();
        let story = Story::load(config, &task.id);
        let was_made = story.is_some() || status.container.is_some();
        if !was_made || story.as_ref().is_some_and(|story| story.is_removed) {
            return None;
        }
        let has_process = status.container.as_ref().is_some_and(|container| container.pid > 0);
        let is_running = has_process && (TaskState::Starting..=TaskState::Running).contains(&status.state);
        Some(ContainerFacts {
            is_running,
            is_paused: is_running && is_paused(config, &task.id),
            is_oom_killed: self.0.engine.board.ran_out_of_memory(&task.id),
            health: self.0.engine.board.health(&task.id),
            healthcheck: config.task_dir(&task.id).kept().and_then(|kept| kept.health).or_else(|| spec.healthcheck.clone()),
            spec,
            local: None,
            execs: self.0.execs.of(&task.id),
            etc: config.task_etc(&task.id).path().to_owned(),
            cgroup_parent: config.cgroup_parent.clone(),
            task: Arc::clone(task),
            status,
            story,
        })
    }

    /// It is shown to nobody any more; its task's logs stay.
    pub(super) fn hide(&self, id: &TaskId) -> Result<(), ContainersError> {
        let config = self.0.executor.config();
        let mut story = Story::load(config, id).unwrap_or_default();
        story.is_removed = true;
        story.save(config, id).map_err(ContainersError::io("note the removal of", id.as_str()))
    }
}
