//! `kill -9` of a process that writes: what it was told is there.

use skep_store::{Alone, Member, Store, StoreConfig};
use skep_types::{Action, ClusterView, Node, NodeId, Object};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const CHILD: &str = "SKEP_STORE_TEST_CHILD";

fn config(dir: &Path) -> StoreConfig {
    // Small, so that segments roll and snapshots are made all the time.
    StoreConfig { segment_bytes: 256 * 1024, snapshot_entries: 40, keep_entries: 10, ..StoreConfig::new(dir) }
}

async fn open_or_bootstrap(dir: &Path) -> Store {
    let dir = &dir.join("raft");
    match Store::open(config(dir), Arc::new(Alone)).await {
        Ok(store) => {
            store.wait_leader(Duration::from_secs(60)).await.unwrap();
            store
        }
        Err(skep_store::StoreError::Empty { .. }) => Store::bootstrap(config(dir), 1, Member::default(), Arc::new(Alone)).await.unwrap(),
        Err(error) => panic!("{error}: {error:?}"),
    }
}

/// Not a test by itself: the process that is killed. Writes nodes with 8 clients and says which were acknowledged.
#[test]
fn child_that_writes() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = open_or_bootstrap(Path::new(&dir)).await;
        let next = Arc::new(std::sync::atomic::AtomicU64::new(store.view().nodes().count() as u64 * 10));
        println!("ready");
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (store, next) = (store.clone(), Arc::clone(&next));
            clients.spawn(async move {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let mut node = Node::new(NodeId::for_test(number));
                    node.status.message = "m".repeat(1000);
                    match store.propose(vec![Action::Create(Object::Node(Arc::new(node)))]).await {
                        Ok(_) => println!("ack {number}"),
                        Err(error) => println!("error {error}"),
                    }
                }
            });
        }
        while clients.join_next().await.is_some() {}
    });
}

struct Writer(Child);

impl Writer {
    fn start(dir: &Path, failpoint: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_that_writes", "--nocapture", "--test-threads=1"]).env(CHILD, dir).stdout(Stdio::piped());
        command.stderr(Stdio::null());
        if let Some(point) = failpoint {
            command.env("SKEP_FAILPOINT", point);
        }
        Self(command.spawn().unwrap())
    }

    /// Reads acknowledgements until the pipe ends; kills the process after `acks` of them.
    fn kill_after(mut self, acks: usize) -> Vec<u64> {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let mut seen = Vec::new();
        for line in lines.map_while(Result::ok) {
            assert!(!line.starts_with("error"), "{line}");
            // The test harness may print before us on the same line.
            if let Some((_, number)) = line.split_once("ack ") {
                seen.push(number.parse().unwrap());
            }
            if seen.len() == acks {
                let _ = self.0.kill();
            }
        }
        let signal = std::os::unix::process::ExitStatusExt::signal(&self.0.wait().unwrap());
        assert_eq!(signal, Some(9), "the writer ended by itself");
        seen
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn check(dir: &Path, acknowledged: &[u64], what: &str) {
    let store = open_or_bootstrap(dir).await;
    let view = store.view();
    for number in acknowledged {
        assert!(view.node(&NodeId::for_test(*number)).is_some(), "{what}: node {number} was acknowledged and is gone");
    }
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_proposal_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        let writer = Writer::start(dir.path(), None);
        acknowledged.extend(writer.kill_after(37 * round + 20));
        check(dir.path(), &acknowledged, &format!("round {round}")).await;
    }
    assert!(acknowledged.len() > 1000);
}

/// Each named place, on a fresh directory and on one that is in use: killed there, nothing acknowledged is lost.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn every_failpoint_leaves_a_store_that_opens() {
    const POINTS: [(&str, usize); 24] = [
        ("store.key.written", 1),
        ("store.state.created", 1),
        ("store.state.copy", 1),
        ("store.state.copy", 4),
        ("store.spare.renamed", 2),
        ("store.spare.ready", 2),
        ("store.bootstrap.initialize", 1),
        ("store.roll.written", 2),
        ("store.roll.renamed", 2),
        ("store.mark.copy", 1),
        ("store.mark.copy", 2),
        ("store.mark.copy", 5),
        ("store.vote.before", 1),
        ("store.vote.after", 1),
        ("store.append.before", 30),
        ("store.append.written", 30),
        ("store.append.synced", 30),
        ("store.append.after", 30),
        ("store.apply.before", 30),
        ("store.apply.after", 30),
        ("store.snapshot.written", 2),
        ("store.snapshot.rename", 2),
        ("store.snapshot.renamed", 2),
        ("store.purge.before", 2),
    ];
    for (point, visit) in POINTS {
        let dir = tempfile::tempdir().unwrap();
        // The child ends by itself at its point; the bound is for a point that is never reached.
        let acknowledged = Writer::start(dir.path(), Some(&format!("{point}:{visit}"))).kill_after(5_000);
        assert!(acknowledged.len() < 5_000, "{point} was not reached");
        check(dir.path(), &acknowledged, point).await;
        let more = Writer::start(dir.path(), None).kill_after(100);
        check(dir.path(), &[acknowledged, more].concat(), point).await;
    }
}

#[cfg(feature = "failpoints")]
mod changes {
    //! `kill -9` in the middle of what replaces whole files and directories.

    use super::*;
    use skep_store::StoreError;
    use skep_types::UnlockKey;

    const CHANGER: &str = "SKEP_STORE_TEST_CHANGER";

    fn key(byte: u8) -> UnlockKey {
        UnlockKey::new([byte; 32])
    }

    fn raft(dir: &Path) -> std::path::PathBuf {
        dir.join("raft")
    }

    fn backup_file(dir: &Path) -> std::path::PathBuf {
        dir.join("backup")
    }

    async fn open(dir: &Path, unlock: Option<UnlockKey>) -> Result<Store, StoreError> {
        let store = Store::open(StoreConfig { unlock, ..config(&raft(dir)) }, Arc::new(Alone)).await?;
        store.wait_leader(Duration::from_secs(60)).await?;
        Ok(store)
    }

    async fn change(dir: &Path, what: &str) {
        match what {
            "lock" => {
                let store = open(dir, None).await.unwrap();
                tokio::time::sleep(Duration::from_millis(500)).await; // until the next segment is ready
                store.rewrap(Some(&key(1))).await.unwrap();
                tokio::time::sleep(Duration::from_secs(60)).await; // for the snapshot; it is killed on the way
            }
            "rotate" => open(dir, Some(key(1))).await.unwrap().rewrap(Some(&key(2))).await.unwrap(),
            "recover" => Store::recover(config(&raft(dir)), 50, Member::default(), Arc::new(Alone)).await.unwrap().0.shutdown().await,
            "restore" => {
                let backup = std::fs::File::open(backup_file(dir)).unwrap();
                let config = config(&raft(dir));
                Store::restore(config, 60, Member::default(), Arc::new(Alone), backup, &key(3)).await.unwrap().shutdown().await;
            }
            other => panic!("{other}"),
        }
    }

    /// Not a test by itself: the process that is killed.
    #[test]
    fn child_that_changes() {
        let Ok(job) = std::env::var(CHANGER) else { return };
        let (what, dir) = job.split_once(':').unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(change(Path::new(dir), what));
    }

    /// Whether it was killed at the point, rather than done.
    fn killed_at(dir: &Path, what: &str, point: &str) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "changes::child_that_changes", "--nocapture", "--test-threads=1"]).stdout(Stdio::null());
        command.env(CHANGER, format!("{what}:{}", dir.display())).env("SKEP_FAILPOINT", point).stderr(Stdio::null());
        let ended = command.spawn().unwrap().wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9), "{what} did not come by {point}");
    }

    /// A store with some nodes, its hash, and a backup of it.
    async fn filled(dir: &Path) -> String {
        let store = Store::bootstrap(config(&raft(dir)), 1, Member::default(), Arc::new(Alone)).await.unwrap();
        for number in 0..60 {
            store.propose(vec![Action::Create(Object::Node(Arc::new(Node::new(NodeId::for_test(number)))))]).await.unwrap();
        }
        let mut backup = store.backup(&key(3));
        let mut bytes = Vec::new();
        while let Some(chunk) = backup.next().await {
            bytes.extend(chunk.unwrap());
        }
        std::fs::write(backup_file(dir), bytes).unwrap();
        let hash = store.state_hash().to_string();
        store.shutdown().await;
        hash
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_that_is_being_rewrapped_is_the_old_or_the_new_one() {
        for (point, done) in [("store.key.written", false), ("store.key.renamed", true)] {
            let dir = tempfile::tempdir().unwrap();
            let hash = filled(dir.path()).await;
            let store = open(dir.path(), None).await.unwrap();
            store.rewrap(Some(&key(1))).await.unwrap();
            store.shutdown().await;
            drop(store);
            killed_at(dir.path(), "rotate", point);
            let (now, other) = if done { (key(2), key(1)) } else { (key(1), key(2)) };
            assert!(open(dir.path(), Some(other)).await.is_err(), "{point}");
            let store = open(dir.path(), Some(now)).await.unwrap();
            assert_eq!(store.state_hash().to_string(), hash);
            store.shutdown().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_is_being_locked_opens_wherever_that_was_cut_short() {
        let points = [
            ("store.key.written", false),
            ("store.key.renamed", true),
            ("store.rotate.written", true),
            ("store.state.copy", true),
            ("store.reseal.state", true),
            ("store.roll.written", true),
            ("store.roll.renamed", true),
            ("store.snapshot.written", true),
            ("store.snapshot.renamed", true),
        ];
        for (point, locked) in points {
            let dir = tempfile::tempdir().unwrap();
            let hash = filled(dir.path()).await;
            killed_at(dir.path(), "lock", point);
            // Votes are saved, too: this one may be cut short before the locking begins.
            let is_locked = Store::is_locked(&raft(dir.path())).unwrap();
            assert!(is_locked == locked || point == "store.state.copy", "{point}");
            let store = open(dir.path(), is_locked.then(|| key(1))).await.unwrap();
            assert_eq!(store.state_hash().to_string(), hash, "{point}");
            store.rewrap(Some(&key(1))).await.unwrap();
            store.shutdown().await;
            drop(store);
            for _ in 0..2 {
                let store = open(dir.path(), Some(key(1))).await.unwrap();
                assert_eq!(store.state_hash().to_string(), hash, "{point}");
                store.shutdown().await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_recovery_cut_short_leaves_the_old_store_or_the_new_one() {
        let points = [
            ("store.key.written", 1),
            ("store.state.created", 1),
            ("store.snapshot.rename", 1),
            ("store.snapshot.renamed", 1),
            ("store.recover.sown", 1),
            ("store.recover.renamed", 1),
            ("store.recover.exchanged", 50),
        ];
        for (point, id) in points {
            let dir = tempfile::tempdir().unwrap();
            let hash = filled(dir.path()).await;
            killed_at(dir.path(), "recover", point);
            let store = open(dir.path(), None).await.unwrap();
            assert_eq!((store.state_hash().to_string(), store.raft_id()), (hash.clone(), id), "{point}");
            store.shutdown().await;
            drop(store);
            let (store, _) = Store::recover(config(&raft(dir.path())), 51, Member::default(), Arc::new(Alone)).await.unwrap();
            assert_eq!((store.state_hash().to_string(), store.raft_id()), (hash, 51), "{point}, again");
            store.shutdown().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_restore_cut_short_leaves_nothing_or_the_store() {
        let points = [
            ("store.key.written", false),
            ("store.state.created", false),
            ("store.state.copy", false),
            ("store.snapshot.renamed", false),
            ("store.restore.sown", false),
            ("store.restore.renamed", true),
        ];
        for (point, there) in points {
            let dir = tempfile::tempdir().unwrap();
            let hash = filled(dir.path()).await;
            std::fs::remove_dir_all(raft(dir.path())).unwrap();
            killed_at(dir.path(), "restore", point);
            assert_eq!(raft(dir.path()).exists(), there, "{point}");
            if !there {
                change(dir.path(), "restore").await;
            }
            let store = open(dir.path(), None).await.unwrap();
            assert_eq!((store.state_hash().to_string(), store.raft_id()), (hash, 60), "{point}");
            store.shutdown().await;
        }
    }
}
