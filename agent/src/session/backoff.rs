//! How long to wait before the next attempt, and whether to ask the same manager again (wire-behaviour 9.1). Pure.
//!
//! After a session that stood the managers are probably choosing a new leader: for a while attempts stay frequent, and a manager
//! that says that it cannot help just now is asked again over the connection there is. Ten thousand agents spread by chance.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(8);
/// The first attempt after a session that stood comes within this time.
const SPREAD: Duration = Duration::from_millis(400);
/// The longest wait while it is [`HURRY`].
const MOST_IN_HURRY: Duration = Duration::from_secs(1);
/// So long after a session was lost attempts stay frequent.
const HURRY: Duration = Duration::from_secs(15);
/// A manager that cannot help is asked so often before another one is tried.
const SAME: u32 = 5;

/// Waits grow up to 8 s; the real wait is anywhere below, so that thousands of agents do not come back at once.
#[derive(Debug, Default)]
pub struct Backoff {
    most: Duration,
    /// A session that stood was lost not long ago.
    hurry: bool,
    /// How often in a row the same manager was asked.
    same: u32,
}

impl Backoff {
    /// A session that stood was lost.
    pub fn lost(&mut self) {
        *self = Self { most: SPREAD, hurry: true, same: 0 };
    }

    /// An attempt failed, so long after the last session that stood was lost.
    pub fn failed(&mut self, since_lost: Duration) {
        self.hurry &= since_lost < HURRY;
        self.most = (FIRST + 2 * self.most).min(if self.hurry { MOST_IN_HURRY } else { MOST });
    }

    /// Whether the same manager, which says that it cannot help now, is to be asked once more.
    pub fn same_again(&mut self) -> bool {
        self.same = (self.same + 1) % (SAME + 1);
        self.same != 0
    }

    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// `random` is within 0..1.
    #[must_use]
    pub fn delay(&self, random: f64) -> Duration {
        self.most.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(backoff: &mut Backoff, attempts: usize, since_lost: Duration) -> Vec<u128> {
        (0..attempts)
            .map(|_| {
                backoff.failed(since_lost);
                backoff.delay(1.0).as_millis()
            })
            .collect()
    }

    #[test]
    fn the_wait_doubles_up_to_eight_seconds_and_begins_anew() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.delay(1.0), Duration::ZERO);
        assert_eq!(waits(&mut backoff, 9, Duration::ZERO), [100, 300, 700, 1500, 3100, 6300, 8000, 8000, 8000]);
        backoff.reset();
        assert_eq!(backoff.delay(1.0), Duration::ZERO);
    }

    #[test]
    fn after_a_session_that_stood_attempts_stay_frequent_for_a_while() {
        let mut backoff = Backoff::default();
        backoff.lost();
        assert_eq!(backoff.delay(1.0).as_millis(), 400);
        assert_eq!(backoff.delay(0.5).as_millis(), 200);
        assert_eq!(waits(&mut backoff, 3, Duration::from_secs(5)), [900, 1000, 1000]);
        assert_eq!(waits(&mut backoff, 4, Duration::from_secs(20)), [2100, 4300, 8000, 8000]);
    }

    #[test]
    fn a_manager_that_cannot_help_is_asked_some_times_and_then_another() {
        let mut backoff = Backoff::default();
        let asked: Vec<bool> = (0..8).map(|_| backoff.same_again()).collect();
        assert_eq!(asked, [true, true, true, true, true, false, true, true]);
        backoff.lost();
        assert!((0..5).all(|_| backoff.same_again()));
    }
}
