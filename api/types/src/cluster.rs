//! The cluster object: settings, root certificate, join tokens, keys.

use crate::{Annotations, ClusterId, Driver, Labels, Meta, NodeId, NodeRole, Timestamp, TunnelEpochs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Bytes that must not be printed: keys, tokens, payloads.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sensitive<T>(pub T);

impl<T> fmt::Debug for Sensitive<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("(sensitive)")
    }
}

/// How far the CA is with a certificate (`IssuanceStatus.state`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IssuanceState {
    #[default]
    Unknown,
    /// The node asked for a new one.
    Renew,
    /// A new node waits for its first one.
    Pending,
    Issued,
    Failed,
    /// The manager asks the node to renew now.
    Rotate,
}

/// A node's certificate as the CA knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    pub role: NodeRole,
    /// PEM, exactly as the node sent it.
    pub csr: Vec<u8>,
    pub state: IssuanceState,
    pub err: String,
    /// PEM chain, leaf first.
    pub certificate: Vec<u8>,
    /// The node id.
    pub cn: String,
}

/// The two secrets that let a machine join.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JoinTokens {
    pub worker: Sensitive<String>,
    pub manager: Sensitive<String>,
}

/// A change of root in progress.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootRotation {
    pub ca_cert: Vec<u8>,
    pub ca_key: Sensitive<Vec<u8>>,
    pub cross_signed_ca_cert: Vec<u8>,
}

/// The cluster's certificate authority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterRootCa {
    /// PEM; empty when only an external CA has it.
    pub ca_key: Sensitive<Vec<u8>>,
    /// PEM bundle.
    pub ca_cert: Vec<u8>,
    /// `sha256:<hex>` of `ca_cert`.
    pub ca_cert_hash: String,
    pub join_tokens: JoinTokens,
    pub root_rotation: Option<RootRotation>,
    pub last_forced_rotation: u64,
}

/// A symmetric key of the cluster, such as the unlock key or a network key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EncryptionKey {
    pub subsystem: String,
    pub key: Sensitive<Vec<u8>>,
    pub lamport_time: u64,
}

/// A CFSSL server that signs for the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExternalCa {
    pub url: String,
    pub options: Labels,
    pub ca_cert: Vec<u8>,
}

/// Settings of the CA.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaConfig {
    /// `None` = 90 days; at least one hour.
    pub node_cert_expiry: Option<Duration>,
    pub external_cas: Vec<ExternalCa>,
    pub signing_ca_cert: Vec<u8>,
    pub signing_ca_key: Sensitive<Vec<u8>>,
    pub force_rotate: u64,
}

/// Settings of the raft group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RaftConfig {
    /// Log entries between snapshots.
    pub snapshot_interval: u64,
    pub keep_old_snapshots: u64,
    pub log_entries_for_slow_followers: u64,
    pub heartbeat_tick: u32,
    pub election_tick: u32,
}

impl Default for RaftConfig {
    /// The original's defaults (wire-behaviour 27).
    fn default() -> Self {
        Self { snapshot_interval: 10_000, keep_old_snapshots: 0, log_entries_for_slow_followers: 500, heartbeat_tick: 1, election_tick: 10 }
    }
}

/// What an operator wants of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSpec {
    pub annotations: Annotations,
    /// Finished tasks kept per slot, the live one counted; negative = all.
    pub task_history_retention_limit: i64,
    pub raft: RaftConfig,
    /// `None` = 5 s.
    pub heartbeat_period: Option<Duration>,
    pub ca_config: CaConfig,
    pub task_log_driver: Option<Driver>,
    pub auto_lock_managers: bool,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            annotations: Annotations { name: "default".into(), ..Annotations::default() },
            task_history_retention_limit: 5,
            raft: RaftConfig::default(),
            heartbeat_period: Some(Duration::from_secs(5)),
            ca_config: CaConfig { node_cert_expiry: Some(Duration::from_secs(2160 * 3600)), ..CaConfig::default() },
            task_log_driver: None,
            auto_lock_managers: false,
        }
    }
}

/// The one cluster object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    #[serde(default)]
    pub meta: Meta,
    #[serde(default)]
    pub spec: ClusterSpec,
    #[serde(default)]
    pub root_ca: ClusterRootCa,
    #[serde(default)]
    pub network_bootstrap_keys: Vec<EncryptionKey>,
    #[serde(default)]
    pub encryption_key_lamport_clock: u64,
    /// Removed nodes whose certificates are still valid, with the end of that validity.
    #[serde(default)]
    pub blacklisted_certificates: BTreeMap<NodeId, Option<Timestamp>>,
    #[serde(default)]
    pub unlock_keys: Vec<EncryptionKey>,
    #[serde(default)]
    pub fips: bool,
    /// Pools for networks without a subnet; empty = `10.0.0.0/8`.
    #[serde(default)]
    pub default_address_pool: Vec<String>,
    /// Prefix length cut from the pools; 0 = 24.
    #[serde(default)]
    pub subnet_size: u32,
    /// 0 = 4789.
    #[serde(default)]
    pub vxlan_port: u32,
    /// Of the keys between nodes. Not on the original's wire.
    #[serde(default)]
    pub tunnel_epochs: TunnelEpochs,
}

impl Cluster {
    #[must_use]
    pub fn new(id: ClusterId) -> Self {
        Self {
            id,
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca: ClusterRootCa::default(),
            network_bootstrap_keys: Vec::new(),
            encryption_key_lamport_clock: 0,
            blacklisted_certificates: BTreeMap::new(),
            unlock_keys: Vec::new(),
            fips: false,
            default_address_pool: Vec::new(),
            subnet_size: 0,
            vxlan_port: 0,
            tunnel_epochs: TunnelEpochs::default(),
        }
    }
}
