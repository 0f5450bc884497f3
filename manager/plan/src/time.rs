//! How long ago something was, when other leaders with other clocks wrote it down.
//!
//! What is stored bears times of the leader that wrote it. Delays are differences between such times and the clock of the present
//! leader, and no two clocks agree: by them alone a leader whose clock is a minute fast lets a replacement run while the task before
//! it still stops, and one that is an hour slow lets it wait an hour. So a leader trusts its own times only. A delay that began by
//! another clock counts from when this leader began; longer ones are believed to have run before, but for their last minute.

use skep_types::Timestamp;
use std::time::Duration;

/// So much of a delay has to pass under the eyes of the present leader: all of what protects from two tasks in one slot
/// ([`MAX_STOP_WAIT`](crate::MAX_STOP_WAIT)). What users ask for may be longer; were all of it to pass anew, a leader that changes
/// more often than that would never do it.
const WITNESSED: Duration = Duration::from_secs(60);

/// A clock that is set back by less is not noticed ([`Time::is_step`]): its own times may be so far in the future.
const TOLERANCE: Duration = Duration::from_secs(2);

/// The time by the present leader's clock, and since when that clock counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    now: Timestamp,
    /// When this leader began, or its clock was set; `None`: all times that are stored are of one clock.
    begun: Option<Timestamp>,
}

impl From<Timestamp> for Time {
    /// Where one clock wrote everything.
    fn from(now: Timestamp) -> Self {
        Self { now, begun: None }
    }
}

impl Time {
    /// `begun`: when this leader began by its own clock.
    #[must_use]
    pub fn of_leader(now: Timestamp, begun: Timestamp) -> Self {
        Self { now, begun: Some(begun) }
    }

    #[must_use]
    pub fn now(self) -> Timestamp {
        self.now
    }

    /// When `delay` is over that began at `from`, a time that is stored. Never later than `delay` after this leader began or after
    /// `from`, whichever comes last.
    #[must_use]
    pub fn due(self, from: Timestamp, delay: Duration) -> Timestamp {
        match self.begun {
            Some(begun) if !self.is_own(begun, from) => (from + delay).clamp(begun + delay.min(WITNESSED), begun + delay),
            _ => from + delay,
        }
    }

    /// Whether something that is stored began after now, which only another clock can say.
    #[must_use]
    pub fn is_ahead(self, stored: Timestamp) -> bool {
        stored > self.now + TOLERANCE
    }

    /// The place of something that is stored among others: what another clock dates ahead was there when this leader began.
    #[must_use]
    pub fn order(self, stored: Timestamp) -> Timestamp {
        self.begun.filter(|_| self.is_ahead(stored)).unwrap_or(stored)
    }

    /// What is between the beginning and now, this leader wrote, or one whose clock was ahead by no more than that.
    fn is_own(self, begun: Timestamp, stored: Timestamp) -> bool {
        stored >= begun && !self.is_ahead(stored)
    }

    /// Whether the wall clock was set while `passed` went by on a clock that cannot be set.
    #[must_use]
    pub fn is_step(before: Timestamp, now: Timestamp, passed: Duration) -> bool {
        let expected = before + passed;
        expected.since(now).max(now.since(expected)) > TOLERANCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_secs(seconds)
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_leader_believes_its_own_times() {
        let time = Time::of_leader(at(1_100), at(1_000));
        assert_eq!(time.due(at(1_050), seconds(60)), at(1_110));
        assert_eq!(time.due(at(1_050), seconds(7_200)), at(8_250));
        assert_eq!(time.due(at(1_101), seconds(60)), at(1_161), "its clock was set back a little");
        assert_eq!(Time::from(at(0)).due(at(1_000), seconds(5)), at(1_005), "there is one clock only");
    }

    #[test]
    fn what_another_clock_wrote_counts_from_when_this_leader_began() {
        let time = Time::of_leader(at(1_010), at(1_000));
        // It was behind, or that long ago; it was an hour ahead.
        assert_eq!(time.due(at(900), seconds(60)), at(1_060));
        assert_eq!(time.due(at(999), seconds(5)), at(1_005));
        assert_eq!(time.due(at(4_600), seconds(60)), at(1_060));
        assert_eq!(time.due(at(4_600), seconds(7_200)), at(8_200));
        // The time may be right: then only the last minute is waited for once more.
        assert_eq!(time.due(at(-3_000), seconds(3_600)), at(1_060));
        assert_eq!(time.due(at(900), seconds(3_600)), at(4_500));
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_and_one_that_drifts_is_not() {
        assert!(!Time::is_step(at(100), at(160), seconds(60)));
        assert!(!Time::is_step(at(100), at(161), seconds(60)));
        assert!(Time::is_step(at(100), at(163), seconds(60)));
        assert!(Time::is_step(at(100), at(97), Duration::ZERO));
    }
}
