//! Tables as nf_tables messages (`include/uapi/linux/netfilter/nf_tables.h`; the numbers below are from there).

use super::model::{Chain, ElementChange, Expr, Family, Holds, Parts, Register, Reject, Rule, Set, Table, Value};
use crate::netlink::socket::{CREATE, REQUEST};
use crate::netlink::wire::Writer;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const APPEND: u16 = 0x800;

const SET_IS_MAP: u32 = 0x8;
const DATA_IS_VERDICT: u32 = 0xffff_ff00;
const GOTO: u32 = -4i32 as u32;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;

/// Elements per message: the list is an attribute, whose length has 16 bits; the longest element takes 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 512;

/// The kind of a netfilter message of the nf_tables subsystem.
pub(crate) fn message_kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

/// One transaction: all of it happens, or nothing.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    out: Writer,
    family: u8,
    sequence: u32,
    /// Messages between begin and end.
    count: usize,
}

impl Batch {
    /// `first` numbers the messages from there.
    pub(crate) fn new(family: Family, first: u32) -> Self {
        let mut batch = Self { out: Writer::default(), family: family.number(), sequence: first, count: 0 };
        batch.frame(BATCH_BEGIN);
        batch
    }

    fn frame(&mut self, kind: u16) {
        self.out.begin(kind, REQUEST, self.sequence);
        // struct nfgenmsg: family unspecified, version 0, the subsystem as res_id
        self.out.put(&[0, 0]).put(&SUBSYSTEM.to_be_bytes());
        self.out.end();
        self.sequence += 1;
    }

    fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) {
        self.out.begin(message_kind(kind), REQUEST | flags, self.sequence);
        self.out.put(&[self.family, 0, 0, 0]);
        body(&mut self.out);
        self.out.end();
        self.sequence += 1;
        self.count += 1;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Closes the batch: the bytes, and the number of the message that is acknowledged (the last of ours).
    pub(crate) fn finish(mut self) -> (Writer, u32) {
        self.out.add_flag(crate::netlink::socket::ACK);
        let last = self.sequence - 1;
        self.frame(BATCH_END);
        (self.out, last)
    }

    /// Puts the table in the place of whatever has its name. A packet may meet the new hook before the transaction and the old one
    /// behind it, and so no rule at all: see [`Batch::refill`].
    pub(crate) fn replace(&mut self, table: &Table) {
        self.remove(&table.name);
        self.message(NEW_TABLE, CREATE, |out| {
            out.text(1, &table.name).big_u32(2, 0);
        });
        self.fill(table);
    }

    /// Puts other rules and elements into a table that has `found`: its hooks and maps stay the same, so that every packet meets either
    /// what was there or what is there now. Refused by the kernel if one that stays is of another kind.
    pub(crate) fn refill(&mut self, table: &Table, found: &Parts) {
        let name = &table.name;
        self.message(DELETE_RULE, 0, |out| {
            out.text(1, name);
        });
        for set in &found.sets {
            let stays = table.sets.iter().any(|wanted| wanted.name == set);
            // Of a set that is asked to lose no element in particular all go.
            self.message(if stays { DELETE_ELEMENT } else { DELETE_SET }, 0, |out| {
                out.text(1, name).text(2, set);
            });
        }
        for chain in found.chains.iter().filter(|chain| table.chains.iter().all(|wanted| wanted.name != **chain)) {
            self.message(DELETE_CHAIN, 0, |out| {
                out.text(1, name).text(3, chain);
            });
        }
        self.fill(table);
    }

    fn fill(&mut self, table: &Table) {
        for (index, set) in table.sets.iter().enumerate() {
            self.set(&table.name, set, u32::try_from(index).expect("few sets") + 1);
        }
        for chain in &table.chains {
            self.chain(&table.name, chain);
        }
        for chain in &table.chains {
            self.rules(&table.name, chain);
        }
        for (set, elements) in &table.elements {
            let elements: Vec<_> = elements.iter().collect();
            self.elements(NEW_ELEMENT, &table.name, set, &elements);
        }
    }

    /// Removes the table if it is there: adding first keeps a missing one from being an error.
    pub(crate) fn remove(&mut self, table: &str) {
        self.message(NEW_TABLE, CREATE, |out| {
            out.text(1, table).big_u32(2, 0);
        });
        self.message(DELETE_TABLE, 0, |out| {
            out.text(1, table);
        });
    }

    pub(crate) fn chain(&mut self, table: &str, chain: &Chain) {
        self.message(NEW_CHAIN, CREATE, |out| {
            out.text(1, table).text(3, &chain.name);
            if let Some(hook) = chain.hook {
                out.nest(4, |out| {
                    out.big_u32(1, hook.number).big_u32(2, hook.priority.cast_unsigned());
                });
                out.big_u32(5, ACCEPT).text(7, hook.kind);
            }
        });
    }

    pub(crate) fn rules(&mut self, table: &str, chain: &Chain) {
        for rule in &chain.rules {
            self.message(NEW_RULE, CREATE | APPEND, |out| {
                out.text(1, table).text(2, &chain.name);
                out.nest(4, |out| {
                    for step in &rule.steps {
                        encode_step(out, step);
                    }
                });
                out.attribute(7, &comment(rule));
            });
        }
    }

    fn set(&mut self, table: &str, set: &Set, id: u32) {
        self.message(NEW_SET, CREATE, |out| {
            let flags = if set.holds == Holds::Nothing { 0 } else { SET_IS_MAP };
            out.text(1, table).text(2, set.name).big_u32(3, flags).big_u32(4, set.key_kind).big_u32(5, set.key_length);
            match set.holds {
                Holds::Nothing => {}
                Holds::Verdicts => {
                    out.big_u32(6, DATA_IS_VERDICT).big_u32(7, 0);
                }
                Holds::Data { kind, length } => {
                    out.big_u32(6, kind).big_u32(7, length);
                }
            }
            out.big_u32(10, id);
        });
    }

    /// All removals, then all additions: a key whose value changes is in both.
    pub(crate) fn change(&mut self, table: &str, changes: &[ElementChange]) {
        for (kind, chosen) in [
            (DELETE_ELEMENT, chosen(changes, |change| matches!(change, ElementChange::Remove { .. }))),
            (NEW_ELEMENT, chosen(changes, |change| matches!(change, ElementChange::Add { .. }))),
        ] {
            for (set, elements) in chosen {
                self.elements(kind, table, set, &elements);
            }
        }
    }

    fn elements(&mut self, kind: u16, table: &str, set: &str, elements: &[(&Vec<u8>, &Value)]) {
        let flags = if kind == NEW_ELEMENT { CREATE } else { 0 };
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.message(kind, flags, |out| {
                out.text(1, table).text(2, set).nest(3, |out| {
                    for (key, value) in part {
                        out.nest(1, |out| encode_element(out, key, value));
                    }
                });
            });
        }
    }
}

type BySet<'a> = std::collections::BTreeMap<&'static str, Vec<(&'a Vec<u8>, &'a Value)>>;

fn chosen(changes: &[ElementChange], which: impl Fn(&ElementChange) -> bool) -> BySet<'_> {
    let mut by_set = BySet::new();
    for change in changes.iter().filter(|change| which(change)) {
        let (ElementChange::Remove { set, key, value } | ElementChange::Add { set, key, value }) = change;
        by_set.entry(*set).or_default().push((key, value));
    }
    by_set
}

/// Rule user data as libnftnl writes it, so that `nft list` shows the comment: type, length, text with NUL.
pub(crate) fn comment(rule: &Rule) -> Vec<u8> {
    let length = u8::try_from(rule.comment.len() + 1).expect("comments are short");
    [&[0, length], rule.comment.as_bytes(), &[0]].concat()
}

/// The text of what [`comment`] wrote.
pub(crate) fn read_comment(data: &[u8]) -> String {
    crate::netlink::wire::text(data.get(2..).unwrap_or(&[]))
}

fn encode_element(out: &mut Writer, key: &[u8], value: &Value) {
    out.nest(1, |out| {
        out.attribute(1, key);
    });
    match value {
        Value::Nothing => {}
        Value::Data(data) => {
            out.nest(2, |out| {
                out.attribute(1, data);
            });
        }
        Value::Goto(chain) => {
            out.nest(2, |out| verdict(out, GOTO, Some(chain)));
        }
    }
}

fn verdict(out: &mut Writer, code: u32, chain: Option<&str>) {
    out.nest(2, |out| {
        out.big_u32(1, code);
        if let Some(chain) = chain {
            out.text(2, chain);
        }
    });
}

fn step(out: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    out.nest(1, |out| {
        out.text(1, name).nest(2, data);
    });
}

/// A constant in the attribute `kind`.
fn constant(out: &mut Writer, kind: u16, value: &[u8]) {
    out.nest(kind, |out| {
        out.attribute(1, value);
    });
}

const TRANSPORT_HEADER: u32 = 2;

fn encode_step(out: &mut Writer, expr: &Expr) {
    const LINK_HEADER: u32 = 0;
    const NETWORK_HEADER: u32 = 1;
    match expr {
        Expr::Network { offset, length, to } => payload(out, NETWORK_HEADER, *offset, *length, *to),
        Expr::DestinationPort { to } => payload(out, TRANSPORT_HEADER, 2, 2, *to),
        Expr::SourcePort { to } => payload(out, TRANSPORT_HEADER, 0, 2, *to),
        Expr::SetSourcePort { from, checksum } => set_port(out, 0, *from, *checksum),
        Expr::SetDestinationPort { from, checksum } => set_port(out, 2, *from, *checksum),
        // RFC 7348 §5: behind UDP's eight bytes, at the fourth of its own.
        Expr::VxlanNumber { to } => payload(out, TRANSPORT_HEADER, 12, 3, *to),
        Expr::Counter => step(out, "counter", |_| {}),
        Expr::SourceMac { to } => payload(out, LINK_HEADER, 6, 6, *to),
        Expr::TcpFlags { to } => payload(out, TRANSPORT_HEADER, 13, 1, *to),
        Expr::L4Protocol { to } => load(out, "meta", 16, *to),
        Expr::InLinkName { to } => load(out, "meta", 6, *to),
        Expr::OutLinkName { to } => load(out, "meta", 7, *to),
        Expr::CtState { to } => load(out, "ct", 0, *to),
        Expr::CtStatus { to } => load(out, "ct", 2, *to),
        Expr::CtDirection { to } => load(out, "ct", 1, *to),
        Expr::CtMark { to } => load(out, "ct", 3, *to),
        Expr::SetCtMark { from } => step(out, "ct", |out| {
            out.big_u32(2, 3).big_u32(4, from.number());
        }),
        Expr::SetCtZone { from } => step(out, "ct", |out| {
            // direction 0: the connection's first packet's
            out.big_u32(2, 17).big_u32(4, from.number()).attribute(3, &[0]);
        }),
        Expr::Untracked => step(out, "notrack", |_| {}),
        Expr::SetMark { from } => step(out, "meta", |out| {
            out.big_u32(2, 3).big_u32(3, from.number());
        }),
        Expr::ClampSegments { from } => step(out, "exthdr", |out| {
            // option 2 of TCP, two bytes at offset 2; operation 1: a TCP option, which is written if a source is given and
            // the kernel never makes larger (net/netfilter/nft_exthdr.c)
            out.attribute(2, &[2]).big_u32(3, 2).big_u32(4, 2).big_u32(6, 1).big_u32(7, from.number());
        }),
        Expr::DestinationType { to } => step(out, "fib", |out| {
            // result 3: address type; flag 2: of the destination
            out.big_u32(1, to.number()).big_u32(2, 3).big_u32(3, 2);
        }),
        Expr::DestinationLink { to } => step(out, "fib", |out| {
            // result 1: link; flags 2 and 4: to the destination, by the packet's mark
            out.big_u32(1, to.number()).big_u32(2, 1).big_u32(3, 2 | 4);
        }),
        Expr::SourceLink { to } => step(out, "fib", |out| {
            // result 1: link; flags 1 and 8: of the source, on the incoming link
            out.big_u32(1, to.number()).big_u32(2, 1).big_u32(3, 1 | 8);
        }),
        Expr::Random { below, to } => step(out, "numgen", |out| {
            out.big_u32(1, to.number()).big_u32(2, *below).big_u32(3, 1).big_u32(4, 0);
        }),
        Expr::Hash { from, length, below, seed, to } => step(out, "hash", |out| {
            out.big_u32(1, from.number()).big_u32(2, to.number()).big_u32(3, *length).big_u32(4, *below).big_u32(5, *seed);
            out.big_u32(6, 0).big_u32(7, 0);
        }),
        Expr::Constant { value, to } => step(out, "immediate", |out| {
            out.big_u32(1, to.number());
            constant(out, 2, value);
        }),
        Expr::Equal { register, value } => compare(out, 0, *register, value),
        Expr::NotEqual { register, value } => compare(out, 1, *register, value),
        Expr::And { register, mask } => step(out, "bitwise", |out| {
            let length = u32::try_from(mask.len()).expect("masks are short");
            out.big_u32(1, register.number()).big_u32(2, register.number()).big_u32(3, length);
            constant(out, 4, mask);
            constant(out, 5, &vec![0; mask.len()]);
        }),
        Expr::Contains { set, key } => step(out, "lookup", |out| {
            out.text(1, set).big_u32(2, key.number());
        }),
        Expr::Lacks { set, key } => step(out, "lookup", |out| {
            // NFT_LOOKUP_F_INV
            out.text(1, set).big_u32(2, key.number()).big_u32(5, 1);
        }),
        Expr::Map { set, key, to } => step(out, "lookup", |out| {
            out.text(1, set).big_u32(2, key.number()).big_u32(3, to.number());
        }),
        Expr::VerdictMap { set, key } => step(out, "lookup", |out| {
            // register 0 is the verdict
            out.text(1, set).big_u32(2, key.number()).big_u32(3, 0);
        }),
        Expr::Dnat { family, address, port } => nat(out, 1, *family, *address, *port),
        Expr::Snat { family, address } => nat(out, 0, *family, *address, None),
        Expr::Masquerade => step(out, "masq", |_| {}),
        Expr::Reject(how) => step(out, "reject", |out| {
            // kind 1: a reset of TCP; 0: an ICMP message with a code of the family's own
            let (kind, code) = match how {
                Reject::Reset => (1, 0),
                Reject::PortUnreachable(Family::V4) => (0, 3),
                Reject::PortUnreachable(Family::V6) => (0, 4),
            };
            out.big_u32(1, kind).attribute(2, &[code]);
        }),
        Expr::Accept => immediate_verdict(out, ACCEPT),
        Expr::Drop => immediate_verdict(out, DROP),
    }
}

fn payload(out: &mut Writer, base: u32, offset: u32, length: u32, to: Register) {
    step(out, "payload", |out| {
        out.big_u32(1, to.number()).big_u32(2, base).big_u32(3, offset).big_u32(4, length);
    });
}

fn set_port(out: &mut Writer, offset: u32, from: Register, checksum: u32) {
    step(out, "payload", |out| {
        // checksum kind 1: `NFT_PAYLOAD_CSUM_INET`
        out.big_u32(2, TRANSPORT_HEADER).big_u32(3, offset).big_u32(4, 2).big_u32(5, from.number()).big_u32(6, 1).big_u32(7, checksum);
    });
}

fn load(out: &mut Writer, name: &str, key: u32, to: Register) {
    step(out, name, |out| {
        out.big_u32(1, to.number()).big_u32(2, key);
    });
}

fn compare(out: &mut Writer, operator: u32, register: Register, value: &[u8]) {
    step(out, "cmp", |out| {
        out.big_u32(1, register.number()).big_u32(2, operator);
        constant(out, 3, value);
    });
}

fn nat(out: &mut Writer, kind: u32, family: Family, address: Register, port: Option<Register>) {
    step(out, "nat", |out| {
        out.big_u32(1, kind).big_u32(2, u32::from(family.number())).big_u32(3, address.number());
        if let Some(port) = port {
            out.big_u32(5, port.number());
        }
    });
}

fn immediate_verdict(out: &mut Writer, code: u32) {
    step(out, "immediate", |out| {
        out.big_u32(1, 0).nest(2, |out| verdict(out, code, None));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::wire;

    fn kinds(out: &Writer) -> Vec<(u16, u32)> {
        wire::messages(out.as_bytes()).map(|message| (message.kind, message.sequence)).collect()
    }

    #[test]
    fn a_batch_is_framed_and_its_last_message_acknowledged() {
        let mut batch = Batch::new(Family::V4, 5);
        batch.remove("t");
        let (out, last) = batch.finish();
        assert_eq!(kinds(&out), [(16, 5), (0xa00, 6), (0xa02, 7), (17, 8)]);
        assert_eq!(last, 7);
        let flags: Vec<_> = wire::messages(out.as_bytes()).map(|message| message.flags & 4).collect();
        assert_eq!(flags, [0, 0, 4, 0]);
    }

    #[test]
    fn an_element_with_a_verdict_has_these_bytes() {
        let mut out = Writer::default();
        encode_element(&mut out, &[6, 0, 0, 0, 0x1f, 0x90, 0, 0], &Value::Goto("lb3".into()));
        let wanted: &[u8] = &[
            16, 0, 1, 0x80, 12, 0, 1, 0, 6, 0, 0, 0, 0x1f, 0x90, 0, 0, // key: tcp . 8080
            24, 0, 2, 0x80, 20, 0, 2, 0x80, // data: a verdict
            8, 0, 1, 0, 0xff, 0xff, 0xff, 0xfc, // NFT_GOTO, big endian
            8, 0, 2, 0, b'l', b'b', b'3', 0,
        ];
        assert_eq!(out.as_bytes(), wanted);
    }

    #[test]
    fn a_comparison_has_these_bytes() {
        let mut out = Writer::default();
        encode_step(&mut out, &Expr::Equal { register: Register(0), value: vec![2, 0, 0, 0] });
        let wanted: &[u8] = &[
            44, 0, 1, 0x80, 8, 0, 1, 0, b'c', b'm', b'p', 0, 32, 0, 2, 0x80, // list element, name, data
            8, 0, 1, 0, 0, 0, 0, 8, 8, 0, 2, 0, 0, 0, 0, 0, // NFT_REG32_00, NFT_CMP_EQ
            12, 0, 3, 0x80, 8, 0, 1, 0, 2, 0, 0, 0,
        ];
        assert_eq!(out.as_bytes(), wanted);
    }

    #[test]
    fn removals_come_before_additions() {
        let element = |add: bool| {
            let (set, key, value) = ("be", vec![1; 12], Value::Data(vec![2; 8]));
            if add { ElementChange::Add { set, key, value } } else { ElementChange::Remove { set, key, value } }
        };
        let mut batch = Batch::new(Family::V4, 1);
        batch.change("t", &[element(true), element(false)]);
        assert_eq!(kinds(&batch.finish().0), [(16, 1), (0xa0e, 2), (0xa0c, 3), (17, 4)]);
    }

    #[test]
    fn many_elements_are_spread_over_messages() {
        let changes: Vec<_> = (0..1_100u32)
            .map(|n| ElementChange::Add { set: "be", key: n.to_ne_bytes().to_vec(), value: Value::Data(vec![0; 20]) })
            .collect();
        let mut batch = Batch::new(Family::V6, 1);
        batch.change("t", &changes);
        assert_eq!(kinds(&batch.finish().0).len(), 2 + 3);
    }
}
