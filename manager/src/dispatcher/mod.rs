//! The agents' side of the manager: sessions, heartbeats, assignments, status reports (spec wire-behaviour 8).
//!
//! ```text
//!  store's feed ──► router ──► inboxes of Assignments streams, changes of Session streams
//!  agents' calls ─► pending ─► writer ──► store        (one commit in flight; the newest per task and node waits)
//!  heartbeats ───► deadlines ─► expiry ──► pending     (never the log, until one is missed)
//! ```
//! [`Dispatcher::run`] lives as long as this manager leads and owns the three loops. The streams belong to their
//! connections: a stream that is dropped leaves nothing behind. Without a leader's term every call ends ABORTED.

mod assignments;
mod heartbeat;
mod inbox;
mod pending;
mod reports;
mod service;
mod session;
mod streams;

pub(crate) use service::DispatcherService;

use crate::drive::{DriveError, Failed, Term, after_failure, pause};
use crate::shared::Shared;
use heartbeat::{Deadlines, GRACE_PERIODS_UNKNOWN};
use pending::{NodeNews, Pending};
use session::{Ended, Registrations, Session};
use skep_failpoint::failpoint;
use skep_store::{Feed, FeedEvent, MAX_TRANSACTION_CHANGES, ProposeError};
use skep_types::{Action, Change, ClusterView, NodeId, NodeState, Object, TaskId, TaskState, TaskStatus};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;

/// Heartbeat period of a cluster that does not say.
const DEFAULT_PERIOD: Duration = Duration::from_secs(5);

/// The one dispatcher of this manager.
pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    state: Mutex<State>,
    writer_wake: Notify,
    expiry_wake: Notify,
}

#[derive(Default)]
struct State {
    leading: bool,
    sessions: HashMap<NodeId, Arc<Session>>,
    registrations: HashMap<NodeId, Registrations>,
    /// By when registered and UNKNOWN nodes must be heard of.
    beats: Deadlines,
    pending: Pending,
}

impl Dispatcher {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, state: Mutex::default(), writer_wake: Notify::new(), expiry_wake: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn period(&self) -> Duration {
        let period = self.shared.store.view().cluster().and_then(|cluster| cluster.spec.heartbeat_period);
        period.filter(|period| !period.is_zero()).unwrap_or(DEFAULT_PERIOD)
    }

    /// Dispatches until the term ends. Returns why it could not go on.
    pub(crate) async fn run(self: Arc<Self>, term: Term) -> Result<(), DriveError> {
        let feed = self.begin();
        let mut loops = JoinSet::new();
        loops.spawn(self.clone().route(feed));
        loops.spawn(self.clone().write());
        loops.spawn(self.clone().expire());
        let outcome = tokio::select! {
            () = term.stop.cancelled() => Ok(()),
            Some(ended) = loops.join_next() => ended.unwrap_or(Err(DriveError::Panicked("dispatcher"))),
        };
        loops.shutdown().await;
        self.end();
        outcome
    }

    /// A new leader knows of no session: whoever was not down is UNKNOWN until heard of.
    fn begin(&self) -> Feed {
        let (view, feed) = self.shared.watch();
        let (now, period) = (Instant::now(), self.period());
        let mut state = self.lock();
        *state = State { leading: true, ..State::default() };
        for node in view.nodes() {
            if node.status.state != NodeState::Down {
                state.beats.set(&node.id, now + period * GRACE_PERIODS_UNKNOWN);
                state.pending.node(node.id.clone(), NodeNews::Unknown);
            }
        }
        drop(state);
        self.writer_wake.notify_one();
        feed
    }

    fn end(&self) {
        let state = std::mem::take(&mut *self.lock());
        for session in state.sessions.values() {
            session.end(Ended::NotLeader);
        }
    }

    /// The session that a call names, if it is the node's present one.
    fn session(&self, node: &NodeId, id: &str) -> Result<Arc<Session>, Status> {
        let state = self.lock();
        if !state.leading {
            return Err(Ended::NotLeader.status());
        }
        match state.sessions.get(node) {
            Some(session) if session.id.as_str() == id => Ok(session.clone()),
            Some(_) => Err(Status::invalid_argument("session invalid")),
            None => Err(Ended::NotRegistered.status()),
        }
    }

    /// Every agent is told the list of managers again.
    pub(crate) fn managers_changed(&self) {
        for session in self.lock().sessions.values() {
            session.tell();
        }
    }

    fn expect_beat(&self, state: &mut State, node: &NodeId, by: Instant) {
        let before = state.beats.next();
        state.beats.set(node, by);
        if before.is_none_or(|before| by < before) {
            self.expiry_wake.notify_one();
        }
    }

    fn report(&self, task: TaskId, mut status: TaskStatus) {
        status.applied_by = Some(self.shared.local.id.clone());
        status.applied_at = Some(self.shared.now());
        self.lock().pending.report(task, status);
    }

    /// Hands what the store did on to the streams that have to tell it.
    async fn route(self: Arc<Self>, mut feed: Feed) -> Result<(), DriveError> {
        loop {
            match feed.next().await {
                Some(FeedEvent::Commit(commit)) => {
                    for change in &commit.changes {
                        self.route_change(change);
                    }
                }
                Some(FeedEvent::Resync) => {
                    tracing::warn!("the dispatcher fell behind the store; all agents are compared anew");
                    feed.resume(self.shared.store.view().version());
                    let sessions: Vec<_> = self.lock().sessions.values().cloned().collect();
                    for session in sessions {
                        session.everything_changed();
                    }
                }
                None => return Err(DriveError::StoreClosed),
            }
        }
    }

    fn route_change(&self, change: &Change) {
        let session_of = |node: &Option<NodeId>| self.lock().sessions.get(node.as_ref()?).cloned();
        match change {
            Change::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                if assignments::concerns_agent(old, new)
                    && let Some(session) = session_of(&new.node_id)
                {
                    session.task_changed(&new.id);
                }
            }
            Change::Created(Object::Task(task)) | Change::Removed(Object::Task(task)) => {
                if task.status.state >= TaskState::Assigned
                    && let Some(session) = session_of(&task.node_id)
                {
                    session.task_changed(&task.id);
                }
            }
            Change::Removed(Object::Node(node)) => self.forget(&node.id),
            Change::Created(Object::Node(node)) => {
                let by = Instant::now() + self.period() * GRACE_PERIODS_UNKNOWN;
                self.expect_beat(&mut self.lock(), &node.id, by);
            }
            Change::Updated { new: Object::Node(node), .. } => {
                if let Some(session) = session_of(&Some(node.id.clone())) {
                    session.tell();
                }
            }
            Change::Updated { new: Object::Cluster(_), .. } => self.managers_changed(),
            _ => {}
        }
        if let Change::Created(Object::Task(task)) | Change::Updated { new: Object::Task(task), .. } = change
            && self.shared.broker.has_subscriptions()
        {
            self.shared.broker.task_assigned(task);
        }
    }

    /// The node was removed from the cluster.
    fn forget(&self, node: &NodeId) {
        let mut state = self.lock();
        state.beats.forget(node);
        state.registrations.remove(node);
        if let Some(session) = state.sessions.remove(node) {
            session.end(Ended::NotRegistered);
        }
    }

    /// Writes what is pending, one transaction at a time; what comes meanwhile waits and is merged.
    async fn write(self: Arc<Self>) -> Result<(), DriveError> {
        loop {
            self.writer_wake.notified().await;
            while !self.lock().pending.is_empty() {
                let view = self.shared.store.view();
                let mut batch = self.lock().pending.take(&view);
                drop(view);
                failpoint!("manager.dispatcher.reports.taken");
                match self.commit(&mut batch.actions).await.map_err(after_failure) {
                    Ok(()) => {
                        failpoint!("manager.dispatcher.reports.committed");
                        batch.written();
                    }
                    Err(Failed::Stale) => self.lock().pending.put_back(batch),
                    Err(Failed::Pause) => {
                        self.lock().pending.put_back(batch);
                        pause().await;
                    }
                    Err(Failed::End(error)) => return Err(error),
                }
            }
        }
    }

    /// What could not be written stays in `actions`.
    async fn commit(&self, actions: &mut Vec<Action>) -> Result<(), ProposeError> {
        while !actions.is_empty() {
            let part = actions[..actions.len().min(MAX_TRANSACTION_CHANGES)].to_vec();
            let length = part.len();
            self.shared.propose(part).await?;
            actions.drain(..length);
        }
        Ok(())
    }

    /// Takes note of nodes that stopped beating.
    async fn expire(self: Arc<Self>) -> Result<(), DriveError> {
        loop {
            let next = self.lock().beats.next();
            tokio::select! {
                () = self.expiry_wake.notified() => continue,
                () = sleep_until(next) => {}
            }
            self.take_overdue(Instant::now());
        }
    }

    fn take_overdue(&self, now: Instant) {
        let mut state = self.lock();
        for node in state.beats.take_overdue(now) {
            tracing::info!(%node, "heartbeats stopped, node is down");
            if let Some(session) = state.sessions.remove(&node) {
                session.end(Ended::NotRegistered);
            }
            state.pending.node(node, NodeNews::Down);
            failpoint!("manager.dispatcher.node.down");
        }
        drop(state);
        self.writer_wake.notify_one();
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
