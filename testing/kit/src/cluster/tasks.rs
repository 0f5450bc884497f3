use super::{Cluster, SOON};
use crate::wait::eventually;
use anyhow::{Context, Result, bail, ensure};
use skep_proto::v1::{self, TaskState};
use std::collections::{BTreeMap, BTreeSet};

/// What a test wants to know of a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    pub id: String,
    pub service: String,
    pub slot: u64,
    /// The host it is on, if it is one of ours.
    pub host: Option<usize>,
    pub desired: TaskState,
    pub state: TaskState,
    pub message: String,
    pub error: String,
    /// Process id of the container's first process; 0 if none is known.
    pub pid: i32,
}

impl Cluster {
    /// The tasks of a service, as the manager on `through` knows them.
    ///
    /// # Errors
    /// If there is no such service or no answer.
    pub fn tasks(&self, through: usize, service: &str) -> Result<Vec<Task>> {
        let api = self.api(through)?;
        let services = api.ask(|mut control| async move { control.list_services(v1::ListServicesRequest::default()).await })?.services;
        let named = |found: &v1::Service| {
            found.spec.as_ref().and_then(|spec| spec.annotations.as_ref()).is_some_and(|annotations| annotations.name == service)
        };
        let id = services.into_iter().find(named).with_context(|| format!("no service {service}"))?.id;
        Ok(self.all_tasks(through)?.into_iter().filter(|task| task.service == id).collect())
    }

    /// All tasks, as the manager on `through` knows them.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn all_tasks(&self, through: usize) -> Result<Vec<Task>> {
        let tasks = self.api(through)?.tasks()?;
        let mut known = self.known.lock().expect("no panic while held");
        if tasks.iter().any(|task| !task.node_id.is_empty() && !known.contains_key(&task.node_id)) {
            let up = (0..self.hosts.len()).filter(|host| self.hosts[*host].is_up());
            known.extend(up.filter_map(|host| Some((self.node_id(host).ok()?, host))));
        }
        Ok(tasks.into_iter().map(|task| understand(task, &known)).collect())
    }

    /// Host and process of each task of the service that runs and should.
    ///
    /// # Errors
    /// See [`tasks`](Self::tasks).
    pub fn pids(&self, through: usize, service: &str) -> Result<BTreeSet<(Option<usize>, i32)>> {
        let tasks = self.tasks(through, service)?;
        Ok(tasks.into_iter().filter(Task::runs).map(|task| (task.host, task.pid)).collect())
    }

    /// Waits until so many tasks of the service run, and tells their processes.
    ///
    /// # Errors
    /// If there are not so many within a generous time.
    pub fn wait_running(&self, through: usize, service: &str, count: usize) -> Result<BTreeSet<(Option<usize>, i32)>> {
        eventually(SOON, &format!("{count} tasks of {service} run"), || {
            let tasks = self.tasks(through, service)?;
            let running = tasks.iter().filter(|task| task.runs()).count();
            ensure!(running == count, "{running}: {tasks:#?}");
            Ok(tasks.into_iter().filter(Task::runs).map(|task| (task.host, task.pid)).collect())
        })
    }

    /// Whether any service runs two tasks in one slot.
    ///
    /// # Errors
    /// If one does.
    pub fn no_slot_runs_twice(&self, through: usize) -> Result<()> {
        let mut seen = BTreeMap::new();
        for task in self.api(through)?.tasks()? {
            let task = understand(task, &BTreeMap::new());
            if task.runs()
                && task.slot != 0
                && let Some(other) = seen.insert((task.service.clone(), task.slot), task.id.clone())
            {
                bail!("slot {} of service {} runs twice: tasks {other} and {}", task.slot, task.service, task.id);
            }
        }
        Ok(())
    }
}

impl Task {
    /// Whether it runs and is meant to.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.state == TaskState::Running && self.desired == TaskState::Running
    }
}

fn understand(task: v1::Task, hosts: &BTreeMap<String, usize>) -> Task {
    let (desired, status) = (task.desired_state(), task.status.unwrap_or_default());
    let state = status.state();
    let pid = match &status.runtime_status {
        Some(v1::task_status::RuntimeStatus::Container(container)) => container.pid,
        None => 0,
    };
    Task {
        id: task.id,
        service: task.service_id,
        slot: task.slot,
        host: hosts.get(&task.node_id).copied(),
        desired,
        state,
        message: status.message,
        error: status.err,
        pid,
    }
}
