use super::*;
use skep_types::{Action, Node, NodeId, Object, Timestamp};
use std::sync::Arc;

fn tables(objects: u64) -> Tables {
    let mut tables = Tables::new();
    for number in 0..objects {
        let mut node = Node::new(NodeId::for_test(number));
        node.status.message = "readable".repeat(20);
        let create = Action::Create(Object::Node(Arc::new(node)));
        tables.apply(Version(number + 1), Timestamp(1), &[create]).unwrap();
    }
    tables
}

fn written(dir: &Path, tables: &Tables) -> (PathBuf, SnapshotHead) {
    let path = dir.join("x.snap");
    let head = SnapshotHead { last: None, membership: Membership::default(), revision: tables.revision(), objects: tables.len() as u64 };
    assert_eq!(write(&path, &key(), &head, tables).unwrap(), tables.state_hash());
    (path, head)
}

fn key() -> Keys {
    super::super::key::DataKey::new([5; 32]).into()
}

#[test]
fn a_snapshot_gives_the_same_state_back() {
    let dir = tempfile::tempdir().unwrap();
    // None, one chunk, several.
    for objects in [0, 3, 1_000] {
        let tables = tables(objects);
        let (path, head) = written(dir.path(), &tables);
        let (read, loaded) = load(&path, &key()).unwrap();
        assert_eq!(read, head);
        assert_eq!(loaded.state_hash(), tables.state_hash());
        assert!(!std::fs::read(&path).unwrap().windows(16).any(|window| window == b"readablereadable"));
    }
}

#[test]
fn a_flip_of_any_byte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = written(dir.path(), &tables(6));
    let intact = std::fs::read(&path).unwrap();
    for at in 0..intact.len() {
        let mut bytes = intact.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(load(&path, &key()), Err(DiskError::Corrupt { .. })), "byte {at}");
    }
}

#[test]
fn a_snapshot_cut_anywhere_or_put_together_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = written(dir.path(), &tables(1_000));
    let intact = std::fs::read(&path).unwrap();
    assert!(intact.len() > 3 * SEALED);
    let cuts = (0..intact.len()).step_by(997).chain((0..4).map(|chunk| PREFACE + chunk * SEALED)).filter(|cut| *cut < intact.len());
    for cut in cuts {
        std::fs::write(&path, &intact[..cut]).unwrap();
        assert!(load(&path, &key()).is_err(), "cut at {cut}");
    }
    // More behind the end, and two chunks changed about.
    std::fs::write(&path, [&intact[..], &[0; 100]].concat()).unwrap();
    assert!(load(&path, &key()).is_err());
    let chunk = |nth: usize| &intact[PREFACE + nth * SEALED..PREFACE + (nth + 1) * SEALED];
    let swapped = [&intact[..PREFACE], chunk(1), chunk(0), &intact[PREFACE + 2 * SEALED..]].concat();
    std::fs::write(&path, swapped).unwrap();
    assert!(load(&path, &key()).is_err());
    assert!(load(&dir.path().join("none"), &key()).is_err());
}

#[test]
fn only_the_newest_finished_snapshot_counts() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = SnapshotDir::open(dir.path(), &key()).unwrap();
    let id = |index| LogId::new(openraft::CommittedLeaderId::new(1, 1), index);
    for index in [300, 20] {
        std::fs::write(snapshots.path(id(index)), b"").unwrap();
    }
    std::fs::write(snapshots.temporary("built"), b"half").unwrap();
    assert_eq!(snapshots.newest().unwrap(), Some(snapshots.path(id(300))));
    snapshots.tidy().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    std::fs::write(snapshots.temporary("built"), b"done").unwrap();
    let path = snapshots.publish(&snapshots.temporary("built"), id(400)).unwrap();
    assert_eq!(snapshots.all().unwrap(), [path]);
}
