//! The cluster: what is read of it, what may be set, and the requests that begin, join and unlock one.

use super::common::Head;
use super::driver::Driver;
use super::value::{given_length, is_default, nanos};
use crate::{ApiError, ClusterEntry};
use serde::{Deserialize, Serialize};
use skep_types::{
    Annotations, Availability, CaConfig as WantedCa, ClusterSpec, ExternalCa as WantedExternalCa, FieldError, Labels, RaftConfig,
    Sensitive, TlsInfo as Tls,
};

/// `GET /swarm`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Swarm {
    #[serde(flatten)]
    pub cluster: ClusterInfo,
    pub join_tokens: JoinTokens,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct JoinTokens {
    pub worker: String,
    pub manager: String,
}

/// The cluster without what lets nodes in, as in `/info`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ClusterInfo {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub head: Head,
    pub spec: SwarmSpec,
    #[serde(rename = "TLSInfo")]
    pub tls_info: TlsInfo,
    pub root_rotation_in_progress: bool,
    pub default_addr_pool: Vec<String>,
    pub subnet_size: u32,
    pub data_path_port: u32,
}

/// Which root is trusted, and whose certificates are right; of a cluster that it should be, of a node that it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TlsInfo {
    #[serde(rename = "TrustRoot", skip_serializing_if = "is_default")]
    pub trust_root: String,
    #[serde(rename = "CertIssuerSubject", skip_serializing_if = "crate::body::Base64::is_empty")]
    pub cert_issuer_subject: crate::body::Base64,
    #[serde(rename = "CertIssuerPublicKey", skip_serializing_if = "crate::body::Base64::is_empty")]
    pub cert_issuer_public_key: crate::body::Base64,
}

impl From<&Tls> for TlsInfo {
    fn from(tls: &Tls) -> Self {
        let Tls { trust_root, cert_issuer_subject, cert_issuer_public_key } = tls.clone();
        Self {
            trust_root: String::from_utf8_lossy(&trust_root).into_owned(),
            cert_issuer_subject: crate::body::Base64(cert_issuer_subject),
            cert_issuer_public_key: crate::body::Base64(cert_issuer_public_key),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct SwarmSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    pub labels: Labels,
    pub orchestration: Orchestration,
    pub raft: Raft,
    pub dispatcher: Dispatcher,
    #[serde(rename = "CAConfig")]
    pub ca_config: CaConfig,
    pub task_defaults: TaskDefaults,
    pub encryption_config: EncryptionConfig,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Orchestration {
    #[serde(skip_serializing_if = "is_default")]
    pub task_history_retention_limit: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Raft {
    #[serde(skip_serializing_if = "is_default")]
    pub snapshot_interval: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub keep_old_snapshots: Option<u64>,
    #[serde(skip_serializing_if = "is_default")]
    pub log_entries_for_slow_followers: u64,
    pub election_tick: i64,
    pub heartbeat_tick: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Dispatcher {
    #[serde(skip_serializing_if = "is_default")]
    pub heartbeat_period: i64,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct CaConfig {
    #[serde(skip_serializing_if = "is_default")]
    pub node_cert_expiry: i64,
    #[serde(rename = "ExternalCAs", skip_serializing_if = "is_default")]
    pub external_cas: Vec<ExternalCa>,
    /// Only in requests, as the key.
    #[serde(rename = "SigningCACert", skip_serializing_if = "is_default")]
    pub signing_ca_cert: String,
    #[serde(rename = "SigningCAKey", skip_serializing)]
    pub signing_ca_key: String,
    #[serde(skip_serializing_if = "is_default")]
    pub force_rotate: u64,
}

impl std::fmt::Debug for CaConfig {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("CaConfig")
            .field("external_cas", &self.external_cas)
            .field("force_rotate", &self.force_rotate)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ExternalCa {
    pub protocol: String,
    #[serde(rename = "URL")]
    pub url: String,
    #[serde(skip_serializing_if = "is_default")]
    pub options: Labels,
    #[serde(rename = "CACert")]
    pub ca_cert: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct TaskDefaults {
    #[serde(skip_serializing_if = "is_default")]
    pub log_driver: Option<Driver>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct EncryptionConfig {
    pub auto_lock_managers: bool,
}

/// `POST /swarm/init`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct InitRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    pub data_path_port: u32,
    pub force_new_cluster: bool,
    pub spec: SwarmSpec,
    pub auto_lock_managers: bool,
    pub availability: String,
    pub default_addr_pool: Vec<String>,
    pub subnet_size: u32,
}

/// `POST /swarm/join`. The token is not printed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct JoinRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    pub remote_addrs: Vec<String>,
    pub join_token: String,
    pub availability: String,
}

/// `POST /swarm/unlock` and the answer of `GET /swarm/unlockkey`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct UnlockKey {
    pub unlock_key: String,
}

impl From<&ClusterEntry> for Swarm {
    fn from(entry: &ClusterEntry) -> Self {
        let tokens = entry.cluster.root_ca.join_tokens.clone();
        Self { cluster: entry.into(), join_tokens: JoinTokens { worker: tokens.worker.0, manager: tokens.manager.0 } }
    }
}

impl From<&ClusterEntry> for ClusterInfo {
    fn from(ClusterEntry { cluster, tls }: &ClusterEntry) -> Self {
        Self {
            id: cluster.id.to_string(),
            head: (&cluster.meta).into(),
            spec: (&cluster.spec).into(),
            tls_info: tls.into(),
            root_rotation_in_progress: cluster.root_ca.root_rotation.is_some(),
            default_addr_pool: cluster.default_address_pool.clone(),
            subnet_size: cluster.subnet_size,
            data_path_port: cluster.vxlan_port,
        }
    }
}

impl From<&ClusterSpec> for SwarmSpec {
    fn from(spec: &ClusterSpec) -> Self {
        let raft = &spec.raft;
        Self {
            name: spec.annotations.name.clone(),
            labels: spec.annotations.labels.clone(),
            orchestration: Orchestration { task_history_retention_limit: Some(spec.task_history_retention_limit) },
            raft: Raft {
                snapshot_interval: raft.snapshot_interval,
                keep_old_snapshots: Some(raft.keep_old_snapshots),
                log_entries_for_slow_followers: raft.log_entries_for_slow_followers,
                election_tick: raft.election_tick.into(),
                heartbeat_tick: raft.heartbeat_tick.into(),
            },
            dispatcher: Dispatcher { heartbeat_period: spec.heartbeat_period.map(nanos).unwrap_or_default() },
            ca_config: CaConfig {
                node_cert_expiry: spec.ca_config.node_cert_expiry.map(nanos).unwrap_or_default(),
                external_cas: spec.ca_config.external_cas.iter().map(Into::into).collect(),
                signing_ca_cert: String::from_utf8_lossy(&spec.ca_config.signing_ca_cert).into_owned(),
                signing_ca_key: String::new(),
                force_rotate: spec.ca_config.force_rotate,
            },
            task_defaults: TaskDefaults { log_driver: spec.task_log_driver.as_ref().map(Into::into) },
            encryption_config: EncryptionConfig { auto_lock_managers: spec.auto_lock_managers },
        }
    }
}

impl From<&WantedExternalCa> for ExternalCa {
    fn from(ca: &WantedExternalCa) -> Self {
        let WantedExternalCa { url, options, ca_cert } = ca.clone();
        Self { protocol: "cfssl".into(), url, options, ca_cert: String::from_utf8_lossy(&ca_cert).into_owned() }
    }
}

impl TryFrom<ExternalCa> for WantedExternalCa {
    type Error = FieldError;

    fn try_from(json: ExternalCa) -> Result<Self, FieldError> {
        let ExternalCa { protocol, url, options, ca_cert } = json;
        if !protocol.eq_ignore_ascii_case("cfssl") {
            return Err(FieldError::new("Protocol", format!("{protocol:?} is not known; use \"cfssl\"")));
        }
        Ok(Self { url, options, ca_cert: ca_cert.into_bytes() })
    }
}

impl SwarmSpec {
    /// The spec that is meant. What is left out or zero is as in a new cluster, except for booleans and orders.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn into_spec(self) -> Result<ClusterSpec, ApiError> {
        self.convert().map_err(|error| ApiError::invalid(error.inside("Spec").to_string()))
    }

    fn convert(self) -> Result<ClusterSpec, FieldError> {
        let usual = ClusterSpec::default();
        let Self { name, labels, orchestration, raft, dispatcher, ca_config, task_defaults, encryption_config } = self;
        let name = if name.is_empty() { usual.annotations.name } else { name };
        let tick = |field: &str, ticks: i64, usual: u32| match u32::try_from(ticks) {
            Ok(0) => Ok(usual),
            Ok(ticks) => Ok(ticks),
            Err(_) => Err(FieldError::new(format!("Raft.{field}"), format!("{ticks} is not a number of ticks"))),
        };
        let or = |value: u64, usual: u64| if value == 0 { usual } else { value };
        Ok(ClusterSpec {
            annotations: Annotations { name, labels, indices: Vec::new() },
            task_history_retention_limit: orchestration.task_history_retention_limit.unwrap_or(usual.task_history_retention_limit),
            raft: RaftConfig {
                snapshot_interval: or(raft.snapshot_interval, usual.raft.snapshot_interval),
                keep_old_snapshots: raft.keep_old_snapshots.unwrap_or(usual.raft.keep_old_snapshots),
                log_entries_for_slow_followers: or(raft.log_entries_for_slow_followers, usual.raft.log_entries_for_slow_followers),
                heartbeat_tick: tick("HeartbeatTick", raft.heartbeat_tick, usual.raft.heartbeat_tick)?,
                election_tick: tick("ElectionTick", raft.election_tick, usual.raft.election_tick)?,
            },
            heartbeat_period: given_length("Dispatcher.HeartbeatPeriod", dispatcher.heartbeat_period)?.or(usual.heartbeat_period),
            ca_config: WantedCa {
                node_cert_expiry: given_length("CAConfig.NodeCertExpiry", ca_config.node_cert_expiry)?.or(usual.ca_config.node_cert_expiry),
                external_cas: super::value::list("CAConfig.ExternalCAs", ca_config.external_cas)?,
                signing_ca_cert: ca_config.signing_ca_cert.into_bytes(),
                signing_ca_key: Sensitive(ca_config.signing_ca_key.into_bytes()),
                force_rotate: ca_config.force_rotate,
            },
            task_log_driver: task_defaults.log_driver.map(Into::into),
            auto_lock_managers: encryption_config.auto_lock_managers,
        })
    }
}

/// As in requests about nodes; empty: active.
///
/// # Errors
/// 400 with the word.
pub(crate) fn availability(word: &str) -> Result<Availability, ApiError> {
    super::node::availability::from("Availability", word).map_err(|_| ApiError::invalid(format!("invalid Availability: {word:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Cluster, ClusterId};

    #[test]
    fn a_spec_reads_back_as_it_was_written() {
        let mut spec = ClusterSpec::default();
        spec.annotations.labels.insert("a".into(), "b".into());
        spec.task_history_retention_limit = 0;
        spec.ca_config.external_cas.push(WantedExternalCa { url: "https://x".into(), ..WantedExternalCa::default() });
        spec.auto_lock_managers = true;
        let json = serde_json::to_value(SwarmSpec::from(&spec)).unwrap();
        let read: SwarmSpec = crate::body::from_value(json).unwrap();
        assert_eq!(read.into_spec().unwrap(), spec);
    }

    #[test]
    fn what_is_left_out_is_as_in_a_new_cluster() {
        let read: SwarmSpec = crate::body::from_value(serde_json::json!({"Labels": null})).unwrap();
        assert_eq!(read.into_spec().unwrap(), ClusterSpec::default());
        let negative: SwarmSpec = crate::body::from_value(serde_json::json!({"caconfig": {"NodeCertExpiry": -1}})).unwrap();
        assert!(negative.into_spec().unwrap_err().message.contains("Spec.CAConfig.NodeCertExpiry"));
    }

    #[test]
    fn a_new_cluster_looks_as_dockerds() {
        let cluster = Cluster::new(ClusterId::for_test(1));
        let json = serde_json::to_value(Swarm::from(&ClusterEntry { cluster, tls: Tls::default() })).unwrap();
        assert_eq!(
            json["Spec"],
            serde_json::json!({
                "Name": "default", "Labels": {}, "Orchestration": {"TaskHistoryRetentionLimit": 5},
                "Raft": {"SnapshotInterval": 10000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 500, "ElectionTick": 10, "HeartbeatTick": 1},
                "Dispatcher": {"HeartbeatPeriod": 5_000_000_000u64}, "CAConfig": {"NodeCertExpiry": 7_776_000_000_000_000u64},
                "TaskDefaults": {}, "EncryptionConfig": {"AutoLockManagers": false}
            })
        );
        assert_eq!((&json["TLSInfo"], &json["Version"]), (&serde_json::json!({}), &serde_json::json!({})));
        assert_eq!(json["RootRotationInProgress"], false);
    }
}
