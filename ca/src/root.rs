//! The authority that signs node certificates.

mod cross; // asking somebody else to cross-sign

use crate::NodeRole;
use crate::der::{BIT_STRING, INTEGER, OCTET_STRING, SEQUENCE, element, take, take_tag};
use crate::key::{BadCsr, BadKey, NodeKey, public_key_of_request};
use crate::roots::{BadRoots, RootBundle, certificate_pem};
use crate::secret::Secret;
pub use cross::CrossRequest;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    SanType, SerialNumber, SigningKey as _,
};
use rustls::pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use skep_types::{ClusterId, NodeId};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Subject of a root made by a cluster.
pub const ROOT_NAME: &str = "swarm-ca";
/// Server name of any manager, as its certificate has it.
pub const MANAGER_NAME: &str = "swarm-manager";
/// Organisational unit of a worker.
pub const WORKER_NAME: &str = "swarm-worker";

/// 20 years, as `SK/ca/certificates.go`, `RootCAExpiration`.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(630_720_000);
/// What a node certificate lives when the cluster does not say: 2160 h.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(2160 * 3600);
/// A shorter life in the cluster object falls back to the default, as in SwarmKit.
pub const MIN_LIFETIME: Duration = Duration::from_secs(3600);

/// Clocks of nodes may be behind the CA's by this much.
const BACKDATE: Duration = Duration::from_secs(3600);
const ROOT_BACKDATE: Duration = Duration::from_secs(300);

/// Why the authority cannot be set up or cannot sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    #[error("the root certificates cannot be used")]
    Roots(#[from] BadRoots),
    #[error("the root's private key cannot be used")]
    Key(#[from] BadKey),
    #[error("the certificate request is refused")]
    Request(#[from] BadCsr),
    #[error("the signing certificate is not PEM text with exactly one CA certificate")]
    SigningCertificate,
    #[error("the cross-signed certificate does not lead from the new root to the old one")]
    CrossCertificate,
    #[error("the cross-signed certificate is not one of a CA: nobody would believe what the new root signs")]
    CrossIsNoCa,
    #[error(
        "the cross-signed certificate writes the new root's name otherwise than the new root does, so that nobody would find it; make the \
         new root with the program that signs it, or let managers make one"
    )]
    CrossName,
    #[error("the life of the certificate asked for ends outside what X.509 can say; choose a shorter one")]
    Lifetime,
    #[error("signing failed: {0}")]
    Sign(String),
}

/// What [`RootCa::issue`] is asked to certify. Nothing of it comes from the node itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub node: NodeId,
    pub role: NodeRole,
    pub cluster: ClusterId,
}

/// A certificate just signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Leaf, then the cross-signed certificate during a root rotation. Each is signed by the next.
    pub chain_pem: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// The roots a cluster trusts and a key that signs for it. Clones share both.
#[derive(Clone)]
pub struct RootCa {
    bundle: RootBundle,
    signer: Arc<Signer>,
}

struct Signer {
    certificate: CertificateDer<'static>,
    key: NodeKey,
    /// PEM of what stands between the signer and the bundle; empty outside a rotation.
    intermediates: String,
}

impl std::fmt::Debug for RootCa {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "RootCa({:?}, [secret])", self.bundle)
    }
}

impl RootCa {
    /// A new root: ECDSA P-256, CN `swarm-ca`, 20 years, no path length limit (spec wire-behaviour 4.4).
    pub fn generate(now: SystemTime) -> Result<Self, CaError> {
        let key = NodeKey::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // As Go writes it, SwarmKit and CFSSL with it: whoever cross-signs this root writes its name anew, and must come to the same bytes.
        let name = ROOT_NAME.try_into().map_err(|error: rcgen::Error| CaError::Sign(error.to_string()))?;
        params.distinguished_name.push(DnType::CommonName, DnValue::PrintableString(name));
        params.serial_number = Some(random_serial());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date(Some(now), Shift::Earlier(ROOT_BACKDATE))?;
        params.not_after = date(now.checked_sub(ROOT_BACKDATE), Shift::Later(ROOT_LIFETIME))?;
        let certificate = params.self_signed(key.pair()).map_err(|error| CaError::Sign(error.to_string()))?;
        let bundle = RootBundle::parse(&certificate_pem(certificate.der()))?;
        let signer = Signer { certificate: certificate.der().clone(), key, intermediates: String::new() };
        Ok(Self { bundle, signer: Arc::new(signer) })
    }

    /// A stored root and its key. The key must belong to the first certificate of the bundle.
    pub fn load(bundle_pem: &str, key_pem: &Secret) -> Result<Self, CaError> {
        let bundle = RootBundle::parse(bundle_pem)?;
        let certificate = bundle.certificates()[0].clone();
        let signer = Signer::new(certificate, NodeKey::parse(key_pem.expose())?, String::new())?;
        Ok(Self { bundle, signer: Arc::new(signer) })
    }

    /// The authority during a root rotation: everybody still trusts `old`, leaves are signed by the new root's key and come
    /// with the cross-signed certificate (from [`Self::cross_sign`]) that leads to the old root (spec wire-behaviour 4.7).
    pub fn during_rotation(old: &RootBundle, new_pem: &str, new_key: &Secret, cross_pem: &str) -> Result<Self, CaError> {
        let new = RootBundle::parse(new_pem)?;
        let [certificate] = new.certificates() else { return Err(CaError::SigningCertificate) };
        let cross = CertificateDer::from_pem_slice(cross_pem.as_bytes()).map_err(|_| CaError::SigningCertificate)?;
        let signer = Signer::new(certificate.clone(), NodeKey::parse(new_key.expose())?, cross_pem.to_owned())?;
        if spki_of(&cross) != spki_of(certificate) || !old.certificates().iter().any(|root| is_signed_by(&cross, root)) {
            return Err(CaError::CrossCertificate);
        }
        if subject_of(&cross) != subject_of(certificate) {
            return Err(CaError::CrossName);
        }
        if !X509Certificate::from_der(&cross).is_ok_and(|(_, cross)| cross.is_ca()) {
            return Err(CaError::CrossIsNoCa);
        }
        Ok(Self { bundle: old.clone(), signer: Arc::new(signer) })
    }

    /// What nodes trust.
    #[must_use]
    pub fn bundle(&self) -> &RootBundle {
        &self.bundle
    }

    /// PKCS#8 PEM of the signing key, for the sealed store.
    #[must_use]
    pub fn key_pem(&self) -> Secret {
        self.signer.key.pem()
    }

    /// Signs a node certificate.
    ///
    /// Of `request` only the public key is taken. `lifetime` below [`MIN_LIFETIME`] becomes [`DEFAULT_LIFETIME`]. The
    /// certificate begins an hour before `now` (rounded to the minute) and ends `lifetime` after it.
    pub fn issue(&self, request: &[u8], subject: &Subject, lifetime: Duration, now: SystemTime) -> Result<Issued, CaError> {
        let unit = role_name(subject.role);
        let mut params = self.leaf(&subject.cluster, unit);
        params.distinguished_name.push(DnType::CommonName, subject.node.as_str());
        let mut names = vec![unit, subject.node.as_str()];
        if subject.role == NodeRole::Manager {
            names.push(ROOT_NAME);
        }
        params.subject_alt_names = names
            .into_iter()
            .map(|name| name.try_into().map(SanType::DnsName))
            .collect::<Result<_, _>>()
            .map_err(|error: rcgen::Error| CaError::Sign(error.to_string()))?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let lifetime = if lifetime < MIN_LIFETIME { DEFAULT_LIFETIME } else { lifetime };
        self.sign_leaf(params, request, lifetime, now)
    }

    /// What all leaves of a cluster have, but for the common name, the key's uses and the dates.
    pub(crate) fn leaf(&self, cluster: &ClusterId, unit: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.is_ca = IsCa::ExplicitNoCa; // writes the subject key id too
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial());
        params
    }

    /// Dates and signs it for the key of `request`.
    pub(crate) fn sign_leaf(
        &self,
        mut params: CertificateParams,
        request: &[u8],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let public_key = public_key_of_request(request)?;
        let now = to_the_minute(now);
        params.not_before = date(Some(now), Shift::Earlier(BACKDATE))?;
        params.not_after = date(Some(now), Shift::Later(lifetime))?;

        let issuer =
            Issuer::from_ca_cert_der(&self.signer.certificate, self.signer.key.pair()).map_err(|error| CaError::Sign(error.to_string()))?;
        let leaf = params.signed_by(&public_key, &issuer).map_err(|error| CaError::Sign(error.to_string()))?;
        Ok(Issued {
            chain_pem: format!("{}{}", certificate_pem(leaf.der()), self.signer.intermediates),
            not_before: params.not_before.into(),
            not_after: params.not_after.into(),
        })
    }

    /// The new root's subject, key, serial, dates and extensions (but the authority key id), signed by this root: PEM of one certificate.
    ///
    /// Who trusts only this root then also trusts what the new one signs, if the peer sends this certificate along.
    pub fn cross_sign(&self, new: &RootBundle) -> Result<String, CaError> {
        let [certificate] = new.certificates() else { return Err(CaError::SigningCertificate) };
        let mine = TbsParts::read(&self.signer.certificate).ok_or(CaError::SigningCertificate)?;
        let its = TbsParts::read(certificate).ok_or(CaError::SigningCertificate)?;
        let algorithm = self.signer.algorithm()?;
        let extensions = its.extensions_under(mine.key_id).ok_or(CaError::SigningCertificate)?;
        let tbs = element(SEQUENCE, &[its.version, its.serial, algorithm, mine.subject, its.validity, its.subject, its.key, &extensions]);
        let signature = self.signer.key.pair().sign(&tbs).map_err(|error| CaError::Sign(error.to_string()))?;
        let certificate = element(SEQUENCE, &[&tbs, algorithm, &element(BIT_STRING, &[&[0], &signature])]);
        Ok(certificate_pem(&certificate))
    }
}

impl Signer {
    fn new(certificate: CertificateDer<'static>, key: NodeKey, intermediates: String) -> Result<Self, CaError> {
        if spki_of(&certificate).as_deref() != Some(key.public_key_info().as_slice()) {
            return Err(BadKey::Mismatch.into());
        }
        Ok(Self { certificate, key, intermediates })
    }

    /// The AlgorithmIdentifier of our signatures: RFC 5758 §3.2 (ECDSA), RFC 4055 §5 (RSA).
    fn algorithm(&self) -> Result<&'static [u8], CaError> {
        const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        const ECDSA_SHA384: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
        const RSA_SHA256: &[u8] = &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00];
        let algorithm = rcgen::PublicKeyData::algorithm(self.key.pair());
        [
            (&rcgen::PKCS_ECDSA_P256_SHA256, ECDSA_SHA256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, ECDSA_SHA384),
            (&rcgen::PKCS_RSA_SHA256, RSA_SHA256),
        ]
        .into_iter()
        .find_map(|(known, der)| (known == algorithm).then_some(der))
        .ok_or(CaError::Key(BadKey::Kind))
    }
}

/// The name of a role in certificates.
#[must_use]
pub fn role_name(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => WORKER_NAME,
        NodeRole::Manager => MANAGER_NAME,
    }
}

/// The pieces of a TBSCertificate (RFC 5280 §4.1), as they stand.
struct TbsParts<'a> {
    version: &'a [u8],
    serial: &'a [u8],
    validity: &'a [u8],
    subject: &'a [u8],
    /// SubjectPublicKeyInfo.
    key: &'a [u8],
    /// The extensions one after the other.
    extensions: &'a [u8],
    /// Content of the subject key id, if there is one.
    key_id: Option<&'a [u8]>,
}

impl<'a> TbsParts<'a> {
    /// `None` for what is not a version 3 certificate with extensions, as each CA certificate is.
    fn read(certificate: &'a [u8]) -> Option<Self> {
        let mut outer = take_tag(&mut { certificate }, SEQUENCE)?.content;
        let mut tbs = take_tag(&mut outer, SEQUENCE)?.content;
        let version = take_tag(&mut tbs, 0xa0)?.whole;
        let serial = take_tag(&mut tbs, INTEGER)?.whole;
        take(&mut tbs)?; // signature algorithm
        take(&mut tbs)?; // issuer
        let validity = take(&mut tbs)?.whole;
        let subject = take(&mut tbs)?.whole;
        let key = take(&mut tbs)?.whole;
        let mut field = take_tag(&mut tbs, 0xa3)?.content;
        let extensions = take_tag(&mut field, SEQUENCE)?.content;
        let mut key_id = None;
        let mut rest = extensions;
        while let Some(extension) = take_tag(&mut rest, SEQUENCE) {
            let mut fields = extension.content;
            if take(&mut fields)?.whole == SUBJECT_KEY_ID {
                let mut value = take_tag(&mut fields, OCTET_STRING)?.content;
                key_id = Some(take_tag(&mut value, OCTET_STRING)?.content);
            }
        }
        Some(Self { version, serial, validity, subject, key, extensions, key_id })
    }

    /// The field with the extensions as they are, but with the key id of another issuer: with its own, readers take the
    /// certificate for self-signed when both roots have the same name, as those of a swarm do.
    fn extensions_under(&self, issuer_key_id: Option<&[u8]>) -> Option<Vec<u8>> {
        let mut kept = Vec::new();
        let mut rest = self.extensions;
        while let Some(extension) = take_tag(&mut rest, SEQUENCE) {
            if take(&mut { extension.content })?.whole != AUTHORITY_KEY_ID {
                kept.extend_from_slice(extension.whole);
            }
        }
        if let Some(id) = issuer_key_id {
            let value = element(OCTET_STRING, &[&element(SEQUENCE, &[&element(0x80, &[id])])]);
            kept.extend_from_slice(&element(SEQUENCE, &[AUTHORITY_KEY_ID, &value]));
        }
        Some(element(0xa3, &[&element(SEQUENCE, &[&kept])]))
    }
}

/// 2.5.29.14 and 2.5.29.35, RFC 5280 §4.2.1.
const SUBJECT_KEY_ID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0e];
const AUTHORITY_KEY_ID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x23];

pub(crate) fn spki_of(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}

fn subject_of(certificate: &[u8]) -> Option<&[u8]> {
    Some(TbsParts::read(certificate)?.subject)
}

/// Whether the issuer's name and key fit.
pub(crate) fn is_signed_by(certificate: &[u8], issuer: &[u8]) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) = (X509Certificate::from_der(certificate), X509Certificate::from_der(issuer)) else {
        return false;
    };
    certificate.issuer().as_raw() == issuer.subject().as_raw() && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// 20 octets, positive, never zero. RFC 5280 §4.1.2.2 allows no more.
fn random_serial() -> SerialNumber {
    let mut octets: [u8; 20] = rand::random();
    octets[0] = (octets[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&octets)
}

/// Rounded to the nearest minute, as the signer library of SwarmKit does.
fn to_the_minute(time: SystemTime) -> SystemTime {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    UNIX_EPOCH + Duration::from_secs((seconds + 30) / 60 * 60)
}

enum Shift {
    Earlier(Duration),
    Later(Duration),
}

/// A date that X.509 can write (until the year 9999), in whole seconds.
fn date(from: Option<SystemTime>, shift: Shift) -> Result<OffsetDateTime, CaError> {
    let shifted = match shift {
        Shift::Earlier(by) => from.and_then(|time| time.checked_sub(by)),
        Shift::Later(by) => from.and_then(|time| time.checked_add(by)),
    };
    let seconds = shifted.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).ok_or(CaError::Lifetime)?.as_secs();
    let seconds = i64::try_from(seconds).map_err(|_| CaError::Lifetime)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| CaError::Lifetime)
}

#[cfg(test)]
mod tests;
