//! The gRPC service `Dispatcher`.

use super::farewell::Farewell;
use super::heartbeat::{GRACE_PERIODS, jittered};
use super::pending::NodeNews;
use super::session::{Ended, Registrations, Session};
use super::{Dispatcher, streams};
use crate::authorize::{Caller, caller};
use crate::control::errors::invalid;
use futures_util::stream::BoxStream;
use skep_failpoint::failpoint;
use skep_proto::{FromWire as _, ToWire as _, parse, v1};
use skep_types::{ClusterView as _, NodeDescription, SessionId, TaskId, TaskStatus};
use std::sync::Arc;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// Metadata in which our agents offer the `results_in` of the last assignment message they applied.
const APPLIED: &str = "skep-applied";

/// What agents call.
#[derive(Clone)]
pub(crate) struct DispatcherService {
    dispatcher: Arc<Dispatcher>,
}

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = BoxStream<'static, Result<T, Status>>;

impl DispatcherService {
    pub(crate) fn new(dispatcher: Arc<Dispatcher>) -> Self {
        Self { dispatcher }
    }

    fn session<T>(&self, request: &Request<T>, id: &str) -> Result<Arc<Session>, Status> {
        self.dispatcher.session(caller(request)?.node()?, id)
    }

    /// Keeps the session the agent had, or registers the node anew. Ends when the node's state has been written.
    async fn register(&self, caller: &Caller, description: Option<NodeDescription>, last: &str) -> Result<Arc<Session>, Status> {
        let dispatcher = &*self.dispatcher;
        let node = caller.node()?.clone();
        let period = dispatcher.period();
        let (session, written) = {
            let mut state = dispatcher.lock();
            if !state.leading {
                return Err(Ended::NotLeader.status());
            }
            // Of this moment: what is written about the node is either in this view or not written yet.
            let view = dispatcher.shared.store.view();
            let Some(stored) = view.node(&node) else {
                return Err(Status::unknown(format!("node {node} is not in the cluster's store; remove its identity and join again")));
            };
            let now = Instant::now();
            let kept = state.sessions.get(&node).filter(|session| !last.is_empty() && session.id.as_str() == last).cloned();
            let session = match kept {
                Some(session) => session,
                None => {
                    let before = state.registrations.get(&node).copied();
                    // Whoever comes from another leader goes on with its session: the certificate says that it is its own.
                    let id = if before.is_none() { last.parse().ok() } else { None };
                    state.registrations.insert(node.clone(), Registrations::count(before, now)?);
                    let id = id.unwrap_or_else(|| SessionId::from_random(rand::random()));
                    let session = Arc::new(Session::new(id, node.clone()));
                    if let Some(before) = state.sessions.insert(node.clone(), session.clone()) {
                        before.end(Ended::Replaced);
                    }
                    tracing::debug!(%node, session = %session.id, "node registered");
                    session
                }
            };
            dispatcher.expect_beat(&mut state, &node, now + period * GRACE_PERIODS);
            let addr = caller.addr.map(|addr| dispatcher.shared.outer_addr(&node, addr).to_string()).unwrap_or_default();
            let news = NodeNews::Registered { description, addr };
            if state.pending.is_known(stored, &news) {
                return Ok(session);
            }
            state.pending.node(node, news);
            (session, state.pending.when_written())
        };
        dispatcher.writer_wake.notify_one();
        written.await.map_err(|_| Ended::NotLeader.status())?;
        failpoint!("manager.dispatcher.session.written");
        Ok(session)
    }
}

#[tonic::async_trait]
impl v1::dispatcher_server::Dispatcher for DispatcherService {
    type SessionStream = Stream<v1::SessionMessage>;
    type TasksStream = Stream<v1::TasksMessage>;
    type AssignmentsStream = Stream<v1::AssignmentsMessage>;

    async fn session(&self, request: Request<v1::SessionRequest>) -> Answer<Self::SessionStream> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        // A genuine agent may have nothing to describe yet.
        let description = request.description.map(|description| parse("description", description)).transpose().map_err(invalid)?;
        let session = self.register(&caller, description, &request.session_id).await?;
        Ok(Response::new(streams::session(self.dispatcher.shared.clone(), session)))
    }

    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Answer<v1::HeartbeatResponse> {
        let session = self.session(&request, &request.get_ref().session_id)?;
        let period = jittered(self.dispatcher.period(), rand::random());
        if let Some(farewell) = Farewell::of(request.metadata()) {
            self.dispatcher.part(&session, farewell).await?;
            return Ok(Response::new(v1::HeartbeatResponse { period: Some(period.to_wire()) }));
        }
        let mut state = self.dispatcher.lock();
        // It may have run out while this call waited for the lock.
        if session.is_ended().is_some() {
            return Err(Ended::NotRegistered.status());
        }
        self.dispatcher.expect_beat(&mut state, &session.node, Instant::now() + period * GRACE_PERIODS);
        Ok(Response::new(v1::HeartbeatResponse { period: Some(period.to_wire()) }))
    }

    async fn update_task_status(&self, request: Request<v1::UpdateTaskStatusRequest>) -> Answer<v1::UpdateTaskStatusResponse> {
        let session = self.session(&request, &request.get_ref().session_id)?;
        let updates = request.into_inner().updates;
        let mut reports: Vec<(TaskId, TaskStatus)> = Vec::with_capacity(updates.len());
        {
            let view = self.dispatcher.shared.store.view();
            for update in updates {
                // An agent drops its session on an error: what cannot be used is left out.
                let (Ok(id), Some(status)) = (update.task_id.parse::<TaskId>(), update.status) else { continue };
                let Some(task) = view.task(&id) else { continue };
                if task.node_id.as_ref() != Some(&session.node) {
                    return Err(Status::permission_denied(format!("task {id} is not assigned to node {}", session.node)));
                }
                match TaskStatus::from_wire(status) {
                    Ok(status) => reports.push((id, status)),
                    Err(error) => tracing::warn!(node = %session.node, task = %id, %error, "status report left out"),
                }
            }
        }
        for (task, status) in reports {
            self.dispatcher.report(task, status);
        }
        self.dispatcher.writer_wake.notify_one();
        Ok(Response::new(v1::UpdateTaskStatusResponse {}))
    }

    async fn update_volume_status(&self, request: Request<v1::UpdateVolumeStatusRequest>) -> Answer<v1::UpdateVolumeStatusResponse> {
        self.session(&request, &request.get_ref().session_id)?;
        if request.get_ref().updates.is_empty() {
            return Ok(Response::new(v1::UpdateVolumeStatusResponse {}));
        }
        Err(Status::unimplemented("cluster volumes (CSI) are not supported"))
    }

    async fn tasks(&self, request: Request<v1::TasksRequest>) -> Answer<Self::TasksStream> {
        let session = self.session(&request, &request.get_ref().session_id)?;
        Ok(Response::new(streams::tasks(self.dispatcher.shared.clone(), session)))
    }

    async fn assignments(&self, request: Request<v1::AssignmentsRequest>) -> Answer<Self::AssignmentsStream> {
        let session = self.session(&request, &request.get_ref().session_id)?;
        let applied = request.metadata().get(APPLIED).and_then(|name| name.to_str().ok()).unwrap_or_default().to_owned();
        Ok(Response::new(streams::assignments(self.dispatcher.clone(), session, applied)))
    }
}
