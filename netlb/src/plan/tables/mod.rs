//! The nf_tables of the host (published ports) and of a sandbox (virtual addresses).
//!
//! One table per family, a fixed skeleton, and maps that all services share: a service is elements only. The verdict
//! map leads from a port or address to the chain of its backend *count*, which draws a slot and looks it up. A table
//! with a chain or a map per service would grow slow with their number, and at ten thousand lock the kernel up.

mod balanced; // backends behind keys, as the two shared maps hold them
mod host; // the host's: published ports, the way out
mod published; // a published port as elements and chains
mod sandbox; // virtual addresses

pub(crate) use host::{HostTable, Published};
pub(crate) use sandbox::{InSandbox, MARKS, SandboxTable, marks_in};

use crate::nft::model::kind;
use crate::nft::{Chain, ElementChange, Expr, Family, Hook, Register, Rule};
use std::collections::BTreeSet;
use std::net::IpAddr;

const R0: Register = Register(0);
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// `NF_IP_PRI_NAT_DST`: where destination NAT is done by everybody; iptables' own comes at the same place.
const DSTNAT: i32 = -100;
/// After it.
const BEHIND_DSTNAT: i32 = DSTNAT + 10;
/// `NF_IP_PRI_NAT_SRC`.
const SRCNAT: i32 = 100;
/// `NF_IP_PRI_RAW`: before connection tracking.
const RAW: i32 = -300;
/// `NF_IP_PRI_MANGLE`: after connection tracking, before a route is chosen.
const MANGLE: i32 = -150;
/// `NF_IP_PRI_FILTER`: beside the host's own firewall; a drop of either counts.
const FILTER: i32 = 0;
/// `RTN_LOCAL` of rtnetlink, as the fib expression gives it.
const LOCAL_ADDRESS: u32 = 2;
/// `NF_CT_STATE_BIT` of established and related.
const ESTABLISHED_OR_RELATED: u32 = 0x6;
/// `NF_CT_STATE_INVALID_BIT`.
const INVALID: u32 = 0x1;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const NEW: u32 = 0x8;
/// `IPS_DST_NAT`: the connection was led elsewhere by us or someone else's NAT.
const DESTINATION_CHANGED: u32 = 1 << 5;

/// What to send to the kernel, in one transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Update {
    /// Chains for backend counts seen for the first time; they stay.
    pub(crate) chains: Vec<Chain>,
    pub(crate) changes: Vec<ElementChange>,
    /// UDP may have been led elsewhere before, see [`HostTable::is_stale`] and [`SandboxTable::is_stale`].
    pub(crate) flows_change: bool,
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn chain_name(count: usize) -> String {
    format!("lb{count}")
}

/// The chain for a count of backends that is seen for the first time.
fn new_chain(known: &mut BTreeSet<usize>, count: Option<usize>, make: impl Fn(usize) -> Chain) -> Option<Chain> {
    count.filter(|count| known.insert(*count)).map(make)
}

fn address_kind(family: Family) -> u32 {
    match family {
        Family::V4 => kind::IPV4,
        Family::V6 => kind::IPV6,
    }
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

fn base(name: &str, kind: &'static str, number: u32, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), hook: Some(Hook { kind, number, priority }), rules }
}

/// The value loaded into the first register has any bit of the mask.
fn any_bit(mask: u32) -> [Expr; 2] {
    [Expr::And { register: R0, mask: mask.to_ne_bytes().to_vec() }, Expr::NotEqual { register: R0, value: vec![0; 4] }]
}
