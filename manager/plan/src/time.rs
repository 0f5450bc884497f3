//! How long ago something was, when other leaders with other clocks wrote it down.
//!
//! What is stored bears times of the leader that wrote it. Delays are differences between such times and the clock of the present
//! leader, and no two clocks agree: by them alone a leader whose clock is a minute fast lets a replacement run while the task before
//! it still stops, and one that is an hour slow lets it wait an hour. So a leader trusts its own times only. A delay that began by
//! another clock counts from when this leader began; longer ones are believed to have run before, but for their last minute.
//!
//! What came first is never asked of clocks: objects know the revision that made them ([`skep_types::Meta::created`]).

use skep_types::{Timestamp, Version};
use std::time::Duration;

/// So much of a delay has to pass under the eyes of the present leader: all of what protects from two tasks in one slot
/// ([`MAX_STOP_WAIT`](crate::MAX_STOP_WAIT)). What users ask for may be longer; were all of it to pass anew, a leader that changes
/// more often than that would never do it.
const WITNESSED: Duration = Duration::from_secs(60);

/// A clock that is set back by less is not noticed ([`Time::is_step`]): its own times may be so far in the future.
const TOLERANCE: Duration = Duration::from_secs(2);

/// When a leader began, or its clock was set: from then on what it writes bears times of its present clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    /// By that clock.
    pub at: Timestamp,
    /// What this revision has and those before is of other clocks.
    pub revision: Version,
}

/// The time by the present leader's clock, and since when that clock counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    now: Timestamp,
    /// `None`: all times that are stored are of one clock.
    begun: Option<Beginning>,
}

impl From<Timestamp> for Time {
    /// Where one clock wrote everything.
    fn from(now: Timestamp) -> Self {
        Self { now, begun: None }
    }
}

impl Time {
    /// `begun`: when this leader began.
    #[must_use]
    pub fn of_leader(now: Timestamp, begun: Beginning) -> Self {
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
            // What is between the beginning and now, this leader wrote, or one whose clock was ahead by no more than that.
            Some(begun) if from < begun.at || from > self.now + TOLERANCE => begun.bound(from, delay),
            _ => from + delay,
        }
    }

    /// The same for a delay that began when something was made, at revision `made` (zero if that was not noted).
    #[must_use]
    pub fn due_since(self, made: Version, from: Timestamp, delay: Duration) -> Timestamp {
        match self.begun {
            _ if made.is_zero() => self.due(from, delay),
            Some(begun) if made <= begun.revision => begun.bound(from, delay),
            _ => from + delay,
        }
    }

    /// Whether the wall clock was set while `passed` went by on a clock that cannot be set.
    #[must_use]
    pub fn is_step(before: Timestamp, now: Timestamp, passed: Duration) -> bool {
        let expected = before + passed;
        expected.since(now).max(now.since(expected)) > TOLERANCE
    }
}

impl Beginning {
    /// When a delay is over that began by another clock.
    fn bound(self, from: Timestamp, delay: Duration) -> Timestamp {
        (from + delay).clamp(self.at + delay.min(WITNESSED), self.at + delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that began at revision 7.
    fn leader(now: i64, begun: i64) -> Time {
        Time::of_leader(at(now), Beginning { at: at(begun), revision: Version(7) })
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_secs(seconds)
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_leader_believes_its_own_times() {
        let time = leader(1_100, 1_000);
        assert_eq!(time.due(at(1_050), seconds(60)), at(1_110));
        assert_eq!(time.due(at(1_050), seconds(7_200)), at(8_250));
        assert_eq!(time.due(at(1_101), seconds(60)), at(1_161), "its clock was set back a little");
        assert_eq!(Time::from(at(0)).due(at(1_000), seconds(5)), at(1_005), "there is one clock only");
    }

    #[test]
    fn what_another_clock_wrote_counts_from_when_this_leader_began() {
        let time = leader(1_010, 1_000);
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
    fn who_made_something_is_told_by_its_revision_and_not_by_its_time() {
        let time = leader(1_100, 1_000);
        // By its time it could be of either.
        assert_eq!(time.due_since(Version(7), at(1_050), seconds(60)), at(1_060));
        assert_eq!(time.due_since(Version(8), at(1_050), seconds(60)), at(1_110));
        assert_eq!(time.due_since(Version(0), at(1_050), seconds(60)), at(1_110), "not noted: by its time");
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_and_one_that_drifts_is_not() {
        assert!(!Time::is_step(at(100), at(160), seconds(60)));
        assert!(!Time::is_step(at(100), at(161), seconds(60)));
        assert!(Time::is_step(at(100), at(163), seconds(60)));
        assert!(Time::is_step(at(100), at(97), Duration::ZERO));
    }
}
