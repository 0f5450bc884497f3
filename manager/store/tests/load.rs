//! Many at once, nobody at all, and no space.

mod support;

use skep_store::{Alone, DiskError, Member, ProposeError, Store, StoreConfig, StoreError};
use skep_types::{Action, ClusterView, Node, NodeId, Object};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// `syncs` counts for the whole process, so that these tests take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn bootstrap(config: StoreConfig) -> Store {
    Store::bootstrap(config, 1, Member::default(), Arc::new(Alone)).await.unwrap()
}

fn create(number: u64, bytes: usize) -> Vec<Action> {
    let mut node = Node::new(NodeId::for_test(number));
    node.status.message = "m".repeat(bytes);
    vec![Action::Create(Object::Node(Arc::new(node)))]
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_proposals_share_entries_and_syncs() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let store = bootstrap(StoreConfig::new(dir.path().join("raft"))).await;
    let (syncs, index) = (store.status().syncs, store.status().last_log_index);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..2_000 {
        let store = store.clone();
        clients.spawn(async move { store.propose(create(number, 10)).await.unwrap() });
    }
    let mut versions = Vec::new();
    while let Some(version) = clients.join_next().await {
        versions.push(version.unwrap());
    }
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 2_000, "each transaction has a version of its own");
    assert_eq!(store.view().nodes().count(), 2_000);
    let (syncs, entries) = (store.status().syncs - syncs, store.status().last_log_index.unwrap() - index.unwrap());
    println!("2000 proposals: {entries} entries, {syncs} syncs");
    assert!(syncs < 500, "{syncs} syncs");
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_store_writes_nothing() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let store = bootstrap(StoreConfig::new(dir.path().join("raft"))).await;
    store.propose(create(1, 10)).await.unwrap();
    // The spare segment and the mark are made in the background, a second later or when the disk has time.
    let state = || (files(dir.path()), store.status().syncs);
    let mut settled = state();
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let has_spare = settled.0.iter().any(|(path, ..)| path.ends_with("spare"));
        if has_spare && state() == settled {
            break;
        }
        settled = state();
    }
    let (before, syncs) = settled;
    // Long enough for 20 heartbeats and several election timeouts.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(files(dir.path()), before);
    assert_eq!(store.status().syncs, syncs);
    store.shutdown().await;
}

fn files(dir: &Path) -> Vec<(PathBuf, std::time::SystemTime, u64)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for file in std::fs::read_dir(dir).unwrap() {
            let file = file.unwrap();
            let meta = file.metadata().unwrap();
            if meta.is_dir() {
                dirs.push(file.path());
            } else {
                found.push((file.path(), meta.modified().unwrap(), meta.len()));
            }
        }
    }
    found.sort();
    found
}

/// A small file system of its own; unmounted however the test ends.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(dir: &Path, size: &str) -> Option<Self> {
        Self::mount_at(dir.join("small"), size)
    }

    fn mount_at(path: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "skep-store-test"]).arg(&path).output();
        if done.as_ref().is_ok_and(|done| done.status.success()) {
            return Some(Self(path));
        }
        assert!(std::env::var("SKEP_REQUIRE_REAL").as_deref() != Ok("1"), "cannot mount a tmpfs: {done:?}");
        println!("SKIPPED: cannot mount a tmpfs (not root?)");
        None
    }

    fn free(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(&self.0).unwrap();
        stat.blocks_available() * stat.fragment_size()
    }

    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let _ = std::fs::write(&path, vec![1; usize::try_from(self.free()).unwrap() + (1 << 20)]);
        // write() gives up at the page that does not fit; take that last one too
        assert!(self.free() < 64 * 1024, "{} free", self.free());
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_serves_reads_and_mends_itself() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), "8m") else { return };
    let config = || StoreConfig { segment_bytes: 1 << 20, snapshot_entries: 1_000_000, ..StoreConfig::new(disk.0.join("raft")) };
    let store = bootstrap(config()).await;
    store.propose(create(0, 10)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let filler = disk.fill();

    let mut acknowledged = vec![0];
    let refused = loop {
        let number = acknowledged.len() as u64;
        match store.propose(create(number, 20_000)).await {
            Ok(_) => acknowledged.push(number),
            Err(error) => break error,
        }
        assert!(number < 400, "the log grew on a full disk");
    };
    let ProposeError::Disk(error) = &refused else { panic!("{refused:?}") };
    assert!(matches!(&**error, DiskError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("no space left"), "{error}");
    println!("refused after {} proposals: {refused}: {error}", acknowledged.len());
    // What had room went in; reading goes on; the leader stays.
    assert!(acknowledged.len() > 20);
    assert_eq!(store.view().nodes().count(), acknowledged.len());
    assert!(store.leadership().borrow().is_leader);
    // A snapshot fails too, which is said and does no harm.
    store.trigger_snapshot().await.unwrap();
    wait_for(|| store.status().snapshot_error.is_some()).await;
    for _ in 0..20 {
        assert!(matches!(store.propose(create(9_999, 20_000)).await, Err(ProposeError::Disk(_))));
    }
    assert!(store.status().broken.is_none());

    // It opens on a full disk and shows what it has.
    let hash = store.state_hash();
    store.shutdown().await;
    drop(store);
    let store = Store::open(config(), Arc::new(Alone)).await.unwrap();
    store.wait_leader(Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.state_hash(), hash);

    std::fs::remove_file(filler).unwrap();
    let mut tries = 0;
    while let Err(error) = store.propose(create(10_000, 20_000)).await {
        assert!(matches!(error, ProposeError::Disk(_)), "{error:?}");
        tries += 1;
        assert!(tries < 600, "space came back and the store did not: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    store.trigger_snapshot().await.unwrap();
    wait_for(|| store.status().snapshot_error.is_none() && store.status().snapshot_index.is_some()).await;
    assert_eq!(store.view().nodes().count(), acknowledged.len() + 1);
    store.shutdown().await;
}

async fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..3_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited a minute in vain");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_cannot_be_made_on_a_full_disk_and_says_so() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), "4m") else { return };
    let filler = disk.fill();
    let config = || StoreConfig { segment_bytes: 1 << 20, ..StoreConfig::new(disk.0.join("raft")) };
    let full = Store::bootstrap(config(), 1, Member::default(), Arc::new(Alone)).await;
    assert!(matches!(&full, Err(StoreError::Disk(error)) if error.is_full()), "{full:?}");
    std::fs::remove_file(filler).unwrap();
    bootstrap(config()).await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_full_hands_over() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = SmallDisk::mount_at(dir.path().join("1"), "4m") else { return };
    let cluster = support::Cluster::new_in(dir).await;
    cluster.join(2).await;
    cluster.join(3).await;
    assert!(cluster.store(1).leadership().borrow().is_leader);
    let filler = small.fill();
    // Enough to need more segments than it has.
    for number in 0..2_000 {
        cluster.write(number).await;
    }
    assert_ne!(cluster.leader().await.raft_id(), 1);
    std::fs::remove_file(filler).unwrap();
    cluster.same_everywhere().await;
    cluster.end_all().await;
}
