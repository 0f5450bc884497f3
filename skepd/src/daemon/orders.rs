//! What the local socket's callers ask for.

use super::Daemon;
use crate::agent::made_by_hand;
use crate::local::{LOCKED, Order, Restoration};
use crate::swarm::{BadRequest, Swarm};
use anyhow::Result;
use skep_ca::UnlockKey;
use skep_proto::skep::{
    InitRequest, InitResponse, JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, RecoverRequest, RecoverResponse, RestoreResponse,
    UnlockResponse,
};
use skep_store::Store;
use std::time::Duration;
use tonic::Status;

/// Whoever joins a manager waits this long for the others to take it in; then it goes on without being waited for.
const ANNOUNCE_LIMIT: Duration = Duration::from_secs(60);

const IN_A_SWARM: &str = "this node is in a swarm already; `swarmctl cluster leave` takes it out";

impl Daemon {
    pub(super) async fn obey(&mut self, order: Order) {
        // What changed is to be seen by whoever has the answer. A caller that went away does not want to know any more.
        macro_rules! answer {
            ($reply:ident, $outcome:expr) => {{
                let outcome = $outcome;
                self.show();
                drop($reply.send(outcome));
            }};
        }
        match order {
            Order::Init(request, reply) => answer!(reply, self.init(request).await),
            Order::Join(request, reply) => answer!(reply, self.join(request).await),
            Order::Leave(request, reply) => answer!(reply, self.leave(&request).await),
            Order::Unlock(key, reply) => answer!(reply, self.unlock(key).await),
            Order::Store(reply) => answer!(reply, self.store()),
            Order::Restore(restoration, reply) => answer!(reply, self.restore(*restoration).await),
            Order::Recover(request, reply) => answer!(reply, self.recover(request).await),
        }
    }

    /// A node that is to enter a cluster must be in none, and nothing of an earlier one may be left.
    async fn clear_the_way(&self) -> Result<(), Status> {
        match &self.swarm {
            Some(swarm) if swarm.is_locked() => Err(Status::failed_precondition(LOCKED)),
            Some(_) => Err(Status::failed_precondition(IN_A_SWARM)),
            None => self.parts.forget().await.map_err(internal),
        }
    }

    /// Clears away what an attempt to enter a cluster left.
    async fn undo(&self, error: &anyhow::Error) -> Status {
        if let Err(debris) = self.parts.forget().await {
            tracing::warn!(error = %format!("{debris:#}"), "could not clear away a swarm that was not entered; the next start tries again");
        }
        refusal(error)
    }

    async fn init(&mut self, request: InitRequest) -> Result<InitResponse, Status> {
        self.clear_the_way().await?;
        match Swarm::found(&self.parts, request).await {
            Ok((swarm, response)) => {
                self.swarm = Some(swarm);
                Ok(response)
            }
            Err(error) => Err(self.undo(&error).await),
        }
    }

    async fn join(&mut self, request: JoinRequest) -> Result<JoinResponse, Status> {
        self.clear_the_way().await?;
        match Swarm::join(&self.parts, request).await {
            Ok((swarm, response)) => {
                self.swarm = Some(swarm);
                self.show();
                let swarm = self.swarm.as_mut().expect("it was put there a moment ago");
                let announced = swarm.wait_announced(ANNOUNCE_LIMIT).await;
                announced.map(|()| response).map_err(|error| {
                    Status::unavailable(format!(
                        "this node is in the swarm, but the other managers have not taken it in as a manager yet: {error:#}. It goes on \
                         trying; do they reach it at its advertised address? `swarmctl cluster status` shows both"
                    ))
                })
            }
            Err(error) => Err(self.undo(&error).await),
        }
    }

    async fn leave(&mut self, request: &LeaveRequest) -> Result<LeaveResponse, Status> {
        let swarm = self.swarm.as_ref().ok_or_else(|| Status::failed_precondition("this node is in no swarm"))?;
        if swarm.is_locked() && !request.force {
            return Err(Status::failed_precondition(LOCKED));
        }
        let by_hand = made_by_hand(&self.parts.config.data_dir);
        if by_hand > 0 && !request.force {
            return Err(Status::failed_precondition(format!(
                "this node has {by_hand} containers that were made by hand (docker run), which would be removed with everything else that \
                 its agent runs; remove them first, or use --force"
            )));
        }
        swarm.before_leaving(request.force).await?;
        skep_failpoint::failpoint!("skepd.leave.told");
        let swarm = self.swarm.take().expect("was there a moment ago");
        // Nobody is served any more, and nobody holds the store.
        self.show();
        swarm.leave().await.map_err(internal)?;
        self.parts.agent(None, None).clear().await;
        self.parts.forget().await.map_err(internal)?;
        tracing::info!("left the cluster");
        Ok(LeaveResponse {})
    }

    async fn unlock(&mut self, key: UnlockKey) -> Result<UnlockResponse, Status> {
        let swarm = self.swarm.as_mut().filter(|swarm| swarm.is_locked());
        let swarm = swarm.ok_or_else(|| Status::failed_precondition("this node is not locked"))?;
        swarm.unlock(key).await.map_err(|error| refusal(&error))?;
        tracing::info!("unlocked");
        Ok(UnlockResponse {})
    }

    fn store(&self) -> Result<Store, Status> {
        let swarm = self.swarm.as_ref().ok_or_else(|| Status::failed_precondition(super::NOT_IN_A_SWARM))?;
        swarm.manager().map(|part| part.store().clone()).ok_or_else(|| Status::failed_precondition(swarm.refusal()))
    }

    async fn restore(&mut self, restoration: Restoration) -> Result<RestoreResponse, Status> {
        self.clear_the_way().await?;
        match Swarm::restore(&self.parts, restoration).await {
            Ok((swarm, response)) => {
                self.swarm = Some(swarm);
                Ok(response)
            }
            Err(error) => Err(self.undo(&error).await),
        }
    }

    async fn recover(&mut self, request: RecoverRequest) -> Result<RecoverResponse, Status> {
        let swarm = self.swarm.as_mut().ok_or_else(|| Status::failed_precondition(super::NOT_IN_A_SWARM))?;
        if swarm.is_locked() {
            return Err(Status::failed_precondition(LOCKED));
        }
        swarm.recover(request).await.map(|report| RecoverResponse { report }).map_err(|error| refusal(&error))
    }
}

fn internal(error: anyhow::Error) -> Status {
    Status::internal(format!("{error:#}"))
}

/// What a person did wrong is INVALID_ARGUMENT; what the other managers are to blame for is UNAVAILABLE; the rest is ours.
fn refusal(error: &anyhow::Error) -> Status {
    if let Some(BadRequest(cause)) = error.downcast_ref::<BadRequest>() {
        return Status::invalid_argument(format!("{cause:#}"));
    }
    match error.downcast_ref::<crate::certificate::CertificateError>() {
        Some(_) => Status::unavailable(format!("{error:#}")),
        None => Status::internal(format!("{error:#}")),
    }
}
