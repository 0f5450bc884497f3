//! Histories of a cluster, and what its nodes are told of them.

use super::dirty::{Dirty, Touch};
use super::index::Index;
use proptest::prelude::*;
use skep_proto::skep::network_endpoint::Readiness;
use skep_proto::skep::{NetworkChanges, NetworkEndpoint, NetworkPeer, NetworkServiceEntry};
use skep_store::{Tables, View};
use skep_types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a node knows of one network.
#[derive(Debug, Clone, Default, PartialEq)]
struct Known {
    network: Vec<u8>,
    peers: BTreeMap<u32, NetworkPeer>,
    endpoints: BTreeMap<String, NetworkEndpoint>,
    services: BTreeMap<String, NetworkServiceEntry>,
}

/// What a node knows, put together as agents do.
#[derive(Debug, Clone, Default, PartialEq)]
struct Picture {
    networks: BTreeMap<String, Known>,
    header: (u32, u32),
}

impl Picture {
    fn apply(&mut self, changes: NetworkChanges) {
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
struct Stream {
    dirty: Dirty,
    picture: Picture,
    cleared: Vec<String>,
    told: Version,
    messages: usize,
}

/// A store, the picture of it, and nodes that follow.
struct World {
    tables: Tables,
    index: Index,
    streams: BTreeMap<NodeId, Stream>,
    /// What the last commit had to say, to nodes with and without a stream.
    touches: Vec<NodeId>,
}

fn node(number: u64) -> NodeId {
    NodeId::for_test(number)
}

fn network(number: u64) -> NetworkId {
    NetworkId::for_test(number)
}

fn task(number: u64) -> TaskId {
    TaskId::for_test(number)
}

impl World {
    fn new() -> Self {
        let tables = Tables::new();
        let index = Index::new(&View::from(tables.clone()));
        Self { tables, index, streams: BTreeMap::new(), touches: Vec::new() }
    }

    /// Two nodes with a stream each, and networks 1 (ingress) and 2.
    fn of_two() -> Self {
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

    fn view(&self) -> View {
        View::from(self.tables.clone())
    }

    fn commit(&mut self, actions: &[Action]) {
        let version = Version(self.tables.revision().0 + 1);
        let changes = self.tables.apply(version, Timestamp(0), actions).unwrap();
        if changes.is_empty() {
            return; // the store makes no commit of it
        }
        let (streams, touches) = (&mut self.streams, &mut self.touches);
        touches.clear();
        self.index.observe(version, &changes, &mut |node, touch| {
            touches.push(node.clone());
            tell(streams, node, touch);
        });
    }

    fn write(&mut self, object: Object) {
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

    fn remove(&mut self, kind: Kind, id: &str) {
        self.commit(&[Action::Remove { kind, id: id.into(), version: None }]);
    }

    fn put_node(&mut self, number: u64, place: Option<(u32, &str)>, state: NodeState) {
        let mut object = Node::new(node(number));
        object.status.state = state;
        object.overlay = place.map(|(index, underlay)| NodeOverlay { index, underlay: underlay.into(), ..NodeOverlay::default() });
        self.write(Object::Node(Arc::new(object)));
    }

    fn put_network(&mut self, number: u64, ingress: bool, allocated: bool) {
        let annotations = Annotations { name: format!("net{number}"), ..Annotations::default() };
        let mut object = Network::new(network(number), NetworkSpec { annotations, ingress, ..NetworkSpec::default() });
        if allocated {
            object.driver_state = Some(Driver::default());
            object.ipam = Some(IpamOptions::default());
        }
        self.write(Object::Network(Arc::new(object)));
    }

    /// One of these as it is, but encrypted.
    fn encrypt(&mut self, number: u64) {
        let mut object = Network::clone(self.tables.network(&network(number)).unwrap());
        let options = [(ENCRYPTED_OPTION.to_owned(), String::new())].into();
        object.spec.driver = Some(Driver { name: "overlay".into(), options });
        self.write(Object::Network(Arc::new(object)));
    }

    /// What a node told of itself.
    fn tell_keys(&mut self, number: u64, epochs: &[u32]) {
        let mut object = Node::clone(self.tables.node(&node(number)).unwrap());
        let overlay = object.overlay.as_mut().unwrap();
        overlay.encrypting = Encrypting::Able;
        overlay.tunnel_keys = epochs.iter().map(|epoch| TunnelKey { epoch: *epoch, public: vec![7; 32], port: 51820 }).collect();
        self.write(Object::Node(Arc::new(object)));
    }

    fn put_epochs(&mut self, epochs: TunnelEpochs) {
        let known = self.tables.cluster().cloned();
        let is_new = known.is_none();
        let mut object = known.map_or_else(|| Cluster::new(ClusterId::for_test(1)), |known| Cluster::clone(&known));
        object.tunnel_epochs = epochs;
        let object = Object::Cluster(Arc::new(object));
        self.commit(&[if is_new { Action::Create(object) } else { Action::Update(object) }]);
    }

    fn put_service(&mut self, number: u64, vips: &[(u64, &str)], names: &[u64]) {
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
    fn put_task(&mut self, number: u64, on: u64, networks: &[u64], state: TaskState) {
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
        let object = Task {
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
        };
        self.write(Object::Task(Arc::new(object)));
    }

    fn report(&mut self, number: u64, state: TaskState) {
        let status = TaskStatus { state, ..TaskStatus::default() };
        self.commit(&[Action::SetTaskStatus { task: task(number), status }]);
    }

    fn want(&mut self, number: u64, desired: TaskState) {
        self.commit(&[Action::SetTaskDesired { task: task(number), desired }]);
    }

    fn follow(&mut self, number: u64) {
        self.streams.insert(node(number), Stream { dirty: Dirty::everything(), ..Stream::default() });
        self.take(number);
    }

    fn take(&mut self, number: u64) {
        let id = node(number);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.dirty.is_empty() {
            let changes = self.index.difference(&id, std::mem::take(&mut stream.dirty));
            stream.told = Version(changes.revision);
            stream.cleared.extend(changes.cleared_tasks.iter().cloned());
            stream.messages += 1;
            stream.picture.apply(changes);
        }
    }

    fn take_all(&mut self) {
        let nodes: Vec<NodeId> = self.streams.keys().cloned().collect();
        for id in nodes {
            self.take(id.as_str().parse::<u64>().unwrap());
        }
    }

    fn acknowledge(&mut self, number: u64) {
        let id = node(number);
        let Some(told) = self.streams.get(&id).map(|stream| stream.told) else { return };
        let streams = &mut self.streams;
        self.index.acknowledge(&id, told, &mut |node, touch| tell(streams, node, touch));
    }

    fn known(&self, number: u64) -> &BTreeMap<String, Known> {
        &self.streams[&node(number)].picture.networks
    }

    fn readiness(&self, viewer: u64, number: u64) -> Option<Readiness> {
        let known = self.known(viewer).get(network(2).as_str())?;
        known.endpoints.get(task(number).as_str()).map(|endpoint| endpoint.readiness())
    }

    fn cleared(&self, number: u64) -> &[String] {
        &self.streams[&node(number)].cleared
    }
}

fn tell(streams: &mut BTreeMap<NodeId, Stream>, node: &NodeId, touch: Touch) {
    if let Some(stream) = streams.get_mut(node) {
        stream.dirty.put(touch);
    }
}

fn task_spec() -> TaskSpec {
    TaskSpec::new(ContainerSpec { image: "web:1".into(), ..ContainerSpec::default() })
}

#[test]
fn interest_begins_with_the_first_task_and_ends_with_the_last() {
    let mut world = World::of_two();
    assert_eq!(world.known(1).keys().collect::<Vec<_>>(), [network(1).as_str()], "every node answers published ports");
    world.put_task(1, 1, &[2], TaskState::Assigned);
    world.put_task(2, 2, &[2], TaskState::Assigned);
    world.put_task(3, 2, &[2], TaskState::Assigned);
    world.take_all();
    let known = &world.known(1)[network(2).as_str()];
    assert_eq!(known.peers.keys().collect::<Vec<_>>(), [&1, &2]);
    assert_eq!(known.endpoints.len(), 3);
    world.report(2, TaskState::Failed);
    world.take_all();
    assert_eq!(world.known(1)[network(2).as_str()].peers.len(), 2);
    world.remove(Kind::Task, task(3).as_str());
    world.take_all();
    assert!(!world.known(2).contains_key(network(2).as_str()));
    let known = &world.known(1)[network(2).as_str()];
    assert_eq!((known.peers.len(), known.endpoints.len()), (1, 1));
}

#[test]
fn a_task_becomes_ready_when_it_runs_and_leaves_when_it_is_not_wanted() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Assigned);
    world.put_task(2, 2, &[2], TaskState::Running);
    let steps =
        [(TaskState::Preparing, Readiness::Planned), (TaskState::Starting, Readiness::Starting), (TaskState::Running, Readiness::Ready)];
    for (state, readiness) in steps {
        world.report(1, state);
        world.take_all();
        assert_eq!(world.readiness(2, 1), Some(readiness));
    }
    world.want(1, TaskState::Shutdown);
    world.take_all();
    assert_eq!(world.readiness(2, 1), Some(Readiness::Leaving));
    world.report(1, TaskState::Shutdown);
    world.take_all();
    assert_eq!(world.readiness(2, 1), None);
}

#[test]
fn a_task_that_leaves_is_cleared_after_the_last_acknowledgement_and_not_before() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Running);
    world.put_task(2, 2, &[2], TaskState::Running);
    world.take_all();
    world.want(1, TaskState::Shutdown);
    // What was acknowledged is older.
    world.acknowledge(2);
    world.take(1);
    world.acknowledge(1);
    world.take(1);
    assert!(world.cleared(1).is_empty());
    world.take(2);
    world.take(1);
    assert!(world.cleared(1).is_empty(), "told is not done");
    world.acknowledge(2);
    world.take_all();
    assert_eq!(world.cleared(1), [task(1).to_string()]);
    assert!(world.cleared(2).is_empty(), "its own node alone is told");
    // A new stream of the node is told again, until the task has ended.
    world.follow(1);
    assert_eq!(world.cleared(1), [task(1).to_string()]);
    world.report(1, TaskState::Shutdown);
    world.follow(1);
    assert!(world.cleared(1).is_empty());
}

#[test]
fn a_node_that_is_down_or_gone_does_not_hold_a_task_up() {
    for gone in [false, true] {
        let mut world = World::of_two();
        world.put_task(1, 1, &[2], TaskState::Running);
        world.put_task(2, 2, &[2], TaskState::Running);
        world.take_all();
        world.want(1, TaskState::Shutdown);
        world.take_all();
        world.acknowledge(1);
        world.take_all();
        assert!(world.cleared(1).is_empty());
        match gone {
            true => world.remove(Kind::Node, node(2).as_str()),
            false => world.put_node(2, Some((2, "192.0.2.1")), NodeState::Down),
        }
        world.take_all();
        assert_eq!(world.cleared(1), [task(1).to_string()]);
    }
}

#[test]
fn a_new_leader_starts_from_the_store_and_waits_for_new_acknowledgements() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Running);
    world.put_task(2, 2, &[2], TaskState::Running);
    world.want(1, TaskState::Shutdown);
    world.index = Index::new(&world.view());
    world.follow(1);
    world.follow(2);
    assert_eq!(world.readiness(2, 1), Some(Readiness::Leaving));
    world.acknowledge(1);
    world.take_all();
    assert!(world.cleared(1).is_empty());
    world.acknowledge(2);
    world.take_all();
    assert_eq!(world.cleared(1), [task(1).to_string()]);
}

#[test]
fn a_change_without_interest_says_nothing() {
    let mut world = World::of_two();
    world.put_task(1, 1, &[2], TaskState::Running);
    world.take_all();
    let before = world.streams[&node(2)].messages;
    world.report(1, TaskState::Running);
    world.put_task(3, 1, &[2], TaskState::Starting);
    world.put_service(1, &[(2, "10.0.2.2/24")], &[2]);
    world.want(3, TaskState::Shutdown);
    // A node that is ready again, a new explanation: nobody has to know.
    world.put_node(1, Some((1, "192.0.2.1")), NodeState::Unknown);
    world.take_all();
    assert_eq!(world.streams[&node(2)].messages, before);
    let before = world.streams[&node(1)].messages;
    world.report(1, TaskState::Running);
    world.put_network(3, false, true);
    world.take_all();
    assert_eq!(world.streams[&node(1)].messages, before);
}

#[test]
fn a_change_is_said_once_to_each_node_that_has_to_know_it() {
    let mut world = World::new();
    world.put_network(1, true, true);
    world.put_network(2, false, true);
    world.put_network(3, false, true);
    for number in 1..=40 {
        world.put_node(number, Some((number as u32, "192.0.2.1")), NodeState::Ready);
        world.put_task(number, number, &[2 + number % 2], TaskState::Starting);
    }
    world.report(8, TaskState::Running);
    let even: Vec<NodeId> = (1..=20).map(|half| node(2 * half)).collect();
    assert_eq!(world.touches, even, "those with a task on the same network");
    world.want(8, TaskState::Shutdown);
    assert_eq!(world.touches, even);
    world.put_task(100, 1, &[1], TaskState::Assigned);
    world.report(100, TaskState::Running);
    assert_eq!(world.touches.len(), 40, "every node answers published ports");
}

#[test]
fn nodes_that_only_pass_connections_on_do_not_know_each_other() {
    let mut world = World::of_two();
    world.put_node(3, Some((3, "192.0.2.3")), NodeState::Ready);
    world.follow(3);
    let peers = |world: &World, viewer: u64| world.known(viewer)[network(1).as_str()].peers.keys().copied().collect::<Vec<_>>();
    assert_eq!((peers(&world, 1), peers(&world, 3)), (vec![1], vec![3]));
    world.put_task(1, 1, &[1], TaskState::Running);
    world.take_all();
    assert_eq!((peers(&world, 1), peers(&world, 2), peers(&world, 3)), (vec![1, 2, 3], vec![1, 2], vec![1, 3]));
    world.report(1, TaskState::Failed);
    world.take_all();
    assert_eq!((peers(&world, 1), peers(&world, 2)), (vec![1], vec![2]));
}

#[derive(Debug, Clone)]
enum Step {
    Node { number: u64, place: u8, down: bool },
    RemoveNode(u64),
    Network { number: u64, ingress: bool, allocated: bool },
    RemoveNetwork(u64),
    Service { number: u64, vips: BTreeSet<u64>, names: BTreeSet<u64> },
    RemoveService(u64),
    Task { number: u64, on: u64, networks: BTreeSet<u64> },
    Report(u64, usize),
    Want(u64),
    RemoveTask(u64),
    Take(u64),
    Acknowledge(u64),
    Anew,
}

fn some_networks() -> impl Strategy<Value = BTreeSet<u64>> {
    prop::collection::btree_set(1u64..4, 0..3)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u64..5, 0u8..4, any::<bool>()).prop_map(|(number, place, down)| Step::Node { number, place, down }),
        1 => (1u64..5).prop_map(Step::RemoveNode),
        3 => (1u64..4, any::<bool>(), any::<bool>()).prop_map(|(number, ingress, allocated)| Step::Network { number, ingress, allocated }),
        1 => (1u64..4).prop_map(Step::RemoveNetwork),
        3 => (1u64..4, some_networks(), some_networks()).prop_map(|(number, vips, names)| Step::Service { number, vips, names }),
        1 => (1u64..4).prop_map(Step::RemoveService),
        5 => (1u64..7, 1u64..5, some_networks()).prop_map(|(number, on, networks)| Step::Task { number, on, networks }),
        5 => (1u64..7, 0usize..14).prop_map(|(number, state)| Step::Report(number, state)),
        2 => (1u64..7).prop_map(Step::Want),
        1 => (1u64..7).prop_map(Step::RemoveTask),
        4 => (1u64..5).prop_map(Step::Take),
        2 => (1u64..5).prop_map(Step::Acknowledge),
        1 => Just(Step::Anew),
    ]
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Node { number, place, down } => {
                let underlay = format!("192.0.2.{place}");
                let place = match place {
                    0 => None,
                    1 => Some((0, underlay.as_str())),
                    _ => Some((number as u32, underlay.as_str())),
                };
                self.put_node(number, place, if down { NodeState::Down } else { NodeState::Ready });
            }
            Step::RemoveNode(number) => self.remove(Kind::Node, node(number).as_str()),
            Step::Network { number, ingress, allocated } => self.put_network(number, ingress, allocated),
            Step::RemoveNetwork(number) => self.remove(Kind::Network, network(number).as_str()),
            Step::Service { number, vips, names } => {
                let vips: Vec<_> = vips.into_iter().map(|number| (number, "10.0.0.7/24")).collect();
                self.put_service(number, &vips, &names.into_iter().collect::<Vec<_>>());
            }
            Step::RemoveService(number) => self.remove(Kind::Service, ServiceId::for_test(number).as_str()),
            Step::Task { number, on, networks } => {
                if self.tables.task(&task(number)).is_none() {
                    self.put_task(number, on, &networks.into_iter().collect::<Vec<_>>(), TaskState::Pending);
                }
            }
            Step::Report(number, state) => self.report(number, TaskState::ALL[state]),
            Step::Want(number) => self.want(number, TaskState::Shutdown),
            Step::RemoveTask(number) => self.remove(Kind::Task, task(number).as_str()),
            Step::Take(number) => self.take(number),
            Step::Acknowledge(number) => self.acknowledge(number),
            Step::Anew => {
                self.index = self.index.renewed(&View::from(self.tables.clone()));
                self.streams.values_mut().for_each(|stream| stream.dirty = Dirty::everything());
            }
        }
    }
}

/// As a complete state, whatever order it came in.
fn picture_of(changes: NetworkChanges) -> Picture {
    let mut picture = Picture::default();
    picture.apply(changes);
    picture
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn differences_lead_to_what_a_complete_state_made_anew_says(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        (1..5).for_each(|number| world.follow(number));
        for step in steps {
            world.step(step);
        }
        world.take_all();
        let anew = Index::new(&world.view());
        for (id, stream) in &world.streams {
            prop_assert_eq!(&stream.picture, &picture_of(anew.complete(id)));
            prop_assert_eq!(&stream.picture, &picture_of(world.index.complete(id)));
        }
        // Nothing is waited for that a new leader does not wait for, and nothing is kept of what is gone.
        let waits = |index: &Index| -> BTreeMap<NetworkId, BTreeSet<NodeId>> {
            index.networks.iter().map(|(id, net)| (id.clone(), net.acks.nodes().cloned().collect())).collect()
        };
        prop_assert_eq!(waits(&world.index), waits(&anew));
        prop_assert_eq!(world.index.leaving.keys().collect::<BTreeSet<_>>(), anew.leaving.keys().collect::<BTreeSet<_>>());
        prop_assert_eq!(world.index.nodes.keys().collect::<BTreeSet<_>>(), anew.nodes.keys().collect::<BTreeSet<_>>());
        prop_assert_eq!(world.index.wanting.keys().collect::<BTreeSet<_>>(), anew.wanting.keys().collect::<BTreeSet<_>>());
    }
}

#[test]
fn keys_are_told_to_those_that_share_an_encrypted_network_and_to_no_others() {
    let mut world = World::of_two();
    for number in [1, 2] {
        world.put_task(number, number, &[1, 2], TaskState::Running);
        world.tell_keys(number, &[4]);
    }
    world.take_all();
    let keys = |world: &World, number| {
        let peer = &world.known(1)[network(number).as_str()].peers[&2];
        peer.keys.iter().map(|key| key.epoch).collect::<Vec<_>>()
    };
    assert_eq!((keys(&world, 1), keys(&world, 2)), (vec![], vec![]), "nothing is encrypted");
    world.encrypt(2);
    world.put_task(3, 1, &[2], TaskState::Running);
    world.put_task(4, 1, &[1], TaskState::Running);
    world.follow(1);
    world.take_all();
    assert_eq!((keys(&world, 1), keys(&world, 2)), (vec![], vec![4]));
    world.tell_keys(2, &[4, 5]);
    assert_eq!(world.touches.iter().collect::<BTreeSet<_>>(), [&node(1), &node(2)].into());
    world.take_all();
    assert_eq!(keys(&world, 2), [4, 5]);
    world.put_node(3, Some((3, "192.0.2.3")), NodeState::Ready);
    world.tell_keys(3, &[4]);
    world.tell_keys(3, &[4, 5]);
    assert!(world.touches.is_empty(), "it is on no encrypted network");
}

#[test]
fn a_step_to_new_keys_is_in_place_when_every_node_that_can_encrypt_says_so() {
    let mut world = World::of_two();
    world.put_epochs(TunnelEpochs { oldest: 4, step: KeyStep::Settled, since: None });
    for number in [1, 2] {
        world.tell_keys(number, &[4]);
        world.take(number);
        world.acknowledge(number);
    }
    let progress = |world: &World| {
        let progress = world.index.progress();
        (progress.all_told, progress.all_in_place)
    };
    assert_eq!(progress(&world), (true, true));
    world.put_epochs(TunnelEpochs { oldest: 4, step: KeyStep::Making, since: None });
    assert_eq!(progress(&world), (false, false));
    world.take_all();
    for number in [1, 2] {
        world.tell_keys(number, &[4, 5]);
    }
    assert_eq!(progress(&world), (true, false));
    world.acknowledge(1);
    assert_eq!(progress(&world), (true, false));
    world.acknowledge(2);
    assert_eq!(progress(&world), (true, true));
    // A node that cannot encrypt is not waited for.
    world.put_node(3, Some((3, "192.0.2.3")), NodeState::Ready);
    assert_eq!(progress(&world), (true, true));
    world.remove(Kind::Node, node(2).as_str());
    assert_eq!(progress(&world), (true, true));
}
