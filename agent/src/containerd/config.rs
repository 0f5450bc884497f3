//! Where containers are run, and where what belongs to them is kept.

use super::files::TaskDir;
use super::init;
use skep_types::TaskId;
use skep_types::template::NodeFacts;
use std::path::PathBuf;

/// On containers and snapshots: the task they belong to.
pub const TASK_LABEL: &str = "dev.skep.task";
/// On containers and snapshots: the data directory of the skepd that made them.
pub const OWNER_LABEL: &str = "dev.skep.owner";

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

    pub(super) fn shelf(&self) -> super::volumes::Shelf {
        super::volumes::Shelf { volumes: self.volumes_dir(), users: self.run_dir.join("volumes") }
    }

    pub(super) fn volumes_dir(&self) -> PathBuf {
        self.data_dir.join("agent/volumes")
    }

    pub(crate) fn task_dir(&self, task: &TaskId) -> TaskDir {
        TaskDir::new(self.tasks_dir().join(task.as_str()))
    }

    /// Files that the container may write to: on the disk, where it can write anyway, and not in the host's small `/run`.
    pub(crate) fn task_etc(&self, task: &TaskId) -> TaskDir {
        TaskDir::new(self.etc_dir().join(task.as_str()))
    }
}
