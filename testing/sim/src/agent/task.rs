//! One task of a node: its machine, and the operations it asks for. `task/drive.rs` of the agent.

use super::Timer;
use super::leads::Held;
use crate::container::Container;
use crate::mutant::Mutant;
use crate::world::World;
use skep_agent::pure::{Action, Alone, Event as Step, Machine, Outcome, waits_for};
use skep_types::{NodeId, Task, TaskId, TaskState, TaskStatus};
use std::sync::Arc;
use std::time::Duration;

/// A task as the disk has it.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub task: Arc<Task>,
    pub status: TaskStatus,
    pub alone: Alone,
    pub unassigned: bool,
}

/// A task in memory.
pub(super) struct Driven {
    pub record: Record,
    pub machine: Machine,
    /// Its container is being stopped.
    pub stops: bool,
    /// It is to be stopped when nobody leads to it any more.
    pub held: Option<Held>,
    /// It is to be started when another one is gone.
    pub waits: bool,
    /// The operation under way: what an earlier one brings is nobody's.
    pub op: u64,
}

/// What became of an operation on a container.
#[derive(Debug, Clone)]
pub enum Done {
    Prepared,
    Started,
    Free,
    Healthy,
    Sick,
    Ended,
    Stopped,
    Released,
    Failed { temporary: bool },
    Retry,
}

impl World {
    /// An event for the machine of a task.
    pub fn step(&mut self, node: &NodeId, id: &TaskId, event: Step) {
        let Some(driven) = self.agents.get_mut(node).and_then(|agent| agent.tasks.get_mut(id)) else { return };
        let actions = driven.machine.step(event);
        self.carry_out(node, id, actions);
    }

    pub(super) fn carry_out(&mut self, node: &NodeId, id: &TaskId, actions: Vec<Action>) {
        let last_report = actions.iter().rposition(|action| matches!(action, Action::Report { .. }));
        for (index, action) in actions.into_iter().enumerate() {
            match action {
                Action::Report { state, message, err } if Some(index) == last_report => self.note_state(node, id, state, message, err),
                Action::Report { .. } | Action::Serve => {}
                Action::Cancel => {
                    // Now and then it was done already.
                    let outcome = if self.dice.roll(4) == 0 { Done::Prepared } else { Done::Failed { temporary: false } };
                    self.operate(node, id, Duration::from_millis(5), outcome);
                }
                Action::Prepare => {
                    let delay = self.takes(node, 20..1_500);
                    let outcome = self.luck(Done::Prepared);
                    self.operate(node, id, delay, outcome);
                }
                Action::Start => {
                    self.stops(node, id, false);
                    if let Some(Err(before)) = self.agents.get_mut(node).map(|agent| agent.slots.start(id)) {
                        self.step(node, id, Step::Held { words: waits_for(&before) });
                        continue;
                    }
                    let delay = self.takes(node, 20..400);
                    let outcome = self.luck(Done::Started);
                    self.operate(node, id, delay, outcome);
                }
                Action::Wait => self.waits(node, id),
                Action::Watch => self.watch_container(node, id),
                Action::Stop => {
                    self.check_stop(node, id);
                    self.stops(node, id, true);
                    let grace = self.agents[node].containers.get(id).map_or(1_000, |container| container.grace.as_millis() as u64);
                    let delay = self.takes(node, 10..grace);
                    let outcome = self.luck(Done::Stopped);
                    self.hold_stop(node, id, delay, outcome);
                }
                Action::Release => {
                    let delay = self.takes(node, 5..100);
                    self.operate(node, id, delay, Done::Released);
                }
                Action::RetryAfter(delay) => self.operate(node, id, delay, Done::Retry),
                Action::Forget => {
                    if let Some(agent) = self.agents.get_mut(node) {
                        agent.tasks.remove(id);
                        agent.disk.remove(id);
                        agent.containers.remove(id);
                        agent.reports.forget(id);
                        agent.leads.forget(id);
                        agent.slots.forget(id);
                    }
                }
            }
        }
    }

    fn stops(&mut self, node: &NodeId, id: &TaskId, stops: bool) {
        if let Some(driven) = self.agents.get_mut(node).and_then(|agent| agent.tasks.get_mut(id)) {
            driven.stops = stops;
        }
    }

    fn waits(&mut self, node: &NodeId, id: &TaskId) {
        if let Some(driven) = self.agents.get_mut(node).and_then(|agent| agent.tasks.get_mut(id)) {
            driven.waits = true;
        }
    }

    /// A task has no process any more: who waited for that is started.
    fn gone(&mut self, node: &NodeId, id: &TaskId) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        if !agent.slots.ended(id) {
            return;
        }
        let mut free = Vec::new();
        for (id, driven) in agent.tasks.iter_mut().filter(|(id, driven)| driven.waits && agent.slots.before(id).is_none()) {
            driven.waits = false;
            free.push(id.clone());
        }
        for task in free {
            self.agent_after(node, Duration::from_millis(1), Timer::Task { task, op: None, done: Done::Free });
        }
    }

    /// An operation begins, which ends so after `delay`.
    pub(super) fn operate(&mut self, node: &NodeId, id: &TaskId, delay: Duration, outcome: Done) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        agent.ops += 1;
        let op = agent.ops;
        if let Some(driven) = agent.tasks.get_mut(id) {
            (driven.op, driven.held) = (op, None);
        }
        self.agent_after(node, delay, Timer::Task { task: id.clone(), op: Some(op), done: outcome });
    }

    /// The outcome of an operation, while not everything works.
    fn luck(&mut self, good: Done) -> Done {
        let failing = self.now < self.flaky.1 && self.dice.roll(100) < u64::from(self.flaky.0);
        if failing { Done::Failed { temporary: self.dice.coin() } } else { good }
    }

    fn note_state(&mut self, node: &NodeId, id: &TaskId, state: TaskState, message: &str, err: String) {
        let now = self.node_clock();
        let mutant = self.mutant;
        let Some(agent) = self.agents.get_mut(node) else { return };
        let Some(driven) = agent.tasks.get_mut(id) else { return };
        let before = driven.record.status.state;
        match state {
            TaskState::Failed | TaskState::Complete if before == TaskState::Running => driven.record.alone.unheard = true,
            TaskState::Failed | TaskState::Complete => {}
            _ => driven.record.alone.unheard = false,
        }
        let words = if state == TaskState::Running { driven.record.alone.words() } else { String::new() };
        let container = driven.machine.container().cloned().filter(|_| state >= TaskState::Starting);
        let timestamp = driven.record.status.timestamp;
        let status = TaskStatus { timestamp, state, message: format!("{message}{words}"), err, container, ..TaskStatus::default() };
        if status == driven.record.status {
            return;
        }
        driven.record.status = TaskStatus { timestamp: now, ..status };
        let status = driven.record.status.clone();
        agent.save(id);
        if before > state {
            agent.reports.take_back(id, status);
        } else if mutant != Some(Mutant::SilentEnd) || !state.is_terminal() {
            agent.reports.put(id, status);
        }
        self.trace(|| format!("{} {} {} -> {}", crate::raft::short(node.as_str()), crate::raft::short(id.as_str()), before, state));
        self.report(node);
        self.look_alone(node);
    }

    /// From here on the end and the health of a container are noticed.
    fn watch_container(&mut self, node: &NodeId, id: &TaskId) {
        let Some(container) = self.agents.get(node).and_then(|agent| agent.containers.get(id)).cloned() else { return };
        let timer = |done| Timer::Task { task: id.clone(), op: None, done };
        if !container.alive {
            return self.agent_after(node, Duration::ZERO, timer(Done::Ended));
        }
        if container.checked {
            let delay = self.takes(node, 100..3_000);
            self.agent_after(node, delay, timer(if container.sick { Done::Sick } else { Done::Healthy }));
        }
    }

    pub(super) fn task_done(&mut self, node: &NodeId, id: &TaskId, done: Done) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        let Some(driven) = agent.tasks.get(id) else { return };
        let task = Arc::clone(&driven.record.task);
        let event = match done {
            Done::Prepared => {
                agent.containers.insert(id.clone(), Container::of(&task));
                Step::Prepared
            }
            Done::Started => match agent.containers.get_mut(id) {
                Some(container) => {
                    (container.alive, container.since) = (true, self.now);
                    let (status, health) = (container.status(), container.health());
                    if health.is_none() {
                        self.watch.fit.insert(id.clone());
                    }
                    self.container_starts(node, id);
                    Step::Started { container: status, health }
                }
                // What is not there cannot be started, and somebody says so.
                None => Step::OperationFailed { temporary: false, words: "no such container".into() },
            },
            Done::Free => Step::Free,
            Done::Healthy => {
                self.watch.fit.insert(id.clone());
                Step::Healthy
            }
            Done::Sick if self.mutant == Some(Mutant::IgnoresHealth) => return,
            Done::Sick => Step::Unhealthy("unhealthy".into()),
            Done::Ended => {
                let outcome = agent.containers.get(id).and_then(|container| container.outcome.clone());
                Step::Ended(outcome.unwrap_or_default())
            }
            Done::Stopped => {
                if self.mutant != Some(Mutant::LeakedContainer) || self.dice.roll(3) > 0 {
                    agent.containers.remove(id);
                }
                self.stops(node, id, false);
                Step::Stopped(Some(Outcome { exit_code: 143, words: None }))
            }
            Done::Released => {
                agent.containers.remove(id);
                Step::Released
            }
            Done::Failed { temporary } => Step::OperationFailed { temporary, words: "by chance".into() },
            Done::Retry => Step::RetryDue,
        };
        if matches!(event, Step::Prepared | Step::Ended(_) | Step::Stopped(_) | Step::Released) {
            self.gone(node, id);
        }
        self.step(node, id, event);
    }
}
