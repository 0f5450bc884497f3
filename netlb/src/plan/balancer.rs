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
mod tests;
