//! Waiting between attempts: doubling, capped, jittered, and with an end.

use std::time::Duration;

/// The waits between the attempts of one task.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    cap: Duration,
    left: u32,
}

impl Backoff {
    /// `retries` waits from `first` upwards, none above `cap`.
    pub fn new(first: Duration, cap: Duration, retries: u32) -> Self {
        Self { next: first, cap, left: retries }
    }

    /// How long to wait before the next attempt; `None` when it is time to give up.
    pub fn wait(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let wait = self.next.min(self.cap);
        self.next = (self.next * 2).min(self.cap);
        // Half fixed, half random: many nodes that lost one registry come back spread out.
        Some(wait / 2 + wait.mul_f64(rand::random::<f64>() / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_end() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300), 4);
        let waits: Vec<_> = std::iter::from_fn(|| backoff.wait()).collect();
        assert_eq!(waits.len(), 4);
        assert!(waits[0] >= Duration::from_millis(50) && waits[0] <= Duration::from_millis(100));
        assert!(waits[3] >= Duration::from_millis(150) && waits[3] <= Duration::from_millis(300));
    }
}
