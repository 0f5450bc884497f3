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
//! * `leadership`: confirms a new leadership by an empty entry and publishes it; silences a leader nobody answers;
//! * `polls`: waits for the leader, asks for promises of votes, holds elections; `pulse`: sends a leader's heartbeats;
//! * `members`: publishes who is in the group; `finish_changes`: finishes a change of voters that was left half-way;
//! * `give_way_when_full`: hands the leadership over when the leader has no space left;
//! * `housekeeping`: triggers snapshots; `end_when_broken`: ends raft when the disk cannot be written;
//! * thread `store-log`: writes and syncs log and vote (channel of 64; a full one makes openraft wait);
//! * thread `store-spare`, now and then: makes the next log segment.
//!
//! Nothing is written while nothing is proposed.

mod backup; // the state in one sealed stream
mod codec; // values to bytes
mod compact; // what tasks share is written once
mod config; // how a store is kept
mod disk; // sealed files: key, vote, log segments, snapshots
mod election; // when to ask for votes and whom to promise one, pure
mod error; // what can go wrong
mod feed; // commits in order
mod group; // the members
mod leadership; // who leads
mod open; // reading a store from the disk
mod plant; // stores made of a backup or of a dead group's remains
mod propose; // group commit
mod raft; // the four traits of openraft, elections
mod seam; // threads and chance, or a simulator's
#[cfg(feature = "sim")]
pub mod sim; // what a simulator puts in the place of files, threads and chance
mod store; // the handle
mod table; // objects and indexes, pure
mod transfer; // handing the leadership over
mod view; // the tables at one moment

pub use backup::{Backup, BackupError, BackupHead};
pub use codec::CodecError;
pub use config::{Clock, StoreConfig, Timing, system_clock};
pub use disk::DiskError;
pub use disk::key::DataKey;
pub use error::{ProposeError, StoreError};
pub use feed::{Commit, Feed, FeedEvent};
pub use group::MemberStatus;
pub use leadership::Leadership;
pub use plant::Recovery;
pub use propose::{MAX_TRANSACTION_BYTES, MAX_TRANSACTION_CHANGES};
pub use raft::network::{Alone, AnswerError, Gap, RaftCall, RaftTransport, TransportError};
pub use raft::types::{Member, RaftId, Transaction};
pub use store::{Store, StoreStatus};
pub use table::{ApplyError, StateHash, Tables};
pub use view::View;
