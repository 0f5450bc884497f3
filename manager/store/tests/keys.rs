//! Locked stores, backups, and what is made of them.

mod support;

use skep_store::{Alone, BackupError, DataKey, DiskError, Member, Store, StoreConfig, StoreError};
use skep_types::{ClusterView, NodeId, UnlockKey};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::{Cluster, create, member};

fn config(dir: &Path) -> StoreConfig {
    StoreConfig { segment_bytes: 256 * 1024, snapshot_entries: 40, keep_entries: 10, ..StoreConfig::new(dir.join("raft")) }
}

fn key(byte: u8) -> UnlockKey {
    UnlockKey::new([byte; 32])
}

async fn filled(config: StoreConfig, nodes: u64) -> Store {
    let store = Store::bootstrap(config, 1, member(1), Arc::new(Alone)).await.unwrap();
    for number in 0..nodes {
        store.propose(create(number)).await.unwrap();
    }
    store
}

async fn taken(store: &Store, key: &UnlockKey) -> Vec<u8> {
    let mut backup = store.backup(key);
    let mut bytes = Vec::new();
    while let Some(chunk) = backup.next().await {
        bytes.extend(chunk.unwrap());
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_store_opens_with_its_unlock_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raft");
    assert!(!Store::is_locked(&path).unwrap());
    let store = filled(config(dir.path()), 20).await;
    assert!(!Store::is_locked(&path).unwrap());
    store.rewrap(Some(&key(1))).await.unwrap();
    assert!(Store::is_locked(&path).unwrap());
    store.propose(create(100)).await.unwrap();
    let hash = store.state_hash();
    store.shutdown().await;
    drop(store);
    let open = |unlock| Store::open(StoreConfig { unlock, ..config(dir.path()) }, Arc::new(Alone));
    let locked = open(None).await.unwrap_err();
    assert!(matches!(locked, StoreError::Disk(DiskError::Locked { .. })), "{locked}");
    let wrong = open(Some(key(2))).await.unwrap_err();
    assert!(matches!(wrong, StoreError::Disk(DiskError::WrongUnlockKey { .. })), "{wrong}");
    let store = open(Some(key(1))).await.unwrap();
    store.wait_leader(Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.state_hash(), hash);
    store.rewrap(Some(&key(2))).await.unwrap();
    store.rewrap(None).await.unwrap();
    store.shutdown().await;
    drop(store);
    // A key that is not needed does no harm.
    open(Some(key(9))).await.unwrap().shutdown().await;
}

/// The bytes of the one key that a plain file holds.
fn plain_key(path: &Path) -> DataKey {
    let text = std::fs::read_to_string(path).unwrap();
    let hex = text.lines().nth(1).unwrap().strip_prefix("plain ").unwrap();
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    DataKey::new(bytes.try_into().unwrap())
}

/// How many keys a sealed file holds.
fn sealed_keys(path: &Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    (text.trim().rsplit(' ').next().unwrap().len() / 2 - 16) / 32
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_there_in_clear_opens_nothing_that_is_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let dek = dir.path().join("raft/dek");
    let locked = || StoreConfig { unlock: Some(key(1)), ..config(dir.path()) };
    let store = filled(config(dir.path()), 100).await;
    let clear = plain_key(&dek);
    store.rewrap(Some(&key(1))).await.unwrap();
    assert_eq!(sealed_keys(&dek), 2);
    // A second time only the sealing changes.
    store.rewrap(Some(&key(1))).await.unwrap();
    assert_eq!(sealed_keys(&dek), 2);
    for number in 200..1200 {
        store.propose(create(number)).await.unwrap();
    }
    let purged = store.status().last_log_index.unwrap() - 300;
    support::until("old segments are gone", || store.status().purged_index > Some(purged)).await;
    let hash = store.state_hash();
    store.shutdown().await;
    drop(store);
    let store = Store::open(locked(), Arc::new(Alone)).await.unwrap();
    store.wait_leader(Duration::from_secs(60)).await.unwrap();
    assert_eq!((store.state_hash(), sealed_keys(&dek)), (hash, 1), "no file needs the former key any more");
    store.shutdown().await;
    drop(store);
    let stolen = Store::open(StoreConfig { key: Some(clear), ..config(dir.path()) }, Arc::new(Alone)).await;
    assert!(matches!(stolen, Err(StoreError::Disk(DiskError::Corrupt { .. }))), "{stolen:?}");
    let store = Store::open(locked(), Arc::new(Alone)).await.unwrap();
    store.wait_leader(Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.state_hash(), hash);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_can_be_born_locked() {
    let dir = tempfile::tempdir().unwrap();
    let config = || StoreConfig { unlock: Some(key(1)), ..config(dir.path()) };
    filled(config(), 3).await.shutdown().await;
    assert!(Store::is_locked(&dir.path().join("raft")).unwrap());
    Store::open(config(), Arc::new(Alone)).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_becomes_a_store_with_the_same_state() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = filled(config(dir.path()), 100).await;
    let bytes = taken(&store, &key(1)).await;
    let hash = store.state_hash();
    // What comes later is not in it.
    store.propose(create(500)).await.unwrap();
    store.shutdown().await;
    let restore = async |dir: &Path, bytes: &[u8], unlock: &UnlockKey| {
        let config = StoreConfig { unlock: Some(key(7)), ..config(dir) };
        Store::restore(config, 99, member(99), Arc::new(Alone), std::io::Cursor::new(bytes.to_vec()), unlock).await
    };
    let wrong = restore(other.path(), &bytes, &key(2)).await.unwrap_err();
    assert!(matches!(wrong, StoreError::Backup(BackupError::WrongKey)), "{wrong}");
    let cut = restore(other.path(), &bytes[..bytes.len() - 1], &key(1)).await.unwrap_err();
    assert!(matches!(cut, StoreError::Backup(BackupError::Cut)), "{cut}");
    assert!(!other.path().join("raft").exists());
    let taken = restore(dir.path(), &bytes, &key(1)).await.unwrap_err();
    assert!(matches!(taken, StoreError::Exists { .. }), "{taken}");

    let restored = restore(other.path(), &bytes, &key(1)).await.unwrap();
    assert_eq!((restored.state_hash(), restored.raft_id()), (hash, 99));
    assert_eq!(restored.status().members.len(), 1);
    assert_eq!(restored.status().members[0].member, member(99));
    assert!(Store::is_locked(&other.path().join("raft")).unwrap());
    for number in 600..700 {
        restored.propose(create(number)).await.unwrap();
    }
    let hash = restored.state_hash();
    restored.shutdown().await;
    drop(restored);
    let again = Store::open(StoreConfig { unlock: Some(key(7)), ..config(other.path()) }, Arc::new(Alone)).await.unwrap();
    again.wait_leader(Duration::from_secs(60)).await.unwrap();
    assert_eq!((again.state_hash(), again.raft_id()), (hash, 99));
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_manager_of_three_is_enough_to_recover() {
    let cluster = Cluster::of(3).await;
    for number in 0..130 {
        cluster.write(number).await;
    }
    cluster.same_everywhere().await;
    let leader = cluster.leader().await;
    let survivor = cluster.ids().into_iter().find(|id| *id != leader.raft_id()).unwrap();
    let lost: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != survivor).collect();
    let hash = cluster.store(survivor).state_hash();
    // Stopped first, so that the two that are lost do not write on.
    for id in cluster.ids() {
        cluster.stop(id).await;
    }
    let config = || support::config(cluster.dir.path(), survivor);
    let (store, recovery) = Store::recover(config(), 77, member(77), Arc::new(Alone)).await.unwrap();
    println!("{recovery:?}");
    assert_eq!((store.state_hash(), store.raft_id()), (hash, 77));
    assert_eq!(recovery.members_dropped.iter().map(|member| member.raft_id).collect::<Vec<_>>(), lost);
    assert!(recovery.applied >= recovery.committed && recovery.uncommitted_kept < 10);
    let old = recovery.old_dir.unwrap();
    assert!(old.ends_with(format!("{survivor}.before-recovery-1")) && old.join("state").exists());
    store.propose(create(900)).await.unwrap();
    store.shutdown().await;
    drop(store);
    // Once more, as if the first had not been enough.
    let (store, recovery) = Store::recover(config(), 78, member(78), Arc::new(Alone)).await.unwrap();
    assert!(recovery.members_dropped.is_empty() && recovery.old_dir.unwrap().ends_with(format!("{survivor}.before-recovery-2")));
    assert!(store.view().node(&NodeId::for_test(900)).is_some());
    store.shutdown().await;
    // The new group takes members; the old one's managers are none of them.
    let none = Store::recover(StoreConfig::new(cluster.dir.path().join("none")), 1, Member::default(), Arc::new(Alone)).await;
    assert!(matches!(none, Err(StoreError::Empty { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_keeps_what_nobody_confirmed_and_says_so() {
    let cluster = Cluster::of(3).await;
    for number in 0..10 {
        cluster.write(number).await;
    }
    let leader = cluster.leader().await;
    let id = leader.raft_id();
    cluster.isolate(id);
    let proposed = tokio::spawn({
        let leader = leader.clone();
        async move { leader.propose(create(500)).await }
    });
    let applied = leader.status().applied_index;
    support::until("it is in the log", || leader.status().last_log_index > applied).await;
    assert_eq!(leader.recovery().uncommitted_kept, 1);
    cluster.stop(id).await;
    assert!(proposed.await.unwrap().is_err(), "it was not acknowledged");
    drop(leader);
    let (store, recovery) = Store::recover(support::config(cluster.dir.path(), id), 77, member(77), Arc::new(Alone)).await.unwrap();
    println!("{recovery:?}");
    assert!(recovery.uncommitted_kept >= 1 && recovery.applied > recovery.committed);
    assert!(store.view().node(&NodeId::for_test(500)).is_some());
    assert_eq!(store.view().revision(), recovery.revision);
    store.shutdown().await;
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_use_is_not_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(config(dir.path()), 3).await;
    let busy = Store::recover(config(dir.path()), 5, member(5), Arc::new(Alone)).await.unwrap_err();
    assert!(matches!(busy, StoreError::Disk(DiskError::InUse { .. })), "{busy}");
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_store_stays_locked_when_it_is_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let locked = || StoreConfig { unlock: Some(key(1)), ..config(dir.path()) };
    let store = filled(locked(), 60).await;
    let hash = store.state_hash();
    store.shutdown().await;
    drop(store);
    assert!(matches!(
        Store::recover(config(dir.path()), 5, member(5), Arc::new(Alone)).await,
        Err(StoreError::Disk(DiskError::Locked { .. }))
    ));
    let (store, _) = Store::recover(locked(), 5, member(5), Arc::new(Alone)).await.unwrap();
    assert_eq!(store.state_hash(), hash);
    assert!(Store::is_locked(&dir.path().join("raft")).unwrap());
    store.shutdown().await;
}
