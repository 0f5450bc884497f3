//! The tables that keep packets of encrypted networks from travelling in clear. Pure.
//!
//! A table per family of the host, beside all others: what any of them drops is dropped.
//!
//! * `in`: a VXLAN packet with the number of an encrypted network that did not come out of a tunnel.
//! * `out`: the same of one that does not go into a tunnel.
//! * `astray`: any packet from or to an address within the tunnels that leaves by something else, such as the default route
//!   while a device is missing. Looked at last, after everybody's routing by marks.

use super::path::RANGE;
use crate::nft::model::{Holds, kind};
use crate::nft::{Chain, ElementChange, Elements, Expr, Family, Hook, Register, Rule, Set, Table, Value};
use ipnet::Ipv6Net;
use std::collections::BTreeSet;

const R0: Register = Register(0);
const R1: Register = Register(1);
const LOCAL_IN: u32 = 1;
const LOCAL_OUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// `NF_IP_PRI_RAW`: before the host's own firewall, which may accept and so end its chain, but not ours.
const EARLY: i32 = -300;
/// `NF_IP_PRI_LAST` is the greatest number; this is after source NAT (100) and everything else that people write.
const LATE: i32 = 10_000;
/// UDP's in the IP header.
const UDP: u8 = 17;
const ENCRYPTED: &str = "encrypted";

/// The comment of each rule that counts, and what it counts.
const IN: &str = "clear packets of encrypted networks do not come in";
const OUT: &str = "packets of encrypted networks do not leave in clear";
const ASTRAY: &str = "addresses within the tunnels are nowhere else";

/// A VXLAN network on the wire: UDP port and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OnWire {
    pub(crate) port: u16,
    pub(crate) vni: u32,
}

/// Packets that were dropped since the tables were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// They came in clear, for an encrypted network of this node.
    pub came_clear: u64,
    /// They would have left in clear.
    pub left_clear: u64,
    /// They would have left by the wrong way, for want of a tunnel.
    pub astray: u64,
}

impl Dropped {
    /// Adds what a rule of one of the tables has counted.
    pub(crate) fn add(&mut self, comment: &str, packets: u64) {
        match comment {
            IN => self.came_clear += packets,
            OUT => self.left_clear += packets,
            ASTRAY => self.astray += packets,
            _ => {}
        }
    }
}

/// The whole table of one family. Tunnels are links whose name begins with `prefix`.
pub(crate) fn table(family: Family, name: String, prefix: &str, networks: &BTreeSet<OnWire>) -> Table {
    let hook = |number, priority| Some(Hook { kind: "filter", number, priority });
    let chain = |name: &str, hook, rules| Chain { name: name.into(), hook, rules };
    let mut chains = vec![
        chain("in", hook(LOCAL_IN, EARLY), vec![clear(family, IN, Expr::InLinkName { to: R0 }, prefix)]),
        chain("out", hook(LOCAL_OUT, EARLY), vec![clear(family, OUT, Expr::OutLinkName { to: R0 }, prefix)]),
    ];
    if family == Family::V6 {
        let width = family.width();
        let rules = [family.source_offset(), family.source_offset() + width].map(|offset| astray(offset, prefix));
        chains.push(chain("astray", hook(POSTROUTING, LATE), rules.into()));
    }
    let key_kind = kind::joined(&[kind::PORT, kind::MARK]);
    let sets = vec![Set { name: ENCRYPTED, key_kind, key_length: 8, holds: Holds::Nothing }];
    let keys = networks.iter().map(|network| (key(*network), Value::Nothing)).collect();
    Table { family, name, sets, chains, elements: Elements::from([(ENCRYPTED, keys)]) }
}

/// What to change of both tables, from some networks to others.
pub(crate) fn difference(before: &BTreeSet<OnWire>, after: &BTreeSet<OnWire>) -> Vec<ElementChange> {
    let remove = |network: &OnWire| ElementChange::Remove { set: ENCRYPTED, key: key(*network), value: Value::Nothing };
    let add = |network: &OnWire| ElementChange::Add { set: ENCRYPTED, key: key(*network), value: Value::Nothing };
    before.difference(after).map(remove).chain(after.difference(before).map(add)).collect()
}

/// As the registers hold it: each field padded with zeros to four bytes.
fn key(network: OnWire) -> Vec<u8> {
    let ([high, low], [_, a, b, c]) = (network.port.to_be_bytes(), network.vni.to_be_bytes());
    vec![high, low, 0, 0, a, b, c, 0]
}

fn clear(family: Family, comment: &'static str, link: Expr, prefix: &str) -> Rule {
    let mut steps = vec![
        // Nothing is asked of it, but a rule that names it has the kernel put fragments together before any chain of a host:
        // in the second one of two there would be no number to be found.
        Expr::CtState { to: R0 },
        Expr::L4Protocol { to: R0 },
        Expr::Equal { register: R0, value: vec![UDP] },
        Expr::DestinationPort { to: R0 },
        Expr::VxlanNumber { to: R1 },
        Expr::Contains { set: ENCRYPTED, key: R0 },
    ];
    // Within the tunnels there is IPv6 only.
    if family == Family::V6 {
        steps.extend([link, Expr::NotEqual { register: R0, value: prefix.as_bytes().to_vec() }]);
    }
    steps.extend([Expr::Counter, Expr::Drop]);
    Rule { comment, steps }
}

fn astray(offset: u32, prefix: &str) -> Rule {
    let RangeBytes { network, length } = RangeBytes::of(RANGE);
    let steps = vec![
        Expr::Network { offset, length, to: R0 },
        Expr::Equal { register: R0, value: network },
        Expr::OutLinkName { to: R0 },
        Expr::NotEqual { register: R0, value: prefix.as_bytes().to_vec() },
        Expr::NotEqual { register: R0, value: b"lo\0".to_vec() },
        Expr::Counter,
        Expr::Drop,
    ];
    Rule { comment: ASTRAY, steps }
}

struct RangeBytes {
    network: Vec<u8>,
    length: u32,
}

impl RangeBytes {
    fn of(range: Ipv6Net) -> Self {
        let length = usize::from(range.prefix_len() / 8);
        Self { network: range.network().octets()[..length].to_vec(), length: u32::from(range.prefix_len() / 8) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_one_element_of_both_tables() {
        let networks = BTreeSet::from([OnWire { port: 4789, vni: 0x01_0203 }]);
        for family in [Family::V4, Family::V6] {
            let table = table(family, "t".into(), "w", &networks);
            let keys: Vec<_> = table.elements[ENCRYPTED].keys().cloned().collect();
            assert_eq!(keys, [vec![0x12, 0xb5, 0, 0, 1, 2, 3, 0]]);
        }
    }

    #[test]
    fn every_rule_drops_and_counts_and_only_the_tunnels_are_spared() {
        for (family, rules, spared) in [(Family::V4, 2, 0), (Family::V6, 4, 4)] {
            let table = table(family, "t".into(), "w", &BTreeSet::new());
            let all: Vec<&Rule> = table.chains.iter().flat_map(|chain| &chain.rules).collect();
            assert_eq!(all.len(), rules);
            assert!(all.iter().all(|rule| rule.steps.ends_with(&[Expr::Counter, Expr::Drop])));
            let tunnels = Expr::NotEqual { register: R0, value: b"w".to_vec() };
            assert_eq!(all.iter().filter(|rule| rule.steps.contains(&tunnels)).count(), spared);
        }
    }

    #[test]
    fn what_the_rules_counted_is_told_apart() {
        let mut dropped = Dropped::default();
        for (comment, packets) in [(IN, 1), (IN, 2), (OUT, 4), (ASTRAY, 8), ("another's", 16)] {
            dropped.add(comment, packets);
        }
        assert_eq!(dropped, Dropped { came_clear: 3, left_clear: 4, astray: 8 });
    }
}
