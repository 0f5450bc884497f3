//! Transactions and dumps over one netfilter socket.

use super::encode::{Batch, comment, message_kind, read_comment};
use super::model::{Family, Parts, Table, Value};
use crate::netlink::socket::{DUMP, REQUEST, Socket, outcome};
use crate::netlink::wire::{self, Writer};
use nix::libc;
use std::collections::BTreeMap;
use std::io;

const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENT: u16 = 13;
const GET_GENERATION: u16 = 16;

/// nf_tables in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Nft {
    pub(super) socket: Socket,
    sequence: u32,
    /// The generation that the tables have if only we changed them since it was asked for.
    generation: Option<u32>,
}

impl Nft {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::netfilter()?, sequence: 1, generation: None })
    }

    pub(super) fn next_sequence(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        sequence
    }

    pub(crate) fn batch(&self, family: Family) -> Batch {
        Batch::new(family, self.sequence)
    }

    /// Carries out all of the batch or nothing; an empty one costs nothing.
    pub(crate) fn commit(&mut self, batch: Batch) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.sequence;
        let (out, last) = batch.finish();
        self.sequence = last.wrapping_add(2);
        self.socket.send(out.as_bytes())?;
        let mut failed = None;
        self.socket.receive(|message| {
            // An answer to an earlier, timed-out transaction must not be taken for this one's.
            let ours = message.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
            if i32::from(message.kind) != libc::NLMSG_ERROR || !ours {
                return Ok(false);
            }
            if let Err(error) = outcome(message.body) {
                failed.get_or_insert(error);
            }
            // A refused batch as a whole is answered with the number of its first message only.
            Ok(message.sequence == last || (failed.is_some() && message.sequence == first))
        })?;
        if failed.is_none() {
            self.generation = self.generation.map(|generation| generation.wrapping_add(1));
        }
        failed.map_or(Ok(()), Err)
    }

    /// Puts the table in the place of whatever has its name; packets meet the one or the other.
    pub(crate) fn replace(&mut self, table: &Table) -> io::Result<()> {
        if self.tables(table.family)?.contains(&table.name) {
            let found = self.parts(table)?;
            let mut batch = self.batch(table.family);
            batch.refill(table, &found);
            match self.commit(batch) {
                Ok(()) => return Ok(()),
                // Of another version, or somebody else changes it right now.
                Err(error) => tracing::debug!(table = table.name, %error, "the table is made anew"),
            }
        }
        let mut batch = self.batch(table.family);
        batch.replace(table);
        self.commit(batch)
    }

    /// Whether somebody else changed any table of this namespace since the last call; `true` on the first. The kernel
    /// counts transactions, so a message tells.
    pub(crate) fn changed_by_others(&mut self) -> io::Result<bool> {
        let sequence = self.next_sequence();
        let mut out = Writer::default();
        out.begin(message_kind(GET_GENERATION), REQUEST, sequence).put(&[0; 4]);
        out.end();
        let mut is = None;
        self.socket.dump(out.as_bytes(), sequence, |message| {
            is = wire::attribute(message.body, 4, 1).and_then(|value| value.try_into().ok()).map(u32::from_be_bytes);
        })?;
        let changed = is.is_none() || is != self.generation;
        self.generation = is;
        Ok(changed)
    }

    /// Lets the next [`Nft::changed_by_others`] say yes.
    pub(crate) fn look_again(&mut self) {
        self.generation = None;
    }

    pub(super) fn dump(&mut self, message: u16, family: u8, names: &[(u16, &str)], each: impl FnMut(wire::Message<'_>)) -> io::Result<()> {
        let sequence = self.next_sequence();
        let mut out = Writer::default();
        out.begin(message_kind(message), REQUEST | DUMP, sequence).put(&[family, 0, 0, 0]);
        for (kind, name) in names {
            out.text(*kind, name);
        }
        out.end();
        self.socket.dump(out.as_bytes(), sequence, each)
    }

    /// The names of all tables of both families, ours and others'.
    pub(crate) fn tables(&mut self, family: Family) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        self.dump(GET_TABLE, family.number(), &[], |message| {
            names.extend(wire::attribute(message.body, 4, 1).map(wire::text));
        })?;
        Ok(names)
    }

    /// Whether the kernel holds exactly this table: every rule in its place, every element.
    pub(crate) fn holds(&mut self, table: &Table) -> io::Result<bool> {
        if !self.tables(table.family)?.contains(&table.name) || self.rules(table)? != wanted_rules(table) {
            return Ok(false);
        }
        for set in &table.sets {
            let found = match self.elements(table.family, &table.name, set.name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                other => other?,
            };
            let empty = BTreeMap::new();
            if found != *table.elements.get(set.name).unwrap_or(&empty) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the rules of a table have counted, by comment.
    pub(crate) fn counted(&mut self, family: Family, table: &str) -> io::Result<Vec<(String, u64)>> {
        let mut counted = Vec::new();
        self.dump(GET_RULE, family.number(), &[(1, table)], |message| {
            if wire::attribute(message.body, 4, 1).map(wire::text).as_deref() == Some(table)
                && let Some(packets) = packets(message.body)
            {
                counted.push((read_comment(wire::attribute(message.body, 4, 7).unwrap_or(&[])), packets));
            }
        })?;
        Ok(counted)
    }

    /// What the table of that name is made of now.
    fn parts(&mut self, table: &Table) -> io::Result<Parts> {
        let mut parts = Parts::default();
        for (message, name_kind, names) in [(GET_CHAIN, 3, &mut parts.chains), (GET_SET, 2, &mut parts.sets)] {
            self.dump(message, table.family.number(), &[(1, &table.name)], |message| {
                // Not every kernel filters by table.
                if wire::attribute(message.body, 4, 1).map(wire::text).as_ref() == Some(&table.name) {
                    names.extend(wire::attribute(message.body, 4, name_kind).map(wire::text));
                }
            })?;
        }
        Ok(parts)
    }

    /// The comments of the rules, by chain and in order.
    fn rules(&mut self, table: &Table) -> io::Result<BTreeMap<String, Vec<Vec<u8>>>> {
        let mut rules: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        self.dump(GET_RULE, table.family.number(), &[(1, &table.name)], |message| {
            // Not every kernel filters by table, so it is looked at here too.
            if wire::attribute(message.body, 4, 1).map(wire::text).as_ref() == Some(&table.name)
                && let Some(chain) = wire::attribute(message.body, 4, 2).map(wire::text)
            {
                rules.entry(chain).or_default().push(wire::attribute(message.body, 4, 7).unwrap_or(&[]).to_vec());
            }
        })?;
        Ok(rules)
    }

    /// What a set or map of that table holds; `NotFound` if there is none.
    pub(crate) fn elements(&mut self, family: Family, table: &str, set: &str) -> io::Result<BTreeMap<Vec<u8>, Value>> {
        let mut elements = BTreeMap::new();
        self.dump(GET_ELEMENT, family.number(), &[(1, table), (2, set)], |message| {
            for (_, element) in wire::attributes(wire::attribute(message.body, 4, 3).unwrap_or(&[]), 0) {
                let part = |kind| wire::attribute(element, 0, kind);
                if let Some(key) = part(1).and_then(|key| wire::attribute(key, 0, 1)) {
                    elements.insert(key.to_vec(), part(2).map_or(Value::Nothing, value));
                }
            }
        })?;
        Ok(elements)
    }
}

/// The packets that the counter of a rule has seen, if it has one (`NFTA_COUNTER_PACKETS`).
fn packets(rule: &[u8]) -> Option<u64> {
    let steps = wire::attribute(rule, 4, 4)?;
    let is_counter = |step: &&[u8]| wire::attribute(step, 0, 1).map(wire::text).as_deref() == Some("counter");
    let counter = wire::attributes(steps, 0).map(|(_, step)| step).find(is_counter)?;
    Some(u64::from_be_bytes(wire::attribute(wire::attribute(counter, 0, 2)?, 0, 2)?.try_into().ok()?))
}

fn value(data: &[u8]) -> Value {
    let chain = wire::attribute(data, 0, 2).and_then(|verdict| wire::attribute(verdict, 0, 2));
    match chain {
        Some(chain) => Value::Goto(wire::text(chain)),
        None => Value::Data(wire::attribute(data, 0, 1).unwrap_or(&[]).to_vec()),
    }
}

fn wanted_rules(table: &Table) -> BTreeMap<String, Vec<Vec<u8>>> {
    let with_rules = table.chains.iter().filter(|chain| !chain.rules.is_empty());
    with_rules.map(|chain| (chain.name.clone(), chain.rules.iter().map(comment).collect())).collect()
}
