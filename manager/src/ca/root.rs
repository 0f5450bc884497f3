//! Which root a cluster shall have: what an operator's settings ask for, and the end of a rotation. Decisions; nothing is written.
//!
//! The present root stays in its place while a rotation is under way; the new one waits beside it, cross-signed (spec wire-behaviour
//! 4.7). Settings that name a certificate are orders: they are carried out once and not kept, for clients never get them back and
//! so do not send them again.

use super::authority::{secret, text};
use super::external::entries_for;
use skep_ca::{
    BadKey, CaError, CrossRequest, DEFAULT_LIFETIME, JoinToken, NodeKey, NodeRole, ROOT_LIFETIME, RootBundle, RootCa, Secret, Subject,
    Untrusted,
};
use skep_plan::RotationTarget;
use skep_types::{CaConfig, Cluster, ClusterId, ClusterRootCa, FieldError, JoinTokens, NodeId, RootRotation, Sensitive};
use std::time::{Duration, SystemTime};

/// A new root must be good for this long (`SK/manager/controlapi/ca_rotation.go`, `minRootExpiration`).
const SHORTEST_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

const EXTERNAL: &str = "ca_config.external_cas";
const CERT: &str = "ca_config.signing_ca_cert";
const KEY: &str = "ca_config.signing_ca_key";

/// What becomes of the cluster's root.
#[derive(Debug)]
pub(crate) enum WantedRoot {
    Unchanged,
    Decided(Box<ClusterRootCa>),
    /// Another one, which the external CA that has the present one's key must sign first.
    Unsigned(Introduction),
}

/// A new root that waits for the signature of the present one. The key is here: a request must be signed with it.
#[derive(Debug)]
pub(crate) struct Introduction {
    new: RootCa,
    last_forced_rotation: u64,
}

/// Why nodes could not rely on a root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnusableRoot {
    #[error("the new root cannot be signed or cannot sign")]
    Ca(#[from] CaError),
    #[error("no certificate could be signed on trial")]
    Key(#[from] BadKey),
    #[error("a certificate signed on trial is not trusted")]
    Untrusted(#[from] Untrusted),
}

/// What becomes of the cluster's root by these settings. Errors name fields of the cluster's spec.
pub(crate) fn wanted_root(cluster: &Cluster, wanted: &CaConfig, now: SystemTime) -> Result<WantedRoot, FieldError> {
    let ca = &cluster.root_ca;
    if wanted.signing_ca_cert.is_empty() {
        if !wanted.signing_ca_key.0.is_empty() {
            return Err(FieldError::new(CERT, "is missing; a signing key is of no use without its certificate"));
        }
        if wanted.force_rotate == ca.last_forced_rotation {
            return Ok(WantedRoot::Unchanged);
        }
        let new = RootCa::generate(now).map_err(|error| bad("ca_config.force_rotate", &error))?;
        return begin(ca, new, wanted, now);
    }
    let certificate = parse_certificate(&wanted.signing_ca_cert, now)?;
    let key = Some(&wanted.signing_ca_key).filter(|key| !key.0.is_empty()).map(|key| signing_key(&certificate, key)).transpose()?;
    let last_forced_rotation = wanted.force_rotate;

    let present = stored_bundle(&ca.ca_cert)?;
    if certificate.is_same(&present) {
        // The present root it shall be: a rotation under way is given up. Certificates of the new one stay valid, cross-signed.
        let ca_key = key.map_or_else(|| ca.ca_key.clone(), |key| sensitive(&key));
        return decided(ClusterRootCa { ca_key, root_rotation: None, last_forced_rotation, ..ca.clone() });
    }
    if let Some(pending) = &ca.root_rotation
        && certificate.is_same(&stored_bundle(&pending.ca_cert)?)
    {
        let ca_key = key.map_or_else(|| pending.ca_key.clone(), |key| sensitive(&key));
        let root_rotation = Some(RootRotation { ca_key, ..pending.clone() });
        return decided(ClusterRootCa { root_rotation, last_forced_rotation, ..ca.clone() });
    }
    if certificate.issuer().public_key == present.issuer().public_key {
        return Err(FieldError::new(KEY, "is the key of the present root; a rotation needs another key"));
    }
    match key {
        Some(key) => {
            let new = RootCa::load(certificate.pem(), &key).map_err(|error| bad(KEY, &error))?;
            begin(ca, new, wanted, now)
        }
        None if entries_for(&wanted.external_cas, &certificate, &present).is_empty() => {
            let problem = "is missing; give the key, or an external CA that has it: an entry of external_cas with this certificate";
            Err(FieldError::new(KEY, problem))
        }
        None => begin_outside(ca, &certificate, last_forced_rotation),
    }
}

fn decided(root_ca: ClusterRootCa) -> Result<WantedRoot, FieldError> {
    Ok(WantedRoot::Decided(Box::new(root_ca)))
}

/// Whether the cluster cannot do without an external CA by these settings, for nobody else can sign; an error if it is to.
pub(crate) fn requires_external(ca: &ClusterRootCa, wanted: &CaConfig) -> Result<bool, FieldError> {
    let present = stored_bundle(&ca.ca_cert)?;
    let signing = match &ca.root_rotation {
        Some(rotation) if rotation.ca_key.0.is_empty() => stored_bundle(&rotation.ca_cert)?,
        None if ca.ca_key.0.is_empty() => present.clone(),
        _ => return Ok(false),
    };
    if entries_for(&wanted.external_cas, &signing, &present).is_empty() {
        let problem = "must have an entry for the root that signs, for the cluster does not have its key";
        return Err(FieldError::new(EXTERNAL, problem));
    }
    Ok(true)
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
fn begin(ca: &ClusterRootCa, new: RootCa, wanted: &CaConfig, now: SystemTime) -> Result<WantedRoot, FieldError> {
    let introduction = Introduction { new, last_forced_rotation: wanted.force_rotate };
    if !ca.ca_key.0.is_empty() {
        let cross = own(ca)?.cross_sign(introduction.new.bundle()).map_err(|error| bad(CERT, &error))?;
        let begun = introduction.signed(ca, &cross, now).map_err(|error| bad(CERT, &error))?;
        return decided(begun);
    }
    let present = stored_bundle(&ca.ca_cert)?;
    if entries_for(&wanted.external_cas, &present, &present).is_empty() {
        let problem = "must have an entry for the present root, whose key the cluster does not have: it has to sign the new root; or first \
                       set signing_ca_cert and signing_ca_key to the present root";
        return Err(FieldError::new(EXTERNAL, problem));
    }
    Ok(WantedRoot::Unsigned(introduction))
}

/// The same with a new root whose key is elsewhere.
fn begin_outside(ca: &ClusterRootCa, new: &RootBundle, last_forced_rotation: u64) -> Result<WantedRoot, FieldError> {
    if ca.ca_key.0.is_empty() {
        let problem = "is missing, and so is that of the present root: without either, nobody can have the new root signed by the present \
                       one; give signing_ca_key, or first set signing_ca_cert and signing_ca_key to the present root";
        return Err(FieldError::new(KEY, problem));
    }
    let cross = own(ca)?.cross_sign(new).map_err(|error| bad(CERT, &error))?;
    let root_rotation = Some(RootRotation {
        ca_cert: new.pem().as_bytes().to_vec(),
        ca_key: Sensitive(Vec::new()),
        cross_signed_ca_cert: cross.into_bytes(),
    });
    decided(ClusterRootCa { root_rotation, last_forced_rotation, ..ca.clone() })
}

/// The present root with its key.
fn own(ca: &ClusterRootCa) -> Result<RootCa, FieldError> {
    RootCa::load(&text(&ca.ca_cert), &secret(&ca.ca_key)).map_err(|error| bad("ca_config", &error))
}

impl Introduction {
    /// What the external CA is asked to sign.
    pub(super) fn request(&self) -> Result<CrossRequest, CaError> {
        self.new.cross_request()
    }

    /// The cluster's root settings with the rotation begun: the certificate that the present root signed is looked at, and used on
    /// trial. A root with a constraint, or a name written in an odd way, is found out here and not by nodes that lost their cluster.
    pub(super) fn signed(&self, ca: &ClusterRootCa, cross: &str, now: SystemTime) -> Result<ClusterRootCa, UnusableRoot> {
        let (present, new) = (RootBundle::parse(&text(&ca.ca_cert)).map_err(CaError::Roots)?, self.new.bundle());
        let rotating = RootCa::during_rotation(&present, new.pem(), &self.new.key_pem(), cross)?;
        let request = NodeKey::generate()?.request()?;
        let subject = nobody(&ClusterId::from_random([2; 17]), NodeRole::Manager);
        let issued = rotating.issue(request.as_bytes(), &subject, DEFAULT_LIFETIME, now)?;
        for root in [&present, new] {
            root.verify_pem(&issued.chain_pem, now)?;
        }
        let root_rotation = Some(RootRotation {
            ca_cert: new.pem().as_bytes().to_vec(),
            ca_key: sensitive(&self.new.key_pem()),
            cross_signed_ca_cert: cross.as_bytes().to_vec(),
        });
        Ok(ClusterRootCa { root_rotation, last_forced_rotation: self.last_forced_rotation, ..ca.clone() })
    }
}

/// Whom certificates on trial are for: nobody has this id, nor their keys.
pub(super) fn nobody(cluster: &ClusterId, role: NodeRole) -> Subject {
    Subject { node: NodeId::from_random([1; 17]), role, cluster: cluster.clone() }
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
