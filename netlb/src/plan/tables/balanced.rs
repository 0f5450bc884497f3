//! Backends in slots behind keys, as the two shared maps hold them: `be` and a verdict map.

use super::super::slots::{assign, same};
use super::chain_name;
use crate::nft::{ElementChange, Elements, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Backends in slots behind keys, as the two shared maps hold them.
#[derive(Debug, Clone)]
pub(super) struct Balanced<K, B> {
    entries: BTreeMap<K, Vec<B>>,
    /// The verdict map.
    keys: &'static str,
    key_bytes: fn(&K) -> Vec<u8>,
    backend_bytes: fn(&B) -> Vec<u8>,
}

impl<K: Ord + Clone, B: PartialEq + Clone> Balanced<K, B> {
    pub(super) fn new(keys: &'static str, key_bytes: fn(&K) -> Vec<u8>, backend_bytes: fn(&B) -> Vec<u8>) -> Self {
        Self { entries: BTreeMap::new(), keys, key_bytes, backend_bytes }
    }

    pub(super) fn verdict(&self, key: &K, count: usize) -> (&'static str, Vec<u8>, Value) {
        (self.keys, (self.key_bytes)(key), Value::Goto(chain_name(count)))
    }

    pub(super) fn slot(&self, key: &K, slot: usize, backend: &B) -> (&'static str, Vec<u8>, Value) {
        let slot = u32::try_from(slot).expect("a service has fewer than 2^32 backends");
        let key = [(self.key_bytes)(key).as_slice(), &slot.to_ne_bytes()].concat();
        ("be", key, Value::Data((self.backend_bytes)(backend)))
    }

    pub(super) fn elements_of(&self, key: &K, backends: &[B]) -> Vec<(&'static str, Vec<u8>, Value)> {
        if backends.is_empty() {
            return Vec::new();
        }
        let slots = backends.iter().enumerate().map(|(slot, backend)| self.slot(key, slot, backend));
        slots.chain([self.verdict(key, backends.len())]).collect()
    }

    /// Takes over what is wanted and says what that changes. Keys without backends are left out.
    pub(super) fn update(&mut self, wanted: &BTreeMap<K, Vec<B>>) -> Vec<ElementChange> {
        let mut changes = Vec::new();
        let keys: BTreeSet<K> = self.entries.keys().chain(wanted.keys()).cloned().collect();
        for key in keys {
            let old = self.entries.get(&key).map_or(&[][..], Vec::as_slice);
            let wanted = wanted.get(&key).map_or(&[][..], Vec::as_slice);
            if same(old, wanted) {
                continue;
            }
            let new = assign(old, wanted);
            let (before, after) = (self.elements_of(&key, old), self.elements_of(&key, &new));
            let gone = before.iter().filter(|element| !after.contains(element)).cloned();
            changes.extend(gone.map(|(set, key, value)| ElementChange::Remove { set, key, value }));
            let came = after.iter().filter(|element| !before.contains(element)).cloned();
            changes.extend(came.map(|(set, key, value)| ElementChange::Add { set, key, value }));
            if new.is_empty() {
                self.entries.remove(&key);
            } else {
                self.entries.insert(key, new);
            }
        }
        changes
    }

    pub(super) fn get(&self, key: &K) -> Option<&Vec<B>> {
        self.entries.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &Vec<B>)> {
        self.entries.iter()
    }

    pub(super) fn counts(&self) -> BTreeSet<usize> {
        self.entries.values().map(Vec::len).collect()
    }

    pub(super) fn fill(&self, elements: &mut Elements) {
        for (key, backends) in &self.entries {
            for (set, key, value) in self.elements_of(key, backends) {
                elements.entry(set).or_default().insert(key, value);
            }
        }
    }
}
