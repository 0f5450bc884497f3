//! What is to be looked at, and when.

use skep_types::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Things to look at, now or at a given time.
#[derive(Debug)]
pub struct Agenda<K> {
    now: BTreeSet<K>,
    later: BTreeMap<K, Timestamp>,
    /// The same by time, so that the next one is found at once among thousands.
    by_time: BTreeSet<(Timestamp, K)>,
}

impl<K> Default for Agenda<K> {
    fn default() -> Self {
        Self { now: BTreeSet::new(), later: BTreeMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Ord + Clone> Agenda<K> {
    /// To be looked at now.
    pub fn add(&mut self, key: K) {
        self.now.insert(key);
    }

    /// The earlier of two wishes counts.
    pub fn at(&mut self, key: K, when: Timestamp) {
        if self.later.get(&key).is_none_or(|before| when < *before) {
            self.forget_later(&key);
            self.later.insert(key.clone(), when);
            self.by_time.insert((when, key));
        }
    }

    fn forget_later(&mut self, key: &K) {
        if let Some(when) = self.later.remove(key) {
            self.by_time.remove(&(when, key.clone()));
        }
    }

    /// What is due, at most `limit` of it.
    pub fn take(&mut self, now: Timestamp, limit: usize) -> Vec<K> {
        while let Some((when, _)) = self.by_time.first()
            && *when <= now
        {
            let Some((_, key)) = self.by_time.pop_first() else { break };
            self.later.remove(&key);
            self.now.insert(key);
        }
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some(key) = self.now.pop_first()
        {
            // A look now settles anew when to look again.
            self.forget_later(&key);
            taken.push(key);
        }
        taken
    }

    /// When something is due next.
    #[must_use]
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        if self.now.is_empty() { self.by_time.first().map(|(when, _)| *when) } else { Some(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agenda_gives_what_is_due_and_says_when_the_next_is() {
        let mut agenda = Agenda::default();
        agenda.add("now");
        agenda.at("later", Timestamp(20));
        agenda.at("later", Timestamp(30));
        assert_eq!(agenda.next(Timestamp(5)), Some(Timestamp(5)));
        assert_eq!(agenda.take(Timestamp(5), 10), ["now"]);
        assert_eq!(agenda.next(Timestamp(5)), Some(Timestamp(20)));
        assert_eq!(agenda.take(Timestamp(19), 10), Vec::<&str>::new());
        assert_eq!(agenda.take(Timestamp(20), 10), ["later"]);
        assert_eq!(agenda.next(Timestamp(20)), None);
    }

    #[test]
    fn a_long_agenda_is_taken_in_pieces() {
        let mut agenda = Agenda::default();
        (0..5).for_each(|n| agenda.add(n));
        assert_eq!(agenda.take(Timestamp(0), 3), [0, 1, 2]);
        assert_eq!(agenda.next(Timestamp(7)), Some(Timestamp(7)));
        assert_eq!(agenda.take(Timestamp(0), 3), [3, 4]);
    }
}
