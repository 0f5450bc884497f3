//! Reading the log at the start: everything is checked before anything is used.

use super::index::Place;
use super::record::{ResetRecord, StartRecord, TruncateRecord, split_entries};
use super::{Held, Log, POOL};
use crate::codec;
use crate::disk::files::{self, FileExt};
use crate::disk::frame::FrameKind;
use crate::disk::segment::{self, PREFACE, Segment};
use crate::disk::{DiskError, counted_sync, failed};
use crate::raft::types::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Log {
    pub(super) fn check_numbers(&self, numbers: &[u64]) -> Result<(), DiskError> {
        for pair in numbers.windows(2) {
            if pair[1] != pair[0] + 1 {
                return Err(DiskError::MissingFile { path: segment::segment_path(&self.dir, pair[0] + 1) });
            }
        }
        let newest = self.state.state().newest_segment;
        if numbers.last().copied().unwrap_or(0) < newest {
            return Err(DiskError::MissingFile { path: segment::segment_path(&self.dir, newest) });
        }
        Ok(())
    }

    pub(super) fn replay(&mut self, numbers: &[u64]) -> Result<(), DiskError> {
        let mut chain = None;
        for number in numbers {
            let last = numbers.last() == Some(number);
            let (segment, bytes) = Segment::open(&self.dir, *number, &self.keys)?;
            let scan = segment.scan(&bytes, chain, last)?;
            if scan.torn {
                cut(&segment, &bytes, scan.end)?;
            }
            let segment = Arc::new(segment);
            let mut held = Held { segment: Arc::clone(&segment), highest: None };
            if scan.frames.first().is_none_or(|frame| frame.kind != FrameKind::Start) {
                return Err(segment.corrupt(PREFACE, "the first record is missing"));
            }
            for frame in scan.frames {
                chain = Some(frame.tag);
                self.replay_frame(&mut held, &frame, self.held.is_empty())?;
            }
            self.held.push_back(held);
            self.end = scan.end as u64;
            self.size = bytes.len() as u64;
        }
        let last = self.shared.index().last();
        self.set_last(last);
        self.tag = chain.unwrap_or_default();
        Ok(())
    }

    fn replay_frame(&self, held: &mut Held, frame: &segment::Frame, first_segment: bool) -> Result<(), DiskError> {
        let segment = &held.segment;
        let mut index = self.shared.index();
        match frame.kind {
            FrameKind::Start => {
                let start: StartRecord = codec::decode("log segment", &frame.payload)?;
                if first_segment {
                    index.begin_after(start.last);
                } else if start.last != index.last() {
                    return Err(segment.corrupt(frame.offset, "entries before this segment are missing"));
                }
            }
            FrameKind::Entries => {
                let (committed, entries) =
                    split_entries(&frame.payload).ok_or_else(|| segment.corrupt(frame.offset, "a record has an unknown form"))?;
                self.shared.committed.fetch_max(committed, Ordering::Relaxed);
                for (nth, bytes) in entries.into_iter().enumerate() {
                    let entry: Entry = codec::decode("log entry", bytes)?;
                    if entry.log_id.index != index.last().map_or(0, |id| id.index + 1) {
                        return Err(segment.corrupt(frame.offset, "an entry is missing or double"));
                    }
                    held.highest = held.highest.max(Some(entry.log_id.index));
                    let place = Place { segment: Arc::clone(segment), offset: frame.offset as u64, payload: frame.payload.len(), nth };
                    index.replayed(entry.log_id, place);
                }
            }
            FrameKind::Truncate => {
                let record: TruncateRecord = codec::decode("log record", &frame.payload)?;
                index.truncate(record.since);
                if index.is_empty() {
                    index.begin_after(record.previous);
                }
            }
            FrameKind::Reset => {
                let record: ResetRecord = codec::decode("log record", &frame.payload)?;
                index.truncate(0);
                index.begin_after(Some(record.upto));
            }
            FrameKind::Closed => {}
        }
        Ok(())
    }
}

/// The segments by number and the files kept for use.
pub(super) fn list(dir: &Path) -> Result<(Vec<u64>, Vec<PathBuf>), DiskError> {
    let (mut numbers, mut pool) = (Vec::new(), Vec::new());
    for file in files::list(dir).map_err(failed("list", dir))? {
        let Some(name) = file.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(number) = segment::segment_number(name) {
            numbers.push(number);
        } else if name.starts_with("used-") {
            pool.push(file);
        }
    }
    numbers.sort_unstable();
    while pool.len() > POOL {
        if let Some(path) = pool.pop() {
            files::remove_file(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok((numbers, pool))
}

/// Zeroes what a crash left behind the last whole record.
fn cut(segment: &Segment, bytes: &[u8], end: usize) -> Result<(), DiskError> {
    tracing::warn!(file = %segment.path.display(), offset = end, "cut off a record that a crash left unfinished; it was never acknowledged");
    let zeros = vec![0; bytes.len() - end];
    segment.file.write_all_at(&zeros, end as u64).map_err(failed("cut the log segment", &segment.path))?;
    counted_sync();
    segment.file.sync_data().map_err(failed("sync the log segment", &segment.path))
}
