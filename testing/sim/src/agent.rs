//! One node: its session, its tasks with their machines, and its disk. `session.rs`, `worker.rs` and `task/drive.rs` of the agent
//! without `tokio`; the machine, the reports, the back-off and the restarts of an isolated node are the agent's own.

use crate::container::Container;
use crate::mutant::Mutant;
use crate::queue::Moment;
use crate::wire::{ConnId, Down, Up};
use crate::world::{Event, World};
use skep_agent::pure::{Action, Alone, Event as Step, Machine, Outcome, Recovered, restart_after, sort, wait};
use skep_agent::{Backoff, Reports};
use skep_manager::pure::{Name, same_but_status};
use skep_proto::v1::AssignmentsMessage;
use skep_proto::v1::assignments_message::Type;
use skep_types::{
    EngineDescription, NodeDescription, NodeId, Platform, Resources, Task, TaskId, TaskState, TaskStatus, Timestamp, Version,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// For a call (`session/link.rs`).
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// A session that lasted for less counts as an attempt that failed (`session.rs`).
const STOOD: Duration = Duration::from_secs(3);
/// Without a session for so long, a node is on its own (`reach.rs`).
const ALONE: Duration = Duration::from_secs(10);
/// Statuses in one call.
const STATUSES: usize = 1024;

/// A task as the disk has it.
#[derive(Debug, Clone)]
struct Record {
    task: Arc<Task>,
    status: TaskStatus,
    alone: Alone,
}

/// A task in memory.
struct Driven {
    record: Record,
    machine: Machine,
    unassigned: bool,
    /// The operation under way: what an earlier one brings is nobody's.
    op: u64,
}

enum Link {
    None,
    Registering { conn: ConnId },
    Up { conn: ConnId, session: String, began: Moment, reporting: Option<Vec<(TaskId, TaskStatus)>>, reference: String },
}

/// What comes due on a node.
#[derive(Debug, Clone)]
pub enum Timer {
    Dial,
    /// An answer to a call was to come by now; by the number of the call.
    Limit(u64),
    Beat,
    /// Something of a task. `op`: of which operation; a container's own news have none.
    Task {
        task: TaskId,
        op: Option<u64>,
        done: Done,
    },
    /// A task that ended may be started again without a manager.
    Restart {
        task: TaskId,
    },
}

/// What became of an operation on a container.
#[derive(Debug, Clone)]
pub enum Done {
    Prepared,
    Started,
    Healthy,
    Sick,
    Ended,
    Stopped,
    Released,
    Failed { temporary: bool },
    Retry,
}

pub struct Agent {
    pub id: NodeId,
    pub up: bool,
    /// Counts the starts of its process: timers of an earlier life are nobody's.
    pub life: u64,
    pub containers: BTreeMap<TaskId, Container>,
    /// Everything takes so many times as long, until then.
    pub slow: (u32, Moment),
    /// Of its cluster; left for good when it was removed.
    disk: BTreeMap<TaskId, Record>,
    /// The message applied last, with the tasks as they were told, if the disk has both.
    kept: Option<(String, BTreeMap<TaskId, Arc<Task>>)>,

    tasks: BTreeMap<TaskId, Driven>,
    /// What managers said it should have, by the message applied last.
    pub told: BTreeMap<TaskId, Arc<Task>>,
    pub applied: Option<String>,
    reports: Reports,
    link: Link,
    session: String,
    backoff: Backoff,
    lost_at: Moment,
    calls: u64,
    ops: u64,
    /// Calls that wait for an answer: registering and beats, reports.
    open_calls: [Option<u64>; 2],
    period: Duration,
}

impl Agent {
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            up: true,
            life: 1,
            containers: BTreeMap::new(),
            slow: (1, Moment::ZERO),
            disk: BTreeMap::new(),
            kept: None,
            tasks: BTreeMap::new(),
            told: BTreeMap::new(),
            applied: None,
            reports: Reports::default(),
            link: Link::None,
            session: String::new(),
            backoff: Backoff::default(),
            lost_at: Moment::ZERO,
            calls: 0,
            ops: 0,
            open_calls: [None, None],
            period: Duration::from_secs(5),
        }
    }

    /// What it says of itself.
    #[must_use]
    pub fn description(&self) -> NodeDescription {
        NodeDescription {
            hostname: format!("n{}", self.id.as_str().trim_start_matches('0')),
            platform: Platform { os: "linux".into(), architecture: "x86_64".into() },
            resources: Resources { nano_cpus: 4_000_000_000, memory_bytes: 8 << 30, ..Resources::default() },
            engine: Some(EngineDescription {
                plugins: ["Network/overlay", "Log/json-file"]
                    .map(|plugin| plugin.split_once('/').expect("two parts"))
                    .map(|(kind, name)| skep_types::Plugin { kind: kind.into(), name: name.into() })
                    .into(),
                ..EngineDescription::default()
            }),
            ..NodeDescription::default()
        }
    }

    /// It has a session and is not slow.
    #[must_use]
    pub fn is_in_touch(&self) -> bool {
        self.up && matches!(self.link, Link::Up { .. })
    }

    /// The task's machine: the state observed, the wish, and whether it is to go.
    #[must_use]
    pub fn task(&self, id: &TaskId) -> Option<(TaskState, TaskState, bool)> {
        self.tasks.get(id).map(|driven| (driven.machine.state(), driven.machine.desired(), driven.unassigned))
    }

    fn conn(&self) -> Option<ConnId> {
        match &self.link {
            Link::None => None,
            Link::Registering { conn } | Link::Up { conn, .. } => Some(*conn),
        }
    }

    fn save(&mut self, id: &TaskId) {
        if let Some(driven) = self.tasks.get(id) {
            self.disk.insert(id.clone(), driven.record.clone());
        }
    }
}

impl World {
    fn agent_after(&mut self, node: &NodeId, delay: Duration, timer: Timer) {
        let Some(agent) = self.agents.get(node) else { return };
        let event = Event::Agent { node: node.clone(), life: agent.life, timer };
        self.after(delay, event);
    }

    /// How long something takes on this node.
    fn takes(&mut self, node: &NodeId, millis: std::ops::Range<u64>) -> Duration {
        let time = self.dice.moment(millis);
        let (times, until) = self.agents.get(node).map_or((1, Moment::ZERO), |agent| agent.slow);
        if self.now < until { time * times } else { time }
    }

    /// The process starts: it adopts what is there and looks for a manager.
    pub fn agent_starts(&mut self, node: &NodeId) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        agent.life += 1;
        agent.up = true;
        (agent.link, agent.session, agent.backoff, agent.lost_at) = (Link::None, String::new(), Backoff::default(), self.now);
        agent.reports = Reports::default();
        agent.tasks.clear();
        agent.told = agent.disk.iter().map(|(id, record)| (id.clone(), Arc::clone(&record.task))).collect();
        let same = |kept: &BTreeMap<TaskId, Arc<Task>>| {
            kept.len() == agent.told.len()
                && kept.iter().all(|(id, task)| agent.told.get(id).is_some_and(|told| same_but_status(told, task)))
        };
        let no_strays = agent.containers.keys().all(|id| agent.disk.contains_key(id));
        agent.applied = agent.kept.as_ref().filter(|(_, tasks)| no_strays && same(tasks)).map(|(name, _)| name.clone());
        let records: Vec<Record> = agent.disk.values().cloned().collect();
        for record in records {
            self.begin_task(node, record);
        }
        self.agent_after(node, Duration::ZERO, Timer::Dial);
    }

    /// The process dies. Containers go on, what is on the disk stays.
    pub fn agent_dies(&mut self, node: &NodeId) {
        for conn in self.wire.of(Some(node), None) {
            self.wire.close(conn);
        }
        if let Some(agent) = self.agents.get_mut(node) {
            agent.up = false;
            agent.life += 1;
            agent.link = Link::None;
            agent.tasks.clear();
        }
    }

    /// The machine dies, and all that ran on it.
    pub fn host_dies(&mut self, node: &NodeId) {
        self.agent_dies(node);
        if let Some(agent) = self.agents.get_mut(node) {
            // A container's mount and its namespaces are gone with the kernel.
            agent.containers.clear();
        }
    }

    fn begin_task(&mut self, node: &NodeId, mut record: Record) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        record.status.state = record.status.state.max(TaskState::Assigned);
        let id = record.task.id.clone();
        let found = agent.containers.get(&id).map_or(Recovered::Nothing, Container::found);
        let (machine, actions) = Machine::new(record.status.state, record.task.desired_state, found);
        agent.reports.remember(&id, record.status.clone());
        agent.tasks.insert(id.clone(), Driven { record, machine, unassigned: false, op: 0 });
        agent.save(&id);
        self.carry_out(node, &id, actions);
    }

    /// A timer of a node.
    pub fn agent_due(&mut self, node: &NodeId, life: u64, timer: Timer) {
        let Some(agent) = self.agents.get(node).filter(|agent| agent.up && agent.life == life) else { return };
        match timer {
            Timer::Dial if agent.conn().is_none() => self.dial(node),
            Timer::Dial => {}
            Timer::Limit(call) if agent.open_calls.contains(&Some(call)) => self.session_lost(node),
            Timer::Limit(_) => {}
            Timer::Beat => {
                if let Link::Up { conn, session, .. } = &agent.link {
                    let (conn, session) = (*conn, session.clone());
                    self.call(node, 0, conn, Up::Beat { session });
                }
            }
            Timer::Task { task, op, done } => {
                let present = agent.tasks.get(&task).is_some_and(|driven| op.is_none_or(|op| op == driven.op));
                if present {
                    self.task_done(node, &task, done);
                }
            }
            Timer::Restart { task } => self.restart_alone(node, &task),
        }
    }

    fn dial(&mut self, node: &NodeId) {
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

    fn call(&mut self, node: &NodeId, kind: usize, conn: ConnId, up: Up) {
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
            Down::Assigned(message) => self.assigned(node, conn, *message),
        }
    }

    fn report(&mut self, node: &NodeId) {
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

    fn assigned(&mut self, node: &NodeId, conn: ConnId, message: AssignmentsMessage) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        let Link::Up { reference, session, .. } = &mut agent.link else { return };
        let gap = message.r#type == Type::Incremental as i32 && message.applies_to != *reference;
        reference.clone_from(&message.results_in);
        let session = session.clone();
        let name = (!gap).then(|| message.results_in.clone());
        let sorted = sort(message);
        if sorted.complete || name.is_none() {
            agent.applied = None;
        }
        let wanted: Vec<TaskId> = sorted.tasks.iter().map(|task| task.id.clone()).collect();
        let mut gone = sorted.removed_tasks;
        if sorted.complete {
            gone.extend(agent.tasks.keys().chain(agent.told.keys()).filter(|id| !wanted.contains(id)).cloned());
            let strays: Vec<TaskId> =
                agent.containers.keys().filter(|id| !agent.tasks.contains_key(*id) && !wanted.contains(id)).cloned().collect();
            for stray in strays {
                agent.containers.remove(&stray);
            }
        }
        for task in sorted.tasks {
            if let Some(agent) = self.agents.get_mut(node) {
                agent.told.insert(task.id.clone(), Arc::new(task.clone()));
            }
            self.assign(node, task);
        }
        for id in gone {
            if let Some(agent) = self.agents.get_mut(node) {
                agent.told.remove(&id);
                if let Some(driven) = agent.tasks.get_mut(&id)
                    && !std::mem::replace(&mut driven.unassigned, true)
                {
                    self.step(node, &id, Step::Unassigned);
                }
            }
        }
        let Some(agent) = self.agents.get_mut(node) else { return };
        match name {
            Some(name) => {
                agent.kept = Some((name.clone(), agent.told.clone()));
                agent.applied = Some(name.clone());
                if let Some(name) = Name::parse(&name) {
                    self.check_told(node, name.revision);
                }
            }
            None => {
                agent.link = match std::mem::replace(&mut agent.link, Link::None) {
                    Link::Up { conn, session, began, reporting, .. } => {
                        Link::Up { conn, session, began, reporting, reference: String::new() }
                    }
                    other => other,
                };
                self.up(conn, Up::Assignments { session, applied: String::new() });
            }
        }
    }

    fn check_told(&mut self, node: &NodeId, revision: Version) {
        let told = &self.agents[node].told;
        let view = self.raft.views.get(&revision);
        self.watch.told(node, told, view, revision);
    }

    fn assign(&mut self, node: &NodeId, mut task: Task) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        let id = task.id.clone();
        let Some(driven) = agent.tasks.get_mut(&id) else {
            let record = Record { status: task.status.clone(), task: Arc::new(task), alone: Alone::default() };
            return self.begin_task(node, record);
        };
        // Assigned again while it is being removed, or an older wish (`worker.rs`, `drive.rs`).
        if driven.unassigned || task.desired_state < driven.machine.desired() {
            return;
        }
        task.status = driven.record.task.status.clone();
        task.meta = driven.record.task.meta;
        if task == *driven.record.task {
            return;
        }
        let desired = task.desired_state;
        driven.record.task = Arc::new(task);
        agent.save(&id);
        if self.mutant == Some(Mutant::DeafToWishes) && desired >= TaskState::Shutdown && self.dice.roll(3) == 0 {
            return;
        }
        self.step(node, &id, Step::Desired(desired));
    }

    /// An event for the machine of a task.
    pub fn step(&mut self, node: &NodeId, id: &TaskId, event: Step) {
        let Some(driven) = self.agents.get_mut(node).and_then(|agent| agent.tasks.get_mut(id)) else { return };
        let actions = driven.machine.step(event);
        self.carry_out(node, id, actions);
    }

    fn carry_out(&mut self, node: &NodeId, id: &TaskId, actions: Vec<Action>) {
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
                    let delay = self.takes(node, 20..400);
                    let outcome = self.luck(Done::Started);
                    self.operate(node, id, delay, outcome);
                }
                Action::Watch => self.watch_container(node, id),
                Action::Stop => {
                    self.check_stop(node, id);
                    let grace = self.agents[node].containers.get(id).map_or(1_000, |container| container.grace.as_millis() as u64);
                    let delay = self.takes(node, 10..grace);
                    let outcome = self.luck(Done::Stopped);
                    self.operate(node, id, delay, outcome);
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
                    }
                }
            }
        }
    }

    /// An operation begins, which ends so after `delay`.
    fn operate(&mut self, node: &NodeId, id: &TaskId, delay: Duration, outcome: Done) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        agent.ops += 1;
        let op = agent.ops;
        if let Some(driven) = agent.tasks.get_mut(id) {
            driven.op = op;
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

    /// The clocks of nodes are right.
    fn node_clock(&self) -> Timestamp {
        Timestamp::from_secs(1_800_000_000) + self.now
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
            self.agent_after(node, delay, timer(Done::Healthy));
        }
    }

    fn task_done(&mut self, node: &NodeId, id: &TaskId, done: Done) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        let Some(driven) = agent.tasks.get(id) else { return };
        let task = Arc::clone(&driven.record.task);
        let event = match done {
            Done::Prepared => {
                agent.containers.insert(id.clone(), Container::of(&task));
                Step::Prepared
            }
            Done::Started => {
                let Some(container) = agent.containers.get_mut(id) else { return };
                (container.alive, container.since) = (true, self.now);
                let (status, health) = (container.status(), container.health());
                self.container_starts(node, id);
                Step::Started { container: status, health }
            }
            Done::Healthy => Step::Healthy,
            Done::Sick => Step::Unhealthy("unhealthy".into()),
            Done::Ended => {
                let outcome = agent.containers.get(id).and_then(|container| container.outcome.clone());
                Step::Ended(outcome.unwrap_or_default())
            }
            Done::Stopped => {
                if self.mutant != Some(Mutant::LeakedContainer) || self.dice.roll(3) > 0 {
                    agent.containers.remove(id);
                }
                Step::Stopped(Some(Outcome { exit_code: 143, words: None }))
            }
            Done::Released => {
                agent.containers.remove(id);
                Step::Released
            }
            Done::Failed { temporary } => Step::OperationFailed { temporary, words: "by chance".into() },
            Done::Retry => Step::RetryDue,
        };
        self.step(node, id, event);
    }

    /// How long a container lives is settled when it starts.
    fn container_starts(&mut self, node: &NodeId, id: &TaskId) {
        let Some(container) = self.agents.get(node).and_then(|agent| agent.containers.get(id)).cloned() else { return };
        self.check_start(node, &container);
        let since = container.since;
        let faulty = !self.healed && self.dice.roll(100) < container.bad;
        let (delay, code) = match (faulty, container.is_job) {
            (true, _) => (self.dice.moment(0..4_000), 1),
            (false, true) => (self.dice.moment(200..6_000), 0),
            (false, false) => return,
        };
        self.after(delay, Event::Exit { node: node.clone(), task: id.clone(), since, code });
    }

    /// A container ends by itself, or is killed.
    pub fn exits(&mut self, node: &NodeId, id: &TaskId, since: Option<Moment>, code: i32) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        let Some(container) = agent.containers.get_mut(id).filter(|container| container.alive) else { return };
        if since.is_some_and(|since| since != container.since) {
            return;
        }
        container.alive = false;
        container.outcome = Some(Outcome { exit_code: code, words: None });
        if agent.up {
            self.agent_after(node, Duration::from_millis(1), Timer::Task { task: id.clone(), op: None, done: Done::Ended });
        }
    }

    /// Sets the timers of tasks that may run again without a manager.
    fn look_alone(&mut self, node: &NodeId) {
        let clock = self.node_clock();
        let Some(agent) = self.agents.get(node) else { return };
        let cut_off_in = (agent.lost_at + ALONE).saturating_sub(self.now);
        if matches!(agent.link, Link::Up { .. }) {
            return;
        }
        let mut timers = Vec::new();
        for (id, driven) in &agent.tasks {
            let record = &driven.record;
            let after = restart_after(&record.task, &record.status, &record.alone).filter(|_| driven.machine.can_restart());
            if let Some(after) = after {
                timers.push((id.clone(), wait(after, record.status.timestamp, clock).max(cut_off_in)));
            }
        }
        for (task, delay) in timers {
            self.agent_after(node, delay, Timer::Restart { task });
        }
    }

    fn restart_alone(&mut self, node: &NodeId, id: &TaskId) {
        let clock = self.node_clock();
        let Some(agent) = self.agents.get_mut(node) else { return };
        let alone = !matches!(agent.link, Link::Up { .. }) && self.now >= agent.lost_at + ALONE;
        let Some(driven) = agent.tasks.get_mut(id).filter(|_| alone) else { return };
        let record = &mut driven.record;
        let due = restart_after(&record.task, &record.status, &record.alone).filter(|_| driven.machine.can_restart());
        if due.is_none_or(|after| !wait(after, record.status.timestamp, clock).is_zero()) {
            return;
        }
        record.alone.note(clock);
        self.step(node, id, Step::Restart);
    }

    /// A node that begins to be on its own stops its tasks: a mutant only.
    pub fn panics_alone(&mut self, node: &NodeId) {
        let Some(agent) = self.agents.get(node).filter(|agent| agent.up && !matches!(agent.link, Link::Up { .. })) else { return };
        if self.now < agent.lost_at + ALONE {
            return;
        }
        let tasks: Vec<TaskId> = agent.tasks.keys().cloned().collect();
        for task in tasks {
            self.step(node, &task, Step::Desired(TaskState::Shutdown));
        }
    }
}
