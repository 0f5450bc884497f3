//! Asking somebody else to cross-sign a root.

use super::{CaError, RootCa, TbsParts};
use crate::der::{BIT_STRING, INTEGER, SEQUENCE, element, pem_block};
use rcgen::SigningKey as _;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a CA outside needs to know to sign a root with its own key: a request, and what a request does not tell CFSSL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossRequest {
    /// PKCS#10 with the root's own name, byte for byte, and without extensions.
    pub pem: String,
    /// The parts of that name by their short names (RFC 4514 §3, and `SERIALNUMBER`), in their order. Parts of other kinds are left out.
    pub name: Vec<(&'static str, String)>,
    /// The extension that makes it a CA (2.5.29.19): DER of its value.
    pub constraints: Vec<u8>,
    pub constraints_critical: bool,
}

impl RootCa {
    /// A request for a certificate with this root's name and key, to be signed by another root (spec wire-behaviour 4.7).
    pub fn cross_request(&self) -> Result<CrossRequest, CaError> {
        let certificate = &self.signer.certificate;
        let parts = TbsParts::read(certificate).ok_or(CaError::SigningCertificate)?;
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CaError::SigningCertificate)?;
        let constraints = parsed.extensions().iter().find(|extension| extension.oid == oid::OID_X509_EXT_BASIC_CONSTRAINTS);
        let constraints = constraints.ok_or(CaError::SigningCertificate)?;
        // RFC 2986 §4: version 0, name, key, no attributes.
        let info = element(SEQUENCE, &[&[INTEGER, 1, 0], parts.subject, parts.key, &[0xa0, 0]]);
        let signature = self.signer.key.pair().sign(&info).map_err(|error| CaError::Sign(error.to_string()))?;
        let request = element(SEQUENCE, &[&info, self.signer.algorithm()?, &element(BIT_STRING, &[&[0], &signature])]);
        Ok(CrossRequest {
            pem: pem_block("CERTIFICATE REQUEST", &request),
            name: parsed.subject().iter_attributes().filter_map(name_part).collect(),
            constraints: constraints.value.to_vec(),
            constraints_critical: constraints.critical,
        })
    }
}

fn name_part(part: &x509_parser::x509::AttributeTypeAndValue<'_>) -> Option<(&'static str, String)> {
    let kinds = [
        (oid::OID_X509_COMMON_NAME, "CN"),
        (oid::OID_X509_COUNTRY_NAME, "C"),
        (oid::OID_X509_STATE_OR_PROVINCE_NAME, "ST"),
        (oid::OID_X509_LOCALITY_NAME, "L"),
        (oid::OID_X509_ORGANIZATION_NAME, "O"),
        (oid::OID_X509_ORGANIZATIONAL_UNIT, "OU"),
        (oid::OID_X509_SERIALNUMBER, "SERIALNUMBER"),
    ];
    let (_, short) = kinds.into_iter().find(|(kind, _)| kind == part.attr_type())?;
    Some((short, part.as_str().ok()?.to_owned()))
}
