use super::*;
use crate::ipvs::ServiceChange;
use crate::ipvs::model::{difference, same};

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn vip(last: u8, backends: &[u8]) -> Vip {
    Vip { address: address(last), backends: backends.iter().map(|last| address(*last)).collect() }
}

fn port(protocol: Protocol, backends: &[u8]) -> PublishedPort {
    let backends = backends.iter().map(|last| Backend { address: address(*last), port: 80 }).collect();
    PublishedPort::new(protocol, 8080, PublishMode::Ingress { backends })
}

/// A balancer and a kernel that does what it is told.
#[derive(Default)]
struct World {
    balancer: Balancer,
    kernel: Services,
    gone: BTreeSet<IpAddr>,
}

const ENTRY: [u8; 4] = [169, 254, 64, 2];

impl World {
    fn lead(&mut self, vips: &[Vip], published: &[PublishedPort]) -> Vec<ServiceChange> {
        let every = self.balancer.want(Leading { vips, published, entries: &[IpAddr::from(ENTRY)] }, &self.kernel);
        self.step_of(every)
    }

    /// The same where only those may differ.
    fn lead_some(&mut self, vips: &[Vip], published: &[PublishedPort], ports: &BTreeSet<(Protocol, u16)>) -> Vec<ServiceChange> {
        let leading = Leading { vips, published, entries: &[IpAddr::from(ENTRY)] };
        let mut touched = self.balancer.want_some(leading, ports, &self.kernel);
        touched.extend(Held::from(self.kernel.clone()).closing());
        self.step_of(touched)
    }

    fn step(&mut self) -> Vec<ServiceChange> {
        let every = self.balancer.wanted.keys().chain(self.kernel.keys()).copied().collect();
        self.step_of(every)
    }

    fn step_of(&mut self, which: BTreeSet<Asked>) -> Vec<ServiceChange> {
        let services = self.balancer.services(&which, &self.kernel, |address| !self.gone.contains(&address));
        let mut held = Held::from(std::mem::take(&mut self.kernel));
        let changes = difference(&held.some(&which), &services);
        for asked in &which {
            held.put(*asked, services.get(asked).cloned());
        }
        self.kernel = held.services;
        self.balancer.told(&which, &self.kernel);
        changes
    }

    /// All that is connected: to every target, of every service of connections.
    fn connect(&mut self, connections: u32) {
        for (asked, targets) in &mut self.kernel {
            if !is_of_datagrams(*asked) {
                targets.values_mut().for_each(|state| state.connections = connections);
            }
        }
    }

    fn open(&self) -> Vec<(IpAddr, bool)> {
        let (_, targets) = self.kernel.iter().find(|(asked, _)| !is_of_datagrams(**asked)).unwrap();
        targets.iter().map(|(target, state)| (target.address, state.open)).collect()
    }
}

#[test]
fn a_virtual_address_is_two_services_with_all_targets() {
    let mut world = World::default();
    let changes = world.lead(&[vip(100, &[1, 2])], &[]);
    assert_eq!(changes.len(), 2 + 4, "{changes:?}");
    assert_eq!(world.balancer.marks(Family::V4).len(), 1);
    assert_eq!(world.lead(&[vip(100, &[2, 1])], &[]), [], "the order of backends means nothing");
}

#[test]
fn one_that_leaves_is_closed_for_connections_and_removed_for_datagrams_after_another_came() {
    let mut world = World::default();
    world.lead(&[vip(100, &[1])], &[]);
    world.connect(3);
    let changes = world.lead(&[vip(100, &[2])], &[]);
    let [came, also, closed, removed] = &changes[..] else { panic!("{changes:?}") };
    assert!(matches!(came, ServiceChange::AddTarget { open: true, .. }) && matches!(also, ServiceChange::AddTarget { open: true, .. }));
    assert!(matches!(closed, ServiceChange::SetTarget { open: false, .. }), "{changes:?}");
    assert!(matches!(removed, ServiceChange::RemoveTarget { .. }));
    assert_eq!(world.open(), [(address(1), false), (address(2), true)]);
    assert_eq!(world.step(), [], "as long as something is connected");
    world.connect(0);
    assert_eq!(world.step().len(), 1);
    assert_eq!(world.open(), [(address(2), true)]);
}

#[test]
fn one_that_comes_back_is_opened_again() {
    let mut world = World::default();
    world.lead(&[vip(100, &[1, 2])], &[]);
    world.connect(1);
    world.lead(&[vip(100, &[2])], &[]);
    let changes = world.lead(&[vip(100, &[1, 2])], &[]);
    assert!(matches!(changes[..], [ServiceChange::SetTarget { open: true, .. }, ServiceChange::AddTarget { .. }]), "{changes:?}");
}

#[test]
fn an_address_that_nobody_wants_stays_served_until_its_connections_ended() {
    let mut world = World::default();
    world.lead(&[vip(100, &[1])], &[]);
    world.connect(1);
    world.lead(&[], &[]);
    assert_eq!(world.balancer.marks(Family::V4).len(), 1);
    assert_eq!(world.open(), [(address(1), false)]);
    world.connect(0);
    let changes = world.step();
    assert!(matches!(changes[..], [ServiceChange::Remove(_)]), "{changes:?}");
    assert!(world.kernel.is_empty() && world.balancer.marks(Family::V4).is_empty());
}

#[test]
fn with_its_task_a_target_goes_whatever_is_connected() {
    let mut world = World::default();
    world.lead(&[vip(100, &[1])], &[port(Protocol::Tcp, &[1])]);
    world.connect(7);
    world.gone.insert(address(1));
    world.lead(&[], &[]);
    assert_eq!(world.kernel, Services::new());
}

#[test]
fn marks_of_an_earlier_run_stay_with_their_addresses_and_are_given_to_no_other() {
    let mut world = World::default();
    world.lead(&[vip(100, &[1]), vip(101, &[2])], &[]);
    world.connect(1);
    let marks = world.balancer.marks(Family::V4);
    // It knows the mark of one of the two only.
    let known = marks.iter().take(1).map(|(address, marks)| (*address, *marks)).collect();
    world.balancer = Balancer::with_marks(known);
    world.lead(&[vip(100, &[1]), vip(102, &[2])], &[]);
    let after = world.balancer.marks(Family::V4);
    assert_eq!(after[&address(100)], marks[&address(100)]);
    assert!(!marks.values().any(|old| *old == after[&address(102)]));
    assert_eq!(world.kernel.len(), 5, "what is connected by the mark of nobody stays, its datagrams go");
}

#[test]
fn a_port_is_led_to_by_the_sandboxs_own_address() {
    let mut world = World::default();
    let changes = world.lead(&[], &[port(Protocol::Tcp, &[1]), port(Protocol::Udp, &[1, 2])]);
    assert_eq!(changes.len(), 2 + 3);
    let entries = [IpAddr::from([169, 254, 64, 2]), "fd73::2".parse().unwrap()];
    let through = through_sandbox(&[port(Protocol::Tcp, &[1]), port(Protocol::Udp, &[])], &entries);
    let ways: Vec<Vec<Backend>> = through
        .into_iter()
        .map(|port| match port.mode {
            PublishMode::Ingress { backends } | PublishMode::Host { backends, .. } => backends,
        })
        .collect();
    assert_eq!(ways, [vec![Backend { address: entries[0], port: 8080 }], vec![]], "no task speaks IPv6, and none is behind the second");
}

#[test]
fn datagrams_of_what_left_are_forgotten_and_others_are_not() {
    use crate::nft::flows::Direction;
    let client = (address(99), 4000);
    let flow = |to: (IpAddr, u16), answers: (IpAddr, u16)| Flow {
        protocol: crate::nft::flows::UDP,
        original: Direction { source: client, destination: to },
        reply: Direction { source: answers, destination: client },
    };
    let (to_vip, to_port) = ((address(100), 53), (IpAddr::from([169, 254, 64, 2]), 8080));
    let mut world = World::default();
    world.lead(&[vip(100, &[1, 2])], &[port(Protocol::Udp, &[1, 2])]);
    world.lead(&[vip(100, &[2])], &[port(Protocol::Udp, &[2])]);
    let stale = |world: &World, flow| world.balancer.is_stale(&flow);
    assert!(stale(&world, flow(to_vip, (address(1), 53))) && stale(&world, flow(to_port, (address(1), 80))));
    assert!(!stale(&world, flow(to_vip, (address(2), 53))) && !stale(&world, flow(to_port, (address(2), 80))));
    assert!(!stale(&world, flow((address(7), 53), (address(7), 53))), "of one task to another");
    world.lead(&[], &[]);
    assert!(stale(&world, flow(to_port, (address(2), 80))));
}

#[test]
fn of_many_services_only_what_is_named_or_leaving_is_looked_at() {
    let mut world = World::default();
    let many: Vec<Vip> = (0..200).map(|last| vip(last, &[1])).collect();
    world.lead(&many, &[port(Protocol::Udp, &[1])]);
    world.connect(1);
    let mut touched = |vips: &[Vip], ports: &BTreeSet<(Protocol, u16)>| {
        let leading = Leading { vips, published: &[], entries: &[IpAddr::from(ENTRY)] };
        world.balancer.want_some(leading, ports, &world.kernel).len()
    };
    assert_eq!(touched(&[vip(7, &[2])], &BTreeSet::new()), 2);
    assert_eq!(touched(&[], &[(Protocol::Udp, 8080), (Protocol::Tcp, 1)].into()), 2);
    world.lead_some(&[vip(8, &[2])], &[], &BTreeSet::new());
    assert_eq!(Held::from(world.kernel.clone()).closing().len(), 1, "its first backend keeps what is connected");
}

#[test]
fn changes_told_one_by_one_lead_where_all_of_it_leads() {
    let mut random = 1u64;
    let mut below = |most: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from((random >> 33) % most).unwrap()
    };
    let (mut some, mut all) = (World::default(), World::default());
    let (mut vips, mut ports) = (BTreeMap::<u8, Vec<u8>>::new(), BTreeMap::<u16, Vec<u8>>::new());
    let port_at = |number: u16, backends: &[u8]| PublishedPort { port: number, ..port(Protocol::Udp, backends) };
    for round in 0..2_000 {
        let backends: Vec<u8> = (0..below(4)).map(|_| 1 + below(9)).collect();
        let (mut told_vips, mut told_ports, mut touched) = (Vec::new(), Vec::new(), BTreeSet::new());
        if below(3) > 0 {
            let last = 100 + below(6);
            told_vips.push(vip(last, &backends));
            vips.insert(last, backends);
        } else {
            let number = 8000 + u16::from(below(4));
            touched.insert((Protocol::Udp, number));
            told_ports.push(port_at(number, &backends));
            ports.insert(number, backends);
        }
        let gone: BTreeSet<IpAddr> = (0..below(3)).map(|_| address(1 + below(9))).collect();
        let connections = u32::from(below(2));
        for world in [&mut some, &mut all] {
            world.gone.clone_from(&gone);
            world.connect(connections);
        }
        some.lead_some(&told_vips, &told_ports, &touched);
        let vips: Vec<Vip> = vips.iter().map(|(last, backends)| vip(*last, backends)).collect();
        let ports: Vec<PublishedPort> = ports.iter().map(|(number, backends)| port_at(*number, backends)).collect();
        all.lead(&vips, &ports);
        assert_eq!(some.balancer.marks(Family::V4).keys().collect::<Vec<_>>(), all.balancer.marks(Family::V4).keys().collect::<Vec<_>>());
        assert!(same(&some.kernel, &all.kernel) && same(&all.kernel, &some.kernel), "round {round}: {:?} {:?}", some.kernel, all.kernel);
        assert_eq!(some.balancer.by_mark.len(), some.balancer.marks.len());
    }
}

fn carry_out(kernel: &mut Services, change: ServiceChange) {
    match change {
        ServiceChange::Add(of) => drop(kernel.insert(of, BTreeMap::new())),
        ServiceChange::AddTarget { of, target, open } | ServiceChange::SetTarget { of, target, open } => {
            let known = kernel.get_mut(&of).unwrap().entry(target).or_default();
            known.open = open;
        }
        ServiceChange::RemoveTarget { of, target } => drop(kernel.get_mut(&of).unwrap().remove(&target).unwrap()),
        ServiceChange::Remove(of) => drop(kernel.remove(&of).unwrap()),
    }
}

#[test]
fn cut_short_at_any_step_the_next_start_comes_to_what_is_wanted() {
    let before = [vip(100, &[1, 2]), vip(101, &[3])];
    let after = [vip(101, &[1, 3]), vip(102, &[2])];
    for steps in 0.. {
        let mut world = World::default();
        world.lead(&before, &[port(Protocol::Udp, &[1])]);
        world.connect(1);
        let (old, marks) = (world.kernel.clone(), world.balancer.marks(Family::V4));
        let changes = world.lead(&after, &[]);
        // It was killed after so many of them; the table still has the marks of before.
        world.kernel = old;
        changes.iter().take(steps).for_each(|change| carry_out(&mut world.kernel, *change));
        world.balancer = Balancer::with_marks(marks);
        world.lead(&after, &[]);
        let open = |address: IpAddr| {
            let mark = world.balancer.marks(Family::V4)[&address].connections();
            let targets = &world.kernel[&Asked::Marked { family: Family::V4, mark }];
            targets.iter().filter(|(_, state)| state.open).map(|(target, _)| target.address).collect::<Vec<_>>()
        };
        assert_eq!(open(address(101)), [address(1), address(3)], "after {steps} steps");
        assert_eq!(open(address(102)), [address(2)], "after {steps} steps");
        world.connect(0);
        world.step();
        assert_eq!(world.kernel.len(), 4, "nothing is left of what was before, after {steps} steps");
        if steps == changes.len() {
            return;
        }
    }
}

#[test]
fn what_is_told_is_what_is_wanted_whatever_was_before() {
    let mut world = World::default();
    for vips in [vec![vip(100, &[1, 2]), vip(101, &[3])], vec![vip(101, &[1])], vec![vip(100, &[2]), vip(102, &[1])], vec![]] {
        world.lead(&vips, &[]);
        world.step();
        let mut fresh = World::default();
        fresh.lead(&vips, &[]);
        let targets =
            |world: &World| world.kernel.values().cloned().map(|targets| targets.into_keys().collect::<Vec<_>>()).collect::<BTreeSet<_>>();
        assert_eq!(targets(&world), targets(&fresh), "nothing was connected");
        assert!(same(&world.kernel, &world.kernel));
    }
}
