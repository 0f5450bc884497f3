//! Numbers for messages that nobody would send.
#![allow(dead_code, reason = "not every crate of tests makes such messages")]

/// `SKEP_SEED` repeats a run or makes another one, `SKEP_ROUNDS` makes it longer or shorter. Without them every run is the same.
pub struct Dice {
    state: u64,
    pub seed: u64,
    rounds: Option<u64>,
}

impl Dice {
    pub fn new() -> Self {
        let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
        let seed = number("SKEP_SEED").unwrap_or(0x5eed);
        Self { state: seed, seed, rounds: number("SKEP_ROUNDS") }
    }

    pub fn rounds(&self, usual: u64) -> u64 {
        self.rounds.unwrap_or(usual)
    }

    /// Less than `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 11) % limit.max(1)
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    pub fn pick<'a, T: ?Sized>(&mut self, some: &[&'a T]) -> &'a T {
        some[self.index(some.len())]
    }

    /// A number where programs go wrong.
    pub fn extreme(&mut self) -> u64 {
        let edges = [0, 1, 127, 128, 1 << 16, (1 << 31) - 1, 1 << 31, u64::from(u32::MAX), (1 << 63) - 1, 1 << 63, u64::MAX - 1, u64::MAX];
        edges[self.index(edges.len())]
    }
}
