//! The services that users of a run make: small wishes, and the specs they become.

use serde::{Deserialize, Serialize};
use skep_kit::Dice;
use skep_types::{
    Annotations, ContainerSpec, EndpointSpec, FailureAction, NetworkAttachmentConfig, Placement, PortConfig, PublishMode,
    ResourceRequirements, Resources, RestartCondition, RestartPolicy, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
};
use std::sync::Arc;
use std::time::Duration;

/// Which kind of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    Replicated,
    Global,
    Job,
    GlobalJob,
}

/// How a change is rolled out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Roll {
    pub parallelism: u64,
    pub start_first: bool,
    pub delay: u64,
    pub monitor: u64,
    /// 0 pause, 1 continue, 2 rollback.
    pub failure: u8,
    pub ratio: f32,
}

/// What a user wants of a service. The mode is settled by the first one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wish {
    pub mode: Mode,
    pub replicas: u64,
    pub image: u8,
    pub update: Option<Roll>,
    pub rollback: Option<Roll>,
    /// Restart delay in seconds; `None` = no policy.
    pub delay: Option<u64>,
    /// Only nodes of this zone.
    pub zone: Option<u8>,
    /// A port of every node that runs a task.
    pub host_port: Option<u32>,
    /// A port that all nodes answer.
    pub ingress_port: Option<u32>,
    pub network: bool,
    pub max_per_node: u64,
    pub memory_mib: i64,
    /// There is a health check.
    pub checked: bool,
    pub grace: u64,
    /// So many of a hundred containers of this image end with an error soon after they start, until faults stop.
    pub bad: u8,
}

impl Roll {
    fn draw(dice: &mut Dice, start_first: bool) -> Self {
        Self {
            parallelism: dice.roll(4),
            start_first,
            delay: dice.one_of([0, 0, 1, 3]),
            monitor: dice.one_of([0, 1, 5]),
            failure: dice.one_of([0, 1, 2]),
            ratio: dice.one_of([0.0, 0.0, 0.5]),
        }
    }

    fn config(&self) -> UpdateConfig {
        UpdateConfig {
            parallelism: self.parallelism,
            delay: Duration::from_secs(self.delay),
            failure_action: [FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback][usize::from(self.failure % 3)],
            monitor: Some(Duration::from_secs(self.monitor)),
            max_failure_ratio: self.ratio,
            order: if self.start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst },
        }
    }
}

impl Wish {
    #[must_use]
    pub fn draw(dice: &mut Dice, nodes: u8) -> Self {
        let mode =
            dice.one_of([Mode::Replicated, Mode::Replicated, Mode::Replicated, Mode::Replicated, Mode::Global, Mode::Job, Mode::GlobalJob]);
        let zone = (dice.roll(4) == 0 && nodes >= 4).then(|| u8::try_from(dice.roll(2)).expect("0 or 1"));
        // As many as have a place for sure: two of four nodes are in a zone.
        let room = if zone.is_some() { 2 } else { u64::from(nodes) };
        let host_port = (dice.roll(4) == 0).then_some(8_000);
        let tight = host_port.is_some() || dice.roll(4) == 0;
        // A new task beside the old one needs a place of its own.
        let start_first = !tight && dice.coin();
        let update = dice.coin().then(|| Roll::draw(dice, start_first));
        let rollback = dice.coin().then(|| Roll::draw(dice, start_first));
        Self {
            mode,
            replicas: if tight { 1 + dice.roll(room) } else { 1 + dice.roll(6) },
            image: u8::try_from(dice.roll(3)).expect("below 3"),
            update,
            rollback,
            delay: dice.one_of([None, Some(0), Some(1), Some(3)]),
            zone,
            host_port,
            ingress_port: (dice.roll(4) == 0).then_some(0),
            network: dice.coin(),
            max_per_node: u64::from(tight && host_port.is_none()),
            memory_mib: dice.one_of([0, 0, 256, 512]),
            checked: dice.roll(3) == 0,
            grace: dice.one_of([1, 2, 10]),
            bad: dice.one_of([0, 0, 0, 0, 30, 100]),
        }
    }

    /// On the network, and all tasks are replaced at once.
    #[must_use]
    pub fn to_renew() -> Self {
        let at_once = Roll { parallelism: 0, start_first: false, delay: 0, monitor: 0, failure: 1, ratio: 0.0 };
        Self {
            mode: Mode::Replicated,
            replicas: 6,
            image: 0,
            update: Some(at_once),
            rollback: None,
            delay: Some(0),
            zone: None,
            host_port: None,
            ingress_port: None,
            network: true,
            max_per_node: 0,
            memory_mib: 0,
            checked: false,
            grace: 1,
            bad: 0,
        }
    }

    /// The spec of service number `service`; its host port is its own, so that services do not take each other's place.
    #[must_use]
    pub fn spec(&self, service: u8, mode: ServiceMode) -> ServiceSpec {
        let is_job = mode.is_job();
        let mut ports = Vec::new();
        if let Some(port) = self.host_port {
            let published_port = port + u32::from(service);
            ports.push(PortConfig { target_port: 80, published_port, publish_mode: PublishMode::Host, ..PortConfig::default() });
        }
        if let Some(published_port) = self.ingress_port.filter(|_| !is_job) {
            ports.push(PortConfig { target_port: 81, published_port, publish_mode: PublishMode::Ingress, ..PortConfig::default() });
        }
        let constraints = self.zone.iter().map(|zone| format!("node.labels.zone == {zone}")).collect();
        let reservations = Resources { memory_bytes: self.memory_mib << 20, ..Resources::default() };
        let container = ContainerSpec {
            image: format!("web:{}", self.image),
            // Read by the containers of this world.
            env: vec![format!("BAD={}", self.bad), format!("CHECKED={}", u8::from(self.checked))],
            stop_grace_period: Some(Duration::from_secs(self.grace)),
            ..ContainerSpec::default()
        };
        let task = TaskSpec {
            resources: Some(ResourceRequirements { reservations, ..ResourceRequirements::default() }),
            restart: self.delay.map(|delay| RestartPolicy {
                condition: if is_job { RestartCondition::OnFailure } else { RestartCondition::Any },
                delay: Some(Duration::from_secs(delay)),
                ..RestartPolicy::default()
            }),
            placement: Some(Placement { constraints, max_replicas: if is_job { 0 } else { self.max_per_node }, ..Placement::default() }),
            networks: self.network.then(network_of_services).into_iter().collect(),
            ..TaskSpec::new(container)
        };
        ServiceSpec {
            annotations: Annotations { name: format!("s{service}"), ..Annotations::default() },
            task: Arc::new(task),
            mode,
            update: self.update.filter(|_| !is_job).map(|roll| roll.config()),
            rollback: self.rollback.filter(|_| !is_job).map(|roll| roll.config()),
            networks: Vec::new(),
            endpoint: (!ports.is_empty()).then_some(EndpointSpec { ports, ..EndpointSpec::default() }),
        }
    }

    /// Each task needs a node of its own.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        self.host_port.is_some() || self.max_per_node > 0
    }

    #[must_use]
    pub fn service_mode(&self) -> ServiceMode {
        match self.mode {
            Mode::Replicated => ServiceMode::Replicated { replicas: self.replicas },
            Mode::Global => ServiceMode::Global,
            Mode::Job => ServiceMode::ReplicatedJob { max_concurrent: 2, total_completions: self.replicas },
            Mode::GlobalJob => ServiceMode::GlobalJob,
        }
    }
}

/// The one network of users.
pub const NETWORK: &str = "net";

fn network_of_services() -> NetworkAttachmentConfig {
    NetworkAttachmentConfig { target: NETWORK.into(), ..NetworkAttachmentConfig::default() }
}
