//! nf_tables without the `nft` program: tables as data, their bytes, transactions, reading back.
//!
//! Nothing of others is read, changed or flushed: every message names a table of ours.

pub(crate) mod encode; // data to messages
pub(crate) mod flows; // what conntrack remembers
pub(crate) mod model; // tables, chains, rules, sets as data
pub(crate) mod socket; // transactions and dumps

pub(crate) use model::{Chain, ElementChange, Elements, Expr, Family, Hook, Register, Rule, Set, Table, Value};
