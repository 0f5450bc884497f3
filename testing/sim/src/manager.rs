//! One manager: its tables, the trail it keeps for agents, its clock, and what it does while it leads.

use crate::dispatcher::Dispatcher;
use crate::driver::Driver;
use crate::queue::Moment;
use crate::raft::{Answer, Entry, Proposer, apply};
use skep_manager::pure::Trail;
use skep_plan::FreedAddresses;
use skep_store::{Commit, Tables, View};
use skep_types::{NodeId, Timestamp, Version};
use std::cell::OnceCell;
use std::sync::Arc;

/// When a run begins by clocks that are right.
const EPOCH: Timestamp = Timestamp::from_secs(1_800_000_000);

/// What only a leader has.
pub struct Lead {
    pub term: u64,
    pub driver: Driver,
    pub dispatcher: Dispatcher,
}

pub struct Manager {
    pub id: NodeId,
    pub up: bool,
    pub tables: Tables,
    /// What somebody was shown of them: gone when they change.
    shown: OnceCell<View>,
    /// Entries applied.
    pub applied: usize,
    /// It applies nothing before.
    pub lags_until: Moment,
    pub skew: i64,
    pub trail: Trail,
    /// What nodes may still know, of the last minute: every manager remembers it, for who leads may not find it in the store.
    pub freed: FreedAddresses,
    pub lead: Option<Lead>,
}

/// What applying an entry brought.
pub struct Applied {
    pub commits: Vec<Arc<Commit>>,
    pub answers: Vec<(Proposer, Answer)>,
}

impl Manager {
    #[must_use]
    pub fn new(number: usize) -> Self {
        let id = NodeId::for_test(900 + number as u64);
        Self {
            id,
            up: true,
            tables: Tables::new(),
            shown: OnceCell::new(),
            applied: 0,
            lags_until: Moment::ZERO,
            skew: 0,
            trail: Trail::new(Version(0)),
            freed: FreedAddresses::new(None),
            lead: None,
        }
    }

    /// What its clock on the wall shows.
    #[must_use]
    pub fn wall(&self, now: Moment) -> Timestamp {
        let mut time = EPOCH + now;
        time.0 = time.0.saturating_add(self.skew);
        time
    }

    #[must_use]
    pub fn view(&self) -> View {
        self.shown.get_or_init(|| View::from(self.tables.clone())).clone()
    }

    /// Applies one entry; its router sees the commits at once.
    pub fn apply(&mut self, entry: &Entry, forget_in_trail: bool, now: Moment) -> Applied {
        self.shown.take();
        let mut applied = Applied { commits: Vec::new(), answers: Vec::new() };
        for proposal in &entry.proposals {
            let (commits, answer) = apply(&mut self.tables, &proposal.transaction);
            for commit in commits {
                if !forget_in_trail {
                    self.trail.add(&commit);
                }
                commit.changes.iter().for_each(|change| self.freed.observe(commit.version, change, now));
                applied.commits.push(Arc::new(commit));
            }
            applied.answers.push((proposal.by, answer));
        }
        self.applied += 1;
        applied
    }

    /// The process starts again from its disk: tables are there, everything else is gone.
    pub fn restart(&mut self, now: Moment) {
        self.trail = Trail::new(self.tables.revision());
        self.freed = FreedAddresses::new(Some(now));
        self.lead = None;
        self.up = true;
    }
}
