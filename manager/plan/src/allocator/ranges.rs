//! A set of numbers kept as ranges: small when numbers are handed out in order, O(log ranges) for everything.

use std::collections::BTreeMap;

/// Numbers in use, as ranges that neither overlap nor touch: start to end, both included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    ranges: BTreeMap<u128, u128>,
}

impl RangeSet {
    fn range_of(&self, number: u128) -> Option<(u128, u128)> {
        let (start, end) = self.ranges.range(..=number).next_back()?;
        (*end >= number).then_some((*start, *end))
    }

    pub fn contains(&self, number: u128) -> bool {
        self.range_of(number).is_some()
    }

    /// Whether any number of `start..=end` is in the set.
    pub fn overlaps(&self, start: u128, end: u128) -> bool {
        self.contains(start) || self.ranges.range(start..=end).next().is_some()
    }

    /// The first number at or above `from` that is not in the set.
    pub fn next_free(&self, from: u128) -> Option<u128> {
        match self.range_of(from) {
            Some((_, end)) => end.checked_add(1),
            None => Some(from),
        }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = u128> {
        self.ranges.iter().flat_map(|(start, end)| *start..=*end)
    }

    pub fn largest(&self) -> Option<u128> {
        self.ranges.last_key_value().map(|(_, end)| *end)
    }

    /// Adds one number; `false` if it was there.
    pub fn insert(&mut self, number: u128) -> bool {
        let new = !self.contains(number);
        self.insert_range(number, number);
        new
    }

    pub fn insert_range(&mut self, start: u128, end: u128) {
        let (mut start, mut end) = (start, end);
        if let Some((before, until)) = self.ranges.range(..=start).next_back().map(|(before, until)| (*before, *until))
            && until >= start.saturating_sub(1)
        {
            start = before;
            end = end.max(until);
            self.ranges.remove(&before);
        }
        while let Some((next, until)) = self.ranges.range(start..=end.saturating_add(1)).next().map(|(next, until)| (*next, *until)) {
            end = end.max(until);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    /// Takes one number out; `false` if it was not there.
    pub fn remove(&mut self, number: u128) -> bool {
        let there = self.contains(number);
        self.remove_range(number, number);
        there
    }

    pub fn remove_range(&mut self, start: u128, end: u128) {
        let touched: Vec<_> =
            self.ranges.range(..=end).rev().take_while(|(_, until)| **until >= start).map(|(first, until)| (*first, *until)).collect();
        for (first, until) in touched {
            self.ranges.remove(&first);
            if first < start {
                self.ranges.insert(first, start - 1);
            }
            if until > end {
                self.ranges.insert(end + 1, until);
            }
        }
    }
}

/// Numbers given out one after the other; those that come back are given again as late as possible.
#[derive(Debug, Clone)]
pub(crate) struct Serial {
    first: u128,
    last: u128,
    used: RangeSet,
    next: u128,
}

impl Serial {
    pub fn new(first: u128, last: u128) -> Self {
        Self { first, last, used: RangeSet::default(), next: first }
    }

    /// The next free number; `None` when all are in use.
    pub fn take(&mut self) -> Option<u128> {
        let ahead = self.used.next_free(self.next).filter(|number| *number <= self.last);
        let number = ahead.or_else(|| self.used.next_free(self.first).filter(|number| *number <= self.last))?;
        self.used.insert(number);
        self.next = if number == self.last { self.first } else { number + 1 };
        Some(number)
    }

    /// Takes this very number (in or outside the range that is handed out); `false` if it is in use.
    pub fn claim(&mut self, number: u128) -> bool {
        self.used.insert(number)
    }

    pub fn release(&mut self, number: u128) -> bool {
        self.used.remove(number)
    }

    /// Takes back a number that was given but never used: it is the next one again.
    pub fn cancel(&mut self, number: u128) -> bool {
        if (self.first..self.next).contains(&number) {
            self.next = number;
        }
        self.release(number)
    }

    pub fn is_used(&self, number: u128) -> bool {
        self.used.contains(number)
    }

    /// Those in use.
    pub fn used(&self) -> impl Iterator<Item = u128> {
        self.used.iter()
    }

    /// After the state was rebuilt: goes on behind the highest number in use.
    pub fn seek_end(&mut self) {
        let highest = self.used.largest().filter(|highest| (self.first..self.last).contains(highest));
        self.next = highest.map_or(self.first, |highest| highest + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_come_in_order_and_return_late() {
        let mut serial = Serial::new(1, 4);
        assert_eq!([serial.take(), serial.take()], [Some(1), Some(2)]);
        assert!(serial.release(1));
        assert_eq!([serial.take(), serial.take(), serial.take(), serial.take()], [Some(3), Some(4), Some(1), None]);
    }

    proptest! {
        #[test]
        fn ranges_hold_what_a_plain_set_holds(steps in prop::collection::vec((any::<bool>(), 0u128..40, 0u128..6), 0..60)) {
            let mut ranges = RangeSet::default();
            let mut plain = BTreeSet::new();
            for (add, start, length) in steps {
                let span = start..=start + length;
                if add {
                    ranges.insert_range(start, start + length);
                    plain.extend(span);
                } else {
                    ranges.remove_range(start, start + length);
                    plain.retain(|number| !span.contains(number));
                }
                for number in 0..48 {
                    prop_assert_eq!(ranges.contains(number), plain.contains(&number));
                    prop_assert_eq!(ranges.next_free(number), (number..).find(|free| !plain.contains(free)));
                }
                prop_assert_eq!(ranges.overlaps(10, 12), (10..=12).any(|number| plain.contains(&number)));
            }
        }
    }
}
