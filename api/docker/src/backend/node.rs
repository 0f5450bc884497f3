//! This node: what it is, and whether it is in a cluster.

use crate::ApiError;
use async_trait::async_trait;
use skep_types::{Availability, ClusterSpec, NodeDescription, NodeRole, Sensitive, Timestamp};

/// How this node stands towards a swarm, in dockerd's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LocalState {
    #[default]
    Inactive,
    /// It is becoming a member, or has not reached the cluster since it started.
    Pending,
    Active,
    /// It cannot play its part; `SwarmState::error` says why.
    Error,
    /// A manager whose state is sealed.
    Locked,
}

impl LocalState {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Error => "error",
            Self::Locked => "locked",
        }
    }
}

/// The node's membership; cheap to ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwarmState {
    pub local: LocalState,
    /// Empty: in no swarm.
    pub node_id: String,
    /// Address that other nodes reach it at, without port.
    pub node_addr: String,
    /// `None`: in no swarm.
    pub role: Option<NodeRole>,
    /// Whether the manager of this node answers.
    pub is_manager: bool,
    /// For people; empty: all is well.
    pub error: String,
    /// Managers it knows: their node's id, which may be unknown, and `host:port`.
    pub managers: Vec<(String, String)>,
}

impl SwarmState {
    /// What is said to calls that only a manager answers; clients tell these texts apart. `None`: it is one.
    #[must_use]
    pub fn refusal(&self) -> Option<ApiError> {
        let text = match (self.local, self.role) {
            _ if self.is_manager => return None,
            (LocalState::Locked, _) => {
                "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it."
            }
            (LocalState::Inactive, _) => {
                "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try \
                 again."
            }
            (_, Some(NodeRole::Worker)) => {
                "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a \
                 manager node or promote the current node to a manager."
            }
            _ => "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster.",
        };
        Some(ApiError::unavailable(text))
    }
}

/// A cluster to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Founding {
    /// Empty: as the daemon is configured.
    pub listen_addr: String,
    /// Empty: found out.
    pub advertise_addr: String,
    /// Empty: the advertised one.
    pub data_path_addr: String,
    /// 0 = 4789.
    pub data_path_port: u32,
    pub force_new_cluster: bool,
    pub default_addr_pool: Vec<String>,
    /// 0 = 24.
    pub subnet_size: u32,
    pub availability: Availability,
    /// The cluster begins with it.
    pub spec: ClusterSpec,
}

/// A cluster to be entered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joining {
    /// Empty: as the daemon is configured.
    pub listen_addr: String,
    /// Empty: found out.
    pub advertise_addr: String,
    /// Empty: the advertised one.
    pub data_path_addr: String,
    pub remote_addrs: Vec<String>,
    pub token: Sensitive<String>,
    pub availability: Availability,
}

/// What this machine and the software on it are; of now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Of this installation, in a cluster or not.
    pub engine_id: String,
    /// As the cluster is told.
    pub description: NodeDescription,
    /// `uname -r`.
    pub kernel_version: String,
    /// `PRETTY_NAME` of os-release.
    pub operating_system: String,
    /// `VERSION_ID` of os-release.
    pub os_version: String,
    pub data_dir: String,
    pub default_log_driver: String,
    pub insecure_registries: Vec<String>,
    /// What the kernel can limit.
    pub limits: Limits,
    pub ipv4_forwarding: bool,
    pub now: Timestamp,
    /// Open files of the daemon, and its threads.
    pub open_files: u64,
    pub threads: u64,
    /// 1 or 2.
    pub cgroup_version: u8,
    pub seccomp: bool,
    /// What does not work though it was asked for, in words.
    pub problems: Vec<String>,
    pub apparmor: bool,
    /// Snapshotter.
    pub driver: String,
    /// `None` while it does not answer.
    pub containerd: Option<Containerd>,
    /// Its version; `None` if it is not known.
    pub runc: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Containerd {
    pub version: String,
    pub address: String,
    pub namespace: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory: bool,
    pub swap: bool,
    pub cpu_quota: bool,
    pub cpu_shares: bool,
    pub cpuset: bool,
    pub pids: bool,
}

/// Credentials for a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    pub password: Sensitive<String>,
    /// Empty: Docker Hub.
    pub server: String,
}

/// This node's facts and its life in a cluster.
#[async_trait]
pub trait NodeLife: Send + Sync {
    /// Of this software.
    fn engine_version(&self) -> &str;
    async fn swarm(&self) -> SwarmState;
    async fn facts(&self) -> Result<NodeFacts, ApiError>;
    /// The id of this node.
    async fn init(&self, founding: Founding) -> Result<String, ApiError>;
    async fn join(&self, joining: Joining) -> Result<(), ApiError>;
    async fn leave(&self, force: bool) -> Result<(), ApiError>;
    async fn unlock(&self, key: Sensitive<String>) -> Result<(), ApiError>;
    /// Asks the registry.
    async fn check_login(&self, login: Login) -> Result<(), ApiError>;
}
