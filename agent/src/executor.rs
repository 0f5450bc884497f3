//! What the agent asks of the parts that do the work: traits of its own, so that tests and the wiring choose.

use crate::error::{ExecError, ImageError, NetworkError};
use crate::network::{Changes, Following};
use crate::payloads::Payloads;
use crate::task::Outcome;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use skep_types::{ContainerStatus, HealthConfig, PortConfig, Task, TaskId, TunnelKey};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// A started container.
#[derive(Debug, Clone)]
pub struct Started {
    pub container: ContainerStatus,
    /// The check to make, from the spec or from the image; `None` = none.
    pub health: Option<HealthConfig>,
}

/// What is there of a task from an earlier life of the agent.
#[derive(Debug, Clone)]
pub enum Found {
    /// Nothing but its output, which stays until the task is forgotten.
    Logs,
    /// Remains without a process: a container, a snapshot, files.
    Remains,
    Running(Started),
    Ended(Outcome),
}

/// How one run of a health check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// `None`: it did not end in time and was killed.
    pub exit_code: Option<i32>,
    /// The first part of what it wrote.
    pub output: String,
}

/// Makes, starts, stops and removes the containers of tasks. Every operation may be repeated after a crash in its middle.
#[async_trait]
pub trait Executor: Send + Sync + 'static {
    /// Everything of earlier tasks, by task; looked up once at start.
    async fn survey(&self) -> Result<BTreeMap<TaskId, Found>, ExecError>;

    /// Containers of this node that are no tasks and not in [`Self::survey`], and which of them run: the network must know them.
    fn others(&self) -> Vec<(Task, bool)> {
        Vec::new()
    }

    /// Brings all to the point where the process can be started. `cancel` ends a pull at once.
    async fn prepare(&self, task: &Task, payloads: &Payloads, cancel: &CancellationToken) -> Result<(), ExecError>;

    /// Starts the process of a prepared task.
    async fn start(&self, task: &Task) -> Result<Started, ExecError>;

    /// Resolves once with the end of the task's process, also when that was before this call.
    /// The sender is dropped only when the task is released.
    fn ended(&self, task: &TaskId) -> oneshot::Receiver<Outcome>;

    /// Called when the process has ended, before anybody is told: from then on its log is whole. Gives up after a while, for the end
    /// is told in any case.
    async fn drain(&self, task: &TaskId);

    /// Signal, grace period, SIGKILL; then all that [`Self::release`] does. No process is not an error.
    async fn stop(&self, task: &Task) -> Result<Option<Outcome>, ExecError>;

    /// Removes container, snapshot, namespaces, files of a task without a process; its logs stay.
    async fn release(&self, task: &TaskId) -> Result<(), ExecError>;

    /// Removes the task's logs.
    async fn forget(&self, task: &TaskId) -> Result<(), ExecError>;

    /// Runs a command in the task's container.
    async fn probe(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<Probe, ExecError>;
}

/// What a container needs to know of its image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: String,
    /// Paths that want a volume.
    pub volumes: Vec<String>,
    pub health: Option<HealthConfig>,
}

/// An image that is here, unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReady {
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// `sha256:…` of the configuration: what people call the image's id.
    pub id: String,
    /// The committed snapshot of its top layer.
    pub chain_id: String,
    pub snapshotter: String,
    pub config: Arc<ImageConfig>,
}

/// Finds and fetches images.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// The image, pulled first if it is not here. An image that is here serves when its registry does not.
    async fn ensure(&self, reference: &str, registry_auth: &str) -> Result<ImageReady, ImageError>;
}

/// The network of a task that was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// Of its network namespace; `None` = the host's.
    pub namespace: Option<PathBuf>,
    /// Its own addresses, for its hosts file.
    pub addresses: Vec<IpAddr>,
    /// DNS servers that answer in its namespace; empty = the host's.
    pub nameservers: Vec<IpAddr>,
}

/// Connects tasks.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Makes the namespace of a task and what its published host ports need; finds it when it is there.
    async fn attach(&self, task: &Task) -> Result<Sandbox, NetworkError>;

    /// The task answers: lets connections come to it. Returns its host-mode ports as they really are.
    async fn serve(&self, task: &Task) -> Result<Vec<PortConfig>, NetworkError>;

    /// No new connection comes to the task once this is done; bounded in time.
    async fn withdraw(&self, task: &TaskId);

    /// After [`Self::withdraw`], before a task that managers want gone is stopped: waits until other nodes lead nobody to it any
    /// more, as far as anybody can say so; bounded in time.
    async fn cleared(&self, _task: &TaskId) {}

    /// A task whose network exists is on one network more or less; its namespace and what is connected otherwise stay.
    async fn change(&self, _task: &Task) -> Result<Sandbox, NetworkError> {
        Err(NetworkError::Kernel { step: "change", reason: "this node's network cannot be changed while it is in use".into() })
    }

    /// Removes the task's namespace and whatever was made for it.
    async fn detach(&self, task: &TaskId) -> Result<(), NetworkError>;

    /// The tasks of this node after a restart, and which of them run: those are served on without a gap. What belongs to
    /// other tasks is removed.
    async fn recover(&self, tasks: &[(Task, bool)]) -> Result<(), NetworkError>;

    /// Whether this node can encrypt what it sends to others; if not, why, in words.
    async fn can_encrypt(&self) -> Result<(), String> {
        Err("its agent does not know how to".into())
    }

    /// Before [`Self::take`]: makes what these changes need first.
    async fn prepare(&self, _changes: &Changes) {}

    /// CIDRs that this machine's own devices are in.
    fn local_prefixes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Waits until what a packet may measure on this node's device towards the others is known and not `told`; for ever, if nobody knows.
    async fn underlay_mtu(&self, _told: u32) -> u32 {
        std::future::pending().await
    }

    /// The public halves of this node's keys for encrypted networks.
    fn tunnel_keys(&self) -> Vec<TunnelKey> {
        Vec::new()
    }

    /// What a manager says of networks that span nodes. In effect when [`Self::programmed`] says so.
    fn take(&self, _changes: Changes) {}

    /// Waits until all that was taken in is in place on this node; bounded in time.
    async fn programmed(&self) -> Result<(), NetworkError> {
        Ok(())
    }

    /// Whether a manager tells of other nodes from now on.
    fn following(&self, _following: Following) {}

    /// What is to be looked after as long as the agent runs. Returns soon after `stop`.
    async fn keep(&self, stop: CancellationToken) {
        stop.cancelled().await;
    }
}
