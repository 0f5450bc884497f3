//! A sandbox's tables: virtual addresses to backends, tasks out of the network, the way back to the node a client entered by.
//!
//! With IPVS they mark what is sent to virtual addresses and leave the rest to it, see [`super::super::balancer`].

use super::super::balancer::Marks;
use super::balanced::Balanced;
use super::*;
use crate::delta::{Members, Spread};
use crate::names::{GATEWAY_LINK, OVERLAY_LINK, SANDBOX_TABLE, TASK_LINK_PREFIX};
use crate::nft::flows::Flow;
use crate::nft::model::Holds;
use crate::nft::{Elements, Reject, Set, Table, Value};
use crate::wanted::{Location, Mac, Network};
use ipnet::IpNet;
use std::collections::BTreeMap;

/// A sandbox's table of one family.
#[derive(Debug, Clone)]
pub(crate) struct SandboxTable {
    family: Family,
    gateway: Option<IpAddr>,
    /// The network's ranges of addresses.
    ranges: Vec<IpNet>,
    vips: Vips,
    /// Local tasks that are backends: one that reaches itself must not see its own address as the client's.
    hairpin: BTreeSet<IpAddr>,
    /// Of how many virtual addresses it is a backend.
    uses: BTreeMap<IpAddr, u32>,
    /// Other nodes: by what hardware address they are known, and the mark of connections that enter by them.
    peers: BTreeMap<Mac, u32>,
    counts: BTreeSet<usize>,
    mtu: u32,
    ingress: bool,
    /// The kernel lets rules answer before a way is chosen.
    resets: bool,
    /// Addresses that tasks have, here or elsewhere; where there is a way to one for the moment or not. Kept only to reset the others.
    here: BTreeSet<IpAddr>,
}

/// How virtual addresses lead to backends.
#[derive(Debug, Clone)]
enum Vips {
    /// The table does it.
    Balanced(Balanced<IpAddr, IpAddr>),
    /// Something else does it, by marks; backends are known all the same.
    Marked { marks: BTreeMap<IpAddr, Marks>, backends: BTreeMap<IpAddr, BTreeSet<IpAddr>> },
}

/// What a sandbox's table is about.
#[derive(Debug)]
pub(crate) struct InSandbox<'a> {
    pub(crate) spread: &'a Spread,
    /// Those of the virtual addresses, of the table's family, if not the table balances.
    pub(crate) marks: BTreeMap<IpAddr, Marks>,
}

impl SandboxTable {
    /// `marks`: what is sent to virtual addresses is marked for IPVS.
    pub(crate) fn new(family: Family, network: &Network, marks: bool) -> Self {
        let balanced = || Balanced::new("vips", |address| address_bytes(*address), |address| address_bytes(*address));
        let mut gateways = network.subnets.iter().map(|subnet| subnet.gateway);
        Self {
            family,
            gateway: gateways.find(|gateway| Family::of(*gateway) == family),
            ranges: network.subnets.iter().map(|s| s.range.trunc()).filter(|range| Family::of(range.addr()) == family).collect(),
            vips: if marks { Vips::marked() } else { Vips::Balanced(balanced()) },
            hairpin: BTreeSet::new(),
            uses: BTreeMap::new(),
            peers: BTreeMap::new(),
            counts: BTreeSet::new(),
            mtu: network.mtu,
            ingress: network.ingress,
            resets: false,
            here: BTreeSet::new(),
        }
    }

    /// One that resets connections to who is gone.
    pub(crate) fn resetting(self, resets: bool) -> Self {
        Self { resets, ..self }
    }

    pub(crate) fn table_family(&self) -> Family {
        self.family
    }

    /// Takes over what is wanted and says what that changes.
    pub(crate) fn lead(&mut self, InSandbox { spread, marks }: &InSandbox<'_>) -> Update {
        let mut update = Update::default();
        if let Vips::Marked { marks: known, .. } = &mut self.vips {
            let every = known.keys().chain(marks.keys()).map(|address| (*address, marks.get(address).copied())).collect();
            update.changes = mark_anew(known, &every);
        }
        update.flows_change = !update.changes.is_empty();
        let vips: BTreeSet<IpAddr> = self.vips.addresses().into_iter().chain(spread.vips.keys().copied()).collect();
        let mut moved: BTreeSet<IpAddr> = self.hairpin.iter().copied().collect();
        moved.extend(self.lead_vips(spread, &vips, &mut update));
        moved.extend(self.uses.keys());
        self.keep_apart(spread, moved, &mut update);
        let claimed: BTreeSet<IpAddr> = self.here.iter().copied().chain(spread.places().map(|(address, _)| address)).collect();
        self.note_claims(spread, &claimed, &mut update);
        let peers: BTreeMap<Mac, u32> = spread.overlay.iter().flat_map(|overlay| &overlay.peers).map(|p| (p.mac, p.node_index)).collect();
        let other = |(mac, index): &(&Mac, &u32), than: &BTreeMap<Mac, u32>| than.get(mac) != Some(index);
        for (mac, index) in self.peers.iter().filter(|peer| other(peer, &peers)) {
            let (key, value) = (mac.0.to_vec(), mark(*index));
            update.changes.push(ElementChange::Remove { set: "peers", key, value });
        }
        for (mac, index) in peers.iter().filter(|peer| other(peer, &self.peers)) {
            let (key, value) = (mac.0.to_vec(), mark(*index));
            update.changes.push(ElementChange::Add { set: "peers", key, value });
        }
        self.peers = peers;
        update
    }

    /// The same where only these virtual addresses and tasks' addresses may differ, and those marks.
    pub(crate) fn lead_members(&mut self, spread: &Spread, members: &Members, marks: &BTreeMap<IpAddr, Option<Marks>>) -> Update {
        let mut update = Update::default();
        if let Vips::Marked { marks: known, .. } = &mut self.vips {
            update.changes = mark_anew(known, marks);
        }
        update.flows_change = !update.changes.is_empty();
        let mut moved = self.lead_vips(spread, &members.vips, &mut update);
        moved.extend(&members.addresses);
        self.keep_apart(spread, moved, &mut update);
        self.note_claims(spread, &members.addresses, &mut update);
        update
    }

    /// Returns the backends that came or went.
    fn lead_vips(&mut self, spread: &Spread, which: &BTreeSet<IpAddr>, update: &mut Update) -> BTreeSet<IpAddr> {
        let family = self.family;
        let wanted = |vip: &IpAddr| -> Vec<IpAddr> {
            let backends = spread.vips.get(vip).into_iter().flatten();
            backends.filter(|backend| Family::of(**backend) == family).copied().collect()
        };
        let mut moved = BTreeSet::new();
        let which = which.iter().filter(|vip| Family::of(**vip) == family);
        for vip in which {
            let before = self.vips.backends(vip);
            match &mut self.vips {
                Vips::Balanced(vips) => {
                    let changes = vips.set(vip, &wanted(vip));
                    if changes.is_empty() {
                        continue;
                    }
                    update.changes.extend(changes);
                    update.flows_change = true;
                }
                Vips::Marked { backends, .. } => {
                    let wanted: BTreeSet<IpAddr> = wanted(vip).into_iter().collect();
                    if wanted.is_empty() {
                        backends.remove(vip);
                    } else {
                        backends.insert(*vip, wanted);
                    }
                }
            }
            let after = self.vips.backends(vip);
            for gone in before.difference(&after) {
                if let Some(uses) = self.uses.get_mut(gone) {
                    *uses -= 1;
                    if *uses == 0 {
                        self.uses.remove(gone);
                    }
                }
            }
            for came in after.difference(&before) {
                *self.uses.entry(*came).or_default() += 1;
            }
            moved.extend(before.symmetric_difference(&after));
            let count = Some(after.len()).filter(|count| *count > 0 && self.vips.balanced().is_some());
            update.chains.extend(new_chain(&mut self.counts, count, |count| vip_chain(family, count)));
        }
        moved
    }

    /// Backends among these addresses that are tasks of this node.
    fn keep_apart(&mut self, spread: &Spread, which: BTreeSet<IpAddr>, update: &mut Update) {
        for address in which.into_iter().filter(|address| Family::of(*address) == self.family) {
            let (key, value) = (pair(address), Value::Nothing);
            if self.uses.contains_key(&address) && spread.place(address) == Some(Location::Local) {
                let is_new = self.hairpin.insert(address);
                update.changes.extend(is_new.then_some(ElementChange::Add { set: "hairpin", key, value }));
            } else {
                let was_here = self.hairpin.remove(&address);
                update.changes.extend(was_here.then_some(ElementChange::Remove { set: "hairpin", key, value }));
            }
        }
    }

    /// Which of these addresses tasks have.
    fn note_claims(&mut self, spread: &Spread, which: &BTreeSet<IpAddr>, update: &mut Update) {
        for address in which.iter().filter(|address| self.resets && Family::of(**address) == self.family) {
            let (key, value) = (address_bytes(*address), Value::Nothing);
            if spread.has(*address) {
                let is_new = self.here.insert(*address);
                update.changes.extend(is_new.then_some(ElementChange::Add { set: HERE, key, value }));
            } else {
                let was_here = self.here.remove(address);
                update.changes.extend(was_here.then_some(ElementChange::Remove { set: HERE, key, value }));
            }
        }
    }

    /// Whether a flow to a virtual address leads to none of its backends; the table knows only if it balances.
    pub(crate) fn is_stale(&self, flow: &Flow) -> bool {
        let Vips::Balanced(vips) = &self.vips else { return false };
        vips.get(&flow.original.destination.0).is_some_and(|backends| !backends.contains(&flow.reply.source.0))
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
        let mut sets = self.vips.sets(family);
        sets.extend([
            Set { name: "hairpin", key_kind: kind::joined(&[address, address]), key_length: family.width() * 2, holds: Holds::Nothing },
            Set { name: "peers", key_kind: kind::ETHER, key_length: 6, holds: Holds::Data { kind: kind::MARK, length: 4 } },
        ]);
        let mut chains: Vec<Chain> = self.counts.iter().map(|count| vip_chain(family, *count)).collect();
        let marked = matches!(self.vips, Vips::Marked { .. });
        chains.extend(if marked { marking_chains(family).to_vec() } else { vec![enter(family)] });
        chains.extend(sandbox_chains(family, self.gateway, marked));
        // What IPVS leads on is not forwarded but sent.
        let segments = if marked { POSTROUTING } else { FORWARD };
        chains.push(base("clamp", "filter", segments, MANGLE, vec![clamp(family, self.mtu)]));
        if self.ingress {
            chains.extend(way_back());
        }
        if self.resets {
            let rules = self.ranges.iter().map(|range| reset(family, range)).collect();
            chains.push(base("gone", "filter", PREROUTING, BEHIND_DSTNAT, rules));
            sets.push(Set { name: HERE, key_kind: address, key_length: family.width(), holds: Holds::Nothing });
            for address in &self.here {
                elements.entry(HERE).or_default().insert(address_bytes(*address), Value::Nothing);
            }
        }
        Table { family, name: SANDBOX_TABLE.into(), sets, chains, elements }
    }
}

impl Vips {
    fn balanced(&self) -> Option<&Balanced<IpAddr, IpAddr>> {
        match self {
            Self::Balanced(vips) => Some(vips),
            Self::Marked { .. } => None,
        }
    }

    fn marked() -> Self {
        Self::Marked { marks: BTreeMap::new(), backends: BTreeMap::new() }
    }

    /// The virtual addresses that lead somewhere.
    fn addresses(&self) -> BTreeSet<IpAddr> {
        match self {
            Self::Balanced(vips) => vips.keys().copied().collect(),
            Self::Marked { backends, .. } => backends.keys().copied().collect(),
        }
    }

    fn backends(&self, vip: &IpAddr) -> BTreeSet<IpAddr> {
        match self {
            Self::Balanced(vips) => vips.get(vip).into_iter().flatten().copied().collect(),
            Self::Marked { backends, .. } => backends.get(vip).cloned().unwrap_or_default(),
        }
    }

    fn fill(&self, elements: &mut Elements) {
        match self {
            Self::Balanced(vips) => vips.fill(elements),
            Self::Marked { marks, .. } => {
                for (set, key, value) in marks.iter().flat_map(|(address, of)| marked(*address, *of)) {
                    elements.entry(set).or_default().insert(key, value);
                }
            }
        }
    }

    fn sets(&self, family: Family) -> Vec<Set> {
        let address = address_kind(family);
        let mark = Holds::Data { kind: kind::MARK, length: 4 };
        let by_address = |name, holds| Set { name, key_kind: address, key_length: family.width(), holds };
        match self {
            Self::Marked { .. } => vec![by_address(CONNECTIONS, mark), by_address(DATAGRAMS, mark)],
            Self::Balanced(_) => vec![
                by_address("vips", Holds::Verdicts),
                Set {
                    name: "be",
                    key_kind: kind::joined(&[address, kind::MARK]),
                    key_length: family.width() + 4,
                    holds: Holds::Data { kind: address, length: family.width() },
                },
            ],
        }
    }
}

/// Takes over the marks of these addresses; `None`: it has none any more.
fn mark_anew(known: &mut BTreeMap<IpAddr, Marks>, marks: &BTreeMap<IpAddr, Option<Marks>>) -> Vec<ElementChange> {
    let (mut gone, mut came) = (Vec::new(), Vec::new());
    for (address, now) in marks {
        if known.get(address) == now.as_ref() {
            continue;
        }
        let before = match now {
            Some(now) => known.insert(*address, *now),
            None => known.remove(address),
        };
        gone.extend(before.into_iter().flat_map(|of| marked(*address, of)));
        came.extend(now.iter().flat_map(|of| marked(*address, *of)));
    }
    let gone = gone.into_iter().map(|(set, key, value)| ElementChange::Remove { set, key, value });
    gone.chain(came.into_iter().map(|(set, key, value)| ElementChange::Add { set, key, value })).collect()
}

/// The map of the marks of connections, and that of datagrams.
const CONNECTIONS: &str = "connections";
const DATAGRAMS: &str = "datagrams";

fn marked(address: IpAddr, marks: Marks) -> [(&'static str, Vec<u8>, Value); 2] {
    let key = || address_bytes(address);
    [(CONNECTIONS, key(), mark(marks.connections())), (DATAGRAMS, key(), mark(marks.datagrams()))]
}

/// The marks in a table that an earlier run left: what its map of connections holds.
pub(crate) fn marks_in(elements: &BTreeMap<Vec<u8>, Value>) -> BTreeMap<IpAddr, Marks> {
    let address = |key: &[u8]| {
        let four = <[u8; 4]>::try_from(key).ok().map(IpAddr::from);
        four.or_else(|| <[u8; 16]>::try_from(key).ok().map(IpAddr::from))
    };
    let marks = |value: &Value| match value {
        Value::Data(data) => Marks::from_connections(u32::from_ne_bytes(data.as_slice().try_into().ok()?)),
        Value::Goto(_) | Value::Nothing => None,
    };
    elements.iter().filter_map(|(key, value)| Some((address(key)?, marks(value)?))).collect()
}

/// The map that [`marks_in`] reads, of a table of that family.
pub(crate) const MARKS: &str = CONNECTIONS;

fn enter(family: Family) -> Chain {
    let rules = vec![rule("virtual addresses", [destination(family, R0), Expr::VerdictMap { set: "vips", key: R0 }])];
    base("enter", "nat", PREROUTING, DSTNAT, rules)
}

/// Marks what is sent to virtual addresses, and takes the mark off what IPVS sends on: a packet is routed by it once more, and
/// the VXLAN packet round it would have it.
fn marking_chains(family: Family) -> [Chain; 2] {
    const UDP: u8 = 17;
    let of = |set, udp: bool| {
        let value = vec![UDP];
        let protocol = if udp { Expr::Equal { register: R0, value } } else { Expr::NotEqual { register: R0, value } };
        let to = after(R0, family.width());
        let mark = [destination(family, R0), Expr::Map { set, key: R0, to }, Expr::SetMark { from: to }];
        [Expr::L4Protocol { to: R0 }, protocol].into_iter().chain(mark)
    };
    let enter =
        vec![rule("datagrams to virtual addresses", of(DATAGRAMS, true)), rule("connections to virtual addresses", of(CONNECTIONS, false))];
    let none = [Expr::Constant { value: vec![0; 4], to: R0 }, Expr::SetMark { from: R0 }];
    [base("enter", "filter", PREROUTING, MANGLE, enter), base("led-on", "filter", OUTPUT, MANGLE, vec![rule("marks end here", none)])]
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

/// `marked`: conntrack does not call it a change of the destination what IPVS does; but nothing else makes a task meet itself.
fn sandbox_chains(family: Family, gateway: Option<IpAddr>, marked: bool) -> Vec<Chain> {
    let source = Expr::Network { offset: family.source_offset(), length: family.width(), to: R0 };
    let mut leave = Vec::new();
    if let Some(gateway) = gateway {
        let led = [Expr::CtStatus { to: R0 }].into_iter().chain(any_bit(DESTINATION_CHANGED)).filter(|_| !marked);
        let steps = led.chain([
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
        base("leave", "nat", POSTROUTING, SRCNAT, leave),
        base("closed", "filter", FORWARD, FILTER, vec![rule("nothing untranslated", out().chain(invalid).chain([Expr::Drop]))]),
        base("guard", "filter", PREROUTING, RAW, [vec![honest], only_peers()].concat()),
    ]
}

fn comes_by(link: &str) -> impl Iterator<Item = Expr> + use<> {
    let value = [link.as_bytes(), &[0]].concat();
    [Expr::InLinkName { to: R0 }, Expr::Equal { register: R0, value }].into_iter()
}

/// A node that is none any more may not know it yet. What comes by different nodes are different connections, also if a client
/// gave them one port: its kernel does so, for they lead to different addresses.
fn only_peers() -> Vec<Rule> {
    let by_peer = Expr::Map { set: "peers", key: R0, to: Register(2) };
    let known = [Expr::SourceMac { to: R0 }, by_peer, Expr::SetCtZone { from: Register(2) }, Expr::Accept];
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

/// The set of addresses that tasks have.
const HERE: &str = "here";

/// A connection to an address of the network to which no way leads, and which no task has, has lost its other end for good: its client need not find out
/// by waiting. What begins one is told so by the route, with better words. Behind the translation, so it holds for virtual addresses as
/// well. A task to which there is no way for a moment, for its node has no key yet or somebody took routes away, keeps its connections.
/// Asks for the way last: every packet comes by here, and most are for a task or for somebody outside.
fn reset(family: Family, range: &IpNet) -> Rule {
    const TCP: u8 = 6;
    const SYN: u8 = 2;
    let steps = [
        destination(family, R0),
        Expr::And { register: R0, mask: address_bytes(range.netmask()) },
        Expr::Equal { register: R0, value: address_bytes(range.network()) },
        destination(family, R0),
        Expr::Lacks { set: HERE, key: R0 },
        Expr::L4Protocol { to: R0 },
        Expr::Equal { register: R0, value: vec![TCP] },
        Expr::TcpFlags { to: R0 },
        Expr::And { register: R0, mask: vec![SYN] },
        Expr::Equal { register: R0, value: vec![0] },
        Expr::DestinationLink { to: R0 },
        Expr::Equal { register: R0, value: vec![0; 4] },
        Expr::DestinationType { to: R0 },
        Expr::NotEqual { register: R0, value: LOCAL_ADDRESS.to_ne_bytes().to_vec() },
        Expr::Reject(Reject::Reset),
    ];
    rule("to who is gone", steps)
}

/// Answers go to the node that the client's packets came by.
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
mod tests;
