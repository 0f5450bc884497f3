//! Names of addresses: `12.1.0.10.in-addr.arpa` and the same in nibbles below `ip6.arpa`.

use hickory_proto::rr::Name;
use ipnet::IpNet;
use std::net::IpAddr;

/// What such a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reverse {
    Address(IpAddr),
    /// Only the first digits were given.
    Part(IpNet),
}

/// `text` is the name in lower case. `None` if it is none of an address.
pub(super) fn read(text: &str, name: &Name) -> Option<Reverse> {
    if !is_reverse(Some(text)) {
        return None;
    }
    let net = name.parse_arpa_name().ok()?;
    Some(if net.prefix_len() == net.max_prefix_len() { Reverse::Address(net.addr()) } else { Reverse::Part(net) })
}

pub(super) fn is_reverse(text: Option<&str>) -> bool {
    text.is_some_and(|text| text.ends_with(".in-addr.arpa") || text.ends_with(".ip6.arpa"))
}
