//! What really runs on the nodes of a run, whatever anybody believes.

use crate::agent::{Done, Timer};
use crate::queue::Moment;
use crate::world::{Event, World};
use skep_agent::pure::{Outcome, Recovered};
use skep_types::{ContainerStatus, HealthConfig, NetworkId, NodeId, PortConfig, PublishMode, ServiceId, Task, TaskId};
use std::time::Duration;

/// One container of one node.
#[derive(Debug, Clone)]
pub struct Container {
    pub task: TaskId,
    pub service: Option<ServiceId>,
    pub slot: u64,
    /// Started and not ended.
    pub alive: bool,
    pub since: Moment,
    /// Ended by itself.
    pub outcome: Option<Outcome>,
    /// Ports of the node.
    pub ports: Vec<PortConfig>,
    /// (network, address)
    pub addresses: Vec<(NetworkId, String)>,
    pub is_job: bool,
    pub checked: bool,
    /// Its health check fails.
    pub sick: bool,
    pub grace: Duration,
    /// So many of a hundred fail.
    pub bad: u64,
}

impl Container {
    /// Prepared, not started.
    #[must_use]
    pub fn of(task: &Task) -> Self {
        let spec = task.spec.container().cloned().unwrap_or_default();
        let number = |name: &str| {
            let value = spec.env.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
        };
        let ports = task.endpoint.iter().flat_map(|endpoint| &endpoint.spec.ports);
        let networks = task.networks.iter();
        Self {
            task: task.id.clone(),
            service: task.service_id.clone(),
            slot: task.slot,
            alive: false,
            since: Moment::ZERO,
            outcome: None,
            ports: ports.filter(|port| port.publish_mode == PublishMode::Host).cloned().collect(),
            addresses: networks
                .flat_map(|attached| attached.addresses.iter().map(|address| (attached.network.id.clone(), address.clone())))
                .collect(),
            is_job: task.job_iteration.is_some(),
            checked: number("CHECKED") > 0,
            sick: false,
            grace: spec.stop_grace_period.unwrap_or(Duration::from_secs(10)),
            bad: number("BAD"),
        }
    }

    #[must_use]
    pub fn status(&self) -> ContainerStatus {
        ContainerStatus { container_id: format!("c{}", self.task), pid: 1, exit_code: 0 }
    }

    #[must_use]
    pub fn health(&self) -> Option<HealthConfig> {
        self.checked.then(|| HealthConfig { test: vec!["CMD".into(), "true".into()], ..HealthConfig::default() })
    }

    /// What an agent finds of it when it starts.
    #[must_use]
    pub fn found(&self) -> Recovered {
        match &self.outcome {
            _ if self.alive => Recovered::Running { container: self.status(), healthcheck: self.checked },
            Some(outcome) => Recovered::Ended(outcome.clone()),
            None => Recovered::Remains,
        }
    }
}

impl World {
    /// How long a container lives is settled when it starts.
    pub fn container_starts(&mut self, node: &NodeId, id: &TaskId) {
        let Some(container) = self.agents.get(node).and_then(|agent| agent.containers.get(id)).cloned() else { return };
        self.check_start(node, &container);
        self.check_location(node, id, &container.addresses);
        if let Some(agent) = self.agents.get_mut(node).filter(|_| !container.addresses.is_empty()) {
            agent.leads.attach(id);
        }
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
}
