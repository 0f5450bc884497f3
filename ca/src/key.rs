//! Private keys and certificate requests.

use crate::der::{BIT_STRING, INTEGER, OCTET_STRING, SEQUENCE, element, pem_block, take_tag};
use crate::secret::Secret;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SubjectPublicKeyInfo};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls_pki_types::pem::PemObject;
use std::sync::Arc;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

/// Why a private key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    #[error("the private key is not PEM text with a key; give the file that begins with -----BEGIN PRIVATE KEY----- or alike")]
    NotPem,
    #[error("the private key is encrypted; decrypt it with `openssl pkey` first")]
    Encrypted,
    #[error("the private key is of a kind that cannot be used here; use ECDSA P-256 or P-384, or RSA with at least 2048 bits")]
    Kind,
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    #[error("the system has no random numbers to make a key from")]
    NoRandom,
}

/// Why a certificate request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCsr {
    #[error("the certificate request is {0} bytes long; at most {MAX_CSR} are accepted")]
    TooLong(usize),
    #[error("the certificate request is not PEM or not a PKCS#10 request")]
    Parse,
    #[error("the certificate request is not signed by the key in it")]
    Signature,
    #[error(
        "the key in the certificate request is of a kind that is not accepted; use ECDSA P-256 or P-384, or RSA with 2048 to 8192 bits"
    )]
    Key,
}

/// Longest certificate request, in bytes of PEM. One with an RSA key of 8192 bits takes about 3 KiB.
pub const MAX_CSR: usize = 16 * 1024;

/// A private key with what is needed to sign. Clones share it.
#[derive(Clone)]
pub struct NodeKey(Arc<KeyPair>);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("NodeKey([secret])")
    }
}

impl NodeKey {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, BadKey> {
        Ok(Self(Arc::new(KeyPair::generate().map_err(|_| BadKey::NoRandom)?)))
    }

    /// Reads PKCS#8, or the older SEC1 (`EC PRIVATE KEY`) and PKCS#1 (`RSA PRIVATE KEY`) that SwarmKit and OpenSSL write.
    pub fn parse(pem: &str) -> Result<Self, BadKey> {
        if pem.contains("BEGIN ENCRYPTED PRIVATE KEY") || pem.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(BadKey::Encrypted);
        }
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| BadKey::NotPem)?;
        let pkcs8 = match &der {
            PrivateKeyDer::Pkcs8(key) => Zeroizing::new(key.secret_pkcs8_der().to_vec()),
            PrivateKeyDer::Sec1(key) => sec1_to_pkcs8(key.secret_sec1_der()).ok_or(BadKey::Kind)?,
            PrivateKeyDer::Pkcs1(key) => pkcs1_to_pkcs8(key.secret_pkcs1_der()),
            _ => return Err(BadKey::Kind),
        };
        let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8.as_slice())).map_err(|_| BadKey::Kind)?;
        // Ed25519 would load, but is not among the keys SwarmKit accepts; ring's RSA starts at 2048 bits by itself.
        if *pair.algorithm() == rcgen::PKCS_ED25519 {
            return Err(BadKey::Kind);
        }
        Ok(Self(Arc::new(pair)))
    }

    /// PKCS#8 PEM.
    #[must_use]
    pub fn pem(&self) -> Secret {
        Secret::new(pem_block("PRIVATE KEY", self.0.serialized_der()))
    }

    /// A certificate request with an empty subject and no extensions (spec wire-behaviour 4.4): the CA takes only the key.
    pub fn request(&self) -> Result<String, BadKey> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&*self.0).map_err(|_| BadKey::NoRandom)?;
        Ok(pem_block("CERTIFICATE REQUEST", request.der()))
    }

    /// DER of the SubjectPublicKeyInfo, for comparing with that of a certificate.
    #[must_use]
    pub fn public_key_info(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(&*self.0)
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }

    pub(crate) fn for_rustls(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialized_der().to_vec()).into()
    }
}

/// Whether a certificate could be signed for this request: small enough, PKCS#10, an accepted key, and signed by that key.
pub fn check_request(pem: &[u8]) -> Result<(), BadCsr> {
    public_key_of_request(pem).map(drop)
}

/// DER of the SubjectPublicKeyInfo in a request, for finding one that came before. That whoever sent it has the key is not looked at.
#[must_use]
pub fn key_of_request(pem: &[u8]) -> Option<Vec<u8>> {
    if pem.len() > MAX_CSR {
        return None;
    }
    let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&der).ok()?;
    Some(request.certification_request_info.subject_pki.raw.to_vec())
}

/// Takes the public key out of a request and nothing else, after checking that whoever made it holds the private key.
///
/// Everything else a request may ask for (CA rights, names, usages) is not looked at: the CA decides it.
///
/// RSA keys are sized before anything is computed with them: verifying with one of 16 kbit takes milliseconds.
pub(crate) fn public_key_of_request(pem: &[u8]) -> Result<SubjectPublicKeyInfo, BadCsr> {
    if pem.len() > MAX_CSR {
        return Err(BadCsr::TooLong(pem.len()));
    }
    let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(pem).map_err(|_| BadCsr::Parse)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| BadCsr::Parse)?;
    if !rest.is_empty() {
        return Err(BadCsr::Parse);
    }
    let info = &request.certification_request_info.subject_pki;
    match info.parsed().map_err(|_| BadCsr::Key)? {
        // The size of the point; which curve it is on is checked below, where only P-256 and P-384 are known.
        PublicKey::EC(point) if matches!(point.key_size(), 256 | 384) => {}
        PublicKey::RSA(key) if (2048..=8192).contains(&key.key_size()) => {}
        _ => return Err(BadCsr::Key),
    }
    let key = SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| BadCsr::Key)?;
    request.verify_signature().map_err(|_| BadCsr::Signature)?;
    Ok(key)
}

/// Wraps an RFC 5915 key in PKCS#8, the only form ring reads.
fn sec1_to_pkcs8(sec1: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
    let mut fields = take_tag(&mut { sec1 }, SEQUENCE)?.content;
    let version = take_tag(&mut fields, INTEGER)?.whole;
    let private = take_tag(&mut fields, OCTET_STRING)?;
    // The parameters [0] are optional and, in PKCS#8, live in the algorithm instead; the size tells the curve.
    let curve = match private.content.len() {
        32 => P256,
        48 => P384,
        _ => return None,
    };
    let mut public = None;
    while let Some(field) = crate::der::take(&mut fields) {
        if field.tag == 0xa1 {
            public = Some(field.whole);
        }
    }
    // ring wants the public key in it.
    let public = public?;
    let mut tagged = take_tag(&mut { public }, 0xa1)?.content;
    take_tag(&mut tagged, BIT_STRING)?;
    let inner = Zeroizing::new(element(SEQUENCE, &[version, private.whole, public]));
    Some(pkcs8(&element(SEQUENCE, &[EC_PUBLIC_KEY, curve]), &inner))
}

fn pkcs1_to_pkcs8(pkcs1: &[u8]) -> Zeroizing<Vec<u8>> {
    // rsaEncryption with NULL parameters, RFC 8017 A.1
    const RSA: &[u8] = &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    pkcs8(RSA, pkcs1)
}

fn pkcs8(algorithm: &[u8], key: &[u8]) -> Zeroizing<Vec<u8>> {
    let key = Zeroizing::new(element(OCTET_STRING, &[key]));
    Zeroizing::new(element(SEQUENCE, &[&[INTEGER, 1, 0], algorithm, &key]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_own_pem() {
        let key = NodeKey::generate().unwrap();
        let again = NodeKey::parse(key.pem().expose()).unwrap();
        assert_eq!(key.public_key_info(), again.public_key_info());
        assert!(key.pem().expose().starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(format!("{key:?} {:?}", key.pem()), "NodeKey([secret]) [secret]");
    }

    #[test]
    fn the_older_ec_form_is_read_too() {
        let key = NodeKey::generate().unwrap();
        // PKCS#8 is SEQUENCE { version, algorithm, OCTET STRING { ECPrivateKey } }.
        let pkcs8 = key.pair().serialized_der().to_vec();
        let mut fields = take_tag(&mut pkcs8.as_slice(), SEQUENCE).unwrap().content;
        take_tag(&mut fields, INTEGER).unwrap();
        take_tag(&mut fields, SEQUENCE).unwrap();
        let sec1 = take_tag(&mut fields, OCTET_STRING).unwrap().content;
        let again = NodeKey::parse(&pem_block("EC PRIVATE KEY", sec1)).unwrap();
        assert_eq!(key.public_key_info(), again.public_key_info());
    }

    #[test]
    fn what_is_no_key_says_why() {
        assert_eq!(NodeKey::parse("hello").unwrap_err(), BadKey::NotPem);
        assert_eq!(NodeKey::parse(&pem_block("PRIVATE KEY", b"junk")).unwrap_err(), BadKey::Kind);
        assert_eq!(NodeKey::parse(&pem_block("EC PRIVATE KEY", b"junk")).unwrap_err(), BadKey::Kind);
        assert_eq!(NodeKey::parse(&pem_block("ENCRYPTED PRIVATE KEY", b"junk")).unwrap_err(), BadKey::Encrypted);
        let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert_eq!(NodeKey::parse(&ed.serialize_pem()).unwrap_err(), BadKey::Kind);
    }

    #[test]
    fn a_request_has_no_subject_and_carries_the_key() {
        let key = NodeKey::generate().unwrap();
        let pem = key.request().unwrap();
        let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
        assert_eq!(request.certification_request_info.subject.iter().count(), 0);
        assert!(request.requested_extensions().is_none());
        let taken = public_key_of_request(pem.as_bytes()).unwrap();
        assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&taken), key.public_key_info());
        assert_eq!(key_of_request(pem.as_bytes()), Some(key.public_key_info()));
        assert_eq!(key_of_request(b"junk"), None);
    }

    #[test]
    fn a_bad_request_is_refused_with_its_reason() {
        let refused = |pem: &[u8]| public_key_of_request(pem).map(|_| ()).unwrap_err();
        assert_eq!(refused(b"junk"), BadCsr::Parse);
        assert_eq!(refused(pem_block("CERTIFICATE REQUEST", b"junk").as_bytes()), BadCsr::Parse);
        assert_eq!(refused(&vec![b'x'; MAX_CSR + 1]), BadCsr::TooLong(MAX_CSR + 1));

        let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = CertificateParams::default().serialize_request(&ed).unwrap();
        assert_eq!(refused(request.pem().unwrap().as_bytes()), BadCsr::Key);

        // Keys that are too weak, too long, or on a curve nobody uses here; each request is well signed, from `openssl req`.
        for (request, what) in [
            (include_str!("key_tests/p224.csr"), "P-224"),
            (include_str!("key_tests/secp256k1.csr"), "secp256k1"),
            (include_str!("key_tests/brainpool256.csr"), "brainpoolP256r1"),
            (include_str!("key_tests/p521.csr"), "P-521"),
            (include_str!("key_tests/rsa1024.csr"), "RSA 1024"),
            (include_str!("key_tests/explicit_p256.csr"), "P-256 with explicit parameters"),
        ] {
            assert_eq!(refused(request.as_bytes()), BadCsr::Key, "{what}");
        }
        let rsa = include_str!("key_tests/rsa2048.csr");
        public_key_of_request(rsa.as_bytes()).unwrap();

        // Another key put into a signed request: the signature no longer fits.
        let (mine, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let der = CertificateParams::default().serialize_request(mine.pair()).unwrap().der().to_vec();
        let (from, to) = (mine.pair().public_key_raw(), other.pair().public_key_raw());
        let at = der.windows(from.len()).position(|window| window == from).unwrap();
        let mut forged = der.clone();
        forged[at..at + to.len()].copy_from_slice(to);
        assert_eq!(refused(pem_block("CERTIFICATE REQUEST", &forged).as_bytes()), BadCsr::Signature);
        // Something behind the request.
        let longer = [der.as_slice(), b"more"].concat();
        assert_eq!(refused(pem_block("CERTIFICATE REQUEST", &longer).as_bytes()), BadCsr::Parse);
    }

    #[test]
    fn a_key_of_16_kbit_is_refused_before_it_is_used() {
        // RSAPublicKey, RFC 8017 A.1.1, in a request with a signature that means nothing.
        let integer = |bytes: &[u8]| element(INTEGER, &[&[0], bytes]);
        let rsa = [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
        let sha256_rsa = [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00];
        let request = |octets: usize| {
            let modulus = integer(&vec![0xff; octets]);
            let key = element(SEQUENCE, &[&modulus, &[INTEGER, 3, 1, 0, 1]]);
            let info = element(SEQUENCE, &[&rsa, &element(BIT_STRING, &[&[0], &key])]);
            let body = element(SEQUENCE, &[&[INTEGER, 1, 0], &element(SEQUENCE, &[]), &info, &[0xa0, 0]]);
            let signature = element(BIT_STRING, &[&[0], &vec![1; octets]]);
            pem_block("CERTIFICATE REQUEST", &element(SEQUENCE, &[&body, &sha256_rsa, &signature]))
        };
        let refused = |octets: usize| public_key_of_request(request(octets).as_bytes()).map(|_| ()).unwrap_err();
        assert_eq!(refused(2048), BadCsr::Key, "16 kbit");
        assert_eq!(refused(128), BadCsr::Key, "1 kbit");
        assert_eq!(refused(256), BadCsr::Signature, "2 kbit, so that the form of the request is right");
    }
}
