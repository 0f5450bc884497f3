//! The two streams of a session. Each belongs to its connection and holds all it needs; dropping it ends it.

use super::Dispatcher;
use super::assignments::{AssignmentSet, Change};
use super::inbox::{Inbox, quiet_after};
use super::session::{Ended, Session};
use super::trail::Name;
use crate::shared::Shared;
use futures_util::stream::{self, BoxStream};
use skep_failpoint::failpoint;
use skep_proto::{ToWire, v1};
use skep_store::View;
use skep_types::{ClusterView, TaskState, Version};
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
    next: Next,
}

/// What the stream is to do next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Tell,
    Wait,
    End(Ended),
}

/// Tells the agent about its node, the managers and the roots: at once, and after each change. An agent that has to find
/// another manager is told once more which there are.
pub(super) fn session(shared: Arc<Shared>, session: Arc<Session>) -> Messages<v1::SessionMessage> {
    let changes = session.changes();
    let state = SessionStream { shared, session, changes, next: Next::Tell };
    Box::pin(stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        if state.next == Next::Wait {
            state.next = tokio::select! {
                ended = state.session.wait_ended() => Next::End(ended),
                changed = state.changes.changed() => if changed.is_ok() { Next::Tell } else { return None },
            };
            if state.next == Next::End(Ended::NotLeader)
                && let Ok(message) = session_message(&state.shared, &state.session)
            {
                return Some((Ok(message), Some(state)));
            }
        }
        if let Next::End(why) = state.next {
            return Some((Err(why.status()), None));
        }
        state.next = Next::Wait;
        state.changes.mark_unchanged();
        match session_message(&state.shared, &state.session) {
            Ok(message) => Some((Ok(message), Some(state))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

struct AssignmentStream {
    dispatcher: Arc<Dispatcher>,
    session: Arc<Session>,
    inbox: Arc<Inbox>,
    told: AssignmentSet,
    /// The name of the last message that the agent applied; of another stream at first, empty if it applied none.
    applied: String,
    /// Of the last message; 0 before the first.
    counter: u64,
    /// Up to here the agent knows everything, once it has applied what was sent.
    known: Version,
    quiet_until: Instant,
}

impl AssignmentStream {
    fn view(&self) -> View {
        self.dispatcher.shared.store.view()
    }

    /// The next message, or why there is none. Messages without a change are not sent, except the first.
    async fn next(&mut self) -> Result<v1::AssignmentsMessage, Status> {
        if self.counter == 0 {
            return self.first().await;
        }
        loop {
            tokio::select! {
                ended = self.session.wait_ended() => return Err(ended.status()),
                () = self.inbox.ready(self.quiet_until) => {}
            }
            let mut content = self.inbox.take();
            let view = self.view();
            // The message is to say all there is up to one revision and nothing behind it, and to have its name: an agent that knows more
            // than the name says would be told that again by the next leader. What the router has not come to yet is waited for;
            // what is behind the view stays in the inbox.
            tokio::select! {
                ended = self.session.wait_ended() => return Err(ended.status()),
                () = self.dispatcher.wait_routed(view.version()) => {}
            }
            content.add(self.inbox.look());
            let mut candidates = content.tasks;
            if content.everything {
                candidates.extend(self.told.known());
                candidates.extend(view.tasks_on_node(&self.session.node).map(|task| task.id.clone()));
            }
            let changes = self.told.difference(&view, candidates);
            self.known = view.version();
            if !changes.is_empty() {
                return Ok(self.message(v1::assignments_message::Type::Incremental, changes));
            }
        }
    }

    /// What the agent missed since the message it applied last, if that can be said; else everything.
    async fn first(&mut self) -> Result<v1::AssignmentsMessage, Status> {
        // The inbox is open: what comes after this view will be in it.
        let view = self.view();
        self.known = view.version();
        let offered = Name::parse(&self.applied).filter(|name| self.dispatcher.is_of_this_history(name));
        if let Some(applied) = offered.map(|name| name.revision).filter(|applied| *applied <= view.version()) {
            tokio::select! {
                ended = self.session.wait_ended() => return Err(ended.status()),
                () = self.dispatcher.wait_routed(view.version()) => {}
            }
            if let Some(mut steps) = self.dispatcher.steps_since(&self.session.node, applied) {
                steps.retain(|step| step.version <= view.version());
                let changes = self.told.resume(&view, &steps);
                return Ok(self.message(v1::assignments_message::Type::Incremental, changes));
            }
        }
        self.applied.clear();
        let changes = self.told.complete(&view);
        Ok(self.message(v1::assignments_message::Type::Complete, changes))
    }

    /// The chain of `applies_to` and `results_in` never has a gap: an agent that sees one reopens the stream.
    fn message(&mut self, kind: v1::assignments_message::Type, changes: Vec<Change>) -> v1::AssignmentsMessage {
        failpoint!("manager.dispatcher.assignments.decided");
        self.counter += 1;
        self.quiet_until = quiet_after(changes.len(), Instant::now());
        let leader = self.dispatcher.shared.store.raft_id();
        let results_in = Name { counter: self.counter, revision: self.known, leader }.to_string();
        v1::AssignmentsMessage {
            r#type: kind as i32,
            applies_to: std::mem::replace(&mut self.applied, results_in.clone()),
            results_in,
            changes: changes.into_iter().map(to_wire).collect(),
        }
    }
}

/// A change as agents are told of it.
pub fn to_wire(change: Change) -> v1::AssignmentChange {
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

/// Tells the agent its tasks and what they need: everything, or what it missed since the message `applied`; then what changes.
pub(super) fn assignments(dispatcher: Arc<Dispatcher>, session: Arc<Session>, applied: String) -> Messages<v1::AssignmentsMessage> {
    // Opened before the first look at the store, so that nothing falls in between.
    let inbox = session.open_inbox();
    let told = AssignmentSet::new(session.node.clone());
    let state =
        AssignmentStream { dispatcher, session, inbox, told, applied, counter: 0, known: Version::default(), quiet_until: Instant::now() };
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

#[cfg(test)]
mod tests;
