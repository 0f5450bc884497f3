use super::*;
use crate::network::fixtures::{attached, overlay, peer, published, table, web};
use crate::network::held::Phase;
use crate::network::picture::{Changes, Delta as Told, Readiness, SpannedPort, SpannedTask};
use crate::testing::task;
use proptest::prelude::*;
use skep_netlb::{Endpoint, PublishedPort};
use skep_types::{Endpoint as TaskEndpoint, PublishMode, VirtualIp};

/// What is wanted, by key: what netlb keeps of it.
#[derive(Debug, Default, PartialEq)]
struct Keyed {
    networks: BTreeMap<NetworkId, Spread>,
    published: BTreeMap<Port, Vec<PublishedPort>>,
    tasks: BTreeSet<TaskId>,
}

#[derive(Debug, PartialEq)]
struct Spread {
    network: skep_netlb::Network,
    overlay: Option<skep_netlb::Overlay>,
    endpoints: BTreeMap<TaskId, Endpoint>,
    vips: BTreeMap<IpAddr, Vec<IpAddr>>,
}

impl From<WantedNetwork> for Spread {
    fn from(WantedNetwork { network, overlay, endpoints, vips }: WantedNetwork) -> Self {
        let endpoints = endpoints.into_iter().map(|one| (one.task.clone(), one)).collect();
        Self { network, overlay, endpoints, vips: vips.into_iter().map(|vip| (vip.address, vip.backends)).collect() }
    }
}

/// Puts it behind the key, or takes it away.
fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

impl Keyed {
    fn of(wanted: Wanted) -> Self {
        let mut this = Self { tasks: wanted.tasks, ..Self::default() };
        this.networks = wanted.networks.into_iter().map(|one| (one.network.id.clone(), one.into())).collect();
        for port in wanted.published {
            this.published.entry((port.protocol, port.port)).or_default().push(port);
        }
        this
    }

    fn take(&mut self, tell: Tell) {
        let delta = match tell {
            Tell::Whole(wanted) => return *self = Self::of(*wanted),
            Tell::Change(delta) => delta,
        };
        for (id, change) in delta.networks {
            match change {
                NetworkDelta::Whole(network) => set(&mut self.networks, id, Some(network.into())),
                NetworkDelta::Gone => set(&mut self.networks, id, None),
                NetworkDelta::Members { endpoints, vips } => {
                    let network = self.networks.get_mut(&id).expect("members of a network that is wanted");
                    endpoints.into_iter().for_each(|(task, endpoint)| set(&mut network.endpoints, task, endpoint));
                    vips.into_iter().for_each(|(address, backends)| set(&mut network.vips, address, backends));
                }
            }
        }
        for (key, ports) in delta.published {
            set(&mut self.published, key, Some(ports).filter(|ports| !ports.is_empty()));
        }
        for (task, is_held) in delta.tasks {
            if is_held {
                self.tasks.insert(task);
            } else {
                self.tasks.remove(&task);
            }
        }
    }
}

/// A node, what it is told, and what netlb was.
#[derive(Default)]
struct Node {
    held: Table,
    picture: Picture,
    follower: Follower,
    netlb: Keyed,
}

impl Node {
    /// Whether the whole was told.
    fn follow(&mut self, touched: &Touched, task: Option<&TaskId>) -> bool {
        let own = Own::default();
        let tell = self.follower.follow(touched, task, &self.held, &self.picture, &own);
        let is_whole = matches!(tell, Tell::Whole(_));
        self.netlb.take(tell);
        assert_eq!(self.netlb, Keyed::of(wanted(&self.held, &self.picture, &own)));
        is_whole
    }

    fn told(&mut self, changes: Changes) -> bool {
        let (touched, _) = self.picture.change(changes);
        self.follow(&touched, None)
    }

    fn own(&mut self, number: u64, change: impl FnOnce(&mut Table)) -> bool {
        change(&mut self.held);
        self.follow(&Touched::new(), Some(&TaskId::for_test(number)))
    }
}

/// One thing that may happen. Small numbers, so that addresses, services and ports meet.
#[derive(Debug, Clone)]
enum Step {
    Task { network: u64, number: u64, node: u32, address: u8, service: u64, readiness: Readiness },
    NoTask { network: u64, number: u64 },
    Service { network: u64, service: u64, vips: Vec<u8>, ports: Vec<u16> },
    NoService { network: u64, service: u64 },
    Peers { network: u64, peers: Vec<u32> },
    NoNetwork { network: u64 },
    Hold { number: u64, address: u8, service: u64, phase: Phase, port: u16, host: bool },
    Bridge { number: u64, address: u8, phase: Phase },
    Drop { number: u64 },
    Number { node_index: u32 },
}

fn service(number: u64) -> ServiceId {
    format!("service{number}").parse().unwrap()
}

/// Network 1 is the ingress network.
fn network(number: u64) -> Arc<Network> {
    overlay(number, &format!("n{number}"), number == 1)
}

fn address(network: u64, last: u8) -> IpAddr {
    IpAddr::from([10, 0, u8::try_from(network).unwrap(), last])
}

fn readiness() -> impl Strategy<Value = Readiness> {
    use Readiness::{Leaving, Planned, Ready, Starting};
    prop::sample::select(vec![Planned, Starting, Ready, Ready, Ready, Leaving])
}

fn phase() -> impl Strategy<Value = Phase> {
    prop::sample::select(vec![Phase::Attached, Phase::Serving, Phase::Serving, Phase::Leaving { others_may_lead_here: false }])
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (1u64..4, 1u64..7);
    prop_oneof![
        6 => (place(), 1u32..4, 10u8..16, 1u64..4, readiness()).prop_map(|((network, number), node, address, service, readiness)| {
            Step::Task { network, number, node, address, service, readiness }
        }),
        2 => place().prop_map(|(network, number)| Step::NoTask { network, number }),
        3 => (1u64..4, 1u64..4, prop::collection::vec(2u8..5, 0..3), prop::collection::vec(80u16..83, 0..3))
            .prop_map(|(network, service, vips, ports)| Step::Service { network, service, vips, ports }),
        1 => (1u64..4, 1u64..4).prop_map(|(network, service)| Step::NoService { network, service }),
        2 => (1u64..4, prop::collection::vec(1u32..4, 0..4)).prop_map(|(network, peers)| Step::Peers { network, peers }),
        1 => (1u64..4).prop_map(|network| Step::NoNetwork { network }),
        4 => (1u64..7, 10u8..16, 1u64..4, phase(), 80u16..83, any::<bool>())
            .prop_map(|(number, address, service, phase, port, host)| Step::Hold { number, address, service, phase, port, host }),
        1 => (1u64..7, 5u8..8, phase()).prop_map(|(number, address, phase)| Step::Bridge { number, address, phase }),
        3 => (1u64..7).prop_map(|number| Step::Drop { number }),
        1 => (0u32..3).prop_map(|node_index| Step::Number { node_index }),
    ]
}

impl Node {
    fn tell_of(&mut self, id: u64, change: impl FnOnce(&mut Told)) {
        let mut delta = Told::of(NetworkId::for_test(id));
        if !self.picture.networks.contains_key(&delta.id) {
            delta.network = Some(network(id));
            delta.peers = vec![peer(1), peer(2)];
        }
        change(&mut delta);
        self.send(vec![delta], self.picture.node_index);
    }

    fn send(&mut self, networks: Vec<Told>, node_index: u32) {
        self.told(Changes { revision: self.picture.revision + 1, networks, node_index, ..Changes::default() });
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Task { network, number, node, address: last, service: of, readiness } => self.tell_of(network, |delta| {
                delta.tasks.push(SpannedTask {
                    service: Some(service(of)),
                    addresses: vec![address(network, last)],
                    ..crate::network::fixtures::remote(network, number, node, readiness)
                });
            }),
            Step::NoTask { network, number } => self.tell_of(network, |delta| delta.removed_tasks.push(TaskId::for_test(number))),
            Step::Service { network, service: id, vips, ports } => self.tell_of(network, |delta| {
                let port = |published: &u16| SpannedPort {
                    name: String::new(),
                    protocol: skep_types::Protocol::Tcp,
                    target: 80,
                    published: (network == 1).then_some(*published),
                    ..SpannedPort::default()
                };
                delta.services.push(SpannedService {
                    id: service(id),
                    name: format!("s{id}"),
                    aliases: vec![],
                    virtual_ips: vips.iter().map(|last| address(network, *last)).collect(),
                    ports: ports.iter().map(port).collect(),
                });
            }),
            Step::NoService { network, service: id } => self.tell_of(network, |delta| delta.removed_services.push(service(id))),
            Step::Peers { network, peers } => self.tell_of(network, |delta| {
                delta.removed_peers = vec![1, 2, 3];
                delta.peers = peers.into_iter().map(peer).collect();
            }),
            Step::NoNetwork { network } => self.tell_of(network, |delta| delta.removed = true),
            Step::Hold { number, address, service: of, phase, port, host } => {
                let mut one = task(number, "web");
                one.service_id = Some(service(of));
                one.networks = [1, 2].map(|id| attached(network(id), &format!("10.0.{id}.{address}/24"))).into();
                let vip = VirtualIp { network_id: NetworkId::for_test(2), addr: format!("10.0.2.{}/24", 1 + of) };
                let ports = vec![published(80, u32::from(port), PublishMode::Ingress)];
                one.endpoint = Some(TaskEndpoint { ports, virtual_ips: vec![vip], ..TaskEndpoint::default() });
                let host_ports = if host { vec![published(80, u32::from(port), PublishMode::Host)] } else { vec![] };
                let one = Held { task: Arc::new(one), phase, host_ports, hostname: None, bridge: None };
                self.own(number, |held| drop(held.insert(one.task.id.clone(), one)));
            }
            Step::Bridge { number, address, phase } => {
                let bridge = Some(format!("172.31.240.{address}/20").parse().unwrap());
                let host_ports = vec![published(80, 9000 + u32::from(address), PublishMode::Host)];
                let one = Held { task: Arc::new(task(number, "web")), phase, host_ports, hostname: None, bridge };
                self.own(number, |held| drop(held.insert(one.task.id.clone(), one)));
            }
            Step::Drop { number } => {
                self.own(number, |held| drop(held.remove(&TaskId::for_test(number))));
            }
            Step::Number { node_index } => self.send(vec![], node_index),
        }
    }
}

proptest! {
    /// After every step of any history netlb has been told what the whole would be.
    #[test]
    fn differences_lead_to_what_the_whole_says(steps in prop::collection::vec(step(), 1..60)) {
        let mut node = Node::default();
        node.send(vec![], 1);
        for step in steps {
            node.take(step);
        }
    }
}

fn remote(number: u64, node: u32, readiness: Readiness) -> Told {
    Told { tasks: vec![crate::network::fixtures::remote(2, number, node, readiness)], ..Told::of(NetworkId::for_test(2)) }
}

fn told(delta: Told) -> Changes {
    Changes { revision: 2, networks: vec![delta], node_index: 1, ..Changes::default() }
}

/// A node that was told of network 2 with two others and this many tasks.
fn node(tasks: u64) -> Node {
    let mut node = Node::default();
    let whole = Told {
        network: Some(network(2)),
        peers: vec![peer(1), peer(2), peer(3)],
        tasks: (10..10 + tasks).map(|number| crate::network::fixtures::remote(2, number, 2, Readiness::Ready)).collect(),
        ..Told::of(NetworkId::for_test(2))
    };
    let changes = Changes { revision: 1, complete: true, networks: vec![whole], node_index: 1, ..Changes::default() };
    assert!(node.told(changes), "the first is whole");
    node
}

#[test]
fn one_task_that_comes_goes_or_moves_is_a_change_of_its_own() {
    let mut node = node(5);
    assert!(!node.told(told(remote(20, 3, Readiness::Starting))));
    assert!(!node.told(told(remote(20, 3, Readiness::Ready))));
    assert!(!node.told(told(remote(20, 2, Readiness::Ready))));
    assert!(!node.told(told(Told { removed_tasks: vec![TaskId::for_test(20)], ..Told::of(NetworkId::for_test(2)) })));
    assert!(!node.own(1, |held| held.extend(table(vec![web(1, true)]))), "the first of this node, on two networks");
    assert!(!node.own(1, BTreeMap::clear));
}

#[test]
fn what_a_change_says_does_not_grow_with_what_there_is() {
    let size = |tasks: u64| {
        let mut node = node(tasks);
        let mut one = remote(240, 3, Readiness::Ready);
        one.tasks[0].service = Some(service(9));
        let (touched, _) = node.picture.change(told(one));
        let tell = node.follower.follow(&touched, None, &node.held, &node.picture, &Own::default());
        let Tell::Change(delta) = tell else { panic!("the whole was told") };
        format!("{delta:?}").len()
    };
    assert_eq!(size(5), size(200));
}

#[test]
fn what_is_not_named_may_be_anything() {
    let mut node = node(3);
    assert!(node.follow(&Touched::new(), None));
    assert!(node.told(Changes { revision: 2, node_index: 2, ..Changes::default() }), "this node has another number");
}
