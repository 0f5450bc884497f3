use super::*;
use crate::wanted::{Backend, PublishMode};

fn network(number: u64) -> Network {
    let name = format!("n{number}");
    Network { id: NetworkId::for_test(number), name, vni: 4096, subnets: vec![], mtu: 1450, internal: false, ingress: false }
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn endpoint(task: u64, address: u8, location: Location) -> Endpoint {
    Endpoint { task: TaskId::for_test(task), addresses: vec![ip(address)], location }
}

fn on(node_index: u32) -> Location {
    Location::Remote { node_index }
}

fn whole(endpoints: Vec<Endpoint>, vips: &[(u8, &[u8])]) -> WantedNetwork {
    let vip = |(last, backends): &(u8, &[u8])| Vip { address: ip(*last), backends: backends.iter().copied().map(ip).collect() };
    WantedNetwork { network: network(1), overlay: None, endpoints, vips: vips.iter().map(vip).collect() }
}

fn members(endpoints: &[(u64, Option<Endpoint>)], vips: &[(u8, Option<&[u8]>)]) -> Delta {
    let backends = |list: &&[u8]| list.iter().copied().map(ip).collect();
    let change = NetworkDelta::Members {
        endpoints: endpoints.iter().map(|(task, endpoint)| (TaskId::for_test(*task), endpoint.clone())).collect(),
        vips: vips.iter().map(|(address, list)| (ip(*address), list.as_ref().map(backends))).collect(),
    };
    Delta { networks: [(NetworkId::for_test(1), change)].into(), ..Delta::default() }
}

fn port(number: u16, host: Option<u64>) -> PublishedPort {
    let backends = vec![Backend { address: ip(1), port: 80 }];
    let mode = match host {
        Some(network) => PublishMode::Host { network: NetworkId::for_test(network), backends },
        None => PublishMode::Ingress { backends },
    };
    PublishedPort::new(Protocol::Tcp, number, mode)
}

fn desired(network: WantedNetwork) -> Desired {
    Wanted { networks: vec![network], ..Wanted::default() }.into()
}

#[test]
fn a_change_names_what_must_be_told_and_nothing_else() {
    let mut desired = desired(whole(vec![endpoint(1, 1, on(2)), endpoint(2, 2, on(2))], &[(100, &[1, 2]), (101, &[3])]));
    let dirty = desired.change(members(&[(1, Some(endpoint(1, 9, on(3))))], &[(100, Some(&[2, 9]))]));
    let part = Part::Members(Members { addresses: [ip(1), ip(9)].into(), vips: [ip(100)].into() });
    assert_eq!(dirty, Dirty { networks: [(NetworkId::for_test(1), part)].into(), ..Dirty::default() });
    let same = whole(vec![endpoint(1, 9, on(3)), endpoint(2, 2, on(2))], &[(100, &[2, 9]), (101, &[3])]);
    assert_eq!(desired.networks[&NetworkId::for_test(1)], same.into());
}

#[test]
fn of_two_tasks_with_one_address_the_greater_has_it_until_it_goes() {
    let mut desired = desired(whole(vec![endpoint(5, 1, on(5)), endpoint(4, 1, Location::Local)], &[]));
    let place = |desired: &Desired| desired.networks[&NetworkId::for_test(1)].place(ip(1));
    assert_eq!(place(&desired), Some(on(5)));
    desired.change(members(&[(5, None)], &[]));
    assert_eq!(place(&desired), Some(Location::Local));
    desired.change(members(&[(4, None)], &[]));
    assert_eq!((place(&desired), desired.networks[&NetworkId::for_test(1)].has(ip(1))), (None, false));
}

#[test]
fn a_port_that_the_host_leads_to_by_a_route_is_known_as_such() {
    let mut desired = Desired::default();
    let mut publish = |number: u16, ports: Vec<PublishedPort>| {
        let dirty = desired.change(Delta { published: [((Protocol::Tcp, number), ports)].into(), ..Delta::default() });
        let hosts: Vec<NetworkId> = desired.reached_by_host().into_keys().cloned().collect();
        (dirty.published.len(), dirty.host_routes, hosts)
    };
    assert_eq!(publish(80, vec![port(80, None)]), (1, false, vec![]));
    assert_eq!(publish(81, vec![port(81, Some(1))]), (1, true, vec![NetworkId::for_test(1)]));
    assert_eq!(publish(81, vec![port(81, Some(2))]), (1, true, vec![NetworkId::for_test(2)]));
    assert_eq!(publish(81, vec![]), (1, true, vec![]));
    assert_eq!(publish(80, vec![]), (1, false, vec![]));
    assert!(desired.published.is_empty());
}

#[test]
fn members_of_a_network_that_is_not_wanted_are_nobody() {
    let mut desired = Desired::default();
    assert_eq!(desired.change(members(&[(1, Some(endpoint(1, 1, on(2))))], &[])), Dirty::default());
    assert_eq!(desired, Desired::default());
}

#[test]
fn what_is_said_before_it_is_heard_is_one_change() {
    let id = NetworkId::for_test(1);
    let first = whole(vec![endpoint(1, 1, on(2))], &[(100, &[1])]);
    let steps = [
        Delta { networks: [(id.clone(), NetworkDelta::Whole(first.clone()))].into(), ..Delta::default() },
        members(&[(2, Some(endpoint(2, 2, on(3))))], &[(100, Some(&[1, 2])), (101, Some(&[2]))]),
        Delta { tasks: [(TaskId::for_test(1), true)].into(), ..Delta::default() },
        members(&[(1, None)], &[(100, Some(&[2])), (101, None)]),
        Delta { networks: [(id.clone(), NetworkDelta::Gone)].into(), ..Delta::default() },
        members(&[(3, Some(endpoint(3, 3, on(3))))], &[]),
        Delta { tasks: [(TaskId::for_test(1), false)].into(), ..Delta::default() },
    ];
    // Heard at any two moments, or one by one: the end is the same.
    for count in 1..=steps.len() {
        for split in 0..=count {
            let (mut one_by_one, mut heard) = (desired(first.clone()), desired(first.clone()));
            for step in &steps[..count] {
                one_by_one.change(step.clone());
            }
            for part in [&steps[..split], &steps[split..count]] {
                let mut said = Delta::default();
                part.iter().for_each(|step| said.then(step.clone()));
                heard.change(said);
            }
            assert_eq!(heard, one_by_one, "{split} of {count}");
        }
    }
}

#[test]
fn a_change_after_a_whole_state_that_was_not_heard_is_part_of_it() {
    let mut said = Said::default();
    said.change(members(&[(7, None)], &[]));
    said.set(Wanted { networks: vec![whole(vec![], &[])], ..Wanted::default() });
    said.change(members(&[(1, Some(endpoint(1, 1, on(2))))], &[]));
    assert!(said.delta.is_empty());
    assert_eq!(said.whole, Some(desired(whole(vec![endpoint(1, 1, on(2))], &[]))));
}
