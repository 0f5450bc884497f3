//! Groups of managers on real raft and the real store, in one thread on virtual time, with disks that lose what was not synced.
//!
//! The world of the other modules takes the raft log for granted. This one looks at nothing else: managers are [`skep_store::Store`]s
//! as the product opens them, with openraft, segments, votes, snapshots; modelled are the files below them ([`disk`]), the lines between
//! them ([`net`]), clients ([`client`]), and what happens to all that ([`scenario`]). What has to hold is in [`truth`].
//!
//! One seed gives one scenario, and every draw of a number is its own ([`host::Chance`]). What is left to chance: the order in which
//! tokio wakes those who wait for one value at the same moment; so nearly all seeds, but not quite all, repeat to the letter.

pub mod client; // who reads and writes
pub mod disk; // files that lose what was not synced
pub mod flip; // damage to what is on a disk
mod heir; // a new group of what one manager has
pub mod host; // the machines, as the store's code sees them
pub mod net; // lines that lose, delay, break
pub mod report; // what is told of runs
pub mod run; // from a seed to a verdict
pub mod scenario; // what happens, and when
pub mod truth; // what must hold

pub use run::{Outcome, run};
pub use scenario::{Op, Scenario};

use self::disk::Lie;
use skep_store::sim::Fault;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fault put in on purpose, which some seed has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// Of the store's code.
    Store(Fault),
    /// Of the disk: it says that it has synced.
    Disk(Lie),
    /// Reads do not ask a majority whether this manager still leads.
    ReadUnasked,
    /// A manager that was removed comes back empty under its old number.
    NumberTwice,
}

impl Mutant {
    pub const ALL: [Self; 9] = [
        Self::Store(Fault::AnswerBeforeSync),
        Self::Store(Fault::ApplyBeforeSync),
        Self::Store(Fault::OldOffice),
        Self::Disk(Lie::Log),
        Self::Disk(Lie::Vote),
        Self::Disk(Lie::Snapshot),
        Self::Disk(Lie::Names),
        Self::ReadUnasked,
        Self::NumberTwice,
    ];

    /// What is wrong.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Store(Fault::AnswerBeforeSync) => "A follower answers its leader before the entries are on its disk.",
            Self::Store(Fault::ApplyBeforeSync) => "A leader answers who proposed before the entries are on its disk.",
            Self::Store(Fault::OldOffice) => "A leader that crashed goes on in its term.",
            Self::Disk(Lie::Log) => "Segments of the log are not synced.",
            Self::Disk(Lie::Vote) => "The file of the vote is not synced.",
            Self::Disk(Lie::Snapshot) => "Snapshots are not synced before they get their names.",
            Self::Disk(Lie::Names) => "Directories are not synced.",
            Self::ReadUnasked => "A leader reads without asking a majority whether it still leads.",
            Self::NumberTwice => "A manager that lost its disk comes back empty under its old number.",
        }
    }
}
