//! The types that openraft is built with.

use crate::codec::{self, CodecError};
use crate::compact::Compacted;
use crate::raft::machine::SnapshotStream;
use crate::raft::runtime::Runtime;
use crate::table::ApplyError;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use skep_types::{Action, Timestamp, Version};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// A manager's number in the raft group; never used twice in a cluster's life.
pub type RaftId = u64;

/// What the raft group knows of a manager.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its node id, the CN of its certificate.
    pub node_id: String,
    /// Where the others reach it: `host:port`.
    pub addr: String,
}

impl fmt::Display for Member {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} at {}", self.node_id, self.addr)
    }
}

openraft::declare_raft_types!(
    pub(crate) RaftTypes:
        D = Batch,
        R = BatchResult,
        NodeId = RaftId,
        Node = Member,
        SnapshotData = SnapshotStream,
        AsyncRuntime = Runtime,
);

pub(crate) type Raft = openraft::Raft<RaftTypes>;
pub(crate) type Entry = openraft::Entry<RaftTypes>;
pub(crate) type LogId = openraft::LogId<RaftId>;
pub(crate) type Vote = openraft::Vote<RaftId>;
pub(crate) type StorageError = openraft::StorageError<RaftId>;
pub(crate) type Membership = openraft::StoredMembership<RaftId, Member>;
pub(crate) type RaftState = openraft::RaftState<RaftId, Member, tokio::time::Instant>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftId, Member>;

/// The actions of one proposal, with the leader's time when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub now: Timestamp,
    pub actions: Vec<Action>,
}

/// Several proposals in one log entry; each succeeds or fails by itself.
///
/// It travels as bytes that were made once. The leader keeps what they were made of beside them.
#[derive(Clone, Default)]
pub struct Batch {
    bytes: Arc<[u8]>,
    decoded: Arc<OnceLock<Vec<Transaction>>>,
}

impl Batch {
    /// `parts` are transactions as [`encode_transaction`] made them.
    pub(crate) fn new(transactions: Vec<Transaction>, parts: &[Vec<u8>]) -> Self {
        let mut bytes = Vec::with_capacity(parts.iter().map(Vec::len).sum::<usize>() + 5);
        // A MessagePack array: the transactions one behind the other after their number.
        bytes.push(0xdd);
        bytes.extend_from_slice(&u32::try_from(parts.len()).expect("a batch has at most a few hundred transactions").to_be_bytes());
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        let decoded = OnceLock::new();
        let _ = decoded.set(transactions);
        Self { bytes: bytes.into(), decoded: Arc::new(decoded) }
    }

    pub(crate) fn transactions(&self) -> Result<&[Transaction], CodecError> {
        if let Some(transactions) = self.decoded.get() {
            return Ok(transactions);
        }
        let written: Vec<Compacted> = if self.bytes.is_empty() { Vec::new() } else { codec::decode("log entry", &self.bytes)? };
        let expand = |written: Compacted| written.expand().map(|(now, actions)| Transaction { now, actions });
        let transactions = written.into_iter().map(expand).collect::<Result<_, _>>()?;
        Ok(self.decoded.get_or_init(|| transactions))
    }

    /// Bytes in the log.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }
}

pub(crate) fn encode_transaction(transaction: &Transaction) -> Result<Vec<u8>, CodecError> {
    codec::encode("transaction", &Compacted::new(transaction.now, &transaction.actions))
}

impl fmt::Debug for Batch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Batch({} bytes)", self.bytes.len())
    }
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_bytes(&self.bytes)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Arc<[u8]>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a byte string")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(bytes.into())
            }
        }
        Ok(Self { bytes: input.deserialize_bytes(Bytes)?, decoded: Arc::default() })
    }
}

/// What became of each transaction of a batch, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchResult(pub(crate) Vec<Result<Version, ApplyError>>);

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Object, Secret, SecretId, SecretSpec, Sensitive};

    #[test]
    fn a_batch_reads_back_as_it_was_written() {
        let secret = Secret {
            id: SecretId::for_test(1),
            meta: skep_types::Meta::default(),
            spec: SecretSpec { data: Sensitive((0..=255).collect()), ..SecretSpec::default() },
            internal: false,
        };
        let transaction = Transaction { now: Timestamp(-5), actions: vec![Action::Create(Object::Secret(Arc::new(secret)))] };
        let part = encode_transaction(&transaction).unwrap();
        assert!(part.len() < 256 + 500, "byte strings are not lists of numbers: {}", part.len());
        let batch = Batch::new(vec![transaction.clone(), transaction.clone()], &[part.clone(), part]);
        let bytes = codec::encode("batch", &batch).unwrap();
        let back: Batch = codec::decode("batch", &bytes).unwrap();
        assert_eq!(back.transactions().unwrap(), [transaction.clone(), transaction]);
        assert!(Batch::default().transactions().unwrap().is_empty());
    }
}
