//! The leader's loop without `tokio`: `drive.rs` of the manager, step by step. What it knows and decides is the manager's own
//! [`Mind`].

use crate::mutant::Mutant;
use crate::queue::Moment;
use crate::raft::{Answer, Proposer, Refused};
use crate::world::{Event, World};
use skep_manager::pure::{Draft, Mind, Own};
use skep_plan::FreedLately;
use skep_store::{Commit, MAX_TRANSACTION_CHANGES, View};
use skep_types::{Action, ClusterView as _, Timestamp, Version};
use std::sync::Arc;
use std::time::Duration;

/// As `drive.rs` has them.
const STALE_IN_A_ROW: u32 = 20;
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
const LEAST_WAIT: Duration = Duration::from_millis(2);
/// As `clock.rs` has them.
const LEAST_SLEEP: Duration = Duration::from_millis(1);
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

enum State {
    Idle,
    /// `seen`: what it was decided on.
    Committing {
        draft: Draft,
        seen: Version,
        own: Own,
        part: Vec<Action>,
        rest: Vec<Action>,
    },
    Pausing,
}

pub struct Driver {
    mind: Mind,
    state: State,
    /// Commits that the loop has not come to yet.
    backlog: Vec<Arc<Commit>>,
    stale: u32,
    /// Tells the present sleep from those that were cut short.
    sleep: u64,
}

impl Driver {
    /// `freed`: which addresses were freed of late, as this manager remembers.
    #[must_use]
    pub fn new(view: &View, now: Timestamp, steady: Moment, freed: &FreedLately) -> Self {
        let mut mind = Mind::new(view, skep_plan::NODE_DOWN_PERIOD, now, steady);
        mind.remember(freed);
        Self { mind, state: State::Idle, backlog: Vec::new(), stale: 0, sleep: 0 }
    }

    pub fn note(&mut self, commit: &Arc<Commit>) {
        self.backlog.push(Arc::clone(commit));
    }

    fn restart(&mut self, view: &View, now: Timestamp) {
        self.mind.renew(view, now);
        self.backlog.clear();
        self.state = State::Idle;
    }
}

impl World {
    /// The loop of `manager` was woken: by a commit, or because its sleep is over.
    pub fn drive(&mut self, manager: usize, sleep: Option<u64>) {
        let now = self.now;
        let Self { managers, dice, .. } = self;
        let host = &mut managers[manager];
        let (wall, view) = (host.wall(now), host.view());
        let Some(lead) = &mut host.lead else { return };
        let driver = &mut lead.driver;
        if sleep.is_some_and(|sleep| sleep != driver.sleep) {
            return;
        }
        match driver.state {
            State::Committing { .. } => return,
            State::Pausing if sleep.is_none() => return,
            State::Pausing => driver.restart(&view, wall),
            State::Idle => {}
        }
        for commit in std::mem::take(&mut driver.backlog) {
            if self.mutant == Some(Mutant::LostEvent) && dice.roll(12) == 0 {
                let nothing = Commit { version: commit.version, changes: Vec::new() };
                driver.mind.observe(&nothing, wall);
            } else {
                driver.mind.observe(&commit, wall);
            }
        }
        driver.mind.look_at_clock(&view, wall, now);
        let (backends, forged) = (&lead.dispatcher.backends, self.mutant == Some(Mutant::ForgedAcknowledgements));
        driver.mind.acknowledge(&|network| Some(if forged { view.version() } else { backends.acknowledged(network) }));
        // What cancels itself out is not worth a write: the loop decides again.
        for _ in 0..100 {
            let mut draft = Draft::new(view.clone());
            let mut ids = || std::array::from_fn::<u8, 17, _>(|_| u8::try_from(dice.roll(256)).expect("below 256"));
            let wake_at = driver.mind.decide(&mut draft, &mut ids, &|| wall);
            if draft.is_empty() {
                let late = if self.mutant == Some(Mutant::LateWakeUp) { Duration::from_secs(600) } else { Duration::ZERO };
                match wake_at.map(|at| at + late) {
                    Some(at) if self.mutant != Some(Mutant::LostWakeUp) => self.sleep_towards(manager, at.max(wall + LEAST_WAIT)),
                    _ => {}
                }
                return;
            }
            let mut actions = draft.actions();
            if actions.is_empty() {
                continue;
            }
            if let Some(mutant) = self.mutant {
                mutant.spoil_draft(&mut actions, &view, dice);
            }
            driver.state = State::Committing { draft, seen: view.version(), own: Own::default(), part: Vec::new(), rest: actions };
            return self.write_draft(manager);
        }
        self.watch.fail("I5", "the leader decides and takes back what it decides, for ever".into());
    }

    /// Sleeps until the wall clock should show `at`, or a while before, as `clock.rs`.
    fn sleep_towards(&mut self, manager: usize, at: Timestamp) {
        let wall = self.managers[manager].wall(self.now);
        let Some(lead) = &mut self.managers[manager].lead else { return };
        lead.driver.sleep += 1;
        let (term, sleep) = (lead.term, lead.driver.sleep);
        let left = at.since(wall).clamp(LEAST_SLEEP, LONGEST_SLEEP);
        self.after(left, Event::Drive { manager, term, sleep: Some(sleep) });
    }

    /// Proposes the next piece.
    fn write_draft(&mut self, manager: usize) {
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let State::Committing { part, rest, seen, .. } = &mut lead.driver.state else { return };
        let size = rest.len().min(MAX_TRANSACTION_CHANGES);
        *part = rest.drain(..size).collect();
        let (actions, term, seen) = (part.clone(), lead.term, *seen);
        self.propose(manager, Proposer::Driver { manager, term }, seen, actions);
    }

    /// What became of the piece.
    pub fn draft_answered(&mut self, manager: usize, answer: Answer) {
        let (now, view) = (self.managers[manager].wall(self.now), self.managers[manager].view());
        let Some(lead) = &mut self.managers[manager].lead else { return };
        let (term, driver) = (lead.term, &mut lead.driver);
        let State::Committing { draft, seen, mut own, part, rest } = std::mem::replace(&mut driver.state, State::Idle) else { return };
        match answer {
            Ok(version) => {
                own.add(version, &part);
                if !rest.is_empty() {
                    driver.state = State::Committing { draft, seen, own, part, rest };
                    return self.write_draft(manager);
                }
                driver.stale = 0;
                let last = own.last().unwrap_or_default();
                let (own_time, later) = std::mem::take(&mut driver.backlog).into_iter().partition(|commit| commit.version <= last);
                let commits: Vec<_> = own_time;
                driver.backlog = later;
                driver.mind.written(draft, &own, &commits, now);
            }
            Err(Refused::Stale(_)) if driver.stale < STALE_IN_A_ROW => {
                driver.stale += 1;
                if own.is_empty() { driver.mind.take_back(draft, now) } else { driver.restart(&view, now) }
            }
            Err(Refused::Stale(_)) => {
                driver.stale = 0;
                driver.state = State::Pausing;
                driver.sleep += 1;
                let sleep = driver.sleep;
                return self.after(PAUSE_AFTER_FAILURE, Event::Drive { manager, term, sleep: Some(sleep) });
            }
            // The term is over; the leader is told so, too.
            Err(Refused::Lost) => return,
        }
        self.after(Moment::ZERO, Event::Drive { manager, term, sleep: None });
    }
}
