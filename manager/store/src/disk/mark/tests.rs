use super::*;
use crate::disk::key::DataKey;
use crate::disk::state::StateFile;
use crate::raft::types::{Entry, LogId, Vote};
use openraft::{CommittedLeaderId, EntryPayload};

const SEGMENT: u64 = 16 * 1024;

fn keys() -> Keys {
    DataKey::new([9; 32]).into()
}

/// A directory with a store's `raft` in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = Self(if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap());
        std::fs::create_dir(place.raft()).unwrap();
        place
    }

    fn raft(&self) -> PathBuf {
        self.0.path().join("raft")
    }

    /// As a store opens its log, with the check.
    fn open(&self, keys: &Keys) -> Result<Log, DiskError> {
        let path = self.raft().join("state");
        let state = match StateFile::open(&path, keys)? {
            Some(state) => state,
            None => StateFile::create(&path, keys, 1)?,
        };
        let mut log = Log::open(&self.raft().join("log"), keys, state, SEGMENT, 1024)?;
        // Also of a log that is refused: the next segment would be made in the directory that takes its place.
        log.shared().settle();
        check(&self.raft(), keys, log.votes())?;
        log.keep_mark(&self.raft());
        Ok(log)
    }

    fn says(&self) -> &'static str {
        match self.open(&keys()) {
            Err(DiskError::PutBack { what, .. }) => what,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it opens"),
        }
    }

    /// Everything in `raft`, to be put back later.
    fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_files(&self.raft(), copy.path());
        copy
    }

    fn put_back(&self, copy: &tempfile::TempDir) {
        std::fs::remove_dir_all(self.raft()).unwrap();
        copy_files(copy.path(), &self.raft());
    }
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy_files(&file.path(), &to);
        } else {
            std::fs::copy(file.path(), to).unwrap();
        }
    }
}

fn append(log: &mut Log, indices: std::ops::Range<u64>) {
    for index in indices {
        let entry = Entry { log_id: LogId::new(CommittedLeaderId::new(1, 1), index), payload: EntryPayload::Blank };
        log.shared().append(std::slice::from_ref(&entry));
        log.append(&[entry]).unwrap();
    }
}

#[test]
fn a_directory_that_is_put_back_as_a_whole_is_refused_and_the_present_one_is_not() {
    let place = Place::new();
    let mut log = place.open(&keys()).unwrap();
    append(&mut log, 0..20);
    log.close().unwrap();
    drop(log);
    let early = place.copy();
    let mut log = place.open(&keys()).unwrap();
    append(&mut log, 20..30);
    log.close().unwrap();
    drop(log);
    let late = place.copy();
    place.put_back(&early);
    assert!(place.says().contains("more records"));
    // Looking at it changes nothing: the right one is still taken.
    place.put_back(&late);
    let mut log = place.open(&keys()).unwrap();
    append(&mut log, 30..900);
    log.close().unwrap();
    drop(log);
    let newer = place.copy();
    place.put_back(&late);
    assert!(place.says().contains("more segments"));
    place.put_back(&newer);
    drop(place.open(&keys()).unwrap());
    // Who knows what happened may go on with what is there.
    place.put_back(&early);
    forget(&place.raft()).unwrap();
    drop(place.open(&keys()).unwrap());
}

#[test]
fn another_history_of_the_same_length_is_refused() {
    let place = Place::new();
    let mut log = place.open(&keys()).unwrap();
    append(&mut log, 0..5);
    drop(log);
    let fork = place.copy();
    let mark = std::fs::read(mark_path(&place.raft())).unwrap();
    let mut one = place.open(&keys()).unwrap();
    append(&mut one, 5..10);
    one.close().unwrap();
    drop(one);
    let marked = std::fs::read(mark_path(&place.raft())).unwrap();
    place.put_back(&fork);
    std::fs::write(mark_path(&place.raft()), mark).unwrap();
    let mut other = place.open(&keys()).unwrap();
    append(&mut other, 5..10);
    other.close().unwrap();
    drop(other);
    std::fs::write(mark_path(&place.raft()), marked).unwrap();
    assert!(place.says().contains("or others"));
}

#[test]
fn a_vote_that_is_put_back_alone_is_refused() {
    let place = Place::new();
    let mut log = place.open(&keys()).unwrap();
    append(&mut log, 0..3);
    let state = std::fs::read(place.raft().join("state")).unwrap();
    log.save_vote(Vote::new(7, 1)).unwrap();
    drop(log);
    std::fs::write(place.raft().join("state"), state).unwrap();
    assert!(place.says().contains("vote"));
}

#[test]
fn the_log_may_lose_entries_that_raft_takes_back_and_segments_that_a_snapshot_replaces() {
    let place = Place::new();
    let mut log = place.open(&keys()).unwrap();
    append(&mut log, 0..500);
    log.settle_mark();
    let previous = log.shared().index().truncate(300);
    log.truncate(300, previous).unwrap();
    drop(log);
    let mut log = place.open(&keys()).unwrap();
    append(&mut log, 300..900);
    // The mark is left in a segment that goes.
    let mark = std::fs::read(mark_path(&place.raft())).unwrap();
    let upto = LogId::new(CommittedLeaderId::new(1, 1), 2500);
    append(&mut log, 900..2501);
    log.shared().index().purge(upto);
    log.recycle(2500).unwrap();
    drop(log);
    std::fs::write(mark_path(&place.raft()), mark).unwrap();
    let mut log = place.open(&keys()).unwrap();
    log.shared().index().purge(LogId::new(CommittedLeaderId::new(2, 1), 4000));
    log.reset(LogId::new(CommittedLeaderId::new(2, 1), 4000)).unwrap();
    drop(log);
    drop(place.open(&keys()).unwrap());
}

#[test]
fn a_mark_of_any_moment_is_a_lower_bound_for_what_is_there_later() {
    let place = Place::new();
    let mut marks = Vec::new();
    let mut log = place.open(&keys()).unwrap();
    for round in 0..40 {
        append(&mut log, round * 20..(round + 1) * 20);
        log.note_mark(true);
        marks.push(std::fs::read(mark_path(&place.raft())).unwrap());
    }
    // It ends as a crash ends it.
    drop(log);
    for mark in marks {
        std::fs::write(mark_path(&place.raft()), mark).unwrap();
        drop(place.open(&keys()).unwrap());
    }
}

#[test]
fn one_copy_that_a_power_cut_left_torn_is_replaced_by_the_other_and_without_both_the_store_is_refused() {
    let place = Place::new();
    let mut log = place.open(&keys()).unwrap();
    append(&mut log, 0..20);
    log.note_mark(true);
    drop(log);
    let path = mark_path(&place.raft());
    let whole = std::fs::read(&path).unwrap();
    for torn in [0, SLOT] {
        let mut bytes = whole.clone();
        bytes[torn..torn + 512].fill(0);
        std::fs::write(&path, bytes).unwrap();
        drop(place.open(&keys()).unwrap());
        std::fs::write(&path, &whole).unwrap();
    }
    std::fs::write(&path, vec![7; 2 * SLOT]).unwrap();
    assert!(place.says().contains("data key"));
    std::fs::write(&path, b"").unwrap();
    assert!(place.says().contains("data key"));
}

#[test]
fn a_directory_of_before_its_key_changed_is_refused() {
    let place = Place::new();
    let old = keys();
    let mut log = place.open(&old).unwrap();
    append(&mut log, 0..20);
    log.close().unwrap();
    let early = place.copy();
    let new = old.with_new();
    old.become_those(&new);
    log.reseal().unwrap();
    append(&mut log, 20..25);
    log.close().unwrap();
    drop(log);
    drop(place.open(&new).unwrap());
    place.put_back(&early);
    assert!(place.says().contains("data key"));
}

#[test]
fn marks_cost_no_syncs_of_their_own_while_the_log_is_written() {
    let place = Place::new();
    let mut log = place.open(&keys()).unwrap();
    let path = mark_path(&place.raft());
    let before = std::fs::read(&path).unwrap();
    append(&mut log, 0..50);
    log.note_mark(true);
    assert_ne!(std::fs::read(&path).unwrap()[..SLOT], before[..SLOT]);
    // The copy that is durable stays untouched.
    assert_eq!(std::fs::read(&path).unwrap()[SLOT..], before[SLOT..]);
}
