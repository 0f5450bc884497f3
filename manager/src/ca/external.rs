//! A CA outside the cluster that signs for it (spec wire-behaviour 4.8): CFSSL's sign request over HTTPS, with this manager's
//! certificate.
//!
//! What it sends back is not taken on trust: the certificate must be for the key, node, role and cluster that were asked for, and
//! verify under the cluster's roots.

use super::authority::text;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HOST};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use skep_ca::{BadIssue, MANAGER_NAME, RootBundle, SecurityConfig, Subject, role_name};
use skep_types::{Certificate, Cluster, ClusterId, ExternalCa, FieldError, IssuanceState, Node};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For one URL, and for finding out whether it answers (spec wire-behaviour 4.7 and 4.8).
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Longest reply that is read.
const MAX_REPLY: usize = 256 * 1024;
/// Requests under way at once.
const AT_ONCE: usize = 8;

/// Why an external CA gave no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExternalError {
    /// May pass.
    #[error("the external CA {url} does not answer within {} s", TIME_LIMIT.as_secs())]
    TimedOut { url: String },
    /// May pass.
    #[error("the external CA {url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    /// May pass: it is no CFSSL server, or not today.
    #[error("the external CA {url} answers with {what}, not as a CFSSL server does")]
    NotCfssl { url: String, what: String },
    /// Final.
    #[error("the external CA {url} refuses to sign: {reason}")]
    Refused { url: String, reason: String },
    /// Final.
    #[error("what the external CA {url} signed is not what it was asked for")]
    Wrong { url: String, source: BadIssue },
}

impl ExternalError {
    fn is_final(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Wrong { .. })
    }
}

/// Where one listens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    url: String,
    host: String,
    port: u16,
    path: String,
    /// Under which of its rules it shall sign; empty = its default.
    profile: String,
}

impl Target {
    fn of(entry: &ExternalCa) -> Result<Self, FieldError> {
        let profile = entry.options.get(PROFILE).cloned().unwrap_or_default();
        Ok(Self { profile, ..Self::parse(&entry.url)? })
    }

    fn parse(url: &str) -> Result<Self, FieldError> {
        let bad = |problem: &str| FieldError::new("url", format!("{url:?} {problem}; give it as https://HOST[:PORT]/api/v1/cfssl/sign"));
        let uri: http::Uri = url.parse().map_err(|_| bad("is not a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(bad("is not an https URL"));
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("names no host"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            url: url.to_owned(),
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(443),
            path: path.to_owned(),
            profile: String::new(),
        })
    }

    /// Without the brackets of an IPv6 address.
    fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// The external CAs that sign under one root.
#[derive(Debug)]
pub(super) struct External {
    targets: Vec<Target>,
    /// What nodes trust; certificates must verify under them.
    roots: RootBundle,
    /// What stands between the signer and those roots, PEM; empty outside a root rotation.
    intermediates: String,
    /// The root being introduced, which the server's own certificate may be of.
    coming: Option<RootBundle>,
}

/// Those entries that sign under this root. An entry without certificate belongs to the present root.
pub(crate) fn entries_for<'a>(entries: &'a [ExternalCa], wanted: &RootBundle, present: &RootBundle) -> Vec<&'a ExternalCa> {
    let belongs = |entry: &&ExternalCa| match entry.ca_cert.is_empty() {
        true => wanted.is_same(present),
        false => RootBundle::parse(&text(&entry.ca_cert)).is_ok_and(|own| own.is_same(wanted)),
    };
    entries.iter().filter(belongs).collect()
}

/// Whether all entries could be used. Errors name fields of `ca_config`.
pub(crate) fn check_entries(entries: &[ExternalCa]) -> Result<(), FieldError> {
    for (index, entry) in entries.iter().enumerate() {
        let inside = |error: FieldError| error.at(index).inside("external_cas").inside("ca_config");
        Target::parse(&entry.url).map_err(inside)?;
        if !entry.ca_cert.is_empty() {
            RootBundle::parse(&text(&entry.ca_cert)).map_err(|error| inside(FieldError::new("ca_cert", error.to_string())))?;
        }
        if let Some(odd) = entry.options.keys().find(|key| *key != PROFILE) {
            return Err(inside(FieldError::new("options", format!("{odd:?} is not known; only {PROFILE:?} is"))));
        }
    }
    Ok(())
}

const PROFILE: &str = "profile";

#[derive(Debug, Serialize)]
struct SignRequest<'a> {
    hosts: Vec<&'a str>,
    certificate_request: &'a str,
    subject: WireSubject<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    profile: &'a str,
}

/// `signer.Subject` of CFSSL; its `CN` has no tag in Go and so is written as it is.
#[derive(Debug, Serialize)]
struct WireSubject<'a> {
    #[serde(rename = "CN")]
    cn: &'a str,
    names: [WireName<'a>; 1],
}

#[derive(Debug, Serialize)]
struct WireName<'a> {
    #[serde(rename = "O")]
    organisation: &'a str,
    #[serde(rename = "OU")]
    unit: &'a str,
}

#[derive(Debug, Deserialize)]
struct Reply {
    success: bool,
    #[serde(default)]
    result: Option<ReplyResult>,
    #[serde(default)]
    errors: Vec<ReplyError>,
}

#[derive(Debug, Deserialize)]
struct ReplyResult {
    certificate: String,
}

#[derive(Debug, Deserialize)]
struct ReplyError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

impl External {
    /// `None` if no entry signs under the root that signs at this moment.
    pub(super) fn of(cluster: &Cluster) -> Option<Self> {
        let (ca, entries) = (&cluster.root_ca, &cluster.spec.ca_config.external_cas);
        if entries.is_empty() {
            return None;
        }
        let present = RootBundle::parse(&text(&ca.ca_cert)).ok()?;
        let coming = ca.root_rotation.as_ref().map(|rotation| RootBundle::parse(&text(&rotation.ca_cert))).transpose().ok()?;
        let signing = coming.as_ref().unwrap_or(&present);
        let targets: Vec<Target> = entries_for(entries, signing, &present).into_iter().filter_map(|entry| Target::of(entry).ok()).collect();
        let intermediates = ca.root_rotation.as_ref().map(|rotation| text(&rotation.cross_signed_ca_cert)).unwrap_or_default();
        (!targets.is_empty()).then_some(Self { targets, roots: present, intermediates, coming })
    }

    /// The nodes' certificate records with their decisions, in no order; and whether all were decided. What failed on the way may
    /// pass.
    pub(super) async fn certify(
        &self,
        security: &SecurityConfig,
        cluster: &ClusterId,
        nodes: Vec<Arc<Node>>,
        now: SystemTime,
    ) -> (Vec<Arc<Node>>, bool) {
        let count = nodes.len();
        let decide = |node: Arc<Node>| async move {
            let certificate = self.certify_one(security, cluster, &node, now).await?;
            Some(Arc::new(Node { certificate, ..Node::clone(&node) }))
        };
        let decided: Vec<_> =
            futures_util::stream::iter(nodes).map(decide).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
        let all = decided.len() == count;
        (decided, all)
    }

    /// `None`: to be tried again.
    async fn certify_one(&self, security: &SecurityConfig, cluster: &ClusterId, node: &Node, now: SystemTime) -> Option<Certificate> {
        let wanted = &node.certificate;
        let subject = Subject { node: node.id.clone(), role: node.role, cluster: cluster.clone() };
        match self.sign(security, &wanted.csr, &subject, now).await {
            Ok(chain) => Some(Certificate {
                state: IssuanceState::Issued,
                certificate: chain.into_bytes(),
                role: node.role,
                err: String::new(),
                ..wanted.clone()
            }),
            Err(error) if error.is_final() => {
                let err = crate::drive::chain(&error);
                Some(Certificate { state: IssuanceState::Failed, err, certificate: Vec::new(), ..wanted.clone() })
            }
            Err(error) => {
                tracing::warn!(node = %node.id, error = %crate::drive::chain(&error), "no certificate from the external CA; trying again");
                None
            }
        }
    }

    /// Asks one after the other until one signs; of several failures the last one counts.
    async fn sign(&self, security: &SecurityConfig, csr: &[u8], subject: &Subject, now: SystemTime) -> Result<String, ExternalError> {
        let csr = text(csr);
        let mut outcome = None;
        for target in &self.targets {
            let body = node_request(&csr, subject, &target.profile);
            let signed = match self.ask(security, target, &body).await {
                Ok(leaf) => {
                    let chain = format!("{leaf}{}", self.intermediates);
                    let checked = self.roots.check_issued(csr.as_bytes(), &chain, subject, now);
                    checked.map(|()| chain).map_err(|source| ExternalError::Wrong { url: target.url.clone(), source })
                }
                Err(error) => Err(error),
            };
            if signed.is_ok() {
                return signed;
            }
            outcome = Some(signed);
        }
        outcome.expect("there is at least one target")
    }

    async fn ask(&self, security: &SecurityConfig, target: &Target, body: &Bytes) -> Result<String, ExternalError> {
        let asked = async {
            let reply = post(security, self.coming.as_ref(), target, body.clone()).await?;
            read_reply(&target.url, &reply)
        };
        timeout(TIME_LIMIT, asked).await.unwrap_or_else(|_| Err(ExternalError::TimedOut { url: target.url.clone() }))
    }
}

/// Whether one of these entries answers at all, by TLS. The last failure if none does.
pub(crate) async fn check_reachable(
    security: &SecurityConfig,
    entries: &[ExternalCa],
    coming: Option<&RootBundle>,
) -> Result<(), ExternalError> {
    let mut outcome = Ok(());
    for entry in entries {
        let Ok(target) = Target::parse(&entry.url) else { continue };
        let url = || target.url.clone();
        outcome = match timeout(TIME_LIMIT, dial(security, coming, &target)).await {
            Err(_) => Err(ExternalError::TimedOut { url: url() }),
            Ok(dialled) => dialled.map(drop),
        };
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

type Stream = tokio_rustls::client::TlsStream<TcpStream>;

async fn dial(security: &SecurityConfig, coming: Option<&RootBundle>, target: &Target) -> Result<Stream, ExternalError> {
    let failed = |reason: String| ExternalError::Unreachable { url: target.url.clone(), reason };
    let tcp = TcpStream::connect((target.bare_host(), target.port)).await.map_err(|error| failed(error.to_string()))?;
    let stream = skep_ca::connect_outside(security, coming, target.bare_host(), tcp).await;
    stream.map_err(|error| failed(crate::drive::chain(&error)))
}

async fn post(security: &SecurityConfig, coming: Option<&RootBundle>, target: &Target, body: Bytes) -> Result<Bytes, ExternalError> {
    let stream = dial(security, coming, target).await?;
    let failed = |reason: String| ExternalError::Unreachable { url: target.url.clone(), reason };
    let not_cfssl = |what: String| ExternalError::NotCfssl { url: target.url.clone(), what };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
    let request = http::Request::post(&target.path)
        .header(HOST, format!("{}:{}", target.host, target.port))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| failed(error.to_string()))?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
        let body = Limited::new(response.into_body(), MAX_REPLY).collect().await;
        Ok(body.map_err(|error| not_cfssl(format!("a reply that cannot be read ({error})")))?.to_bytes())
    };
    tokio::pin!(asking);
    tokio::select! {
        answer = &mut asking => answer,
        // Closed by the other side; the answer may be there already.
        _ = connection => asking.await,
    }
}

/// `SK/ca/external.go`, `PrepareCSR`.
fn node_request(csr: &str, subject: &Subject, profile: &str) -> Bytes {
    let unit = role_name(subject.role);
    let mut hosts = vec![unit, subject.node.as_str()];
    if unit == MANAGER_NAME {
        hosts.push(skep_ca::ROOT_NAME);
    }
    let request = SignRequest {
        hosts,
        certificate_request: csr,
        subject: WireSubject { cn: subject.node.as_str(), names: [WireName { organisation: subject.cluster.as_str(), unit }] },
        profile,
    };
    serde_json::to_vec(&request).expect("texts can be written as JSON").into()
}

/// The certificate in a CFSSL envelope.
fn read_reply(url: &str, reply: &[u8]) -> Result<String, ExternalError> {
    let not_cfssl = |what: &str| ExternalError::NotCfssl { url: url.to_owned(), what: what.to_owned() };
    let reply: Reply = serde_json::from_slice(reply).map_err(|_| not_cfssl("something other than its envelope"))?;
    if !reply.success || !reply.errors.is_empty() {
        let reasons: Vec<String> = reply.errors.iter().map(|error| format!("{} (code {})", error.message, error.code)).collect();
        let reason = if reasons.is_empty() { "without a reason".to_owned() } else { reasons.join(", ") };
        return Err(ExternalError::Refused { url: url.to_owned(), reason });
    }
    reply.result.map(|result| result.certificate).ok_or_else(|| not_cfssl("no certificate"))
}

#[cfg(test)]
mod tests;
