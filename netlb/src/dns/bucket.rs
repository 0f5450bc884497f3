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
        let interval = (Duration::from_secs(1) / per_second.max(1)).max(Duration::from_nanos(1));
        Self { interval, allowance: interval * burst.max(1).saturating_sub(1), settled: now }
    }

    /// How many may come now, up to `most`, or when the next may.
    pub(super) fn available(&self, most: u32, now: Instant) -> Result<u32, Instant> {
        let full = now + self.allowance + self.interval;
        let left = full.saturating_duration_since(self.settled.max(now)).as_nanos() / self.interval.as_nanos();
        match u32::try_from(left).unwrap_or(u32::MAX).min(most) {
            0 => Err(self.settled.checked_sub(self.allowance).unwrap_or(now)),
            count => Ok(count),
        }
    }

    /// So many came.
    pub(super) fn take(&mut self, count: u32, now: Instant) {
        self.settled = self.settled.max(now) + self.interval * count;
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
                while let Ok(available) = bucket.available(7, now) {
                    bucket.take(available, now);
                    count += available;
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
        assert_eq!(bucket.available(5, start), Ok(1));
        bucket.take(1, start);
        let when = start + Duration::from_millis(100);
        assert_eq!(bucket.available(5, start), Err(when));
        assert_eq!(bucket.available(5, when), Ok(1));
        let unbounded = Bucket::new(u32::MAX, 1_000, start);
        assert_eq!(unbounded.available(32, start), Ok(32));
    }
}
