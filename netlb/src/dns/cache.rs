//! Answers from outside, kept as long as they say and as long as there is room. Pure: the time is given.

use super::foreign::{Key, Lifetime, Received};
use super::upstream::Resolver;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than an hour nothing is kept: what an operator mended should be seen the same day.
const LONGEST: u32 = 3_600;
/// "There is no such name" is what people mend while they watch.
const LONGEST_ABSENCE: u32 = 30;
/// Longer answers are rare and would take the room of many.
const LARGEST: usize = 2_048;

/// Whose answer it is: other resolvers may say something else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    pub(super) key: Key,
    pub(super) resolvers: Arc<[Resolver]>,
    /// The task whose namespace the resolvers are reached from, if it matters: the same address is another server elsewhere.
    pub(super) place: Option<u64>,
}

/// At most so many answers; the one that would end first makes room.
#[derive(Debug)]
pub(super) struct Cache {
    capacity: usize,
    kept: HashMap<Asked, Kept>,
    /// By end, and a number that tells equal ones apart.
    ends: BTreeMap<(Instant, u64), Asked>,
    next: u64,
}

#[derive(Debug)]
struct Kept {
    received: Arc<Received>,
    since: Instant,
    end: (Instant, u64),
}

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, kept: HashMap::new(), ends: BTreeMap::new(), next: 0 }
    }

    /// The answer and its age.
    pub(super) fn get(&self, asked: &Asked, now: Instant) -> Option<(Arc<Received>, Duration)> {
        let kept = self.kept.get(asked).filter(|kept| now < kept.end.0)?;
        Some((kept.received.clone(), now.saturating_duration_since(kept.since)))
    }

    pub(super) fn insert(&mut self, asked: Asked, received: Arc<Received>, now: Instant) {
        let seconds = match received.keep() {
            Some(Lifetime::Answer(seconds)) => seconds.min(LONGEST),
            Some(Lifetime::Absence(seconds)) => seconds.min(LONGEST_ABSENCE),
            None => 0,
        };
        if seconds == 0 || received.size() > LARGEST || self.capacity == 0 {
            return;
        }
        self.remove(&asked);
        while self.kept.len() >= self.capacity
            && let Some((_, first)) = self.ends.pop_first()
        {
            self.kept.remove(&first);
        }
        let end = (now + Duration::from_secs(u64::from(seconds)), self.next);
        self.next += 1;
        self.ends.insert(end, asked.clone());
        self.kept.insert(asked, Kept { received, since: now, end });
    }

    fn remove(&mut self, asked: &Asked) {
        if let Some(kept) = self.kept.remove(asked) {
            self.ends.remove(&kept.end);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        assert_eq!(self.kept.len(), self.ends.len());
        self.kept.len()
    }
}

#[cfg(test)]
mod tests;
