//! One number for the whole state, to compare managers.

use super::Tables;
use crate::codec;
use crate::compact::Record;
use ring::digest;
use serde::{Deserialize, Serialize};
use skep_types::Object;
use std::fmt;

/// SHA-256 over the revision and all objects in order of kind and id. It depends on what is stored, not on how it got
/// there, and stays the same over a restart.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash(pub [u8; 32]);

impl fmt::Display for StateHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// Takes the objects one by one, as a snapshot passes by.
pub(crate) struct StateHasher(digest::Context);

impl StateHasher {
    pub(crate) fn new(revision: skep_types::Version) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&revision.0.to_be_bytes());
        Self(context)
    }

    /// `encoded` is the object as [`encode_object`] writes it.
    pub(crate) fn add(&mut self, encoded: &[u8]) {
        self.0.update(&(encoded.len() as u64).to_be_bytes());
        self.0.update(encoded);
    }

    pub(crate) fn finish(self) -> StateHash {
        let digest = self.0.finish();
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        StateHash(bytes)
    }
}

/// An object as snapshots and the hash see it.
pub(crate) fn encode_object(tables: &Tables, object: Object, bytes: &mut Vec<u8>) -> Result<(), codec::CodecError> {
    bytes.clear();
    codec::encode_into("object", &Record::new(object, |task| tables.service_spec(task)), bytes)
}

impl Tables {
    /// Costs a walk over everything, about 5 µs an object: for tests, snapshots and comparisons, not for every commit.
    #[must_use]
    pub fn state_hash(&self) -> StateHash {
        let mut hasher = StateHasher::new(self.revision);
        let mut bytes = Vec::new();
        for object in self.objects() {
            encode_object(self, object, &mut bytes).expect("objects of the store came through this encoding or were made of its types");
            hasher.add(&bytes);
        }
        hasher.finish()
    }
}
