//! Something of each node. The ids of this world are numbers: what is of a node is found at once, and walked in the order of the ids.

use skep_types::NodeId;

/// A map by node. As of a [`BTreeMap`](std::collections::BTreeMap), but for the price of finding something.
#[derive(Debug, Clone)]
pub struct ByNode<T> {
    rows: Vec<Option<(NodeId, T)>>,
    count: usize,
}

impl<T> Default for ByNode<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), count: 0 }
    }
}

/// The number of an id of this world: digits, padded with zeros.
fn number(id: &NodeId) -> usize {
    id.as_str().bytes().rev().take(6).enumerate().fold(0, |sum, (place, digit)| sum + usize::from(digit - b'0') * POWERS[place])
}

const POWERS: [usize; 6] = [1, 10, 100, 1_000, 10_000, 100_000];

impl<T> ByNode<T> {
    #[must_use]
    pub fn get(&self, id: &NodeId) -> Option<&T> {
        self.rows.get(number(id))?.as_ref().map(|(_, value)| value)
    }

    pub fn get_mut(&mut self, id: &NodeId) -> Option<&mut T> {
        self.rows.get_mut(number(id))?.as_mut().map(|(_, value)| value)
    }

    #[must_use]
    pub fn contains_key(&self, id: &NodeId) -> bool {
        self.get(id).is_some()
    }

    /// What was there before is returned.
    pub fn insert(&mut self, id: NodeId, value: T) -> Option<T> {
        let at = number(&id);
        if self.rows.len() <= at {
            self.rows.resize_with(at + 1, || None);
        }
        let before = self.rows[at].replace((id, value));
        self.count += usize::from(before.is_none());
        before.map(|(_, value)| value)
    }

    pub fn remove(&mut self, id: &NodeId) -> Option<T> {
        let (_, value) = self.rows.get_mut(number(id))?.take()?;
        self.count -= 1;
        Some(value)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &T)> {
        self.rows.iter().flatten().map(|(id, value)| (id, value))
    }

    pub fn keys(&self) -> impl Iterator<Item = &NodeId> {
        self.iter().map(|(id, _)| id)
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.rows.iter_mut().flatten().map(|(_, value)| value)
    }
}

impl<T> FromIterator<(NodeId, T)> for ByNode<T> {
    fn from_iter<I: IntoIterator<Item = (NodeId, T)>>(all: I) -> Self {
        let mut this = Self::default();
        for (id, value) in all {
            this.insert(id, value);
        }
        this
    }
}

impl<T> std::ops::Index<&NodeId> for ByNode<T> {
    type Output = T;
    fn index(&self, id: &NodeId) -> &T {
        self.get(id).expect("whoever asks knows the node")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_found_and_come_in_the_order_of_their_ids() {
        let id = NodeId::for_test;
        let mut map: ByNode<u64> = [205, 3, 40].into_iter().map(|number| (id(number), number)).collect();
        assert_eq!(map.insert(id(3), 4), Some(3));
        assert_eq!(map.keys().cloned().collect::<Vec<_>>(), [id(3), id(40), id(205)]);
        assert_eq!((map.get(&id(3)), map.get(&id(4)), map.get(&id(900)), map.len()), (Some(&4), None, None, 3));
        assert_eq!((map.remove(&id(40)), map.remove(&id(40)), map.len()), (Some(40), None, 2));
    }
}
