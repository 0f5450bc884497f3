//! Asking for a certificate and waiting for it, over one connection.

use crate::certificate::dial::{dial, is_reached};
use crate::certificate::error::CertificateError;
use crate::certificate::poll::{Next, Poll, words};
use skep_ca::{Connector, RootBundle, UnlockKey};
use skep_proto::v1::ca_client::CaClient;
use skep_proto::v1::node_ca_client::NodeCaClient;
use skep_proto::v1::{GetRootCaCertificateRequest, GetUnlockKeyRequest, IssueNodeCertificateRequest, NodeCertificateStatusRequest};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// For each call (wire-behaviour 4.2).
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Before another manager is asked.
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(500);

async fn limited<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(CALL_LIMIT, call).await.map_err(|_| Status::deadline_exceeded("no answer in time"))?
}

/// Downloads the roots from a server that is not verified: the caller must compare them with something it trusts.
pub async fn download_roots(address: &str) -> Result<RootBundle, CertificateError> {
    let channel = dial(&Connector::fetch_root()?, address).await.map_err(|error| match is_reached(&error) {
        true => CertificateError::NotAManager { address: address.to_owned(), reason: crate::agent::chain(&error) },
        false => error.into(),
    })?;
    roots_of(channel, address).await
}

/// The roots as a manager has them that this node trusts already.
pub async fn ask_roots(connector: &Connector, address: &str) -> Result<RootBundle, CertificateError> {
    roots_of(dial(connector, address).await?, address).await
}

async fn roots_of(channel: Channel, address: &str) -> Result<RootBundle, CertificateError> {
    let not_a_manager = |reason: String| CertificateError::NotAManager { address: address.to_owned(), reason };
    let answer = limited(CaClient::new(channel).get_root_ca_certificate(GetRootCaCertificateRequest {})).await;
    let answer = answer.map_err(|status| match status.code() {
        Code::DeadlineExceeded => CertificateError::TimedOut { address: address.to_owned(), step: "show its roots", limit: CALL_LIMIT },
        // A manager that has just started, or follows nobody at the moment.
        Code::Aborted | Code::Unavailable | Code::ResourceExhausted => {
            CertificateError::Refused { address: address.to_owned(), reason: words(&status) }
        }
        _ => not_a_manager(words(&status)),
    })?;
    let pem = String::from_utf8(answer.into_inner().certificate).map_err(|_| not_a_manager("its roots are no text".into()))?;
    RootBundle::parse(&pem).map_err(|source| CertificateError::Roots { address: address.to_owned(), source })
}

/// What is asked for.
pub struct Wish<'a> {
    /// PEM.
    pub csr: &'a str,
    /// The join token; empty for a node that has a certificate already.
    pub token: &'a str,
    /// `NodeSpec.Availability`; of a new node.
    pub availability: i32,
}

/// Asks the manager at `address` and waits until the certificate is there: PEM of the chain. If that manager is lost meanwhile,
/// `others` are asked how far it is, for a second request by a new node would make a second node. No limit on the whole: the
/// caller has one.
pub async fn request(connector: &Connector, address: &str, others: &[String], wish: &Wish<'_>) -> Result<String, CertificateError> {
    let mut channel = dial(connector, address).await?;
    let node_id = issue(channel.clone(), address, wish).await?;
    skep_failpoint::failpoint!("skepd.certificate.asked");
    let refused = |reason: String| CertificateError::Refused { address: address.to_owned(), reason };
    let mut poll = Poll::new(wish.csr.as_bytes());
    let mut everyone = others.iter().map(String::as_str).chain([address]).cycle();
    loop {
        let mut question = Request::new(NodeCertificateStatusRequest { node_id: node_id.clone() });
        question.set_timeout(CALL_LIMIT);
        let answer = limited(NodeCaClient::new(channel.clone()).node_certificate_status(question)).await;
        match poll.answered(answer.map(tonic::Response::into_inner)) {
            Next::Done(chain) => return String::from_utf8(chain).map_err(|_| refused("the certificate is no text".into())),
            Next::Again(pause) => sleep(pause).await,
            Next::Failed(reason) => return Err(refused(reason)),
            Next::Elsewhere(reason) => {
                tracing::debug!(reason, "asking another manager for the certificate");
                channel = reconnect(connector, &mut everyone).await;
            }
        }
    }
}

/// To whichever answers; tries for ever.
async fn reconnect<'a>(connector: &Connector, everyone: &mut impl Iterator<Item = &'a str>) -> Channel {
    loop {
        sleep(ELSEWHERE_PAUSE).await;
        let address = everyone.next().expect("a cycle of one or more does not end");
        match dial(connector, address).await {
            Ok(channel) => return channel,
            Err(error) => tracing::debug!(manager = address, error = %crate::agent::chain(&error), "no connection"),
        }
    }
}

async fn issue(channel: Channel, address: &str, wish: &Wish<'_>) -> Result<String, CertificateError> {
    let request = IssueNodeCertificateRequest {
        csr: wish.csr.as_bytes().to_vec(),
        token: wish.token.to_owned(),
        availability: wish.availability,
        ..IssueNodeCertificateRequest::default()
    };
    let answer = limited(NodeCaClient::new(channel).issue_node_certificate(request)).await;
    let answer = answer.map_err(|status| match status.code() {
        // The only argument that a joining node can have wrong (`SK/ca/server.go`).
        Code::InvalidArgument if !wish.token.is_empty() && status.message().contains("token") => {
            CertificateError::TokenRefused { address: address.to_owned() }
        }
        Code::DeadlineExceeded => {
            CertificateError::TimedOut { address: address.to_owned(), step: "take the request for a certificate", limit: CALL_LIMIT }
        }
        _ => CertificateError::Refused { address: address.to_owned(), reason: words(&status) },
    })?;
    Ok(answer.into_inner().node_id)
}

/// What managers are locked with; `None` = they are not (wire-behaviour 4.2, step 5). The connector must show a manager's
/// certificate.
pub async fn unlock_key(connector: &Connector, address: &str) -> Result<Option<UnlockKey>, CertificateError> {
    let channel = dial(connector, address).await?;
    match limited(CaClient::new(channel).get_unlock_key(GetUnlockKeyRequest {})).await {
        Ok(answer) => {
            let bytes = answer.into_inner().unlock_key;
            if bytes.is_empty() {
                return Ok(None);
            }
            let key = UnlockKey::try_from(bytes.as_slice());
            key.map(Some).map_err(|source| CertificateError::UnlockKey { address: address.to_owned(), source })
        }
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(CertificateError::Refused { address: address.to_owned(), reason: words(&status) }),
    }
}

/// Whether anything at all answers there, be it a manager or not.
pub async fn somebody_answers(address: &str) -> bool {
    timeout(CALL_LIMIT, TcpStream::connect(address)).await.is_ok_and(|tcp| tcp.is_ok())
}
