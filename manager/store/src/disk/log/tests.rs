use super::index::entry_size;
use super::segment::PREFACE;
use super::*;
use crate::raft::types::{Batch, Transaction, encode_transaction};
use openraft::{CommittedLeaderId, EntryPayload};
use skep_types::Timestamp;

const SEGMENT: u64 = 16 * 1024;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        // Thousands of syncs: in memory where there is such a place.
        let memory = Path::new("/dev/shm");
        Self(if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap())
    }

    fn key() -> Keys {
        super::super::key::DataKey::new([9; 32]).into()
    }

    fn open(&self) -> Result<Log, DiskError> {
        let path = self.0.path().join("state");
        let state = match StateFile::open(&path, &Self::key())? {
            Some(state) => state,
            None => StateFile::create(&path, &Self::key(), 1)?,
        };
        let log = Log::open(&self.0.path().join("log"), &Self::key(), state, SEGMENT, 1024)?;
        log.shared.spare.settle();
        Ok(log)
    }

    fn segment(&self, number: u64) -> PathBuf {
        segment::segment_path(&self.0.path().join("log"), number)
    }

    /// A copy of everything, as a disk image taken after a power cut.
    fn copy(&self) -> Self {
        let copy = Self::new();
        std::fs::create_dir(copy.0.path().join("log")).unwrap();
        for dir in ["", "log"] {
            for file in std::fs::read_dir(self.0.path().join(dir)).unwrap() {
                let file = file.unwrap();
                if file.file_type().unwrap().is_file() {
                    std::fs::copy(file.path(), copy.0.path().join(dir).join(file.file_name())).unwrap();
                }
            }
        }
        copy
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn entry(term: u64, index: u64, size: usize) -> Entry {
    let transaction = Transaction {
        now: Timestamp(i64::try_from(index).unwrap()),
        actions: vec![skep_types::Action::Remove { kind: skep_types::Kind::Node, id: "x".repeat(size), version: None }],
    };
    let part = encode_transaction(&transaction).unwrap();
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(Batch::new(vec![transaction], &[part])) }
}

fn append(log: &mut Log, entries: &[Entry]) {
    log.shared.append(entries);
    log.append(entries).unwrap();
}

/// Log ids and sizes of everything in the log, read back from the disk.
fn content(log: &Log) -> Vec<(LogId, usize)> {
    let lookups = log.shared.index().lookup(0, u64::MAX);
    read(lookups).unwrap().iter().map(|entry| (entry.log_id, entry_size(entry))).collect()
}

fn filled(entries: u64, size: usize) -> (Dir, Vec<(LogId, usize)>) {
    let dir = Dir::new();
    let mut log = dir.open().unwrap();
    for index in 0..entries {
        append(&mut log, &[entry(1, index, size)]);
    }
    let all = content(&log);
    assert_eq!(all.len() as u64, entries);
    (dir, all)
}

fn newest(dir: &Dir) -> u64 {
    (1..).take_while(|number| dir.segment(*number).exists()).last().unwrap()
}

/// Offsets and sizes of the frames of a segment.
fn frames(dir: &Dir, number: u64) -> Vec<(usize, usize)> {
    let (segment, bytes) = Segment::open(&dir.0.path().join("log"), number, &Dir::key()).unwrap();
    let scan = segment.scan(&bytes, None, true).unwrap();
    scan.frames.iter().map(|frame| (frame.offset, frame_size(frame.payload.len()))).collect()
}

#[test]
fn a_log_reads_back_over_many_segments() {
    let (dir, all) = filled(200, 300);
    assert!(newest(&dir) > 3);
    let log = dir.open().unwrap();
    assert_eq!(content(&log), all);
    assert_eq!(log.shared.index().last(), Some(id(1, 199)));
    assert_eq!(log.shared.index().purged(), None);
}

#[test]
fn entries_appended_together_share_a_frame_and_read_one_by_one() {
    let dir = Dir::new();
    let mut log = dir.open().unwrap();
    let before = super::super::syncs();
    append(&mut log, &(0..20).map(|index| entry(1, index, 50)).collect::<Vec<_>>());
    assert!(super::super::syncs() > before);
    drop(log);
    assert_eq!(frames(&dir, 1).len(), 2, "the start and the entries");
    let log = dir.open().unwrap();
    assert_eq!(content(&log).len(), 20);
    assert_eq!(read(log.shared.index().lookup(7, 9)).unwrap()[1].log_id, id(1, 8));
}

#[test]
fn an_append_larger_than_a_segment_is_split() {
    let dir = Dir::new();
    let mut log = dir.open().unwrap();
    append(&mut log, &(0..30).map(|index| entry(1, index, 2000)).collect::<Vec<_>>());
    drop(log);
    assert_eq!(content(&dir.open().unwrap()).len(), 30);
}

#[test]
fn truncated_entries_stay_away_also_over_segments() {
    let (dir, all) = filled(100, 300);
    let mut log = dir.open().unwrap();
    let previous = log.shared.index().truncate(20);
    assert_eq!(previous, Some(id(1, 19)));
    log.truncate(20, previous).unwrap();
    append(&mut log, &[entry(2, 20, 10)]);
    drop(log);
    let log = dir.open().unwrap();
    let mut wanted = all[..20].to_vec();
    wanted.push((id(2, 20), content(&log)[20].1));
    assert_eq!(content(&log), wanted);
}

#[test]
fn a_snapshot_ahead_of_the_log_starts_it_anew() {
    let (dir, _) = filled(10, 300);
    let mut log = dir.open().unwrap();
    log.shared.index().purge(id(3, 500));
    log.reset(id(3, 500)).unwrap();
    append(&mut log, &[entry(3, 501, 10)]);
    drop(log);
    let log = dir.open().unwrap();
    assert_eq!(log.shared.index().purged(), Some(id(3, 500)));
    assert_eq!(content(&log)[0].0, id(3, 501));
}

#[test]
fn purged_segments_are_used_again_and_the_rest_reads_back() {
    let (dir, all) = filled(200, 300);
    let mut log = dir.open().unwrap();
    let files = || std::fs::read_dir(dir.0.path().join("log")).unwrap().count();
    let before = files();
    log.shared.index().purge(id(1, 150));
    log.recycle(150).unwrap();
    assert!(files() < before);
    for index in 200..400 {
        append(&mut log, &[entry(1, index, 300)]);
        log.shared.index().purge(id(1, index - 50));
        log.recycle(index - 50).unwrap();
        assert!(files() <= 3 + 3 + POOL, "the log does not grow: {}", files());
    }
    drop(log);
    let log = dir.open().unwrap();
    let purged = log.shared.index().purged().unwrap();
    assert!(purged.index > 150 && purged.index <= 349, "{purged:?}");
    assert_eq!(content(&log).len() as u64, 399 - purged.index);
    assert!(all.len() < 400);
}

#[test]
fn what_is_committed_is_remembered_with_the_next_entry() {
    let dir = Dir::new();
    let mut log = dir.open().unwrap();
    append(&mut log, &[entry(1, 0, 10), entry(1, 1, 10)]);
    log.shared.set_committed(Some(id(1, 1)));
    append(&mut log, &[entry(1, 2, 10)]);
    drop(log);
    assert_eq!(dir.open().unwrap().shared.committed(), Some(id(1, 1)));
}

/// Opens a damaged copy; gives the content if it opens.
fn reopened(dir: &Dir, number: u64, damage: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<(LogId, usize)>, DiskError> {
    let copy = dir.copy();
    let mut bytes = std::fs::read(copy.segment(number)).unwrap();
    damage(&mut bytes);
    std::fs::write(copy.segment(number), &bytes).unwrap();
    let mut log = copy.open()?;
    let seen = content(&log);
    // Whatever was cut, the log goes on and reads back.
    let next = log.shared.index().last().map_or(0, |id| id.index + 1);
    append(&mut log, &[entry(2, next, 40)]);
    drop(log);
    let again = content(&copy.open().unwrap());
    assert_eq!(again[..again.len() - 1], seen);
    Ok(seen)
}

#[test]
fn a_write_torn_at_any_byte_is_cut_and_nothing_else_is_lost() {
    let (dir, all) = filled(6, 300);
    let (offset, size) = *frames(&dir, 1).last().unwrap();
    let mut whole = 0;
    for from in offset..offset + size {
        let seen = reopened(&dir, 1, |bytes| bytes[from..].fill(0)).unwrap();
        if seen == all {
            whole += 1; // only padding was missing
        } else {
            assert_eq!(seen, all[..5], "torn at {from}");
        }
    }
    assert!(whole <= 64);
}

#[test]
fn a_write_of_which_any_sectors_are_missing_is_cut() {
    let (dir, all) = filled(4, 1800);
    let (offset, size) = *frames(&dir, 1).last().unwrap();
    let sectors: Vec<usize> = (offset / 512..=(offset + size - 1) / 512).collect();
    assert!(sectors.len() >= 4);
    for lost in 1..1u32 << sectors.len() {
        let seen = reopened(&dir, 1, |bytes| {
            for (nth, sector) in sectors.iter().enumerate().filter(|(nth, _)| lost & (1 << nth) != 0) {
                let _ = nth;
                bytes[offset.max(sector * 512)..(offset + size).min((sector + 1) * 512)].fill(0);
            }
        });
        assert_eq!(seen.unwrap(), all[..3], "sectors {lost:b}");
    }
}

#[test]
fn a_flip_of_any_byte_is_noticed_or_harmless() {
    let (dir, all) = filled(60, 300);
    let last = newest(&dir);
    for number in [1, last] {
        let end: usize = frames(&dir, number).last().map(|(offset, size)| offset + size).unwrap();
        let mut refused = 0;
        // Every byte of the preface, the first frame and the last one; those between are alike.
        let from = frames(&dir, number).last().map(|(offset, _)| *offset).unwrap();
        for at in (0..256).chain((256..from).step_by(13)).chain(from..end) {
            match reopened(&dir, number, |bytes| bytes[at] ^= 1 << (at % 8)) {
                Ok(seen) => assert_eq!(seen, all, "byte {at} of segment {number}"),
                Err(DiskError::Corrupt { path, what, .. }) => {
                    refused += 1;
                    assert!(
                        path.ends_with(dir.segment(number).file_name().unwrap())
                            || path.ends_with(dir.segment(number + 1).file_name().unwrap()),
                        "{what}"
                    );
                }
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        assert!(refused > 0);
    }
}

#[test]
fn lost_blocks_before_the_end_are_not_taken_for_a_torn_write() {
    let (dir, _) = filled(6, 300);
    let all = frames(&dir, 1);
    for (offset, size) in &all[..all.len() - 1] {
        let seen = reopened(&dir, 1, |bytes| bytes[*offset..offset + size].fill(0));
        assert!(matches!(seen, Err(DiskError::Corrupt { .. })), "frame at {offset}: {seen:?}");
    }
}

#[test]
fn swapped_records_and_segments_are_noticed() {
    let (dir, _) = filled(100, 300);
    let all = frames(&dir, 1);
    let (a, b) = (all[3], all[4]);
    assert_eq!(a.1, b.1);
    let swapped = reopened(&dir, 1, |bytes| {
        let (first, second) = (bytes[a.0..a.0 + a.1].to_vec(), bytes[b.0..b.0 + b.1].to_vec());
        bytes[a.0..a.0 + a.1].copy_from_slice(&second);
        bytes[b.0..b.0 + b.1].copy_from_slice(&first);
    });
    assert!(matches!(swapped, Err(DiskError::Corrupt { .. })), "{swapped:?}");

    let copy = dir.copy();
    let (first, second) = (std::fs::read(copy.segment(1)).unwrap(), std::fs::read(copy.segment(2)).unwrap());
    std::fs::write(copy.segment(1), second).unwrap();
    std::fs::write(copy.segment(2), first).unwrap();
    assert!(matches!(copy.open(), Err(DiskError::Corrupt { .. })));
}

#[test]
fn an_older_copy_of_the_newest_segment_is_noticed_once_another_follows() {
    let (dir, _) = filled(20, 300);
    let older = std::fs::read(dir.segment(1)).unwrap();
    let mut log = dir.open().unwrap();
    for index in 20..100 {
        append(&mut log, &[entry(1, index, 300)]);
    }
    drop(log);
    let rolled_back = reopened(&dir, 1, |bytes| *bytes = older);
    assert!(matches!(rolled_back, Err(DiskError::Corrupt { .. })), "{rolled_back:?}");
}

#[test]
fn missing_and_shortened_segments_are_refused() {
    let (dir, _) = filled(200, 300);
    let last = newest(&dir);
    for number in [2, last] {
        let copy = dir.copy();
        std::fs::remove_file(copy.segment(number)).unwrap();
        assert!(matches!(copy.open(), Err(DiskError::MissingFile { .. })), "segment {number}");
    }
    for length in [0, 1, PREFACE, PREFACE + 100, 8192, usize::try_from(SEGMENT).unwrap() - 1] {
        let seen = reopened(&dir, last, |bytes| bytes.truncate(length));
        assert!(matches!(seen, Err(DiskError::Corrupt { .. })), "cut to {length}: {seen:?}");
    }
}

#[test]
fn another_data_key_opens_nothing() {
    let (dir, _) = filled(3, 30);
    let (segment, bytes) = Segment::open(&dir.0.path().join("log"), 1, &super::super::key::DataKey::new([8; 32]).into()).unwrap();
    assert!(matches!(segment.scan(&bytes, None, true), Err(DiskError::Corrupt { .. })));
}

#[test]
fn nothing_readable_is_on_the_disk() {
    let (dir, _) = filled(3, 3000);
    let bytes = std::fs::read(dir.segment(1)).unwrap();
    assert!(!bytes.windows(16).any(|window| window == b"xxxxxxxxxxxxxxxx"));
}

#[test]
fn damage_to_the_last_record_of_a_closed_log_is_always_noticed() {
    let (dir, all) = filled(4, 300);
    let mut log = dir.open().unwrap();
    log.close().unwrap();
    drop(log);
    let frames = frames(&dir, 1);
    let (offset, size) = frames[frames.len() - 2];
    let gone = reopened(&dir, 1, |bytes| bytes[offset..offset + size].fill(0));
    assert!(matches!(gone, Err(DiskError::Corrupt { .. })));
    assert_eq!(reopened(&dir, 1, |_| {}).unwrap(), all);
}

#[test]
fn a_record_of_another_history_does_not_fit_in() {
    let (dir, _) = filled(5, 300);
    let branch = |term: u64| {
        let copy = dir.copy();
        let mut log = copy.open().unwrap();
        append(&mut log, &[entry(term, 5, 300)]);
        append(&mut log, &[entry(3, 6, 300)]);
        drop(log);
        copy
    };
    // The same place, index, size, segment and key; only what follows tells them apart.
    let (one, other) = (branch(1), branch(2));
    let (offset, size) = frames(&one, 1)[6];
    assert_eq!(frames(&other, 1)[6], (offset, size));
    let stray = std::fs::read(other.segment(1)).unwrap()[offset..offset + size].to_vec();
    let mixed = reopened(&one, 1, |bytes| bytes[offset..offset + size].copy_from_slice(&stray));
    assert!(matches!(mixed, Err(DiskError::Corrupt { .. })), "{mixed:?}");
}
