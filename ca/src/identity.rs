//! What a node is: its key, its certificate, and the roots it trusts.

use crate::key::{BadKey, NodeKey};
use crate::peer::{BadSubject, PeerIdentity};
use crate::root::{is_signed_by, spki_of};
use crate::roots::{RootBundle, Untrusted, certificate_pem};
use crate::{NodeRole, RootCa, Subject};
use rustls::pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use skep_types::{ClusterId, NodeId};
use std::fmt;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why key, certificate and roots do not make an identity.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadIdentity {
    #[error("the node certificate is not PEM text with certificates")]
    NotPem,
    #[error("the node's private key cannot be used")]
    Key(#[from] BadKey),
    #[error("the node certificate names nobody")]
    Subject(#[from] BadSubject),
    #[error("the node certificate gives neither the role of a worker nor that of a manager")]
    NoRole,
    #[error(
        "the node certificate expired; if the clock is right, remove the node from the cluster, delete its identity directory \
         and join it again"
    )]
    Expired,
    #[error("the node certificate is not valid yet; set this machine's clock")]
    NotYetValid,
    #[error("the node certificate is not trusted")]
    Untrusted(#[from] Untrusted),
    /// It is a good certificate, but of another node, cluster or role.
    #[error("the certificate is for {what} {found}, not for {expected}")]
    Unexpected { what: &'static str, found: String, expected: String },
}

/// What a certificate that a node asked for has to say; `None` = anything will do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    pub node: Option<NodeId>,
    pub cluster: Option<ClusterId>,
    pub role: Option<NodeRole>,
}

/// The issuer of the leaf, as the node description reports it: a root rotation waits until every node reports the new one
/// (spec wire-behaviour 4.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsInfo {
    /// PEM of the root bundle.
    pub trust_root: Vec<u8>,
    /// DER of the issuer's name.
    pub cert_issuer_subject: Vec<u8>,
    /// DER of the issuer's SubjectPublicKeyInfo.
    pub cert_issuer_public_key: Vec<u8>,
}

/// A node's key, certificate chain and roots, checked against each other. Immutable; a renewal makes another.
#[derive(Clone)]
pub struct Identity {
    key: NodeKey,
    peer: PeerIdentity,
    role: NodeRole,
    roots: RootBundle,
}

impl fmt::Debug for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Identity({} {} of {})", self.role, self.peer.node_id, self.peer.cluster_id)
    }
}

impl Identity {
    /// Checks that the key belongs to the leaf, that the chain verifies under the roots now, and that the subject names a
    /// node of a cluster.
    pub fn new(key: NodeKey, chain_pem: &str, roots: RootBundle, now: SystemTime) -> Result<Self, BadIdentity> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<_, _>>().map_err(|_| BadIdentity::NotPem)?;
        if chain.is_empty() {
            return Err(BadIdentity::NotPem);
        }
        if spki_of(&chain[0]).as_deref() != Some(key.public_key_info().as_slice()) {
            return Err(BadKey::Mismatch.into());
        }
        let peer = PeerIdentity::of_chain(&chain)?;
        let role = peer.role().ok_or(BadIdentity::NoRole)?;
        if peer.is_expired(now) {
            return Err(BadIdentity::Expired);
        }
        if now < peer.not_before {
            return Err(BadIdentity::NotYetValid);
        }
        roots.verify(&chain, now)?;
        Ok(Self { key, peer, role, roots })
    }

    /// Whether a certificate that was issued is the one that was asked for. That the key belongs to it is checked by
    /// [`new`](Self::new).
    pub fn check(&self, expected: &Expected) -> Result<(), BadIdentity> {
        fn same<T: PartialEq + fmt::Display>(what: &'static str, found: &T, expected: Option<&T>) -> Result<(), BadIdentity> {
            match expected {
                Some(expected) if expected != found => {
                    Err(BadIdentity::Unexpected { what, found: found.to_string(), expected: expected.to_string() })
                }
                _ => Ok(()),
            }
        }
        same("node", self.node_id(), expected.node.as_ref())?;
        same("cluster", self.cluster_id(), expected.cluster.as_ref())?;
        same("role", &self.role, expected.role.as_ref())
    }

    /// The first node of a cluster certifies itself.
    pub fn of_first_manager(
        root: &RootCa,
        node: NodeId,
        cluster: ClusterId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, FirstManager> {
        let key = NodeKey::generate().map_err(BadIdentity::Key)?;
        let request = key.request().map_err(BadIdentity::Key)?;
        let subject = Subject { node, role: NodeRole::Manager, cluster };
        let issued = root.issue(request.as_bytes(), &subject, lifetime, now)?;
        Ok(Self::new(key, &issued.chain_pem, root.bundle().clone(), now)?)
    }

    /// The same key and certificate under other roots, if they verify there (spec wire-behaviour 4.6).
    pub fn with_roots(&self, roots: RootBundle, now: SystemTime) -> Result<Self, Untrusted> {
        roots.verify(&self.peer.chain, now)?;
        Ok(Self { roots, ..self.clone() })
    }

    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.peer.node_id
    }

    #[must_use]
    pub fn cluster_id(&self) -> &ClusterId {
        &self.peer.cluster_id
    }

    #[must_use]
    pub fn role(&self) -> NodeRole {
        self.role
    }

    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.peer.not_before
    }

    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.peer.not_after
    }

    #[must_use]
    pub fn roots(&self) -> &RootBundle {
        &self.roots
    }

    #[must_use]
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.peer.chain
    }

    /// PEM of the chain, leaf first.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.peer.chain.iter().map(|der| certificate_pem(der)).collect()
    }

    /// This node as its peers see it; also the caller of what the node asks of itself.
    #[must_use]
    pub fn as_peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// What the node reports about its certificate.
    #[must_use]
    pub fn tls_info(&self) -> TlsInfo {
        let leaf = &self.peer.chain[0];
        // Old and new root have the same name during a rotation: only the signature tells them apart.
        let issuer = self.peer.chain[1..].iter().chain(self.roots.certificates()).find(|issuer| is_signed_by(leaf, issuer));
        let subject = X509Certificate::from_der(leaf).map(|(_, leaf)| leaf.issuer().as_raw().to_vec()).unwrap_or_default();
        TlsInfo {
            trust_root: self.roots.pem().as_bytes().to_vec(),
            cert_issuer_subject: subject,
            cert_issuer_public_key: issuer.and_then(|issuer| spki_of(issuer)).unwrap_or_default(),
        }
    }
}

/// Why the first manager could not certify itself.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FirstManager {
    #[error("the new root could not sign the first manager's certificate")]
    Ca(#[from] crate::CaError),
    #[error("the first manager's certificate is not usable")]
    Identity(#[from] BadIdentity),
}

/// When to renew a certificate: a whole minute chosen at random between 50 % and 80 % of its life, counted from its (backdated)
/// beginning (spec wire-behaviour 4.5). `random` is any number, evenly distributed.
///
/// A moment in the past means now; a life too short to have a whole minute in the window gives its middle.
#[must_use]
pub fn renewal_moment(not_before: SystemTime, not_after: SystemTime, random: u64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let minutes = life.as_secs() / 60;
    let (first, last) = (minutes.div_ceil(2), minutes * 8 / 10);
    if first > last || minutes == 0 {
        return not_before + life / 2;
    }
    not_before + Duration::from_secs((first + random % (last - first + 1)) * 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn manager(root: &RootCa) -> Identity {
        Identity::of_first_manager(root, NodeId::for_test(1), ClusterId::for_test(2), crate::DEFAULT_LIFETIME, now()).unwrap()
    }

    #[test]
    fn the_first_manager_certifies_itself() {
        let root = RootCa::generate(now()).unwrap();
        let manager = manager(&root);
        assert_eq!(manager.role(), NodeRole::Manager);
        assert_eq!(manager.node_id(), &NodeId::for_test(1));
        assert_eq!(format!("{manager:?}").matches("PRIVATE").count(), 0);
        let info = manager.tls_info();
        assert_eq!(info.trust_root, root.bundle().pem().as_bytes());
        let (_, root_certificate) = X509Certificate::from_der(&root.bundle().certificates()[0]).unwrap();
        assert_eq!(info.cert_issuer_subject, root_certificate.subject().as_raw());
        assert_eq!(info.cert_issuer_public_key, root_certificate.public_key().raw);
    }

    #[test]
    fn an_expired_or_foreign_certificate_is_no_identity() {
        let root = RootCa::generate(now()).unwrap();
        let good = manager(&root);
        let make = |key: &NodeKey, roots: &RootBundle, at| Identity::new(key.clone(), &good.chain_pem(), roots.clone(), at);
        assert!(make(good.key(), root.bundle(), now()).is_ok());
        let later = now() + crate::DEFAULT_LIFETIME + Duration::from_secs(60);
        assert_eq!(make(good.key(), root.bundle(), later).unwrap_err(), BadIdentity::Expired);
        let earlier = now() - Duration::from_secs(4000);
        assert_eq!(make(good.key(), root.bundle(), earlier).unwrap_err(), BadIdentity::NotYetValid);
        let stranger = RootCa::generate(now()).unwrap();
        assert!(matches!(make(good.key(), stranger.bundle(), now()), Err(BadIdentity::Untrusted(_))));
        let other = NodeKey::generate().unwrap();
        assert_eq!(make(&other, root.bundle(), now()).unwrap_err(), BadIdentity::Key(BadKey::Mismatch));
    }

    #[test]
    fn a_certificate_of_somebody_else_is_told_apart() {
        let manager = manager(&RootCa::generate(now()).unwrap());
        let expected = Expected { node: Some(NodeId::for_test(1)), cluster: Some(ClusterId::for_test(2)), role: Some(NodeRole::Manager) };
        assert_eq!(manager.check(&expected), Ok(()));
        assert_eq!(manager.check(&Expected::default()), Ok(()));
        let refused = |expected: Expected| manager.check(&expected).unwrap_err().to_string();
        assert!(refused(Expected { node: Some(NodeId::for_test(9)), ..expected.clone() }).contains("for node"));
        assert!(refused(Expected { cluster: Some(ClusterId::for_test(9)), ..expected.clone() }).contains("for cluster"));
        assert!(refused(Expected { role: Some(NodeRole::Worker), ..expected }).ends_with("for role manager, not for worker"));
    }

    #[test]
    fn new_roots_are_taken_only_if_our_own_leaf_verifies_under_them() {
        let (old, new) = (RootCa::generate(now()).unwrap(), RootCa::generate(now()).unwrap());
        let before = manager(&old);
        assert!(before.with_roots(new.bundle().clone(), now()).is_err());

        let cross = old.cross_sign(new.bundle()).unwrap();
        let rotating = RootCa::during_rotation(old.bundle(), new.bundle().pem(), &new.key_pem(), &cross).unwrap();
        let renewed = manager(&rotating);
        assert_eq!(renewed.tls_info().cert_issuer_public_key, manager(&new).tls_info().cert_issuer_public_key);
        assert_ne!(renewed.tls_info().cert_issuer_public_key, before.tls_info().cert_issuer_public_key);
        let after = renewed.with_roots(new.bundle().clone(), now()).unwrap();
        assert_eq!(after.roots(), new.bundle());
    }

    proptest! {
        #[test]
        fn renewal_falls_into_its_window(minutes in 1u64..2_000_000, random: u64) {
            let (from, life) = (now(), Duration::from_secs(minutes * 60));
            let moment = renewal_moment(from, from + life, random).duration_since(from).unwrap();
            prop_assert!(moment >= life / 2 && moment <= life * 8 / 10, "{moment:?} of {life:?}");
        }
    }

    #[test]
    fn a_life_without_length_is_renewed_at_once() {
        assert_eq!(renewal_moment(now(), now(), 7), now());
        assert_eq!(renewal_moment(now(), now() - Duration::from_secs(5), 7), now());
    }
}
