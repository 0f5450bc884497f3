//! What the last calls to other managers say about them.

use skep_store::RaftId;
use skep_types::Reachability;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

/// The leader calls every 100 ms. One late answer is no reason to call a manager unreachable, a silent second is.
const STILL_THERE: Duration = Duration::from_secs(1);
/// A few heartbeats.
const JUST_NOW: Duration = Duration::from_millis(400);
/// Followers call nobody but the leader: older news than this are no news.
const FORGOTTEN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    answered: Option<Instant>,
    failed: Option<Instant>,
}

impl Seen {
    fn at(&self, now: Instant) -> Reachability {
        let since = |when: Option<Instant>| when.map(|when| now.saturating_duration_since(when));
        match (since(self.answered), since(self.failed)) {
            (Some(answered), _) if answered <= STILL_THERE => Reachability::Reachable,
            (_, Some(failed)) if failed <= FORGOTTEN => Reachability::Unreachable,
            _ => Reachability::Unknown,
        }
    }

    /// Stricter, for decisions that cannot be taken back: it answered just now, or was not called since it did. Raft gives late
    /// calls up after one heartbeat, so that one failure says little.
    fn answers(&self, now: Instant) -> bool {
        self.answered.is_some_and(|answered| {
            let since = now.saturating_duration_since(answered);
            since <= JUST_NOW || (since <= STILL_THERE && self.failed.is_none_or(|failed| failed < answered))
        })
    }
}

/// The last news of every manager that was called.
#[derive(Default)]
pub(super) struct Reach {
    seen: Mutex<HashMap<RaftId, Seen>>,
    /// Managers that say this one is no longer among them.
    refusing: watch::Sender<BTreeSet<RaftId>>,
}

impl Reach {
    fn lock(&self) -> MutexGuard<'_, HashMap<RaftId, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn answered(&self, peer: RaftId) {
        self.lock().entry(peer).or_default().answered = Some(Instant::now());
        self.refusing.send_if_modified(|refusing| refusing.remove(&peer));
    }

    pub(super) fn failed(&self, peer: RaftId) {
        self.lock().entry(peer).or_default().failed = Some(Instant::now());
    }

    /// It is there, and it does not take this manager for one.
    pub(super) fn refused(&self, peer: RaftId) {
        self.lock().entry(peer).or_default().answered = Some(Instant::now());
        self.refusing.send_if_modified(|refusing| refusing.insert(peer));
    }

    pub(super) fn refusing(&self) -> watch::Receiver<BTreeSet<RaftId>> {
        self.refusing.subscribe()
    }

    pub(super) fn of(&self, peer: RaftId) -> Reachability {
        self.lock().get(&peer).copied().unwrap_or_default().at(Instant::now())
    }

    pub(super) fn answers(&self, peer: RaftId) -> bool {
        self.lock().get(&peer).is_some_and(|seen| seen.answers(Instant::now()))
    }

    /// Forgets who is not a member any more.
    pub(super) fn keep(&self, members: &BTreeSet<RaftId>) {
        self.lock().retain(|peer, _| members.contains(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_is_not_yet_unreachable() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        assert_eq!(Seen::default().at(start), Reachability::Unknown);
        let seen = Seen { answered: Some(start), failed: Some(after(100)) };
        assert!(seen.answers(after(300)));
        assert_eq!(seen.at(after(600)), Reachability::Reachable);
        assert!(!seen.answers(after(600)), "but nothing is built on it any more");
        assert_eq!(seen.at(after(2_000)), Reachability::Unreachable);
        assert_eq!(seen.at(after(60_000)), Reachability::Unknown);
        assert!(Seen { failed: None, ..seen }.answers(after(900)));
    }

    #[test]
    fn a_refusal_is_taken_back_by_an_answer() {
        let reach = Reach::default();
        let refusing = reach.refusing();
        reach.refused(2);
        assert!(refusing.borrow().contains(&2));
        assert_eq!(reach.of(2), Reachability::Reachable);
        reach.answered(2);
        assert!(refusing.borrow().is_empty());
    }
}
