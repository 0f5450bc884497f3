//! Small records in files that never grow: sealed, each in a slot of its own, written in place.

use super::DiskError;
use super::key::{NONCE_BYTES, SealKey, TAG_BYTES, random};
use crate::codec;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A slot is larger than any sector, so that writing one cannot hurt another.
pub(crate) const SLOT: usize = 4096;
const BOUND: usize = 32;

/// The bytes of a slot; `what` names the record in errors.
pub(crate) fn write_slot(magic: [u8; 4], what: &'static str, key: &SealKey, record: &impl Serialize) -> Result<Vec<u8>, DiskError> {
    let payload = codec::encode(what, record)?;
    let mut slot = Vec::with_capacity(SLOT);
    let nonce: [u8; NONCE_BYTES] = random();
    slot.extend_from_slice(&magic);
    slot.extend_from_slice(&u32::try_from(payload.len()).expect("the record is small").to_le_bytes());
    slot.extend_from_slice(&nonce);
    slot.resize(BOUND, 0);
    let bound = slot.clone();
    slot.extend_from_slice(&payload);
    key.seal(nonce, &bound, &mut slot, BOUND);
    slot.resize(SLOT, 0);
    Ok(slot)
}

/// `None`: damaged, of another kind, or sealed with another key.
pub(crate) fn read_slot<T: DeserializeOwned>(magic: [u8; 4], what: &'static str, key: &SealKey, slot: &[u8]) -> Option<T> {
    let bound = slot.get(..BOUND).filter(|bound| bound.starts_with(&magic))?.to_vec();
    let length = u32::from_le_bytes(bound[4..8].try_into().ok()?) as usize;
    let nonce = bound[8..8 + NONCE_BYTES].try_into().ok()?;
    let mut sealed = slot.get(BOUND..BOUND + length + TAG_BYTES)?.to_vec();
    let plain = key.open(nonce, &bound, &mut sealed)?;
    codec::decode(what, plain).ok()
}
