use super::*;
use crate::network::convert::task_network;
use crate::network::fixtures::{back, overlay as cluster, peer, published, remote, service1, table, web};
use crate::network::held::Phase;
use crate::network::picture::{SpannedPort, SpannedService};
use crate::testing::task;
use std::sync::Arc;

/// By a node without keys.
fn wanted(held: &BTreeMap<TaskId, Held>, picture: &Picture) -> Wanted {
    super::wanted(held, picture, &Own::default())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn backends(addresses: &[&str]) -> PublishMode {
    PublishMode::Ingress { backends: addresses.iter().map(|text| Backend { address: ip(text), port: 80 }).collect() }
}

fn network<'a>(wanted: &'a Wanted, name: &str) -> &'a WantedNetwork {
    wanted.networks.iter().find(|network| network.network.name == name).unwrap()
}

/// The backends of `web`'s virtual address.
fn behind(wanted: &Wanted) -> Vec<String> {
    let [vip] = network(wanted, "back").vips.as_slice() else { panic!("{wanted:?}") };
    assert_eq!(vip.address, ip("10.0.2.2"));
    vip.backends.iter().map(ToString::to_string).collect()
}

fn picture(networks: Vec<NetworkPicture>) -> Picture {
    let networks = networks.into_iter().map(|network| (network.network.id.clone(), network)).collect();
    Picture { revision: 5, node_index: 1, networks, ..Picture::default() }
}

/// The ingress network with port 80 of `web` published as 8080.
fn ingress(peers: &[u32], tasks: &[(u64, u32, Readiness)]) -> NetworkPicture {
    let mut known = NetworkPicture::new(cluster(1, "ingress", true));
    known.peers = peers.iter().map(|index| (*index, peer(*index))).collect();
    known.tasks = tasks.iter().map(|(number, node, readiness)| remote(1, *number, *node, *readiness)).map(|t| (t.id.clone(), t)).collect();
    let port = SpannedPort {
        name: String::new(),
        protocol: skep_types::Protocol::Tcp,
        target: 80,
        published: Some(8080),
        ..SpannedPort::default()
    };
    let service = SpannedService { id: service1(), name: "web".into(), aliases: vec![], virtual_ips: vec![], ports: vec![port] };
    known.services = [(service1(), service)].into();
    known
}

#[test]
fn only_serving_tasks_are_behind_ports_and_virtual_addresses() {
    let wanted = wanted(&table(vec![web(1, true), web(2, false), web(3, true)]), &Picture::default());
    let mode = backends(&["10.0.1.11", "10.0.1.13"]);
    assert_eq!(wanted.published, [PublishedPort::new(Protocol::Tcp, 8080, mode)]);
    assert_eq!(behind(&wanted), ["10.0.2.11", "10.0.2.13"]);
    let back = network(&wanted, "back");
    assert_eq!((back.endpoints.len(), back.overlay.as_ref()), (3, None));
    assert_eq!((back.network.vni, wanted.tasks.len()), (4097, 3));
}

#[test]
fn tasks_of_other_nodes_are_beside_those_of_this_one() {
    use Readiness::{Leaving, Planned, Ready, Starting};
    // Task 1 is this node's own; what the manager knows of it is old.
    let tasks = [(1, 1, Starting), (4, 2, Ready), (5, 2, Starting), (6, 3, Leaving), (7, 3, Planned), (8, 3, Ready)];
    let wanted = wanted(&table(vec![web(1, true)]), &picture(vec![back(&[1, 2, 3], &tasks), ingress(&[1, 2, 3], &tasks)]));
    assert_eq!(behind(&wanted), ["10.0.2.11", "10.0.2.14", "10.0.2.18"]);
    let mode = backends(&["10.0.1.11", "10.0.1.14", "10.0.1.18"]);
    assert_eq!(wanted.published, [PublishedPort::new(Protocol::Tcp, 8080, mode)]);
    let network = network(&wanted, "back");
    let with = network.overlay.as_ref().unwrap();
    assert_eq!((with.this.node_index, with.port), (1, 4789));
    assert_eq!(with.peers.iter().map(|peer| peer.node_index).collect::<Vec<_>>(), [2, 3]);
    let places: Vec<Location> = network.endpoints.iter().map(|endpoint| endpoint.location).collect();
    let on = |node_index| Location::Remote { node_index };
    assert_eq!(places, [Location::Local, on(2), on(2), on(3), on(3), on(3)], "known before anything leads there");
    assert_eq!(wanted.tasks.len(), 1);
}

#[test]
fn a_node_without_a_task_answers_published_ports_all_the_same() {
    let wanted = wanted(&table(vec![]), &picture(vec![ingress(&[1, 2], &[(4, 2, Readiness::Ready)])]));
    assert_eq!(wanted.published, [PublishedPort::new(Protocol::Tcp, 8080, backends(&["10.0.1.14"]))]);
    assert!(network(&wanted, "ingress").overlay.is_some());
}

#[test]
fn a_task_that_managers_want_gone_gets_nothing_more() {
    let tasks = [(1, 1, Readiness::Leaving), (4, 2, Readiness::Ready)];
    let wanted = wanted(&table(vec![web(1, true)]), &picture(vec![back(&[1, 2], &tasks), ingress(&[1, 2], &tasks)]));
    assert_eq!(behind(&wanted), ["10.0.2.14"]);
    assert_eq!(wanted.published[0].mode, backends(&["10.0.1.14"]));
}

#[test]
fn what_cannot_be_reached_is_behind_nothing() {
    let tasks = [(4, 2, Readiness::Ready), (5, 9, Readiness::Ready)];
    let state = |picture| behind(&wanted(&table(vec![web(1, true)]), &picture));
    assert_eq!(state(picture(vec![back(&[1, 2], &tasks)])), ["10.0.2.11", "10.0.2.14"], "node 9 is no peer");
    let mut other_family = back(&[1, 2], &tasks);
    other_family.peers.get_mut(&2).unwrap().underlay = ip("2001:db8::2");
    assert_eq!(state(picture(vec![other_family])), ["10.0.2.11"]);
    let numberless = Picture { node_index: 0, ..picture(vec![back(&[1, 2], &tasks)]) };
    assert_eq!(state(numberless), ["10.0.2.11"]);
}

#[test]
fn a_network_on_this_node_alone_spans_nothing() {
    let wanted = wanted(&table(vec![web(1, true)]), &picture(vec![back(&[1], &[(1, 1, Readiness::Ready)])]));
    assert_eq!(network(&wanted, "back").overlay, None);
    assert_eq!(behind(&wanted), ["10.0.2.11"]);
}

#[test]
fn a_network_that_nobody_is_on_is_not_made() {
    // Task 1 is to run here and has no network yet.
    let state = |picture| wanted(&table(vec![]), &picture);
    assert_eq!(state(picture(vec![back(&[1, 2], &[(1, 1, Readiness::Planned)]), ingress(&[1, 2], &[])])), Wanted::default());
}

#[test]
fn packets_are_smaller_over_nodes_with_ipv6() {
    let mut known = back(&[1, 2], &[(4, 2, Readiness::Starting)]);
    for (index, peer) in &mut known.peers {
        peer.underlay = format!("2001:db8::{index}").parse().unwrap();
    }
    let wanted = wanted(&table(vec![]), &picture(vec![known]));
    assert_eq!(network(&wanted, "back").network.mtu, 1430);
}

#[test]
fn of_two_tasks_with_one_address_the_one_that_serves_has_it() {
    // The manager gave the address of task 1 to task 4.
    let mut known = back(&[1, 2], &[(4, 2, Readiness::Planned)]);
    known.tasks.get_mut(&TaskId::for_test(4)).unwrap().addresses = vec![ip("10.0.2.11")];
    let owner = |held: Held, known: &NetworkPicture| {
        let wanted = wanted(&table(vec![held]), &picture(vec![known.clone()]));
        let found = network(&wanted, "back").endpoints.iter().find(|endpoint| endpoint.addresses == [ip("10.0.2.11")]);
        (found.unwrap().location, behind(&wanted))
    };
    let remote = Location::Remote { node_index: 2 };
    assert_eq!(owner(web(1, true), &known), (Location::Local, vec!["10.0.2.11".to_owned()]));
    let gone = Held { phase: Phase::Leaving { others_may_lead_here: false }, ..web(1, true) };
    assert_eq!(owner(gone.clone(), &known), (remote, vec![]));
    known.tasks.get_mut(&TaskId::for_test(4)).unwrap().readiness = Readiness::Ready;
    assert_eq!(owner(gone, &known), (remote, vec!["10.0.2.11".to_owned()]));
}

#[test]
fn a_task_on_no_network_is_on_the_bridge_with_its_host_ports() {
    let address: IpNet = "172.31.240.5/20".parse().unwrap();
    let task = task(1, "web");
    let network = task_network(&task, Some(address)).unwrap();
    assert_eq!(network.attachments[0].network.subnets[0].gateway, ip("172.31.240.1"));
    let host_ports = vec![published(80, 9000, WireMode::Host)];
    let held = Held { task: Arc::new(task), phase: Phase::Serving, host_ports, hostname: None, bridge: Some(address) };
    let wanted = wanted(&table(vec![held]), &Picture::default());
    assert_eq!(wanted.networks[0].network.name, "bridge");
    let PublishMode::Host { backends, .. } = &wanted.published[0].mode else { panic!("{:?}", wanted.published) };
    let backends: Vec<String> = backends.iter().map(|backend| backend.address.to_string()).collect();
    assert_eq!(backends, ["172.31.240.5", "fd73:6b65:7001::ac1f:f005"], "both families");
    assert_eq!(wanted.networks[0].endpoints[0].addresses.len(), 2);
    let gateways: Vec<String> = network.attachments[0].network.subnets.iter().map(|subnet| subnet.gateway.to_string()).collect();
    assert_eq!(gateways, ["172.31.240.1", "fd73:6b65:7001::ac1f:f001"]);
}

#[test]
fn a_service_says_who_may_come_and_its_older_tasks_where_they_listen() {
    let allow = vec!["192.0.2.0/24".parse().unwrap()];
    let mut known = ingress(&[1, 2], &[(4, 2, Readiness::Ready)]);
    let service = known.services.get_mut(&service1()).unwrap();
    (service.ports[0].allow, service.ports[0].affinity) = (allow.clone(), Affinity::Source);
    let expected =
        |backends| PublishedPort { allow: allow.clone(), affinity: Affinity::Source, ..PublishedPort::new(Protocol::Tcp, 8080, backends) };
    // The task of this node began when everybody could come.
    let one = wanted(&table(vec![web(1, true)]), &picture(vec![known.clone()]));
    assert_eq!(one.published, [expected(backends(&["10.0.1.11", "10.0.1.14"]))]);
    // Another place is another port: what is of the older edition answers where it did, until it is replaced.
    known.services.get_mut(&service1()).unwrap().ports[0].place = PublishPlace::Interface("eth1".into());
    let both = wanted(&table(vec![web(1, true)]), &picture(vec![known])).published;
    let narrow = PublishedPort { place: PublishPlace::Interface("eth1".into()), ..expected(backends(&["10.0.1.14"])) };
    assert_eq!(both, [PublishedPort::new(Protocol::Tcp, 8080, backends(&["10.0.1.11"])), narrow]);
}
