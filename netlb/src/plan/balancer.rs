//! What IPVS should do in a sandbox: virtual addresses by mark, published ports by the sandbox's own address.
//!
//! ```text
//!   client ─► prerouting: mark of 10.0.1.100 ─► local route ─► input: IPVS picks 10.0.1.11 ─► output: no mark ─► t<task>
//!   client ◄───────────────────────────── forward: IPVS puts 10.0.1.100 back as the source ◄───────────────────── t<task>
//! ```
//! A mark stands for all ports of an address, as IPVS has no other word for that. Each address has two, for a target that
//! leaves is *closed* where there are connections (it keeps those it has) and *removed* where there are none (UDP: its flows go
//! to another one at once).
//!
//! A closed target goes when nothing is connected to it any more, or its task is gone: then the sandbox, to whose address the
//! packets are, resets what is left.

use crate::ipvs::{Asked, Services, Target, TargetState};
use crate::nft::Family;
use crate::nft::flows::Flow;
use crate::wanted::{Backend, Protocol, PublishMode, PublishedPort, Vip};
use skep_types::{Affinity, PublishPlace};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The first of the marks. They mean something in a sandbox only, where nobody else has marks but the way back to nodes,
/// which counts from 1; they come off before a packet leaves.
const FIRST_MARK: u32 = 0x5000_0000;
/// How many addresses can have marks.
const NUMBERS: u32 = (u32::MAX - FIRST_MARK) / 2;

/// The two marks of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Marks(u32);

impl Marks {
    fn numbered(number: u32) -> Self {
        Self(FIRST_MARK + number * 2)
    }

    /// Of what has connections: TCP, SCTP, and, as IPVS has nothing to do with it, ICMP.
    pub(crate) fn connections(self) -> u32 {
        self.0
    }

    /// Of UDP.
    pub(crate) fn datagrams(self) -> u32 {
        self.0 + 1
    }

    /// Those whose first is this.
    pub(crate) fn from_connections(mark: u32) -> Option<Self> {
        (mark >= FIRST_MARK && mark.is_multiple_of(2)).then_some(Self(mark))
    }

    /// Those of which this is one.
    fn containing(mark: u32) -> Option<Self> {
        Self::from_connections(mark & !1)
    }
}

/// What leads to tasks: all of it, or what may differ from before.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Leading<'a> {
    /// One without backends is wanted no more.
    pub(crate) vips: &'a [Vip],
    pub(crate) published: &'a [PublishedPort],
    /// The sandbox's end of its link to the host, to which the host leads published ports. Empty for a network that has none.
    pub(crate) entries: &'a [IpAddr],
}

/// The services of a sandbox: what the kernel was told last, and what it should be told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Balancer {
    marks: BTreeMap<IpAddr, Marks>,
    /// The same the other way round.
    by_mark: BTreeMap<(Family, Marks), IpAddr>,
    /// Numbers below were given to an address of the family already: they are looked at again when there are no more.
    next_number: BTreeMap<Family, u32>,
    /// The virtual addresses of which IPVS takes care; some only for what is still connected.
    served: BTreeSet<IpAddr>,
    wanted: BTreeMap<Asked, BTreeSet<Target>>,
    /// Addresses and ports that lead nowhere since the latest change.
    left: BTreeSet<(IpAddr, Option<u16>)>,
}

impl Balancer {
    /// One that goes on where an earlier run ended, with the marks that it had.
    pub(crate) fn with_marks(marks: BTreeMap<IpAddr, Marks>) -> Self {
        let by_mark = marks.iter().map(|(address, marks)| ((Family::of(*address), *marks), *address)).collect();
        Self { marks, by_mark, ..Self::default() }
    }

    /// Takes over all that is wanted. `is` is what the kernel has: marks in use there stay with their address or with none. Returns the
    /// services that may differ: those that were wanted, that are, and that the kernel has.
    pub(crate) fn want(&mut self, leading: Leading<'_>, is: &Services) -> BTreeSet<Asked> {
        let known = self.marks.keys().filter_map(|address| self.services_of(*address)).flatten();
        let mut wanted: BTreeMap<Asked, BTreeSet<Target>> =
            self.wanted.keys().copied().chain(known).map(|asked| (asked, BTreeSet::new())).collect();
        self.lead(leading, is, &mut wanted);
        let every = wanted.keys().chain(is.keys()).copied().collect();
        self.take_over(wanted);
        every
    }

    /// The same where only these addresses and ports may differ; of the ports `published` has all that is left.
    pub(crate) fn want_some(&mut self, leading: Leading<'_>, ports: &BTreeSet<(Protocol, u16)>, is: &Services) -> BTreeSet<Asked> {
        let at = |entry: IpAddr| ports.iter().map(move |(protocol, port)| Asked::At { protocol: *protocol, address: entry, port: *port });
        let mut wanted: BTreeMap<Asked, BTreeSet<Target>> =
            leading.entries.iter().flat_map(|entry| at(*entry)).map(|asked| (asked, BTreeSet::new())).collect();
        for asked in leading.vips.iter().filter_map(|vip| self.services_of(vip.address)).flatten() {
            wanted.insert(asked, BTreeSet::new());
        }
        self.lead(leading, is, &mut wanted);
        let touched = wanted.keys().copied().collect();
        self.take_over(wanted);
        touched
    }

    fn lead(&mut self, leading: Leading<'_>, is: &Services, wanted: &mut BTreeMap<Asked, BTreeSet<Target>>) {
        for Vip { address, backends } in leading.vips {
            let targets = backends.iter().filter(|backend| backend.is_ipv4() == address.is_ipv4());
            let targets: BTreeSet<Target> = targets.map(|backend| Target { address: *backend, port: 0 }).collect();
            if !targets.is_empty() {
                let (family, marks) = (Family::of(*address), self.marks_of(*address, is));
                for mark in [marks.connections(), marks.datagrams()] {
                    wanted.entry(Asked::Marked { family, mark }).or_default().extend(&targets);
                }
            }
        }
        for published in leading.published.iter().filter(|port| is_for_ipvs(port)) {
            let (PublishedPort { protocol, port, .. }, backends) = (published, published.backends());
            for entry in leading.entries {
                let targets = backends.iter().filter(|backend| backend.address.is_ipv4() == entry.is_ipv4());
                let targets: BTreeSet<Target> =
                    targets.map(|Backend { address, port }| Target { address: *address, port: *port }).collect();
                if !targets.is_empty() {
                    let asked = Asked::At { protocol: *protocol, address: *entry, port: *port };
                    wanted.entry(asked).or_default().extend(targets);
                }
            }
        }
    }

    /// Those without targets are wanted no more.
    fn take_over(&mut self, wanted: BTreeMap<Asked, BTreeSet<Target>>) {
        self.left.clear();
        for (asked, targets) in wanted {
            if !targets.is_empty() {
                self.wanted.insert(asked, targets);
            } else if self.wanted.remove(&asked).is_some() {
                self.left.extend(self.destination(asked));
            }
        }
    }

    /// The services of a virtual address that has marks.
    fn services_of(&self, address: IpAddr) -> Option<[Asked; 2]> {
        let family = Family::of(address);
        let marks = self.marks.get(&address)?;
        Some([marks.connections(), marks.datagrams()].map(|mark| Asked::Marked { family, mark }))
    }

    fn marks_of(&mut self, address: IpAddr, is: &Services) -> Marks {
        if let Some(marks) = self.marks.get(&address) {
            return *marks;
        }
        let family = Family::of(address);
        let in_kernel = |mark| is.contains_key(&Asked::Marked { family, mark });
        let is_free = |number: &u32| {
            let marks = Marks::numbered(*number);
            !self.by_mark.contains_key(&(family, marks)) && !in_kernel(marks.connections()) && !in_kernel(marks.datagrams())
        };
        let next = self.next_number.get(&family).copied().unwrap_or_default();
        let mut numbers = (next..NUMBERS).chain(0..next);
        let number = numbers.find(is_free).expect("there are fewer addresses than marks");
        self.next_number.insert(family, (number + 1) % NUMBERS);
        let marks = Marks::numbered(number);
        self.marks.insert(address, marks);
        self.by_mark.insert((family, marks), address);
        marks
    }

    /// The virtual address that a service by mark is of.
    pub(crate) fn address_of(&self, asked: Asked) -> Option<IpAddr> {
        let Asked::Marked { family, mark } = asked else { return None };
        self.by_mark.get(&(family, Marks::containing(mark)?)).copied()
    }

    /// Whom clients of a UDP service send to.
    fn destination(&self, asked: Asked) -> Option<(IpAddr, Option<u16>)> {
        match asked {
            Asked::At { protocol: Protocol::Udp, address, port } => Some((address, Some(port))),
            Asked::Marked { .. } if is_of_datagrams(asked) => Some((self.address_of(asked)?, None)),
            Asked::At { .. } | Asked::Marked { .. } => None,
        }
    }

    /// What the kernel should have of these services, given what it has. `exists` tells whether a task has that address.
    pub(crate) fn services(&self, which: &BTreeSet<Asked>, is: &Services, exists: impl Fn(IpAddr) -> bool) -> Services {
        let open = TargetState { open: true, connections: 0 };
        let mut services = Services::new();
        for asked in which {
            let wanted = self.wanted.get(asked);
            let mut targets: BTreeMap<Target, TargetState> = wanted.into_iter().flatten().map(|target| (*target, open)).collect();
            if !is_of_datagrams(*asked) {
                let leaving = is.get(asked).into_iter().flatten();
                let leaving = leaving.filter(|(target, _)| !wanted.is_some_and(|wanted| wanted.contains(target)));
                let staying = leaving.filter(|(target, state)| exists(target.address) && (state.open || state.connections > 0));
                targets.extend(staying.map(|(target, state)| (*target, TargetState { open: false, connections: state.connections })));
            }
            if !targets.is_empty() {
                services.insert(*asked, targets);
            }
        }
        services
    }

    /// Remembers what the kernel has now of these services: which addresses are served, and the marks of those alone. Returns the virtual
    /// addresses that they are of.
    pub(crate) fn told(&mut self, which: &BTreeSet<Asked>, is: &Services) -> BTreeSet<IpAddr> {
        let addresses: BTreeSet<IpAddr> = which.iter().filter_map(|asked| self.address_of(*asked)).collect();
        for address in &addresses {
            if self.services_of(*address).is_some_and(|services| services.iter().any(|asked| is.contains_key(asked))) {
                self.served.insert(*address);
                continue;
            }
            self.served.remove(address);
            if let Some(marks) = self.marks.remove(address) {
                self.by_mark.remove(&(Family::of(*address), marks));
            }
        }
        addresses
    }

    /// The marks of that address, if it is served.
    pub(crate) fn marks_served(&self, address: IpAddr) -> Option<Marks> {
        self.served.contains(&address).then(|| self.marks.get(&address).copied()).flatten()
    }

    /// The virtual addresses of that family that are served, with their marks.
    pub(crate) fn marks(&self, family: Family) -> BTreeMap<IpAddr, Marks> {
        let of_family = self.served.iter().filter(|address| Family::of(**address) == family);
        of_family.filter_map(|address| Some((*address, *self.marks.get(address)?))).collect()
    }

    /// Whether a UDP flow leads to none of the targets of what it was sent to.
    pub(crate) fn is_stale(&self, flow: &Flow) -> bool {
        let ((address, port), from) = (flow.original.destination, flow.reply.source);
        if self.left.contains(&(address, None)) || self.left.contains(&(address, Some(port))) {
            return true;
        }
        let to_virtual = self.marks.get(&address).map(|marks| Asked::Marked { family: Family::of(address), mark: marks.datagrams() });
        let asked = to_virtual.unwrap_or(Asked::At { protocol: Protocol::Udp, address, port });
        let leads = |target: &Target| target.address == from.0 && (target.port == 0 || target.port == from.1);
        self.wanted.get(&asked).is_some_and(|targets| !targets.iter().any(leads))
    }
}

/// Whether it is one of UDP, whose flows have no end that one could wait for.
fn is_of_datagrams(asked: Asked) -> bool {
    match asked {
        Asked::Marked { mark, .. } => Marks::from_connections(mark).is_none(),
        Asked::At { protocol, .. } => protocol == Protocol::Udp,
    }
}

/// What the kernel has, and which services of it still have targets that only keep what is connected: what is connected to those must be
/// read before a step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    services: Services,
    closing: BTreeSet<Asked>,
}

impl From<Services> for Held {
    fn from(services: Services) -> Self {
        let closing = services.iter().filter(|(_, targets)| is_closing(targets)).map(|(asked, _)| *asked).collect();
        Self { services, closing }
    }
}

fn is_closing(targets: &BTreeMap<Target, TargetState>) -> bool {
    targets.values().any(|state| !state.open)
}

impl Held {
    pub(crate) fn services(&self) -> &Services {
        &self.services
    }

    pub(crate) fn closing(&self) -> &BTreeSet<Asked> {
        &self.closing
    }

    /// Those services of it.
    pub(crate) fn some(&self, which: &BTreeSet<Asked>) -> Services {
        which.iter().filter_map(|asked| Some((*asked, self.services.get(asked)?.clone()))).collect()
    }

    /// `None`: the service is there no more.
    pub(crate) fn put(&mut self, asked: Asked, targets: Option<BTreeMap<Target, TargetState>>) {
        if targets.as_ref().is_some_and(is_closing) {
            self.closing.insert(asked);
        } else {
            self.closing.remove(&asked);
        }
        match targets {
            Some(targets) => drop(self.services.insert(asked, targets)),
            None => drop(self.services.remove(&asked)),
        }
    }
}

/// Whether IPVS spreads the port. It leads host-mode ports no better, knows them by number only, so one of several places would
/// be all of them, and a client must find its task by whichever node it comes, whatever balances there.
fn is_for_ipvs(port: &PublishedPort) -> bool {
    matches!(port.mode, PublishMode::Ingress { .. }) && port.place == PublishPlace::Everywhere && port.affinity == Affinity::None
}

/// Published ports as the host sees them: one way each, to the sandbox that balances.
pub(crate) fn through_sandbox(published: &[PublishedPort], entries: &[IpAddr]) -> Vec<PublishedPort> {
    let through = |port: &PublishedPort| {
        if !is_for_ipvs(port) {
            return port.clone();
        }
        let of_family = |entry: &&IpAddr| port.backends().iter().any(|backend| backend.address.is_ipv4() == entry.is_ipv4());
        let backends = entries.iter().filter(of_family).map(|entry| Backend { address: *entry, port: port.port }).collect();
        PublishedPort { mode: PublishMode::Ingress { backends }, ..port.clone() }
    };
    published.iter().map(through).collect()
}

#[cfg(test)]
mod tests {
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
            assert_eq!(
                some.balancer.marks(Family::V4).keys().collect::<Vec<_>>(),
                all.balancer.marks(Family::V4).keys().collect::<Vec<_>>()
            );
            assert!(
                same(&some.kernel, &all.kernel) && same(&all.kernel, &some.kernel),
                "round {round}: {:?} {:?}",
                some.kernel,
                all.kernel
            );
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
            let targets = |world: &World| {
                world.kernel.values().cloned().map(|targets| targets.into_keys().collect::<Vec<_>>()).collect::<BTreeSet<_>>()
            };
            assert_eq!(targets(&world), targets(&fresh), "nothing was connected");
            assert!(same(&world.kernel, &world.kernel));
        }
    }
}
