//! The nf_tables of the host (published ports) and of a sandbox (virtual addresses).
//!
//! One table per family, a fixed skeleton, and maps that all services share: a service is elements only. The verdict
//! map leads from a port or address to the chain of its backend *count*, which draws a slot and looks it up. A table
//! with a chain or a map per service would grow slow with their number, and at ten thousand lock the kernel up.

use super::layout::{LINK_RANGE_V4, LINK_RANGE_V6};
use super::slots::assign;
use crate::names::{GATEWAY_LINK, SANDBOX_TABLE, Tag};
use crate::nft::model::{Holds, kind};
use crate::nft::{Chain, ElementChange, Elements, Expr, Family, Hook, Register, Rule, Set, Table, Value};
use crate::wanted::{Backend, Network, Protocol, PublishMode, PublishedPort, Vip};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const R0: Register = Register(0);
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// `NF_IP_PRI_NAT_DST`: where destination NAT is done by everybody; iptables' own comes at the same place.
const DSTNAT: i32 = -100;
/// `NF_IP_PRI_NAT_SRC`.
const SRCNAT: i32 = 100;
/// `NF_IP_PRI_RAW`: before connection tracking.
const RAW: i32 = -300;
/// `NF_IP_PRI_FILTER`: beside the host's own firewall; a drop of either counts.
const FILTER: i32 = 0;
/// `RTN_LOCAL` of rtnetlink, as the fib expression gives it.
const LOCAL_ADDRESS: u32 = 2;
/// `NF_CT_STATE_BIT` of established and related.
const ESTABLISHED_OR_RELATED: u32 = 0x6;
/// `IPS_DST_NAT`: the connection was led elsewhere by us or someone else's NAT.
const DESTINATION_CHANGED: u32 = 1 << 5;

/// What to send to the kernel, in one transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Update {
    /// Chains for backend counts seen for the first time; they stay.
    pub(crate) chains: Vec<Chain>,
    pub(crate) changes: Vec<ElementChange>,
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Fields of a concatenation are padded to registers: four bytes.
fn protocol_port(protocol: Protocol, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![protocol.number(), 0, 0, 0, high, low, 0, 0]
}

fn backend_bytes(backend: &Backend) -> Vec<u8> {
    let [high, low] = backend.port.to_be_bytes();
    [address_bytes(backend.address).as_slice(), &[high, low, 0, 0]].concat()
}

fn chain_name(count: usize) -> String {
    format!("lb{count}")
}

/// Backends in slots behind keys, as the two shared maps hold them.
#[derive(Debug, Clone)]
struct Balanced<K, B> {
    entries: BTreeMap<K, Vec<B>>,
    /// The verdict map.
    keys: &'static str,
    key_bytes: fn(&K) -> Vec<u8>,
    backend_bytes: fn(&B) -> Vec<u8>,
}

impl<K: Ord + Clone, B: PartialEq + Clone> Balanced<K, B> {
    fn new(keys: &'static str, key_bytes: fn(&K) -> Vec<u8>, backend_bytes: fn(&B) -> Vec<u8>) -> Self {
        Self { entries: BTreeMap::new(), keys, key_bytes, backend_bytes }
    }

    fn verdict(&self, key: &K, count: usize) -> (&'static str, Vec<u8>, Value) {
        (self.keys, (self.key_bytes)(key), Value::Goto(chain_name(count)))
    }

    fn slot(&self, key: &K, slot: usize, backend: &B) -> (&'static str, Vec<u8>, Value) {
        let slot = u32::try_from(slot).expect("a service has fewer than 2^32 backends");
        let key = [(self.key_bytes)(key).as_slice(), &slot.to_ne_bytes()].concat();
        ("be", key, Value::Data((self.backend_bytes)(backend)))
    }

    fn elements_of(&self, key: &K, backends: &[B]) -> Vec<(&'static str, Vec<u8>, Value)> {
        if backends.is_empty() {
            return Vec::new();
        }
        let slots = backends.iter().enumerate().map(|(slot, backend)| self.slot(key, slot, backend));
        slots.chain([self.verdict(key, backends.len())]).collect()
    }

    /// Takes over what is wanted and says what that changes. Keys without backends are left out.
    fn update(&mut self, wanted: &BTreeMap<K, Vec<B>>) -> Vec<ElementChange> {
        let mut changes = Vec::new();
        let keys: BTreeSet<K> = self.entries.keys().chain(wanted.keys()).cloned().collect();
        for key in keys {
            let old = self.entries.get(&key).map_or(&[][..], Vec::as_slice);
            let new = assign(old, wanted.get(&key).map_or(&[][..], Vec::as_slice));
            if old == new {
                continue;
            }
            let (before, after) = (self.elements_of(&key, old), self.elements_of(&key, &new));
            let gone = before.iter().filter(|element| !after.contains(element)).cloned();
            changes.extend(gone.map(|(set, key, value)| ElementChange::Remove { set, key, value }));
            let came = after.iter().filter(|element| !before.contains(element)).cloned();
            changes.extend(came.map(|(set, key, value)| ElementChange::Add { set, key, value }));
            if new.is_empty() {
                self.entries.remove(&key);
            } else {
                self.entries.insert(key, new);
            }
        }
        changes
    }

    fn counts(&self) -> BTreeSet<usize> {
        self.entries.values().map(Vec::len).collect()
    }

    fn fill(&self, elements: &mut Elements) {
        for (key, backends) in &self.entries {
            for (set, key, value) in self.elements_of(key, backends) {
                elements.entry(set).or_default().insert(key, value);
            }
        }
    }
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
}

impl HostTable {
    pub(crate) fn new(family: Family, tag: Tag) -> Self {
        let ports = Balanced::new("ports", |(protocol, port)| protocol_port(*protocol, *port), backend_bytes);
        Self { family, tag, ports, at: BTreeMap::new(), counts: BTreeSet::new() }
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
        let chains = new_chains(&mut self.counts, self.ports.counts(), |count| port_chain(self.family, count));
        Update { chains, changes }
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

fn new_chains(known: &mut BTreeSet<usize>, now: BTreeSet<usize>, make: impl Fn(usize) -> Chain) -> Vec<Chain> {
    now.into_iter().filter(|count| known.insert(*count)).map(make).collect()
}

fn address_kind(family: Family) -> u32 {
    match family {
        Family::V4 => kind::IPV4,
        Family::V6 => kind::IPV6,
    }
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

/// The registers behind a value of that many bytes.
fn after(register: Register, bytes: u32) -> Register {
    Register(register.0 + bytes.div_ceil(4))
}

fn destination(family: Family, to: Register) -> Expr {
    Expr::Network { offset: family.source_offset() + family.width(), length: family.width(), to }
}

fn rule(comment: &'static str, steps: impl IntoIterator<Item = Expr>) -> Rule {
    Rule { comment, steps: steps.into_iter().collect() }
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
    let into_sandbox = || {
        let value = prefix.as_bytes().to_vec();
        [Expr::OutLinkName { to: R0 }, Expr::Equal { register: R0, value }]
    };
    let base = |name: &str, kind, number, priority, rules| Chain { name: name.into(), hook: Some(Hook { kind, number, priority }), rules };
    let to_tasks = || {
        let (at, width) = (R0, family.width());
        let protocol = after(at, width);
        let result = Register(8);
        vec![
            rule(
                "ports of one address",
                [
                    destination(family, at),
                    Expr::L4Protocol { to: protocol },
                    Expr::DestinationPort { to: after(protocol, 1) },
                    Expr::Map { set: "at", key: at, to: result },
                    Expr::Dnat { family, address: result, port: Some(after(result, width)) },
                ],
            ),
            rule(
                "published ports",
                [
                    Expr::DestinationType { to: R0 },
                    Expr::Equal { register: R0, value: LOCAL_ADDRESS.to_ne_bytes().to_vec() },
                    Expr::L4Protocol { to: R0 },
                    Expr::DestinationPort { to: Register(1) },
                    Expr::VerdictMap { set: "ports", key: R0 },
                ],
            ),
        ]
    };
    let [link, named] = into_sandbox();
    let allowed = |comment, load: Expr, mask: u32| {
        let steps = into_sandbox().into_iter().chain([load]).chain(any_bit(mask)).chain([Expr::Accept]);
        rule(comment, steps)
    };
    let guard = {
        let value = prefix.as_bytes().to_vec();
        let from = [Expr::InLinkName { to: R0 }, Expr::Equal { register: R0, value }];
        let [load, compare] = loopback(family, family.source_offset() + family.width());
        rule("loopback is not for tasks", from.into_iter().chain([load, compare, Expr::Drop]))
    };
    let leave = {
        let loopback = loopback(family, family.source_offset());
        let not_lo = [Expr::OutLinkName { to: R0 }, Expr::NotEqual { register: R0, value: b"lo\0".to_vec() }];
        vec![
            rule("from the host's loopback to a task", [link, named].into_iter().chain(loopback).chain([Expr::Masquerade])),
            rule("from a task to the outside", not_lo.into_iter().chain(from_links(family)).chain([Expr::Masquerade])),
        ]
    };
    let closed = vec![
        allowed("known connections", Expr::CtState { to: R0 }, ESTABLISHED_OR_RELATED),
        allowed("published ports", Expr::CtStatus { to: R0 }, DESTINATION_CHANGED),
        rule("nothing else goes to tasks", into_sandbox().into_iter().chain([Expr::Drop])),
    ];
    vec![
        base("from-outside", "nat", PREROUTING, DSTNAT, to_tasks()),
        base("from-here", "nat", OUTPUT, DSTNAT, to_tasks()),
        base("leave", "nat", POSTROUTING, SRCNAT, leave),
        base("closed", "filter", FORWARD, FILTER, closed),
        base("guard", "filter", PREROUTING, RAW, vec![guard]),
    ]
}

fn any_bit(mask: u32) -> [Expr; 2] {
    [Expr::And { register: R0, mask: mask.to_ne_bytes().to_vec() }, Expr::NotEqual { register: R0, value: vec![0; 4] }]
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

/// The source is the sandbox's end of a link to the host.
fn from_links(family: Family) -> Vec<Expr> {
    let offset = family.source_offset();
    match family {
        Family::V4 => vec![
            Expr::Network { offset, length: 4, to: R0 },
            Expr::And { register: R0, mask: (u32::MAX << (32 - LINK_RANGE_V4.1)).to_be_bytes().to_vec() },
            Expr::Equal { register: R0, value: LINK_RANGE_V4.0.octets().to_vec() },
        ],
        Family::V6 => vec![
            Expr::Network { offset, length: u32::from(LINK_RANGE_V6.1 / 8), to: R0 },
            Expr::Equal { register: R0, value: LINK_RANGE_V6.0.octets()[..8].to_vec() },
        ],
    }
}

/// A sandbox's table of one family.
#[derive(Debug, Clone)]
pub(crate) struct SandboxTable {
    family: Family,
    gateway: Option<IpAddr>,
    vips: Balanced<IpAddr, IpAddr>,
    /// Local tasks that are backends: one that reaches itself must not see its own address as the client's.
    hairpin: BTreeSet<IpAddr>,
    counts: BTreeSet<usize>,
}

impl SandboxTable {
    pub(crate) fn new(family: Family, network: &Network) -> Self {
        let mut gateways = network.subnets.iter().map(|subnet| subnet.gateway);
        Self {
            family,
            gateway: gateways.find(|gateway| Family::of(*gateway) == family),
            vips: Balanced::new("vips", |address| address_bytes(*address), |address| address_bytes(*address)),
            hairpin: BTreeSet::new(),
            counts: BTreeSet::new(),
        }
    }

    pub(crate) fn table_family(&self) -> Family {
        self.family
    }

    /// Takes over the virtual addresses and says what that changes.
    pub(crate) fn update(&mut self, vips: &[Vip], local: &BTreeSet<IpAddr>) -> Update {
        let mut wanted: BTreeMap<IpAddr, Vec<IpAddr>> = BTreeMap::new();
        for vip in vips.iter().filter(|vip| Family::of(vip.address) == self.family) {
            let backends = vip.backends.iter().filter(|backend| Family::of(**backend) == self.family);
            wanted.entry(vip.address).or_default().extend(backends);
        }
        let mut changes = self.vips.update(&wanted);
        let hairpin: BTreeSet<IpAddr> = wanted.values().flatten().copied().filter(|a| local.contains(a)).collect();
        for address in self.hairpin.difference(&hairpin) {
            let (key, value) = (pair(*address), Value::Nothing);
            changes.push(ElementChange::Remove { set: "hairpin", key, value });
        }
        for address in hairpin.difference(&self.hairpin) {
            let (key, value) = (pair(*address), Value::Nothing);
            changes.push(ElementChange::Add { set: "hairpin", key, value });
        }
        self.hairpin = hairpin;
        let chains = new_chains(&mut self.counts, self.vips.counts(), |count| vip_chain(self.family, count));
        Update { chains, changes }
    }

    /// The whole table.
    pub(crate) fn table(&self) -> Table {
        let family = self.family;
        let mut elements = Elements::new();
        self.vips.fill(&mut elements);
        for address in &self.hairpin {
            elements.entry("hairpin").or_default().insert(pair(*address), Value::Nothing);
        }
        let address = address_kind(family);
        let sets = vec![
            Set { name: "vips", key_kind: address, key_length: family.width(), holds: Holds::Verdicts },
            Set {
                name: "be",
                key_kind: kind::joined(&[address, kind::MARK]),
                key_length: family.width() + 4,
                holds: Holds::Data { kind: address, length: family.width() },
            },
            Set { name: "hairpin", key_kind: kind::joined(&[address, address]), key_length: family.width() * 2, holds: Holds::Nothing },
        ];
        let mut chains: Vec<Chain> = self.counts.iter().map(|count| vip_chain(family, *count)).collect();
        chains.extend(sandbox_chains(family, self.gateway));
        Table { family, name: SANDBOX_TABLE.into(), sets, chains, elements }
    }
}

fn pair(address: IpAddr) -> Vec<u8> {
    let bytes = address_bytes(address);
    [bytes.as_slice(), &bytes].concat()
}

/// `dnat to daddr . random map @be`
fn vip_chain(family: Family, count: usize) -> Chain {
    let to = Register(8);
    let steps = [
        destination(family, R0),
        Expr::Random { below: u32::try_from(count).expect("fewer than 2^32 backends"), to: after(R0, family.width()) },
        Expr::Map { set: "be", key: R0, to },
        Expr::Dnat { family, address: to, port: None },
    ];
    Chain { name: chain_name(count), hook: None, rules: vec![rule("to one of the backends", steps)] }
}

fn sandbox_chains(family: Family, gateway: Option<IpAddr>) -> Vec<Chain> {
    let enter = vec![rule("virtual addresses", [destination(family, R0), Expr::VerdictMap { set: "vips", key: R0 }])];
    let source = Expr::Network { offset: family.source_offset(), length: family.width(), to: R0 };
    let mut leave = Vec::new();
    if let Some(gateway) = gateway {
        let steps = [Expr::CtStatus { to: R0 }].into_iter().chain(any_bit(DESTINATION_CHANGED)).chain([
            source,
            destination(family, after(R0, family.width())),
            Expr::Contains { set: "hairpin", key: R0 },
            Expr::Constant { value: address_bytes(gateway), to: R0 },
            Expr::Snat { family, address: R0 },
        ]);
        leave.push(rule("a task that reached itself", steps));
    }
    let name = [GATEWAY_LINK.as_bytes(), &[0]].concat();
    leave.push(rule("out of the network", [Expr::OutLinkName { to: R0 }, Expr::Equal { register: R0, value: name }, Expr::Masquerade]));
    let hook = |number, priority| Some(Hook { kind: "nat", number, priority });
    vec![
        Chain { name: "enter".into(), hook: hook(PREROUTING, DSTNAT), rules: enter },
        Chain { name: "leave".into(), hook: hook(POSTROUTING, SRCNAT), rules: leave },
    ]
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
    fn only_local_backends_are_kept_from_seeing_themselves() {
        let network = Network {
            id: skep_types::NetworkId::for_test(1),
            name: "n".into(),
            vni: 4097,
            subnets: vec![],
            mtu: 1450,
            internal: false,
            ingress: false,
        };
        let mut table = SandboxTable::new(Family::V4, &network);
        let backends = vec![backend(1).address, backend(2).address];
        let vip = Vip { address: IpAddr::from([10, 0, 0, 100]), backends };
        let update = table.update(&[vip], &[backend(1).address].into());
        let key = vec![10, 0, 0, 1, 10, 0, 0, 1];
        assert!(update.changes.contains(&ElementChange::Add { set: "hairpin", key, value: Value::Nothing }));
        assert_eq!(counted(&update), (1, 0, 4));
    }
}
