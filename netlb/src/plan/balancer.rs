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

/// The two marks of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

/// What leads to tasks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Leading<'a> {
    pub(crate) vips: &'a [Vip],
    pub(crate) published: &'a [PublishedPort],
    /// The sandbox's end of its link to the host, to which the host leads published ports. Empty for a network that has none.
    pub(crate) entries: &'a [IpAddr],
}

/// The services of a sandbox: what the kernel was told last, and what it should be told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Balancer {
    marks: BTreeMap<IpAddr, Marks>,
    /// The virtual addresses of which IPVS takes care; some only for what is still connected.
    served: BTreeSet<IpAddr>,
    wanted: BTreeMap<Asked, BTreeSet<Target>>,
    /// Addresses and ports that lead nowhere since the latest change.
    left: BTreeSet<(IpAddr, Option<u16>)>,
}

impl Balancer {
    /// One that goes on where an earlier run ended, with the marks that it had.
    pub(crate) fn with_marks(marks: BTreeMap<IpAddr, Marks>) -> Self {
        Self { marks, ..Self::default() }
    }

    /// Takes over what is wanted. `is` is what the kernel has: marks in use there stay with their address or with none.
    pub(crate) fn want(&mut self, leading: Leading<'_>, is: &Services) {
        let before = std::mem::take(&mut self.wanted);
        for Vip { address, backends } in leading.vips {
            let targets = backends.iter().filter(|backend| backend.is_ipv4() == address.is_ipv4());
            let targets: BTreeSet<Target> = targets.map(|backend| Target { address: *backend, port: 0 }).collect();
            if !targets.is_empty() {
                let (family, marks) = (Family::of(*address), self.marks_of(*address, is));
                for mark in [marks.connections(), marks.datagrams()] {
                    self.wanted.entry(Asked::Marked { family, mark }).or_default().extend(&targets);
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
                    self.wanted.entry(asked).or_default().extend(targets);
                }
            }
        }
        let gone = before.into_keys().filter(|asked| !self.wanted.contains_key(asked));
        self.left = gone.filter_map(|asked| self.destination(asked)).collect();
    }

    fn marks_of(&mut self, address: IpAddr, is: &Services) -> Marks {
        if let Some(marks) = self.marks.get(&address) {
            return *marks;
        }
        let family = Family::of(address);
        let same_family = self.marks.iter().filter(|(other, _)| Family::of(**other) == family);
        let mut taken: BTreeSet<u32> = same_family.map(|(_, marks)| marks.0).collect();
        taken.extend(is.keys().filter_map(|asked| match asked {
            Asked::Marked { family: other, mark } if *other == family => Some(mark & !1),
            Asked::Marked { .. } | Asked::At { .. } => None,
        }));
        let free = (0..).map(Marks::numbered).find(|marks| !taken.contains(&marks.0)).expect("there are fewer addresses than marks");
        self.marks.insert(address, free);
        free
    }

    /// Whom clients of a UDP service send to.
    fn destination(&self, asked: Asked) -> Option<(IpAddr, Option<u16>)> {
        match asked {
            Asked::At { protocol: Protocol::Udp, address, port } => Some((address, Some(port))),
            Asked::At { .. } => None,
            Asked::Marked { family, mark } => {
                let mut of_family = self.marks.iter().filter(|(address, _)| Family::of(**address) == family);
                of_family.find(|(_, marks)| marks.datagrams() == mark).map(|(address, _)| (*address, None))
            }
        }
    }

    /// What the kernel should have, given what it has. `exists` tells whether a task has that address.
    pub(crate) fn services(&self, is: &Services, exists: impl Fn(IpAddr) -> bool) -> Services {
        let open = TargetState { open: true, connections: 0 };
        let mut services: Services =
            self.wanted.iter().map(|(asked, targets)| (*asked, targets.iter().map(|target| (*target, open)).collect())).collect();
        for (asked, targets) in is {
            if is_of_datagrams(*asked) {
                continue;
            }
            let wanted = self.wanted.get(asked);
            let leaving = targets.iter().filter(|(target, _)| !wanted.is_some_and(|wanted| wanted.contains(target)));
            let staying = leaving.filter(|(target, state)| exists(target.address) && (state.open || state.connections > 0));
            let closed: BTreeMap<Target, TargetState> =
                staying.map(|(target, state)| (*target, TargetState { open: false, connections: state.connections })).collect();
            if !closed.is_empty() {
                services.entry(*asked).or_default().extend(closed);
            }
        }
        services
    }

    /// Remembers what the kernel has now: which addresses are served, and the marks of those alone.
    pub(crate) fn told(&mut self, services: &Services) {
        let served = |address: &IpAddr, marks: &Marks| {
            let family = Family::of(*address);
            [marks.connections(), marks.datagrams()].into_iter().any(|mark| services.contains_key(&Asked::Marked { family, mark }))
        };
        self.marks.retain(|address, marks| served(address, marks));
        self.served = self.marks.keys().copied().collect();
    }

    /// The virtual addresses of that family that are served, with their marks.
    pub(crate) fn marks(&self, family: Family) -> BTreeMap<IpAddr, Marks> {
        self.marks
            .iter()
            .filter(|(address, _)| self.served.contains(*address) && Family::of(**address) == family)
            .map(|(a, m)| (*a, *m))
            .collect()
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

/// Those that still have targets which only keep what is connected: what is connected to them must be read before a step.
pub(crate) fn closing(services: &Services) -> impl Iterator<Item = Asked> + '_ {
    services.iter().filter(|(_, targets)| targets.values().any(|state| !state.open)).map(|(asked, _)| *asked)
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

    impl World {
        fn lead(&mut self, vips: &[Vip], published: &[PublishedPort]) -> Vec<ServiceChange> {
            self.balancer.want(Leading { vips, published, entries: &[IpAddr::from([169, 254, 64, 2])] }, &self.kernel);
            self.step()
        }

        fn step(&mut self) -> Vec<ServiceChange> {
            let services = self.balancer.services(&self.kernel, |address| !self.gone.contains(&address));
            let changes = difference(&self.kernel, &services);
            self.kernel = services;
            self.balancer.told(&self.kernel);
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
