//! The executor: from a task to a process and back to nothing.
//!
//! A start takes four calls (snapshot, container, create, start), an end three (delete task, container, snapshot); exits
//! come by event. The container, the snapshot and the process all have the task's id for a name, so that whatever a crash
//! leaves is found again by [`super::recover`] and replaced or removed.

use super::client::{CALL_LIMIT, CallError, Client};
use super::config::ContainerdConfig;
use super::events::{Exits, oom_probe};
use super::host::host_facts;
use super::prepare::Prepared;
use super::recover;
use super::spec::HostFacts;
use crate::board::Board;
use crate::error::ExecError;
use crate::executor::{Executor, Found, Images, Network, Probe, Started};
use crate::logs::LogWriter;
use crate::payloads::Payloads;
use crate::task::Outcome;
use async_trait::async_trait;
use oci_spec::runtime::Process;
use skep_types::{Task, TaskId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

/// What a start, an end and a health check work with.
pub(super) struct Shared {
    pub client: Client,
    pub config: ContainerdConfig,
    pub host: HostFacts,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn Network>,
    pub logs: LogWriter,
    pub exits: Exits,
    pub starts: Semaphore,
    pub prepared: Mutex<HashMap<TaskId, Prepared>>,
    /// The processes of containers, for health checks.
    pub processes: Mutex<HashMap<TaskId, Process>>,
    /// Of these tasks something may be there; of others nothing is, and nobody need be asked.
    pub touched: Mutex<HashSet<TaskId>>,
    pub probes: AtomicU64,
    /// Containers that are no tasks, and what the last survey found of them.
    pub locals: Mutex<BTreeMap<TaskId, (Task, Option<Found>)>>,
    /// Signals sent to tasks that are stopped, and volumes made and removed, are told there.
    pub board: Board,
}

/// Runs tasks as containers of containerd. Cheap to clone.
#[derive(Clone)]
pub struct ContainerdExecutor(pub(super) Arc<Shared>);

impl ContainerdExecutor {
    /// # Errors
    /// If the configuration is wrong; containerd is not spoken to yet.
    pub fn new(
        config: ContainerdConfig,
        images: Arc<dyn Images>,
        network: Arc<dyn Network>,
        logs: LogWriter,
        board: Board,
    ) -> Result<Self, ExecError> {
        let client = Client::new(&config.socket, &config.namespace)?;
        let shared = Shared {
            client,
            host: host_facts(),
            images,
            network,
            logs,
            exits: Exits::new(oom_probe(config.cgroup_parent.clone())),
            starts: Semaphore::new(config.parallel_starts),
            prepared: Mutex::default(),
            processes: Mutex::default(),
            touched: Mutex::default(),
            probes: AtomicU64::new(0),
            locals: Mutex::default(),
            board,
            config,
        };
        Ok(Self(Arc::new(shared)))
    }

    /// Hears containerd's events until `stop`; must run for anything to be started.
    pub async fn listen(&self, stop: CancellationToken) {
        self.0.exits.listen(self.0.client.clone(), stop).await;
    }

    /// Ends what containerd started and lost, until `stop`.
    pub async fn clear_lost_shims(&self, stop: CancellationToken) {
        super::shims::keep_clear(self.0.client.clone(), self.0.config.clone(), stop).await;
    }

    /// Such as `1.6.20`.
    ///
    /// # Errors
    /// If containerd does not answer.
    pub async fn engine_version(&self) -> Result<String, ExecError> {
        let client = &self.0.client;
        let answer = client.call("tell its version", CALL_LIMIT, client.version().version(client.request(()))).await;
        let version = answer.map_err(|error| client.explain(error))?.version;
        // Debian's is `1.6.20~ds1-1+deb12u1`.
        Ok(version.trim_start_matches('v').split(['~', '+', '-']).next().unwrap_or_default().to_owned())
    }
}

impl Shared {
    pub(super) fn explain(&self) -> impl Fn(CallError) -> ExecError + '_ {
        |error| self.client.explain(error)
    }
}

#[async_trait]
impl Executor for ContainerdExecutor {
    async fn survey(&self) -> Result<BTreeMap<TaskId, Found>, ExecError> {
        let this = &self.0;
        let mut found = recover::survey(&this.client, &this.config).await?;
        for (task, state) in &found {
            if matches!(state, Found::Logs) {
                continue;
            }
            this.touched.lock().expect("no panic while held").insert(task.clone());
            if let Found::Running(_) = state {
                this.exits.track(task.as_str());
                this.exits.started(task.as_str());
                this.clear_execs(task).await;
                if let Some(kept) = this.config.task_dir(task).kept() {
                    let open = this.output_of(task, kept.terminal, kept.log);
                    if let Err(error) = this.logs.open(open).await {
                        tracing::warn!(%task, error = %error.words(), "the output of a task is not written");
                    }
                }
            }
        }
        this.set_aside_locals(&mut found);
        Ok(found)
    }

    fn others(&self) -> Vec<(Task, bool)> {
        let locals = self.0.locals.lock().expect("no panic while held");
        locals.values().map(|(task, found)| (task.clone(), matches!(found, Some(Found::Running(_))))).collect()
    }

    async fn prepare(&self, task: &Task, payloads: &Payloads, cancel: &CancellationToken) -> Result<(), ExecError> {
        self.0.prepare(task, payloads, cancel).await
    }

    async fn start(&self, task: &Task) -> Result<Started, ExecError> {
        self.0.start(task).await
    }

    fn ended(&self, task: &TaskId) -> oneshot::Receiver<Outcome> {
        self.0.exits.ended(task.as_str())
    }

    async fn drain(&self, task: &TaskId) {
        if let Err(error) = self.0.logs.finish(task).await {
            tracing::warn!(%task, error = %error.words(), "the last output of a task may be missing for now");
        }
    }

    async fn stop(&self, task: &Task) -> Result<Option<Outcome>, ExecError> {
        self.0.stop(task).await
    }

    async fn release(&self, task: &TaskId) -> Result<(), ExecError> {
        self.0.release(task).await
    }

    async fn forget(&self, task: &TaskId) -> Result<(), ExecError> {
        let path = self.0.config.logs_dir().join(task.as_str());
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ExecError::io("remove the logs", path)(error)),
            _ => Ok(()),
        }
    }

    async fn probe(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<Probe, ExecError> {
        self.0.probe(task, command, timeout).await
    }
}
