//! nf_tables without the `nft` program: tables as data, their bytes, transactions, reading back.
//!
//! Nothing of others is changed or flushed: every message that does names a table of ours. Only `firewall` reads others.

mod encode; // data to messages
mod firewall; // chains of others that drop tasks' packets
pub(crate) mod flows; // what conntrack remembers
pub(crate) mod model; // tables, chains, rules, sets as data
pub(crate) mod socket; // transactions and dumps

pub(crate) use model::{Chain, ElementChange, Elements, Expr, Family, Hook, Register, Reject, Rule, Set, Table, Value};
