//! Becoming a member by a join token, as skepd does it (spec wire-behaviour 4.2): the roots are fetched and compared with the
//! token, then a certificate is asked for and waited for.

use crate::dial::{DialError, Http2, connect, origin};
use crate::member::{BadMember, Member, Trust};
use skep_ca::{BadKey, BadRoots, BadToken, Connector, JoinToken, NodeKey, RootBundle, SecurityError};
use skep_proto::v1::{self, ca_client::CaClient, node_ca_client::NodeCaClient};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// How often a step is tried again: managers may be electing a leader, or have many nodes waiting.
const TRIES: u32 = 40;
/// The pause between tries is anywhere below this.
const PAUSE: Duration = Duration::from_millis(1_000);
/// For one answer; a certificate is waited for longer than that by asking again.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// Why a node did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("the join token is not usable")]
    Token(#[from] BadToken),
    #[error("no manager to join was given")]
    NoManager,
    #[error("the roots the manager sent cannot be used")]
    Roots(#[from] BadRoots),
    #[error("the manager's roots are not those of the join token; check the address, or ask for a new token")]
    OtherRoots,
    #[error("no connection to join over")]
    Dial(#[from] DialError),
    #[error("no TLS configuration to join with")]
    Security(#[from] SecurityError),
    #[error("the manager refused: {0}")]
    Refused(Status),
    #[error("the certificate was not issued: {0}")]
    NotIssued(String),
    #[error("no key could be made")]
    Key(#[from] BadKey),
    #[error("the certificate cannot be used")]
    Member(#[from] BadMember),
    #[error("a joining task panicked")]
    Panicked,
}

impl JoinError {
    /// Whether another try may do better.
    fn may_pass(&self) -> bool {
        match self {
            Self::Dial(_) => true,
            Self::Refused(status) => {
                matches!(status.code(), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
            }
            _ => false,
        }
    }
}

/// How to join.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// `host:port`; each node starts with one by chance.
    pub managers: Vec<String>,
    pub token: String,
    /// Nodes that join at the same time.
    pub at_once: usize,
    /// Each node fetches the roots over a connection of its own, as real ones do. Otherwise the first does it for all.
    pub roots_each: bool,
}

/// Roots that were compared with a token.
#[derive(Debug, Clone)]
pub struct Roots {
    pub trust: Arc<Trust>,
    connector: Connector,
}

async fn dial(address: &str, connector: &Connector) -> Result<Http2, DialError> {
    connect(address, |tcp| async move { connector.connect(tcp).await.map(|(stream, _)| stream) }).await
}

async fn limited<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, JoinError> {
    let outcome = tokio::time::timeout(CALL_LIMIT, call).await;
    outcome.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))).map_err(JoinError::Refused)
}

/// Downloads the roots from a manager and compares them with the token.
///
/// # Errors
/// If the manager does not answer or has other roots.
pub async fn fetch_roots(manager: &str, token: &JoinToken) -> Result<RootBundle, JoinError> {
    let client = dial(manager, &Connector::fetch_root()?).await?;
    let mut ca = CaClient::with_origin(client, origin());
    let answer = limited(ca.get_root_ca_certificate(v1::GetRootCaCertificateRequest {})).await?.into_inner();
    let roots = RootBundle::parse(&String::from_utf8_lossy(&answer.certificate))?;
    if token.pins(&roots) { Ok(roots) } else { Err(JoinError::OtherRoots) }
}

impl Roots {
    /// # Errors
    /// If no TLS configuration can be made of them.
    pub fn new(bundle: &RootBundle) -> Result<Self, JoinError> {
        Ok(Self { trust: Trust::new(bundle)?, connector: Connector::bootstrap(bundle)? })
    }
}

/// One try of one node.
///
/// # Errors
/// The step that failed.
pub async fn join_one(manager: &str, token: &str, roots: &Roots, key: NodeKey) -> Result<Member, JoinError> {
    let client = dial(manager, &roots.connector).await?;
    let mut ca = NodeCaClient::with_origin(client, origin());
    let request = v1::IssueNodeCertificateRequest { csr: key.request()?.into_bytes(), token: token.to_owned(), ..Default::default() };
    let node_id = limited(ca.issue_node_certificate(request)).await?.into_inner().node_id;
    let mut tries = 0;
    let certificate = loop {
        match limited(ca.node_certificate_status(v1::NodeCertificateStatusRequest { node_id: node_id.clone() })).await {
            Ok(answer) => break answer.into_inner().certificate.unwrap_or_default(),
            // The node is known by now: asking again, not joining again, is what must follow.
            Err(error) if error.may_pass() && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE.mul_f64(rand::random())).await;
                if matches!(error, JoinError::Refused(_)) {
                    ca = NodeCaClient::with_origin(dial(manager, &roots.connector).await?, origin());
                }
            }
            Err(error) => return Err(error),
        }
    };
    let issued = v1::issuance_status::State::Issued as i32;
    let status = certificate.status.unwrap_or_default();
    if status.state != issued {
        return Err(JoinError::NotIssued(status.err));
    }
    Ok(Member::new(&roots.trust, &node_id, key, &String::from_utf8_lossy(&certificate.certificate))?)
}

async fn join_until_done(options: Arc<JoinOptions>, token: Arc<JoinToken>, shared: Roots) -> Result<Member, JoinError> {
    let key = NodeKey::generate()?;
    let mut tries = 0;
    loop {
        let place = (rand::random::<f64>() * options.managers.len() as f64) as usize;
        let manager = options.managers.get(place).or(options.managers.first()).ok_or(JoinError::NoManager)?;
        let once = async {
            if options.roots_each {
                // The answer must be the same; the members go on sharing what was made of the first.
                fetch_roots(manager, &token).await?;
            }
            join_one(manager, &options.token, &shared, key.clone()).await
        };
        match once.await {
            Err(error) if error.may_pass() && tries < TRIES => {
                tries += 1;
                tracing::debug!(%error, manager, "joining is tried again");
                tokio::time::sleep(PAUSE.mul_f64(rand::random())).await;
            }
            outcome => return outcome,
        }
    }
}

/// Makes so many new members, each given to `each` as soon as it is one.
///
/// # Errors
/// The first that cannot join.
pub async fn join_each(options: JoinOptions, count: usize, mut each: impl FnMut(Member)) -> Result<(), JoinError> {
    let token: Arc<JoinToken> = Arc::new(options.token.parse()?);
    let first = options.managers.first().ok_or(JoinError::NoManager)?;
    let shared = Roots::new(&fetch_roots(first, &token).await?)?;
    let at_once = options.at_once.max(1);
    let options = Arc::new(options);
    let mut joining = JoinSet::new();
    let mut begun = 0;
    loop {
        while begun < count && joining.len() < at_once {
            joining.spawn(join_until_done(options.clone(), token.clone(), shared.clone()));
            begun += 1;
        }
        match joining.join_next().await {
            Some(joined) => each(joined.map_err(|_| JoinError::Panicked)??),
            None => return Ok(()),
        }
    }
}

/// Makes so many new members.
///
/// # Errors
/// The first that cannot join.
pub async fn join(options: JoinOptions, count: usize) -> Result<Vec<Member>, JoinError> {
    let mut members = Vec::with_capacity(count);
    join_each(options, count, |member| members.push(member)).await?;
    Ok(members)
}
