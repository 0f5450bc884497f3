//! Leads port 53 of the DNS address to the port the server listens on, inside the task's namespace.
//!
//! Two chains rewrite the port, without connection tracking:
//! ```text
//! table ip skep-dns {
//!   chain questions { type filter hook output priority raw;  ip daddr 127.0.0.11 udp dport 53   udp dport set 1021 }
//!   chain answers   { type filter hook input  priority raw;  ip saddr 127.0.0.11 udp sport 1021 udp sport set 53 }
//! }
//! ```
//! and the same for TCP. A translating rule (`dnat`, as dockerd has it) would switch connection tracking on for all of the
//! task's traffic and keep an entry of two minutes per question: a flood of questions fills the table, and then the task has
//! no network. Questions are rewritten before tracking looks at them (if the task itself has any) and answers behind it, so it
//! sees both with the same ports.
//!
//! `crate::nft` has no words for writing into a packet, so the few messages are made here.

use crate::netlink::socket::{ACK, CREATE, REQUEST, Socket, outcome};
use crate::netlink::wire::Writer;
use crate::nft::encode::message_kind;
use nix::libc;
use std::io;

/// Our own in the task's namespace.
const TABLE: &str = "skep-dns";
/// `NFPROTO_IPV4`.
const IPV4: u8 = 2;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const APPEND: u16 = 0x800;

/// `NFT_REG32_00`.
const REGISTER: u32 = 8;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// One of the two directions.
struct Direction {
    chain: &'static str,
    /// `NF_INET_LOCAL_OUT` is 3, `LOCAL_IN` is 1.
    hook: u32,
    /// Of the address in the IP header.
    address_at: u32,
    /// Of the port behind it.
    port_at: u32,
    from: u16,
    to: u16,
}

/// Puts the table in the place of an earlier one at one stroke, in the namespace of the calling thread.
pub(super) fn install(port: u16) -> io::Result<()> {
    let mut socket = Socket::netfilter()?;
    let (out, last) = batch(port);
    socket.send(out.as_bytes())?;
    let mut failed = None;
    socket.receive(|message| {
        if i32::from(message.kind) != libc::NLMSG_ERROR {
            return Ok(false);
        }
        if let Err(error) = outcome(message.body) {
            failed.get_or_insert(error);
        }
        // A batch refused as a whole is answered with the number of its first message only.
        Ok(message.sequence == last || failed.is_some() && message.sequence == 0)
    })?;
    failed.map_or(Ok(()), Err)
}

/// The transaction, and the number of the message that is acknowledged.
fn batch(port: u16) -> (Writer, u32) {
    let mut out = Batch::default();
    out.frame(BATCH_BEGIN);
    // Adding first keeps a missing one from being an error.
    for kind in [NEW_TABLE, DELETE_TABLE, NEW_TABLE] {
        out.message(kind, if kind == NEW_TABLE { CREATE } else { 0 }, |out| {
            out.text(1, TABLE);
        });
    }
    for direction in [
        Direction { chain: "questions", hook: 3, address_at: 16, port_at: 2, from: super::PORT, to: port },
        Direction { chain: "answers", hook: 1, address_at: 12, port_at: 0, from: port, to: super::PORT },
    ] {
        out.message(NEW_CHAIN, CREATE, |out| {
            out.text(1, TABLE).text(3, direction.chain);
            out.nest(4, |out| {
                // `NF_IP_PRI_RAW`
                out.big_u32(1, direction.hook).big_u32(2, (-300i32).cast_unsigned());
            });
            out.text(7, "filter");
        });
        // With the place of the checksum, which the kernel keeps right.
        for (protocol, checksum_at) in [(UDP, 6), (TCP, 16)] {
            out.message(NEW_RULE, CREATE | APPEND, |out| {
                out.text(1, TABLE).text(2, direction.chain);
                out.nest(4, |out| rule(out, &direction, protocol, checksum_at));
            });
        }
    }
    out.finish()
}

fn rule(out: &mut Writer, direction: &Direction, protocol: u8, checksum_at: u32) {
    load(out, NETWORK_HEADER, direction.address_at, 4);
    equal(out, &super::ADDRESS.octets());
    step(out, "meta", |out| {
        // `NFT_META_L4PROTO`
        out.big_u32(1, REGISTER).big_u32(2, 16);
    });
    equal(out, &[protocol]);
    load(out, TRANSPORT_HEADER, direction.port_at, 2);
    equal(out, &direction.from.to_be_bytes());
    step(out, "immediate", |out| {
        out.big_u32(1, REGISTER);
        constant(out, 2, &direction.to.to_be_bytes());
    });
    step(out, "payload", |out| {
        // `NFT_PAYLOAD_CSUM_INET`
        out.big_u32(2, TRANSPORT_HEADER)
            .big_u32(3, direction.port_at)
            .big_u32(4, 2)
            .big_u32(5, REGISTER)
            .big_u32(6, 1)
            .big_u32(7, checksum_at);
    });
}

fn load(out: &mut Writer, header: u32, at: u32, length: u32) {
    step(out, "payload", |out| {
        out.big_u32(1, REGISTER).big_u32(2, header).big_u32(3, at).big_u32(4, length);
    });
}

fn equal(out: &mut Writer, value: &[u8]) {
    step(out, "cmp", |out| {
        out.big_u32(1, REGISTER).big_u32(2, 0);
        constant(out, 3, value);
    });
}

fn constant(out: &mut Writer, kind: u16, value: &[u8]) {
    out.nest(kind, |out| {
        out.attribute(1, value);
    });
}

fn step(out: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    out.nest(1, |out| {
        out.text(1, name).nest(2, data);
    });
}

/// Messages numbered from 0.
#[derive(Default)]
struct Batch {
    out: Writer,
    sequence: u32,
}

impl Batch {
    fn frame(&mut self, kind: u16) {
        self.out.begin(kind, REQUEST, self.sequence);
        // struct nfgenmsg: family unspecified, version 0, the subsystem as res_id
        self.out.put(&[0, 0]).put(&SUBSYSTEM.to_be_bytes());
        self.out.end();
        self.sequence += 1;
    }

    fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) {
        self.out.begin(message_kind(kind), REQUEST | flags, self.sequence);
        self.out.put(&[IPV4, 0, 0, 0]);
        body(&mut self.out);
        self.out.end();
        self.sequence += 1;
    }

    fn finish(mut self) -> (Writer, u32) {
        self.out.add_flag(ACK);
        let last = self.sequence - 1;
        self.frame(BATCH_END);
        (self.out, last)
    }
}
