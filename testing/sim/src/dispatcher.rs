//! The leader and its agents: `dispatcher/` of the manager without `tokio`.
//!
//! What is said to an agent ([`AssignmentSet`], [`Trail`](skep_manager::pure::Trail)), what is written of nodes and tasks
//! ([`Pending`]) and who is silent for too long ([`Deadlines`]) is the manager's code; who calls it when is told again here.

use crate::backends::Backends;
use crate::mutant::Mutant;
use crate::numbered::ByNode;
use crate::queue::Moment;
use crate::raft::{Answer, Proposer, Refused};
use crate::wire::{ConnId, Down, Up};
use crate::world::{Event, World};
use skep_manager::pure::{
    AssignmentSet, Batch, Change, Deadlines, GRACE_PERIODS, GRACE_PERIODS_UNKNOWN, Name, NodeNews, Pending, concerns_agent, jittered,
    quiet_after, to_wire,
};
use skep_proto::v1;
use skep_store::{Commit, MAX_TRANSACTION_CHANGES, View};
use skep_types::{Action, Change as StoreChange, ClusterView as _, NodeDescription, NodeId, NodeState, Object, TaskId, TaskState, Version};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Heartbeat period of the clusters of this world.
pub const PERIOD: Duration = Duration::from_secs(5);
/// Changes that are told without waiting for more (`inbox.rs`).
pub const FULL: usize = 100;

struct Session {
    id: String,
    stream: Option<Stream>,
}

/// One Assignments stream.
struct Stream {
    conn: ConnId,
    told: AssignmentSet,
    inbox: BTreeSet<TaskId>,
    applied: String,
    counter: u64,
    quiet_until: Moment,
}

struct Registering {
    conn: ConnId,
    session: String,
    written: oneshot::Receiver<()>,
}

pub struct Dispatcher {
    sessions: ByNode<Session>,
    pending: Pending,
    beats: Deadlines,
    unknown_at: Option<Moment>,
    registering: Vec<Registering>,
    /// Being written, with what has not been proposed yet.
    in_flight: Option<(Batch, Vec<Action>)>,
    pub backends: Backends,
}

impl Dispatcher {
    /// A new leader knows of no session; whoever was not down has time to come.
    #[must_use]
    pub fn new(view: &View, base: Instant, now: Moment) -> Self {
        let mut this = Self {
            sessions: ByNode::default(),
            pending: Pending::default(),
            beats: Deadlines::default(),
            unknown_at: Some(now + PERIOD),
            registering: Vec::new(),
            in_flight: None,
            backends: Backends::new(view, base + now),
        };
        for node in view.nodes().filter(|node| node.status.state != NodeState::Down) {
            this.beats.set(&node.id, base + now + PERIOD * GRACE_PERIODS_UNKNOWN);
        }
        this
    }

    /// Nodes with a session.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.sessions.keys()
    }

    fn session(&mut self, node: &NodeId, id: &str) -> Option<&mut Session> {
        self.sessions.get_mut(node).filter(|session| session.id == id)
    }
}

impl World {
    /// A call of an agent has reached the leader.
    pub fn serve(&mut self, leader: usize, conn: ConnId, up: Up) {
        let node = self.wire.node(conn);
        match up {
            Up::Register { last, description } => self.register(leader, conn, &node, &last, description),
            Up::Beat { session } => self.beat(leader, conn, &node, &session),
            Up::Assignments { session, applied } => self.open_assignments(leader, conn, &node, &session, applied),
            Up::Follow { session } | Up::Backends { session, .. } if !self.has_session(leader, &node, &session) => {
                self.down(conn, Down::Refused);
            }
            Up::Follow { .. } => self.follow_backends(leader, conn, &node),
            Up::Backends { programmed, .. } => self.backends_heard(leader, conn, &node, programmed),
            Up::Report { session, batch } => {
                let view = self.managers[leader].view();
                let (by, now) = (self.managers[leader].id.clone(), self.managers[leader].wall(self.now));
                let Some(lead) = &mut self.managers[leader].lead else { return };
                if lead.dispatcher.session(&node, &session).is_none() {
                    return self.down(conn, Down::Refused);
                }
                for (id, mut status) in batch {
                    // Of a task that is not there nothing is kept; another node's would be refused.
                    if view.task(&id).is_some_and(|task| task.node_id.as_ref() == Some(&node)) {
                        status.applied_by = Some(by.clone());
                        status.applied_at = Some(now);
                        lead.dispatcher.pending.report(id, status);
                    }
                }
                self.down(conn, Down::Reported);
                self.write_pending(leader);
            }
        }
    }

    fn has_session(&mut self, leader: usize, node: &NodeId, session: &str) -> bool {
        self.managers[leader].lead.as_mut().is_some_and(|lead| lead.dispatcher.session(node, session).is_some())
    }

    fn register(&mut self, leader: usize, conn: ConnId, node: &NodeId, last: &str, description: NodeDescription) {
        let (view, base, now) = (self.managers[leader].view(), self.base, self.now);
        let fresh = format!("{:025}", self.dice.roll(1 << 60));
        let Some(lead) = &mut self.managers[leader].lead else { return };
        let dispatcher = &mut lead.dispatcher;
        let Some(stored) = view.node(node) else { return self.down(conn, Down::Refused) };
        let kept = dispatcher.sessions.get(node).filter(|session| !last.is_empty() && session.id == last).map(|session| session.id.clone());
        let session = kept.unwrap_or_else(|| {
            let id = if dispatcher.sessions.contains_key(node) || last.is_empty() { fresh } else { last.to_owned() };
            dispatcher.sessions.insert(node.clone(), Session { id: id.clone(), stream: None });
            id
        });
        dispatcher.beats.set(node, base + now + PERIOD * GRACE_PERIODS);
        let addr = format!("192.0.2.{}", node.as_str().trim_start_matches('0'));
        let news = NodeNews::Registered { description: Some(description), addr };
        if dispatcher.pending.is_known(stored, &news) {
            return self.down(conn, Down::Registered { session });
        }
        dispatcher.pending.node(node.clone(), news);
        let written = dispatcher.pending.when_written();
        dispatcher.registering.push(Registering { conn, session, written });
        self.write_pending(leader);
    }

    fn beat(&mut self, leader: usize, conn: ConnId, node: &NodeId, session: &str) {
        let period = jittered(PERIOD, self.dice.roll(1 << 40));
        let deadline = self.base + self.now + period * GRACE_PERIODS;
        let Some(lead) = &mut self.managers[leader].lead else { return };
        if lead.dispatcher.session(node, session).is_none() {
            return self.down(conn, Down::Refused);
        }
        lead.dispatcher.beats.set(node, deadline);
        self.down(conn, Down::Beaten { period });
    }

    fn open_assignments(&mut self, leader: usize, conn: ConnId, node: &NodeId, session: &str, applied: String) {
        let now = self.now;
        let Some(lead) = &mut self.managers[leader].lead else { return };
        let term = lead.term;
        let Some(session) = lead.dispatcher.session(node, session) else { return self.down(conn, Down::Refused) };
        let told = AssignmentSet::new(node.clone());
        session.stream = Some(Stream { conn, told, inbox: BTreeSet::new(), applied, counter: 0, quiet_until: now });
        let node = node.clone();
        self.after(Moment::ZERO, Event::Tell { manager: leader, term, node });
    }

    /// Says what there is to say to an agent.
    pub fn tell(&mut self, manager: usize, node: &NodeId) {
        let (now, base, mutant) = (self.now, self.base, self.mutant);
        let host = &mut self.managers[manager];
        let view = host.view();
        let Some(lead) = &mut host.lead else { return };
        let term = lead.term;
        let Some(stream) = lead.dispatcher.sessions.get_mut(node).and_then(|session| session.stream.as_mut()) else { return };
        let known = view.version();
        let (kind, mut changes) = if stream.counter == 0 {
            let offered = Name::parse(&stream.applied).map(|name| name.revision).filter(|applied| *applied <= known);
            match offered.and_then(|applied| host.trail.since(node, applied)) {
                Some(steps) => (v1::assignments_message::Type::Incremental, stream.told.resume(&view, &steps)),
                None => {
                    stream.applied.clear();
                    (v1::assignments_message::Type::Complete, stream.told.complete(&view))
                }
            }
        } else {
            if stream.inbox.is_empty() {
                return;
            }
            if stream.inbox.len() < FULL && now < stream.quiet_until {
                let left = stream.quiet_until - now;
                return self.after(left, Event::Tell { manager, term, node: node.clone() });
            }
            let candidates = std::mem::take(&mut stream.inbox);
            let changes = stream.told.difference(&view, candidates);
            if changes.is_empty() {
                return;
            }
            (v1::assignments_message::Type::Incremental, changes)
        };
        match mutant {
            Some(Mutant::LostAtFirst) if stream.counter == 0 => drop(changes.pop()),
            Some(Mutant::ResumesWithNothing) if stream.counter == 0 && !stream.applied.is_empty() => changes.clear(),
            _ => {}
        }
        if mutant == Some(Mutant::LostAssignment) && stream.counter > 0 && self.dice.roll(4) == 0 {
            changes.pop();
        }
        let message = stream.message(kind, changes, known, manager as u64 + 1, (base, now));
        let conn = stream.conn;
        self.down(conn, Down::Assigned(Box::new(message)));
    }

    /// A commit on the way to those who have to tell it.
    pub fn route(&mut self, manager: usize, commit: &Commit) {
        let (base, now) = (self.base, self.now);
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let (term, dispatcher) = (lead.term, &mut lead.dispatcher);
        let mut woken = BTreeSet::new();
        for change in &commit.changes {
            match change {
                StoreChange::Updated { old: Object::Task(old), new: Object::Task(new) } if concerns_agent(old, new) => {
                    woken.extend(new.node_id.clone().map(|node| (node, new.id.clone())));
                }
                StoreChange::Created(Object::Task(task)) | StoreChange::Removed(Object::Task(task))
                    if task.status.state >= TaskState::Assigned =>
                {
                    woken.extend(task.node_id.clone().map(|node| (node, task.id.clone())));
                }
                StoreChange::Removed(Object::Node(node)) => {
                    dispatcher.beats.forget(&node.id);
                    dispatcher.sessions.remove(&node.id);
                }
                StoreChange::Created(Object::Node(node)) => {
                    dispatcher.beats.set(&node.id, base + now + PERIOD * GRACE_PERIODS_UNKNOWN);
                }
                _ => {}
            }
        }
        let mut nodes = BTreeSet::new();
        for (node, task) in woken {
            if let Some(stream) = dispatcher.sessions.get_mut(&node).and_then(|session| session.stream.as_mut()) {
                stream.inbox.insert(task);
                nodes.insert(node);
            }
        }
        for node in nodes {
            let delay = self.dice.moment(0..3);
            self.after(delay, Event::Tell { manager, term, node });
        }
    }

    /// Writes what is pending, unless something is being written.
    pub fn write_pending(&mut self, manager: usize) {
        let view = self.managers[manager].view();
        let mutant = self.mutant;
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let dispatcher = &mut lead.dispatcher;
        if dispatcher.in_flight.is_some() || dispatcher.pending.is_empty() {
            return;
        }
        let mut batch = dispatcher.pending.take(&view);
        let mut actions = std::mem::take(&mut batch.actions);
        if let Some(mutant) = mutant {
            mutant.spoil_reports(&mut actions, &view, &mut self.dice);
        }
        if actions.is_empty() {
            dispatcher.pending.landed();
            batch.written();
            return self.answer_registered(manager);
        }
        dispatcher.in_flight = Some((batch, actions));
        self.write_part(manager);
    }

    fn write_part(&mut self, manager: usize) {
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let Some((_, actions)) = &lead.dispatcher.in_flight else { return };
        let part = actions[..actions.len().min(MAX_TRANSACTION_CHANGES)].to_vec();
        let term = lead.term;
        let seen = self.managers[manager].tables.revision();
        self.propose(manager, Proposer::Writer { manager, term }, seen, part);
    }

    /// What became of it.
    pub fn reports_answered(&mut self, manager: usize, answer: Answer) {
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let dispatcher = &mut lead.dispatcher;
        let Some((mut batch, mut actions)) = dispatcher.in_flight.take() else { return };
        match answer {
            Ok(_) => {
                actions.drain(..actions.len().min(MAX_TRANSACTION_CHANGES));
                if !actions.is_empty() {
                    dispatcher.in_flight = Some((batch, actions));
                    return self.write_part(manager);
                }
                dispatcher.pending.landed();
                batch.written();
                self.answer_registered(manager);
            }
            Err(Refused::Stale(_)) => {
                batch.actions = actions;
                dispatcher.pending.put_back(batch);
            }
            Err(Refused::Lost) => return,
        }
        self.write_pending(manager);
    }

    fn answer_registered(&mut self, manager: usize) {
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let mut done = Vec::new();
        lead.dispatcher.registering.retain_mut(|waiting| match waiting.written.try_recv() {
            Ok(()) => {
                done.push((waiting.conn, Down::Registered { session: waiting.session.clone() }));
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => {
                done.push((waiting.conn, Down::Refused));
                false
            }
        });
        for (conn, down) in done {
            self.down(conn, down);
        }
    }

    /// Takes note of nodes that stopped beating, twice a second.
    pub fn expire(&mut self, manager: usize) {
        let (view, base, now) = (self.managers[manager].view(), self.base, self.now);
        let mutant = self.mutant;
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let (term, dispatcher) = (lead.term, &mut lead.dispatcher);
        if dispatcher.unknown_at.is_some_and(|at| at <= now) {
            dispatcher.unknown_at = None;
            for node in view.nodes() {
                if node.status.state != NodeState::Down && !dispatcher.sessions.contains_key(&node.id) {
                    dispatcher.pending.node(node.id.clone(), NodeNews::Unknown);
                }
            }
        }
        // One who counts no grace at all.
        let early = if mutant == Some(Mutant::NoGrace) { PERIOD * 2 + PERIOD / 2 } else { Duration::ZERO };
        for node in dispatcher.beats.take_overdue(base + now + early) {
            dispatcher.sessions.remove(&node);
            if mutant != Some(Mutant::NeverDown) {
                dispatcher.pending.node(node, NodeNews::Down);
            }
        }
        self.after(Duration::from_millis(500), Event::Expire { manager, term });
        self.expire_backends(manager);
        self.write_pending(manager);
    }
}

impl Stream {
    fn message(
        &mut self,
        kind: v1::assignments_message::Type,
        changes: Vec<Change>,
        known: Version,
        leader: u64,
        (base, now): (Instant, Moment),
    ) -> v1::AssignmentsMessage {
        self.counter += 1;
        self.quiet_until = quiet_after(changes.len(), base + now).duration_since(base);
        let results_in = Name { counter: self.counter, revision: known, leader }.to_string();
        v1::AssignmentsMessage {
            r#type: kind as i32,
            applies_to: std::mem::replace(&mut self.applied, results_in.clone()),
            results_in,
            changes: changes.into_iter().map(to_wire).collect(),
        }
    }
}
