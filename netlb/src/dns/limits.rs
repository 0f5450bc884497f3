//! Bounds of what is done for a container, and for all of them.

use std::time::Duration;

/// What keeps a container from taking more than its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsLimits {
    /// Messages of one container per second, over UDP and TCP together; a foreign name that must be asked for counts as twenty.
    /// Beyond that it waits.
    pub messages_per_second: u32,
    /// So many may come at once after a pause.
    pub messages_at_once: u32,
    /// Foreign names asked for at once for one container. Beyond that the answer is SERVFAIL.
    pub asked_at_once: usize,
    /// The same for the whole node.
    pub asked_at_once_on_node: usize,
    /// TCP connections of one container. Beyond that they wait to be taken.
    pub connections: usize,
    /// Answers to foreign names that are remembered, for the whole node; each takes 2 KiB at most.
    pub remembered: usize,
    /// For a single resolver, before the next one is asked.
    pub patience: Duration,
    /// For a foreign name; then the answer is SERVFAIL.
    pub patience_in_all: Duration,
}

impl Default for DnsLimits {
    /// A question takes 3 to 7 µs of processor time, so that one container's take a tenth of a core or less.
    fn default() -> Self {
        Self {
            messages_per_second: 15_000,
            messages_at_once: 1_500,
            asked_at_once: 64,
            asked_at_once_on_node: 1_024,
            connections: 32,
            remembered: 2_048,
            // Most answers of a resolver that works come within a tenth of it.
            patience: Duration::from_millis(1_200),
            // Below the 5 s after which clients ask again (resolv.conf(5)), so that they hear of the failure.
            patience_in_all: Duration::from_millis(4_500),
        }
    }
}
