//! A sandbox's tables: virtual addresses to backends, tasks out of the network, the way back to the node a client entered by.

use super::balanced::Balanced;
use super::*;
use crate::names::{GATEWAY_LINK, OVERLAY_LINK, SANDBOX_TABLE, TASK_LINK_PREFIX};
use crate::nft::flows::Flow;
use crate::nft::model::Holds;
use crate::nft::{Elements, Set, Table, Value};
use crate::wanted::{Mac, Network, Vip};
use std::collections::BTreeMap;

/// A sandbox's table of one family.
#[derive(Debug, Clone)]
pub(crate) struct SandboxTable {
    family: Family,
    gateway: Option<IpAddr>,
    vips: Balanced<IpAddr, IpAddr>,
    /// Local tasks that are backends: one that reaches itself must not see its own address as the client's.
    hairpin: BTreeSet<IpAddr>,
    /// Other nodes: by what hardware address they are known, and the mark of connections that enter by them.
    peers: BTreeMap<Mac, u32>,
    counts: BTreeSet<usize>,
    mtu: u32,
    ingress: bool,
}

/// What a sandbox's table is about.
#[derive(Debug, Default)]
pub(crate) struct InSandbox<'a> {
    pub(crate) vips: &'a [Vip],
    /// Addresses of tasks of this node.
    pub(crate) local: BTreeSet<IpAddr>,
    pub(crate) peers: BTreeMap<Mac, u32>,
}

impl SandboxTable {
    pub(crate) fn new(family: Family, network: &Network) -> Self {
        let mut gateways = network.subnets.iter().map(|subnet| subnet.gateway);
        Self {
            family,
            gateway: gateways.find(|gateway| Family::of(*gateway) == family),
            vips: Balanced::new("vips", |address| address_bytes(*address), |address| address_bytes(*address)),
            hairpin: BTreeSet::new(),
            peers: BTreeMap::new(),
            counts: BTreeSet::new(),
            mtu: network.mtu,
            ingress: network.ingress,
        }
    }

    pub(crate) fn table_family(&self) -> Family {
        self.family
    }

    /// Takes over what is wanted and says what that changes.
    pub(crate) fn update(&mut self, InSandbox { vips, local, peers }: &InSandbox<'_>) -> Update {
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
        let flows_change = !changes.is_empty();
        let other = |(mac, index): &(&Mac, &u32), than: &BTreeMap<Mac, u32>| than.get(mac) != Some(index);
        for (mac, index) in self.peers.iter().filter(|peer| other(peer, peers)) {
            let (key, value) = (mac.0.to_vec(), mark(*index));
            changes.push(ElementChange::Remove { set: "peers", key, value });
        }
        for (mac, index) in peers.iter().filter(|peer| other(peer, &self.peers)) {
            let (key, value) = (mac.0.to_vec(), mark(*index));
            changes.push(ElementChange::Add { set: "peers", key, value });
        }
        self.peers.clone_from(peers);
        Update { chains, changes, flows_change }
    }

    /// Whether a flow to a virtual address leads to none of its backends.
    pub(crate) fn is_stale(&self, flow: &Flow) -> bool {
        self.vips.get(&flow.original.destination.0).is_some_and(|backends| !backends.contains(&flow.reply.source.0))
    }

    /// The whole table.
    pub(crate) fn table(&self) -> Table {
        let family = self.family;
        let mut elements = Elements::new();
        self.vips.fill(&mut elements);
        for address in &self.hairpin {
            elements.entry("hairpin").or_default().insert(pair(*address), Value::Nothing);
        }
        for (mac, index) in &self.peers {
            elements.entry("peers").or_default().insert(mac.0.to_vec(), mark(*index));
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
            Set { name: "peers", key_kind: kind::ETHER, key_length: 6, holds: Holds::Data { kind: kind::MARK, length: 4 } },
        ];
        let mut chains: Vec<Chain> = self.counts.iter().map(|count| vip_chain(family, *count)).collect();
        chains.extend(sandbox_chains(family, self.gateway));
        chains.push(base("clamp", "filter", FORWARD, MANGLE, vec![clamp(family, self.mtu)]));
        if self.ingress {
            chains.extend(way_back());
        }
        Table { family, name: SANDBOX_TABLE.into(), sets, chains, elements }
    }
}

fn mark(index: u32) -> Value {
    Value::Data(index.to_ne_bytes().to_vec())
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
    let name = || [GATEWAY_LINK.as_bytes(), &[0]].concat();
    let out = || [Expr::OutLinkName { to: R0 }, Expr::Equal { register: R0, value: name() }].into_iter();
    leave.push(rule("out of the network", out().chain([Expr::Masquerade])));
    let invalid = [Expr::CtState { to: R0 }].into_iter().chain(any_bit(INVALID));
    // A task has the addresses that a route to its link says, and speaks for no other.
    let from_task = [Expr::InLinkName { to: R0 }, Expr::Equal { register: R0, value: TASK_LINK_PREFIX.as_bytes().to_vec() }];
    let no_way_back = [Expr::SourceLink { to: R0 }, Expr::Equal { register: R0, value: vec![0; 4] }];
    let honest = rule("no address but one's own", from_task.into_iter().chain(no_way_back).chain([Expr::Drop]));
    vec![
        base("enter", "nat", PREROUTING, DSTNAT, enter),
        base("leave", "nat", POSTROUTING, SRCNAT, leave),
        base("closed", "filter", FORWARD, FILTER, vec![rule("nothing untranslated", out().chain(invalid).chain([Expr::Drop]))]),
        base("guard", "filter", PREROUTING, RAW, [vec![honest], only_peers()].concat()),
    ]
}

fn comes_by(link: &str) -> impl Iterator<Item = Expr> + use<> {
    let value = [link.as_bytes(), &[0]].concat();
    [Expr::InLinkName { to: R0 }, Expr::Equal { register: R0, value }].into_iter()
}

/// A node that is none any more may not know it yet.
fn only_peers() -> Vec<Rule> {
    let known = [Expr::SourceMac { to: R0 }, Expr::Map { set: "peers", key: R0, to: Register(2) }, Expr::Accept];
    vec![
        rule("from a node of the network", comes_by(OVERLAY_LINK).chain(known)),
        rule("from no node of the network", comes_by(OVERLAY_LINK).chain([Expr::Drop])),
    ]
}

/// What a task may be sent in one packet is what fits through the network, be the client's link as wide as it may.
fn clamp(family: Family, mtu: u32) -> Rule {
    const TCP: u8 = 6;
    const TCP_HEADER: u32 = 20;
    const SYN: u8 = 2;
    let header = match family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    let largest = u16::try_from(mtu.saturating_sub(header + TCP_HEADER)).unwrap_or(u16::MAX);
    let steps = [
        Expr::L4Protocol { to: R0 },
        Expr::Equal { register: R0, value: vec![TCP] },
        Expr::TcpFlags { to: R0 },
        Expr::And { register: R0, mask: vec![SYN] },
        Expr::NotEqual { register: R0, value: vec![0] },
        Expr::Constant { value: largest.to_be_bytes().to_vec(), to: R0 },
        Expr::ClampSegments { from: R0 },
    ];
    rule("segments that fit", steps)
}

/// Answers go to the node that the client's latest packet came by: a client that keeps its port may come by another one.
fn way_back() -> [Chain; 2] {
    let direction = |which: u8| [Expr::CtDirection { to: R0 }, Expr::Equal { register: R0, value: vec![which] }];
    let by_peer = [Expr::SourceMac { to: R0 }, Expr::Map { set: "peers", key: R0, to: Register(2) }, Expr::SetCtMark { from: Register(2) }];
    let none = || Expr::Constant { value: vec![0; 4], to: R0 };
    let by_this = [none(), Expr::SetCtMark { from: R0 }];
    let answer = [Expr::CtMark { to: R0 }, Expr::NotEqual { register: R0, value: vec![0; 4] }, Expr::SetMark { from: R0 }];
    let by_link = [Expr::OutLinkName { to: R0 }, Expr::Equal { register: R0, value: [OVERLAY_LINK.as_bytes(), &[0]].concat() }];
    let entered = vec![
        rule("entered by that node", comes_by(OVERLAY_LINK).chain(direction(0)).chain(by_peer)),
        rule("entered by this node", comes_by(GATEWAY_LINK).chain(direction(0)).chain(by_this)),
        rule("answers go back there", direction(1).into_iter().chain(answer)),
    ];
    // The host's own rules may know marks, and the VXLAN packet has that of what is in it.
    let forget = vec![rule("for the sandbox only", by_link.into_iter().chain([none(), Expr::SetMark { from: R0 }]))];
    [base("entered", "filter", PREROUTING, MANGLE, entered), base("unmark", "filter", POSTROUTING, MANGLE, forget)]
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn only_local_backends_are_kept_from_seeing_themselves() {
        let mut table = SandboxTable::new(Family::V4, &network());
        let backends = vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let vips = [Vip { address: IpAddr::from([10, 0, 0, 100]), backends }];
        let update = table.update(&InSandbox { vips: &vips, local: [IpAddr::from([10, 0, 0, 1])].into(), ..InSandbox::default() });
        let key = vec![10, 0, 0, 1, 10, 0, 0, 1];
        assert!(update.changes.contains(&ElementChange::Add { set: "hairpin", key, value: Value::Nothing }));
        assert_eq!((update.chains.len(), update.changes.len()), (1, 4), "two slots, the verdict and the pair");
    }

    #[test]
    fn a_node_that_comes_or_goes_is_one_element_and_moves_no_flow() {
        let mut table = SandboxTable::new(Family::V6, &network());
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        let peers = |peers: &[(u8, u32)]| InSandbox {
            peers: peers.iter().map(|(last, index)| (mac(*last), *index)).collect(),
            ..InSandbox::default()
        };
        table.update(&peers(&[(2, 2), (3, 3)]));
        let update = table.update(&peers(&[(2, 2), (3, 3), (4, 4)]));
        let key = mac(4).0.to_vec();
        assert_eq!(update.changes, [ElementChange::Add { set: "peers", key, value: Value::Data(4u32.to_ne_bytes().to_vec()) }]);
        assert!(!update.flows_change);
        let update = table.update(&peers(&[(2, 2), (4, 4)]));
        assert_eq!((update.changes.len(), update.flows_change), (1, false));
        assert_eq!(table.table().elements["peers"].len(), 2);
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
}
