//! An order that differs from question to question, from one random number.

/// SplitMix64 (Steele, Lea, Flood 2014): spreads load, keeps no secret.
#[derive(Debug)]
pub(super) struct Shuffle(u64);

impl Shuffle {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The bias of a remainder is far below what anyone could see: lists are short, the number is long.
        usize::try_from(z % bound.max(1) as u64).unwrap_or(0)
    }

    /// Visits in random order until `visit` says `false`; what is not visited costs nothing. A shuffle, not a turn: after a turn
    /// the one behind a dead task gets its share as well.
    pub(super) fn each<T>(&mut self, list: &mut [T], mut visit: impl FnMut(&T) -> bool) {
        for at in 0..list.len() {
            let chosen = at + self.below(list.len() - at);
            list.swap(at, chosen);
            if !visit(&list[at]) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_visited_once_and_each_comes_first_now_and_then() {
        let mut first = [0u32; 5];
        for seed in 0..1_000 {
            let mut seen = Vec::new();
            Shuffle::new(seed).each(&mut [0, 1, 2, 3, 4], |&number| {
                seen.push(number);
                true
            });
            first[seen[0]] += 1;
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4]);
        }
        assert!(first.iter().all(|&count| count > 100), "{first:?}");
    }

    #[test]
    fn it_ends_when_told() {
        let mut seen = 0;
        Shuffle::new(1).each(&mut [0; 9], |_| {
            seen += 1;
            seen < 3
        });
        assert_eq!(seen, 3);
    }
}
