//! Which nodes changed, in order, so that ordered sets can catch up when they are next used instead of at every change.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// A node by its number in the scheduler.
pub(crate) type Number = u32;

/// Something about some of the nodes.
pub(crate) type ByNumber<T> = HashMap<Number, T, BuildHasherDefault<NumberHasher>>;

/// We give the numbers out, one after the other: nobody can choose them so that they collide, and one multiplication mixes them
/// well enough. The map's own hash function costs more than the rest of a look-up.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        // 2^64 divided by the golden ratio.
        self.0 = (self.0.rotate_left(5) ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug, Default)]
pub(crate) struct Log {
    /// (node, whether it may take tasks now that it did not before)
    entries: VecDeque<(Number, bool)>,
    /// Position of the first entry that is kept.
    start: u64,
}

impl Log {
    pub fn push(&mut self, node: Number, gained: bool) {
        self.entries.push_back((node, gained));
    }

    pub fn end(&self) -> u64 {
        self.start + self.entries.len() as u64
    }

    /// What happened since `position`; `None` if that is too long ago.
    pub fn since(&self, position: u64) -> Option<impl ExactSizeIterator<Item = (Number, bool)> + '_> {
        let skip = usize::try_from(position.checked_sub(self.start)?).ok()?;
        Some(self.entries.range(skip.min(self.entries.len())..).copied())
    }

    /// Forgets the oldest entries beyond `kept`.
    pub fn trim(&mut self, kept: usize) {
        let surplus = self.entries.len().saturating_sub(kept);
        self.entries.drain(..surplus);
        self.start += surplus as u64;
    }
}
