//! What the servers of a node did, since the start.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts up only.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, number: u64) {
        // A number for people: nothing is decided on it.
        self.0.fetch_add(number, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) messages: Count,
    pub(super) answered: Count,
    pub(super) remembered: Count,
    pub(super) forwarded: Count,
    pub(super) failed: Count,
    pub(super) turned_away: Count,
    pub(super) held_back: Count,
}

/// The counters at one time, of all tasks together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DnsCounters {
    /// Messages that came in, questions or not.
    pub messages: u64,
    /// Answered from the cluster's names, refusals included.
    pub answered: u64,
    /// Foreign names answered from memory.
    pub remembered: u64,
    /// Foreign names that resolvers were asked for,
    pub forwarded: u64,
    /// of which no resolver answered.
    pub failed: u64,
    /// Foreign names not asked for, because too many were asked for already; answered with SERVFAIL.
    pub turned_away: u64,
    /// How often a container had asked so much that it had to wait.
    pub held_back: u64,
}

impl Counters {
    pub(super) fn read(&self) -> DnsCounters {
        let read = |count: &Count| count.0.load(Ordering::Relaxed);
        DnsCounters {
            messages: read(&self.messages),
            answered: read(&self.answered),
            remembered: read(&self.remembered),
            forwarded: read(&self.forwarded),
            failed: read(&self.failed),
            turned_away: read(&self.turned_away),
            held_back: read(&self.held_back),
        }
    }
}
