//! Everything together: what happens next, and what it does.

use crate::agent::{Agent, Timer};
use crate::dispatcher::Dispatcher;
use crate::driver::Driver;
use crate::manager::{Lead, Manager};
use crate::mutant::Mutant;
use crate::numbered::ByNode;
use crate::queue::{Moment, Queue};
use crate::raft::{Entry, Proposal, Proposer, Raft, Refused, brief};
use crate::scenario::Scenario;
use crate::spec::NETWORK;
use crate::user::User;
use crate::watch::Watch;
use crate::wire::{ConnId, Wire};
use skep_kit::Dice;
use skep_store::{Commit, Transaction};
use skep_types::{
    Action, Annotations, Cluster, ClusterId, IpamConfig, IpamOptions, Membership, Network, NetworkId, NetworkSpec, Node, NodeId, Object,
    TaskId, Version,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What is to happen.
#[derive(Debug, Clone)]
pub enum Event {
    /// An operation of the scenario, by its place.
    Op(usize),
    /// The user tries again.
    Retry {
        attempt: usize,
    },
    /// The entry that is being written is on a majority's disks.
    Commit {
        term: u64,
    },
    /// A follower applies what it has.
    Apply {
        manager: usize,
    },
    /// Somebody has to be elected.
    Elect {
        wanted: Option<usize>,
    },
    /// A leader of old notices that nobody answers it.
    StepDown {
        manager: usize,
        term: u64,
    },
    ManagerUp {
        manager: usize,
    },
    Drive {
        manager: usize,
        term: u64,
        sleep: Option<u64>,
    },
    Expire {
        manager: usize,
        term: u64,
    },
    Tell {
        manager: usize,
        term: u64,
        node: NodeId,
    },
    TellBackends {
        manager: usize,
        term: u64,
        node: NodeId,
    },
    Wire {
        conn: ConnId,
        lane: (bool, u8),
    },
    Agent {
        node: NodeId,
        life: u64,
        timer: Timer,
    },
    AgentUp {
        node: NodeId,
    },
    Exit {
        node: NodeId,
        task: TaskId,
        since: Moment,
        code: i32,
    },
    /// Once a second: what takes its time to be wrong.
    Check,
}

pub struct World {
    pub now: Moment,
    pub queue: Queue<Event>,
    pub dice: Dice,
    /// For what nodes lead connections to: the rest of a run does not depend on how often it is thrown.
    pub backend_dice: Dice,
    pub scenario: Scenario,
    pub raft: Raft,
    pub managers: Vec<Manager>,
    pub agents: ByNode<Agent>,
    pub wire: Wire,
    pub users: Vec<User>,
    /// How often a node of a number was removed.
    pub generations: BTreeMap<u8, u64>,
    pub watch: Watch,
    pub mutant: Option<Mutant>,
    /// So many of a hundred operations on containers fail, until then.
    pub flaky: (u8, Moment),
    /// Faults have stopped.
    pub healed: bool,
    /// Where the deadlines of the dispatcher's code begin; only differences matter.
    pub base: Instant,
    pub events: u64,
    /// What happened, if somebody wants to read it.
    pub lines: Option<Vec<String>>,
}

/// An election takes so long, in milliseconds.
const ELECTION: std::ops::Range<u64> = 200..2_500;

impl World {
    #[must_use]
    pub fn new(scenario: &Scenario, mutant: Option<Mutant>, traced: bool) -> Self {
        let managers = (0..usize::from(scenario.managers.max(1))).map(Manager::new).collect();
        let agents: ByNode<_> =
            (1..=u64::from(scenario.nodes.max(1))).map(NodeId::for_test).map(Agent::new).map(|agent| (agent.id.clone(), agent)).collect();
        let mut this = Self {
            now: Moment::ZERO,
            queue: Queue::default(),
            dice: Dice::of_seed(scenario.seed ^ 0x5eed),
            backend_dice: Dice::of_seed(scenario.seed ^ 0xbac_0000),
            scenario: scenario.clone(),
            raft: Raft::default(),
            managers,
            agents,
            wire: Wire::default(),
            users: Vec::new(),
            generations: BTreeMap::new(),
            watch: Watch::new(scenario.is_calm()),
            mutant,
            flaky: (0, Moment::ZERO),
            healed: false,
            base: Instant::now(),
            events: 0,
            lines: traced.then(Vec::new),
        };
        let nodes: Vec<NodeId> = this.agents.keys().cloned().collect();
        let now = this.managers[0].wall(Moment::ZERO);
        let actions = first_objects(&nodes, scenario.addresses());
        let by = Proposer::User { attempt: usize::MAX };
        this.raft.commit(Entry {
            proposals: vec![Proposal { by, at: Moment::ZERO, seen: Version::default(), transaction: Transaction { now, actions } }],
        });
        for manager in 0..this.managers.len() {
            this.catch_up(manager);
        }
        for node in nodes {
            this.agent_starts(&node);
        }
        this.queue.put(Moment::ZERO, Event::Elect { wanted: None });
        this.queue.put(Duration::from_secs(1), Event::Check);
        for (index, (at, _)) in scenario.ops.iter().enumerate() {
            this.queue.put(Duration::from_millis(*at), Event::Op(index));
        }
        this
    }

    pub fn after(&mut self, delay: Duration, event: Event) {
        self.queue.put(self.now + delay, event);
    }

    /// Adds a line to the trace, if there is one.
    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>9.3} {}", self.now.as_secs_f64(), line()));
        }
    }

    /// The next event. False if something that must hold does not.
    pub fn happen(&mut self) -> bool {
        let Some((at, event)) = self.queue.take() else { return true };
        self.now = self.now.max(at);
        self.events += 1;
        match event {
            Event::Op(index) => self.begin_op(index),
            Event::Retry { attempt } => self.try_user(attempt),
            Event::Commit { term } => self.commit_entry(term),
            Event::Apply { manager } => self.follow(manager),
            Event::Elect { wanted } => self.elect(wanted),
            Event::StepDown { manager, term } => self.step_down(manager, term),
            Event::ManagerUp { manager } => self.manager_up(manager),
            Event::Drive { manager, term, sleep } if self.leads(manager, term) => self.drive(manager, sleep),
            Event::Expire { manager, term } if self.leads(manager, term) => self.expire(manager),
            Event::Tell { manager, term, node } if self.leads(manager, term) => self.tell(manager, &node),
            Event::TellBackends { manager, term, node } if self.leads(manager, term) => self.tell_backends(manager, &node),
            Event::Drive { .. } | Event::Expire { .. } | Event::Tell { .. } | Event::TellBackends { .. } => {}
            Event::Wire { conn, lane } => self.arrive(conn, lane),
            Event::Agent { node, life, timer } => self.agent_due(&node, life, timer),
            Event::AgentUp { node } => {
                if self.agents.get(&node).is_some_and(|agent| !agent.up) {
                    self.agent_starts(&node);
                }
            }
            Event::Exit { node, task, since, code } => self.exits(&node, &task, Some(since), code),
            Event::Check => self.check_slowly(),
        }
        self.watch.violation.is_none()
    }

    fn leads(&self, manager: usize, term: u64) -> bool {
        self.managers[manager].lead.as_ref().is_some_and(|lead| lead.term == term)
    }

    /// Something is to be written, by who believes to lead, decided on what it had `seen`.
    pub fn propose(&mut self, manager: usize, by: Proposer, seen: Version, actions: Vec<Action>) {
        if self.raft.leader != Some(manager) {
            // Nobody answers a leader of old; it is told when it steps down.
            return;
        }
        let now = self.managers[manager].wall(self.now);
        self.raft.waiting.push_back(Proposal { by, at: self.now, seen, transaction: Transaction { now, actions } });
        self.write_entry();
    }

    /// Begins to write what waits, if a majority is there. Also looked at now and then: nobody tells when it is there again.
    pub fn write_entry(&mut self) {
        let Some(leader) = self.raft.leader else { return };
        if self.has_majority(leader) && self.raft.begin_entry() {
            let delay = self.dice.moment(1..12);
            let term = self.raft.term;
            self.after(delay, Event::Commit { term });
        }
    }

    fn reaches_peers(&self, manager: usize) -> bool {
        self.managers[manager].up && !self.wire.is_isolated(manager, self.now)
    }

    pub fn has_majority(&self, manager: usize) -> bool {
        let others = (0..self.managers.len()).filter(|other| *other != manager && self.reaches_peers(*other)).count();
        let alone = self.managers.len() == 1;
        self.managers[manager].up && (alone || (self.reaches_peers(manager) && 2 * (others + 1) > self.managers.len()))
    }

    fn commit_entry(&mut self, term: u64) {
        let Some(leader) = self.raft.leader.filter(|_| term == self.raft.term) else { return };
        if !self.has_majority(leader) {
            return self.after(Duration::from_millis(50), Event::Commit { term });
        }
        let Some(entry) = self.raft.in_flight.take() else { return };
        self.settle_entry(entry);
        self.catch_up(leader);
        for manager in (0..self.managers.len()).filter(|manager| *manager != leader) {
            let delay = self.dice.moment(0..60);
            self.after(delay, Event::Apply { manager });
        }
        self.write_entry();
    }

    /// An entry is in the log for good.
    fn settle_entry(&mut self, mut entry: Entry) {
        if let Some(mutant) = self.mutant {
            mutant.spoil_entry(&mut entry, &self.raft.truth);
        }
        for proposal in &entry.proposals {
            let (by, actions) = (proposal.by, &proposal.transaction.actions);
            if self.lines.is_some() {
                let line = format!("{by:?}: {}", brief(actions));
                self.trace(|| line);
            }
        }
        let before = self.raft.view();
        let done = self.raft.commit(entry);
        let after = self.raft.view();
        self.watch.committed(&done, &before, &after, self.now);
    }

    fn follow(&mut self, manager: usize) {
        let host = &self.managers[manager];
        if !host.up || host.applied == self.raft.log.len() {
            return;
        }
        if self.now < host.lags_until || !self.reaches_peers(manager) {
            return self.after(Duration::from_millis(100), Event::Apply { manager });
        }
        self.catch_up(manager);
    }

    /// Applies all that was committed.
    pub fn catch_up(&mut self, manager: usize) {
        while self.managers[manager].applied < self.raft.log.len() {
            let index = self.managers[manager].applied;
            let mut entry = Arc::clone(&self.raft.log[index]);
            if let Some(mutant) = self.mutant {
                mutant.spoil_apply(manager, index, &mut entry, &self.raft.log);
            }
            let forget = self.mutant == Some(Mutant::TrailGap) && index.is_multiple_of(5);
            let applied = self.managers[manager].apply(&entry, forget, self.now);
            self.compare(manager, index, &applied.commits);
            for commit in &applied.commits {
                if let Some(lead) = &mut self.managers[manager].lead {
                    lead.driver.note(commit);
                }
                self.route(manager, commit);
                self.route_backends(manager, commit);
            }
            if let Some(term) = self.managers[manager].lead.as_ref().map(|lead| lead.term)
                && !applied.commits.is_empty()
            {
                let delay = self.dice.moment(0..3);
                self.after(delay, Event::Drive { manager, term, sleep: None });
            }
            for (by, answer) in applied.answers {
                match by {
                    Proposer::Driver { manager: of, term } if of == manager && self.leads(of, term) => self.draft_answered(of, answer),
                    Proposer::Writer { manager: of, term } if of == manager && self.leads(of, term) => self.reports_answered(of, answer),
                    Proposer::User { attempt } if self.raft.leader == Some(manager) => self.user_answered(attempt, answer),
                    _ => {}
                }
            }
        }
    }

    /// I20: after the same entries all managers have the same tables: each entry does with all what it did with the log's own, and now
    /// and then everything is compared.
    fn compare(&mut self, manager: usize, index: usize, commits: &[Arc<Commit>]) {
        let Manager { applied, tables, .. } = &self.managers[manager];
        let is_alike = self.raft.is_done_alike(index, commits.iter().map(|commit| &**commit));
        if !is_alike || (applied.is_multiple_of(128) && !self.raft.is_state(tables)) {
            let words = format!("manager {manager} has other tables than the log says after {applied} entries");
            self.watch.fail("I20", words);
        }
    }

    /// Ends the present leadership, if there is one, and chooses who leads next.
    pub fn elect(&mut self, wanted: Option<usize>) {
        let able: Vec<usize> = (0..self.managers.len()).filter(|manager| self.has_majority(*manager)).collect();
        if able.is_empty() {
            return self.after(Duration::from_secs(1), Event::Elect { wanted });
        }
        let term = self.raft.term;
        if wanted.is_none() && self.raft.leader.is_some_and(|leader| able.contains(&leader) && self.leads(leader, term)) {
            return;
        }
        let leader = wanted.filter(|wanted| able.contains(wanted)).unwrap_or_else(|| self.dice.one_of(able));
        self.depose();
        self.raft.term += 1;
        self.raft.leader = Some(leader);
        let term = self.raft.term;
        self.trace(|| format!("manager {leader} leads in term {term}"));
        self.catch_up(leader);
        let (view, wall) = (self.managers[leader].view(), self.managers[leader].wall(self.now));
        let freed = self.managers[leader].freed.lately(self.now);
        let driver = Driver::new(&view, wall, self.now, &freed);
        let dispatcher = Dispatcher::new(&view, self.base, self.now);
        self.managers[leader].lead = Some(Lead { term, driver, dispatcher });
        self.after(Duration::ZERO, Event::Drive { manager: leader, term, sleep: None });
        self.after(Duration::from_millis(500), Event::Expire { manager: leader, term });
        for manager in 0..self.managers.len() {
            self.after(Duration::from_millis(20), Event::Apply { manager });
        }
    }

    /// Nobody leads. What was being written is committed by the next leader, or lost.
    fn depose(&mut self) {
        let Some(leader) = self.raft.leader.take() else { return };
        let term = self.raft.term;
        if let Some(entry) = self.raft.in_flight.take() {
            let users: Vec<usize> = users_of(&entry);
            if self.dice.coin() {
                self.settle_entry(entry);
            }
            for attempt in users {
                self.user_answered(attempt, Err(Refused::Lost));
            }
        }
        for proposal in std::mem::take(&mut self.raft.waiting) {
            if let Proposer::User { attempt } = proposal.by {
                self.user_answered(attempt, Err(Refused::Lost));
            }
        }
        if self.reaches_peers(leader) {
            self.step_down(leader, term);
        } else {
            // It hears of it later, and until then believes that it leads.
            let delay = self.dice.moment(500..3_000);
            self.after(delay, Event::StepDown { manager: leader, term });
        }
    }

    fn step_down(&mut self, manager: usize, term: u64) {
        if !self.leads(manager, term) {
            return;
        }
        self.managers[manager].lead = None;
        for conn in self.wire.of(None, None).into_iter().chain(self.conns()) {
            self.down(conn, crate::wire::Down::Refused);
        }
    }

    /// All agents' connections: the sessions of a leader that is no more end, wherever they come in.
    fn conns(&self) -> Vec<ConnId> {
        (0..self.managers.len()).flat_map(|manager| self.wire.of(None, Some(manager))).collect()
    }

    pub fn crash_manager(&mut self, manager: usize, downtime: Duration) {
        if !std::mem::replace(&mut self.managers[manager].up, false) {
            return;
        }
        if self.mutant == Some(Mutant::LostTail) && self.raft.leader == Some(manager) {
            self.raft.lose_tail();
            self.watch.rewound(&self.raft.view());
        }
        self.managers[manager].lead = None;
        for conn in self.wire.of(None, Some(manager)) {
            let node = self.wire.node(conn);
            self.wire.close(conn);
            self.session_lost(&node);
        }
        self.lose_leader(manager);
        self.after(downtime, Event::ManagerUp { manager });
    }

    /// If it was the leader, somebody else is elected after a while.
    pub fn lose_leader(&mut self, manager: usize) {
        if self.raft.leader == Some(manager) && !self.has_majority(manager) || self.raft.leader.is_none() {
            let delay = self.dice.moment(ELECTION);
            self.after(delay, Event::Elect { wanted: None });
        }
    }

    fn manager_up(&mut self, manager: usize) {
        if !self.managers[manager].up {
            let now = self.now;
            self.managers[manager].restart(now);
            self.after(Duration::from_millis(20), Event::Apply { manager });
            // Alone it has nobody to lead it.
            self.after(Duration::from_millis(200), Event::Elect { wanted: None });
        }
    }
}

fn users_of(entry: &Entry) -> Vec<usize> {
    let user = |proposal: &Proposal| match proposal.by {
        Proposer::User { attempt } => Some(attempt),
        _ => None,
    };
    entry.proposals.iter().filter_map(user).collect()
}

/// What a cluster is born with.
fn first_objects(nodes: &[NodeId], addresses: u64) -> Vec<Action> {
    let network = |number, name: &str, ingress| {
        let annotations = Annotations { name: name.into(), ..Annotations::default() };
        // So small that addresses are given again: 30 or 62 of them, in large clusters as many as are needed.
        let bits = (addresses + 2).next_power_of_two().trailing_zeros();
        let length = 32 - bits.max(if addresses <= 30 { 5 } else { 6 });
        let subnet = IpamConfig { subnet: format!("10.{number}.0.0/{length}"), ..IpamConfig::default() };
        let ipam = Some(IpamOptions { configs: vec![subnet], ..IpamOptions::default() });
        let spec = NetworkSpec { annotations, ingress, ipam, ..NetworkSpec::default() };
        Object::Network(Arc::new(Network::new(NetworkId::for_test(number), spec)))
    };
    let mut objects =
        vec![Object::Cluster(Arc::new(Cluster::new(ClusterId::for_test(1)))), network(1, "ingress", true), network(2, NETWORK, false)];
    objects.extend(nodes.iter().enumerate().map(|(index, id)| Object::Node(Arc::new(new_node(id, (index % 2) as u8)))));
    objects.into_iter().map(Action::Create).collect()
}

/// A node that may join, in a zone.
#[must_use]
pub fn new_node(id: &NodeId, zone: u8) -> Node {
    let mut node = Node::new(id.clone());
    node.spec.membership = Membership::Accepted;
    node.spec.annotations.labels.insert("zone".into(), zone.to_string());
    node
}
