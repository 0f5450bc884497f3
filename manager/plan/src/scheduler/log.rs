//! Which nodes changed, in order, so that ordered sets can catch up when they are next used instead of at every change.

use std::collections::VecDeque;

/// A node by its number in the scheduler.
pub(crate) type Number = u32;

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
