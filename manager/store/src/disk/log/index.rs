//! Which entries there are and where: in memory, on the disk, or both.

use super::record::split_entries;
use crate::codec;
use crate::disk::DiskError;
use crate::disk::segment::Segment;
use crate::raft::types::{Entry, LogId};
use std::collections::VecDeque;
use std::sync::Arc;

/// Where an entry is on the disk.
#[derive(Clone)]
pub(crate) struct Place {
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
    pub(super) payload: usize,
    pub(super) nth: usize,
}

struct Slot {
    id: LogId,
    place: Option<Place>,
    /// Boxed: thousands of slots hold none.
    entry: Option<Box<Entry>>,
}

/// Which entries the log has and where they are; the newest are held in memory as well.
pub(crate) struct Index {
    purged: Option<LogId>,
    slots: VecDeque<Slot>,
    /// How many slots at the front have lost their copy in memory.
    evicted: usize,
    cached_bytes: usize,
    cache_limit: usize,
}

/// An entry, or where to read it.
pub(crate) enum Lookup {
    Cached(Entry),
    OnDisk(Place),
}

pub(super) fn entry_size(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(batch) => batch.size() + 64,
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 256,
    }
}

impl Index {
    pub(super) fn new(cache_limit: usize) -> Self {
        Self { purged: None, slots: VecDeque::new(), evicted: 0, cached_bytes: 0, cache_limit }
    }

    pub(crate) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// An empty log goes on behind `last`.
    pub(super) fn begin_after(&mut self, last: Option<LogId>) {
        self.purged = last;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// One that was found on the disk at the start; it is not held in memory.
    pub(super) fn replayed(&mut self, id: LogId, place: Place) {
        self.slots.push_back(Slot { id, place: Some(place), entry: None });
        self.evicted += 1;
    }

    pub(crate) fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.id).or(self.purged)
    }

    fn first_index(&self) -> u64 {
        self.slots.front().map_or_else(|| self.purged.map_or(0, |id| id.index + 1), |slot| slot.id.index)
    }

    fn position(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.first_index())?).ok().filter(|at| *at < self.slots.len())
    }

    pub(crate) fn id_at(&self, index: u64) -> Option<LogId> {
        if let Some(purged) = self.purged.filter(|purged| purged.index == index) {
            return Some(purged);
        }
        self.position(index).map(|at| self.slots[at].id)
    }

    /// Takes the entries into memory; they are on the disk when [`Index::placed`] says so.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.cached_bytes += entry_size(entry);
            self.slots.push_back(Slot { id: entry.log_id, place: None, entry: Some(Box::new(entry.clone())) });
        }
    }

    pub(super) fn placed(&mut self, id: LogId, place: Place) {
        if let Some(at) = self.position(id.index)
            && self.slots[at].id == id
        {
            self.slots[at].place = Some(place);
        }
    }

    pub(super) fn evict(&mut self) {
        while self.cached_bytes > self.cache_limit {
            let Some(slot) = self.slots.get_mut(self.evicted).filter(|slot| slot.place.is_some()) else { return };
            if let Some(entry) = slot.entry.take() {
                self.cached_bytes -= entry_size(&entry);
            }
            self.evicted += 1;
        }
    }

    /// From `start` up to but without `end`, as far as they are there.
    pub(crate) fn lookup(&self, start: u64, end: u64) -> Vec<Lookup> {
        let from = start.max(self.first_index());
        (from..end)
            .map_while(|index| {
                let slot = &self.slots[self.position(index)?];
                match (&slot.entry, &slot.place) {
                    (Some(entry), _) => Some(Lookup::Cached(Entry::clone(entry))),
                    (None, Some(place)) => Some(Lookup::OnDisk(place.clone())),
                    (None, None) => None, // cannot be: only entries with a place are evicted
                }
            })
            .collect()
    }

    /// Returns the entry before `since`.
    pub(crate) fn truncate(&mut self, since: u64) -> Option<LogId> {
        while self.slots.back().is_some_and(|slot| slot.id.index >= since) {
            if let Some(entry) = self.slots.pop_back().and_then(|slot| slot.entry) {
                self.cached_bytes -= entry_size(&entry);
            }
        }
        self.evicted = self.evicted.min(self.slots.len());
        self.last()
    }

    pub(crate) fn purge(&mut self, upto: LogId) {
        while self.slots.front().is_some_and(|slot| slot.id.index <= upto.index) {
            if let Some(entry) = self.slots.pop_front().and_then(|slot| slot.entry) {
                self.cached_bytes -= entry_size(&entry);
            }
            self.evicted = self.evicted.saturating_sub(1);
        }
        self.purged = self.purged.max(Some(upto));
    }
}

/// Reads entries, opening each frame once.
pub(crate) fn read(lookups: Vec<Lookup>) -> Result<Vec<Entry>, DiskError> {
    let mut entries = Vec::with_capacity(lookups.len());
    let mut open: Option<(u64, u64, Vec<u8>)> = None;
    for lookup in lookups {
        let place = match lookup {
            Lookup::Cached(entry) => {
                entries.push(entry);
                continue;
            }
            Lookup::OnDisk(place) => place,
        };
        if open.as_ref().is_none_or(|(segment, offset, _)| (*segment, *offset) != (place.segment.number, place.offset)) {
            open = Some((place.segment.number, place.offset, place.segment.read_payload(place.offset, place.payload)?));
        }
        let payload = open.as_ref().map_or(&[][..], |(_, _, payload)| payload);
        let bytes = split_entries(payload).and_then(|(_, entries)| entries.get(place.nth).copied());
        let at = usize::try_from(place.offset).unwrap_or(usize::MAX);
        entries.push(codec::decode("log entry", bytes.ok_or_else(|| place.segment.corrupt(at, "an entry that was there is gone"))?)?);
    }
    Ok(entries)
}
