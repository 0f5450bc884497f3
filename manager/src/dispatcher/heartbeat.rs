//! Who has to be heard from by when. Pure: the caller brings the time.
//!
//! A beat costs one hash lookup and never touches the log; with 10,000 nodes the queue of deadlines is not reordered at each
//! beat, but only when a node's old deadline comes up.

use skep_types::NodeId;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// A node is down when nothing was heard for this many of the periods it was last given (`SK/manager/dispatcher/nodes.go`).
pub const GRACE_PERIODS: u32 = 3;
/// After a change of leader nodes first have to find the new one.
pub const GRACE_PERIODS_UNKNOWN: u32 = 6;
/// Each reply's period is moved by up to this much either way, so that nodes do not beat in step.
pub const JITTER: Duration = Duration::from_millis(500);

/// The period of one reply: `period` ± [`JITTER`] (at most half the period, for the short periods of tests).
/// `random` is any number, evenly distributed.
pub fn jittered(period: Duration, random: u64) -> Duration {
    let span = JITTER.min(period / 2).as_nanos() as u64;
    period - Duration::from_nanos(span) + Duration::from_nanos(if span == 0 { 0 } else { random % (2 * span + 1) })
}

/// The deadlines of the nodes that are expected to beat.
#[derive(Debug, Default)]
pub struct Deadlines {
    by_node: HashMap<NodeId, Instant>,
    /// For each node at least one entry that is not after its deadline; others are out of date and skipped.
    queue: BinaryHeap<Reverse<(Instant, NodeId)>>,
}

impl Deadlines {
    /// The node has until `deadline`.
    pub fn set(&mut self, node: &NodeId, deadline: Instant) {
        // Nearly always it is there already: a beat copies no name.
        let before = match self.by_node.get_mut(node) {
            Some(present) => Some(std::mem::replace(present, deadline)),
            None => self.by_node.insert(node.clone(), deadline),
        };
        if before.is_none_or(|before| deadline < before) {
            self.queue.push(Reverse((deadline, node.clone())));
        }
    }

    /// Nothing is expected of the node any more.
    pub fn forget(&mut self, node: &NodeId) {
        self.by_node.remove(node);
    }

    /// When to call [`Self::take_overdue`] next; `None` if nobody is expected.
    pub fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out the nodes whose deadline has passed.
    pub fn take_overdue(&mut self, now: Instant) -> Vec<NodeId> {
        let mut overdue = Vec::new();
        while let Some(Reverse((at, _))) = self.queue.peek()
            && *at <= now
        {
            let Some(Reverse((at, node))) = self.queue.pop() else { break };
            match self.by_node.get(&node) {
                Some(deadline) if *deadline <= now => {
                    self.by_node.remove(&node);
                    overdue.push(node);
                }
                // It beat meanwhile. The entry that stood for it is used up, so a new one takes its place.
                Some(deadline) if *deadline > at => self.queue.push(Reverse((*deadline, node))),
                Some(_) | None => {}
            }
        }
        overdue
    }

    #[cfg(test)]
    fn queue_length(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::for_test(number)
    }

    #[tokio::test]
    async fn a_node_is_overdue_only_when_its_last_beat_is_too_old() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::default();
        deadlines.set(&node(1), at(15));
        deadlines.set(&node(2), at(15));
        deadlines.set(&node(2), at(20));
        assert_eq!(deadlines.next(), Some(at(15)));
        assert_eq!(deadlines.take_overdue(at(15)), [node(1)]);
        assert_eq!(deadlines.next(), Some(at(20)));
        assert_eq!(deadlines.take_overdue(at(19)), []);
        assert_eq!(deadlines.take_overdue(at(20)), [node(2)]);
        assert_eq!(deadlines.next(), None);
    }

    #[tokio::test]
    async fn many_beats_do_not_grow_the_queue() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        for beat in 0..1_000u64 {
            let now = start + Duration::from_secs(beat * 5);
            deadlines.set(&node(1), now + Duration::from_secs(15));
            assert_eq!(deadlines.take_overdue(now), []);
        }
        assert!(deadlines.queue_length() <= 2, "{}", deadlines.queue_length());
    }

    #[tokio::test]
    async fn a_shorter_period_counts_at_once_and_a_forgotten_node_is_never_overdue() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::default();
        deadlines.set(&node(1), at(100));
        deadlines.set(&node(1), at(5));
        deadlines.set(&node(2), at(5));
        deadlines.forget(&node(2));
        assert_eq!(deadlines.take_overdue(at(6)), [node(1)]);
        assert_eq!(deadlines.take_overdue(at(200)), []);
    }

    #[test]
    fn the_period_of_a_reply_stays_within_the_jitter() {
        let period = Duration::from_secs(5);
        for random in [0, 1, 499_999_999, 500_000_000, 1_000_000_000, u64::MAX] {
            let given = jittered(period, random);
            assert!(given >= period - JITTER && given <= period + JITTER, "{given:?}");
        }
        assert!(jittered(Duration::from_millis(10), u64::MAX) <= Duration::from_millis(15));
        assert_eq!(jittered(Duration::ZERO, 7), Duration::ZERO);
    }
}
