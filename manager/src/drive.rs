//! The one loop of all deciders: look, decide, write, wait.
//!
//! The pure deciders of `skep-plan` are asked in turn; what one proposes is committed before the next is asked, so that each
//! sees the whole truth. They are told every change and look only at what it concerns. A run takes no input but the state: after
//! a stale commit, a lost event or a change of leader everything is looked at again, by the same path.
//!
//! There is no pause between a change and the reaction to it. Under load changes gather by themselves while a commit is in
//! flight.

mod deciders;

use crate::clock::sleep_until;
use crate::shared::Shared;
use deciders::Deciders;
use skep_failpoint::failpoint;
use skep_plan::Plan;
use skep_store::{Commit, Feed, FeedEvent, MAX_TRANSACTION_CHANGES, ProposeError, View};
use skep_types::{Action, ClusterView as _, Timestamp, Version};
use std::sync::Arc;
use std::time::Duration;
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
    /// The revision up to which the deciders know everything.
    seen: Version,
    deciders: Deciders,
}

impl Driver {
    fn start(shared: Arc<Shared>) -> Self {
        let (view, feed) = shared.watch();
        let deciders = Deciders::new(&view, shared.now());
        Self { shared, feed, seen: view.version(), deciders }
    }

    /// Events were lost or decisions stay stale: begin as a new leader does.
    fn restart(&mut self) {
        *self = Self::start(self.shared.clone());
    }

    async fn run(&mut self) -> Result<(), DriveError> {
        loop {
            let wake_at = self.settle().await?;
            let clock = self.shared.clock.clone();
            tokio::select! {
                event = self.feed.next() => self.note(event)?,
                () = sleep_until(&clock, wake_at) => {}
            }
        }
    }

    /// Asks until nobody has anything to propose. Returns when to ask again if nothing changes.
    async fn settle(&mut self) -> Result<Option<Timestamp>, DriveError> {
        let mut stale = 0;
        'again: loop {
            let mut wake_at: Option<Timestamp> = None;
            for index in 0..Deciders::COUNT {
                let view = self.caught_up().await?;
                let Plan { changes, wake_at: wish } = self.deciders.plan(index, &view, self.shared.now());
                drop(view);
                if changes.is_empty() {
                    wake_at = [wake_at, wish].into_iter().flatten().min();
                    continue;
                }
                tracing::debug!(decider = Deciders::name(index), changes = changes.len(), "decided");
                match self.commit(changes).await.map_err(after_failure) {
                    Ok(()) => stale = 0,
                    Err(Failed::Stale) if stale < STALE_IN_A_ROW => {
                        stale += 1;
                        let view = self.caught_up().await?;
                        self.deciders.refused(index, &view);
                    }
                    Err(Failed::Stale) => {
                        tracing::warn!(decider = Deciders::name(index), "decisions stay stale, looking at everything anew");
                        pause().await;
                        self.restart();
                    }
                    Err(Failed::Pause) => {
                        pause().await;
                        self.restart();
                    }
                    Err(Failed::End(error)) => return Err(error),
                }
                continue 'again;
            }
            return Ok(wake_at);
        }
    }

    /// Writes in pieces that the store likes; each change stands for itself.
    async fn commit(&mut self, mut changes: Vec<Action>) -> Result<(), ProposeError> {
        let mut size = MAX_TRANSACTION_CHANGES;
        while !changes.is_empty() {
            let part = changes[..changes.len().min(size)].to_vec();
            let length = part.len();
            failpoint!("manager.drive.decided");
            match self.shared.propose(part).await {
                Ok(_) => {
                    failpoint!("manager.drive.committed");
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
            if view.version() <= self.seen {
                return Ok(view);
            }
            // It is there before its commit is in the feed, by a moment.
            let event = self.feed.next().await;
            self.note(event)?;
        }
    }

    fn note(&mut self, event: Option<FeedEvent>) -> Result<(), DriveError> {
        match event {
            Some(FeedEvent::Commit(commit)) => self.observe(&commit),
            Some(FeedEvent::Resync) => self.restart(),
            None => return Err(DriveError::StoreClosed),
        }
        Ok(())
    }

    fn observe(&mut self, commit: &Commit) {
        if commit.version <= self.seen {
            return;
        }
        self.seen = commit.version;
        let now = self.shared.now();
        for change in &commit.changes {
            self.deciders.observe(change, now);
        }
    }
}
