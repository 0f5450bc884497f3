//! Maps by what we gave out ourselves. Nobody can choose numbers of nodes, or the random ids of objects, so that they collide;
//! the standard library's hash, which guards against that, costs more than the rest of a look-up.

use super::log::Number;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Something about some of the nodes.
pub(crate) type ByNumber<T> = HashMap<Number, T, BuildHasherDefault<Mixer>>;

/// Something about objects with ids.
pub(crate) type ById<K, T> = HashMap<K, T, BuildHasherDefault<Mixer>>;

/// One multiplication a word, of which both halves are kept.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        // 2^64 divided by the golden ratio. The upper half carries what the upper bits of the word say down to the lowest bits,
        // which tables look at.
        let product = u128::from(self.0 ^ word) * 0x9E37_79B9_7F4A_7C15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.mix(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.mix(u64::from(number));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::TaskId;
    use std::collections::HashSet;
    use std::hash::{BuildHasher as _, BuildHasherDefault};

    #[test]
    fn ids_and_numbers_spread_over_a_table() {
        let hasher = BuildHasherDefault::<Mixer>::default();
        let slots = |hashes: &mut dyn Iterator<Item = u64>| hashes.map(|hash| hash & 0xffff).collect::<HashSet<_>>().len();
        // 65,536 balls thrown at random into as many slots fill 63 of 100.
        let of_ids = slots(&mut (0..1 << 16).map(|number| hasher.hash_one(TaskId::for_test(number))));
        let of_numbers = slots(&mut (0..1u32 << 16).map(|number| hasher.hash_one(number)));
        assert!(of_ids > 40_000 && of_numbers > 40_000, "{of_ids} and {of_numbers} of 65536");
    }
}
