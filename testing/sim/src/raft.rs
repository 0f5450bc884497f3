//! One log for all managers: what was committed, what waits to be, and who leads.
//!
//! The log itself is modelled: an entry is committed as a whole or lost, and what a majority has is never lost. Proposals wait behind
//! one entry that is being written, as in the store's group commit; when the leader goes, that entry is committed by its successor or
//! lost, and nobody hears which. What entries do to the tables is the store's own code.

use skep_store::{ApplyError, Commit, StateHash, Tables, Transaction, View};
use skep_types::{Action, Version};
use std::collections::{BTreeMap, VecDeque};

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposer {
    /// The leader's loop of this manager, in this term.
    Driver { manager: usize, term: u64 },
    /// The writer of this manager's dispatcher.
    Writer { manager: usize, term: u64 },
    /// A user, by the number of the attempt.
    User { attempt: usize },
}

/// What is to be written.
#[derive(Debug, Clone)]
pub struct Proposal {
    pub by: Proposer,
    pub transaction: Transaction,
}

/// One entry of the log.
#[derive(Debug, Clone)]
pub struct Entry {
    pub proposals: Vec<Proposal>,
}

/// Why a write was not accepted.
#[derive(Debug, Clone)]
pub enum Refused {
    Stale(ApplyError),
    /// Perhaps it is written, perhaps not.
    Lost,
}

pub type Answer = Result<Version, Refused>;

/// Entries of the group commit.
const BATCH: usize = 256;

#[derive(Default)]
pub struct Raft {
    pub log: Vec<Entry>,
    pub term: u64,
    pub leader: Option<usize>,
    pub waiting: VecDeque<Proposal>,
    /// Being written by the leader of the present term.
    pub in_flight: Option<Entry>,
    /// What the log says, and said.
    pub truth: Tables,
    pub views: BTreeMap<Version, View>,
    /// Of the tables after so many entries, by the first manager that had them.
    pub hashes: BTreeMap<usize, StateHash>,
}

impl Raft {
    /// Begins to write what waits, if nothing is being written. True if it did.
    pub fn begin_entry(&mut self) -> bool {
        if self.in_flight.is_some() || self.waiting.is_empty() || self.leader.is_none() {
            return false;
        }
        let count = self.waiting.len().min(BATCH);
        self.in_flight = Some(Entry { proposals: self.waiting.drain(..count).collect() });
        true
    }

    /// Commits an entry: each proposal stands for itself. Returns what each of them did.
    pub fn commit(&mut self, entry: Entry) -> Vec<(Proposer, Vec<Commit>)> {
        let mut all = Vec::new();
        for proposal in &entry.proposals {
            let (commits, _) = apply(&mut self.truth, &proposal.transaction);
            self.views.insert(self.truth.revision(), View::from(self.truth.clone()));
            all.push((proposal.by, commits));
        }
        self.log.push(entry);
        all
    }

    /// The last entry was on no disk: a mutant only.
    pub fn lose_tail(&mut self) {
        let Some(entry) = self.log.pop() else { return };
        for _ in entry.proposals {
            let revision = self.truth.revision();
            if let Some((_, before)) = self.views.range(..revision).next_back() {
                self.truth = before.tables().clone();
            }
        }
    }

    /// What the log says now.
    #[must_use]
    pub fn view(&self) -> View {
        View::from(self.truth.clone())
    }
}

/// One transaction on tables, as the store's state machine does it (`raft/machine.rs`, `apply_batch`).
pub fn apply(tables: &mut Tables, transaction: &Transaction) -> (Vec<Commit>, Answer) {
    let version = Version(tables.revision().0 + 1);
    match tables.apply(version, transaction.now, &transaction.actions) {
        Ok(changes) if changes.is_empty() => (Vec::new(), Ok(tables.revision())),
        Ok(changes) => (vec![Commit { version, changes }], Ok(tables.revision())),
        Err(error) => (Vec::new(), Err(Refused::Stale(error))),
    }
}

/// Actions as a trace shows them.
#[must_use]
pub fn brief(actions: &[Action]) -> String {
    let words = |action: &Action| match action {
        Action::Create(object) => format!("create {:?} {}", object.kind(), short(object.id())),
        Action::Update(object) => format!("update {:?} {}", object.kind(), short(object.id())),
        Action::Remove { kind, id, .. } => format!("remove {kind:?} {}", short(id)),
        Action::SetTaskStatus { task, status } => format!("{} is {}", short(task.as_str()), status.state),
        Action::SetTaskDesired { task, desired } => format!("{} to be {desired}", short(task.as_str())),
    };
    actions.iter().map(words).collect::<Vec<_>>().join(", ")
}

/// As much of an id as tells objects of a run apart.
#[must_use]
pub fn short(id: &str) -> &str {
    let id = id.trim_start_matches('0');
    &id[..id.len().min(6)]
}
