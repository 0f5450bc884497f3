//! Firewalls of others that keep tasks' packets from passing. Read only; what to do about it is the host's owner's matter.
//!
//! In nf_tables every base chain of a hook has a veto, so our own table cannot let through what another one drops. The
//! numbers are from `include/uapi/linux/netfilter/nf_tables.h`. `iptables-nft` makes such chains too; the older iptables
//! has its rules elsewhere and is not seen.

use super::socket::Nft;
use crate::netlink::wire;
use std::fmt;
use std::io;

const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
/// The tables' families through whose forward hook IP packets go.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
const FORWARD: u32 = 2;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `NFT_META_IIFNAME`, `NFT_META_OIFNAME`
const LINK_NAMES: [u32; 2] = [6, 7];

/// A chain that drops what none of its rules accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Barrier {
    family: u8,
    table: String,
    chain: String,
}

impl fmt::Display for Barrier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = FAMILIES.iter().find(|(number, _)| *number == self.family).map_or("?", |(_, name)| name);
        write!(out, "{family} {} {}", self.table, self.chain)
    }
}

impl Nft {
    /// The base chains at the forward hook with policy drop in whose table no rule speaks of links that begin with
    /// `prefix`. A guess: rules may say it otherwise, by addresses or by a set of names.
    pub(crate) fn barriers(&mut self, prefix: &str) -> io::Result<Vec<Barrier>> {
        let mut barriers = Vec::new();
        self.dump(GET_CHAIN, 0, &[], |message| barriers.extend(read_barrier(message.body)))?;
        let mut closed = Vec::new();
        for barrier in barriers {
            let mut open = false;
            self.dump(GET_RULE, barrier.family, &[(1, &barrier.table)], |message| {
                let of = |kind| wire::attribute(message.body, 4, kind);
                let text = |kind| of(kind).map(wire::text);
                // Not every kernel filters by table, so it is looked at here too.
                if text(1).as_ref() == Some(&barrier.table) {
                    let here = text(2).as_ref() == Some(&barrier.chain);
                    open |= lets_pass(of(4).unwrap_or(&[]), prefix, here);
                }
            })?;
            if !open {
                closed.push(barrier);
            }
        }
        Ok(closed)
    }
}

fn big_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn read_barrier(body: &[u8]) -> Option<Barrier> {
    let of = |kind| wire::attribute(body, 4, kind);
    let family = *body.first()?;
    let hook = wire::attribute(of(4)?, 0, 1).and_then(big_u32)?;
    let drops = of(5).and_then(big_u32)? == DROP;
    let known = FAMILIES.iter().any(|(number, _)| *number == family);
    (known && hook == FORWARD && drops).then(|| Some(Barrier { family, table: wire::text(of(1)?), chain: wire::text(of(3)?) }))?
}

/// Whether a rule with these steps is about our links and does not drop; or, in the chain itself, accepts everything.
fn lets_pass(steps: &[u8], prefix: &str, in_the_chain: bool) -> bool {
    let (mut loads_link_name, mut ours, mut conditions, mut verdict) = (false, false, false, None);
    for (_, step) in wire::attributes(steps, 0) {
        let name = wire::attribute(step, 0, 1).map(wire::text).unwrap_or_default();
        let data = wire::attribute(step, 0, 2).unwrap_or(&[]);
        match name.as_str() {
            "immediate" => {
                let code = wire::attribute(data, 0, 2).and_then(|data| wire::attribute(data, 0, 2));
                verdict = code.and_then(|verdict| wire::attribute(verdict, 0, 1)).and_then(big_u32).or(verdict);
            }
            "counter" | "log" => {}
            "meta" => {
                loads_link_name = wire::attribute(data, 0, 2).and_then(big_u32).is_some_and(|key| LINK_NAMES.contains(&key));
                conditions = true;
            }
            "cmp" => {
                let value = wire::attribute(data, 0, 3).and_then(|data| wire::attribute(data, 0, 1)).unwrap_or(&[]);
                ours |= loads_link_name && is_ours(value, prefix.as_bytes());
                conditions = true;
            }
            _ => conditions = true,
        }
    }
    match verdict {
        None | Some(DROP) => false,
        Some(ACCEPT) if in_the_chain && !conditions => true,
        Some(_) => ours,
    }
}

/// A pattern such as `sk*` is compared without the NUL that ends a name.
fn is_ours(value: &[u8], prefix: &[u8]) -> bool {
    let end = value.iter().position(|byte| *byte == 0);
    match end {
        None => !value.is_empty() && (prefix.starts_with(value) || value.starts_with(prefix)),
        Some(end) => value[..end].starts_with(prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_or_a_name_of_ours_is_known() {
        for (value, ours) in [
            (&b"sk"[..], true),
            (b"skabcde", true),
            (b"skabcdeg1000\0\0\0\0", true),
            (b"sk\0\0", false),
            (b"docker0\0", false),
            (b"skother", false),
            (b"", false),
        ] {
            assert_eq!(is_ours(value, b"skabcde"), ours, "{}", String::from_utf8_lossy(value));
        }
    }
}
