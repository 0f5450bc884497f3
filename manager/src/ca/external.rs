//! A CA outside the cluster that signs for it (spec wire-behaviour 4.8): CFSSL's sign request over HTTPS, with this manager's
//! certificate.
//!
//! What it sends back is not taken on trust: the certificate must be for the key, node, role and cluster that were asked for, and
//! verify under the cluster's roots.

mod cross; // roots that it signs

use super::authority::text;
use super::root::{UnusableRoot, nobody};
use bytes::Bytes;
pub(crate) use cross::cross_sign;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HOST};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use skep_ca::{BadIssue, MANAGER_NAME, NodeKey, NodeRole, RootBundle, SecurityConfig, Subject, role_name};
use skep_types::{Certificate, Cluster, ClusterId, ExternalCa, FieldError, IssuanceState, Node};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For one URL (spec wire-behaviour 4.8).
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// For all URLs together while an operator waits.
const PATIENCE: Duration = Duration::from_secs(30);
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
    #[error(
        "the external CA {url}, which has the present root's key, refuses to sign the new root: {reason}; it needs a signing profile named \
         CA that may sign CA certificates (ca_constraint) and lets the extension 2.5.29.19 be asked for (allowed_extensions)"
    )]
    RefusedRoot { url: String, reason: String },
    #[error("no certificate can be asked for")]
    NoRequest { source: UnusableRoot },
    #[error(
        "what the external CA {url} signed does not introduce the new root; its signing profile CA must be there, sign CA certificates \
         (ca_constraint) and let the extension 2.5.29.19 be asked for (allowed_extensions)"
    )]
    WrongRoot { url: String, source: UnusableRoot },
    #[error("the external CAs {urls} together take longer than {} s; name fewer, or those that answer first", PATIENCE.as_secs())]
    TooSlow { urls: String },
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

/// Writes down which root entries without certificate belong to: the present one. After a rotation they would be taken for entries of
/// the next one, whose certificates they cannot sign.
pub(crate) fn pin_entries(entries: &mut [ExternalCa], present: &[u8]) {
    for entry in entries.iter_mut().filter(|entry| entry.ca_cert.is_empty()) {
        entry.ca_cert = present.to_vec();
    }
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extensions: Vec<WireExtension>,
}

/// `signer.Subject` of CFSSL; its `CN` has no tag in Go and so is written as it is.
#[derive(Debug, Serialize)]
struct WireSubject<'a> {
    #[serde(rename = "CN")]
    cn: &'a str,
    /// `csr.Name` of CFSSL: parts of a name by their short names. Those of all entries are put together.
    names: Vec<BTreeMap<&'static str, &'a str>>,
}

/// `signer.Extension` of CFSSL.
#[derive(Debug, Serialize)]
struct WireExtension {
    id: &'static str,
    critical: bool,
    /// DER in hexadecimal digits.
    value: String,
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

    async fn sign(&self, security: &SecurityConfig, csr: &[u8], subject: &Subject, now: SystemTime) -> Result<String, ExternalError> {
        let csr = text(csr);
        let request = |target: &Target| node_request(&csr, subject, &target.profile);
        self.first(security, request, |target, leaf| {
            let chain = format!("{leaf}{}", self.intermediates);
            let wrong = |source| ExternalError::Wrong { url: target.url.clone(), source };
            self.roots.check_issued(csr.as_bytes(), &chain, subject, now).map_err(wrong)?;
            // What nodes will trust when the rotation is over.
            if let Some(coming) = &self.coming {
                coming.verify_pem(&chain, now).map_err(|error| wrong(error.into()))?;
            }
            Ok(chain)
        })
        .await
    }

    /// Asks one after the other until one signs what is `accepted`; of several failures the last one counts.
    async fn first<T>(
        &self,
        security: &SecurityConfig,
        request: impl Fn(&Target) -> Bytes,
        accepted: impl Fn(&Target, String) -> Result<T, ExternalError>,
    ) -> Result<T, ExternalError> {
        let mut outcome = None;
        for target in &self.targets {
            let signed = self.ask(security, target, &request(target)).await.and_then(|certificate| accepted(target, certificate));
            if signed.is_ok() {
                return signed;
            }
            outcome = Some(signed);
        }
        outcome.expect("there is at least one target")
    }

    /// The same while somebody waits for the answer.
    async fn within_patience<T>(&self, asked: impl Future<Output = Result<T, ExternalError>>) -> Result<T, ExternalError> {
        let urls = || self.targets.iter().map(|target| target.url.as_str()).collect::<Vec<_>>().join(", ");
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(ExternalError::TooSlow { urls: urls() }))
    }

    async fn ask(&self, security: &SecurityConfig, target: &Target, body: &Bytes) -> Result<String, ExternalError> {
        let asked = async {
            let reply = post(security, self.coming.as_ref(), target, body.clone()).await?;
            read_reply(&target.url, &reply)
        };
        timeout(TIME_LIMIT, asked).await.unwrap_or_else(|_| Err(ExternalError::TimedOut { url: target.url.clone() }))
    }
}

/// Whether one of the external CAs that sign under these settings really does: it is asked for a certificate for nobody, under a key
/// that is thrown away. The last failure if none does.
pub(crate) async fn check_signs(security: &SecurityConfig, cluster: &Cluster, now: SystemTime) -> Result<(), ExternalError> {
    // Entries that cannot be used were refused before, and that there is one was required.
    let Some(external) = External::of(cluster) else { return Ok(()) };
    let request = NodeKey::generate().and_then(|key| key.request());
    let request = request.map_err(|error| ExternalError::NoRequest { source: error.into() })?;
    let subject = nobody(&cluster.id, NodeRole::Worker);
    external.within_patience(external.sign(security, request.as_bytes(), &subject, now)).await.map(drop)
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
    let names = vec![BTreeMap::from([("O", subject.cluster.as_str()), ("OU", unit)])];
    let subject = WireSubject { cn: subject.node.as_str(), names };
    body(&SignRequest { hosts, certificate_request: csr, subject, profile, extensions: Vec::new() })
}

fn body(request: &SignRequest<'_>) -> Bytes {
    serde_json::to_vec(request).expect("texts can be written as JSON").into()
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
