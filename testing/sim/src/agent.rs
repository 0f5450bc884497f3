//! One node: its session, its tasks with their machines, and its disk. The agent's loops without `tokio`, under its own names; the
//! machine, the reports, the back-off and the restarts of an isolated node are the agent's own.

mod isolated; // tasks without a manager
mod leads; // where it leads connections
mod session; // with a manager
mod task; // one task, driven by its machine
mod worker; // the tasks it should have

pub use task::Done;

use crate::container::Container;
use crate::mutant::Mutant;
use crate::queue::Moment;
use crate::wire::{ConnId, Up};
use crate::world::{Event, World};
use leads::Leads;
use session::Link;
use skep_agent::pure::{Event as Step, Slots};
use skep_agent::{Backoff, Reports};
use skep_manager::pure::same_but_status;
use skep_types::{EngineDescription, NodeDescription, NodeId, Platform, Resources, Task, TaskId, TaskState, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use task::{Driven, Record};

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
    /// What was said of backends is in place, or could not be put there.
    Backends,
    /// A task that is to stop waited long enough; by the operation.
    StopLimit {
        task: TaskId,
        op: u64,
    },
    /// A task that ended may be started again without a manager.
    Restart {
        task: TaskId,
    },
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
    pub leads: Leads,
    slots: Slots,
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
            leads: Leads::default(),
            slots: Slots::default(),
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

    /// The task's container is being stopped, however long that takes.
    #[must_use]
    pub fn is_stopping(&self, id: &TaskId) -> bool {
        self.tasks.get(id).is_some_and(|driven| driven.stops)
    }

    /// The task's machine: the state observed, the wish, and whether it is to go.
    #[must_use]
    pub fn task(&self, id: &TaskId) -> Option<(TaskState, TaskState, bool)> {
        self.tasks.get(id).map(|driven| (driven.machine.state(), driven.machine.desired(), driven.record.unassigned))
    }

    /// The tasks it keeps a record of.
    pub fn tasks(&self) -> impl Iterator<Item = &TaskId> {
        self.tasks.keys()
    }

    fn conn(&self) -> Option<ConnId> {
        match &self.link {
            Link::None => None,
            Link::Registering { conn } | Link::Up { conn, .. } => Some(*conn),
        }
    }

    /// Its connection and session, if it has one.
    #[must_use]
    pub fn session_up(&self) -> Option<(ConnId, String)> {
        match &self.link {
            Link::Up { conn, session, .. } => Some((*conn, session.clone())),
            _ => None,
        }
    }

    fn save(&mut self, id: &TaskId) {
        if let Some(driven) = self.tasks.get(id) {
            self.disk.insert(id.clone(), driven.record.clone());
        }
    }
}

impl World {
    pub fn agent_after(&mut self, node: &NodeId, delay: Duration, timer: Timer) {
        let Some(agent) = self.agents.get(node) else { return };
        let event = Event::Agent { node: node.clone(), life: agent.life, timer };
        self.after(delay, event);
    }

    /// How long something takes on this node.
    pub fn takes(&mut self, node: &NodeId, millis: std::ops::Range<u64>) -> Duration {
        let time = self.dice.moment(millis);
        let (times, until) = self.agents.get(node).map_or((1, Moment::ZERO), |agent| agent.slow);
        if self.now < until { time * times } else { time }
    }

    /// The clocks of nodes are right.
    fn node_clock(&self) -> Timestamp {
        Timestamp::from_secs(1_800_000_000) + self.now
    }

    /// The process starts: it adopts what is there and looks for a manager.
    pub fn agent_starts(&mut self, node: &NodeId) {
        let mutant = self.mutant;
        let Some(agent) = self.agents.get_mut(node) else { return };
        agent.life += 1;
        agent.up = true;
        (agent.link, agent.session, agent.backoff, agent.lost_at) = (Link::None, String::new(), Backoff::default(), self.now);
        agent.reports = Reports::default();
        agent.tasks.clear();
        agent.slots = Slots::default();
        if mutant == Some(Mutant::AckBeforeDisk) {
            agent.disk.pop_last();
        }
        let assigned = agent.disk.iter().filter(|(_, record)| !record.unassigned);
        agent.told = assigned.map(|(id, record)| (id.clone(), Arc::clone(&record.task))).collect();
        let same = |kept: &BTreeMap<TaskId, Arc<Task>>| {
            kept.len() == agent.told.len()
                && kept.iter().all(|(id, task)| agent.told.get(id).is_some_and(|told| same_but_status(told, task)))
        };
        let no_strays = agent.containers.keys().all(|id| agent.disk.contains_key(id));
        let sound = |tasks| (no_strays && same(tasks)) || mutant == Some(Mutant::AckBeforeDisk);
        agent.applied = agent.kept.as_ref().filter(|(_, tasks)| sound(tasks)).map(|(name, _)| name.clone());
        let records: Vec<Record> = agent.disk.values().cloned().collect();
        for record in &records {
            agent.enter(record);
        }
        for record in records {
            let id = record.task.id.clone();
            self.begin_task(node, record);
            if mutant == Some(Mutant::StopsOnStart) {
                self.step(node, &id, Step::Desired(TaskState::Shutdown));
            }
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
            agent.leads.process_dies();
            agent.tasks.clear();
        }
    }

    /// The machine dies, and all that ran on it.
    pub fn host_dies(&mut self, node: &NodeId) {
        self.agent_dies(node);
        if let Some(agent) = self.agents.get_mut(node) {
            // A container's mount and its namespaces are gone with the kernel.
            agent.containers.clear();
            agent.leads.host_dies();
        }
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
            Timer::Backends => self.backends_done(node),
            Timer::StopLimit { task, op } => self.stop_limit(node, &task, op),
            Timer::Restart { task } => self.restart_alone(node, &task),
        }
    }
}
