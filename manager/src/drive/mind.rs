//! What the loop knows and decides, without the loop: the simulator runs this very code on virtual time. Pure.

use super::deciders::Deciders;
use super::draft::Draft;
use skep_plan::{Beginning, FreedLately, Ids, Plan, Time};
use skep_store::{Commit, View};
use skep_types::{Action, ClusterView as _, NetworkId, Timestamp, Version};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Rounds of questions before what there is gets written: far more than any chain of answers needs.
const MOST_ROUNDS: usize = 64;

/// Objects in one draft; more are left for the next.
const LARGE_DRAFT: usize = 1_000;

/// The commits a draft became.
#[derive(Debug, Default)]
pub struct Own {
    versions: BTreeSet<Version>,
    /// Wishes may have had no effect: the version is then that of a commit of somebody else.
    doubtful: bool,
}

impl Own {
    /// A part of the draft was written as `version`.
    pub fn add(&mut self, version: Version, part: &[Action]) {
        self.doubtful |= !part.iter().any(|action| matches!(action, Action::Create(_) | Action::Update(_)));
        self.versions.insert(version);
    }

    /// Nothing of the draft was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// The deciders must have been told of everything up to here before [`Mind::written`].
    #[must_use]
    pub fn last(&self) -> Option<Version> {
        self.versions.last().copied()
    }
}

/// The deciders, and what they were told.
pub struct Mind {
    deciders: Deciders,
    /// The revision up to which the deciders know everything.
    seen: Version,
    orphan_after: Duration,
    /// When this leader began, or its clock was set.
    begun: Beginning,
    /// The clock at the last look, and one that cannot be set.
    clocks: (Timestamp, Duration),
}

impl Mind {
    /// As a new leader begins: everything is looked at. `steady`: the time on a clock that cannot be set, from whenever.
    #[must_use]
    pub fn new(view: &View, orphan_after: Duration, now: Timestamp, steady: Duration) -> Self {
        let begun = Beginning { at: now, revision: view.version() };
        let deciders = Deciders::new(view, orphan_after, begun, now);
        Self { deciders, seen: view.version(), orphan_after, begun, clocks: (now, steady) }
    }

    /// For who lost events, or does not know what was written: everything is looked at again.
    pub fn renew(&mut self, view: &View, now: Timestamp) {
        self.rebuild(view, now);
        self.seen = view.version();
    }

    fn rebuild(&mut self, view: &View, now: Timestamp) {
        let mut deciders = Deciders::new(view, self.orphan_after, self.begun, now);
        deciders.inherit(&self.deciders);
        self.deciders = deciders;
    }

    /// Tells which addresses were freed of late, before this leader began or while it lost events.
    pub fn remember(&mut self, freed: &FreedLately) {
        self.deciders.remember(freed);
    }

    /// To be told the time before every round of decisions, with a view of which everything was observed. True if the clock was set
    /// meanwhile: what is stored then bears times of another clock, as at a new leader, and all that waited for a time is looked at.
    pub fn look_at_clock(&mut self, view: &View, now: Timestamp, steady: Duration) -> bool {
        let (before, at) = std::mem::replace(&mut self.clocks, (now, steady));
        let was_set = Time::is_step(before, now, steady.saturating_sub(at));
        if was_set {
            self.begun = Beginning { at: now, revision: view.version() };
            self.renew(view, now);
        }
        was_set
    }

    /// The revision up to which the deciders know everything.
    #[must_use]
    pub fn seen(&self) -> Version {
        self.seen
    }

    /// A commit that is not a draft's own. One that is known already changes nothing.
    pub fn observe(&mut self, commit: &Commit, now: Timestamp) {
        if commit.version <= self.seen {
            return;
        }
        self.seen = commit.version;
        for change in &commit.changes {
            self.deciders.observe(change, now);
        }
    }

    /// Tells what all nodes with an interest in a network have in place, if that is known: addresses wait for it.
    pub fn acknowledge(&mut self, acknowledged: &dyn Fn(&NetworkId) -> Option<Version>) {
        self.deciders.acknowledge(acknowledged);
    }

    /// Compares what objects hold with what is taken to be in use. Everything up to the view must have been observed, and nothing that is
    /// not written.
    #[must_use]
    pub fn audit(&mut self, view: &View) -> skep_plan::AddressAudit {
        self.deciders.audit(view)
    }

    /// Asks in turn until nobody has anything to add to the draft. Returns when the first wants to be asked again.
    pub fn decide(&mut self, draft: &mut Draft, ids: &mut dyn Ids, clock: &dyn Fn() -> Timestamp) -> Option<Timestamp> {
        self.deciders.settle(self.seen, clock());
        'again: for _ in 0..MOST_ROUNDS {
            let mut wake_at: Option<Timestamp> = None;
            for index in 0..Deciders::COUNT {
                let now = clock();
                let Plan { changes, wake_at: wish } = self.deciders.plan(index, draft.view(), ids, now);
                wake_at = [wake_at, wish].into_iter().flatten().min();
                if changes.is_empty() {
                    continue;
                }
                let name = Deciders::name(index);
                match draft.add(&changes, now) {
                    Ok([]) => continue,
                    Ok(changes) => {
                        tracing::debug!(decider = name, changes = changes.len(), "decided");
                        for change in changes {
                            self.deciders.observe(change, now);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(decider = name, %error, "a decider proposed what does not fit its own picture; building it anew");
                        self.rebuild(draft.view(), now);
                    }
                }
                if draft.len() >= LARGE_DRAFT {
                    return Some(now);
                }
                continue 'again;
            }
            return wake_at;
        }
        Some(clock())
    }

    /// The draft is written: the deciders know it already, but for the versions it got. Commits of others in between are told now; if
    /// one touched the same objects, the draft is taken back and all is told in the order it happened. `commits` are all behind
    /// [`Mind::seen`] up to [`Own::last`].
    pub fn written(&mut self, draft: Draft, own: &Own, commits: &[Arc<Commit>], now: Timestamp) {
        let is_own = |commit: &Commit| own.versions.contains(&commit.version);
        let mixed = own.doubtful || commits.iter().any(|commit| !is_own(commit) && draft.meets(&commit.changes));
        if mixed {
            self.take_back(draft, now);
        }
        for commit in commits {
            self.seen = self.seen.max(commit.version);
            for change in &commit.changes {
                match is_own(commit) && !mixed {
                    true => self.deciders.confirm(change),
                    false => self.deciders.observe(change, now),
                }
            }
        }
    }

    /// Nothing of the draft was written.
    pub fn take_back(&mut self, draft: Draft, now: Timestamp) {
        for change in draft.undo() {
            self.deciders.take_back(&change, now);
        }
    }
}
