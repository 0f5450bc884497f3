//! The certificates a cluster trusts.

use crate::der::pem_block;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
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
    #[error("the certificate chain is empty")]
    Empty,
    #[error("the certificate does not verify under the cluster's roots: {0}")]
    Verify(rustls::Error),
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
    use crate::RootCa;

    #[test]
    fn the_hash_is_that_of_the_served_text() {
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let with_newline = RootBundle::parse(&format!("{}\n", root.bundle().pem())).unwrap();
        assert_ne!(with_newline.digest(), root.bundle().digest());
        assert_eq!(root.bundle().digest_text().len(), "sha256:".len() + 64);
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
