//! Tables, chains, rules and sets as data.

use std::collections::BTreeMap;

/// The address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// Of an address, in bytes.
    pub(crate) fn width(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// Offset of the source address in the IP header; the destination follows it.
    pub(crate) fn source_offset(self) -> u32 {
        match self {
            Self::V4 => 12,
            Self::V6 => 8,
        }
    }

    pub(crate) fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// One of the sixteen 32-bit registers of a rule (`NFT_REG32_00` is 8). A longer value takes those that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Register(pub(crate) u32);

impl Register {
    pub(crate) fn number(self) -> u32 {
        8 + self.0
    }
}

/// What a rule does, step by step; a step that does not hold ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Loads from the IP header.
    Network {
        offset: u32,
        length: u32,
        to: Register,
    },
    /// Loads the destination port, at the same place in TCP, UDP and SCTP.
    DestinationPort {
        to: Register,
    },
    /// Loads the source port, likewise.
    SourcePort {
        to: Register,
    },
    /// Writes it; the kernel keeps the checksum right that is at that offset of TCP's or UDP's header.
    SetSourcePort {
        from: Register,
        checksum: u32,
    },
    /// The same for the destination port.
    SetDestinationPort {
        from: Register,
        checksum: u32,
    },
    /// Loads the three bytes of the network's number from a VXLAN packet.
    VxlanNumber {
        to: Register,
    },
    /// Counts packets and bytes.
    Counter,
    /// Loads the sender's hardware address: six bytes, two registers.
    SourceMac {
        to: Register,
    },
    /// Loads the byte of TCP's flags.
    TcpFlags {
        to: Register,
    },
    L4Protocol {
        to: Register,
    },
    InLinkName {
        to: Register,
    },
    OutLinkName {
        to: Register,
    },
    CtState {
        to: Register,
    },
    CtStatus {
        to: Register,
    },
    /// Loads a byte: 0 is the direction of a connection's first packet, 1 that of its answers.
    CtDirection {
        to: Register,
    },
    CtMark {
        to: Register,
    },
    /// Marks the connection.
    SetCtMark {
        from: Register,
    },
    /// Before connections are tracked: keeps what comes now apart from the same addresses and ports of another zone. Two bytes in
    /// the machine's order. Answers are of no zone; the kernel changes the client's port where they could not be told apart.
    SetCtZone {
        from: Register,
    },
    /// Before connections are tracked: of this packet none is.
    Untracked,
    /// Marks the packet.
    SetMark {
        from: Register,
    },
    /// Makes the maximum segment size that a SYN announces no larger than the two bytes there, in network byte order.
    ClampSegments {
        from: Register,
    },
    /// Loads the type of the destination address (`RTN_LOCAL` is 2).
    DestinationType {
        to: Register,
    },
    /// Loads the index of the link by which a route leads to the destination address; 0 if none does, or the address is this host's own.
    DestinationLink {
        to: Register,
    },
    /// Loads the index of the incoming link if the route to the source address leads there, else 0.
    SourceLink {
        to: Register,
    },
    /// Draws a number below `below`.
    Random {
        below: u32,
        to: Register,
    },
    /// Hashes `length` bytes into a number below `below`, with Jenkins' hash.
    Hash {
        from: Register,
        length: u32,
        below: u32,
        seed: u32,
        to: Register,
    },
    /// Puts a constant into a register.
    Constant {
        value: Vec<u8>,
        to: Register,
    },
    Equal {
        register: Register,
        value: Vec<u8>,
    },
    NotEqual {
        register: Register,
        value: Vec<u8>,
    },
    /// Keeps the bits of the mask.
    And {
        register: Register,
        mask: Vec<u8>,
    },
    /// Holds if the set has the key.
    Contains {
        set: &'static str,
        key: Register,
    },
    /// Holds if the set has not the key.
    Lacks {
        set: &'static str,
        key: Register,
    },
    /// Loads what the map has for the key.
    Map {
        set: &'static str,
        key: Register,
        to: Register,
    },
    /// Goes where the map says for the key.
    VerdictMap {
        set: &'static str,
        key: Register,
    },
    Dnat {
        family: Family,
        address: Register,
        port: Option<Register>,
    },
    Snat {
        family: Family,
        address: Register,
    },
    Masquerade,
    /// Answers and drops.
    Reject(Reject),
    Accept,
    Drop,
}

/// How a packet is answered that is not let on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reject {
    /// As TCP does; holds for nothing else.
    Reset,
    /// By ICMP of that family.
    PortUnreachable(Family),
}

/// A rule; the comment is how an audit knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) comment: &'static str,
    pub(crate) steps: Vec<Expr>,
}

/// Where and when a chain is entered by packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hook {
    /// `nat` or `filter`.
    pub(crate) kind: &'static str,
    /// `NF_INET_PRE_ROUTING` 0, `LOCAL_IN` 1, `FORWARD` 2, `LOCAL_OUT` 3, `POST_ROUTING` 4.
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

/// What a set maps its keys to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Nothing,
    Verdicts,
    /// Data of that type number and length.
    Data {
        kind: u32,
        length: u32,
    },
}

/// The type numbers serve `nft list` only; the kernel looks at the lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key_kind: u32,
    pub(crate) key_length: u32,
    pub(crate) holds: Holds,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    Nothing,
    Data(Vec<u8>),
    Goto(String),
}

/// By set and key.
pub(crate) type Elements = BTreeMap<&'static str, BTreeMap<Vec<u8>, Value>>;

/// A table of ours, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) name: String,
    pub(crate) sets: Vec<Set>,
    /// Chains that others go to come before them.
    pub(crate) chains: Vec<Chain>,
    pub(crate) elements: Elements,
}

/// What a table in the kernel is made of, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) chains: Vec<String>,
    pub(crate) sets: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ElementChange {
    Remove { set: &'static str, key: Vec<u8>, value: Value },
    Add { set: &'static str, key: Vec<u8>, value: Value },
}

/// Type numbers of nft (`src/datatype.h`, `enum datatypes`), combined six bits each.
pub(crate) mod kind {
    pub(crate) const IPV4: u32 = 7;
    pub(crate) const IPV6: u32 = 8;
    pub(crate) const ETHER: u32 = 9;
    pub(crate) const PROTOCOL: u32 = 12;
    pub(crate) const PORT: u32 = 13;
    pub(crate) const MARK: u32 = 19;
    pub(crate) const LINK_NAME: u32 = 41;

    pub(crate) fn joined(kinds: &[u32]) -> u32 {
        kinds.iter().fold(0, |all, kind| all << 6 | kind)
    }
}
