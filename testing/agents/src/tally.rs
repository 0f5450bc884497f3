//! What happened in a fleet, counted.

use crate::play::Applied;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicI64),* }

        /// The figures of one moment; those that only grow are worth their difference.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
        pub struct Count { $($(#[$doc])* pub $name: i64),* }

        impl Counters {
            fn read(&self) -> Count {
                Count { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }
    };
}

counters! {
    /// Agents that are registered with a manager now.
    connected,
    /// Connections that stood, TLS and HTTP/2 included.
    dialled,
    /// Connections that did not come to be.
    dial_failures,
    /// Sessions a manager accepted.
    registered,
    /// Registrations a manager refused, or that took too long.
    register_failures,
    /// Sessions that ended though nobody here wanted that.
    lost,
    beats,
    /// Messages with all assignments.
    complete,
    /// Messages with changes.
    incremental,
    /// Messages that did not follow the one before.
    gaps,
    tasks_new,
    /// Tasks told again that are wanted as they were.
    tasks_resent,
    tasks_changed,
    tasks_removed,
    /// Tasks that run now.
    tasks_running,
    /// How often a task began to run.
    tasks_started,
    tasks_failed,
    payloads,
    /// Statuses that managers took.
    reports,
    /// Calls that carried them.
    report_calls,
}

/// The counters of a fleet. Clones would split them: share it by `Arc`.
#[derive(Debug, Default)]
pub struct Tally {
    pub(crate) counters: Counters,
    /// Which failover this is; agents that registered since it began are counted once.
    round: AtomicU64,
    back: Mutex<Back>,
    /// The last problem of each kind that is not counted, for people.
    problem: Mutex<String>,
}

#[derive(Debug)]
struct Back {
    since: Instant,
    after: Vec<Duration>,
}

impl Default for Back {
    fn default() -> Self {
        Self { since: Instant::now(), after: Vec::new() }
    }
}

pub(crate) fn add(counter: &AtomicI64, count: u64) {
    counter.fetch_add(i64::try_from(count).unwrap_or(i64::MAX), Ordering::Relaxed);
}

/// Moves a gauge from what this agent had to what it has.
pub(crate) fn shift(gauge: &AtomicI64, before: &mut u64, now: u64) {
    let by = i64::try_from(now).unwrap_or(i64::MAX) - i64::try_from(*before).unwrap_or(i64::MAX);
    if by != 0 {
        gauge.fetch_add(by, Ordering::Relaxed);
    }
    *before = now;
}

impl Tally {
    #[must_use]
    pub fn count(&self) -> Count {
        self.counters.read()
    }

    pub(crate) fn applied(&self, applied: &Applied) {
        add(&self.counters.tasks_new, applied.new);
        add(&self.counters.tasks_resent, applied.resent);
        add(&self.counters.tasks_changed, applied.changed);
        add(&self.counters.tasks_removed, applied.removed);
        add(&self.counters.payloads, applied.payloads);
    }

    fn lock(&self) -> MutexGuard<'_, Back> {
        self.back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on agents that register are noted with the time it took them; each once.
    pub fn begin_round(&self) {
        let mut back = self.lock();
        *back = Back::default();
        self.round.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn came_back(&self, last_round: &mut u64) {
        let round = self.round.load(Ordering::Relaxed);
        if *last_round != round {
            *last_round = round;
            let mut back = self.lock();
            let after = back.since.elapsed();
            back.after.push(after);
        }
    }

    /// How long each agent took that has registered since the round began, in the order they came.
    #[must_use]
    pub fn back(&self) -> Vec<Duration> {
        self.lock().after.clone()
    }

    /// How many agents have registered since the round began.
    #[must_use]
    pub fn how_many_back(&self) -> usize {
        self.lock().after.len()
    }

    pub(crate) fn note_problem(&self, text: String) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// The last reason why a session ended or did not begin, for people; empty if there was none.
    #[must_use]
    pub fn last_problem(&self) -> String {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_moved_by_the_difference() {
        let (gauge, mut mine) = (AtomicI64::new(5), 2);
        shift(&gauge, &mut mine, 7);
        assert_eq!((gauge.load(Ordering::Relaxed), mine), (10, 7));
        shift(&gauge, &mut mine, 0);
        assert_eq!(gauge.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn an_agent_is_back_once_in_a_round() {
        let tally = Tally::default();
        let mut agent = 0;
        tally.begin_round();
        tally.came_back(&mut agent);
        tally.came_back(&mut agent);
        assert_eq!(tally.how_many_back(), 1);
        tally.begin_round();
        assert!(tally.back().is_empty());
        tally.came_back(&mut agent);
        assert_eq!(tally.how_many_back(), 1);
    }
}
