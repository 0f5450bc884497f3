//! Backends in slots behind keys, as the two shared maps hold them: `be` and a verdict map.

use super::super::slots::{assign, same};
use super::chain_name;
use crate::nft::{ElementChange, Elements, Value};
use std::collections::BTreeMap;

/// Set, key, value.
type Element = (&'static str, Vec<u8>, Value);

/// Backends in slots behind keys, as the two shared maps hold them.
#[derive(Debug, Clone)]
pub(super) struct Balanced<K, B> {
    entries: BTreeMap<K, Vec<B>>,
    /// The verdict map.
    keys: &'static str,
    key_bytes: fn(&K) -> Vec<u8>,
    backend_bytes: fn(&B) -> Vec<u8>,
}

impl<K: Ord + Clone, B: Ord + Clone> Balanced<K, B> {
    pub(super) fn new(keys: &'static str, key_bytes: fn(&K) -> Vec<u8>, backend_bytes: fn(&B) -> Vec<u8>) -> Self {
        Self { entries: BTreeMap::new(), keys, key_bytes, backend_bytes }
    }

    fn verdict(&self, key: &K, count: usize) -> Element {
        (self.keys, (self.key_bytes)(key), Value::Goto(chain_name(count)))
    }

    fn slot(&self, key: &K, slot: usize, backend: &B) -> Element {
        let slot = u32::try_from(slot).expect("a service has fewer than 2^32 backends");
        let key = [(self.key_bytes)(key).as_slice(), &slot.to_ne_bytes()].concat();
        ("be", key, Value::Data((self.backend_bytes)(backend)))
    }

    /// Leads the key to these backends, or nowhere if there are none, and says what that changes. Looks at nothing else.
    pub(super) fn set(&mut self, key: &K, wanted: &[B]) -> Vec<ElementChange> {
        let old = self.entries.get(key).map_or(&[][..], Vec::as_slice);
        if same(old, wanted) {
            return Vec::new();
        }
        let new = assign(old, wanted);
        let (mut gone, mut came) = (Vec::new(), Vec::new());
        for at in 0..old.len().max(new.len()) {
            if old.get(at) != new.get(at) {
                gone.extend(old.get(at).map(|backend| self.slot(key, at, backend)));
                came.extend(new.get(at).map(|backend| self.slot(key, at, backend)));
            }
        }
        if old.len() != new.len() {
            gone.extend((!old.is_empty()).then(|| self.verdict(key, old.len())));
            came.extend((!new.is_empty()).then(|| self.verdict(key, new.len())));
        }
        if new.is_empty() {
            self.entries.remove(key);
        } else {
            self.entries.insert(key.clone(), new);
        }
        let gone = gone.into_iter().map(|(set, key, value)| ElementChange::Remove { set, key, value });
        gone.chain(came.into_iter().map(|(set, key, value)| ElementChange::Add { set, key, value })).collect()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys()
    }

    pub(super) fn get(&self, key: &K) -> Option<&Vec<B>> {
        self.entries.get(key)
    }

    pub(super) fn fill(&self, elements: &mut Elements) {
        for (key, backends) in &self.entries {
            let slots = backends.iter().enumerate().map(|(slot, backend)| self.slot(key, slot, backend));
            for (set, key, value) in slots.chain([self.verdict(key, backends.len())]) {
                elements.entry(set).or_default().insert(key, value);
            }
        }
    }
}
