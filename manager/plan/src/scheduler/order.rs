//! Keys in order, in pieces of memory that are used again: as long as their number stays about the same, nothing is asked of the
//! allocator, whatever comes and goes. A key is found, added or removed in O(log n) and moves at most a piece.

use std::cmp::Ordering;

/// Keys of one piece. Moving half of these costs about as much as finding one.
const MOST: usize = 64;

#[derive(Debug)]
pub(crate) struct Order<K> {
    /// In order, none of them empty.
    pieces: Vec<Vec<K>>,
    /// Empty ones to be used next.
    spare: Vec<Vec<K>>,
    len: usize,
}

/// A place in an order, good until this changes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    piece: usize,
    at: usize,
}

impl<K> Default for Order<K> {
    fn default() -> Self {
        Self { pieces: Vec::new(), spare: Vec::new(), len: 0 }
    }
}

impl<K: Ord> Order<K> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn first(&self) -> Option<&K> {
        self.pieces.first()?.first()
    }

    pub fn iter(&self) -> impl Iterator<Item = &K> {
        self.pieces.iter().flatten()
    }

    /// The key at the cursor, which is moved behind it.
    pub fn next(&self, cursor: &mut Cursor) -> Option<&K> {
        let piece = self.pieces.get(cursor.piece)?;
        let key = piece.get(cursor.at)?;
        cursor.at += 1;
        if cursor.at == piece.len() {
            *cursor = Cursor { piece: cursor.piece + 1, at: 0 };
        }
        Some(key)
    }

    /// The first key behind this one.
    pub fn after(&self, key: &K) -> Option<&K> {
        let (piece, at) = match self.find(|other| other.cmp(key)) {
            Ok((piece, at)) => (piece, at + 1),
            Err(place) => place,
        };
        let piece_of = |piece: usize| self.pieces.get(piece);
        piece_of(piece)?.get(at).or_else(|| piece_of(piece + 1)?.first())
    }

    /// The key that compares as equal. What it is ordered by must stay as it is.
    pub fn get_mut(&mut self, compare: impl Fn(&K) -> Ordering) -> Option<&mut K> {
        let (piece, at) = self.find(compare).ok()?;
        self.pieces[piece].get_mut(at)
    }

    pub fn get(&self, compare: impl Fn(&K) -> Ordering) -> Option<&K> {
        let (piece, at) = self.find(compare).ok()?;
        self.pieces[piece].get(at)
    }

    /// Where the key is, or where it would be put: in the piece before the first that begins behind it.
    fn find(&self, compare: impl Fn(&K) -> Ordering) -> Result<(usize, usize), (usize, usize)> {
        let piece = self.pieces.partition_point(|piece| compare(&piece[0]) != Ordering::Greater).saturating_sub(1);
        match self.pieces.get(piece).map_or(Err(0), |keys| keys.binary_search_by(compare)) {
            Ok(at) => Ok((piece, at)),
            Err(at) => Err((piece, at)),
        }
    }

    /// Adds a key, in the place of one that is equal to it.
    pub fn insert(&mut self, key: K) {
        let (mut piece, mut at) = match self.find(|other| other.cmp(&key)) {
            Ok((piece, at)) => {
                self.pieces[piece][at] = key;
                return;
            }
            Err(place) => place,
        };
        self.len += 1;
        if self.pieces.is_empty() {
            let first = self.spare.pop().unwrap_or_default();
            self.pieces.push(first);
        } else if self.pieces[piece].len() >= MOST {
            let mut next = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(MOST));
            // What comes in order fills its pieces.
            let kept = if at == MOST { MOST } else { MOST / 2 };
            next.extend(self.pieces[piece].drain(kept..));
            self.pieces.insert(piece + 1, next);
            if at >= kept {
                (piece, at) = (piece + 1, at - kept);
            }
        }
        self.pieces[piece].insert(at, key);
    }

    /// Removes and returns the key that compares as equal.
    pub fn take(&mut self, compare: impl Fn(&K) -> Ordering) -> Option<K> {
        let (piece, at) = self.find(compare).ok()?;
        let key = self.pieces[piece].remove(at);
        self.len -= 1;
        let length = self.pieces[piece].len();
        if length == 0 {
            self.free(piece);
        } else if length < MOST / 4 && self.pieces.get(piece + 1).is_some_and(|next| length + next.len() < MOST / 2) {
            let (front, back) = self.pieces.split_at_mut(piece + 1);
            front[piece].append(&mut back[0]);
            self.free(piece + 1);
        }
        Some(key)
    }

    pub fn remove(&mut self, key: &K) -> bool {
        self.take(|other| other.cmp(key)).is_some()
    }

    fn free(&mut self, piece: usize) {
        let mut free = self.pieces.remove(piece);
        free.clear();
        // After many keys come few: what is never used again is given back.
        if self.spare.len() <= self.pieces.len() {
            self.spare.push(free);
        }
    }

    pub fn clear(&mut self) {
        self.len = 0;
        for mut piece in self.pieces.drain(..) {
            piece.clear();
            self.spare.push(piece);
        }
    }

    /// Takes the place of all keys. They must be in order, each once.
    pub fn refill(&mut self, keys: impl IntoIterator<Item = K>) {
        self.clear();
        for key in keys {
            match self.pieces.last_mut().filter(|piece| piece.len() < MOST * 3 / 4) {
                Some(piece) => piece.push(key),
                None => {
                    let mut piece = self.spare.pop().unwrap_or_default();
                    piece.push(key);
                    self.pieces.push(piece);
                }
            }
            self.len += 1;
        }
        self.spare.truncate(self.pieces.len() + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn check(order: &Order<u32>, model: &BTreeSet<u32>) {
        assert_eq!((order.len(), order.is_empty()), (model.len(), model.is_empty()));
        assert!(order.iter().eq(model), "{order:?}");
        assert!(order.pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= MOST));
        let mut cursor = Cursor::default();
        assert!(std::iter::from_fn(|| order.next(&mut cursor)).eq(model));
        assert_eq!(order.first(), model.first());
    }

    proptest! {
        #[test]
        fn it_holds_what_a_sorted_set_holds(filled in 0_u32..1000, steps in proptest::collection::vec((0_u32..1500, 0_u8..6), 0..3000)) {
            let (mut order, mut model) = (Order::default(), BTreeSet::new());
            order.refill((0..filled).map(|key| key * 2));
            model.extend((0..filled).map(|key| key * 2));
            for (key, step) in steps {
                match step {
                    0 | 1 => {
                        order.insert(key);
                        model.insert(key);
                    }
                    2..=4 => prop_assert_eq!(order.remove(&key), model.remove(&key)),
                    _ => {
                        prop_assert_eq!(order.after(&key), model.range(key + 1..).next());
                        prop_assert_eq!(order.get(|other| other.cmp(&key)), model.get(&key));
                    }
                }
            }
            check(&order, &model);
            order.clear();
            check(&order, &BTreeSet::new());
        }
    }

    /// Keys that go up one by one, as nodes do when tasks are placed on them, need no more pieces than there were.
    #[test]
    fn keys_that_move_use_the_pieces_there_are() {
        let mut order = Order::default();
        order.refill((0..10_000_u32).map(|number| (0_u32, number)));
        let mut step = |count| {
            for number in 0..10_000 {
                assert!(order.remove(&(count, number)));
                order.insert((count + 1, number));
            }
            order.pieces.len() + order.spare.len()
        };
        let pieces = step(0).max(step(1));
        assert!((2..10).all(|count| step(count) <= pieces));
    }
}
