//! What a task needs of a node.

use crate::constraint::{Constraints, strip_prefix_ignoring_case};
use crate::resources::Lack;
use skep_types::{Encrypting, MountType, Node, NodeId, Platform, Plugin, Protocol, PublishMode, PublishPlace, Resources, Task};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A label that tasks are spread over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Descriptor {
    NodeLabel(String),
    EngineLabel(String),
}

impl Descriptor {
    /// `None` for what is not a label; such preferences are ignored, as the original does.
    pub fn parse(text: &str) -> Option<Self> {
        let node = strip_prefix_ignoring_case(text, "node.labels.").map(|label| Self::NodeLabel(label.to_owned()));
        node.or_else(|| strip_prefix_ignoring_case(text, "engine.labels.").map(|label| Self::EngineLabel(label.to_owned())))
    }

    /// The branch of a node; nodes without the label share the empty one.
    pub fn branch<'a>(&self, node: &'a Node) -> &'a str {
        let found = match self {
            Self::NodeLabel(label) => node.spec.annotations.labels.get(label),
            Self::EngineLabel(label) => {
                node.description.as_ref().and_then(|description| description.engine.as_ref()).and_then(|engine| engine.labels.get(label))
            }
        };
        found.map_or("", String::as_str)
    }
}

/// The needs that only a change of the node itself can meet; tasks with equal ones share their candidates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Fixed {
    pub constraints: Vec<String>,
    /// (os, architecture), as images name them; empty = any.
    pub platforms: Vec<(String, String)>,
    /// (kind, name).
    pub plugins: Vec<(&'static str, String)>,
    pub spread: Vec<Descriptor>,
    /// It is on a network whose packets are encrypted between nodes.
    pub encrypted: bool,
}

/// A host-mode port with a number of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub protocol: Protocol,
    pub number: u32,
    pub place: PublishPlace,
}

impl HostPort {
    /// Whether a node cannot give both.
    pub fn meets(&self, other: &Self) -> bool {
        (self.protocol, self.number) == (other.protocol, other.number) && self.place.meets(&other.place)
    }
}

/// Everything a task needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Need {
    pub fixed: Fixed,
    pub reservations: Resources,
    pub host_ports: Vec<HostPort>,
    /// 0 = no limit.
    pub max_replicas: u64,
    /// Nodes where another task of its slot has not stopped yet.
    pub avoid: Vec<NodeId>,
}

/// Why a node does not take a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    Down,
    Drained,
    Paused,
    /// Not heard of yet, or told to go elsewhere.
    NotReady,
    Resources(Lack),
    Plugin {
        kind: &'static str,
        name: String,
    },
    Constraints,
    Platform,
    /// The node cannot encrypt, which a network of the task wants; with the node's reason.
    CannotEncrypt(String),
    HostPort(Protocol, u32),
    MaxReplicas(u64),
    /// Another task of its slot has not stopped there yet.
    SameSlot,
}

/// `x86_64` and `amd64` are the same, and so are `aarch64` and `arm64`.
pub(crate) fn normal_architecture(text: &str) -> &str {
    match text {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn platform(platform: &Platform) -> (String, String) {
    (platform.os.to_lowercase(), normal_architecture(&platform.architecture.to_lowercase()).to_owned())
}

/// Host-mode ports with a number of their own.
pub(crate) fn host_ports(task: &Task) -> impl Iterator<Item = HostPort> + '_ {
    let ports = task.endpoint.iter().flat_map(|endpoint| if endpoint.ports.is_empty() { &endpoint.spec.ports } else { &endpoint.ports });
    ports.filter(|port| port.publish_mode == PublishMode::Host && port.published_port != 0).map(|port| HostPort {
        protocol: port.protocol,
        number: port.published_port,
        place: port.place.clone(),
    })
}

/// A number for what tasks of one spec may still need differently, because it comes from the service and not from their spec: host ports,
/// and nodes that encrypt. 0 where there is none of it.
pub(crate) fn differences(task: &Task) -> u64 {
    let encrypted = u64::from(task.networks.iter().any(|attachment| attachment.network.is_encrypted()));
    host_ports(task).fold(encrypted, |sum, port| {
        let mut hasher = DefaultHasher::new();
        (sum, port.protocol as u64, port.number, &port.place).hash(&mut hasher);
        hasher.finish()
    })
}

impl Need {
    pub fn of(task: &Task) -> Self {
        let placement = task.spec.placement.as_ref();
        let encrypted = task.networks.iter().any(|attachment| attachment.network.is_encrypted());
        let mut fixed = Fixed { plugins: plugins(task), encrypted, ..Fixed::default() };
        if let Some(placement) = placement {
            fixed.constraints = placement.constraints.clone();
            fixed.platforms = placement.platforms.iter().map(platform).collect();
            fixed.spread = placement.spread.iter().filter_map(|text| Descriptor::parse(text)).collect();
        }
        Self {
            fixed,
            reservations: task.spec.resources.as_ref().map(|resources| resources.reservations.clone()).unwrap_or_default(),
            host_ports: host_ports(task).collect(),
            max_replicas: placement.map_or(0, |placement| placement.max_replicas),
            avoid: Vec::new(),
        }
    }
}

fn plugins(task: &Task) -> Vec<(&'static str, String)> {
    let mounts = task.spec.container().into_iter().flat_map(|container| &container.mounts);
    let drivers = mounts
        .filter(|mount| mount.kind == MountType::Volume)
        .filter_map(|mount| mount.volume.as_ref()?.driver.as_ref())
        .filter(|driver| !driver.name.is_empty() && driver.name != "local")
        .map(|driver| ("Volume", driver.name.clone()));
    let networks = task.networks.iter().filter_map(|attachment| attachment.network.driver_state.as_ref());
    let networks = networks.filter(|driver| !driver.name.is_empty()).map(|driver| ("Network", driver.name.clone()));
    let log =
        task.log_driver.iter().filter(|driver| !driver.name.is_empty() && driver.name != "none").map(|driver| ("Log", driver.name.clone()));
    let mut all: Vec<_> = drivers.chain(networks).chain(log).collect();
    all.sort();
    all.dedup();
    all
}

fn is_plugin(plugin: &Plugin, kind: &str, name: &str) -> bool {
    plugin.kind == kind && (plugin.name == name || plugin.name.strip_suffix(":latest") == Some(name))
}

/// What a node said of itself, or that it did not.
fn can_encrypt(node: &Node) -> Result<(), String> {
    match node.overlay.as_ref().map(|overlay| &overlay.encrypting) {
        Some(Encrypting::Able) => Ok(()),
        Some(Encrypting::Unable(why)) => Err(why.clone()),
        Some(Encrypting::Unsaid) | None => Err("it did not say that it can".into()),
    }
}

impl Fixed {
    /// Whether the node's own properties suit, in the order of the original's filters.
    pub fn check(&self, constraints: &Constraints, node: &Node) -> Result<(), Misfit> {
        let description = node.description.as_ref();
        // A node that lists no plugins at all has not said what it can do, like one without a description of its engine.
        if let Some(engine) = description.and_then(|description| description.engine.as_ref()).filter(|engine| !engine.plugins.is_empty()) {
            for (kind, name) in &self.plugins {
                let lists_kind = engine.plugins.iter().any(|plugin| plugin.kind == *kind);
                let has = engine.plugins.iter().any(|plugin| is_plugin(plugin, kind, name));
                if !has && (*kind != "Log" || lists_kind) {
                    return Err(Misfit::Plugin { kind, name: name.clone() });
                }
            }
        }
        if !constraints.match_node(node) {
            return Err(Misfit::Constraints);
        }
        if !self.platforms.is_empty() {
            let (os, architecture) = description.map(|description| platform(&description.platform)).unwrap_or_default();
            let fits =
                |wanted: &(String, String)| (wanted.0.is_empty() || wanted.0 == os) && (wanted.1.is_empty() || wanted.1 == architecture);
            if !self.platforms.iter().any(fits) {
                return Err(Misfit::Platform);
            }
        }
        if self.encrypted {
            return can_encrypt(node).map_err(Misfit::CannotEncrypt);
        }
        Ok(())
    }
}
