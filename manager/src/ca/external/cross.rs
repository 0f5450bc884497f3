//! A root that the external CA with the present root's key signs, for a rotation (`SK/ca/external.go`, `CrossSignRootCA`).

use super::{BTreeMap, External, ExternalError, SignRequest, Target, WireExtension, WireSubject, body, entries_for};
use crate::ca::authority::text;
use crate::ca::root::{Introduction, UnusableRoot};
use bytes::Bytes;
use skep_ca::{CrossRequest, RootBundle, SecurityConfig};
use skep_types::{ClusterRootCa, ExternalCa};
use std::time::SystemTime;

/// The profile that SwarmKit asks for, whatever the entry says about nodes.
const PROFILE: &str = "CA";
/// CFSSL leaves what makes a CA out of requests, and takes it from beside them.
const BASIC_CONSTRAINTS: &str = "2.5.29.19";

/// The cluster's root settings with the rotation begun: signed by the first of the present root's external CAs that does.
///
/// Takes at most half a minute. Errors say which URL, and what to set there.
pub(crate) async fn cross_sign(
    security: &SecurityConfig,
    ca: &ClusterRootCa,
    entries: &[ExternalCa],
    new: &Introduction,
    now: SystemTime,
) -> Result<ClusterRootCa, ExternalError> {
    let unusable = |source: UnusableRoot| ExternalError::NoRequest { source };
    let present = RootBundle::parse(&text(&ca.ca_cert)).map_err(|error| unusable(skep_ca::CaError::from(error).into()))?;
    let request = new.request().map_err(|error| unusable(error.into()))?;
    let targets: Vec<Target> = entries_for(entries, &present, &present).into_iter().filter_map(|entry| Target::of(entry).ok()).collect();
    let external = External { targets, roots: present, intermediates: String::new(), coming: None };
    let body = root_request(&request);
    let asked = external.first(
        security,
        |_| body.clone(),
        |target, cross| new.signed(ca, &cross, now).map_err(|source| ExternalError::WrongRoot { url: target.url.clone(), source }),
    );
    external.within_patience(asked).await.map_err(|error| match error {
        ExternalError::Refused { url, reason } => ExternalError::RefusedRoot { url, reason },
        error => error,
    })
}

fn root_request(request: &CrossRequest) -> Bytes {
    let (common, others): (Vec<_>, Vec<_>) = request.name.iter().partition(|(kind, _)| *kind == "CN");
    let value = request.constraints.iter().map(|byte| format!("{byte:02x}")).collect();
    body(&SignRequest {
        hosts: Vec::new(),
        certificate_request: &request.pem,
        subject: WireSubject {
            cn: common.first().map_or("", |(_, name)| name),
            names: others.into_iter().map(|(kind, value)| BTreeMap::from([(*kind, value.as_str())])).collect(),
        },
        profile: PROFILE,
        extensions: vec![WireExtension { id: BASIC_CONSTRAINTS, critical: request.constraints_critical, value }],
    })
}
