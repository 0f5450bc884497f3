//! Which root a cluster shall have: what an operator's settings ask for, and the end of a rotation. Decisions; nothing is written.
//!
//! The present root stays in its place while a rotation is under way; the new one waits beside it, cross-signed (spec wire-behaviour
//! 4.7). Settings that name a certificate are orders: they are carried out once and not kept, for clients never get them back and
//! so do not send them again.

use super::authority::{secret, text};
use super::external::entries_for;
use skep_ca::{BadKey, CaError, DEFAULT_LIFETIME, JoinToken, NodeKey, NodeRole, ROOT_LIFETIME, RootBundle, RootCa, Secret, Subject};
use skep_plan::RotationTarget;
use skep_types::{CaConfig, Cluster, ClusterId, ClusterRootCa, ExternalCa, FieldError, JoinTokens, NodeId, RootRotation, Sensitive};
use std::time::{Duration, SystemTime};

/// A new root must be good for this long (`SK/manager/controlapi/ca_rotation.go`, `minRootExpiration`).
const SHORTEST_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

const CERT: &str = "ca_config.signing_ca_cert";
const KEY: &str = "ca_config.signing_ca_key";

/// What becomes of the cluster's root by these settings; `None` = nothing. Errors name fields of the cluster's spec.
pub(crate) fn wanted_root(cluster: &Cluster, wanted: &CaConfig, now: SystemTime) -> Result<Option<ClusterRootCa>, FieldError> {
    let ca = &cluster.root_ca;
    if wanted.signing_ca_cert.is_empty() {
        if !wanted.signing_ca_key.0.is_empty() {
            return Err(FieldError::new(CERT, "is missing; a signing key is of no use without its certificate"));
        }
        if wanted.force_rotate == ca.last_forced_rotation {
            return Ok(None);
        }
        let new = RootCa::generate(now).map_err(|error| bad("ca_config.force_rotate", &error))?;
        return begin(ca, &new, wanted.force_rotate, now).map(Some);
    }
    let certificate = parse_certificate(&wanted.signing_ca_cert, now)?;
    let key = Some(&wanted.signing_ca_key).filter(|key| !key.0.is_empty()).map(|key| signing_key(&certificate, key)).transpose()?;
    let last_forced_rotation = wanted.force_rotate;

    let present = stored_bundle(&ca.ca_cert)?;
    if certificate.is_same(&present) {
        // The present root it shall be: a rotation under way is given up. Certificates of the new one stay valid, cross-signed.
        let ca_key = key.map_or_else(|| ca.ca_key.clone(), |key| sensitive(&key));
        return Ok(Some(ClusterRootCa { ca_key, root_rotation: None, last_forced_rotation, ..ca.clone() }));
    }
    if let Some(pending) = &ca.root_rotation
        && certificate.is_same(&stored_bundle(&pending.ca_cert)?)
    {
        let ca_key = key.map_or_else(|| pending.ca_key.clone(), |key| sensitive(&key));
        let root_rotation = Some(RootRotation { ca_key, ..pending.clone() });
        return Ok(Some(ClusterRootCa { root_rotation, last_forced_rotation, ..ca.clone() }));
    }
    if certificate.issuer().public_key == present.issuer().public_key {
        return Err(FieldError::new(KEY, "is the key of the present root; a rotation needs another key"));
    }
    match key {
        Some(key) => {
            let new = RootCa::load(certificate.pem(), &key).map_err(|error| bad(KEY, &error))?;
            begin(ca, &new, last_forced_rotation, now).map(Some)
        }
        None if entries_for(&wanted.external_cas, &certificate, &present).is_empty() => {
            let problem = "is missing; give the key, or an external CA that has it: an entry of external_cas with this certificate";
            Err(FieldError::new(KEY, problem))
        }
        None => begin_outside(ca, &certificate, last_forced_rotation).map(Some),
    }
}

/// The external CAs that the cluster cannot do without by these settings, for nobody else can sign; and the root they sign under.
pub(crate) fn required_external(ca: &ClusterRootCa, wanted: &CaConfig) -> Result<Option<(Vec<ExternalCa>, RootBundle)>, FieldError> {
    let present = stored_bundle(&ca.ca_cert)?;
    let signing = match &ca.root_rotation {
        Some(rotation) if rotation.ca_key.0.is_empty() => stored_bundle(&rotation.ca_cert)?,
        None if ca.ca_key.0.is_empty() => present.clone(),
        _ => return Ok(None),
    };
    let entries: Vec<ExternalCa> = entries_for(&wanted.external_cas, &signing, &present).into_iter().cloned().collect();
    if entries.is_empty() {
        let problem = "must have an entry for the root that signs, for the cluster does not have its key";
        return Err(FieldError::new("ca_config.external_cas", problem));
    }
    Ok(Some((entries, signing)))
}

/// One certificate, as it will be served, that nodes can rely on for a while.
fn parse_certificate(pem: &[u8], now: SystemTime) -> Result<RootBundle, FieldError> {
    let bundle = RootBundle::parse(&text(pem)).map_err(|error| bad(CERT, &error))?.canonical();
    if bundle.certificates().len() != 1 {
        let problem = format!("holds {} certificates; give the one that signs", bundle.certificates().len());
        return Err(FieldError::new(CERT, problem));
    }
    let (begin, end) = bundle.validity();
    if begin > now {
        return Err(FieldError::new(CERT, "is not valid yet; set the clocks, or give another certificate"));
    }
    if end < now + SHORTEST_LIFE {
        return Err(FieldError::new(CERT, "expires too soon: within a year; give one that lives longer"));
    }
    Ok(bundle)
}

/// The key in the form it is kept in, if it belongs to the certificate.
fn signing_key(certificate: &RootBundle, key: &Sensitive<Vec<u8>>) -> Result<Secret, FieldError> {
    let key = NodeKey::parse(secret(key).expose()).map_err(|error| bad(KEY, &error))?;
    if key.public_key_info() != certificate.issuer().public_key {
        return Err(bad(KEY, &BadKey::Mismatch));
    }
    Ok(key.pem())
}

/// Begins a rotation, in place of one that may be under way: the new root is always cross-signed by the one that is trusted.
fn begin(ca: &ClusterRootCa, new: &RootCa, last_forced_rotation: u64, now: SystemTime) -> Result<ClusterRootCa, FieldError> {
    let trusted = trusted(ca)?;
    let cross = trusted.cross_sign(new.bundle()).map_err(|error| bad(CERT, &error))?;
    let rotating =
        RootCa::during_rotation(trusted.bundle(), new.bundle().pem(), &new.key_pem(), &cross).map_err(|error| bad(CERT, &error))?;
    try_out(&rotating, &[trusted.bundle(), new.bundle()], now)?;
    let root_rotation = Some(RootRotation {
        ca_cert: new.bundle().pem().as_bytes().to_vec(),
        ca_key: sensitive(&new.key_pem()),
        cross_signed_ca_cert: cross.into_bytes(),
    });
    Ok(ClusterRootCa { root_rotation, last_forced_rotation, ..ca.clone() })
}

/// The same with a new root whose key is elsewhere. That it can sign is seen when the first node asks.
fn begin_outside(ca: &ClusterRootCa, new: &RootBundle, last_forced_rotation: u64) -> Result<ClusterRootCa, FieldError> {
    let cross = trusted(ca)?.cross_sign(new).map_err(|error| bad(CERT, &error))?;
    let root_rotation = Some(RootRotation {
        ca_cert: new.pem().as_bytes().to_vec(),
        ca_key: Sensitive(Vec::new()),
        cross_signed_ca_cert: cross.into_bytes(),
    });
    Ok(ClusterRootCa { root_rotation, last_forced_rotation, ..ca.clone() })
}

/// The present root with its key.
fn trusted(ca: &ClusterRootCa) -> Result<RootCa, FieldError> {
    if ca.ca_key.0.is_empty() {
        let problem = "cannot be replaced without the key of the present root, which an external CA has: first set signing_ca_cert and \
                       signing_ca_key to the present root";
        return Err(FieldError::new(CERT, problem));
    }
    RootCa::load(&text(&ca.ca_cert), &secret(&ca.ca_key)).map_err(|error| bad("ca_config", &error))
}

/// Signs a certificate for nobody. A root with a constraint, or a name written in an odd way, is found out here and not by nodes
/// that lost their cluster.
fn try_out(authority: &RootCa, roots: &[&RootBundle], now: SystemTime) -> Result<(), FieldError> {
    let unusable = |error: &dyn std::error::Error| FieldError::new(CERT, format!("cannot sign for nodes: {}", crate::drive::chain(error)));
    let request = NodeKey::generate().and_then(|key| key.request()).map_err(|error| unusable(&error))?;
    let nobody = |byte| [byte; 17];
    let subject = Subject { node: NodeId::from_random(nobody(1)), role: NodeRole::Manager, cluster: ClusterId::from_random(nobody(2)) };
    let issued = authority.issue(request.as_bytes(), &subject, DEFAULT_LIFETIME, now).map_err(|error| unusable(&error))?;
    for root in roots {
        root.verify_pem(&issued.chain_pem, now).map_err(|error| unusable(&error))?;
    }
    Ok(())
}

/// The new root as nodes report it.
pub(super) fn target(rotation: &RootRotation) -> Result<RotationTarget, CaError> {
    let issuer = RootBundle::parse(&text(&rotation.ca_cert))?.issuer();
    Ok(RotationTarget { subject: issuer.subject, public_key: issuer.public_key })
}

/// The end of a rotation: the new root takes the old one's place, and both join tokens are made anew, for they name their root.
/// `None` without a rotation.
pub(super) fn finished(ca: &ClusterRootCa, secrets: [[u8; 16]; 2]) -> Result<Option<ClusterRootCa>, CaError> {
    let Some(rotation) = &ca.root_rotation else { return Ok(None) };
    let roots = RootBundle::parse(&text(&rotation.ca_cert))?;
    let [worker, manager] = secrets.map(|secret| Sensitive(JoinToken::new(&roots, secret).text().expose().to_owned()));
    Ok(Some(ClusterRootCa {
        ca_key: rotation.ca_key.clone(),
        ca_cert: rotation.ca_cert.clone(),
        ca_cert_hash: roots.digest_text(),
        join_tokens: JoinTokens { worker, manager },
        root_rotation: None,
        last_forced_rotation: ca.last_forced_rotation,
    }))
}

/// How long certificates may live: longer than a root is of no use, and X.509 has no dates behind the year 9999.
pub(crate) fn check_lifetime(config: &CaConfig) -> Result<(), FieldError> {
    match config.node_cert_expiry {
        Some(life) if life > ROOT_LIFETIME => {
            let years = ROOT_LIFETIME.as_secs() / (365 * 24 * 3600);
            Err(FieldError::new("ca_config.node_cert_expiry", format!("is longer than a root lives; give at most {years} years")))
        }
        _ => Ok(()),
    }
}

fn stored_bundle(pem: &[u8]) -> Result<RootBundle, FieldError> {
    RootBundle::parse(&text(pem)).map_err(|error| bad("ca_config", &error))
}

fn sensitive(key: &Secret) -> Sensitive<Vec<u8>> {
    Sensitive(key.expose().as_bytes().to_vec())
}

fn bad(field: &str, error: &dyn std::error::Error) -> FieldError {
    FieldError::new(field, crate::drive::chain(error))
}

#[cfg(test)]
mod tests;
