//! Virtual time: what is to happen next.

use std::collections::BTreeMap;
use std::time::Duration;

/// Time since the run began. It never jumps; clocks of managers do.
pub type Moment = Duration;

/// Events by their time; of two at the same time the one that was put in first comes first.
#[derive(Debug)]
pub struct Queue<E> {
    events: BTreeMap<(Moment, u64), E>,
    count: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { events: BTreeMap::new(), count: 0 }
    }
}

impl<E> Queue<E> {
    pub fn put(&mut self, at: Moment, event: E) {
        self.count += 1;
        self.events.insert((at, self.count), event);
    }

    pub fn take(&mut self) -> Option<(Moment, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }

    #[must_use]
    pub fn next(&self) -> Option<Moment> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_their_order() {
        let mut queue = Queue::default();
        let at = Duration::from_secs;
        for (time, name) in [(2, "c"), (1, "a"), (1, "b")] {
            queue.put(at(time), name);
        }
        assert_eq!(queue.next(), Some(at(1)));
        let names: Vec<_> = std::iter::from_fn(|| queue.take()).map(|(_, name)| name).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }
}
