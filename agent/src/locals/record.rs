//! What is remembered of a container that is no task.

use super::policy::{RestartWish, Restarts};
use crate::executor::ImageReady;
use crate::network::{NO_NETWORK, OWN_NETWORK, with_link};
use crate::places::PlaceWish;
use crate::records::Recorded;
use serde::{Deserialize, Serialize};
use skep_types::{
    Annotations, ContainerSpec, Driver, Meta, Network, NetworkAttachment, NetworkSpec, PREDEFINED_LABEL, PortConfig, ResourceRequirements,
    Timestamp,
};
use skep_types::{Endpoint, EndpointSpec, Task, TaskId, TaskSpec, TaskState, TaskStatus};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A container that somebody wants.
#[derive(Debug, Clone)]
pub struct LocalWish {
    pub id: TaskId,
    pub name: String,
    pub spec: ContainerSpec,
    pub resources: Option<ResourceRequirements>,
    /// Of this node.
    pub ports: Vec<PortConfig>,
    /// Of those the node chooses one number of a range for, by their place among the ports: the last number; the first is the port's.
    pub ranges: BTreeMap<usize, u32>,
    /// Host or none; empty = this node's own network, unless `places` says more.
    pub networks: Vec<NetworkAttachment>,
    /// The networks it is to be on, in their order, if there is a cluster's among them.
    pub places: Option<Vec<PlaceWish>>,
    /// A name that it has on these beside its own.
    pub short_id: String,
    pub log_driver: Option<Driver>,
    /// A name under which this node has the image.
    pub reference: String,
    pub restart: RestartWish,
    pub auto_remove: bool,
    /// Its input ends with that of the first who attaches to it.
    pub stdin_once: bool,
    /// As it was asked for, for whoever asked: nothing here reads it.
    pub asked: String,
}

/// A container's place on a network, wished for or held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// As it was asked for: a name or an id; `bridge` is this node's own.
    pub network: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    /// That were wished for.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// While its process runs.
    #[serde(default)]
    pub held: Option<HeldPlace>,
}

/// A place as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPlace {
    /// The task that stands for it; none on this node's own network.
    pub attachment: Option<TaskId>,
    /// Of the link: `eth0` is 0.
    pub link: u32,
    pub place: NetworkAttachment,
}

/// One of the networks that every node has, for [`LocalWish::networks`].
#[must_use]
pub fn predefined(name: &str, driver: &str) -> NetworkAttachment {
    let labels = [(PREDEFINED_LABEL.to_owned(), "true".to_owned())].into();
    let annotations = Annotations { name: name.to_owned(), labels, ..Annotations::default() };
    let driver = Some(Driver { name: driver.to_owned(), ..Driver::default() });
    let id = format!("node-{name}").parse().expect("letters and a dash make an id");
    let network = Network::new(id, NetworkSpec { annotations, driver, ..NetworkSpec::default() });
    NetworkAttachment { network: Arc::new(network), addresses: Vec::new(), aliases: Vec::new(), driver_attachment_opts: Default::default() }
}

impl From<PlaceWish> for Place {
    fn from(wish: PlaceWish) -> Self {
        let PlaceWish { network, aliases, addresses } = wish;
        Self { network, aliases, addresses, held: None }
    }
}

impl Place {
    /// This node's own network's name among places.
    pub const OWN: &str = "bridge";

    pub(super) fn wish(&self) -> PlaceWish {
        PlaceWish { network: self.network.clone(), aliases: self.aliases.clone(), addresses: self.addresses.clone() }
    }

    #[must_use]
    pub fn is_own(&self) -> bool {
        self.network == Self::OWN
    }

    /// Whether it is on the network of that name or id.
    #[must_use]
    pub fn is_on(&self, network: &str) -> bool {
        let held = self.held.as_ref().map(|held| &held.place.network);
        self.network == network || held.is_some_and(|held| held.id.as_str() == network || held.spec.annotations.name == network)
    }
}

impl HeldPlace {
    /// A place that managers gave; `None`: this node's own.
    pub(super) fn new(given: Option<&Task>, link: u32) -> Option<Self> {
        let place = match given {
            Some(task) => task.networks.first()?.clone(),
            None => predefined(OWN_NETWORK.strip_prefix("node-").unwrap_or(OWN_NETWORK), "bridge"),
        };
        Some(Self { attachment: given.map(|task| task.id.clone()), link, place: with_link(place, link) })
    }
}

/// One container, as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Local {
    /// What it runs, in the words of a task: one that no manager knows.
    pub task: Arc<Task>,
    /// `None` until its parts are there: what a crash left half made is removed.
    pub image: Option<ImageReady>,
    pub status: TaskStatus,
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// See [`LocalWish::ranges`]; what was asked for is in the endpoint's `spec`, what was chosen for this life beside it.
    #[serde(default)]
    pub ranges: BTreeMap<usize, u32>,
    pub restart: RestartWish,
    pub auto_remove: bool,
    #[serde(default)]
    pub stdin_once: bool,
    #[serde(default)]
    pub restarts: Restarts,
    /// Somebody stopped or killed it: it is not started again by itself.
    #[serde(default)]
    pub is_stopped: bool,
    /// It is being removed; with the volumes that have no name, if true.
    #[serde(default)]
    pub going: Option<bool>,
    /// Its places, if it is or may come to be on a network of the cluster.
    #[serde(default)]
    pub places: Option<Vec<Place>>,
    #[serde(default)]
    pub short_id: String,
    #[serde(default)]
    pub asked: String,
    /// It waits to be started again.
    #[serde(skip)]
    pub is_restarting: bool,
    /// Lives that ended since the agent began.
    #[serde(skip)]
    pub ends: u64,
    #[serde(skip)]
    pub is_gone: bool,
    /// Something of an earlier life may be left.
    #[serde(skip)]
    pub has_remains: bool,
}

impl Recorded for Local {
    fn id(&self) -> &TaskId {
        &self.task.id
    }
}

impl Local {
    pub(super) fn new(wish: LocalWish, now: Timestamp) -> Self {
        let mut spec = TaskSpec::new(wish.spec);
        (spec.resources, spec.log_driver) = (wish.resources, wish.log_driver.clone());
        let endpoint = EndpointSpec { ports: wish.ports.clone(), ..EndpointSpec::default() };
        let task = Task {
            id: wish.id,
            meta: Meta { created_at: now, updated_at: now, ..Meta::default() },
            spec: Arc::new(spec),
            spec_version: None,
            service_id: None,
            slot: 0,
            node_id: None,
            annotations: Annotations { name: wish.name, ..Annotations::default() },
            service_annotations: Annotations::default(),
            status: TaskStatus::default(),
            desired_state: TaskState::Running,
            networks: wish.networks,
            endpoint: Some(Endpoint { spec: endpoint, ports: wish.ports, ..Endpoint::default() }),
            log_driver: wish.log_driver,
            assigned_generic_resources: Vec::new(),
            job_iteration: None,
        };
        Self {
            task: Arc::new(task),
            image: None,
            status: TaskStatus { timestamp: now, state: TaskState::Ready, ..TaskStatus::default() },
            started_at: None,
            ranges: wish.ranges,
            restart: wish.restart,
            auto_remove: wish.auto_remove,
            stdin_once: wish.stdin_once,
            restarts: Restarts::default(),
            is_stopped: false,
            going: None,
            places: wish.places.map(|wishes| wishes.into_iter().map(Place::from).collect()),
            short_id: wish.short_id,
            asked: wish.asked,
            is_restarting: false,
            ends: 0,
            is_gone: false,
            has_remains: false,
        }
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status.state == TaskState::Running
    }

    #[must_use]
    pub fn exit_code(&self) -> i32 {
        self.status.container.as_ref().map_or(0, |container| container.exit_code)
    }

    /// The attachments that stand for its places.
    pub fn attachments(&self) -> impl Iterator<Item = &TaskId> {
        self.places.iter().flatten().filter_map(|place| place.held.as_ref()?.attachment.as_ref())
    }

    /// Other places; its task is on those that are held.
    pub(super) fn set_places(&mut self, places: Vec<Place>) {
        let held: Vec<NetworkAttachment> = places.iter().filter_map(|place| Some(place.held.as_ref()?.place.clone())).collect();
        let networks = if places.is_empty() { vec![predefined("none", NO_NETWORK)] } else { held };
        self.change_task(|task| task.networks = networks);
        self.places = Some(places);
    }

    pub(super) fn change_task(&mut self, change: impl FnOnce(&mut Task)) {
        change(Arc::make_mut(&mut self.task));
    }
}
