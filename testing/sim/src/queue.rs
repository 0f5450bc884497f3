//! Virtual time: what is to happen next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Time since the run began. It never jumps; clocks of managers do.
pub type Moment = Duration;

/// Events by their time; of two at the same time the one that was put in first comes first.
#[derive(Debug)]
pub struct Queue<E> {
    /// When, in which order, and where the event is: what moves in the heap is small.
    due: BinaryHeap<Reverse<(Moment, u64, usize)>>,
    events: Vec<Option<E>>,
    free: Vec<usize>,
    count: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { due: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), count: 0 }
    }
}

impl<E> Queue<E> {
    pub fn put(&mut self, at: Moment, event: E) {
        self.count += 1;
        let place = self.free.pop().unwrap_or(self.events.len());
        if place == self.events.len() {
            self.events.push(Some(event));
        } else {
            self.events[place] = Some(event);
        }
        self.due.push(Reverse((at, self.count, place)));
    }

    pub fn take(&mut self) -> Option<(Moment, E)> {
        let Reverse((at, _, place)) = self.due.pop()?;
        self.free.push(place);
        self.events[place].take().map(|event| (at, event))
    }

    #[must_use]
    pub fn next(&self) -> Option<Moment> {
        self.due.peek().map(|Reverse((at, ..))| *at)
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
