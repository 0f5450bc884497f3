//! Containers that no service started, on networks of the cluster. To managers each is a task of this node
//! (`SK/manager/resourceapi/allocator.go`); here it is a network namespace of somebody else's that gets a link, until it is detached or
//! gone, or a place for one of our own containers, which has its network by itself ([`crate::places`]).

use crate::error::{ExecError, NetworkError};
use crate::executor::{Executor, Found, Network, Probe, Started};
use crate::payloads::Payloads;
use crate::places::Places;
use crate::task::Outcome;
use async_trait::async_trait;
use skep_failpoint::failpoint;
use skep_types::{ContainerStatus, Runtime, Task, TaskId};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How often to look whether the namespace is still there. Nobody waits for it: what is on the network unreachable meanwhile was
/// unreachable before.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row must miss it.
const MISSES: u32 = 2;

/// Whose network namespace is attached, as the container id of the request says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `pid:<number>`, of the host's process ids.
    Process(u32),
    /// `netns:<path>`, a file that a namespace is mounted on.
    Namespace(PathBuf),
    /// `container:<id>`, one of this agent's that is no task.
    Container(TaskId),
}

/// The container id is of a kind that this node knows nothing of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("container {0:?} is not known to this node; attach a process (pid:<number>) or a network namespace (netns:<absolute path>)")]
pub struct NoTarget(String);

impl FromStr for Target {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let target = match text.split_once(':') {
            Some(("pid", number)) => number.parse().ok().filter(|pid| *pid != 0).map(Self::Process),
            Some(("netns", path)) => Some(PathBuf::from(path)).filter(|path| path.is_absolute()).map(Self::Namespace),
            Some((CONTAINER, id)) => id.parse().ok().map(Self::Container),
            _ => None,
        };
        target.ok_or_else(|| NoTarget(text.to_owned()))
    }
}

impl Target {
    /// Where its namespace is; `None`: nobody but its container has to do with it.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Process(pid) => Some(PathBuf::from(format!("/proc/{pid}/ns/net"))),
            Self::Namespace(path) => Some(path.clone()),
            Self::Container(_) => None,
        }
    }
}

const CONTAINER: &str = "container";

/// A container of this agent's that is no task, as a target.
pub fn of_container(container: &TaskId) -> String {
    format!("{CONTAINER}:{container}")
}

fn container_id(task: &Task) -> Option<&str> {
    match &task.spec.runtime {
        Runtime::Attachment { container_id } => Some(container_id),
        Runtime::Container(_) | Runtime::Generic { .. } => None,
    }
}

/// What the task attaches; `None`: it is a container of ours.
///
/// # Errors
/// See [`NoTarget`].
pub fn target(task: &Task) -> Result<Option<Target>, NoTarget> {
    container_id(task).map(str::parse).transpose()
}

/// Whether two paths lead to one namespace.
fn are_same(one: &Path, other: &Path) -> bool {
    let id = |path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    id(one).is_some_and(|found| id(other) == Some(found))
}

/// An executor that also runs attachments. What it attached is noted in a file each, so that the next agent finds it.
pub struct Attachments {
    containers: Arc<dyn Executor>,
    network: Arc<dyn Network>,
    notes: PathBuf,
    /// Where the network mounts the namespaces of tasks.
    namespaces: PathBuf,
    watched: Mutex<BTreeMap<TaskId, AbortOnDropHandle<()>>>,
    places: Places,
}

impl Attachments {
    pub(crate) fn new(containers: Arc<dyn Executor>, network: Arc<dyn Network>, data_dir: &Path, run_dir: &Path, places: Places) -> Self {
        let (notes, namespaces) = (data_dir.join("agent/attachments"), run_dir.join("netns"));
        Self { containers, network, notes, namespaces, watched: Mutex::default(), places }
    }

    fn note(&self, task: &TaskId) -> PathBuf {
        self.notes.join(task.as_str())
    }

    /// What a task that is none of the containers attached.
    fn noted(&self, task: &TaskId) -> Option<String> {
        std::fs::read_to_string(self.note(task)).ok()
    }

    fn is_there(&self, task: &TaskId, target: &Target) -> bool {
        match target.path() {
            Some(path) => are_same(&path, &self.namespaces.join(task.as_str())),
            None => self.places.is_held(task),
        }
    }
}

fn started(target: String) -> Started {
    Started { container: ContainerStatus { container_id: target, pid: 0, exit_code: 0 }, health: None }
}

/// Returns when the target does not lead to the namespace mounted at `ours` any more.
async fn gone_from(target: &Target, ours: &Path) {
    let mut misses = 0;
    while misses < MISSES {
        tokio::time::sleep(LOOK).await;
        let is_there = target.path().is_some_and(|theirs| are_same(&theirs, ours));
        misses = if is_there { 0 } else { misses + 1 };
    }
}

/// An attachment ends when nobody is there any more; that is no failure.
fn gone() -> Outcome {
    Outcome { exit_code: 0, words: None }
}

#[async_trait]
impl Executor for Attachments {
    async fn survey(&self) -> Result<BTreeMap<TaskId, Found>, ExecError> {
        let mut found = self.containers.survey().await?;
        let entries = match std::fs::read_dir(&self.notes) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            other => other.map_err(ExecError::io("read", &self.notes))?,
        };
        let tasks = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<TaskId>().ok());
        for task in tasks {
            let text = self.noted(&task).unwrap_or_default();
            let is_there = text.parse::<Target>().is_ok_and(|target| self.is_there(&task, &target));
            found.insert(task, if is_there { Found::Running(started(text)) } else { Found::Ended(gone()) });
        }
        Ok(found)
    }

    fn others(&self) -> Vec<(Task, bool)> {
        self.containers.others()
    }

    async fn prepare(&self, task: &Task, payloads: &Payloads, cancel: &CancellationToken) -> Result<(), ExecError> {
        let Some(text) = container_id(task) else { return self.containers.prepare(task, payloads, cancel).await };
        let target = target(task).map_err(|error| NetworkError::NotAttached(error.to_string()))?;
        std::fs::create_dir_all(&self.notes).map_err(ExecError::io("make", &self.notes))?;
        std::fs::write(self.note(&task.id), text).map_err(ExecError::io("write", self.note(&task.id)))?;
        failpoint!("agent.attachment.noted");
        if let Some(Target::Container(container)) = target {
            self.places.offer(&container, task);
            return Ok(());
        }
        self.network.attach(task).await?;
        failpoint!("agent.attachment.attached");
        Ok(())
    }

    async fn start(&self, task: &Task) -> Result<Started, ExecError> {
        match container_id(task) {
            Some(text) => Ok(started(text.to_owned())),
            None => self.containers.start(task).await,
        }
    }

    fn ended(&self, task: &TaskId) -> oneshot::Receiver<Outcome> {
        let Some(target) = self.noted(task).and_then(|text| text.parse::<Target>().ok()) else { return self.containers.ended(task) };
        let (sender, receiver) = oneshot::channel();
        let (id, ours, places) = (task.clone(), self.namespaces.join(task.as_str()), self.places.clone());
        let watch = tokio::spawn(async move {
            match &target {
                Target::Container(container) => places.unwanted(&id, container).await,
                Target::Process(_) | Target::Namespace(_) => gone_from(&target, &ours).await,
            }
            let _ = sender.send(gone()); // nobody waits any more: it is being detached
        });
        self.watched.lock().expect("no panic while held").insert(task.clone(), AbortOnDropHandle::new(watch));
        receiver
    }

    async fn drain(&self, task: &TaskId) {
        if self.noted(task).is_none() {
            self.containers.drain(task).await;
        }
    }

    async fn stop(&self, task: &Task) -> Result<Option<Outcome>, ExecError> {
        if container_id(task).is_none() {
            return self.containers.stop(task).await;
        }
        self.release(&task.id).await.map(|()| None)
    }

    async fn release(&self, task: &TaskId) -> Result<(), ExecError> {
        if self.noted(task).is_none() {
            return self.containers.release(task).await;
        }
        self.watched.lock().expect("no panic while held").remove(task);
        match self.noted(task).map(|text| text.parse()) {
            Some(Ok(Target::Container(_))) => self.places.lose(task).await,
            _ => self.network.detach(task).await?,
        }
        failpoint!("agent.attachment.detached");
        match std::fs::remove_file(self.note(task)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ExecError::io("remove", self.note(task))(error)),
            _ => Ok(()),
        }
    }

    async fn forget(&self, task: &TaskId) -> Result<(), ExecError> {
        self.containers.forget(task).await
    }

    async fn probe(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<Probe, ExecError> {
        self.containers.probe(task, command, timeout).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_process_or_a_path() {
        let path = |text: &str| text.parse::<Target>().map(|target| target.path());
        assert_eq!(path("pid:12"), Ok(Some("/proc/12/ns/net".into())));
        assert_eq!(path("netns:/run/netns/a:b"), Ok(Some("/run/netns/a:b".into())));
        assert_eq!(path(&of_container(&TaskId::for_test(7))), Ok(None));
        for text in ["", "pid:", "pid:0", "pid:-1", "netns:relative", "container:", "4d2f9c", "docker:4d2f9c"] {
            assert!(path(text).unwrap_err().to_string().contains("netns:<absolute path>"), "{text}");
        }
    }

    #[test]
    fn namespaces_are_the_same_by_what_they_are() {
        let own = Path::new("/proc/self/ns/net");
        assert!(are_same(own, Path::new("/proc/thread-self/ns/net")));
        assert!(!are_same(own, Path::new("/proc/self/ns/mnt")));
        assert!(!are_same(Path::new("/no/such"), Path::new("/no/such")));
    }
}
