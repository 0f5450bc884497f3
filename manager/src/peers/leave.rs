//! The client's side of going.

use super::link::LinkService;
use super::{Purpose, membership::HAND_OVER};
use crate::drive::chain;
use crate::shared::Shared;
use skep_plan::CannotGo;
use skep_proto::skep::MemberLeaveRequest;
use skep_proto::skep::membership_client::MembershipClient;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// For the whole: the leadership may have to move first, and then move again.
const LIMIT: Duration = Duration::from_secs(20);
/// One call; the leader itself gives up sooner.
const CALL_LIMIT: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(200);

/// Why this manager is still a member of the raft group.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    #[error("this is the last manager: the cluster ends with it; promote another node first, or leave by force")]
    Last,
    /// The rest would have no majority.
    #[error("{0}, or leave by force")]
    Refused(String),
    #[error("the other managers could not be told within {} s; the last try said: {last}", LIMIT.as_secs())]
    TimedOut { last: String },
}

/// Takes this manager out of the group, through whoever leads.
pub(crate) async fn leave(shared: &Shared, force: bool) -> Result<(), LeaveError> {
    let own = shared.store.raft_id();
    let deadline = Instant::now() + LIMIT;
    let mut last = String::from("nobody leads");
    while Instant::now() < deadline {
        let members = shared.store.status().members;
        if !members.iter().any(|member| member.raft_id == own) || shared.group.removed().is_cancelled() {
            return Ok(());
        }
        if !members.iter().any(|member| member.voter && member.raft_id != own) {
            return if force { Ok(()) } else { Err(LeaveError::Last) };
        }
        if let Err(status) = try_once(shared, own, force).await {
            if status.code() == Code::FailedPrecondition {
                return Err(LeaveError::Refused(status.message().to_owned()));
            }
            tracing::debug!(code = ?status.code(), why = status.message(), "not out of the raft group yet");
            last = status.message().to_owned();
        } else {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(LeaveError::TimedOut { last })
}

async fn try_once(shared: &Shared, own: u64, force: bool) -> Result<(), Status> {
    let (leads, leader) = {
        let leadership = shared.store.leadership();
        let known = leadership.borrow();
        (known.is_leader, known.leader.clone())
    };
    if leads {
        match shared.can_go(own).await {
            Err(reason @ CannotGo::Quorum { .. }) if !force => {
                return Err(Status::failed_precondition(format!("this manager cannot leave: {reason}")));
            }
            _ => {}
        }
        let moved = shared.store.hand_over(HAND_OVER).await;
        return Err(Status::unavailable(match moved {
            Ok(_) => "the leadership has moved".to_owned(),
            Err(error) => format!("the leadership did not move: {}", chain(&error)),
        }));
    }
    let Some((leader, member)) = leader else { return Err(Status::unavailable("nobody leads")) };
    let link = shared.transport.link(Purpose::Forward, leader, &member).await;
    let link = link.map_err(|error| Status::unavailable(chain(&error)))?;
    let mut client = MembershipClient::with_origin(LinkService(link), http::Uri::from_static("https://swarm-manager"));
    let mut request = tonic::Request::new(MemberLeaveRequest { raft_id: own, force });
    request.set_timeout(CALL_LIMIT);
    match tokio::time::timeout(CALL_LIMIT, client.leave(request)).await {
        Ok(outcome) => outcome.map(|_| ()),
        Err(_) => Err(Status::deadline_exceeded("the leader did not answer")),
    }
}
