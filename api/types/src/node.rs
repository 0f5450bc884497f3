//! Nodes: what they are asked to be, what they report, how they are.

use crate::{Annotations, Certificate, Encrypting, Labels, Meta, NetworkAttachment, NodeId, Platform, Resources, TunnelKey, UpdateOrder};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a node's certificate lets it do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeRole {
    #[default]
    Worker,
    Manager,
}

impl fmt::Display for NodeRole {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        })
    }
}

/// Whether a node that asked to join was let in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Membership {
    #[default]
    Pending,
    Accepted,
}

/// Whether a node takes tasks: `Active` yes, `Pause` keeps what it has, `Drain` gives them up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    #[default]
    Active,
    Pause,
    Drain,
}

/// What an operator wants of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    pub annotations: Annotations,
    pub desired_role: NodeRole,
    pub membership: Membership,
    pub availability: Availability,
    /// Of a drained node: `StartFirst` lets tasks of services that start first themselves run there until those in their place do.
    /// Not on the original's wire.
    pub drain_order: UpdateOrder,
}

/// How the manager sees a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Not heard of since this leader started.
    #[default]
    Unknown,
    /// Heartbeats stopped.
    Down,
    Ready,
    /// Told to move to another manager.
    Disconnected,
}

/// The state of a node with the reason and the address it was last seen at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    pub state: NodeState,
    pub message: String,
    /// IP address of the session, without port; feeds the constraint `node.ip`.
    pub addr: String,
}

/// A capability of a node's engine, such as (`Network`, `overlay`).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Plugin {
    pub kind: String,
    pub name: String,
}

/// The software that runs tasks on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineDescription {
    pub engine_version: String,
    pub labels: Labels,
    pub plugins: Vec<Plugin>,
}

/// Which root a node trusts and which issuer signed its certificate; drives root rotation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsInfo {
    /// PEM bundle.
    pub trust_root: Vec<u8>,
    /// DER of the issuer's subject.
    pub cert_issuer_subject: Vec<u8>,
    /// DER of the issuer's SubjectPublicKeyInfo.
    pub cert_issuer_public_key: Vec<u8>,
}

/// What a node reports of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeDescription {
    pub hostname: String,
    pub platform: Platform,
    pub resources: Resources,
    /// `None` switches the scheduler's plugin filter off for this node.
    pub engine: Option<EngineDescription>,
    pub tls_info: Option<TlsInfo>,
    pub fips: bool,
}

/// Whether the other managers reach this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reachability {
    #[default]
    Unknown,
    Unreachable,
    Reachable,
}

/// A manager's place in the raft group; added to answers, not stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManagerStatus {
    pub raft_id: u64,
    pub addr: String,
    pub leader: bool,
    pub reachability: Reachability,
}

/// How the other nodes reach a node in networks that span hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeOverlay {
    /// Its number among its peers, unique in the cluster, 1 or more; 0 = not given yet.
    pub index: u32,
    /// IP address for VXLAN.
    pub underlay: String,
    /// What a packet may measure on the device of that address, in bytes; 0 = it did not say.
    pub underlay_mtu: u32,
    /// CIDRs of the machine's own devices: networks without a subnet are given none that overlaps them.
    pub local_prefixes: Vec<String>,
    /// Whether it can be given tasks of encrypted networks.
    pub encrypting: Encrypting,
    /// Its end of the tunnels of encrypted networks, by epoch; at most two.
    pub tunnel_keys: Vec<TunnelKey>,
}

/// A machine of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    #[serde(default)]
    pub meta: Meta,
    #[serde(default)]
    pub spec: NodeSpec,
    /// `None` until the node's first session.
    #[serde(default)]
    pub description: Option<NodeDescription>,
    #[serde(default)]
    pub status: NodeStatus,
    #[serde(default)]
    pub certificate: Certificate,
    /// What the CA will put into the next certificate; the wish is `spec.desired_role`.
    #[serde(default)]
    pub role: NodeRole,
    /// One entry per overlay network in use on the node, for workers of the original.
    #[serde(default)]
    pub attachments: Vec<NetworkAttachment>,
    /// VXLAN UDP port; 0 = 4789.
    #[serde(default)]
    pub vxlan_port: u32,
    /// `None`: it never asked for the state of networks, as workers of the original, and is nobody's peer. Not on the
    /// original's wire.
    #[serde(default)]
    pub overlay: Option<NodeOverlay>,
}

impl Node {
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            meta: Meta::default(),
            spec: NodeSpec::default(),
            description: None,
            status: NodeStatus::default(),
            certificate: Certificate::default(),
            role: NodeRole::default(),
            attachments: Vec::new(),
            vxlan_port: 0,
            overlay: None,
        }
    }

    /// The name people know the node by: its host name, or its id before it reported one.
    #[must_use]
    pub fn display_name(&self) -> &str {
        match &self.description {
            Some(description) if !description.hostname.is_empty() => &description.hostname,
            _ => self.id.as_str(),
        }
    }
}
