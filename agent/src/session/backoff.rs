//! How long to wait after a failed session (wire-behaviour 9.1).

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(8);

/// Doubles up to 8 s; the real wait is anywhere below, so that thousands of agents do not come back at once.
#[derive(Debug, Default)]
pub struct Backoff(Duration);

impl Backoff {
    pub fn failed(&mut self) {
        self.0 = (FIRST + 2 * self.0).min(MOST);
    }

    pub fn reset(&mut self) {
        self.0 = Duration::ZERO;
    }

    /// `random` is within 0..1.
    #[must_use]
    pub fn delay(&self, random: f64) -> Duration {
        self.0.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_eight_seconds_and_begins_anew() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.delay(1.0), Duration::ZERO);
        let waits: Vec<u128> = (0..9)
            .map(|_| {
                backoff.failed();
                backoff.delay(1.0).as_millis()
            })
            .collect();
        assert_eq!(waits, [100, 300, 700, 1500, 3100, 6300, 8000, 8000, 8000]);
        backoff.reset();
        assert_eq!(backoff.delay(1.0), Duration::ZERO);
    }
}
