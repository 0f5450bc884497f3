//! The certificates a cluster trusts.

use crate::der::pem_block;
use crate::key::{BadCsr, public_key_of_request};
use crate::peer::{BadSubject, PeerIdentity};
use crate::root::{Subject, role_name, spki_of};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a text is no usable set of roots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRoots {
    #[error("the root bundle is not PEM text with certificates; give the file that begins with -----BEGIN CERTIFICATE-----")]
    NotPem,
    #[error("the root bundle holds no certificate")]
    Empty,
    #[error("the root bundle holds {0} certificates; at most {MAX_ROOTS} are accepted")]
    TooMany(usize),
    #[error("certificate {0} of the root bundle cannot be parsed")]
    Parse(usize),
    #[error("certificate {0} of the root bundle is not a CA certificate")]
    NotCa(usize),
    #[error("certificate {0} of the root bundle is not signed by itself with RSA or ECDSA and SHA-256 or better")]
    Signature(usize),
}

/// Why a chain is not accepted under a set of roots. The text is the verifier's, which names the reason.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Untrusted {
    #[error("the certificate chain is empty or not PEM text")]
    Empty,
    #[error("the certificate does not verify under the cluster's roots: {0}")]
    Verify(rustls::Error),
}

/// Why a certificate that somebody else signed for a node is not what it was asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadIssue {
    #[error("the certificate is not for the key in the request")]
    Key,
    #[error("the certificate request is refused")]
    Request(#[from] BadCsr),
    #[error("the certificate names nobody")]
    Name(#[from] BadSubject),
    #[error("the certificate is for {found}, not for {wanted}")]
    Subject { found: String, wanted: String },
    #[error("the certificate is not trusted")]
    Untrusted(#[from] Untrusted),
}

/// A CA certificate as the certificates it signed show it: raw DER of its name and of its SubjectPublicKeyInfo. A root rotation waits
/// until every node reports the new one (spec wire-behaviour 4.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerId {
    pub subject: Vec<u8>,
    pub public_key: Vec<u8>,
}

/// A rotation needs two; an operator's own hierarchy a few more. The bundle travels in every session message.
const MAX_ROOTS: usize = 16;

/// The trusted roots, kept byte for byte as they are served: their hash is in every join token.
#[derive(Clone)]
pub struct RootBundle(Arc<Parsed>);

struct Parsed {
    pem: String,
    certificates: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
}

impl RootBundle {
    /// Parses PEM text. Each certificate must be a CA certificate validly signed by itself (spec wire-behaviour 4.2, step 1).
    pub fn parse(pem: &str) -> Result<Self, BadRoots> {
        let certificates: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|_| BadRoots::NotPem)?;
        if certificates.is_empty() {
            return Err(if pem.trim().is_empty() { BadRoots::Empty } else { BadRoots::NotPem });
        }
        if certificates.len() > MAX_ROOTS {
            return Err(BadRoots::TooMany(certificates.len()));
        }
        let mut store = RootCertStore::empty();
        for (index, der) in certificates.iter().enumerate() {
            let number = index + 1;
            let (_, certificate) = X509Certificate::from_der(der).map_err(|_| BadRoots::Parse(number))?;
            if !certificate.is_ca() {
                return Err(BadRoots::NotCa(number));
            }
            // x509-parser verifies with ring, which knows no SHA-1 for ECDSA; RSA with SHA-1 it would accept.
            let sha1_rsa = x509_parser::oid_registry::OID_PKCS1_SHA1WITHRSA;
            if certificate.signature_algorithm.algorithm == sha1_rsa || certificate.verify_signature(None).is_err() {
                return Err(BadRoots::Signature(number));
            }
            store.add(der.clone()).map_err(|_| BadRoots::Parse(number))?;
        }
        Ok(Self(Arc::new(Parsed { pem: pem.to_owned(), certificates, store: Arc::new(store) })))
    }

    /// The bytes as served, trailing newline included.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.0.pem
    }

    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }

    pub(crate) fn store(&self) -> Arc<RootCertStore> {
        self.0.store.clone()
    }

    fn first(&self) -> X509Certificate<'_> {
        let (_, first) = X509Certificate::from_der(&self.0.certificates[0]).expect("the bundle was parsed when it was made");
        first
    }

    /// The first certificate, which signs, as an issuer.
    #[must_use]
    pub fn issuer(&self) -> IssuerId {
        let first = self.first();
        IssuerId { subject: first.subject().as_raw().to_vec(), public_key: first.public_key().raw.to_vec() }
    }

    /// From when until when the first certificate, which signs, is valid. Dates before 1970 count as 1970.
    #[must_use]
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        let first = self.first();
        let date = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        (date(first.validity().not_before.timestamp()), date(first.validity().not_after.timestamp()))
    }

    /// The same certificates and nothing else: without text around them, in one way of writing PEM.
    #[must_use]
    pub fn canonical(&self) -> Self {
        let pem: String = self.0.certificates.iter().map(|der| certificate_pem(der)).collect();
        Self(Arc::new(Parsed { pem, certificates: self.0.certificates.clone(), store: self.0.store.clone() }))
    }

    /// Whether both hold the same certificates in the same order, however they are written.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.certificates == other.0.certificates
    }

    /// SHA-256 of [`Self::pem`]: not of the DER.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let digest = ring::digest::digest(&ring::digest::SHA256, self.0.pem.as_bytes());
        digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// `sha256:<hex>`, the field `ca_cert_hash` of the cluster object.
    #[must_use]
    pub fn digest_text(&self) -> String {
        format!("sha256:{}", hex::encode(self.digest()))
    }

    /// Whether a chain (leaf first) verifies under these roots at a time.
    ///
    /// Used before new roots are installed: the node's own leaf must verify under them (spec wire-behaviour 4.6).
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), Untrusted> {
        let (leaf, intermediates) = chain.split_first().ok_or(Untrusted::Empty)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(self.store(), crate::provider::provider())
            .build()
            .expect("the bundle holds at least one root and no revocation list");
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        verifier.verify_client_cert(leaf, intermediates, now).map(|_| ()).map_err(Untrusted::Verify)
    }

    /// Whether a chain that was signed outside is for this request and subject, and verifies under these roots.
    pub fn check_issued(&self, request: &[u8], chain: &str, subject: &Subject, now: SystemTime) -> Result<(), BadIssue> {
        self.verify_pem(chain, now)?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes()).filter_map(Result::ok).collect();
        let key = public_key_of_request(request)?;
        let leaf = chain.first().ok_or(Untrusted::Empty)?;
        if spki_of(leaf).as_deref() != Some(rcgen::PublicKeyData::subject_public_key_info(&key).as_slice()) {
            return Err(BadIssue::Key);
        }
        let peer = PeerIdentity::of_chain(&chain)?;
        let said = |node: &dyn fmt::Display, role: &str, cluster: &dyn fmt::Display| format!("{role} {node} of cluster {cluster}");
        let wanted = said(&subject.node, role_name(subject.role), &subject.cluster);
        let found = said(&peer.node_id, &peer.units.join(" and "), &peer.cluster_id);
        if found == wanted { Ok(()) } else { Err(BadIssue::Subject { found, wanted }) }
    }

    /// Whether a chain in PEM, as it is issued, verifies under these roots at a time.
    pub fn verify_pem(&self, chain: &str, now: SystemTime) -> Result<(), Untrusted> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().map_err(|_| Untrusted::Empty)?;
        self.verify(&chain, now)
    }
}

impl PartialEq for RootBundle {
    fn eq(&self, other: &Self) -> bool {
        self.0.pem == other.0.pem
    }
}
impl Eq for RootBundle {}

impl fmt::Debug for RootBundle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "RootBundle({} certificates, {})", self.0.certificates.len(), self.digest_text())
    }
}

/// PEM of one certificate.
pub(crate) fn certificate_pem(der: &[u8]) -> String {
    pem_block("CERTIFICATE", der)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeKey, NodeRole, RootCa};
    use skep_types::{ClusterId, NodeId};

    #[test]
    fn the_hash_is_that_of_the_served_text() {
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let with_newline = RootBundle::parse(&format!("{}\n", root.bundle().pem())).unwrap();
        assert_ne!(with_newline.digest(), root.bundle().digest());
        assert_eq!(root.bundle().digest_text().len(), "sha256:".len() + 64);
    }

    #[test]
    fn a_root_is_known_by_its_name_and_key_and_ends_after_20_years() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (one, other) = (RootCa::generate(now).unwrap(), RootCa::generate(now).unwrap());
        let (one, other) = (one.bundle(), other.bundle());
        assert_eq!(one.issuer().subject, other.issuer().subject, "all swarms name theirs the same");
        assert_ne!(one.issuer().public_key, other.issuer().public_key);
        let begin = now - Duration::from_secs(300);
        assert_eq!(one.validity(), (begin, begin + crate::ROOT_LIFETIME));
    }

    #[test]
    fn a_root_is_the_same_however_it_is_written() {
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let noisy = RootBundle::parse(&format!("our root\n{}\n\n", root.bundle().pem())).unwrap();
        assert!(noisy != *root.bundle() && noisy.is_same(root.bundle()));
        assert_eq!(noisy.canonical(), *root.bundle());
    }

    #[test]
    fn what_others_signed_is_looked_at() {
        let now = SystemTime::now();
        let (root, stranger) = (RootCa::generate(now).unwrap(), RootCa::generate(now).unwrap());
        let request = || NodeKey::generate().unwrap().request().unwrap();
        let mine = request();
        let subject = |node, role| Subject { node: NodeId::for_test(node), role, cluster: ClusterId::for_test(9) };
        let wanted = subject(1, NodeRole::Worker);
        let issue = |root: &RootCa, request: &str, subject: &Subject| {
            root.issue(request.as_bytes(), subject, crate::DEFAULT_LIFETIME, now).unwrap().chain_pem
        };
        let check = |chain: &str| root.bundle().check_issued(mine.as_bytes(), chain, &wanted, now);
        assert_eq!(check(&issue(&root, &mine, &wanted)), Ok(()));
        assert_eq!(check(&issue(&root, &request(), &wanted)), Err(BadIssue::Key));
        assert_eq!(check("junk"), Err(BadIssue::Untrusted(Untrusted::Empty)));
        assert!(matches!(check(&issue(&stranger, &mine, &wanted)), Err(BadIssue::Untrusted(_))));
        for other in [subject(2, NodeRole::Worker), subject(1, NodeRole::Manager)] {
            assert!(matches!(check(&issue(&root, &mine, &other)), Err(BadIssue::Subject { .. })));
        }
    }

    #[test]
    fn only_self_signed_ca_certificates_are_roots() {
        assert_eq!(RootBundle::parse("").unwrap_err(), BadRoots::Empty);
        assert_eq!(RootBundle::parse("hello").unwrap_err(), BadRoots::NotPem);
        let junk = certificate_pem(b"junk");
        assert_eq!(RootBundle::parse(&junk).unwrap_err(), BadRoots::Parse(1));

        let (old, new) = (RootCa::generate(SystemTime::now()).unwrap(), RootCa::generate(SystemTime::now()).unwrap());
        let cross = old.cross_sign(new.bundle()).unwrap();
        assert_eq!(RootBundle::parse(&cross).unwrap_err(), BadRoots::Signature(1));

        let both = format!("{}{}", old.bundle().pem(), new.bundle().pem());
        assert_eq!(RootBundle::parse(&both).unwrap().certificates().len(), 2);
    }
}
