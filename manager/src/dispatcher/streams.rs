//! The two streams of a session. Each belongs to its connection and holds all it needs; dropping it ends it.

use super::assignments::{AssignmentSet, Change};
use super::inbox::{Inbox, quiet_after};
use super::session::Session;
use crate::shared::Shared;
use futures_util::stream::{self, BoxStream};
use skep_failpoint::failpoint;
use skep_proto::{ToWire, v1};
use skep_types::{ClusterView, TaskState};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// Weight of every manager in the lists for agents (spec wire-behaviour 8.1).
const MANAGER_WEIGHT: i64 = 10;

/// Everything an agent is told besides its tasks. Always complete: an agent forgets every manager that is missing.
fn session_message(shared: &Shared, session: &Session) -> Result<v1::SessionMessage, Status> {
    let view = shared.store.view();
    let node = view.node(&session.node).ok_or_else(|| Status::not_found("node not registered"))?;
    let cluster = view.cluster().ok_or_else(|| Status::internal("the cluster object is missing"))?;
    let managers = shared
        .managers()
        .into_iter()
        .map(|manager| v1::WeightedPeer {
            peer: Some(v1::Peer { node_id: manager.node.to_string(), addr: manager.addr }),
            weight: MANAGER_WEIGHT,
        })
        .collect();
    Ok(v1::SessionMessage {
        session_id: session.id.to_string(),
        node: Some(node.to_wire()),
        managers,
        network_bootstrap_keys: cluster.network_bootstrap_keys.to_wire(),
        root_ca: cluster.root_ca.ca_cert.clone(),
    })
}

struct SessionStream {
    shared: Arc<Shared>,
    session: Arc<Session>,
    changes: watch::Receiver<u64>,
    is_first: bool,
}

/// Tells the agent about its node, the managers and the roots: at once, and after each change.
pub(super) fn session(shared: Arc<Shared>, session: Arc<Session>) -> Messages<v1::SessionMessage> {
    let changes = session.changes();
    let state = SessionStream { shared, session, changes, is_first: true };
    Box::pin(stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        if !state.is_first {
            tokio::select! {
                ended = state.session.wait_ended() => return Some((Err(ended.status()), None)),
                changed = state.changes.changed() => if changed.is_err() {
                    return None;
                },
            }
        }
        state.is_first = false;
        state.changes.mark_unchanged();
        match session_message(&state.shared, &state.session) {
            Ok(message) => Some((Ok(message), Some(state))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

struct AssignmentStream {
    shared: Arc<Shared>,
    session: Arc<Session>,
    inbox: Arc<Inbox>,
    told: AssignmentSet,
    /// Of the last message; 0 before the first.
    counter: u64,
    quiet_until: Instant,
}

impl AssignmentStream {
    /// The next message, or why there is none. Messages without a change are not sent, except the first.
    async fn next(&mut self) -> Result<v1::AssignmentsMessage, Status> {
        if self.counter == 0 {
            let changes = self.told.complete(&self.shared.store.view());
            return Ok(self.message(v1::assignments_message::Type::Complete, changes));
        }
        loop {
            tokio::select! {
                ended = self.session.wait_ended() => return Err(ended.status()),
                () = self.inbox.ready(self.quiet_until) => {}
            }
            let content = self.inbox.take();
            let view = self.shared.store.view();
            let mut candidates = content.tasks;
            if content.everything {
                candidates.extend(self.told.known());
                candidates.extend(view.tasks_on_node(&self.session.node).map(|task| task.id.clone()));
            }
            let changes = self.told.difference(&view, candidates);
            if !changes.is_empty() {
                return Ok(self.message(v1::assignments_message::Type::Incremental, changes));
            }
        }
    }

    /// The chain of `applies_to` and `results_in` never has a gap: an agent that sees one reopens the stream.
    fn message(&mut self, kind: v1::assignments_message::Type, changes: Vec<Change>) -> v1::AssignmentsMessage {
        let applies_to = if self.counter == 0 { String::new() } else { self.counter.to_string() };
        failpoint!("manager.dispatcher.assignments.decided");
        self.counter += 1;
        self.quiet_until = quiet_after(changes.len(), Instant::now());
        v1::AssignmentsMessage {
            r#type: kind as i32,
            applies_to,
            results_in: self.counter.to_string(),
            changes: changes.into_iter().map(to_wire).collect(),
        }
    }
}

fn to_wire(change: Change) -> v1::AssignmentChange {
    use v1::assignment::Item;
    use v1::assignment_change::AssignmentAction::{Remove, Update};
    let (item, action) = match change {
        Change::Task(task) => (Item::Task(task.to_wire()), Update),
        Change::Secret(secret) => (Item::Secret(secret.to_wire()), Update),
        Change::Config(config) => (Item::Config(config.to_wire()), Update),
        Change::TaskGone(id) => (Item::Task(v1::Task { id: id.to_string(), ..Default::default() }), Remove),
        Change::SecretGone(id) => (Item::Secret(v1::Secret { id: id.to_string(), ..Default::default() }), Remove),
        Change::ConfigGone(id) => (Item::Config(v1::Config { id: id.to_string(), ..Default::default() }), Remove),
    };
    v1::AssignmentChange { assignment: Some(v1::Assignment { item: Some(item) }), action: action as i32 }
}

/// Tells the agent its tasks and what they need: everything first, then what changes.
pub(super) fn assignments(shared: Arc<Shared>, session: Arc<Session>) -> Messages<v1::AssignmentsMessage> {
    // Opened before the first look at the store, so that nothing falls in between.
    let inbox = session.open_inbox();
    let told = AssignmentSet::new(session.node.clone());
    let state = AssignmentStream { shared, session, inbox, told, counter: 0, quiet_until: Instant::now() };
    Box::pin(stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        match state.next().await {
            Ok(message) => Some((Ok(message), Some(state))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

struct TaskStream {
    shared: Arc<Shared>,
    session: Arc<Session>,
    inbox: Arc<Inbox>,
    quiet_until: Option<Instant>,
}

/// The deprecated form: all tasks of the node after each change, nothing they need.
pub(super) fn tasks(shared: Arc<Shared>, session: Arc<Session>) -> Messages<v1::TasksMessage> {
    let inbox = session.open_inbox();
    let state = TaskStream { shared, session, inbox, quiet_until: None };
    Box::pin(stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        if let Some(quiet_until) = state.quiet_until {
            tokio::select! {
                ended = state.session.wait_ended() => return Some((Err(ended.status()), None)),
                () = state.inbox.ready(quiet_until) => {}
            }
        }
        state.inbox.take();
        let view = state.shared.store.view();
        let assigned = view.tasks_on_node(&state.session.node).filter(|task| task.status.state >= TaskState::Assigned);
        let tasks: Vec<v1::Task> = assigned.map(|task| task.to_wire()).collect();
        state.quiet_until = Some(quiet_after(tasks.len(), Instant::now()));
        Some((Ok(v1::TasksMessage { tasks }), Some(state)))
    }))
}
