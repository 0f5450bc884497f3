//! A published port as elements of the host's maps, and the chains that they lead to.
//!
//! There are three kinds of places, each with maps and chains of its own, whose keys begin with what the place is known by. For
//! all three it goes on alike:
//! ```text
//!   ports: place . protocol . port ─► lb3     draws one of three slots
//!                                  ─► sticky  finds the slot by the client's address
//!                                  ─► ask…    is the client in `allow`, with a prefix of one of these lengths? ─► open: as above
//!                                                                                                        no? ─► refused
//!   be:    place . protocol . port . slot ─► backend
//! ```
//! Ranges of clients are looked up by masking the client's address, length by length: sets of intervals are copied whole at each
//! change, and the maps are shared by all ports.

use super::super::share::{BUCKETS, SEED, shares};
use super::super::slots::{assign, same};
use super::*;
use crate::nft::model::Holds;
use crate::nft::{ElementChange, Elements, Reject, Set, Value};
use crate::wanted::{Backend, Protocol, PublishedPort};
use ipnet::IpNet;
use skep_types::{Affinity, PublishPlace};
use std::collections::{BTreeMap, BTreeSet};

/// `IFNAMSIZ`: what the kernel fills a link's name up to.
const LINK_NAME: usize = 16;

/// What a place is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Everywhere,
    Address,
    Link,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Everywhere, Self::Address, Self::Link];

    fn of(place: &PublishPlace) -> Self {
        match place {
            PublishPlace::Everywhere => Self::Everywhere,
            PublishPlace::Address(_) => Self::Address,
            PublishPlace::Interface(_) => Self::Link,
        }
    }

    /// The verdict map that a packet meets first.
    fn ports(self) -> &'static str {
        ["ports", "at-ports", "by-ports"][self as usize]
    }

    /// The verdict map behind the question who asks.
    fn open(self) -> &'static str {
        ["open", "at-open", "by-open"][self as usize]
    }

    fn backends(self) -> &'static str {
        ["be", "at-be", "by-be"][self as usize]
    }

    fn allow(self) -> &'static str {
        ["allow", "at-allow", "by-allow"][self as usize]
    }

    fn chain(self) -> &'static str {
        ["", "at-", "by-"][self as usize]
    }

    /// Type numbers and bytes of the key of `ports`.
    fn key(self, family: Family) -> (Vec<u32>, u32) {
        let (place, width) = match self {
            Self::Everywhere => (None, 0),
            Self::Address => (Some(address_kind(family)), family.width()),
            Self::Link => (Some(kind::LINK_NAME), LINK_NAME as u32),
        };
        (place.into_iter().chain([kind::PROTOCOL, kind::PORT]).collect(), width + 8)
    }

    /// Loads the key of `ports`, from the first register on, and says which register follows.
    fn load(self, family: Family) -> (Vec<Expr>, Register) {
        let (mut steps, protocol) = match self {
            Self::Everywhere => (Vec::new(), R0),
            Self::Address => (vec![destination(family, R0)], after(R0, family.width())),
            Self::Link => (vec![Expr::InLinkName { to: R0 }], after(R0, LINK_NAME as u32)),
        };
        let port = after(protocol, 1);
        steps.extend([Expr::L4Protocol { to: protocol }, Expr::DestinationPort { to: port }]);
        (steps, after(port, 2))
    }

    /// The rule that leads on what is published at such places.
    pub(super) fn entrance(self, family: Family) -> Rule {
        let comment = ["published ports", "ports of one address", "ports of one link"][self as usize];
        let look = Expr::VerdictMap { set: self.ports(), key: R0 };
        rule(comment, self.load(family).0.into_iter().chain([look]))
    }

    pub(super) fn sets(self, family: Family) -> [Set; 4] {
        let (kinds, length) = self.key(family);
        let key_kind = kind::joined(&kinds);
        let with = |more: &[u32]| kind::joined(&[kinds.as_slice(), more].concat());
        let to = Holds::Data { kind: kind::joined(&[address_kind(family), kind::PORT]), length: family.width() + 4 };
        let allow = with(&[kind::MARK, address_kind(family)]);
        [
            Set { name: self.ports(), key_kind, key_length: length, holds: Holds::Verdicts },
            Set { name: self.open(), key_kind, key_length: length, holds: Holds::Verdicts },
            Set { name: self.backends(), key_kind: with(&[kind::MARK]), key_length: length + 4, holds: to },
            Set { name: self.allow(), key_kind: allow, key_length: length + 4 + family.width(), holds: Holds::Nothing },
        ]
    }
}

/// A chain that elements lead to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// To one of so many.
    Draw(usize),
    /// To the one whose bucket the client falls into.
    Keep,
    /// On, if a prefix of one of these lengths may come.
    Ask(BTreeSet<u8>),
}

/// With the kind of place it is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Stop(Kind, Way);

impl Stop {
    fn name(&self) -> String {
        let prefix = self.0.chain();
        match &self.1 {
            Way::Draw(count) => format!("{prefix}{}", chain_name(*count)),
            Way::Keep => format!("{prefix}sticky"),
            // Lengths as bits: up to 128 of them must fit into a name of 255.
            Way::Ask(lengths) => {
                let bits = lengths.iter().filter(|length| **length > 0).fold(0u128, |bits, length| bits | 1 << (length - 1));
                format!("{prefix}ask{}-{bits:x}", u8::from(lengths.contains(&0)))
            }
        }
    }

    fn chain(&self, family: Family) -> Chain {
        let (key, next) = self.0.load(family);
        let to = after(next, 4);
        let lead =
            [Expr::Map { set: self.0.backends(), key: R0, to }, Expr::Dnat { family, address: to, port: Some(after(to, family.width())) }];
        let rules = match &self.1 {
            Way::Draw(count) => {
                let below = u32::try_from(*count).expect("fewer than 2^32 backends");
                vec![rule("to one of the backends", key.into_iter().chain([Expr::Random { below, to: next }]).chain(lead))]
            }
            Way::Keep => {
                let find = [source(family, to), Expr::Hash { from: to, length: family.width(), below: BUCKETS, seed: SEED, to: next }];
                vec![rule("to the backend of this client", key.into_iter().chain(find).chain(lead))]
            }
            Way::Ask(lengths) => lengths.iter().map(|length| self.ask(family, *length)).chain(refuse(family)).collect(),
        };
        Chain { name: self.name(), hook: None, rules }
    }

    fn ask(&self, family: Family, length: u8) -> Rule {
        let (key, next) = self.0.load(family);
        let client = after(next, 4);
        let look = [
            Expr::Constant { value: u32::from(length).to_ne_bytes().to_vec(), to: next },
            source(family, client),
            Expr::And { register: client, mask: mask(family, length) },
            Expr::Contains { set: self.0.allow(), key: R0 },
            Expr::VerdictMap { set: self.0.open(), key: R0 },
        ];
        rule("clients that may come", key.into_iter().chain(look))
    }
}

fn source(family: Family, to: Register) -> Expr {
    Expr::Network { offset: family.source_offset(), length: family.width(), to }
}

fn mask(family: Family, length: u8) -> Vec<u8> {
    let bits = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
    match family {
        Family::V4 => u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0).to_be_bytes().to_vec(),
        Family::V6 => bits.to_be_bytes().to_vec(),
    }
}

/// As a port that nobody listens on refuses, so that a client need not wait and learns nothing.
fn refuse(family: Family) -> [Rule; 2] {
    let tcp = [Expr::L4Protocol { to: R0 }, Expr::Equal { register: R0, value: vec![Protocol::Tcp.number()] }];
    [
        rule("others are refused", tcp.into_iter().chain([Expr::Reject(Reject::Reset)])),
        rule("others are told that nothing is here", [Expr::Reject(Reject::PortUnreachable(family))]),
    ]
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

/// A port that leads somewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    /// Never empty. Of a sticky port, one per bucket.
    slots: Vec<Backend>,
    sticky: bool,
    /// `None`: all.
    allow: Option<BTreeSet<(u8, IpAddr)>>,
}

/// Set, key, value.
type Element = (&'static str, Vec<u8>, Value);

impl Entry {
    /// What several ports of one place and number, of which there should be one, come to in a family: all backends, for those who
    /// may come to any; but to all only if all say so.
    fn of(ports: &[&PublishedPort], family: Family) -> Option<Self> {
        let backends: Vec<Backend> =
            ports.iter().flat_map(|port| port.backends()).filter(|b| Family::of(b.address) == family).copied().collect();
        if backends.is_empty() {
            return None;
        }
        let ranges: Vec<IpNet> = ports.iter().flat_map(|port| &port.allow).copied().collect();
        let ours = |range: &&IpNet| Family::of(range.addr()) == family;
        let allow = (!ranges.is_empty()).then(|| ranges.iter().filter(ours).map(|range| (range.prefix_len(), range.network())).collect());
        let sticky = ports.iter().any(|port| port.affinity == Affinity::Source);
        Some(Self { slots: if sticky { shares(&backends) } else { backends }, sticky, allow })
    }

    /// Keeps slots as they were where it can.
    fn after(mut self, old: Option<&Self>) -> Self {
        if !self.sticky {
            let old = old.filter(|old| !old.sticky).map_or(&[][..], |old| &old.slots);
            self.slots = if same(old, &self.slots) { old.to_vec() } else { assign(old, &self.slots) };
        }
        self
    }

    /// Where its verdicts lead: that of `ports` first.
    fn stops(&self, kind: Kind) -> Vec<Stop> {
        let lead = Stop(kind, if self.sticky { Way::Keep } else { Way::Draw(self.slots.len()) });
        match &self.allow {
            None => vec![lead],
            Some(ranges) => vec![Stop(kind, Way::Ask(ranges.iter().map(|(length, _)| *length).collect())), lead],
        }
    }

    /// All elements but those of slots.
    fn others(&self, kind: Kind, key: &[u8]) -> BTreeSet<Element> {
        let sets = [kind.ports(), kind.open()];
        let verdicts = self.stops(kind).into_iter().zip(sets).map(|(stop, set)| (set, key.to_vec(), Value::Goto(stop.name())));
        let clients = self.allow.iter().flatten().map(|(length, address)| {
            let length = u32::from(*length).to_ne_bytes();
            (kind.allow(), [key, length.as_slice(), &address_bytes(*address)].concat(), Value::Nothing)
        });
        verdicts.chain(clients).collect()
    }

    fn slot(&self, kind: Kind, key: &[u8], number: usize) -> Option<Element> {
        let backend = self.slots.get(number)?;
        let number = u32::try_from(number).expect("a service has fewer than 2^32 backends");
        Some((kind.backends(), [key, number.to_ne_bytes().as_slice()].concat(), Value::Data(backend_bytes(backend))))
    }

    fn leads_to(&self, backend: (IpAddr, u16)) -> bool {
        self.slots.iter().any(|slot| (slot.address, slot.port) == backend)
    }

    fn admits(&self, client: IpAddr) -> bool {
        self.allow.as_ref().is_none_or(|ranges| {
            ranges.iter().any(|(length, address)| IpNet::new(*address, *length).is_ok_and(|range| range.contains(&client)))
        })
    }
}

type Number = (Protocol, u16);

/// All published ports of a family: what the kernel was told last.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    family: Family,
    entries: BTreeMap<(Number, PublishPlace), Entry>,
    /// Chains that are there; they stay.
    stops: BTreeSet<Stop>,
}

impl Entries {
    pub(super) fn new(family: Family) -> Self {
        Self { family, entries: BTreeMap::new(), stops: BTreeSet::new() }
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = Number> {
        self.entries.keys().map(|(number, _)| *number)
    }

    fn of(&self, number: Number) -> impl Iterator<Item = (&PublishPlace, &Entry)> {
        let of_number = self.entries.range((number, PublishPlace::Everywhere)..).take_while(move |((other, _), _)| *other == number);
        of_number.map(|((_, place), entry)| (place, entry))
    }

    /// Leads the ports of that number as they are published, or nowhere, and says what that changes. Looks at nothing else.
    pub(super) fn lead(&mut self, number: Number, published: &[PublishedPort], update: &mut Update) {
        let mut wanted: BTreeMap<&PublishPlace, Vec<&PublishedPort>> = BTreeMap::new();
        let foreign = |place: &PublishPlace| place.address().is_some_and(|address| Family::of(address) != self.family);
        for port in published.iter().filter(|port| !foreign(&port.place)) {
            wanted.entry(&port.place).or_default().push(port);
        }
        let known = self.of(number).map(|(place, _)| place.clone()).collect::<Vec<_>>();
        for place in known.iter().filter(|place| !wanted.contains_key(place)) {
            self.replace(number, place, None, update);
        }
        for (place, ports) in wanted {
            self.replace(number, place, Entry::of(&ports, self.family), update);
        }
    }

    fn replace(&mut self, number: Number, place: &PublishPlace, new: Option<Entry>, update: &mut Update) {
        let (kind, key) = (Kind::of(place), key(number, place));
        let at = (number, place.clone());
        let old = self.entries.remove(&at);
        let new = new.map(|new| new.after(old.as_ref()));
        if old == new {
            self.entries.extend(new.map(|new| (at, new)));
            return;
        }
        let of = |entry: Option<&Entry>| entry.map(|entry| entry.others(kind, &key)).unwrap_or_default();
        let (before, after) = (of(old.as_ref()), of(new.as_ref()));
        let (mut gone, mut came): (Vec<Element>, Vec<Element>) =
            (before.difference(&after).cloned().collect(), after.difference(&before).cloned().collect());
        let slots = |entry: Option<&Entry>| entry.map_or(0, |entry| entry.slots.len());
        for slot in 0..slots(old.as_ref()).max(slots(new.as_ref())) {
            let backend = |entry: Option<&Entry>| entry.and_then(|entry| entry.slots.get(slot).copied());
            if backend(old.as_ref()) != backend(new.as_ref()) {
                gone.extend(old.as_ref().and_then(|old| old.slot(kind, &key, slot)));
                came.extend(new.as_ref().and_then(|new| new.slot(kind, &key, slot)));
            }
        }
        update.changes.extend(gone.into_iter().map(|(set, key, value)| ElementChange::Remove { set, key, value }));
        update.changes.extend(came.into_iter().map(|(set, key, value)| ElementChange::Add { set, key, value }));
        if let Some(new) = new {
            let stops = new.stops(kind).into_iter().filter(|stop| self.stops.insert(stop.clone()));
            update.chains.extend(stops.map(|stop| stop.chain(self.family)));
            self.entries.insert(at, new);
        }
    }

    /// Backends of that number, at whatever place.
    pub(super) fn backends(&self, number: Number) -> BTreeSet<(IpAddr, u16)> {
        let slots = self.of(number).flat_map(|(_, entry)| &entry.slots);
        slots.map(|backend| (backend.address, backend.port)).collect()
    }

    /// Whether what a client sends to that address and number is led to that backend; `None` if the number is not published there.
    /// By which link it comes is not known here.
    pub(super) fn leads(&self, number: Number, to: IpAddr, client: IpAddr, backend: (IpAddr, u16)) -> Option<bool> {
        let applies = |place: &PublishPlace| place.address().is_none_or(|address| address == to);
        let mut entries = self.of(number).filter(|(place, _)| applies(place)).map(|(_, entry)| entry).peekable();
        entries.peek()?;
        Some(entries.any(|entry| entry.leads_to(backend) && entry.admits(client)))
    }

    pub(super) fn chains(&self) -> impl Iterator<Item = Chain> {
        self.stops.iter().map(|stop| stop.chain(self.family))
    }

    pub(super) fn fill(&self, elements: &mut Elements) {
        for ((number, place), entry) in &self.entries {
            let (kind, key) = (Kind::of(place), key(*number, place));
            let slots = (0..entry.slots.len()).filter_map(|slot| entry.slot(kind, &key, slot));
            for (set, key, value) in entry.others(kind, &key).into_iter().chain(slots) {
                elements.entry(set).or_default().insert(key, value);
            }
        }
    }
}

fn key((protocol, port): Number, place: &PublishPlace) -> Vec<u8> {
    let mut key = match place {
        PublishPlace::Everywhere => Vec::new(),
        PublishPlace::Address(address) => address_bytes(*address),
        PublishPlace::Interface(link) => {
            let mut name = link.as_bytes().to_vec();
            name.resize(LINK_NAME, 0);
            name
        }
    };
    key.extend(protocol_port(protocol, port));
    key
}
