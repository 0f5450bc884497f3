//! The cluster's objects, replicated: a raft log on disk, tables in memory, views and a feed of changes for readers.
//!
//! Start with [`Store`]: [`Store::bootstrap`] makes one, [`Store::open`] opens it again, [`Store::view`] reads,
//! [`Store::propose`] writes, [`Store::feed`] follows. [`Tables`] works alone too, for tests and the simulator.
//!
//! It does not know who may do what, and it decides nothing: it keeps what it is told, whole transactions at a time, and an
//! acknowledged one is on the disk of a majority of managers.
//!
//! Tasks and threads of one store:
//! * openraft's own: the core and its timer, the state machine worker, one per other manager;
//! * `propose`: turns waiting proposals into log entries (channel of 1,024; a full one makes proposers wait);
//! * `leadership`: confirms a new leadership by an empty entry and publishes it;
//! * `housekeeping`: triggers snapshots;
//! * thread `store-log`: writes and syncs log and vote (channel of 64; openraft waits for each write);
//! * thread `store-spare`, now and then: makes the next log segment.
//!
//! Nothing is written while nothing is proposed.

mod codec; // values to bytes
mod compact; // what tasks share is written once
mod disk; // sealed files: key, vote, log segments, snapshots
mod error; // what can go wrong
mod feed; // commits in order
mod leadership; // who leads
mod propose; // group commit
mod raft; // the four traits of openraft
mod store; // the handle
mod table; // objects and indexes, pure
mod view; // the tables at one moment

pub use codec::CodecError;
pub use disk::DiskError;
pub use disk::key::DataKey;
pub use error::{ProposeError, StoreError};
pub use feed::{Commit, Feed, FeedEvent};
pub use leadership::Leadership;
pub use propose::{MAX_TRANSACTION_BYTES, MAX_TRANSACTION_CHANGES};
pub use raft::network::{Alone, AnswerError, Gap, RaftCall, RaftTransport, TransportError};
pub use raft::types::{Member, RaftId, Transaction};
pub use store::{Clock, MemberStatus, Store, StoreConfig, StoreStatus, Timing, system_clock};
pub use table::{ApplyError, StateHash, Tables};
pub use view::View;
