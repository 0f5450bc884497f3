use super::*;
use crate::wanted::{Endpoint, Overlay, Peer, Vip, WantedNetwork};
use skep_types::TaskId;

fn network() -> Network {
    Network {
        id: skep_types::NetworkId::for_test(1),
        name: "n".into(),
        vni: 4097,
        subnets: vec![],
        mtu: 1450,
        internal: false,
        ingress: true,
    }
}

fn spread(vips: &[(u8, &[u8])], local: &[u8], peers: &[(u8, u32)]) -> Spread {
    let address = |last: u8| IpAddr::from([10, 0, 0, last]);
    let vip = |(last, backends): &(u8, &[u8])| Vip { address: address(*last), backends: backends.iter().copied().map(address).collect() };
    let here =
        |last: &u8| Endpoint { task: TaskId::for_test(u64::from(*last)), addresses: vec![address(*last)], location: Location::Local };
    let peer = |last: u8, node_index| Peer { node_index, underlay: address(last), mac: Mac([2, 0, 0, 0, 0, last]) };
    WantedNetwork {
        network: network(),
        overlay: Some(Overlay { this: peer(1, 1), port: 4789, peers: peers.iter().map(|(last, index)| peer(*last, *index)).collect() }),
        endpoints: local.iter().map(here).collect(),
        vips: vips.iter().map(vip).collect(),
    }
    .into()
}

fn inside(spread: &Spread) -> InSandbox<'_> {
    InSandbox { spread, marks: BTreeMap::new() }
}

#[test]
fn only_local_backends_are_kept_from_seeing_themselves() {
    let mut table = SandboxTable::new(Family::V4, &network(), false);
    let update = table.lead(&inside(&spread(&[(100, &[1, 2])], &[1], &[])));
    let key = vec![10, 0, 0, 1, 10, 0, 0, 1];
    assert!(update.changes.contains(&ElementChange::Add { set: "hairpin", key, value: Value::Nothing }));
    assert_eq!((update.chains.len(), update.changes.len()), (1, 4), "two slots, the verdict and the pair");
}

fn members(addresses: &[u8], vips: &[u8]) -> Members {
    let of = |last: &[u8]| last.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect();
    Members { addresses: of(addresses), vips: of(vips) }
}

#[test]
fn of_many_only_what_is_named_is_looked_at() {
    let mut table = SandboxTable::new(Family::V4, &network(), false);
    table.lead(&inside(&spread(&[(100, &[1, 2]), (101, &[3])], &[1], &[])));
    let now = spread(&[(100, &[1, 4]), (101, &[])], &[4], &[]);
    let update = table.lead_members(&now, &members(&[], &[100]), &BTreeMap::new());
    assert_eq!((update.changes.len(), update.flows_change), (3, true), "one slot for another, and a pair for who is here");
    let update = table.lead_members(&now, &members(&[1, 4], &[]), &BTreeMap::new());
    assert_eq!((update.changes.len(), update.flows_change), (1, false), "one that is here no more");
    let update = table.lead(&inside(&now));
    assert_eq!(update.changes.len(), 2, "the other address, which was not named: {update:?}");
    assert_eq!(table.lead(&inside(&now)), Update::default());
}

#[test]
fn a_node_that_comes_or_goes_is_one_element_and_moves_no_flow() {
    let mut table = SandboxTable::new(Family::V6, &network(), false);
    let mac = |last| Mac([2, 0, 0, 0, 0, last]);
    table.lead(&inside(&spread(&[], &[], &[(2, 2), (3, 3)])));
    let update = table.lead(&inside(&spread(&[], &[], &[(2, 2), (3, 3), (4, 4)])));
    let key = mac(4).0.to_vec();
    assert_eq!(update.changes, [ElementChange::Add { set: "peers", key, value: Value::Data(4u32.to_ne_bytes().to_vec()) }]);
    assert!(!update.flows_change);
    let update = table.lead(&inside(&spread(&[], &[], &[(2, 2), (4, 4)])));
    assert_eq!((update.changes.len(), update.flows_change), (1, false));
    assert_eq!(table.table().elements["peers"].len(), 2);
}

#[test]
fn an_address_for_ipvs_is_two_marks_whatever_its_backends() {
    let mut table = SandboxTable::new(Family::V4, &network(), true);
    let address = IpAddr::from([10, 0, 0, 100]);
    let marks: BTreeMap<IpAddr, Marks> = [(address, Marks::from_connections(0x5000_0000).unwrap())].into();
    let (first, second, none) = (spread(&[(100, &[1])], &[], &[]), spread(&[(100, &[2])], &[], &[]), spread(&[], &[], &[]));
    let update = table.lead(&InSandbox { spread: &first, marks: marks.clone() });
    assert_eq!((update.chains.len(), update.changes.len(), update.flows_change), (0, 2, true));
    assert_eq!(table.lead(&InSandbox { spread: &second, marks: marks.clone() }), Update::default());
    assert_eq!(marks_in(&table.table().elements[MARKS]), marks);
    let update = table.lead(&inside(&none));
    assert!(update.changes.iter().all(|change| matches!(change, ElementChange::Remove { .. })) && update.changes.len() == 2);
}

#[test]
fn tasks_behind_marked_addresses_are_kept_apart_change_by_change() {
    let marks = Marks::from_connections(0x5000_0000);
    let known: BTreeMap<IpAddr, Marks> = [(IpAddr::from([10, 0, 0, 100]), marks.unwrap())].into();
    let mut table = SandboxTable::new(Family::V4, &network(), true);
    table.lead(&InSandbox { spread: &spread(&[(100, &[1]), (101, &[1])], &[1, 2], &[]), marks: known });
    let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
    assert_eq!(table.hairpin, [one].into());
    let now = spread(&[(100, &[2]), (101, &[1])], &[1, 2], &[]);
    table.lead_members(&now, &members(&[], &[100]), &[(IpAddr::from([10, 0, 0, 100]), marks)].into());
    assert_eq!(table.hairpin, [one, two].into(), "it is behind the other one still");
    let now = spread(&[(100, &[2])], &[1, 2], &[]);
    let gone = [(IpAddr::from([10, 0, 0, 101]), None)].into();
    let update = table.lead_members(&now, &members(&[], &[101]), &gone);
    assert_eq!(table.hairpin, [two].into());
    assert!(!update.flows_change, "{update:?}");
    let gone = [(IpAddr::from([10, 0, 0, 100]), None)].into();
    let update = table.lead_members(&spread(&[], &[1, 2], &[]), &members(&[], &[100]), &gone);
    assert!(update.flows_change && table.hairpin.is_empty() && table.uses.is_empty(), "{update:?}");
}

#[test]
fn whom_a_task_has_is_known_wherever_it_is_and_whether_or_not_a_way_leads_there() {
    let mut table = SandboxTable::new(Family::V4, &network(), false).resetting(true);
    let mut now = spread(&[(100, &[1])], &[1], &[]);
    let far = Endpoint {
        task: TaskId::for_test(9),
        addresses: vec![IpAddr::from([10, 0, 0, 9]), "fd00::9".parse().unwrap()],
        location: Location::Remote { node_index: 7 },
    };
    let addresses: BTreeSet<IpAddr> = far.addresses.iter().copied().collect();
    table.lead(&inside(&now));
    let put = |now: &mut Spread, far: Option<&Endpoint>| {
        let mut all: WantedNetwork = now.clone().into();
        all.endpoints.retain(|endpoint| endpoint.task != TaskId::for_test(9));
        all.endpoints.extend(far.cloned());
        *now = all.into();
    };
    let members = Members { addresses, vips: BTreeSet::new() };
    let key = vec![10, 0, 0, 9];
    put(&mut now, Some(&far));
    let update = table.lead_members(&now, &members, &BTreeMap::new());
    assert_eq!(update.changes, [ElementChange::Add { set: HERE, key: key.clone(), value: Value::Nothing }]);
    assert!(!update.flows_change);
    assert_eq!(table.table().elements[HERE].len(), 2);
    put(&mut now, None);
    assert_eq!(
        table.lead_members(&now, &members, &BTreeMap::new()).changes,
        [ElementChange::Remove { set: HERE, key, value: Value::Nothing }]
    );
    assert_eq!(table.lead(&inside(&now)), Update::default());
}

#[test]
fn segments_fit_into_the_networks_packets() {
    let announced = |family| {
        let steps = clamp(family, 1400).steps;
        steps.iter().find_map(|step| match step {
            Expr::Constant { value, .. } => Some(u16::from_be_bytes([value[0], value[1]])),
            _ => None,
        })
    };
    assert_eq!((announced(Family::V4), announced(Family::V6)), (Some(1360), Some(1340)));
}
