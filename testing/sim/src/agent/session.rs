//! The session of a node: finding a manager, beating, reporting. `session.rs` of the agent.

use super::Timer;
use crate::queue::Moment;
use crate::wire::{ConnId, Down, Up};
use crate::world::World;
use skep_types::{NodeId, TaskId, TaskStatus};
use std::time::Duration;

/// For a call (`session/link.rs`).
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// A session that lasted for less counts as an attempt that failed (`session.rs`).
const STOOD: Duration = Duration::from_secs(3);
/// Statuses in one call.
const STATUSES: usize = 1024;

pub(super) enum Link {
    None,
    Registering { conn: ConnId },
    Up { conn: ConnId, session: String, began: Moment, reporting: Option<Vec<(TaskId, TaskStatus)>>, reference: String },
}

impl World {
    pub(super) fn dial(&mut self, node: &NodeId) {
        let manager = usize::try_from(self.dice.roll(self.managers.len() as u64)).expect("few managers");
        let conn = self.wire.open(node, manager);
        let Some(agent) = self.agents.get_mut(node) else { return };
        agent.link = Link::Registering { conn };
        let (last, description) = (agent.session.clone(), agent.description());
        if !self.managers[manager].up && self.wire.passes(node, manager, self.now) {
            return self.session_lost(node); // refused at once
        }
        self.call(node, 0, conn, Up::Register { last, description });
    }

    pub(super) fn call(&mut self, node: &NodeId, kind: usize, conn: ConnId, up: Up) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        agent.calls += 1;
        let call = agent.calls;
        agent.open_calls[kind] = Some(call);
        self.agent_after(node, CALL_LIMIT, Timer::Limit(call));
        self.up(conn, up);
    }

    /// The session is over, or no session came about.
    pub fn session_lost(&mut self, node: &NodeId) {
        let now = self.now;
        let Some(agent) = self.agents.get_mut(node).filter(|agent| agent.up) else { return };
        if let Some(conn) = agent.conn() {
            self.wire.close(conn);
        }
        agent.open_calls = [None, None];
        let mut was_up = false;
        match std::mem::replace(&mut agent.link, Link::None) {
            Link::Up { began, reporting, .. } => {
                was_up = true;
                if let Some(batch) = reporting {
                    agent.reports.put_back(&batch);
                }
                if now - began > STOOD {
                    agent.backoff.lost();
                } else {
                    agent.backoff.failed(now - agent.lost_at);
                }
                agent.lost_at = now;
            }
            Link::Registering { .. } => agent.backoff.failed(now - agent.lost_at),
            Link::None => return,
        }
        let random = self.dice.roll(1_000) as f64 / 1_000.0;
        let delay = self.agents[node].backoff.delay(random);
        self.agent_after(node, delay, Timer::Dial);
        if was_up {
            self.look_alone(node);
        }
    }

    /// A manager's message has arrived.
    pub fn agent_hears(&mut self, node: &NodeId, conn: ConnId, down: Down) {
        let now = self.now;
        let Some(agent) = self.agents.get_mut(node).filter(|agent| agent.up && agent.conn() == Some(conn)) else { return };
        match down {
            Down::Refused => self.session_lost(node),
            Down::Registered { session } => {
                agent.open_calls = [None, None];
                agent.session.clone_from(&session);
                agent.reports.resend_all();
                let offered = agent.applied.clone().unwrap_or_default();
                agent.link = Link::Up { conn, session: session.clone(), began: now, reporting: None, reference: offered.clone() };
                self.call(node, 0, conn, Up::Beat { session: session.clone() });
                self.up(conn, Up::Follow { session: session.clone() });
                self.up(conn, Up::Assignments { session, applied: offered });
                self.report(node);
            }
            Down::Beaten { period } => {
                agent.open_calls[0] = None;
                agent.period = period;
                self.agent_after(node, period, Timer::Beat);
            }
            Down::Reported => {
                agent.open_calls[1] = None;
                if let Link::Up { reporting, .. } = &mut agent.link
                    && let Some(batch) = reporting.take()
                {
                    agent.reports.told(&batch);
                    for (task, status) in &batch {
                        if let Some(driven) = agent.tasks.get_mut(task)
                            && driven.record.status == *status
                        {
                            driven.record.alone.unheard = false;
                        }
                        agent.save(task);
                    }
                }
                self.report(node);
            }
            Down::Backends(changes, said) => self.backends_told(node, conn, *changes, said),
            Down::Assigned(message) => self.assigned(node, conn, *message),
        }
    }

    pub(super) fn report(&mut self, node: &NodeId) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        let Link::Up { conn, session, reporting, .. } = &mut agent.link else { return };
        if reporting.is_some() {
            return;
        }
        let batch = agent.reports.take_now(STATUSES);
        if batch.is_empty() {
            return;
        }
        *reporting = Some(batch.clone());
        let (conn, session) = (*conn, session.clone());
        self.call(node, 1, conn, Up::Report { session, batch });
    }
}
