//! The host's tables: published ports to tasks, tasks to the outside, nothing else to tasks.
//!
//! What goes between nodes passes the host as VXLAN packets, which are one connection to nobody: each flow within has a source port of its own,
//! and answers come from another one. They are not tracked, or each connection of a client would take four entries more.

use super::super::layout::{LINK_RANGE_V4, LINK_RANGE_V6};
use super::published::{Entries, Kind};
use super::*;
use crate::names::Tag;
use crate::nft::flows::Flow;
use crate::nft::model::Holds;
use crate::nft::{Elements, Set, Table, Value};
use crate::wanted::{Protocol, PublishedPort};
use std::collections::BTreeMap;

/// All that is published, by port of the host.
pub(crate) type Published = BTreeMap<(Protocol, u16), Vec<PublishedPort>>;

/// The host's table of one family: what the kernel was told last, and what it should be told.
#[derive(Debug, Clone)]
pub(crate) struct HostTable {
    family: Family,
    tag: Tag,
    ports: Entries,
    /// Where this host's VXLAN devices receive.
    overlays: BTreeSet<(IpAddr, u16)>,
    /// UDP backends that the latest update took away.
    left: BTreeSet<(IpAddr, u16)>,
}

impl HostTable {
    pub(crate) fn new(family: Family, tag: Tag) -> Self {
        Self { family, tag, ports: Entries::new(family), overlays: BTreeSet::new(), left: BTreeSet::new() }
    }

    /// Takes over what is published, of the ports in `which` only if there are any named, and says what that changes.
    pub(crate) fn lead(&mut self, published: &Published, which: Option<&BTreeSet<(Protocol, u16)>>) -> Update {
        let mut update = Update::default();
        self.left.clear();
        match which {
            Some(which) => which.iter().for_each(|key| self.lead_one(*key, published, &mut update)),
            None => {
                let every: BTreeSet<_> = self.ports.numbers().chain(published.keys().copied()).collect();
                every.into_iter().for_each(|key| self.lead_one(key, published, &mut update));
            }
        }
        update
    }

    /// Takes over where this host's VXLAN devices receive, and adds what that changes.
    pub(crate) fn receive(&mut self, overlays: &BTreeSet<(IpAddr, u16)>, update: &mut Update) {
        let ours = overlays.iter().copied().filter(|(address, _)| Family::of(*address) == self.family).collect();
        let element = |end: &(IpAddr, u16)| (OVERLAYS, end_key(*end), Value::Nothing);
        let gone = self.overlays.difference(&ours).map(element);
        update.changes.extend(gone.map(|(set, key, value)| ElementChange::Remove { set, key, value }));
        let came = ours.difference(&self.overlays).map(element);
        update.changes.extend(came.map(|(set, key, value)| ElementChange::Add { set, key, value }));
        self.overlays = ours;
    }

    fn lead_one(&mut self, key: (Protocol, u16), published: &Published, update: &mut Update) {
        let (before, known) = (self.udp_backends(key), update.changes.len());
        self.ports.lead(key, published.get(&key).map_or(&[], Vec::as_slice), update);
        update.flows_change |= key.0 == Protocol::Udp && update.changes.len() > known;
        let after = self.udp_backends(key);
        self.left.extend(before.difference(&after));
    }

    fn udp_backends(&self, key: (Protocol, u16)) -> BTreeSet<(IpAddr, u16)> {
        if key.0 == Protocol::Udp { self.ports.backends(key) } else { BTreeSet::new() }
    }

    /// Whether a flow to a published UDP port of this host leads to none of its backends, or is of a client that may not come. `is_here`
    /// tells the host's own addresses: others use the same port numbers elsewhere, and their flows are theirs.
    pub(crate) fn is_stale(&self, flow: &Flow, is_here: impl Fn(IpAddr) -> bool) -> bool {
        let (address, port) = flow.original.destination;
        match self.ports.leads((Protocol::Udp, port), address, flow.original.source.0, flow.reply.source) {
            // Not published any more: only what still leads into a sandbox would go astray, and its task is gone.
            None => self.left.contains(&flow.reply.source),
            Some(leads) => is_here(address) && !leads,
        }
    }

    /// The whole table.
    pub(crate) fn table(&self) -> Table {
        let family = self.family;
        let mut elements = Elements::new();
        self.ports.fill(&mut elements);
        for end in &self.overlays {
            elements.entry(OVERLAYS).or_default().insert(end_key(*end), Value::Nothing);
        }
        let chains = self.ports.chains().chain(host_chains(family, &self.tag.link_prefix())).collect();
        let key_kind = kind::joined(&[address_kind(family), kind::PORT]);
        let overlays = Set { name: OVERLAYS, key_kind, key_length: family.width() + 4, holds: Holds::Nothing };
        let sets = Kind::ALL.into_iter().flat_map(|kind| kind.sets(family)).chain([overlays]).collect();
        Table { family, name: self.tag.table(), sets, chains, elements }
    }
}

fn host_chains(family: Family, prefix: &str) -> Vec<Chain> {
    vec![
        base("from-outside", "nat", PREROUTING, DSTNAT, to_tasks(family, &[Kind::Address, Kind::Link, Kind::Everywhere])),
        // Nothing comes in by a link here.
        base("from-here", "nat", OUTPUT, DSTNAT, to_tasks(family, &[Kind::Address, Kind::Everywhere])),
        base("leave", "nat", POSTROUTING, SRCNAT, leave(family, prefix)),
        base("closed", "filter", FORWARD, FILTER, closed(family, prefix)),
        base("guard", "filter", PREROUTING, RAW, vec![guard(family, prefix), between_nodes(destination(family, R0), family)]),
        base("to-nodes", "filter", OUTPUT, RAW, vec![between_nodes(source(family), family)]),
    ]
}

fn from_sandbox(prefix: &str) -> [Expr; 2] {
    [Expr::InLinkName { to: R0 }, Expr::Equal { register: R0, value: prefix.as_bytes().to_vec() }]
}

fn into_sandbox(prefix: &str) -> [Expr; 2] {
    [Expr::OutLinkName { to: R0 }, Expr::Equal { register: R0, value: prefix.as_bytes().to_vec() }]
}

fn to_tasks(family: Family, kinds: &[Kind]) -> Vec<Rule> {
    let elsewhere =
        [Expr::DestinationType { to: R0 }, Expr::NotEqual { register: R0, value: LOCAL_ADDRESS.to_ne_bytes().to_vec() }, Expr::Accept];
    [rule("not to this host", elsewhere)].into_iter().chain(kinds.iter().map(|kind| kind.entrance(family))).collect()
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

/// The set of addresses and ports at which this host's VXLAN devices receive, and from which they send.
const OVERLAYS: &str = "overlays";

fn end_key((address, port): (IpAddr, u16)) -> Vec<u8> {
    [address_bytes(address).as_slice(), &port.to_be_bytes(), &[0, 0]].concat()
}

fn source(family: Family) -> Expr {
    Expr::Network { offset: family.source_offset(), length: family.width(), to: R0 }
}

/// VXLAN packets, known by this host's address and the port, which is the same on all nodes.
fn between_nodes(address: Expr, family: Family) -> Rule {
    const UDP: u8 = 17;
    let steps = [
        Expr::L4Protocol { to: R0 },
        Expr::Equal { register: R0, value: vec![UDP] },
        address,
        Expr::DestinationPort { to: after(R0, family.width()) },
        Expr::Contains { set: OVERLAYS, key: R0 },
        Expr::Untracked,
    ];
    rule("between nodes", steps)
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
    use crate::wanted::{Backend, PublishMode};
    use skep_types::{Affinity, PublishPlace};

    fn backend(last: u8) -> Backend {
        Backend { address: IpAddr::from([10, 0, 0, last]), port: 80 }
    }

    fn ingress(port: u16, backends: &[u8]) -> PublishedPort {
        let backends = backends.iter().map(|last| backend(*last)).collect();
        PublishedPort::new(Protocol::Tcp, port, PublishMode::Ingress { backends })
    }

    impl HostTable {
        fn update(&mut self, list: &[PublishedPort]) -> Update {
            let mut published = Published::new();
            list.iter().for_each(|port| published.entry((port.protocol, port.port)).or_default().push(port.clone()));
            self.lead(&published, None)
        }
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
    fn where_vxlan_devices_receive_is_an_element_each_of_its_family() {
        let mut table = host();
        let end = |last: u8, port| (IpAddr::from([198, 18, 0, last]), port);
        let mut told = |ends: &[(IpAddr, u16)]| {
            let mut update = Update::default();
            table.receive(&ends.iter().copied().collect(), &mut update);
            assert_eq!(update.changes.len(), counted(&update).1 + counted(&update).2);
            (counted(&update), table.table().elements.get(OVERLAYS).map_or(0, BTreeMap::len), update.flows_change)
        };
        assert_eq!(told(&[end(1, 4789), ("2001:db8::1".parse().unwrap(), 4789)]), ((0, 0, 1), 1, false));
        assert_eq!(told(&[end(1, 4789), end(1, 4790)]), ((0, 0, 1), 2, false));
        assert_eq!(told(&[end(2, 4789), end(1, 4790)]), ((0, 1, 1), 2, false));
        assert_eq!(told(&[]), ((0, 2, 0), 0, false));
        assert_eq!(end_key(end(1, 4789)), [198, 18, 0, 1, 0x12, 0xb5, 0, 0]);
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

    fn changed(kernel: &mut Elements, update: Update) {
        let (removals, additions): (Vec<_>, Vec<_>) =
            update.changes.into_iter().partition(|change| matches!(change, ElementChange::Remove { .. }));
        for change in removals.into_iter().chain(additions) {
            match change {
                ElementChange::Remove { set, key, value } => {
                    assert_eq!(kernel.entry(set).or_default().remove(&key), Some(value), "only what is there is removed");
                }
                ElementChange::Add { set, key, value } => {
                    assert_eq!(kernel.entry(set).or_default().insert(key, value), None, "nothing is added twice");
                }
            }
        }
        kernel.retain(|_, elements| !elements.is_empty());
    }

    fn from(port: PublishedPort, ranges: &[&str]) -> PublishedPort {
        PublishedPort { allow: ranges.iter().map(|range| range.parse().unwrap()).collect(), ..port }
    }

    #[test]
    fn whatever_is_unusual_about_ports_changes_lead_where_a_fresh_start_does() {
        let sticky = |port: PublishedPort| PublishedPort { affinity: Affinity::Source, ..port };
        let at = |last: u8, port| PublishedPort { place: PublishPlace::Address(IpAddr::from([192, 0, 2, last])), ..port };
        let by = |link: &str, port| PublishedPort { place: PublishPlace::Interface(link.into()), ..port };
        let one = || ingress(80, &[1, 2, 3]);
        let steps = [
            vec![sticky(one()), at(1, ingress(81, &[1])), at(2, ingress(81, &[2, 3]))],
            vec![one(), at(1, from(ingress(81, &[1]), &["192.0.2.0/24"])), at(2, ingress(81, &[2]))],
            vec![from(sticky(one()), &["10.0.0.0/8", "192.0.2.7/32"]), by("eth1", sticky(ingress(82, &[4, 5])))],
            vec![from(sticky(ingress(80, &[1, 3])), &["10.0.0.0/8", "2001:db8::/32"]), by("eth2", ingress(82, &[4, 5]))],
            vec![from(one(), &["2001:db8::/32"]), at(1, by("eth2", ingress(82, &[5])))],
            vec![from(ingress(80, &[]), &["10.0.0.0/8"])],
        ];
        let (mut table, mut kernel, mut chains) = (host(), Elements::new(), BTreeSet::new());
        for published in &steps {
            let update = table.update(published);
            chains.extend(update.chains.iter().map(|chain| chain.name.clone()));
            changed(&mut kernel, update);
            assert_eq!(kernel, table.table().elements);
            let mut fresh = host();
            fresh.update(published);
            let count = |elements: &Elements| elements.iter().map(|(set, elements)| (*set, elements.len())).collect::<Vec<_>>();
            assert_eq!(count(&kernel), count(&fresh.table().elements));
            let leads = kernel.values().flat_map(BTreeMap::values);
            assert!(
                leads.filter_map(|value| if let Value::Goto(name) = value { Some(name) } else { None }).all(|name| chains.contains(name))
            );
        }
        assert_eq!(kernel, Elements::new());
    }

    #[test]
    fn a_sticky_port_gives_up_the_share_of_who_left_only() {
        let sticky = |backends: &[u8]| PublishedPort { affinity: Affinity::Source, ..ingress(80, backends) };
        let mut table = host();
        let (chains, removed, added) = counted(&table.update(&[sticky(&[1, 2, 3, 4])]));
        assert_eq!((chains, removed, added), (1, 0, 1 + crate::plan::share::BUCKETS as usize));
        let (chains, removed, added) = counted(&table.update(&[sticky(&[4, 1, 2])]));
        assert_eq!((chains, removed), (0, added));
        assert!((180..330).contains(&added), "a quarter: {added}");
        assert_eq!(table.update(&[sticky(&[1, 2, 4])]), Update::default());
    }

    #[test]
    fn who_may_come_is_in_elements_and_the_lengths_in_a_chain() {
        let mut table = host();
        let update = table.update(&[from(ingress(80, &[1]), &["192.0.2.0/24", "198.51.100.0/24", "10.0.0.0/8", "2001:db8::/32"])]);
        let names: Vec<&str> = update.chains.iter().map(|chain| chain.name.as_str()).collect();
        assert_eq!((names, update.chains[0].rules.len()), (vec!["ask0-800080", "lb1"], 2 + 2), "two lengths, two refusals");
        assert_eq!(counted(&update), (2, 0, 2 + 1 + 3));
        // Another range of a length that is known: one element.
        let update = table.update(&[from(ingress(80, &[1]), &["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "10.0.0.0/8"])]);
        assert_eq!(counted(&update), (0, 0, 1));
        // All who speak IPv4 may come, and none.
        let names = |update: Update| update.chains.into_iter().map(|chain| chain.name).collect::<Vec<_>>();
        assert_eq!(names(table.update(&[from(ingress(80, &[1]), &["0.0.0.0/0"])])), ["ask1-0"]);
        assert_eq!(names(table.update(&[from(ingress(80, &[1]), &["::/0"])])), ["ask0-0"]);
        let every: BTreeSet<String> = (0..=128u8).map(|length| format!("::/{length}")).collect();
        let mut table = HostTable::new(Family::V6, Tag::new("test"));
        let backends = vec![Backend { address: "fd00::1".parse().unwrap(), port: 80 }];
        let port = PublishedPort::new(Protocol::Tcp, 80, PublishMode::Ingress { backends });
        let port = from(port, &every.iter().map(String::as_str).collect::<Vec<_>>());
        let place = PublishPlace::Interface("eth0".into());
        let update = table.update(&[PublishedPort { place, ..port }]);
        assert!(update.chains.iter().all(|chain| chain.name.len() < 128), "{}", update.chains[0].name);
        assert_eq!(update.chains[0].rules.len(), 129 + 2);
    }

    #[test]
    fn a_flow_of_who_may_not_come_any_more_is_stale() {
        use crate::nft::flows::Direction;
        let here = IpAddr::from([198, 18, 0, 1]);
        let flow = |client: [u8; 4], to: IpAddr, port: u16| Flow {
            protocol: crate::nft::flows::UDP,
            original: Direction { source: (client.into(), 40_000), destination: (to, port) },
            reply: Direction { source: (backend(1).address, 80), destination: (client.into(), 40_000) },
        };
        let udp = |port: PublishedPort| PublishedPort { protocol: Protocol::Udp, ..port };
        let mut table = host();
        table.update(&[udp(ingress(53, &[1]))]);
        let update = table.update(&[from(udp(ingress(53, &[1])), &["198.18.0.0/24"])]);
        assert!(update.flows_change, "only who may come changed");
        let stale = |table: &HostTable, flow: Flow| table.is_stale(&flow, |address| address == here);
        assert!(!stale(&table, flow([198, 18, 0, 9], here, 53)));
        assert!(stale(&table, flow([198, 18, 1, 9], here, 53)));
        // Of one address: the number means nothing at another.
        let other = IpAddr::from([198, 18, 0, 2]);
        let at = PublishedPort { place: PublishPlace::Address(other), ..udp(ingress(54, &[2])) };
        let mut table = host();
        table.update(&[at]);
        assert!(table.is_stale(&flow([198, 18, 0, 9], other, 54), |_| true));
        assert!(!table.is_stale(&flow([198, 18, 0, 9], here, 54), |_| true));
    }

    #[test]
    fn a_host_port_of_one_address_is_not_on_the_others() {
        let mut table = host();
        let mode = PublishMode::Host { network: skep_types::NetworkId::for_test(1), backends: vec![backend(1)] };
        let place = PublishPlace::Address(IpAddr::from([192, 0, 2, 1]));
        let update = table.update(&[PublishedPort { place, ..PublishedPort::new(Protocol::Udp, 53, mode) }]);
        let key = vec![192, 0, 2, 1, 17, 0, 0, 0, 0, 53, 0, 0];
        let verdict = ElementChange::Add { set: "at-ports", key: key.clone(), value: Value::Goto("at-lb1".into()) };
        let value = Value::Data(vec![10, 0, 0, 1, 0, 80, 0, 0]);
        let slot = ElementChange::Add { set: "at-be", key: [key, vec![0; 4]].concat(), value };
        assert_eq!(update.changes, [verdict, slot]);
    }

    #[test]
    fn only_flows_to_this_host_that_lead_to_no_backend_are_stale() {
        use crate::nft::flows::Direction;
        let here = IpAddr::from([198, 18, 0, 1]);
        let client = (IpAddr::from([198, 18, 0, 9]), 40_000);
        let flow = |to: IpAddr, port: u16, answers: (IpAddr, u16)| Flow {
            protocol: crate::nft::flows::UDP,
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
