//! Leads port 53 of the DNS address to the port the server listens on, inside the task's namespace.
//!
//! Two chains rewrite the port, without connection tracking:
//! ```text
//! table ip skep-dns {
//!   chain questions { type filter hook output priority raw;  ip daddr != 127.0.0.11 accept
//!                                                            udp dport 53   udp dport set 1021 accept }
//!   chain answers   { type filter hook input  priority raw;  ip saddr != 127.0.0.11 accept
//!                                                            udp sport 1021 udp sport set 53 accept }
//! }
//! ```
//! and the same for TCP. All that the task sends and gets passes here, so what is meant for nobody leaves by the first rule, and a
//! question or answer by its own. A translating rule (`dnat`, as dockerd has it) would switch connection tracking on for all of the
//! task's traffic and keep an entry of two minutes per question: a flood of questions fills the table, and then the task has
//! no network. Questions are rewritten before tracking looks at them (if the task itself has any) and answers behind it, so it
//! sees both with the same ports.

use crate::nft::socket::Nft;
use crate::nft::{Chain, Elements, Expr, Family, Hook, Register, Rule, Table};
use std::io;

/// Our own in the task's namespace.
const TABLE: &str = "skep-dns";
const LOCAL_IN: u32 = 1;
const LOCAL_OUT: u32 = 3;
/// `NF_IP_PRI_RAW`.
const RAW: i32 = -300;
const R0: Register = Register(0);
/// The protocols, and where their checksum is.
const PROTOCOLS: [(u8, u32); 2] = [(17, 6), (6, 16)];

/// Puts the table in the place of an earlier one at one stroke, in the namespace of the calling thread.
pub(super) fn install(port: u16) -> io::Result<()> {
    Nft::open()?.replace(&table(port))
}

/// Removes the table, in the namespace of the calling thread; none is no error.
pub(super) fn remove() -> io::Result<()> {
    let mut nft = Nft::open()?;
    let mut batch = nft.batch(Family::V4);
    batch.remove(TABLE);
    nft.commit(batch)
}

fn table(port: u16) -> Table {
    let address = |offset| Expr::Network { offset, length: Family::V4.width(), to: R0 };
    let (source, destination) = (Family::V4.source_offset(), Family::V4.source_offset() + Family::V4.width());
    let others = |address| Rule {
        comment: "other address",
        steps: vec![address, Expr::NotEqual { register: R0, value: super::ADDRESS.octets().to_vec() }, Expr::Accept],
    };
    let question = |(protocol, checksum)| Rule {
        comment: "question",
        steps: rewrite(protocol, (Expr::DestinationPort { to: R0 }, super::PORT), (port, Expr::SetDestinationPort { from: R0, checksum })),
    };
    let answer = |(protocol, checksum)| Rule {
        comment: "answer",
        steps: rewrite(protocol, (Expr::SourcePort { to: R0 }, port), (super::PORT, Expr::SetSourcePort { from: R0, checksum })),
    };
    let questions = [others(address(destination))].into_iter().chain(PROTOCOLS.map(question));
    let answers = [others(address(source))].into_iter().chain(PROTOCOLS.map(answer));
    let chains = vec![chain("questions", LOCAL_OUT, questions.collect()), chain("answers", LOCAL_IN, answers.collect())];
    Table { family: Family::V4, name: TABLE.into(), sets: Vec::new(), chains, elements: Elements::new() }
}

fn chain(name: &str, number: u32, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), hook: Some(Hook { kind: "filter", number, priority: RAW }), rules }
}

/// What is of this protocol and has this port gets another port, and is let on.
fn rewrite(protocol: u8, (port, is): (Expr, u16), (becomes, set): (u16, Expr)) -> Vec<Expr> {
    let equal = |value: &[u8]| Expr::Equal { register: R0, value: value.to_vec() };
    vec![
        Expr::L4Protocol { to: R0 },
        equal(&[protocol]),
        port,
        equal(&is.to_be_bytes()),
        Expr::Constant { value: becomes.to_be_bytes().to_vec(), to: R0 },
        set,
        Expr::Accept,
    ]
}
