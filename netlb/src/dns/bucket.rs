//! How often a container may ask. Pure: the time is given.

use std::time::{Duration, Instant};

/// So many a second, and so many at once after a pause. Kept as one time, the one at which all is forgiven (the generic cell
/// rate algorithm of ITU-T I.371).
#[derive(Debug)]
pub(super) struct Bucket {
    interval: Duration,
    allowance: Duration,
    settled: Instant,
}

impl Bucket {
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, allowance: interval * burst.max(1).saturating_sub(1), settled: now }
    }

    /// When the next may come: `None` for now.
    pub(super) fn wait_until(&self, now: Instant) -> Option<Instant> {
        (self.settled > now + self.allowance).then(|| self.settled.checked_sub(self.allowance).unwrap_or(now))
    }

    pub(super) fn take(&mut self, now: Instant) {
        self.settled = self.settled.max(now) + self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_so_many_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, 10, start);
        let mut passed = |from: Duration, length: Duration| {
            let mut count = 0;
            let mut now = start + from;
            while now < start + from + length {
                while bucket.wait_until(now).is_none() {
                    bucket.take(now);
                    count += 1;
                }
                now += Duration::from_millis(1);
            }
            count
        };
        assert_eq!(passed(Duration::ZERO, Duration::from_millis(1)), 10);
        let second = passed(Duration::from_millis(1), Duration::from_secs(1));
        assert!((99..=101).contains(&second), "{second}");
        assert_eq!(passed(Duration::from_secs(60), Duration::from_millis(1)), 10, "a long pause saves up no more");
    }

    #[test]
    fn it_says_when() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 1, start);
        bucket.take(start);
        let when = bucket.wait_until(start).unwrap();
        assert_eq!(when, start + Duration::from_millis(100));
        assert_eq!(bucket.wait_until(when), None);
    }
}
