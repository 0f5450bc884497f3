//! The service `skep.v1.Membership`: managers come in and go. It is answered by the leader, whom the forwarder finds.
//!
//! Each step may be repeated: a call that was cut off is finished by the next. Raft refuses two changes of the group at once;
//! who is refused so tries again.

use crate::authorize::caller;
use crate::drive::chain;
use crate::peers::Purpose;
use crate::shared::Shared;
use skep_failpoint::failpoint;
use skep_plan::CannotGo;
use skep_proto::skep::membership_server::Membership;
use skep_proto::skep::{self as wire, MemberJoinRequest, MemberJoinResponse, MemberLeaveRequest, MemberLeaveResponse};
use skep_store::{Member, MemberStatus, RaftId, StoreError};
use skep_types::{ClusterView as _, NodeId, NodeRole};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// For a new manager to receive the cluster's state. One that needs longer is waited for again by its next call.
const CATCH_UP: Duration = Duration::from_secs(60);
/// For a majority to agree to a change of the group (spec wire-behaviour 7).
const CHANGE: Duration = Duration::from_secs(5);
/// For the next leader to be found.
pub(crate) const HAND_OVER: Duration = Duration::from_secs(5);
/// Host and port, and nothing that would not fit a log line.
const LONGEST_ADDR: usize = 300;

/// Answers on the leader.
#[derive(Clone)]
pub(crate) struct MembershipService {
    shared: Arc<Shared>,
}

impl MembershipService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

/// How a manager left the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    Gone,
    /// It led: somebody else does now, and has to be asked.
    HandedOver,
}

/// What the group said of a change.
fn refused(error: StoreError) -> Status {
    match error {
        StoreError::NotLeader { .. } | StoreError::Stopped | StoreError::Timeout(_) => Status::unavailable(chain(&error)),
        error => Status::aborted(format!("the managers did not agree to the change: {}; try again", chain(&error))),
    }
}

async fn within<T>(limit: Duration, what: &str, change: impl Future<Output = Result<T, StoreError>>) -> Result<T, Status> {
    match tokio::time::timeout(limit, change).await {
        Ok(outcome) => outcome.map_err(refused),
        Err(_) => Err(Status::unavailable(format!("{what}: not within {limit:?}; is a majority of the managers there? Try again"))),
    }
}

fn member_of(members: &[MemberStatus], raft_id: RaftId) -> Option<&MemberStatus> {
    members.iter().find(|member| member.raft_id == raft_id)
}

/// Takes a member out, whoever asked for it. The leader itself hands over first.
pub(crate) async fn depart(shared: &Shared, raft_id: RaftId) -> Result<Departure, Status> {
    if raft_id == shared.store.raft_id() {
        failpoint!("manager.membership.handing-over");
        within(HAND_OVER + CHANGE, "handing over", shared.store.hand_over(HAND_OVER)).await?;
        return Ok(Departure::HandedOver);
    }
    failpoint!("manager.membership.removing");
    within(CHANGE, "removing the manager", shared.store.remove_member(raft_id)).await?;
    tracing::info!(raft_id, "manager taken out of the raft group");
    Ok(Departure::Gone)
}

/// `host:port` that can be dialled.
fn check_addr(addr: &str) -> Result<(), Status> {
    let well_formed = addr.len() <= LONGEST_ADDR
        && addr.chars().all(|letter| letter.is_ascii_graphic())
        && addr.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
    if well_formed { Ok(()) } else { Err(Status::invalid_argument("addr: is not host:port")) }
}

impl MembershipService {
    /// Makes a node a member with a vote. `addr` is where the leader finds it.
    pub(super) async fn admit(&self, node: &NodeId, raft_id: RaftId, addr: &str) -> Result<(), Status> {
        let shared = &self.shared;
        let _one_at_a_time = shared.group.join().await;
        let member = Member { node_id: node.to_string(), addr: addr.to_owned() };
        let members = shared.store.status().members;
        let known = member_of(&members, raft_id);
        if let Some(other) = known.filter(|known| known.member.node_id != member.node_id) {
            let text = format!("raft_id: {raft_id} belongs to node {}; draw another number", other.member.node_id);
            return Err(Status::already_exists(text));
        }
        if raft_id != shared.store.raft_id() {
            // Before anything is changed: a member that nobody reaches costs the others their majority.
            let there = shared.transport.link(Purpose::Forward, raft_id, &member).await;
            there.map_err(|error| {
                let text = format!("addr: the leader cannot reach the new manager: {}; check its advertised address", chain(&error));
                Status::failed_precondition(text)
            })?;
        }
        for old in members.iter().filter(|old| old.member.node_id == member.node_id && old.raft_id != raft_id) {
            tracing::info!(%node, old = old.raft_id, new = raft_id, "a manager comes back as another member");
            depart(shared, old.raft_id).await?;
        }
        failpoint!("manager.membership.joining");
        let is_voter = known.is_some_and(|known| known.voter);
        if known.is_some_and(|known| known.member.addr != member.addr) {
            within(CHANGE, "noting the new address", shared.store.set_member(raft_id, member.clone())).await?;
            tracing::info!(%node, raft_id, addr, "manager has a new address");
        }
        if is_voter {
            return Ok(());
        }
        within(CATCH_UP, "bringing the new manager up to date", shared.store.add_learner(raft_id, member)).await?;
        failpoint!("manager.membership.learner");
        self.check_role(node)?;
        within(CHANGE, "giving the new manager a vote", shared.store.add_voter(raft_id)).await?;
        tracing::info!(%node, raft_id, addr, "manager joined");
        Ok(())
    }

    /// A demotion may have come in between.
    fn check_role(&self, node: &NodeId) -> Result<(), Status> {
        let view = self.shared.store.view();
        match view.node(node) {
            Some(node) if node.role == NodeRole::Manager && node.spec.desired_role == NodeRole::Manager => Ok(()),
            Some(_) => Err(Status::permission_denied(format!("node {node} is not to be a manager; promote it first"))),
            None => Err(Status::permission_denied(format!("node {node} is not in the cluster"))),
        }
    }

    async fn release(&self, node: &NodeId, raft_id: RaftId, force: bool) -> Result<(), Status> {
        let members = self.shared.store.status().members;
        let Some(member) = member_of(&members, raft_id) else { return Ok(()) };
        if member.member.node_id != node.as_str() {
            return Err(Status::permission_denied(format!("raft_id: {raft_id} is node {}, not the caller", member.member.node_id)));
        }
        match self.shared.can_go(raft_id).await {
            Ok(()) => {}
            Err(CannotGo::Quorum { .. }) if force => tracing::warn!(%node, raft_id, "manager leaves by force, quorum or not"),
            Err(reason) => return Err(Status::failed_precondition(format!("this manager cannot leave: {reason}"))),
        }
        match depart(&self.shared, raft_id).await? {
            Departure::Gone => Ok(()),
            Departure::HandedOver => Err(Status::unavailable("this manager led; another does now: ask again")),
        }
    }
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<MemberJoinRequest>) -> Result<Response<MemberJoinResponse>, Status> {
        let node = caller(&request)?.node()?.clone();
        let MemberJoinRequest { raft_id, addr } = request.into_inner();
        if raft_id == 0 {
            return Err(Status::invalid_argument("raft_id: is missing"));
        }
        check_addr(&addr)?;
        self.check_role(&node)?;
        self.admit(&node, raft_id, &addr).await?;
        let wire = |member: MemberStatus| wire::Member {
            raft_id: member.raft_id,
            node_id: member.member.node_id,
            addr: member.member.addr,
            voter: member.voter,
        };
        Ok(Response::new(MemberJoinResponse { members: self.shared.store.status().members.into_iter().map(wire).collect() }))
    }

    async fn leave(&self, request: Request<MemberLeaveRequest>) -> Result<Response<MemberLeaveResponse>, Status> {
        let node = caller(&request)?.node()?.clone();
        let MemberLeaveRequest { raft_id, force } = request.into_inner();
        self.release(&node, raft_id, force).await?;
        Ok(Response::new(MemberLeaveResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["192.0.2.1:2377", "[2001:db8::1]:2377", "manager-1.example:4242"] {
            assert!(check_addr(good).is_ok(), "{good}");
        }
        for bad in ["", "192.0.2.1", ":2377", "host:0", "host:99999", "two words:1", "host:1\n", &format!("{}:1", "x".repeat(400))] {
            assert!(check_addr(bad).is_err(), "{bad:?}");
        }
    }
}
