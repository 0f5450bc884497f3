//! Operations of the scenario, carried out: by users through the leader, as the Control API does it, and by faults at once.

use crate::agent::{Agent, Done, Timer};
use crate::mutant::Mutant;
use crate::raft::{Answer, Proposer, Refused};
use crate::scenario::Op;
use crate::world::{Event, World, new_node};
use skep_store::View;
use skep_types::{
    Action, Availability, ClusterView as _, Kind, Node, NodeId, NodeState, Object, Service, ServiceId, ServiceMode, TaskId, Timestamp,
    UpdateOrder,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A user's wish that is not settled yet.
pub struct User {
    pub op: Op,
    tries: u32,
    /// What was proposed last.
    actions: Vec<Action>,
    /// It was answered: written, or refused for good.
    pub done: bool,
}

/// How often a user tries again after a refusal because of an old version, or without an answer.
const TRIES: u32 = 8;

impl World {
    pub fn begin_op(&mut self, index: usize) {
        let (_, op) = self.scenario.ops[index].clone();
        self.do_op(op);
    }

    pub fn do_op(&mut self, op: Op) {
        self.trace(|| format!("* {op:?}"));
        let is_joining =
            |user: &User| !user.done && matches!((&user.op, &op), (Op::AddNode { node: a }, Op::AddNode { node: b }) if a == b);
        if let Op::AddNode { node } = op
            && self.node(node).is_none()
            && !self.users.iter().any(is_joining)
        {
            self.leave(node); // removed, and nobody was told
        }
        let is_fault = self.fault(&op);
        if !is_fault {
            self.users.push(User { op, tries: 0, actions: Vec::new(), done: false });
            self.try_user(self.users.len() - 1);
        }
    }

    /// Asks the leader, if there is one.
    pub fn try_user(&mut self, attempt: usize) {
        let Some(user) = self.users.get_mut(attempt).filter(|user| !user.done) else { return };
        user.tries += 1;
        if user.tries > TRIES {
            user.done = true;
            return;
        }
        let op = user.op.clone();
        let mut leader = self.raft.leader.filter(|leader| self.managers[*leader].lead.is_some());
        if self.mutant == Some(Mutant::OldLeaderAnswers) {
            // It proposes, which leads to nothing, and does not wait for a majority.
            let old = (0..self.managers.len()).find(|manager| self.managers[*manager].lead.is_some() && Some(*manager) != self.raft.leader);
            leader = old.or(leader);
            if let Some(actions) =
                old.and_then(|old| actions_of(&op, &self.managers[old].view(), Timestamp::default(), &|number| self.id_of(number)))
            {
                self.watch.acknowledged(&actions);
                self.users[attempt].done = true;
                return;
            }
        }
        let Some(leader) = leader else { return self.after(Duration::from_secs(1), Event::Retry { attempt }) };
        let (view, now) = (self.managers[leader].view(), self.managers[leader].wall(self.now));
        match actions_of(&op, &view, now, &|number| self.id_of(number)) {
            Some(actions) => {
                self.users[attempt].actions.clone_from(&actions);
                let of_services = !matches!(op, Op::AddNode { .. } | Op::RemoveNode { .. });
                if self.mutant == Some(Mutant::EarlyAck) && of_services {
                    self.watch.acknowledged(&actions);
                    self.users[attempt].done = true;
                }
                self.propose(leader, Proposer::User { attempt }, view.version(), actions);
            }
            None => {
                self.users[attempt].done = true;
                // Perhaps an attempt that nobody answered was written.
                if let Op::AddNode { node } = op {
                    self.join(node);
                }
            }
        }
    }

    pub fn user_answered(&mut self, attempt: usize, answer: Answer) {
        let Some(user) = self.users.get_mut(attempt).filter(|user| !user.done) else { return };
        match answer {
            Ok(_) => {
                user.done = true;
                self.watch.acknowledged(&user.actions);
                match user.op {
                    Op::AddNode { node } => self.join(node),
                    Op::RemoveNode { node, .. } => self.leave(node),
                    _ => {}
                }
            }
            // What may have been done is looked at anew: most of it is then not there to be done again.
            Err(Refused::Stale(_) | Refused::Lost) => {
                let delay = self.dice.moment(10..500);
                self.after(delay, Event::Retry { attempt });
            }
        }
    }

    fn join(&mut self, number: u8) {
        let id = self.id_of(number);
        if !self.agents.contains_key(&id) {
            self.agents.insert(id.clone(), Agent::new(id.clone()));
            self.agent_starts(&id);
        }
    }

    /// Whoever was removed is switched off; who comes in its place has an id of its own.
    fn leave(&mut self, number: u8) {
        let id = self.id_of(number);
        *self.generations.entry(number).or_default() += 1;
        self.host_dies(&id);
        self.agents.remove(&id);
    }

    /// Faults happen at once; false if it is not one.
    fn fault(&mut self, op: &Op) -> bool {
        let generations = self.generations.clone();
        let node_of = |number: &u8| id_of(&generations, *number);
        let manager_of = |number: &u8| usize::from(*number).min(self.managers.len() - 1);
        let now = self.now;
        match op {
            Op::CrashAgent { node, millis } | Op::CrashHost { node, millis } => {
                let id = node_of(node);
                if self.agents.get(&id).is_some_and(|agent| agent.up) {
                    if matches!(op, Op::CrashHost { .. }) {
                        self.host_dies(&id)
                    } else {
                        self.agent_dies(&id)
                    }
                    self.after(Duration::from_millis(*millis), Event::AgentUp { node: id });
                }
            }
            Op::Cut { node, millis } => self.wire.cut(&node_of(node), now + Duration::from_millis(*millis)),
            Op::CutFrom { node, manager, millis } => {
                let manager = manager_of(manager);
                self.wire.cut_from(&node_of(node), manager, now + Duration::from_millis(*millis));
            }
            Op::Break { node } => self.session_lost(&node_of(node)),
            Op::Slow { node, times, millis } => {
                if let Some(agent) = self.agents.get_mut(&node_of(node)) {
                    agent.slow = (u32::from(*times).max(1), now + Duration::from_millis(*millis));
                }
            }
            Op::CrashManager { manager, millis } => {
                let manager = manager_of(manager);
                self.crash_manager(manager, Duration::from_millis(*millis));
            }
            Op::Isolate { manager, millis } => {
                let manager = manager_of(manager);
                self.wire.isolate(manager, now + Duration::from_millis(*millis));
                self.lose_leader(manager);
                self.after(Duration::from_millis(*millis), Event::Elect { wanted: None });
            }
            Op::Elect { manager } => {
                let manager = manager_of(manager);
                self.after(Duration::ZERO, Event::Elect { wanted: Some(manager) });
            }
            Op::Lag { manager, millis } => {
                let manager = manager_of(manager);
                self.managers[manager].lags_until = now + Duration::from_millis(*millis);
            }
            Op::Jump { manager, seconds } => {
                let manager = manager_of(manager);
                // The clock shows so much more or less than the right one.
                self.managers[manager].skew = seconds * 1_000_000_000;
                self.watch.patience.jumped = now;
            }
            Op::Flaky { percent, millis } => self.flaky = (*percent, now + Duration::from_millis(*millis)),
            Op::Kill { which } | Op::Sicken { which } => self.harm(*which, matches!(op, Op::Sicken { .. })),
            _ => return false,
        }
        true
    }

    /// Something happens to one of the containers that run.
    fn harm(&mut self, which: u8, sick: bool) {
        let fits = |container: &&crate::container::Container| container.alive && (!sick || container.checked);
        let all: Vec<(NodeId, TaskId)> = self
            .agents
            .iter()
            .flat_map(|(node, agent)| agent.containers.values().filter(fits).map(|container| (node.clone(), container.task.clone())))
            .collect();
        if all.is_empty() {
            return;
        }
        let (node, task) = all[usize::from(which) % all.len()].clone();
        if sick {
            let life = self.agents[&node].life;
            if let Some(container) = self.agents.get_mut(&node).and_then(|agent| agent.containers.get_mut(&task)) {
                container.sick = true;
            }
            self.after(Duration::ZERO, Event::Agent { node, life, timer: Timer::Task { task, op: None, done: Done::Sick } });
        } else {
            self.exits(&node, &task, None, 137);
        }
    }

    /// Faults stop: everything works and everybody can reach everybody.
    pub fn heal(&mut self) {
        self.healed = true;
        self.wire.heal();
        self.flaky = (0, self.now);
        for agent in self.agents.values_mut() {
            agent.slow = (1, self.now);
        }
        for manager in 0..self.managers.len() {
            self.managers[manager].lags_until = self.now;
            self.after(Duration::ZERO, Event::ManagerUp { manager });
        }
        self.after(Duration::ZERO, Event::Elect { wanted: None });
        let nodes: Vec<NodeId> = self.agents.keys().cloned().collect();
        for node in nodes {
            self.after(Duration::ZERO, Event::AgentUp { node });
        }
    }

    /// What users do when faults have stopped: nodes are there and take tasks, updates that were paused are begun anew.
    pub fn tidy(&mut self) {
        let view = self.raft.view();
        let gone: Vec<NodeId> = self.agents.keys().filter(|node| view.node(node).is_none()).cloned().collect();
        for node in gone {
            // Whoever was removed is switched off, and somebody new comes in its place.
            self.host_dies(&node);
            self.agents.remove(&node);
        }
        for number in 0..self.scenario.nodes {
            let zone = number % 2;
            let ops = match self.node(number) {
                Some(_) => vec![Op::Zone { node: number, zone }, Op::Active { node: number }],
                None => vec![Op::AddNode { node: number }],
            };
            ops.into_iter().for_each(|op| self.do_op(op));
        }
        let stuck = |service: &&Arc<Service>| crate::desired::is_paused(service);
        let services: Vec<u8> = view.services().filter(stuck).filter_map(|service| service.name()[1..].parse().ok()).collect();
        for service in services {
            self.do_op(Op::Force { service });
        }
    }
}

fn id_of(generations: &BTreeMap<u8, u64>, number: u8) -> NodeId {
    NodeId::for_test(u64::from(number) + 1 + 100 * generations.get(&number).copied().unwrap_or(0))
}

impl World {
    /// The node that has this number in the scenario now.
    #[must_use]
    pub fn id_of(&self, number: u8) -> NodeId {
        id_of(&self.generations, number)
    }

    /// The same, if the cluster has it.
    #[must_use]
    pub fn node(&self, number: u8) -> Option<NodeId> {
        self.raft.truth.node(&self.id_of(number)).map(|node| node.id.clone())
    }
}

fn service_named(view: &View, number: u8) -> Option<&Arc<Service>> {
    view.service_by_name(&format!("s{number}"))
}

/// What the Control API would propose; `None`: nothing, or it refuses.
fn actions_of(op: &Op, view: &View, now: Timestamp, id_of: &dyn Fn(u8) -> NodeId) -> Option<Vec<Action>> {
    let service = |number: &u8| service_named(view, *number);
    let write = |service: Service| Some(vec![Action::Update(Object::Service(Arc::new(service)))]);
    let node = |number: &u8, change: &dyn Fn(&mut Node)| {
        let mut node = Node::clone(view.node(&id_of(*number))?);
        change(&mut node);
        Some(vec![Action::Update(Object::Node(Arc::new(node)))])
    };
    let available = |number: &u8, availability: Availability, order: UpdateOrder| {
        node(number, &|node| (node.spec.availability, node.spec.drain_order) = (availability, order))
    };
    match op {
        Op::Create { service: number, wish } => {
            let id = ServiceId::for_test(10_000 * (view.version().0 + 1) + u64::from(*number));
            let spec = wish.spec(*number, wish.service_mode());
            let new = skep_plan::new_service(id, spec, now);
            service(number).is_none().then(|| vec![Action::Create(Object::Service(Arc::new(new)))])
        }
        Op::Update { service: number, wish } => {
            let before = service(number)?;
            let same_kind = std::mem::discriminant(&before.spec.mode) == std::mem::discriminant(&wish.service_mode());
            let mode = match &before.spec.mode {
                _ if same_kind => wish.service_mode(),
                // Tasks that need a place of their own are not more than there are places.
                ServiceMode::Replicated { replicas } if wish.is_tight() => ServiceMode::Replicated { replicas: (*replicas).min(2) },
                mode => mode.clone(),
            };
            write(skep_plan::updated(before, wish.spec(*number, mode), before.meta.version, now))
        }
        Op::Scale { service: number, replicas } => {
            let before = service(number).filter(|service| matches!(service.spec.mode, ServiceMode::Replicated { .. }))?;
            // Tasks that need a place of their own are not more than there are places.
            let tight =
                before.spec.endpoint.is_some() || before.spec.task.placement.as_ref().is_some_and(|placement| placement.max_replicas > 0);
            let replicas = if tight { (*replicas).min(2) } else { *replicas };
            let mut spec = before.spec.clone();
            spec.mode = ServiceMode::Replicated { replicas };
            write(skep_plan::updated(before, spec, before.meta.version, now))
        }
        Op::Force { service: number } => {
            let before = service(number)?;
            let mut spec = before.spec.clone();
            Arc::make_mut(&mut spec.task).force_update += 1;
            write(skep_plan::updated(before, spec, before.meta.version, now))
        }
        Op::Rollback { service: number } => write(skep_plan::rolled_back_by_user(service(number)?, now)?),
        Op::Remove { service: number } => {
            let id = service(number)?.id.to_string();
            Some(vec![Action::Remove { kind: Kind::Service, id, version: None }])
        }
        Op::Active { node: number } => available(number, Availability::Active, UpdateOrder::StopFirst),
        Op::Pause { node: number } => available(number, Availability::Pause, UpdateOrder::StopFirst),
        Op::Drain { node: number } => available(number, Availability::Drain, UpdateOrder::StopFirst),
        Op::DrainInPlace { node: number } => available(number, Availability::Drain, UpdateOrder::StartFirst),
        Op::Zone { node: number, zone } => node(number, &|node| {
            node.spec.annotations.labels.insert("zone".into(), zone.to_string());
        }),
        Op::RemoveNode { node: number, force } => {
            let id = id_of(*number);
            let up = view.node(&id)?.status.state == NodeState::Ready;
            if up && !force {
                return None;
            }
            skep_manager::pure::removal(view, &id, None, now)
        }
        Op::AddNode { node: number } => {
            let id = id_of(*number);
            view.node(&id).is_none().then(|| vec![Action::Create(Object::Node(Arc::new(new_node(&id, number % 2))))])
        }
        Op::History { limit } => {
            let mut cluster = view.cluster()?.clone();
            Arc::make_mut(&mut cluster).spec.task_history_retention_limit = *limit;
            Some(vec![Action::Update(Object::Cluster(cluster))])
        }
        _ => None,
    }
}
