//! What the frames of the log hold.

use crate::raft::types::LogId;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(super) struct StartRecord {
    /// The last entry before the segment.
    pub(super) last: Option<LogId>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TruncateRecord {
    pub(super) since: u64,
    /// The entry before `since`.
    pub(super) previous: Option<LogId>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ResetRecord {
    pub(super) upto: LogId,
}

/// The committed mark and the encoded entries of a frame.
pub(super) fn split_entries(payload: &[u8]) -> Option<(u64, Vec<&[u8]>)> {
    let committed = u64::from_le_bytes(payload.get(..8)?.try_into().ok()?);
    let count = u32::from_le_bytes(payload.get(8..12)?.try_into().ok()?);
    let mut rest = payload.get(12..)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let length = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        entries.push(rest.get(4..4 + length)?);
        rest = &rest[4 + length..];
    }
    rest.is_empty().then_some((committed, entries))
}
