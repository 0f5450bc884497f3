//! One log for all managers: what was committed, what waits to be, and who leads.
//!
//! The log itself is modelled: an entry is committed as a whole or lost, and what a majority has is never lost. Proposals wait behind
//! one entry that is being written, as in the store's group commit; when the leader goes, that entry is committed by its successor or
//! lost, and nobody hears which. What entries do to the tables is the store's own code.

use crate::queue::Moment;
use skep_store::{ApplyError, Commit, Tables, Transaction, View};
use skep_types::{Action, Change, Version};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

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
    pub at: Moment,
    /// What its proposer had applied when it decided.
    pub seen: Version,
    pub transaction: Transaction,
}

/// One entry of the log.
#[derive(Debug, Clone)]
pub struct Entry {
    pub proposals: Vec<Proposal>,
}

/// What became of one proposal.
pub struct Done {
    pub by: Proposer,
    /// When it was proposed.
    pub at: Moment,
    /// What was there when it was decided, if the log has it still.
    pub seen: Option<View>,
    pub commits: Vec<Commit>,
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
    pub log: Vec<Arc<Entry>>,
    pub term: u64,
    pub leader: Option<usize>,
    pub waiting: VecDeque<Proposal>,
    /// Being written by the leader of the present term.
    pub in_flight: Option<Entry>,
    /// What the log says, and said.
    pub truth: Tables,
    pub views: BTreeMap<Version, View>,
    /// What each entry did.
    pub done: Vec<Arc<Vec<Done>>>,
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
    pub fn commit(&mut self, entry: Entry) -> Arc<Vec<Done>> {
        let mut all = Vec::new();
        for proposal in &entry.proposals {
            let (commits, _) = apply(&mut self.truth, &proposal.transaction);
            self.views.insert(self.truth.revision(), View::from(self.truth.clone()));
            all.push(Done { by: proposal.by, at: proposal.at, seen: self.views.get(&proposal.seen).cloned(), commits });
        }
        let all = Arc::new(all);
        self.log.push(Arc::new(entry));
        self.done.push(Arc::clone(&all));
        all
    }

    /// Whether somebody who applied this entry did what the log says: who does so from the first on has the same tables.
    #[must_use]
    pub fn is_done_alike<'a>(&self, index: usize, commits: impl IntoIterator<Item = &'a Commit>) -> bool {
        let told = self.done.get(index).into_iter().flat_map(|done| done.iter()).flat_map(|done| &done.commits);
        let change = |commit: &'_ Commit| (commit.version, commit.changes.len());
        let (told, commits): (Vec<_>, Vec<_>) = (told.collect(), commits.into_iter().collect());
        told.iter().map(|commit| change(commit)).eq(commits.iter().map(|commit| change(commit)))
            && told.iter().zip(&commits).all(|(one, two)| one.changes.iter().zip(&two.changes).all(|(one, two)| is_same(one, two)))
    }

    /// Whether these are the tables after so many entries: each object the same, which is what the store's hash of them says.
    #[must_use]
    pub fn is_state(&self, tables: &Tables) -> bool {
        let truth = self.views.get(&tables.revision()).map(View::tables);
        truth.is_some_and(|truth| truth.objects().eq(tables.objects()))
    }

    /// The last entry was on no disk: a mutant only.
    pub fn lose_tail(&mut self) {
        let Some(entry) = self.log.pop() else { return };
        self.done.pop();
        for _ in &entry.proposals {
            let revision = self.truth.revision();
            if let Some((_, before)) = self.views.range(..revision).next_back() {
                self.truth = before.tables().clone();
            }
        }
    }

    /// What the log says now.
    #[must_use]
    pub fn view(&self) -> View {
        let last = self.views.last_key_value().filter(|(revision, _)| **revision == self.truth.revision());
        last.map_or_else(|| View::from(self.truth.clone()), |(_, view)| view.clone())
    }
}

/// What was there before was compared when it came.
fn is_same(one: &Change, two: &Change) -> bool {
    match (one, two) {
        (Change::Created(one), Change::Created(two)) | (Change::Updated { new: one, .. }, Change::Updated { new: two, .. }) => one == two,
        (Change::Removed(one), Change::Removed(two)) => (one.kind(), one.id()) == (two.kind(), two.id()),
        _ => false,
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
