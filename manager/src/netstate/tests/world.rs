//! A store, the picture of it, and nodes that follow.

use crate::netstate::dirty::{Dirty, Touch};
use crate::netstate::index::Index;
use skep_proto::skep::network_endpoint::Readiness;
use skep_proto::skep::{NetworkChanges, NetworkEndpoint, NetworkPeer, NetworkServiceEntry};
use skep_store::{Tables, View};
use skep_types::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a node knows of one network.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Known {
    pub(super) network: Vec<u8>,
    pub(super) peers: BTreeMap<u32, NetworkPeer>,
    pub(super) endpoints: BTreeMap<String, NetworkEndpoint>,
    pub(super) services: BTreeMap<String, NetworkServiceEntry>,
}

/// What a node knows, put together as agents do.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Picture {
    pub(super) networks: BTreeMap<String, Known>,
    pub(super) header: (u32, u32),
}

impl Picture {
    pub(super) fn apply(&mut self, changes: NetworkChanges) {
        if changes.complete {
            self.networks.clear();
        }
        self.header = (changes.node_index, changes.vxlan_port);
        for delta in changes.networks {
            if delta.removed {
                self.networks.remove(&delta.network_id);
                continue;
            }
            assert!(delta.complete || self.networks.contains_key(&delta.network_id), "a part of a network nobody told of: {delta:?}");
            let known = self.networks.entry(delta.network_id).or_default();
            if delta.complete {
                *known = Known::default();
            }
            if !delta.network.is_empty() {
                known.network = delta.network;
            }
            delta.removed_peers.iter().for_each(|index| drop(known.peers.remove(index)));
            delta.removed_endpoints.iter().for_each(|id| drop(known.endpoints.remove(id)));
            delta.removed_services.iter().for_each(|id| drop(known.services.remove(id)));
            known.peers.extend(delta.peers.into_iter().map(|peer| (peer.node_index, peer)));
            known.endpoints.extend(delta.endpoints.into_iter().map(|endpoint| (endpoint.task_id.clone(), endpoint)));
            known.services.extend(delta.services.into_iter().map(|service| (service.service_id.clone(), service)));
        }
    }
}

/// A node's stream.
#[derive(Default)]
pub(super) struct Stream {
    pub(super) dirty: Dirty,
    pub(super) picture: Picture,
    pub(super) cleared: Vec<String>,
    pub(super) told: Version,
    pub(super) messages: usize,
    /// Of all messages.
    pub(super) bytes: usize,
}

/// A store, the picture of it, and nodes that follow.
pub(super) struct World {
    pub(super) tables: Tables,
    pub(super) index: Index,
    pub(super) streams: BTreeMap<NodeId, Stream>,
    /// What the last commit had to say, to nodes with and without a stream.
    pub(super) touches: Vec<NodeId>,
}

pub(super) fn node(number: u64) -> NodeId {
    NodeId::for_test(number)
}

pub(super) fn network(number: u64) -> NetworkId {
    NetworkId::for_test(number)
}

pub(super) fn task(number: u64) -> TaskId {
    TaskId::for_test(number)
}

impl World {
    pub(super) fn new() -> Self {
        let tables = Tables::new();
        let index = Index::new(&View::from(tables.clone()));
        Self { tables, index, streams: BTreeMap::new(), touches: Vec::new() }
    }

    /// Two nodes with a stream each, and networks 1 (ingress) and 2.
    pub(super) fn of_two() -> Self {
        let mut world = Self::new();
        for number in [1, 2] {
            world.put_node(number, Some((number as u32, "192.0.2.1")), NodeState::Ready);
            world.follow(number);
        }
        world.put_network(1, true, true);
        world.put_network(2, false, true);
        world.take_all();
        world
    }

    pub(super) fn view(&self) -> View {
        View::from(self.tables.clone())
    }

    pub(super) fn commit(&mut self, actions: &[Action]) -> Vec<Change> {
        let version = Version(self.tables.revision().0 + 1);
        let changes = self.tables.apply(version, Timestamp(0), actions).unwrap();
        if changes.is_empty() {
            return changes; // the store makes no commit of it
        }
        let (streams, touches) = (&mut self.streams, &mut self.touches);
        touches.clear();
        self.index.observe(version, &changes, &mut |node, touch| {
            touches.push(node.clone());
            tell(streams, node, touch);
        });
        changes
    }

    pub(super) fn write(&mut self, object: Object) {
        let view = self.view();
        macro_rules! versioned {
            ($kind:ident, $object:expr, $known:expr) => {
                match $known {
                    Some(known) => {
                        let mut object = $object;
                        Arc::make_mut(&mut object).meta = known.meta.clone();
                        Action::Update(Object::$kind(object))
                    }
                    None => Action::Create(Object::$kind($object)),
                }
            };
        }
        let action = match object {
            Object::Node(object) => versioned!(Node, object, view.node(&object.id)),
            Object::Network(object) => versioned!(Network, object, view.network(&object.id)),
            Object::Service(object) => versioned!(Service, object, view.service(&object.id)),
            Object::Task(object) => versioned!(Task, object, view.task(&object.id)),
            other => Action::Create(other),
        };
        self.commit(&[action]);
    }

    pub(super) fn remove(&mut self, kind: Kind, id: &str) {
        self.commit(&[Action::Remove { kind, id: id.into(), version: None }]);
    }

    pub(super) fn put_node(&mut self, number: u64, place: Option<(u32, &str)>, state: NodeState) {
        let mut object = Node::new(node(number));
        object.status.state = state;
        object.overlay = place.map(|(index, underlay)| NodeOverlay { index, underlay: underlay.into(), ..NodeOverlay::default() });
        self.write(Object::Node(Arc::new(object)));
    }

    pub(super) fn put_network(&mut self, number: u64, ingress: bool, allocated: bool) {
        let annotations = Annotations { name: format!("net{number}"), ..Annotations::default() };
        let mut object = Network::new(network(number), NetworkSpec { annotations, ingress, ..NetworkSpec::default() });
        if allocated {
            object.driver_state = Some(Driver::default());
            object.ipam = Some(IpamOptions::default());
        }
        self.write(Object::Network(Arc::new(object)));
    }

    /// One of these as it is, but encrypted.
    pub(super) fn encrypt(&mut self, number: u64) {
        let mut object = Network::clone(self.tables.network(&network(number)).unwrap());
        let options = [(ENCRYPTED_OPTION.to_owned(), String::new())].into();
        object.spec.driver = Some(Driver { name: "overlay".into(), options });
        self.write(Object::Network(Arc::new(object)));
    }

    /// What a node told of itself.
    pub(super) fn tell_keys(&mut self, number: u64, epochs: &[u32]) {
        let mut object = Node::clone(self.tables.node(&node(number)).unwrap());
        let overlay = object.overlay.as_mut().unwrap();
        overlay.encrypting = Encrypting::Able;
        overlay.tunnel_keys = epochs.iter().map(|epoch| TunnelKey { epoch: *epoch, public: vec![7; 32], port: 51820 }).collect();
        self.write(Object::Node(Arc::new(object)));
    }

    pub(super) fn put_epochs(&mut self, epochs: TunnelEpochs) {
        let known = self.tables.cluster().cloned();
        let is_new = known.is_none();
        let mut object = known.map_or_else(|| Cluster::new(ClusterId::for_test(1)), |known| Cluster::clone(&known));
        object.tunnel_epochs = epochs;
        let object = Object::Cluster(Arc::new(object));
        self.commit(&[if is_new { Action::Create(object) } else { Action::Update(object) }]);
    }

    pub(super) fn put_service(&mut self, number: u64, vips: &[(u64, &str)], names: &[u64]) {
        let config = |number: &u64| NetworkAttachmentConfig {
            target: format!("NET{number}"),
            aliases: vec![format!("alias{number}")],
            ..NetworkAttachmentConfig::default()
        };
        let task = TaskSpec { networks: names.iter().map(config).collect(), ..task_spec() };
        let annotations = Annotations { name: format!("service{number}"), ..Annotations::default() };
        let vips = vips.iter().map(|(number, addr)| VirtualIp { network_id: network(*number), addr: (*addr).into() });
        let port = PortConfig { published_port: 8080, target_port: 80, ..PortConfig::default() };
        let service = Service {
            id: ServiceId::for_test(number),
            meta: Meta::default(),
            spec: ServiceSpec {
                annotations,
                task: Arc::new(task),
                mode: ServiceMode::Replicated { replicas: 1 },
                update: None,
                rollback: None,
                networks: Vec::new(),
                endpoint: None,
            },
            spec_version: None,
            previous_spec: None,
            previous_spec_version: None,
            endpoint: Some(Endpoint { spec: EndpointSpec::default(), ports: vec![port], virtual_ips: vips.collect() }),
            update_status: None,
            job_status: None,
            pending_delete: false,
        };
        self.write(Object::Service(Arc::new(service)));
    }

    /// A task on a node and on these networks.
    pub(super) fn put_task(&mut self, number: u64, on: u64, networks: &[u64], state: TaskState) {
        let object = self.task(number, on, networks, state);
        self.write(Object::Task(Arc::new(object)));
    }

    /// The same, not written yet.
    pub(super) fn task(&self, number: u64, on: u64, networks: &[u64], state: TaskState) -> Task {
        let attach = |number: &u64| {
            let name = format!("net{number}");
            let spec = NetworkSpec { annotations: Annotations { name, ..Annotations::default() }, ..NetworkSpec::default() };
            let known = self.tables.network(&network(*number)).cloned();
            NetworkAttachment {
                network: known.unwrap_or_else(|| Arc::new(Network::new(network(*number), spec))),
                addresses: vec![format!("10.0.{number}.9/24")],
                aliases: Vec::new(),
                driver_attachment_opts: Default::default(),
            }
        };
        Task {
            id: task(number),
            meta: Meta::default(),
            spec: Arc::new(task_spec()),
            spec_version: None,
            service_id: Some(ServiceId::for_test(1)),
            slot: number,
            node_id: Some(node(on)),
            annotations: Annotations::default(),
            service_annotations: Annotations { name: "service1".into(), ..Annotations::default() },
            status: TaskStatus { state, ..TaskStatus::default() },
            desired_state: TaskState::Running,
            networks: networks.iter().map(attach).collect(),
            endpoint: None,
            log_driver: None,
            assigned_generic_resources: Vec::new(),
            job_iteration: None,
        }
    }

    pub(super) fn report(&mut self, number: u64, state: TaskState) {
        let status = TaskStatus { state, ..TaskStatus::default() };
        self.commit(&[Action::SetTaskStatus { task: task(number), status }]);
    }

    pub(super) fn want(&mut self, number: u64, desired: TaskState) {
        self.commit(&[Action::SetTaskDesired { task: task(number), desired }]);
    }

    pub(super) fn follow(&mut self, number: u64) {
        self.streams.insert(node(number), Stream { dirty: Dirty::everything(), ..Stream::default() });
        self.take(number);
    }

    /// A new connection of a node that knows something already.
    pub(super) fn connect(&mut self, number: u64) {
        if let Some(stream) = self.streams.get_mut(&node(number)) {
            (stream.dirty, stream.told) = (Dirty::everything(), Version::default());
        }
    }

    pub(super) fn take(&mut self, number: u64) {
        let id = node(number);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.dirty.is_empty() {
            let changes = self.index.difference(&id, std::mem::take(&mut stream.dirty));
            stream.told = Version(changes.revision);
            stream.cleared.extend(changes.cleared_tasks.iter().cloned());
            stream.messages += 1;
            stream.bytes += prost::Message::encoded_len(&changes);
            stream.picture.apply(changes);
        }
    }

    pub(super) fn take_all(&mut self) {
        let nodes: Vec<NodeId> = self.streams.keys().cloned().collect();
        for id in nodes {
            self.take(id.as_str().parse::<u64>().unwrap());
        }
    }

    pub(super) fn acknowledge(&mut self, number: u64) {
        let id = node(number);
        let Some(told) = self.streams.get(&id).map(|stream| stream.told) else { return };
        let streams = &mut self.streams;
        self.index.acknowledge(&id, told, &mut |node, touch| tell(streams, node, touch));
    }

    pub(super) fn answers(&mut self, number: u64, answers: bool) {
        let streams = &mut self.streams;
        self.index.answers(&node(number), answers, &mut |node, touch| tell(streams, node, touch));
    }

    /// What a stream that is new begins with ([`Barrier::opened`](crate::netstate::Barrier::opened)).
    pub(super) fn clear_again(&mut self, number: u64) {
        let streams = &mut self.streams;
        self.index.clear_again(&node(number), &mut |node, touch| tell(streams, node, touch));
    }

    pub(super) fn known(&self, number: u64) -> &BTreeMap<String, Known> {
        &self.streams[&node(number)].picture.networks
    }

    pub(super) fn readiness(&self, viewer: u64, number: u64) -> Option<Readiness> {
        let known = self.known(viewer).get(network(2).as_str())?;
        known.endpoints.get(task(number).as_str()).map(|endpoint| endpoint.readiness())
    }

    pub(super) fn cleared(&self, number: u64) -> &[String] {
        &self.streams[&node(number)].cleared
    }
}

pub(super) fn tell(streams: &mut BTreeMap<NodeId, Stream>, node: &NodeId, touch: Touch) {
    if let Some(stream) = streams.get_mut(node) {
        stream.dirty.put(touch);
    }
}

pub(super) fn task_spec() -> TaskSpec {
    TaskSpec::new(ContainerSpec { image: "web:1".into(), ..ContainerSpec::default() })
}
