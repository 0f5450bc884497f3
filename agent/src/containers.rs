//! The containers of this node, for people: what they are, what they say, and a hand on them.
//!
//! Nothing here decides what a task is to do: what is done to a container by hand is seen by its task's driver as if it had happened by
//! itself, and the orchestrator answers to that. Start with [`Containers`]. It owns the processes that people run in containers
//! ([`exec`]) and the readers of logs; all of them end with the agent.

mod act; // signals, stopping, pausing
mod archive; // files out of a container and into it
mod attach; // talking with a container's own process
mod changes; // what a container changed of its image
mod dial; // connections to what runs in a container
mod error; // why not
mod exec; // processes that people run beside a container's own
mod facts; // what there is to know of a container
mod lines; // its output
mod local; // containers that are no tasks
mod table; // the processes that people began
mod usage; // what it uses
mod volumes; // volumes of this node

pub use act::Patience;
pub use archive::{FileFacts, Incoming, Outgoing};
pub use attach::AttachWish;
pub use changes::{Change, ChangeKind};
pub use error::ContainersError;
pub use exec::{Attached, Chunk};
pub use facts::ContainerFacts;
pub use local::{Until, Waiting};
pub use table::{ExecPhase, ExecView, ExecWish};
pub use usage::{BlockUsage, NetworkUsage, Usage};
pub use volumes::{Volume, Volumes};

use crate::board::Board;
use crate::containerd::ContainerdExecutor;
use crate::engine::Engine;
use crate::locals::Locals;
use crate::logs::LogStream;
use skep_types::{Task, TaskId};
use std::sync::Arc;
use std::time::Duration;
use table::Execs;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// For the processes that people began to be killed and cleared away.
const LAST_WORK: Duration = Duration::from_secs(5);

/// Which of a process's streams.
pub type Stream = LogStream;

/// A handle on the containers of this node. Cheap to clone.
#[derive(Clone)]
pub struct Containers(Arc<Shared>);

struct Shared {
    executor: ContainerdExecutor,
    engine: Engine,
    /// Those that are no tasks.
    locals: Locals,
    execs: Execs,
    /// Processes that people run, and readers of logs.
    work: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Containers {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Containers")
    }
}

impl Containers {
    pub(crate) fn new(executor: ContainerdExecutor, engine: Engine, locals: Locals, stop: CancellationToken) -> Self {
        Self(Arc::new(Shared { executor, engine, locals, execs: Execs::default(), work: TaskTracker::new(), stop }))
    }

    /// Waits for the agent's end, and then for the processes that people began, which end with it. A client that takes an archive slowly
    /// must not keep the agent: what is under way for it ends when its connection does.
    pub(crate) async fn keep(self) {
        self.0.stop.cancelled().await;
        self.0.work.close();
        if tokio::time::timeout(LAST_WORK, self.0.work.wait()).await.is_err() {
            tracing::warn!("what somebody does with a container takes too long to end; going on without it");
        }
    }

    fn task(&self, id: &TaskId) -> Result<Arc<Task>, ContainersError> {
        if let Some(local) = self.0.locals.get(id) {
            return Ok(local.task);
        }
        let task = self.0.engine.tasks.now().get(id).cloned();
        task.filter(|task| task.spec.container().is_some()).ok_or_else(|| ContainersError::NotFound { container: id.to_string() })
    }

    /// What happened lately, and what happens.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.0.engine.board
    }

    /// The tasks that have a volume or are about to, and the containers that are no tasks.
    #[must_use]
    pub fn users_of_volume(&self, name: &str) -> Vec<TaskId> {
        let tasks = self.0.engine.tasks.now();
        let has = |task: &Task| {
            let newest = self.0.engine.reports.newest(&task.id);
            let state = newest.map_or(task.status.state, |status| status.state);
            let names = |mount: &skep_types::Mount| mount.kind == skep_types::MountType::Volume && mount.source == name;
            !state.is_terminal()
                && (task.spec.container().is_some_and(|spec| spec.mounts.iter().any(names))
                    || name.strip_prefix(task.id.as_str()).is_some())
        };
        let mut users: Vec<TaskId> = tasks.values().filter(|task| has(task)).map(|task| task.id.clone()).collect();
        users.extend(self.0.locals.users_of_volume(name));
        users
    }

    /// Where volumes are, and which tasks have which.
    #[must_use]
    pub fn volumes(&self) -> Volumes {
        Volumes::new(&self.0.executor.config().data_dir)
    }
}
