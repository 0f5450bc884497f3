//! The agents' side of the manager: sessions, heartbeats, assignments, status reports (spec wire-behaviour 8).
//!
//! ```text
//!  store's feed ──► router ──► trail; inboxes of Assignments streams, changes of Session streams
//!  agents' calls ─► pending ─► writer ──► store        (one commit in flight; the newest per task and node waits)
//!  heartbeats ───► deadlines ─► expiry ──► pending     (never the log, until one is missed)
//! ```
//! [`Dispatcher::follow`], the router, runs on every manager: the [`trail`] it keeps lets agents go on with the next leader
//! where they stopped with the last. [`Dispatcher::run`] lives as long as this manager leads and owns the other two loops. The
//! streams belong to their connections: a stream that is dropped leaves nothing behind. Without a leader's term every call
//! ends ABORTED.
//!
//! A new leader writes nothing about nodes that come back within a heartbeat's period and are as they were, so that ten thousand
//! of them cost no log entry. Those that do not are UNKNOWN then, all in a few transactions.

mod assignments;
mod farewell;
mod heartbeat;
mod inbox;
mod pending;
mod reports;
mod service;
mod session;
mod streams;
mod trail;

pub(crate) use inbox::{BATCH, quiet_after};
pub(crate) use service::DispatcherService;

/// What the cluster simulator runs of the dispatcher.
pub mod pure {
    pub use super::assignments::{AssignmentSet, Change, Needs, concerns_agent, same_but_status};
    pub use super::heartbeat::{Deadlines, GRACE_PERIODS, GRACE_PERIODS_UNKNOWN, jittered};
    pub use super::inbox::quiet_after;
    pub use super::pending::{Batch, NodeNews, Pending};
    pub use super::streams::to_wire;
    pub use super::trail::{Name, Step, Trail};
}

use crate::drive::{DriveError, Failed, Term, after_failure, pause};
use crate::shared::Shared;
use assignments::concerns_agent;
use heartbeat::{Deadlines, GRACE_PERIODS_UNKNOWN};
use pending::{NodeNews, Pending};
use session::{Ended, Registrations, Session};
use skep_failpoint::failpoint;
use skep_store::{FeedEvent, MAX_TRANSACTION_CHANGES, ProposeError, RaftId};
use skep_types::{Action, Change, ClusterView, NodeId, NodeState, Object, TaskId, TaskState, TaskStatus, Version};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;
use trail::{Name, Step, Trail};

/// Heartbeat period of a cluster that does not say.
const DEFAULT_PERIOD: Duration = Duration::from_secs(5);

/// The one dispatcher of this manager.
pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    state: Mutex<State>,
    trail: Mutex<Trail>,
    /// Every manager that was in the raft group while this one ran.
    managers_seen: Mutex<BTreeSet<RaftId>>,
    /// Every commit up to here is in the trail and in the inboxes.
    routed: watch::Sender<Version>,
    writer_wake: Notify,
    expiry_wake: Notify,
}

#[derive(Default)]
struct State {
    leading: bool,
    /// Counts the terms of this manager.
    term: u64,
    sessions: HashMap<NodeId, Arc<Session>>,
    registrations: HashMap<NodeId, Registrations>,
    /// By when registered and UNKNOWN nodes must be heard of.
    beats: Deadlines,
    /// At the beginning of a term: when nodes that have not registered are called UNKNOWN.
    unknown_at: Option<Instant>,
    pending: Pending,
}

impl State {
    /// When something is to be done about nodes that are silent.
    fn next_expiry(&self) -> Option<Instant> {
        [self.beats.next(), self.unknown_at].into_iter().flatten().min()
    }

    /// Forgets everything but the count of terms.
    fn end(&mut self) {
        let before = std::mem::take(self);
        self.term = before.term;
        for session in before.sessions.values() {
            session.end(Ended::NotLeader);
        }
    }
}

/// Ends all sessions when the term ends, however it does.
struct Leading {
    dispatcher: Arc<Dispatcher>,
    term: u64,
}

impl Drop for Leading {
    fn drop(&mut self) {
        let mut state = self.dispatcher.lock();
        // A loop that was aborted may go later than the next term comes.
        if state.term == self.term {
            state.end();
        }
    }
}

impl Dispatcher {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let at = shared.store.view().version();
        let this = Self {
            shared,
            state: Mutex::default(),
            trail: Mutex::new(Trail::new(at)),
            managers_seen: Mutex::default(),
            routed: watch::Sender::new(at),
            writer_wake: Notify::new(),
            expiry_wake: Notify::new(),
        };
        this.note_managers();
        this
    }

    fn note_managers(&self) {
        let members = self.shared.store.status().members;
        let mut seen = self.managers_seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(members.iter().map(|member| member.raft_id));
    }

    /// Whether a message's name was given in the history of changes that this manager has seen a part of.
    fn is_of_this_history(&self, name: &Name) -> bool {
        self.managers_seen.lock().unwrap_or_else(PoisonError::into_inner).contains(&name.leader)
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
        let leading = self.begin();
        let mut loops = JoinSet::new();
        loops.spawn(self.clone().write());
        loops.spawn(self.clone().expire());
        let outcome = tokio::select! {
            () = term.stop.cancelled() => Ok(()),
            Some(ended) = loops.join_next() => ended.unwrap_or(Err(DriveError::Panicked("dispatcher"))),
        };
        loops.shutdown().await;
        drop(leading);
        outcome
    }

    /// A new leader knows of no session. Whoever was not down has time to come; see [`Self::call_unknown`].
    fn begin(self: &Arc<Self>) -> Leading {
        self.note_managers();
        let view = self.shared.store.view();
        let (now, period) = (Instant::now(), self.period());
        let mut state = self.lock();
        state.end();
        state.leading = true;
        state.term += 1;
        state.unknown_at = Some(now + period);
        let term = state.term;
        for node in view.nodes() {
            if node.status.state != NodeState::Down {
                state.beats.set(&node.id, now + period * GRACE_PERIODS_UNKNOWN);
            }
        }
        drop(state);
        Leading { dispatcher: self.clone(), term }
    }

    /// Nodes that were up under the last leader and have not come to this one are UNKNOWN until heard of. (The original says so
    /// of all of them at once, `SK/manager/dispatcher/dispatcher.go`, `markNodesUnknown`.)
    fn call_unknown(&self) {
        let view = self.shared.store.view();
        let mut state = self.lock();
        state.unknown_at = None;
        for node in view.nodes() {
            if node.status.state != NodeState::Down && !state.sessions.contains_key(&node.id) {
                state.pending.node(node.id.clone(), NodeNews::Unknown);
            }
        }
        drop(state);
        self.writer_wake.notify_one();
    }

    /// Returns when everything up to `version` is in the trail and in the inboxes; never if the store has stopped.
    async fn wait_routed(&self, version: Version) {
        if self.routed.subscribe().wait_for(|routed| *routed >= version).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn lock_trail(&self) -> MutexGuard<'_, Trail> {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Trail::since`].
    fn steps_since(&self, node: &NodeId, known: Version) -> Option<Vec<Step>> {
        self.lock_trail().since(node, known)
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
        self.note_managers();
        self.tell_all();
    }

    fn tell_all(&self) {
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

    /// Hands what the store did on to the trail and to the streams that have to tell it, until this manager stops. A panic
    /// costs a new beginning, not the agents their assignments.
    pub(crate) async fn follow(self: Arc<Self>) {
        loop {
            let mut routing = JoinSet::new();
            routing.spawn(self.clone().route());
            let ended = tokio::select! {
                () = self.shared.stop.cancelled() => return,
                ended = routing.join_next() => ended,
            };
            match ended {
                Some(Err(error)) => tracing::error!(%error, "the dispatcher's router ended badly; all agents are compared anew"),
                Some(Ok(())) | None => return,
            }
            pause().await;
        }
    }

    /// Returns when the store has stopped.
    async fn route(self: Arc<Self>) {
        let (view, mut feed) = self.shared.watch();
        self.route_anew(view.version());
        while let Some(event) = feed.next().await {
            match event {
                FeedEvent::Commit(commit) => {
                    self.lock_trail().add(&commit);
                    for change in &commit.changes {
                        self.route_change(change);
                    }
                    self.routed.send_replace(commit.version);
                }
                FeedEvent::Resync => {
                    tracing::warn!("the dispatcher fell behind the store, or a snapshot came; all agents are compared anew");
                    let version = self.shared.store.view().version();
                    feed.resume(version);
                    self.route_anew(version);
                }
            }
        }
    }

    /// Commits before `version` may be missing.
    fn route_anew(&self, version: Version) {
        if *self.routed.borrow() == version {
            return;
        }
        *self.lock_trail() = Trail::new(version);
        let sessions: Vec<_> = self.lock().sessions.values().cloned().collect();
        for session in sessions {
            session.everything_changed();
        }
        self.routed.send_replace(version);
    }

    fn route_change(&self, change: &Change) {
        let session_of = |node: &Option<NodeId>| self.lock().sessions.get(node.as_ref()?).cloned();
        match change {
            Change::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                if concerns_agent(old, new)
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
            Change::Removed(Object::Node(node)) => self.drop_node(&node.id),
            Change::Created(Object::Node(node)) => {
                let by = Instant::now() + self.period() * GRACE_PERIODS_UNKNOWN;
                let mut state = self.lock();
                if state.leading {
                    self.expect_beat(&mut state, &node.id, by);
                }
            }
            Change::Updated { new: Object::Node(node), .. } => {
                if let Some(session) = session_of(&Some(node.id.clone())) {
                    session.tell();
                }
            }
            Change::Updated { new: Object::Cluster(_), .. } => self.tell_all(),
            _ => {}
        }
        if let Change::Created(Object::Task(task)) | Change::Updated { new: Object::Task(task), .. } = change
            && self.shared.broker.has_subscriptions()
        {
            self.shared.broker.task_assigned(task);
        }
    }

    /// The node is not part of the cluster any more: its session ends, and with it every stream.
    pub(crate) fn drop_node(&self, node: &NodeId) {
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
                        self.lock().pending.landed();
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
            let (next, unknown_at) = {
                let state = self.lock();
                (state.next_expiry(), state.unknown_at)
            };
            tokio::select! {
                () = self.expiry_wake.notified() => continue,
                () = sleep_until(next) => {}
            }
            let now = Instant::now();
            if unknown_at.is_some_and(|at| at <= now) {
                self.call_unknown();
            }
            self.take_overdue(now);
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
