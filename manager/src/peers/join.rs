//! The client's side of coming in.

use super::Purpose;
use super::link::{Link, LinkService, Target};
use crate::drive::chain;
use rand::seq::SliceRandom as _;
use skep_ca::{Connector, SecurityConfig};
use skep_proto::skep::MemberJoinRequest;
use skep_proto::skep::membership_client::MembershipClient;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// For the whole: a new leader may have to be found, and the state to be brought over, on the way.
const LIMIT: Duration = Duration::from_secs(120);
/// For one call: longer than the leader itself waits for a new manager to catch up.
const CALL_LIMIT: Duration = Duration::from_secs(90);
/// What may pass by itself is tried again after this time.
const PAUSE: Duration = Duration::from_millis(500);
/// A refusal may come from a manager that has not heard of this one's role yet, or of a network that is just being set up: so
/// often it has to be repeated before it counts.
const REFUSALS: u32 = 5;

/// Why this manager did not become one of the group.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("no address of a manager to join is known")]
    NoManagers,
    #[error("the managers refused this one: {0}")]
    Refused(String),
    #[error("no manager let this one in within {} s; the last said: {last}", LIMIT.as_secs())]
    TimedOut { last: String },
}

/// Makes this manager, which serves already, a member of the raft group with a vote. Any of `managers` (`host:port`) may be
/// asked. Called again it changes nothing; with a new `advertise` address the others learn that.
///
/// # Errors
/// What the managers refuse for good, or that they could not be asked in time.
pub async fn join_managers(security: &SecurityConfig, managers: &[String], raft_id: u64, advertise: SocketAddr) -> Result<(), JoinError> {
    if managers.is_empty() {
        return Err(JoinError::NoManagers);
    }
    let mut managers = managers.to_vec();
    managers.shuffle(&mut rand::rng());
    let request = MemberJoinRequest { raft_id, addr: advertise.to_string() };
    let deadline = Instant::now() + LIMIT;
    let mut refusals = 0;
    let mut last = String::from("nothing");
    for manager in managers.iter().cycle() {
        match tokio::time::timeout_at(deadline, ask(security, manager, request.clone())).await {
            Ok(Ok(())) => {
                tracing::info!(raft_id, %advertise, "member of the raft group");
                return Ok(());
            }
            Ok(Err(status)) => {
                tracing::debug!(manager, code = ?status.code(), why = status.message(), "not let in yet");
                last = format!("{manager}: {}", status.message());
                match status.code() {
                    Code::InvalidArgument | Code::AlreadyExists => return Err(JoinError::Refused(last)),
                    Code::PermissionDenied | Code::FailedPrecondition | Code::Unimplemented => refusals += 1,
                    _ => refusals = 0,
                }
                if refusals >= REFUSALS {
                    return Err(JoinError::Refused(last));
                }
            }
            Err(_) => break,
        }
        if Instant::now() + PAUSE >= deadline {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(JoinError::TimedOut { last })
}

async fn ask(security: &SecurityConfig, manager: &str, request: MemberJoinRequest) -> Result<(), Status> {
    let (connector, target) = (Connector::node(security), Target::anyone(manager));
    let link = Link::dial(&connector, &target, Purpose::Forward.silence(), 0).await.map_err(|error| Status::unavailable(chain(&error)))?;
    let origin = http::Uri::from_static("https://swarm-manager");
    let mut request = tonic::Request::new(request);
    request.set_timeout(CALL_LIMIT);
    let mut client = MembershipClient::with_origin(LinkService(link), origin);
    match tokio::time::timeout(CALL_LIMIT, client.join(request)).await {
        Ok(outcome) => outcome.map(|_| ()),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}
