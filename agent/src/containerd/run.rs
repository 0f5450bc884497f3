//! The executor: from a task to a process and back to nothing.
//!
//! A start takes four calls (snapshot, container, create, start), an end three (delete task, container, snapshot); exits
//! come by event. The container, the snapshot and the process all have the task's id for a name, so that whatever a crash
//! leaves is found again by [`super::recover`] and replaced or removed.

use super::client::{CALL_LIMIT, CallError, Client, PROCESS_LIMIT};
use super::events::{Exits, oom_probe};
use super::files::{self, Kept, TaskDir};
use super::spec::{self, HostFacts};
use super::{init, recover, rootfs, volumes};
use crate::error::ExecError;
use crate::executor::{Executor, Found, ImageReady, Images, Network, Probe, Sandbox, Started};
use crate::health::HealthCheck;
use crate::logs::{LogOptions, LogWriter, Open};
use crate::payloads::Payloads;
use crate::task::Outcome;
use crate::template::{self, NodeFacts};
use async_trait::async_trait;
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteProcessRequest, DeleteTaskRequest,
    ExecProcessRequest, GetContainerRequest, KillRequest, StartRequest,
};
use containerd_client::types::Mount as RootMount;
use nix::sys::signal::Signal;
use oci_spec::runtime::{Process, Spec};
use prost::Message;
use prost_types::Any;
use skep_failpoint::failpoint;
use skep_types::{ContainerSpec, ContainerStatus, HealthConfig, Task, TaskId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// On containers and snapshots: the task they belong to.
pub const TASK_LABEL: &str = "dev.skep.task";
/// On containers and snapshots: the data directory of the skepd that made them.
pub const OWNER_LABEL: &str = "dev.skep.owner";
/// Keeps a snapshot from containerd's garbage collector while no container names it (dependencies 2a, pitfall 2).
const GC_ROOT_LABEL: &str = "containerd.io/gc.root";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// As Docker's.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// SIGKILL takes effect at once unless the process hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// For the subscription to containerd's events to be live.
const LIVE_LIMIT: Duration = Duration::from_secs(10);
/// Output of a health check that is kept, bytes (as Docker's).
const PROBE_OUTPUT: usize = 4096;
/// Bytes of a health check's output after which it is read slowly: one that prints without end must not keep us busy.
const MUCH_OUTPUT: usize = 1 << 20;

/// Where and how containers are run.
#[derive(Debug, Clone)]
pub struct ContainerdConfig {
    pub socket: PathBuf,
    /// containerd's namespace.
    pub namespace: String,
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub node: NodeFacts,
    pub snapshotter: String,
    /// A containerd runtime such as `io.containerd.runc.v2`.
    pub runtime: String,
    /// The OCI runtime that the shim calls; `None` = runc from its PATH.
    pub runtime_binary: Option<PathBuf>,
    /// Under which every container has its cgroup.
    pub cgroup_parent: String,
    /// Where the static `skep-init` may be, process 1 of containers that ask for one; the first that is there is taken.
    pub init: Vec<PathBuf>,
    /// Containers that are being created or started at once.
    pub parallel_starts: usize,
}

impl ContainerdConfig {
    #[must_use]
    pub fn new(socket: PathBuf, data_dir: PathBuf, run_dir: PathBuf, node: NodeFacts) -> Self {
        Self {
            socket,
            namespace: "skep".into(),
            data_dir,
            run_dir,
            node,
            snapshotter: "overlayfs".into(),
            runtime: "io.containerd.runc.v2".into(),
            runtime_binary: None,
            cgroup_parent: "/skep".into(),
            init: init::places(),
            parallel_starts: std::thread::available_parallelism().map_or(4, |cpus| cpus.get() * 2).clamp(2, 8),
        }
    }

    pub(super) fn owner(&self) -> String {
        self.data_dir.display().to_string()
    }

    /// `<data>/agent/logs`
    #[must_use]
    pub fn logs_dir(&self) -> PathBuf {
        self.data_dir.join("agent/logs")
    }

    pub(super) fn tasks_dir(&self) -> PathBuf {
        self.run_dir.join("tasks")
    }

    /// `<data>/agent/etc`
    pub(super) fn etc_dir(&self) -> PathBuf {
        self.data_dir.join("agent/etc")
    }

    fn volumes_dir(&self) -> PathBuf {
        self.data_dir.join("agent/volumes")
    }

    pub(super) fn task_dir(&self, task: &TaskId) -> TaskDir {
        TaskDir::new(self.tasks_dir().join(task.as_str()))
    }

    /// Files that the container may write to: on the disk, where it can write anyway, and not in the host's small `/run`.
    fn task_etc(&self, task: &TaskId) -> TaskDir {
        TaskDir::new(self.etc_dir().join(task.as_str()))
    }
}

/// `containerd.runc.v1.Options`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
}

/// A container that is ready to be started.
struct Prepared {
    mounts: Vec<RootMount>,
    terminal: bool,
    stdin: Option<PathBuf>,
    health: Option<HealthConfig>,
}

struct Shared {
    client: Client,
    config: ContainerdConfig,
    host: HostFacts,
    images: Arc<dyn Images>,
    network: Arc<dyn Network>,
    logs: LogWriter,
    exits: Exits,
    starts: Semaphore,
    prepared: Mutex<HashMap<TaskId, Prepared>>,
    /// The processes of containers, for health checks.
    processes: Mutex<HashMap<TaskId, Process>>,
    /// Of these tasks something may be there; of others nothing is, and nobody need be asked.
    touched: Mutex<HashSet<TaskId>>,
    probes: AtomicU64,
}

/// Runs tasks as containers of containerd. Cheap to clone.
#[derive(Clone)]
pub struct ContainerdExecutor(Arc<Shared>);

impl ContainerdExecutor {
    /// # Errors
    /// If the configuration is wrong; containerd is not spoken to yet.
    pub fn new(config: ContainerdConfig, images: Arc<dyn Images>, network: Arc<dyn Network>, logs: LogWriter) -> Result<Self, ExecError> {
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

/// What this kernel can do.
fn host_facts() -> HostFacts {
    let uname = nix::sys::utsname::uname().ok();
    let text = |pick: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        uname.as_ref().map(|name| pick(name).to_string_lossy().into_owned()).unwrap_or_default()
    };
    let release = text(|name| name.release());
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let cgroup_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    HostFacts {
        architecture: match text(|name| name.machine()).as_str() {
            "aarch64" => "arm64".into(),
            "x86_64" => "amd64".into(),
            other => other.to_owned(),
        },
        kernel: (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)),
        cgroup_v2,
        // v2 counts swap wherever there is any; v1 only when told so at boot.
        swap_accounting: cgroup_v2 || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
    }
}

/// `SIGTERM`, `TERM`, `15`, `RTMIN+3`.
fn signal_number(text: &str) -> Result<i32, ExecError> {
    let bad = || ExecError::BadSpec { field: "stop_signal", problem: format!("there is no signal {text:?}") };
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        // 34: the first that libc leaves to programs.
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+').and_then(|n| n.parse().ok()).ok_or_else(bad)? };
        return if (0..=30).contains(&offset) { Ok(34 + offset) } else { Err(bad()) };
    }
    Signal::from_str(&format!("SIG{name}")).map(|signal| signal as i32).map_err(|_| bad())
}

impl Shared {
    fn explain(&self) -> impl Fn(CallError) -> ExecError + '_ {
        |error| self.client.explain(error)
    }

    /// The image and the network, which need nothing of each other.
    async fn fetch(&self, task: &Task, spec: &ContainerSpec, cancel: &CancellationToken) -> Result<(ImageReady, Sandbox), ExecError> {
        let image = async {
            tokio::select! {
                () = cancel.cancelled() => Err(ExecError::Cancelled),
                image = self.images.ensure(&spec.image, &spec.registry_auth.0) => Ok(image?),
            }
        };
        let (image, sandbox) = tokio::join!(image, self.network.attach(task));
        Ok((image?, sandbox?))
    }

    async fn prepare_snapshot(&self, task: &TaskId, image: &ImageReady) -> Result<Vec<RootMount>, ExecError> {
        let labels = [(TASK_LABEL, task.to_string()), (OWNER_LABEL, self.config.owner()), (GC_ROOT_LABEL, "1".into())];
        let message = PrepareSnapshotRequest {
            snapshotter: image.snapshotter.clone(),
            key: task.to_string(),
            parent: image.chain_id.clone(),
            labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        };
        let request = self.client.request(message);
        let answer = self.client.call("prepare the root file system", CALL_LIMIT, self.client.snapshots().prepare(request)).await;
        Ok(answer.map_err(self.explain())?.mounts)
    }

    async fn prepare(&self, task: &Task, payloads: &Payloads, cancel: &CancellationToken) -> Result<(), ExecError> {
        let spec = template::expand(task.spec.container().ok_or(ExecError::NotAContainer)?, task, &self.config.node)?;
        let log = LogOptions::of(task.log_driver.as_ref())?;
        let init = init::wanted(&spec, &self.config.init)?;
        if !self.touched.lock().expect("no panic while held").insert(task.id.clone()) {
            self.release(&task.id).await?;
            self.touched.lock().expect("no panic while held").insert(task.id.clone());
        }
        let (image, sandbox) = self.fetch(task, &spec, cancel).await?;
        failpoint!("agent.prepare.attached");
        let mounts = self.prepare_snapshot(&task.id, &image).await?;
        failpoint!("agent.prepare.snapshot");
        let health = HealthCheck::merge(spec.healthcheck.as_ref(), image.config.health.as_ref())
            .map_err(|error| ExecError::BadSpec { field: "healthcheck.test", problem: error.to_string() })?
            .map(|check| check.to_config());
        let kept = Kept {
            health: health.clone(),
            stop_signal: stop_signal(&spec, &image)?,
            terminal: spec.tty,
            log,
            snapshotter: image.snapshotter.clone(),
            own_volumes: Vec::new(),
        };
        let made = self.make_files(task, &spec, &image, &sandbox, payloads, &mounts, init.as_deref(), kept)?;
        failpoint!("agent.prepare.files");
        self.logs.open(self.output_of(&task.id, spec.tty, log)).await?;
        failpoint!("agent.prepare.logs");
        self.create_container(task, &spec, &image, made.spec).await?;
        failpoint!("agent.prepare.container");
        let stdin = made.stdin;
        self.prepared.lock().expect("no panic while held").insert(task.id.clone(), Prepared { mounts, terminal: spec.tty, stdin, health });
        Ok(())
    }

    fn output_of(&self, task: &TaskId, terminal: bool, options: LogOptions) -> Open {
        let dir = self.config.task_dir(task);
        Open {
            task: task.clone(),
            stdout: dir.join("stdout"),
            stderr: (!terminal).then(|| dir.join("stderr")),
            dir: self.config.logs_dir().join(task.as_str()),
            options,
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one container, used once")]
    fn make_files(
        &self,
        task: &Task,
        container: &ContainerSpec,
        image: &ImageReady,
        sandbox: &Sandbox,
        payloads: &Payloads,
        root: &[RootMount],
        init: Option<&Path>,
        mut kept: Kept,
    ) -> Result<Made, ExecError> {
        let dir = self.config.task_dir(&task.id);
        dir.create()?;
        failpoint!("agent.files.directory");
        let hostname = files::hostname(container, task, sandbox, &self.config.node);
        let etc = self.config.task_etc(&task.id);
        etc.create()?;
        failpoint!("agent.files.etc");
        etc.write("hostname", format!("{hostname}\n"))?;
        etc.write("hosts", files::hosts(container, &hostname, sandbox)?)?;
        etc.write("resolv.conf", files::resolv_conf(container, sandbox))?;
        dir.make_fifo("stdout")?;
        failpoint!("agent.files.stdout");
        if !container.tty {
            dir.make_fifo("stderr")?;
        }
        // Nobody ever writes into it: the container's input stays open and empty.
        let stdin = if container.open_stdin { Some(dir.make_fifo("stdin")?) } else { None };
        let layers = rootfs::layers(root);
        let wanted = if container.user.is_empty() { &image.config.user } else { &container.user };
        let user = rootfs::resolve_user(&layers, wanted, &container.groups)?;
        let secret_files = files::write_payloads(&dir, task, container, payloads)?;
        failpoint!("agent.files.payloads");
        let place = volumes::Place { task: &task.id, volumes: &self.config.volumes_dir(), dir: &dir, root };
        let ready = volumes::make_ready(container, &image.config.volumes, &secret_files, &place)?;
        kept.own_volumes = ready.own_volumes;
        dir.keep(&kept)?;
        let spec = spec::build(&spec::Input {
            container,
            resources: task.spec.resources.as_ref(),
            individuals: &task.assigned_generic_resources,
            init,
            image: &image.config,
            user: &user,
            hostname: &hostname,
            namespace: sandbox.namespace.as_deref(),
            etc: etc.path(),
            mounts: &ready.mounts,
            cgroup: &format!("{}/{}", self.config.cgroup_parent, task.id),
            host: &self.host,
        })?;
        Ok(Made { spec, stdin })
    }

    async fn create_container(&self, task: &Task, container: &ContainerSpec, image: &ImageReady, spec: Spec) -> Result<(), ExecError> {
        let text =
            serde_json::to_vec(&spec).map_err(|error| ExecError::Runtime { step: "encode the container", reason: error.to_string() })?;
        if let Some(process) = spec.process() {
            self.processes.lock().expect("no panic while held").insert(task.id.clone(), process.clone());
        }
        let options = self.config.runtime_binary.as_ref().map(|binary| Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: RuncOptions { binary_name: binary.display().to_string() }.encode_to_vec(),
        });
        let record = Container {
            id: task.id.to_string(),
            labels: labels(task, container, &self.config),
            image: container.image.clone(),
            runtime: Some(Runtime { name: self.config.runtime.clone(), options }),
            spec: Some(Any { type_url: SPEC_TYPE.into(), value: text }),
            snapshotter: image.snapshotter.clone(),
            snapshot_key: task.id.to_string(),
            ..Container::default()
        };
        let request = self.client.request(CreateContainerRequest { container: Some(record) });
        let answer = self.client.call("create the container", CALL_LIMIT, self.client.containers().create(request)).await;
        answer.map(drop).map_err(self.explain())
    }

    async fn start(&self, task: &Task) -> Result<Started, ExecError> {
        let id = task.id.as_str();
        let prepared = self.prepared.lock().expect("no panic while held").remove(&task.id);
        // Only after a restart of the agent, which prepares again: a repeated attempt, not an error of the task.
        let prepared = prepared.ok_or(ExecError::Timeout { step: "prepare the container", seconds: 0 })?;
        let _permit = self.starts.acquire().await.map_err(|_| ExecError::Cancelled)?;
        tokio::time::timeout(LIVE_LIMIT, self.exits.wait_live())
            .await
            .map_err(|_| ExecError::Unreachable { socket: self.config.socket.clone(), reason: "its events are not heard".into() })?;
        self.exits.track(id);
        let dir = self.config.task_dir(&task.id);
        let path = |path: Option<PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
        let request = self.client.request(CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs: prepared.mounts,
            stdin: path(prepared.stdin),
            stdout: path(Some(dir.join("stdout"))),
            stderr: path((!prepared.terminal).then(|| dir.join("stderr"))),
            terminal: prepared.terminal,
            ..CreateTaskRequest::default()
        });
        failpoint!("agent.start.before_create");
        let created = self.client.call("create the process", PROCESS_LIMIT, self.client.tasks().create(request)).await;
        let pid = created.map_err(self.explain())?.pid;
        failpoint!("agent.start.created");
        let request = self.client.request(StartRequest { container_id: id.to_owned(), exec_id: String::new() });
        let started = self.client.call("start the process", PROCESS_LIMIT, self.client.tasks().start(request)).await;
        started.map_err(self.explain())?;
        failpoint!("agent.start.started");
        self.exits.started(id);
        let container = ContainerStatus { container_id: id.to_owned(), pid: pid.cast_signed(), exit_code: 0 };
        Ok(Started { container, health: prepared.health })
    }

    /// Sends a signal; false if there is no process.
    async fn kill(&self, id: &str, exec: &str, signal: i32) -> Result<bool, ExecError> {
        let message = KillRequest { container_id: id.to_owned(), exec_id: exec.to_owned(), signal: signal.unsigned_abs(), all: false };
        let request = self.client.request(message);
        match self.client.call("send a signal", PROCESS_LIMIT, self.client.tasks().kill(request)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is(Code::NotFound) => Ok(false),
            Err(error) => Err(self.client.explain(error)),
        }
    }

    async fn stop(&self, task: &Task) -> Result<Option<Outcome>, ExecError> {
        let id = task.id.as_str();
        if !self.touched.lock().expect("no panic while held").contains(&task.id) {
            return Ok(None);
        }
        let kept = self.config.task_dir(&task.id).kept();
        let signal = kept.map_or(libc::SIGTERM, |kept| kept.stop_signal);
        let grace = task.spec.container().and_then(|spec| spec.stop_grace_period).unwrap_or(DEFAULT_GRACE);
        let mut ended = self.exits.ended(id);
        let mut outcome = ended.try_recv().ok();
        if outcome.is_none() && self.kill(id, "", signal).await? {
            failpoint!("agent.stop.signalled");
            outcome = tokio::time::timeout(grace, &mut ended).await.ok().and_then(Result::ok);
            if outcome.is_none() && self.kill(id, "", libc::SIGKILL).await? {
                failpoint!("agent.stop.killed");
                outcome = tokio::time::timeout(KILL_LIMIT, &mut ended).await.ok().and_then(Result::ok);
            }
        }
        failpoint!("agent.stop.ended");
        self.release(&task.id).await?;
        Ok(outcome)
    }

    async fn delete_process(&self, id: &str) -> Result<(), CallError> {
        let request = self.client.request(DeleteTaskRequest { container_id: id.to_owned() });
        match self.client.call("delete the process", PROCESS_LIMIT, self.client.tasks().delete(request)).await {
            Err(error) if !error.is(Code::NotFound) => Err(error),
            _ => Ok(()),
        }
    }

    async fn remove_process(&self, id: &str) -> Result<(), ExecError> {
        let first = self.delete_process(id).await;
        if !first.as_ref().is_err_and(|error| error.is(Code::FailedPrecondition)) {
            return first.map_err(self.explain());
        }
        // It runs: what a start left whose answer never came.
        self.exits.started(id);
        let ended = self.exits.ended(id);
        if self.kill(id, "", libc::SIGKILL).await? {
            let _ = tokio::time::timeout(KILL_LIMIT, ended).await; // if it is still there, deleting says so
        }
        self.delete_process(id).await.map_err(self.explain())
    }

    async fn remove_container(&self, id: &str) -> Result<(), ExecError> {
        let request = self.client.request(DeleteContainerRequest { id: id.to_owned() });
        match self.client.call("delete the container", CALL_LIMIT, self.client.containers().delete(request)).await {
            Err(error) if !error.is(Code::NotFound) => Err(self.client.explain(error)),
            _ => Ok(()),
        }
    }

    async fn remove_snapshot(&self, id: &str, snapshotter: String) -> Result<(), ExecError> {
        let request = self.client.request(RemoveSnapshotRequest { snapshotter, key: id.to_owned() });
        match self.client.call("remove the root file system", CALL_LIMIT, self.client.snapshots().remove(request)).await {
            Err(error) if !error.is(Code::NotFound) => Err(self.client.explain(error)),
            _ => Ok(()),
        }
    }

    /// Goes on after a failure and returns the first; what is left is found by the next attempt.
    async fn release(&self, task: &TaskId) -> Result<(), ExecError> {
        if !self.touched.lock().expect("no panic while held").contains(task) {
            return Ok(());
        }
        let id = task.as_str();
        let dir = self.config.task_dir(task);
        let kept = dir.kept();
        let snapshotter = kept.as_ref().map_or_else(|| self.config.snapshotter.clone(), |kept| kept.snapshotter.clone());
        self.remove_process(id).await?;
        failpoint!("agent.release.process");
        let (container, network, logs) = tokio::join!(self.remove_container(id), self.network.detach(task), self.logs.finish(task));
        failpoint!("agent.release.container");
        let snapshot = self.remove_snapshot(id, snapshotter).await;
        failpoint!("agent.release.snapshot");
        let own = kept.map_or(Ok(()), |kept| volumes::remove_own(&self.config.volumes_dir(), &kept.own_volumes));
        container.and(network.map_err(ExecError::from)).and(logs).and(snapshot).and(own)?;
        failpoint!("agent.release.volumes");
        self.config.task_etc(task).remove()?;
        dir.remove()?;
        failpoint!("agent.release.files");
        self.exits.untrack(id);
        self.prepared.lock().expect("no panic while held").remove(task);
        self.processes.lock().expect("no panic while held").remove(task);
        self.touched.lock().expect("no panic while held").remove(task);
        Ok(())
    }

    /// The process of a container, which an agent that adopted it does not know.
    async fn process(&self, task: &TaskId) -> Result<Process, ExecError> {
        if let Some(process) = self.processes.lock().expect("no panic while held").get(task) {
            return Ok(process.clone());
        }
        let request = self.client.request(GetContainerRequest { id: task.to_string() });
        let answer = self.client.call("find the container", CALL_LIMIT, self.client.containers().get(request)).await;
        let spec = answer.map_err(self.explain())?.container.and_then(|container| container.spec);
        let spec: Option<Spec> = spec.and_then(|any| serde_json::from_slice(&any.value).ok());
        let process = spec.and_then(|spec| spec.process().clone());
        let missing = || ExecError::Runtime { step: "find the container's process", reason: "it has none".into() };
        let process = process.ok_or_else(missing)?;
        self.processes.lock().expect("no panic while held").insert(task.clone(), process.clone());
        Ok(process)
    }

    async fn probe(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<Probe, ExecError> {
        let id = task.as_str();
        let process = spec::exec_process(&self.process(task).await?, command);
        let exec = format!("probe-{}-{}", std::process::id(), self.probes.fetch_add(1, Ordering::Relaxed));
        let dir = self.config.task_dir(task);
        let pipe = dir.make_fifo(&exec)?;
        let probed = self.run_probe(id, &exec, &pipe, process, timeout).await;
        self.exits.forget_exec(id, &exec);
        let request = self.client.request(DeleteProcessRequest { container_id: id.to_owned(), exec_id: exec });
        let _ = self.client.call("delete the health check", PROCESS_LIMIT, self.client.tasks().delete_process(request)).await;
        let _ = std::fs::remove_file(pipe); // else it goes with the directory
        probed
    }

    async fn run_probe(&self, id: &str, exec: &str, pipe: &Path, process: Process, timeout: Duration) -> Result<Probe, ExecError> {
        let receiver = tokio::net::unix::pipe::OpenOptions::new().read_write(true).open_receiver(pipe);
        let mut receiver = receiver.map_err(ExecError::io("open the pipe", pipe))?;
        let text = serde_json::to_vec(&process)
            .map_err(|error| ExecError::Runtime { step: "encode the health check", reason: error.to_string() })?;
        let request = self.client.request(ExecProcessRequest {
            container_id: id.to_owned(),
            stdout: pipe.display().to_string(),
            stderr: pipe.display().to_string(),
            spec: Some(Any { type_url: PROCESS_TYPE.into(), value: text }),
            exec_id: exec.to_owned(),
            ..ExecProcessRequest::default()
        });
        self.client.call("add the health check", PROCESS_LIMIT, self.client.tasks().exec(request)).await.map_err(self.explain())?;
        let mut ended = self.exits.exec_ended(id, exec);
        let request = self.client.request(StartRequest { container_id: id.to_owned(), exec_id: exec.to_owned() });
        self.client.call("start the health check", PROCESS_LIMIT, self.client.tasks().start(request)).await.map_err(self.explain())?;
        let mut output = Vec::new();
        let ending = async {
            let exit_code = tokio::time::timeout(timeout, &mut ended).await.ok().and_then(Result::ok);
            if exit_code.is_none() && self.kill(id, exec, libc::SIGKILL).await? {
                let late = tokio::time::timeout(KILL_LIMIT, ended).await;
                drop(late); // too late to count
            }
            Ok::<_, ExecError>(exit_code)
        };
        let exit_code = tokio::select! {
            exit_code = ending => exit_code?,
            never = take_in(&mut receiver, &mut output) => match never {},
        };
        // The pipe never ends, as we hold it open ourselves: take what is there.
        let _ = tokio::time::timeout(Duration::from_millis(1), take_in(&mut receiver, &mut output)).await;
        Ok(Probe { exit_code, output: String::from_utf8_lossy(&output).into_owned() })
    }
}

/// Reads on, so that a health check that prints a whole page does not wait for us; keeps the beginning.
async fn take_in(receiver: &mut (impl AsyncRead + Unpin), output: &mut Vec<u8>) -> Infallible {
    let mut buffer = vec![0; 16 * 1024];
    let mut total = 0;
    while let Ok(count @ 1..) = receiver.read(&mut buffer).await {
        output.extend_from_slice(&buffer[..count.min(PROBE_OUTPUT - output.len())]);
        total += count;
        if total > MUCH_OUTPUT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    std::future::pending().await
}

/// What the files of a task gave.
struct Made {
    spec: Spec,
    stdin: Option<PathBuf>,
}

fn stop_signal(spec: &ContainerSpec, image: &ImageReady) -> Result<i32, ExecError> {
    let given = [&spec.stop_signal, &image.config.stop_signal].into_iter().find(|text| !text.is_empty());
    given.map_or(Ok(libc::SIGTERM), |text| signal_number(text))
}

/// Ours, Swarm's usual ones (wire-behaviour 28), and the user's.
fn labels(task: &Task, container: &ContainerSpec, config: &ContainerdConfig) -> HashMap<String, String> {
    let own = [
        (TASK_LABEL, task.id.to_string()),
        (OWNER_LABEL, config.owner()),
        ("com.docker.swarm.task", String::new()),
        ("com.docker.swarm.task.id", task.id.to_string()),
        ("com.docker.swarm.task.name", task.name()),
        ("com.docker.swarm.node.id", config.node.id.clone()),
        ("com.docker.swarm.service.id", task.service_id.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("com.docker.swarm.service.name", task.service_annotations.name.clone()),
    ];
    // Some tell containerd to run programs of the host (`containerd.io/restart.loguri`), and it refuses long ones.
    let harmless = |(name, value): &(&String, &String)| !name.starts_with("containerd.io/") && name.len() + value.len() <= 4096;
    let users = container.labels.iter().filter(harmless).map(|(name, value)| (name.clone(), value.clone()));
    users.chain(own.into_iter().map(|(name, value)| (name.to_owned(), value))).collect()
}

#[async_trait]
impl Executor for ContainerdExecutor {
    async fn survey(&self) -> Result<BTreeMap<TaskId, Found>, ExecError> {
        let this = &self.0;
        let found = recover::survey(&this.client, &this.config).await?;
        for (task, state) in &found {
            if matches!(state, Found::Logs) {
                continue;
            }
            this.touched.lock().expect("no panic while held").insert(task.clone());
            if let Found::Running(_) = state {
                this.exits.track(task.as_str());
                this.exits.started(task.as_str());
                if let Some(kept) = this.config.task_dir(task).kept() {
                    let open = this.output_of(task, kept.terminal, kept.log);
                    if let Err(error) = this.logs.open(open).await {
                        tracing::warn!(%task, error = %error.words(), "the output of a task is not written");
                    }
                }
            }
        }
        Ok(found)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_health_check_may_print_more_than_is_kept() {
        use tokio::io::AsyncWriteExt;
        let (mut there, mut here) = tokio::io::duplex(64);
        let mut output = Vec::new();
        let printing = async {
            there.write_all(b"begin ").await.unwrap();
            there.write_all(&vec![b'x'; 200_000]).await.unwrap();
        };
        tokio::select! {
            () = printing => {}
            never = take_in(&mut here, &mut output) => match never {},
        }
        assert_eq!(output.len(), PROBE_OUTPUT);
        assert!(output.starts_with(b"begin xxx"));
    }

    #[test]
    fn signals_are_known_by_name_and_number() {
        assert_eq!(signal_number("SIGQUIT").unwrap(), 3);
        assert_eq!(signal_number("term").unwrap(), 15);
        assert_eq!(signal_number("9").unwrap(), 9);
        assert_eq!(signal_number("SIGRTMIN+3").unwrap(), 37);
        for text in ["SIGNONE", "0", "65", "-9", "RTMIN+99", "RTMIN-1"] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }
}
