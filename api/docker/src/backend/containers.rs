//! What the endpoints of containers need of this node.

use super::Connection;
use crate::ApiError;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use skep_types::{ContainerSpec, Driver, Labels, PortConfig, ResourceRequirements, Timestamp};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How a container is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Made or being made, not started.
    #[default]
    Created,
    Running,
    Paused,
    /// It ended and is about to be started again.
    Restarting,
    Exited,
    /// It ended and what is left of it cannot be used.
    Dead,
}

/// The life of a container's process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Life {
    pub phase: Phase,
    /// On the host; 0 = none.
    pub pid: i32,
    pub exit_code: i32,
    pub is_oom_killed: bool,
    /// Why it could not be started or failed, for people.
    pub error: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

/// What health checks say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    pub word: HealthWord,
    pub failures_in_a_row: u32,
    /// The last ones, oldest first.
    pub log: Vec<HealthResult>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HealthWord {
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthResult {
    pub began: Timestamp,
    pub ended: Timestamp,
    /// -1: it did not end in time.
    pub exit_code: i32,
    pub output: String,
}

/// Something mounted in a container, as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountPoint {
    /// `bind`, `volume`, `tmpfs`.
    pub kind: &'static str,
    /// Of a volume.
    pub name: String,
    /// On the host; empty for tmpfs.
    pub source: String,
    pub destination: String,
    pub is_writable: bool,
    pub propagation: String,
}

/// A container's end of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    pub network: String,
    pub network_id: String,
    /// CIDR; empty = none known.
    pub address: String,
    pub gateway: String,
    pub address_v6: String,
    pub gateway_v6: String,
    pub aliases: Vec<String>,
    /// All that it is called there.
    pub dns_names: Vec<String>,
    /// 64 hexadecimal digits; empty = none.
    pub id: String,
    /// Empty = not known.
    pub mac: String,
    /// That were wished for, at most one per family.
    pub wished: Vec<IpAddr>,
}

/// The final process, where it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    pub arguments: Vec<String>,
    pub env: Vec<String>,
    pub dir: String,
    pub hostname: String,
}

/// Files on the host that the container sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFiles {
    pub resolv_conf: String,
    pub hostname: String,
    pub hosts: String,
}

/// A container of this node. What was asked for is in `spec` and `resources`, what became of it in the rest.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    pub created_at: Timestamp,
    /// `sha256:…` of its configuration; empty while it is not known.
    pub image_id: String,
    pub spec: ContainerSpec,
    pub resources: ResourceRequirements,
    /// Those of `spec` and those that say whose task it is.
    pub labels: Labels,
    /// Whether it is a task's.
    pub is_task: bool,
    pub program: Program,
    pub life: Life,
    pub health: Option<Health>,
    pub mounts: Vec<MountPoint>,
    pub networks: Vec<Endpoint>,
    /// Published by this node alone.
    pub ports: Vec<PortConfig>,
    pub log_driver: Option<Driver>,
    pub files: HostFiles,
    pub cgroup_parent: String,
    pub snapshotter: String,
    /// Ids of its execs.
    pub execs: Vec<String>,
    /// What only one that is no task's has.
    pub plain: Option<Plain>,
}

/// A container that somebody made by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plain {
    /// [`NewContainer::asked`], or the newest [`ContainerUpdate::asked`].
    pub asked: String,
    pub restart_count: u32,
}

/// When a container is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RestartWish {
    #[default]
    Never,
    /// So many times; 0 = without limit.
    OnFailure {
        at_most: u32,
    },
    Always,
    UnlessStopped,
}

/// The network of a container that is made by hand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkWish {
    /// This node's own.
    #[default]
    Own,
    Host,
    None,
    /// Those of [`NewContainer::places`].
    Places,
}

/// A place on a network that somebody wishes for a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceWish {
    /// Name or id; `bridge` is this node's own.
    pub network: String,
    pub aliases: Vec<String>,
    /// At most one per family.
    pub addresses: Vec<IpAddr>,
}

/// A port that this node publishes for a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPort {
    pub port: PortConfig,
    /// The last of those the node may choose from; the first is the port's own. `None`: there is no choice but that one.
    pub last: Option<u16>,
}

/// A container that is to be made.
#[derive(Debug, Clone, Default)]
pub struct NewContainer {
    /// Without the leading slash.
    pub name: String,
    pub spec: ContainerSpec,
    pub resources: ResourceRequirements,
    pub network: NetworkWish,
    /// In their order; empty unless `network` says so.
    pub places: Vec<PlaceWish>,
    pub ports: Vec<HostPort>,
    pub log_driver: Option<Driver>,
    /// A name of the image on this node: what the user wrote may be an id.
    pub reference: String,
    pub restart: RestartWish,
    pub auto_remove: bool,
    pub stdin_once: bool,
    /// Kept as it is, for [`Plain::asked`].
    pub asked: String,
}

/// What is to be changed of one. What is absent stays.
#[derive(Debug, Clone, Default)]
pub struct ContainerUpdate {
    pub nano_cpus: Option<i64>,
    pub memory_bytes: Option<i64>,
    /// Above the memory's limit; -1 = no limit.
    pub swap_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    pub restart: Option<RestartWish>,
    pub asked: String,
}

/// What of a container's process a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachWish {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Which stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdStream {
    Stdout,
    Stderr,
}

/// Bytes that a process wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub stream: StdStream,
    pub data: Bytes,
}

/// A line of a container's log, or a piece of a very long one, with its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerLine {
    pub time: Timestamp,
    pub stream: StdStream,
    pub data: Bytes,
}

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinesWanted {
    pub stdout: bool,
    pub stderr: bool,
    pub since: Option<Timestamp>,
    /// `None` = all.
    pub tail: Option<usize>,
    pub follow: bool,
}

/// What a container used, at one moment. Times in nanoseconds, sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub read_at: Timestamp,
    pub cpu_total: u64,
    pub cpu_kernel: u64,
    pub cpu_user: u64,
    /// Of all CPUs of the machine, idle time included.
    pub cpu_system: u64,
    pub cpus: u32,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_time: u64,
    pub memory: u64,
    /// The highest so far; 0 = not known.
    pub memory_peak: u64,
    pub memory_limit: u64,
    pub memory_failures: u64,
    /// As the kernel names them.
    pub memory_details: std::collections::BTreeMap<String, u64>,
    pub pids: u64,
    /// 0 = none.
    pub pids_limit: u64,
    pub networks: std::collections::BTreeMap<String, NetworkUsage>,
    pub block: Vec<BlockUsage>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkUsage {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Bytes that went to or came from one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockUsage {
    pub major: u64,
    pub minor: u64,
    /// `read` or `write`.
    pub operation: &'static str,
    pub bytes: u64,
}

/// Processes as `ps` prints them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processes {
    pub titles: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// Characters of a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WindowSize {
    pub height: u32,
    pub width: u32,
}

/// How a container is asked to end. What is absent is as the container was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    pub signal: Option<String>,
    /// Before it is killed.
    pub patience: Option<Patience>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    For(Duration),
    Forever,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitFor {
    /// Also if it does not run now.
    #[default]
    NotRunning,
    NextExit,
    Removed,
}

/// A process to be run beside a container's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecWish {
    /// Full id.
    pub container: String,
    pub command: Vec<String>,
    pub env: Vec<String>,
    /// Empty = the container's.
    pub user: String,
    /// Empty = the container's.
    pub dir: String,
    pub has_stdin: bool,
    pub has_stdout: bool,
    pub has_stderr: bool,
    pub has_terminal: bool,
    pub is_privileged: bool,
    pub detach_keys: String,
    pub window: Option<WindowSize>,
}

/// An exec, as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exec {
    pub id: String,
    pub wish: ExecWish,
    pub is_running: bool,
    /// `None` until it ended.
    pub exit_code: Option<i32>,
    /// On the host; 0 = none.
    pub pid: u32,
}

/// A process to talk with.
pub struct Attached {
    /// What it reads; dropped at the end of input. `None`: nobody reads.
    pub input: Option<mpsc::Sender<Bytes>>,
    /// What it writes; ends after the end of the process is known to those who ask.
    pub output: BoxStream<'static, Chunk>,
    pub has_terminal: bool,
}

/// A file in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileFacts {
    pub name: String,
    pub size: i64,
    /// As Go's `os.FileMode` numbers it.
    pub mode: u32,
    pub modified: Timestamp,
    pub link_target: String,
}

/// What a container changed of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    pub path: String,
    pub kind: ChangeKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ChangeKind {
    Modified = 0,
    Added = 1,
    Deleted = 2,
}

/// A network of the cluster that containers of this node are on.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkHere {
    pub network: Arc<skep_types::Network>,
    pub places: Vec<PlaceHere>,
}

/// What a container has there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceHere {
    /// Its id in this API.
    pub container: String,
    pub name: String,
    /// Of its place; in this API, too.
    pub endpoint: String,
    /// With the length of their prefix.
    pub addresses: Vec<String>,
}

/// A tar stream.
pub type Tar = BoxStream<'static, std::io::Result<Bytes>>;

/// The containers of this node. `id` is always a full id, which [`Containers::list`] gave.
#[async_trait]
pub trait Containers: Send + Sync + 'static {
    /// All, whatever their state.
    async fn list(&self) -> Result<Vec<Container>, ApiError>;

    /// Networks of the cluster as this node knows them, a manager or not: those that containers are on which have not ended.
    async fn networks(&self) -> Result<Vec<NetworkHere>, ApiError>;

    /// Ids of those that people made by hand and of those that tasks have look the same.
    fn is_made_by_hand(&self, id: &str) -> bool;

    /// Puts one that people made by hand on one more network: now if it runs, else from its next start on.
    async fn connect(&self, id: &str, wish: PlaceWish) -> Result<(), ApiError>;

    /// Takes one that people made by hand off a network.
    async fn disconnect(&self, id: &str, network: &str) -> Result<(), ApiError>;

    /// Lines until there are no more.
    async fn logs(&self, id: &str, wanted: LinesWanted) -> Result<BoxStream<'static, Vec<ContainerLine>>, ApiError>;

    /// `None`: it does not run.
    async fn usage(&self, id: &str) -> Result<Option<Usage>, ApiError>;

    async fn processes(&self, id: &str, ps_arguments: &str) -> Result<Processes, ApiError>;

    /// Name or number of a signal.
    async fn kill(&self, id: &str, signal: &str) -> Result<(), ApiError>;

    async fn stop(&self, id: &str, ending: Ending) -> Result<(), ApiError>;

    async fn start(&self, id: &str) -> Result<(), ApiError>;

    async fn restart(&self, id: &str, ending: Ending) -> Result<(), ApiError>;

    async fn pause(&self, id: &str) -> Result<(), ApiError>;

    async fn unpause(&self, id: &str) -> Result<(), ApiError>;

    /// Made, not started; its id.
    async fn create(&self, wish: NewContainer) -> Result<String, ApiError>;

    async fn rename(&self, id: &str, name: &str) -> Result<(), ApiError>;

    async fn update(&self, id: &str, update: ContainerUpdate) -> Result<(), ApiError>;

    /// From now on; of one that does not run, from its start on. `None`: there is nothing but its log.
    async fn attach(&self, id: &str, wish: AttachWish) -> Result<Option<Attached>, ApiError>;

    /// Waits from the moment on in which this returns, for as long as it takes; the exit code.
    async fn wait(&self, id: &str, until: WaitFor) -> Result<BoxFuture<'static, Result<i32, ApiError>>, ApiError>;

    async fn resize(&self, id: &str, window: WindowSize) -> Result<(), ApiError>;

    /// `with_volumes`: those that nobody gave a name.
    async fn remove(&self, id: &str, with_volumes: bool) -> Result<(), ApiError>;

    /// The id of a new exec, which is not started yet.
    async fn create_exec(&self, wish: ExecWish) -> Result<String, ApiError>;

    async fn exec(&self, exec: &str) -> Result<Exec, ApiError>;

    /// Starts it. Detached: nobody takes its output. A program that cannot be started is an error only there; else its output says so.
    async fn start_exec(&self, exec: &str, is_detached: bool, window: Option<WindowSize>) -> Result<Attached, ApiError>;

    async fn resize_exec(&self, exec: &str, window: WindowSize) -> Result<(), ApiError>;

    /// A connection to what listens at a port of the container's own loopback address.
    async fn dial(&self, id: &str, port: u16) -> Result<Box<dyn Connection>, ApiError>;

    async fn file(&self, id: &str, path: &str) -> Result<FileFacts, ApiError>;

    /// The file or directory at a path, its last name being the archive's first.
    async fn read_archive(&self, id: &str, path: &str) -> Result<(FileFacts, Tar), ApiError>;

    /// Unpacks into the directory at a path. `keep_kind`: a directory never takes the place of a file, nor the other way round.
    async fn write_archive(&self, id: &str, path: &str, keep_kind: bool, archive: Tar) -> Result<(), ApiError>;

    async fn changes(&self, id: &str) -> Result<Vec<FileChange>, ApiError>;
}
