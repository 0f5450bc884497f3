//! Who is at the other end, as its certificate says.

use crate::NodeRole;
use crate::guest::{CLIENT_UNIT, SERVER_UNIT};
use crate::root::{MANAGER_NAME, WORKER_NAME};
use rustls::pki_types::CertificateDer;
use skep_types::{BadId, ClusterId, NodeId};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Why a verified certificate still names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSubject {
    #[error("the certificate cannot be parsed")]
    Parse,
    #[error("the certificate's subject has no {0}; it was not made by a swarm")]
    Missing(&'static str),
    #[error("the certificate is of the unit {0}: it is for the Docker API over TCP and for nothing else")]
    Guest(String),
    #[error("the certificate's {field} is not usable")]
    Id { field: &'static str, source: BadId },
}

/// The identity in a certificate. It proves nothing by itself: it is made only of chains that were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// CN.
    pub node_id: NodeId,
    /// All OUs. Authorisation asks whether one of them is allowed (spec wire-behaviour 6).
    pub units: Vec<String>,
    /// First O.
    pub cluster_id: ClusterId,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Leaf first, as the peer sent it.
    pub chain: Vec<CertificateDer<'static>>,
}

impl PeerIdentity {
    /// Reads the leaf of a chain. OU, O and CN must be there (spec wire-behaviour 4.4), and it must not be one of the Docker API's.
    pub fn of_chain(chain: &[CertificateDer<'_>]) -> Result<Self, BadSubject> {
        let leaf = chain.first().ok_or(BadSubject::Parse)?;
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| BadSubject::Parse)?;
        let subject = certificate.subject();
        let units = texts(subject.iter_organizational_unit());
        if units.is_empty() {
            return Err(BadSubject::Missing("organisational unit (the role)"));
        }
        if let Some(unit) = units.iter().find(|unit| matches!(unit.as_str(), CLIENT_UNIT | SERVER_UNIT)) {
            return Err(BadSubject::Guest(unit.clone()));
        }
        let first = |field, mut texts: Vec<String>| match texts.is_empty() {
            true => Err(BadSubject::Missing(field)),
            false => Ok(texts.swap_remove(0)),
        };
        let cluster = first("organisation (the cluster)", texts(subject.iter_organization()))?;
        let node = first("common name (the node)", common_names(subject))?;
        Ok(Self {
            node_id: node.parse().map_err(|source| BadSubject::Id { field: "common name (the node)", source })?,
            units,
            cluster_id: cluster.parse().map_err(|source| BadSubject::Id { field: "organisation (the cluster)", source })?,
            not_before: system_time(certificate.validity().not_before.timestamp()),
            not_after: system_time(certificate.validity().not_after.timestamp()),
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
        })
    }

    #[must_use]
    pub fn has_role(&self, role: NodeRole) -> bool {
        self.units.iter().any(|unit| unit == crate::role_name(role))
    }

    #[must_use]
    pub fn is_manager(&self) -> bool {
        self.has_role(NodeRole::Manager)
    }

    /// The highest role the certificate gives; `None` for units of neither kind.
    #[must_use]
    pub fn role(&self) -> Option<NodeRole> {
        if self.units.iter().any(|unit| unit == MANAGER_NAME) {
            Some(NodeRole::Manager)
        } else if self.units.iter().any(|unit| unit == WORKER_NAME) {
            Some(NodeRole::Worker)
        } else {
            None
        }
    }

    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }
}

fn texts<'a>(attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Vec<String> {
    attributes.filter_map(|attribute| attribute.as_str().ok()).map(str::to_owned).collect()
}

fn common_names(subject: &X509Name<'_>) -> Vec<String> {
    texts(subject.iter_common_name())
}

/// Dates before 1970 count as 1970: such a certificate is expired either way.
fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
