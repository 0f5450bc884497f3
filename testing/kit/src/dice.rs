use std::ops::Range;
use std::time::Duration;

/// The random numbers of a scenario: when a fault comes, and whom it hits. The same seed gives the same numbers, whatever else changes.
///
/// `SKEP_SEED` repeats a run, `SKEP_ROUNDS` makes it longer or shorter.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Takes the seed from `SKEP_SEED`, else from the clock, and prints it.
    #[must_use]
    pub fn cast(scenario: &str) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.subsec_nanos());
        let seed = number("SKEP_SEED").unwrap_or_else(|| u64::from(now));
        eprintln!("{scenario}: SKEP_SEED={seed} repeats this run");
        Self::of_seed(seed)
    }

    /// The same numbers every time: for what every `make test` runs.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        // Seeds that are near each other give numbers that are not; and xorshift stays where it is at 0.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// How many rounds a scenario has: as many as it says, or as `SKEP_ROUNDS` says.
    #[must_use]
    pub fn rounds(usual: u64) -> Range<u64> {
        0..number("SKEP_ROUNDS").unwrap_or(usual)
    }

    /// From 0 to below `sides`: Marsaglia's xorshift64.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// Yes or no.
    pub fn coin(&mut self) -> bool {
        self.roll(2) == 0
    }

    /// One of them.
    ///
    /// # Panics
    /// If there are none.
    pub fn one_of<T>(&mut self, all: impl IntoIterator<Item = T>) -> T {
        let mut all: Vec<T> = all.into_iter().collect();
        let at = usize::try_from(self.roll(all.len() as u64)).expect("fewer than 2^32");
        all.swap_remove(at)
    }

    /// A time within these milliseconds.
    pub fn moment(&mut self, milliseconds: Range<u64>) -> Duration {
        Duration::from_millis(milliseconds.start + self.roll(milliseconds.end - milliseconds.start))
    }

    /// Waits such a time.
    pub fn pause(&mut self, milliseconds: Range<u64>) -> Duration {
        let moment = self.moment(milliseconds);
        std::thread::sleep(moment);
        moment
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_all_sides_come() {
        let rolls = |seed| {
            let mut dice = Dice::of_seed(seed);
            (0..100).map(|_| dice.roll(6)).collect::<Vec<_>>()
        };
        assert_eq!(rolls(3), rolls(3));
        for seed in 0..20 {
            assert!((0..6).all(|side| rolls(seed).contains(&side)), "seed {seed}");
        }
        assert_ne!(rolls(0), rolls(1));
    }
}
