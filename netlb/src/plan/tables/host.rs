//! The host's tables: published ports to tasks, tasks to the outside, nothing else to tasks.

use super::super::layout::{LINK_RANGE_V4, LINK_RANGE_V6};
use super::balanced::Balanced;
use super::*;
use crate::names::Tag;
use crate::nft::flows::Flow;
use crate::nft::model::Holds;
use crate::nft::{Elements, Set, Table, Value};
use crate::wanted::{Backend, Protocol, PublishMode, PublishedPort};
use std::collections::BTreeMap;

/// Fields of a concatenation are padded to registers: four bytes.
fn protocol_port(protocol: Protocol, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![protocol.number(), 0, 0, 0, high, low, 0, 0]
}

fn backend_bytes(backend: &Backend) -> Vec<u8> {
    let [high, low] = backend.port.to_be_bytes();
    [address_bytes(backend.address).as_slice(), &[high, low, 0, 0]].concat()
}

/// The host's table of one family: what the kernel was told last, and what it should be told.
#[derive(Debug, Clone)]
pub(crate) struct HostTable {
    family: Family,
    tag: Tag,
    ports: Balanced<(Protocol, u16), Backend>,
    /// Ports of one address of the host only.
    at: BTreeMap<(IpAddr, Protocol, u16), Backend>,
    counts: BTreeSet<usize>,
    /// UDP backends that the latest update took away.
    left: BTreeSet<(IpAddr, u16)>,
}

impl HostTable {
    pub(crate) fn new(family: Family, tag: Tag) -> Self {
        let ports = Balanced::new("ports", |(protocol, port)| protocol_port(*protocol, *port), backend_bytes);
        Self { family, tag, ports, at: BTreeMap::new(), counts: BTreeSet::new(), left: BTreeSet::new() }
    }

    /// Takes over the published ports and says what that changes.
    pub(crate) fn update(&mut self, published: &[PublishedPort]) -> Update {
        let ours = |backend: &&Backend| Family::of(backend.address) == self.family;
        let mut ports: BTreeMap<(Protocol, u16), Vec<Backend>> = BTreeMap::new();
        let mut at = BTreeMap::new();
        for port in published {
            match &port.mode {
                PublishMode::Host { address: Some(address), backends, .. } => {
                    if let Some(backend) = backends.iter().find(ours).filter(|_| Family::of(*address) == self.family) {
                        at.insert((*address, port.protocol, port.port), *backend);
                    }
                }
                PublishMode::Host { address: None, backends, .. } | PublishMode::Ingress { backends } => {
                    ports.entry((port.protocol, port.port)).or_default().extend(backends.iter().filter(ours));
                }
            }
        }
        let before = self.udp_backends();
        let mut changes = self.ports.update(&ports);
        let element = |((address, protocol, port), backend): (&(IpAddr, Protocol, u16), &Backend)| {
            let key = [address_bytes(*address), protocol_port(*protocol, *port)].concat();
            (key, Value::Data(backend_bytes(backend)))
        };
        for entry in self.at.iter().filter(|(key, backend)| at.get(key) != Some(backend)) {
            let (key, value) = element(entry);
            changes.push(ElementChange::Remove { set: "at", key, value });
        }
        for entry in at.iter().filter(|(key, backend)| self.at.get(key) != Some(backend)) {
            let (key, value) = element(entry);
            changes.push(ElementChange::Add { set: "at", key, value });
        }
        self.at = at;
        self.left = before.difference(&self.udp_backends()).copied().collect();
        let chains = new_chains(&mut self.counts, self.ports.counts(), |count| port_chain(self.family, count));
        let flows_change = changes.iter().any(is_udp);
        Update { chains, changes, flows_change }
    }

    fn udp_backends(&self) -> BTreeSet<(IpAddr, u16)> {
        let any = self.ports.iter().filter(|((protocol, _), _)| *protocol == Protocol::Udp).flat_map(|(_, backends)| backends);
        let one = self.at.iter().filter(|((_, protocol, _), _)| *protocol == Protocol::Udp).map(|(_, backend)| backend);
        any.chain(one).map(|backend| (backend.address, backend.port)).collect()
    }

    /// Whether a flow to a published UDP port of this host leads to none of its backends. `is_here` tells the host's
    /// own addresses: others use the same port numbers elsewhere, and their flows are theirs.
    pub(crate) fn is_stale(&self, flow: &Flow, is_here: impl Fn(IpAddr) -> bool) -> bool {
        let (address, port) = flow.original.destination;
        let leads_to = |backend: &Backend| (backend.address, backend.port) == flow.reply.source;
        let any = self.ports.get(&(Protocol::Udp, port));
        let one = self.at.get(&(address, Protocol::Udp, port));
        if any.is_none() && one.is_none() {
            // Not published any more: only what still leads into a sandbox would go astray, and its task is gone.
            return self.left.contains(&flow.reply.source);
        }
        is_here(address) && !one.into_iter().chain(any.into_iter().flatten()).any(leads_to)
    }

    /// The whole table.
    pub(crate) fn table(&self) -> Table {
        let family = self.family;
        let mut elements = Elements::new();
        self.ports.fill(&mut elements);
        for ((address, protocol, port), backend) in &self.at {
            let key = [address_bytes(*address), protocol_port(*protocol, *port)].concat();
            elements.entry("at").or_default().insert(key, Value::Data(backend_bytes(backend)));
        }
        let mut chains: Vec<Chain> = self.counts.iter().map(|count| port_chain(family, *count)).collect();
        chains.extend(host_chains(family, &self.tag.link_prefix()));
        Table { family, name: self.tag.table(), sets: host_sets(family), chains, elements }
    }
}

/// Whether the change is about a UDP port: the protocol comes first in keys of ports, behind the address in `at`.
fn is_udp(change: &ElementChange) -> bool {
    let (ElementChange::Remove { set, key, .. } | ElementChange::Add { set, key, .. }) = change;
    let protocol = if *set == "at" { key.len() - 8 } else { 0 };
    key.get(protocol) == Some(&Protocol::Udp.number())
}

fn host_sets(family: Family) -> Vec<Set> {
    let address = address_kind(family);
    let to = Holds::Data { kind: kind::joined(&[address, kind::PORT]), length: family.width() + 4 };
    let ports = [kind::PROTOCOL, kind::PORT];
    vec![
        Set { name: "ports", key_kind: kind::joined(&ports), key_length: 8, holds: Holds::Verdicts },
        Set { name: "be", key_kind: kind::joined(&[kind::PROTOCOL, kind::PORT, kind::MARK]), key_length: 12, holds: to },
        Set { name: "at", key_kind: kind::joined(&[address, kind::PROTOCOL, kind::PORT]), key_length: family.width() + 8, holds: to },
    ]
}

/// `dnat to proto . port . random map @be`
fn port_chain(family: Family, count: usize) -> Chain {
    let (key, to) = (R0, Register(4));
    let steps = [
        Expr::L4Protocol { to: key },
        Expr::DestinationPort { to: Register(1) },
        Expr::Random { below: u32::try_from(count).expect("fewer than 2^32 backends"), to: Register(2) },
        Expr::Map { set: "be", key, to },
        Expr::Dnat { family, address: to, port: Some(after(to, family.width())) },
    ];
    Chain { name: chain_name(count), hook: None, rules: vec![rule("to one of the backends", steps)] }
}

fn host_chains(family: Family, prefix: &str) -> Vec<Chain> {
    vec![
        base("from-outside", "nat", PREROUTING, DSTNAT, to_tasks(family)),
        base("from-here", "nat", OUTPUT, DSTNAT, to_tasks(family)),
        base("leave", "nat", POSTROUTING, SRCNAT, leave(family, prefix)),
        base("closed", "filter", FORWARD, FILTER, closed(family, prefix)),
        base("guard", "filter", PREROUTING, RAW, vec![guard(family, prefix)]),
    ]
}

fn from_sandbox(prefix: &str) -> [Expr; 2] {
    [Expr::InLinkName { to: R0 }, Expr::Equal { register: R0, value: prefix.as_bytes().to_vec() }]
}

fn into_sandbox(prefix: &str) -> [Expr; 2] {
    [Expr::OutLinkName { to: R0 }, Expr::Equal { register: R0, value: prefix.as_bytes().to_vec() }]
}

fn to_tasks(family: Family) -> Vec<Rule> {
    let (at, width) = (R0, family.width());
    let protocol = after(at, width);
    let result = Register(8);
    let of_one_address = [
        destination(family, at),
        Expr::L4Protocol { to: protocol },
        Expr::DestinationPort { to: after(protocol, 1) },
        Expr::Map { set: "at", key: at, to: result },
        Expr::Dnat { family, address: result, port: Some(after(result, width)) },
    ];
    let of_any_address = [
        Expr::DestinationType { to: R0 },
        Expr::Equal { register: R0, value: LOCAL_ADDRESS.to_ne_bytes().to_vec() },
        Expr::L4Protocol { to: R0 },
        Expr::DestinationPort { to: Register(1) },
        Expr::VerdictMap { set: "ports", key: R0 },
    ];
    vec![rule("ports of one address", of_one_address), rule("published ports", of_any_address)]
}

fn leave(family: Family, prefix: &str) -> Vec<Rule> {
    let loopback = loopback(family, family.source_offset());
    let not_lo = [Expr::OutLinkName { to: R0 }, Expr::NotEqual { register: R0, value: b"lo\0".to_vec() }];
    vec![
        rule("from the host's loopback to a task", into_sandbox(prefix).into_iter().chain(loopback).chain([Expr::Masquerade])),
        rule("from a task to the outside", not_lo.into_iter().chain(from_links(family, true)).chain([Expr::Masquerade])),
    ]
}

fn closed(family: Family, prefix: &str) -> Vec<Rule> {
    let state = |mask| [Expr::CtState { to: R0 }].into_iter().chain(any_bit(mask));
    let status = [Expr::CtStatus { to: R0 }].into_iter().chain(any_bit(DESTINATION_CHANGED));
    let (into, from) = (|| into_sandbox(prefix).into_iter(), || from_sandbox(prefix).into_iter());
    vec![
        // Conntrack does not translate what it cannot place, so it would leave with an address that nobody knows.
        rule("no answers out of window", from().chain(state(INVALID)).chain([Expr::Drop])),
        rule("no sources but the sandbox", from().chain(state(NEW)).chain(from_links(family, false)).chain([Expr::Drop])),
        rule("known connections", into().chain(state(ESTABLISHED_OR_RELATED)).chain([Expr::Accept])),
        rule("published ports", into().chain(status).chain([Expr::Accept])),
        rule("nothing else goes to tasks", into().chain([Expr::Drop])),
    ]
}

fn guard(family: Family, prefix: &str) -> Rule {
    let loopback = loopback(family, family.source_offset() + family.width());
    rule("loopback is not for tasks", from_sandbox(prefix).into_iter().chain(loopback).chain([Expr::Drop]))
}

/// The address at that offset is a loopback one.
fn loopback(family: Family, offset: u32) -> [Expr; 2] {
    let value = match family {
        Family::V4 => vec![127],
        Family::V6 => std::net::Ipv6Addr::LOCALHOST.octets().to_vec(),
    };
    let length = u32::try_from(value.len()).expect("1 or 16");
    [Expr::Network { offset, length, to: R0 }, Expr::Equal { register: R0, value }]
}

/// Holds if the source is the sandbox's end of a link to the host, or, with `so` false, if it is not.
fn from_links(family: Family, so: bool) -> Vec<Expr> {
    let offset = family.source_offset();
    let compare = |value: &[u8]| {
        let value = value.to_vec();
        if so { Expr::Equal { register: R0, value } } else { Expr::NotEqual { register: R0, value } }
    };
    match family {
        Family::V4 => vec![
            Expr::Network { offset, length: 4, to: R0 },
            Expr::And { register: R0, mask: (u32::MAX << (32 - LINK_RANGE_V4.1)).to_be_bytes().to_vec() },
            compare(&LINK_RANGE_V4.0.octets()),
        ],
        Family::V6 => {
            let length = LINK_RANGE_V6.1 / 8;
            vec![Expr::Network { offset, length: u32::from(length), to: R0 }, compare(&LINK_RANGE_V6.0.octets()[..usize::from(length)])]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(last: u8) -> Backend {
        Backend { address: IpAddr::from([10, 0, 0, last]), port: 80 }
    }

    fn ingress(port: u16, backends: &[u8]) -> PublishedPort {
        let backends = backends.iter().map(|last| backend(*last)).collect();
        PublishedPort { protocol: Protocol::Tcp, port, mode: PublishMode::Ingress { backends } }
    }

    fn counted(update: &Update) -> (usize, usize, usize) {
        let removed = update.changes.iter().filter(|change| matches!(change, ElementChange::Remove { .. })).count();
        (update.chains.len(), removed, update.changes.len() - removed)
    }

    fn host() -> HostTable {
        HostTable::new(Family::V4, Tag::new("test"))
    }

    #[test]
    fn a_service_is_elements_only_once_its_count_is_known() {
        let mut table = host();
        assert_eq!(counted(&table.update(&[ingress(80, &[1, 2, 3])])), (1, 0, 4));
        let update = table.update(&[ingress(80, &[1, 2, 3]), ingress(81, &[4, 5, 6])]);
        assert_eq!(counted(&update), (0, 0, 4), "no chain, no rule");
    }

    #[test]
    fn what_is_wanted_already_changes_nothing() {
        let mut table = host();
        table.update(&[ingress(80, &[1, 2])]);
        assert_eq!(table.update(&[ingress(80, &[2, 1])]), Update::default(), "the order of backends means nothing");
    }

    #[test]
    fn replacing_one_backend_of_many_swaps_one_element() {
        let mut table = host();
        table.update(&[ingress(80, &[1, 2, 3, 4])]);
        assert_eq!(counted(&table.update(&[ingress(80, &[1, 9, 3, 4])])), (0, 1, 1));
    }

    #[test]
    fn a_port_without_backends_leaves_nothing_behind() {
        let mut table = host();
        table.update(&[ingress(80, &[1, 2])]);
        let update = table.update(&[ingress(80, &[])]);
        assert_eq!(counted(&update), (0, 3, 0));
        assert!(table.table().elements.values().all(BTreeMap::is_empty));
    }

    #[test]
    fn changes_lead_to_the_same_table_as_a_fresh_start() {
        let mut table = host();
        let mut kernel = Elements::new();
        let steps: [&[PublishedPort]; 5] = [
            &[ingress(80, &[1, 2, 3]), ingress(81, &[4])],
            &[ingress(80, &[3, 5])],
            &[ingress(80, &[3, 5, 6, 7]), ingress(443, &[8, 9])],
            &[ingress(443, &[9])],
            &[],
        ];
        for published in steps {
            for change in table.update(published).changes {
                match change {
                    ElementChange::Remove { set, key, value } => {
                        let removed = kernel.entry(set).or_default().remove(&key);
                        assert_eq!(removed, Some(value), "only what is there is removed");
                    }
                    ElementChange::Add { set, key, value } => {
                        let replaced = kernel.entry(set).or_default().insert(key, value);
                        assert_eq!(replaced, None, "nothing is added twice");
                    }
                }
            }
            kernel.retain(|_, elements| !elements.is_empty());
            assert_eq!(kernel, table.table().elements);
        }
    }

    #[test]
    fn a_host_port_of_one_address_is_not_on_the_others() {
        let mut table = host();
        let mode = PublishMode::Host {
            network: skep_types::NetworkId::for_test(1),
            backends: vec![backend(1)],
            address: Some(IpAddr::from([192, 0, 2, 1])),
        };
        let update = table.update(&[PublishedPort { protocol: Protocol::Udp, port: 53, mode }]);
        let key = vec![192, 0, 2, 1, 17, 0, 0, 0, 0, 53, 0, 0];
        let value = Value::Data(vec![10, 0, 0, 1, 0, 80, 0, 0]);
        assert_eq!(update.changes, [ElementChange::Add { set: "at", key, value }]);
    }

    #[test]
    fn only_flows_to_this_host_that_lead_to_no_backend_are_stale() {
        use crate::nft::flows::Direction;
        let here = IpAddr::from([198, 18, 0, 1]);
        let client = (IpAddr::from([198, 18, 0, 9]), 40_000);
        let flow = |to: IpAddr, port: u16, answers: (IpAddr, u16)| Flow {
            original: Direction { source: client, destination: (to, port) },
            reply: Direction { source: answers, destination: client },
        };
        let udp = |backends: &[u8]| PublishedPort { protocol: Protocol::Udp, ..ingress(53, backends) };
        let backend = |last: u8| (backend(last).address, 80);
        let mut table = host();
        table.update(&[udp(&[1, 2])]);
        let stale = |table: &HostTable, flow: Flow| table.is_stale(&flow, |address| address == here);
        assert!(!stale(&table, flow(here, 53, backend(1))));
        assert!(stale(&table, flow(here, 53, backend(3))));
        assert!(stale(&table, flow(here, 53, (here, 53))), "it came before anything was published");
        let elsewhere = IpAddr::from([9, 9, 9, 9]);
        assert!(!stale(&table, flow(elsewhere, 53, (elsewhere, 53))), "a task asks a name server outside");
        assert!(!stale(&table, flow(here, 54, (here, 54))), "another program of the host");
        table.update(&[]);
        assert!(stale(&table, flow(here, 53, backend(1))));
        assert!(!stale(&table, flow(here, 53, (here, 53))));
    }
}
