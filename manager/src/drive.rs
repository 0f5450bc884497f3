//! The one loop of all deciders: look, decide, write, wait.
//!
//! The pure deciders of `skep-plan` are asked in turn, each on what those before it proposed (see [`draft`]), until nobody has
//! anything to add; then all is committed at once. They are told every change and look only at what it concerns. A run takes no
//! input but the state: after a stale commit what was proposed is taken back and decided anew; after a lost event or a change of
//! leader everything is looked at again.
//!
//! There is no pause between a change and the reaction to it. Under load changes gather by themselves while a commit is in
//! flight.

mod audit;
mod deciders;
mod draft;
mod mind;
#[cfg(test)]
mod tests;

pub use audit::{AddressCounts, AddressTotals};
pub use draft::Draft;
pub use mind::{Mind, Own};

use crate::clock::sleep_towards;
use crate::shared::Shared;
use skep_failpoint::failpoint;
use skep_store::{Feed, FeedEvent, MAX_TRANSACTION_CHANGES, ProposeError, View};
use skep_types::{Action, ClusterView as _, Timestamp};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Why a loop of the leader ended before its term.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriveError {
    /// The next leader starts from the same state.
    #[error("a write was not accepted")]
    Propose(#[from] ProposeError),
    #[error("the store is closed")]
    StoreClosed,
    #[error("a task of the {0} panicked")]
    Panicked(&'static str),
}

/// How long this manager leads.
#[derive(Clone)]
pub(crate) struct Term {
    pub stop: CancellationToken,
}

/// Proposals that went stale one after the other before everything is looked at anew; each is a lost race.
const STALE_IN_A_ROW: u32 = 20;

/// Before the next try when the store cannot write now: its disk is full, or no majority answers.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Between two rounds of questions when nothing changed.
const LEAST_WAIT: Duration = Duration::from_millis(2);

/// What to do about a write that failed.
pub(crate) enum Failed {
    /// The state moved on: decide anew.
    Stale,
    /// It may pass: decide anew after a pause.
    Pause,
    /// Somebody else leads, or nobody does.
    End(DriveError),
}

/// Sorts the reasons of a failed write.
pub(crate) fn after_failure(error: ProposeError) -> Failed {
    match error {
        ProposeError::Refused(refused) => {
            tracing::debug!(%refused, "decided on an old state, deciding anew");
            Failed::Stale
        }
        ProposeError::Timeout(_) | ProposeError::Disk(_) | ProposeError::TooLarge { .. } => {
            tracing::warn!(error = %chain(&error), "the store cannot write now, trying again");
            Failed::Pause
        }
        ProposeError::NotLeader { .. } | ProposeError::LeadershipLost { .. } | ProposeError::Stopped => Failed::End(error.into()),
    }
}

/// An error with its causes, for a log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Waits before another try.
pub(crate) async fn pause() {
    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
}

/// Runs all deciders until the term ends.
pub(crate) async fn drive(shared: Arc<Shared>, term: Term) -> Result<(), DriveError> {
    let mut driver = Driver::start(shared);
    tokio::select! {
        () = term.stop.cancelled() => Ok(()),
        outcome = driver.run() => outcome,
    }
}

struct Driver {
    shared: Arc<Shared>,
    feed: Feed,
    mind: Mind,
    /// The mind was made from the store alone: it does not know what was freed of late.
    is_new: bool,
    began: Instant,
}

impl Driver {
    fn start(shared: Arc<Shared>) -> Self {
        let (view, feed) = shared.watch();
        let mind = Mind::new(&view, shared.orphan_after(), shared.now(), Duration::ZERO);
        Self { shared, feed, mind, is_new: true, began: Instant::now() }
    }

    /// Events were lost or decisions stay stale: everything is looked at again.
    fn restart(&mut self) {
        let (view, feed) = self.shared.watch();
        self.feed = feed;
        self.mind.renew(&view, self.shared.now());
        self.is_new = true;
    }

    async fn run(&mut self) -> Result<(), DriveError> {
        let mut next_audit = tokio::time::Instant::now();
        loop {
            if next_audit <= tokio::time::Instant::now() {
                self.audit().await?;
                next_audit = tokio::time::Instant::now() + audit::AUDIT_EVERY;
            }
            // A wish to be asked again at once by who proposed nothing must not make us spin.
            let earliest = self.shared.now() + LEAST_WAIT;
            let wake_at = self.settle().await?.map(|when| when.max(earliest));
            let clock = self.shared.clock.clone();
            tokio::select! {
                event = self.feed.next() => self.note(event)?,
                () = sleep_towards(&clock, wake_at) => {}
            }
        }
    }

    /// Decides and writes until nobody has anything to propose. Returns when to ask again if nothing changes.
    async fn settle(&mut self) -> Result<Option<Timestamp>, DriveError> {
        let mut stale = 0;
        loop {
            let view = self.caught_up().await?;
            if self.mind.look_at_clock(&view, self.shared.now(), self.began.elapsed()) {
                tracing::warn!("the clock of this machine was set, delays count anew");
            }
            let mut draft = Draft::new(view);
            let (clock, netstate) = (self.shared.clock.clone(), &self.shared.netstate);
            self.mind.acknowledge(&|network| netstate.acknowledged(network));
            let wake_at = self.mind.decide(&mut draft, &mut rand::random::<[u8; 17]>, &*clock);
            if draft.is_empty() {
                return Ok(wake_at);
            }
            let mut own = Own::default();
            match self.commit(draft.actions(), &mut own).await.map_err(after_failure) {
                Ok(()) => {
                    stale = 0;
                    self.confirm(draft, &own).await?;
                }
                Err(Failed::Stale) if stale < STALE_IN_A_ROW && own.is_empty() => {
                    stale += 1;
                    self.mind.take_back(draft, self.shared.now());
                }
                Err(Failed::Stale) if stale < STALE_IN_A_ROW => {
                    stale += 1;
                    self.restart();
                }
                Err(Failed::Stale) => {
                    tracing::warn!("decisions stay stale, looking at everything anew");
                    pause().await;
                    stale = 0;
                    self.restart();
                }
                Err(Failed::Pause) => {
                    pause().await;
                    self.restart();
                }
                Err(Failed::End(error)) => return Err(error),
            }
        }
    }

    /// Tells the deciders what became of the draft, and what others wrote meanwhile.
    async fn confirm(&mut self, draft: Draft, own: &Own) -> Result<(), DriveError> {
        let Some(last) = own.last() else { return Ok(()) };
        let mut commits = Vec::new();
        let mut seen = self.mind.seen();
        while seen < last {
            match self.feed.next().await {
                Some(FeedEvent::Commit(commit)) => {
                    seen = seen.max(commit.version);
                    commits.push(commit);
                }
                Some(FeedEvent::Resync) => {
                    self.restart();
                    return Ok(());
                }
                None => return Err(DriveError::StoreClosed),
            }
        }
        self.mind.written(draft, own, &commits, self.shared.now());
        Ok(())
    }

    /// Writes in pieces that the store likes; each change stands for itself. `own` are the versions it made.
    async fn commit(&mut self, mut changes: Vec<Action>, own: &mut Own) -> Result<(), ProposeError> {
        let mut size = MAX_TRANSACTION_CHANGES;
        while !changes.is_empty() {
            let part = changes[..changes.len().min(size)].to_vec();
            let length = part.len();
            failpoint!("manager.drive.decided");
            match self.shared.propose(part).await {
                Ok(version) => {
                    failpoint!("manager.drive.committed");
                    own.add(version, &changes[..length]);
                    changes.drain(..length);
                }
                // Large specs: fewer at a time.
                Err(ProposeError::TooLarge { .. }) if length > 1 => size = length / 2,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A view of which the deciders were told everything.
    async fn caught_up(&mut self) -> Result<View, DriveError> {
        loop {
            while let Some(event) = self.feed.try_next() {
                self.note(Some(event))?;
            }
            let view = self.shared.store.view();
            if view.version() <= self.mind.seen() {
                if std::mem::take(&mut self.is_new) {
                    self.mind.remember(&self.shared.freed.lately(view.version()).await);
                }
                return Ok(view);
            }
            // It is there before its commit is in the feed, by a moment.
            let event = self.feed.next().await;
            self.note(event)?;
        }
    }

    fn note(&mut self, event: Option<FeedEvent>) -> Result<(), DriveError> {
        match event {
            Some(FeedEvent::Commit(commit)) => self.mind.observe(&commit, self.shared.now()),
            Some(FeedEvent::Resync) => self.restart(),
            None => return Err(DriveError::StoreClosed),
        }
        Ok(())
    }
}
