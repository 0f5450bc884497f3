//! Which nodes still answer what they are told of networks. Pure: the caller brings the time.
//!
//! A task that is to stop waits for the nodes that may lead to it. One that is slow is worth waiting for, be it as starved as it may:
//! it takes the task out in the end, and till then sends it connections. One that died takes nothing out.

use skep_types::{NodeId, Version};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// For a node whose stream ended: a daemon that restarts is back in less.
const ABSENT: Duration = Duration::from_secs(5);
/// For a node that says that it fails to do what it was told: an attempt more or two, then others go on without it.
const FAILING: Duration = Duration::from_secs(5);
/// For a node that owes an acknowledgement and gives none at all, and for all of them to come to a new leader: as long as a node may
/// be silent before it is down (a heartbeat of 5 s, three times). Not longer where the heartbeat is set to be rarer, for all tasks
/// that stop would wait for a node that cannot do what it is told.
const OWING: Duration = Duration::from_secs(15);

/// What nodes said since this manager leads.
#[derive(Debug)]
pub(super) struct Answering {
    began: Instant,
    nodes: HashMap<NodeId, Heard>,
}

#[derive(Debug)]
enum Heard {
    /// Its stream ended.
    Gone { since: Instant },
    /// It has one. `owing`: it has not acknowledged all that it was told, and since when it said nothing. `failing`: since when
    /// it cannot do that.
    Follows { told: Version, owing: Option<Instant>, failing: Option<Instant> },
}

impl Answering {
    pub(super) fn new(began: Instant) -> Self {
        Self { began, nodes: HashMap::new() }
    }

    /// It has a stream, by which it is told everything anew.
    pub(super) fn opened(&mut self, node: &NodeId, now: Instant) {
        self.nodes.insert(node.clone(), Heard::Follows { told: Version::default(), owing: Some(now), failing: None });
    }

    pub(super) fn closed(&mut self, node: &NodeId, now: Instant) {
        self.nodes.insert(node.clone(), Heard::Gone { since: now });
    }

    pub(super) fn told(&mut self, node: &NodeId, revision: Version, now: Instant) {
        if let Some(Heard::Follows { told, owing, .. }) = self.nodes.get_mut(node) {
            *told = revision;
            owing.get_or_insert(now);
        }
    }

    pub(super) fn acknowledged(&mut self, node: &NodeId, programmed: Version, now: Instant) {
        if let Some(Heard::Follows { told, owing, failing }) = self.nodes.get_mut(node) {
            *owing = Some(now).filter(|_| programmed < *told);
            *failing = None;
        }
    }

    /// It said something else, so it lives.
    pub(super) fn heard(&mut self, node: &NodeId, now: Instant) {
        if let Some(Heard::Follows { owing: Some(since), .. }) = self.nodes.get_mut(node) {
            *since = now;
        }
    }

    /// It tried to do what it was told and could not.
    pub(super) fn failed(&mut self, node: &NodeId, now: Instant) {
        if let Some(Heard::Follows { failing, .. }) = self.nodes.get_mut(node) {
            failing.get_or_insert(now);
        }
    }

    /// Whether there is no sense in waiting for it any longer.
    pub(super) fn is_silent(&self, node: &NodeId, now: Instant) -> bool {
        match self.nodes.get(node) {
            None => now >= self.began + OWING,
            Some(Heard::Gone { since }) => now >= *since + ABSENT,
            Some(Heard::Follows { owing, failing, .. }) => {
                owing.is_some_and(|since| now >= since + OWING) || failing.is_some_and(|since| now >= since + FAILING)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn who_is_slow_is_waited_for_and_who_says_nothing_is_not() {
        let (start, node) = (Instant::now(), NodeId::for_test(1));
        let at = |seconds| after(start, seconds);
        let mut answering = Answering::new(start);
        answering.opened(&node, at(0));
        answering.told(&node, Version(5), at(1));
        assert!(!answering.is_silent(&node, at(14)));
        assert!(answering.is_silent(&node, at(15)), "since it came it said nothing");
        // Always behind, but it goes on.
        for revision in 1..20u64 {
            answering.told(&node, Version(5 + revision), at(14 * revision));
            answering.acknowledged(&node, Version(4 + revision), at(14 * revision));
            assert!(!answering.is_silent(&node, at(14 * revision + 14)));
        }
        answering.acknowledged(&node, Version(24), at(300));
        assert!(!answering.is_silent(&node, at(10_000)), "it owes nothing");
        answering.told(&node, Version(25), at(10_000));
        answering.told(&node, Version(26), at(10_014));
        assert!(answering.is_silent(&node, at(10_015)), "counted from the first that it owes");
        answering.acknowledged(&node, Version(25), at(10_016));
        assert!(!answering.is_silent(&node, at(10_016)));
    }

    #[test]
    fn who_says_that_it_fails_is_waited_for_five_seconds() {
        let (start, node) = (Instant::now(), NodeId::for_test(1));
        let at = |seconds| after(start, seconds);
        let mut answering = Answering::new(start);
        answering.opened(&node, at(0));
        answering.told(&node, Version(5), at(1));
        answering.failed(&node, at(2));
        // That it says something else, is told more or fails again is no progress.
        answering.heard(&node, at(5));
        answering.told(&node, Version(6), at(6));
        answering.failed(&node, at(6));
        assert_eq!([6, 7].map(|seconds| answering.is_silent(&node, at(seconds))), [false, true]);
        answering.acknowledged(&node, Version(6), at(8));
        assert!(!answering.is_silent(&node, at(100)), "it could in the end");
    }

    #[test]
    fn who_left_has_the_time_of_a_restart_and_a_new_leader_waits_for_all() {
        let (start, node, other) = (Instant::now(), NodeId::for_test(1), NodeId::for_test(2));
        let at = |seconds| after(start, seconds);
        let mut answering = Answering::new(start);
        assert!(!answering.is_silent(&other, at(14)));
        assert!(answering.is_silent(&other, at(15)));
        answering.opened(&node, at(1));
        answering.closed(&node, at(20));
        assert_eq!([24, 25].map(|seconds| answering.is_silent(&node, at(seconds))), [false, true]);
        answering.opened(&node, at(30));
        assert!(!answering.is_silent(&node, at(30)));
    }
}
