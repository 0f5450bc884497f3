//! The cluster object: settings, root certificate, join tokens, keys.

use super::{FromWire, ToWire, full, message, number, plain};
use crate::v1;
use skep_types::{
    CaConfig, Certificate, Cluster, ClusterRootCa, ClusterSpec, EncryptionKey, ExternalCa, FieldError, IssuanceState, JoinTokens, NodeId,
    RaftConfig, RootRotation, Timestamp,
};
use std::collections::BTreeMap;

number!(IssuanceState, v1::issuance_status::State {
    Unknown = Unknown,
    Renew = Renew,
    Pending = Pending,
    Issued = Issued,
    Failed = Failed,
    Rotate = Rotate,
});

message!(JoinTokens <=> v1::JoinTokens { worker => sensitive, manager => sensitive });
message!(RootRotation <=> v1::RootRotation { ca_cert => as_is, ca_key => sensitive, cross_signed_ca_cert => as_is });
message!(ClusterRootCa <=> v1::RootCa {
    ca_key => sensitive,
    ca_cert => as_is,
    ca_cert_hash,
    join_tokens => full,
    root_rotation,
    last_forced_rotation,
});
message!(CaConfig <=> v1::CaConfig {
    node_cert_expiry,
    external_cas,
    signing_ca_cert => as_is,
    signing_ca_key => sensitive,
    force_rotate,
});
message!(RaftConfig <=> v1::RaftConfig {
    snapshot_interval,
    keep_old_snapshots,
    log_entries_for_slow_followers,
    heartbeat_tick,
    election_tick,
});
message!(Cluster <=> v1::Cluster {
    id,
    meta => full,
    spec => full,
    root_ca => full,
    network_bootstrap_keys,
    encryption_key_lamport_clock,
    blacklisted_certificates => blacklist,
    unlock_keys,
    fips,
    default_address_pool,
    subnet_size,
    vxlan_port: vxlanudp_port,
} keeps { tunnel_epochs });

impl FromWire for Certificate {
    type Wire = v1::Certificate;
    fn from_wire(wire: v1::Certificate) -> Result<Self, FieldError> {
        let v1::Certificate { role, csr, status, certificate, cn } = wire;
        let v1::IssuanceStatus { state, err } = status.unwrap_or_default();
        let state = plain::from("status.state", state)?;
        Ok(Self { role: plain::from("role", role)?, csr, state, err, certificate, cn })
    }
}

impl ToWire for Certificate {
    type Wire = v1::Certificate;
    fn to_wire(&self) -> v1::Certificate {
        let Self { role, csr, state, err, certificate, cn } = self;
        let status = v1::IssuanceStatus { state: state.to_wire(), err: err.clone() };
        v1::Certificate { role: role.to_wire(), csr: csr.clone(), status: Some(status), certificate: certificate.clone(), cn: cn.clone() }
    }
}

/// Refuses every number but 0, of enums that have one value so far.
fn only(field: &str, number: i32, name: &str) -> Result<(), FieldError> {
    if number == 0 { Ok(()) } else { Err(FieldError::new(field, format!("{number} is not known; use 0 ({name})"))) }
}

impl FromWire for EncryptionKey {
    type Wire = v1::EncryptionKey;
    fn from_wire(wire: v1::EncryptionKey) -> Result<Self, FieldError> {
        let v1::EncryptionKey { subsystem, algorithm, key, lamport_time } = wire;
        only("algorithm", algorithm, "AES_128_GCM")?;
        Ok(Self { subsystem: plain::from("subsystem", subsystem)?, key: super::sensitive::from("key", key)?, lamport_time })
    }
}

impl ToWire for EncryptionKey {
    type Wire = v1::EncryptionKey;
    fn to_wire(&self) -> v1::EncryptionKey {
        let Self { subsystem, key, lamport_time } = self;
        let algorithm = v1::encryption_key::Algorithm::Aes128Gcm as i32;
        v1::EncryptionKey { subsystem: subsystem.clone(), algorithm, key: key.0.clone(), lamport_time: *lamport_time }
    }
}

impl FromWire for ExternalCa {
    type Wire = v1::ExternalCa;
    fn from_wire(wire: v1::ExternalCa) -> Result<Self, FieldError> {
        let v1::ExternalCa { protocol, url, options, ca_cert } = wire;
        only("protocol", protocol, "CFSSL")?;
        Ok(Self { url: plain::from("url", url)?, options: plain::from("options", options)?, ca_cert })
    }
}

impl ToWire for ExternalCa {
    type Wire = v1::ExternalCa;
    fn to_wire(&self) -> v1::ExternalCa {
        let Self { url, options, ca_cert } = self;
        let protocol = v1::external_ca::CaProtocol::Cfssl as i32;
        v1::ExternalCa { protocol, url: url.clone(), options: options.clone(), ca_cert: ca_cert.clone() }
    }
}

impl FromWire for ClusterSpec {
    type Wire = v1::ClusterSpec;

    /// Types keep flat what the wire wraps in a message each.
    #[expect(deprecated, reason = "a client that still sets an acceptance policy is told that it has no effect")]
    fn from_wire(wire: v1::ClusterSpec) -> Result<Self, FieldError> {
        let v1::ClusterSpec {
            annotations,
            acceptance_policy,
            orchestration,
            raft,
            dispatcher,
            ca_config,
            task_defaults,
            encryption_config,
        } = wire;
        if acceptance_policy.is_some_and(|policy| !policy.policies.is_empty()) {
            let problem = "acceptance policies are not supported; join tokens decide which nodes are let in";
            return Err(FieldError::new("acceptance_policy.policies", problem));
        }
        Ok(Self {
            annotations: full::from("annotations", annotations)?,
            task_history_retention_limit: orchestration.unwrap_or_default().task_history_retention_limit,
            raft: full::from("raft", raft)?,
            heartbeat_period: plain::from("dispatcher.heartbeat_period", dispatcher.unwrap_or_default().heartbeat_period)?,
            ca_config: full::from("ca_config", ca_config)?,
            task_log_driver: plain::from("task_defaults.log_driver", task_defaults.unwrap_or_default().log_driver)?,
            auto_lock_managers: encryption_config.unwrap_or_default().auto_lock_managers,
        })
    }
}

impl ToWire for ClusterSpec {
    type Wire = v1::ClusterSpec;

    #[expect(deprecated, reason = "genuine peers always write `acceptance_policy`, empty")]
    fn to_wire(&self) -> v1::ClusterSpec {
        let Self { annotations, task_history_retention_limit, raft, heartbeat_period, ca_config, task_log_driver, auto_lock_managers } =
            self;
        v1::ClusterSpec {
            annotations: full::to(annotations),
            acceptance_policy: Some(v1::AcceptancePolicy::default()),
            orchestration: Some(v1::OrchestrationConfig { task_history_retention_limit: *task_history_retention_limit }),
            raft: full::to(raft),
            dispatcher: Some(v1::DispatcherConfig { heartbeat_period: heartbeat_period.to_wire() }),
            ca_config: full::to(ca_config),
            task_defaults: Some(v1::TaskDefaults { log_driver: task_log_driver.to_wire() }),
            encryption_config: Some(v1::EncryptionConfig { auto_lock_managers: *auto_lock_managers }),
        }
    }
}

/// Removed nodes with the end of their certificates.
pub(super) mod blacklist {
    use super::{BTreeMap, FieldError, NodeId, Timestamp, ToWire, plain};
    use crate::v1::BlacklistedCertificate;

    pub fn from(label: &str, wire: BTreeMap<String, BlacklistedCertificate>) -> Result<BTreeMap<NodeId, Option<Timestamp>>, FieldError> {
        let entry = |(node, certificate): (String, BlacklistedCertificate)| {
            let expiry = plain::from("expiry", certificate.expiry).map_err(|error| error.inside(&format!("{label}[{node}]")))?;
            Ok((plain::from(label, node)?, expiry))
        };
        wire.into_iter().map(entry).collect()
    }

    pub fn to(value: &BTreeMap<NodeId, Option<Timestamp>>) -> BTreeMap<String, BlacklistedCertificate> {
        value.iter().map(|(node, expiry)| (node.to_wire(), BlacklistedCertificate { expiry: expiry.to_wire() })).collect()
    }
}
