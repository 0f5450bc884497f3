//! The whole store on a real directory.

use skep_store::{Alone, ApplyError, FeedEvent, Member, ProposeError, Store, StoreConfig, StoreError};
use skep_types::{Action, ClusterView, Kind, Node, NodeId, Object, Secret, SecretId, SecretSpec, Version};
use std::path::Path;
use std::sync::Arc;

fn config(dir: &Path) -> StoreConfig {
    StoreConfig { segment_bytes: 1 << 20, ..StoreConfig::new(dir.join("raft")) }
}

async fn bootstrap(config: StoreConfig) -> Store {
    let member = Member { node_id: "node".into(), addr: "127.0.0.1:2377".into() };
    Store::bootstrap(config, 7, member, Arc::new(Alone)).await.unwrap()
}

fn node(number: u64) -> Object {
    Object::Node(Arc::new(Node::new(NodeId::for_test(number))))
}

fn secret(number: u64, name: &str, bytes: usize) -> Object {
    let mut spec = SecretSpec::default();
    spec.annotations.name = name.into();
    spec.data.0 = vec![0xff; bytes];
    Object::Secret(Arc::new(Secret { id: SecretId::for_test(number), meta: Default::default(), spec, internal: false }))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = bootstrap(config(dir.path())).await;
    let first = store.propose(vec![Action::Create(node(1)), Action::Create(node(2))]).await.unwrap();
    assert_eq!(store.view().node(&NodeId::for_test(1)).unwrap().meta.version, first);
    assert_eq!(store.view().node(&NodeId::for_test(2)).unwrap().meta.version, first);
    for n in 3..50 {
        store.propose(vec![Action::Create(node(n))]).await.unwrap();
    }
    let (hash, version) = (store.state_hash(), store.view().version());
    store.shutdown().await;
    drop(store);

    let store = Store::open(config(dir.path()), Arc::new(Alone)).await.unwrap();
    store.wait_leader(std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.state_hash(), hash);
    assert_eq!(store.view().version(), version);
    store.trigger_snapshot().await.unwrap();
    while store.status().snapshot_index.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    store.propose(vec![Action::Create(node(60))]).await.unwrap();
    let hash = store.state_hash();
    store.shutdown().await;
    drop(store);

    let store = Store::open(config(dir.path()), Arc::new(Alone)).await.unwrap();
    store.wait_leader(std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.state_hash(), hash);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proposals_fail_one_by_one_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(config(dir.path()), Arc::new(Alone)).await, Err(StoreError::Empty { .. })));
    let store = bootstrap(config(dir.path())).await;
    let v1 = store.propose(vec![Action::Create(secret(1, "Key", 10))]).await.unwrap();
    let taken = store.propose(vec![Action::Create(node(1)), Action::Create(secret(2, "kEY", 10))]).await;
    assert!(matches!(taken, Err(ProposeError::Refused(ApplyError::NameTaken { kind: Kind::Secret, .. }))), "{taken:?}");
    assert!(store.view().node(&NodeId::for_test(1)).is_none(), "all or nothing");
    let stale =
        store.propose(vec![Action::Remove { kind: Kind::Secret, id: SecretId::for_test(1).to_string(), version: Some(Version(99)) }]).await;
    assert!(stale.unwrap_err().is_stale());
    store.propose(vec![Action::Create(secret(3, "largest", 1000 * 1024))]).await.unwrap();
    let large = store.propose(vec![Action::Create(secret(4, "a", 1 << 20)), Action::Create(secret(5, "b", 1 << 20))]).await;
    assert!(matches!(large, Err(ProposeError::TooLarge { .. })), "{large:?}");
    assert_eq!(store.propose(vec![]).await.unwrap().0, v1.0 + 1, "nothing to change gives the present version");
    let again = Store::open(config(dir.path()), Arc::new(Alone)).await.unwrap_err();
    assert!(again.to_string().contains("in use"), "{again}");
    store.shutdown().await;
    assert!(matches!(store.propose(vec![]).await, Err(ProposeError::Stopped | ProposeError::NotLeader { .. })));
    let member = Member::default();
    assert!(matches!(Store::bootstrap(config(dir.path()), 7, member, Arc::new(Alone)).await, Err(StoreError::Exists { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_and_a_waiter_see_commits() {
    let dir = tempfile::tempdir().unwrap();
    let store = bootstrap(config(dir.path())).await;
    let view = store.view();
    let mut feed = store.feed(view.version());
    let waiter = tokio::spawn({
        let store = store.clone();
        async move { store.changed_since(view.version()).await }
    });
    let version = store.propose(vec![Action::Create(node(1))]).await.unwrap();
    waiter.await.unwrap();
    let Some(FeedEvent::Commit(commit)) = feed.next().await else { panic!("a commit was made") };
    assert_eq!(commit.version, version);
    assert_eq!(commit.changes.len(), 1);
    store.read_barrier().await.unwrap();
    store.shutdown().await;
    assert!(feed.next().await.is_none());
    assert!(!store.leadership().borrow().is_leader);
}

/// Opens a store that must not open; gives what it says.
async fn refused(dir: &Path) -> String {
    match Store::open(config(dir), Arc::new(Alone)).await {
        Err(StoreError::Disk(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn only_file(dir: &Path, extension: &str) -> std::path::PathBuf {
    let mut found =
        std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == extension));
    let file = found.next().unwrap();
    assert!(found.next().is_none());
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_refused_with_file_place_and_cure() {
    let dir = tempfile::tempdir().unwrap();
    let store = bootstrap(config(dir.path())).await;
    for n in 0..20 {
        store.propose(vec![Action::Create(node(n))]).await.unwrap();
    }
    store.trigger_snapshot().await.unwrap();
    while store.status().snapshot_index.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    store.shutdown().await;
    drop(store);
    let raft = dir.path().join("raft");
    let files = [only_file(&raft.join("log"), "seg"), only_file(&raft.join("snapshot"), "snap")];
    for file in &files {
        let intact = std::fs::read(file).unwrap();
        let mut bytes = intact.clone();
        bytes[300] ^= 1;
        std::fs::write(file, bytes).unwrap();
        let says = refused(dir.path()).await;
        println!("{says}");
        assert!(says.contains(file.to_str().unwrap()) && says.contains("at byte") && says.contains("backup"), "{says}");
        std::fs::write(file, intact).unwrap();
    }
    for name in ["dek", "state"] {
        let (path, aside) = (raft.join(name), raft.join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        let says = refused(dir.path()).await;
        println!("{says}");
        assert!(says.contains(name) && says.contains("missing"), "{says}");
        std::fs::rename(&aside, &path).unwrap();
    }
    Store::open(config(dir.path()), Arc::new(Alone)).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_gone_is_missed_once_the_log_was_cut_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = || StoreConfig { segment_bytes: 128 * 1024, snapshot_entries: 20, keep_entries: 2, ..config(dir.path()) };
    let store = bootstrap(config()).await;
    for n in 0..400 {
        store.propose(vec![Action::Create(secret(n, &n.to_string(), 2_000))]).await.unwrap();
    }
    let hash = store.state_hash();
    store.shutdown().await;
    drop(store);
    let store = Store::open(config(), Arc::new(Alone)).await.unwrap();
    store.wait_leader(std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.state_hash(), hash);
    store.shutdown().await;
    drop(store);
    std::fs::remove_dir_all(dir.path().join("raft/snapshot")).unwrap();
    let says = refused(dir.path()).await;
    assert!(says.contains("snap") && says.contains("missing"), "{says}");
}

/// The directory `raft` and all that is in it, elsewhere.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &to);
        } else {
            std::fs::copy(file.path(), to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_put_back_as_a_whole_is_refused_with_its_place_and_a_cure() {
    let dir = tempfile::tempdir().unwrap();
    let (raft, early, late) = (dir.path().join("raft"), dir.path().join("early"), dir.path().join("late"));
    let store = bootstrap(config(dir.path())).await;
    store.propose(vec![Action::Create(node(1))]).await.unwrap();
    store.shutdown().await;
    drop(store);
    copy(&raft, &early);
    let store = Store::open(config(dir.path()), Arc::new(Alone)).await.unwrap();
    store.wait_leader(std::time::Duration::from_secs(60)).await.unwrap();
    store.propose(vec![Action::Create(node(2))]).await.unwrap();
    let hash = store.state_hash();
    store.shutdown().await;
    drop(store);
    copy(&raft, &late);

    std::fs::remove_dir_all(&raft).unwrap();
    copy(&early, &raft);
    let says = refused(dir.path()).await;
    println!("{says}");
    assert!(
        says.contains(raft.to_str().unwrap()) && says.contains("put back") && says.contains("raft.mark") && says.contains("join"),
        "{says}"
    );
    // What belongs there is taken again.
    std::fs::remove_dir_all(&raft).unwrap();
    copy(&late, &raft);
    let store = Store::open(config(dir.path()), Arc::new(Alone)).await.unwrap();
    store.wait_leader(std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.state_hash(), hash);
    store.shutdown().await;
    drop(store);
    // The cure for an only manager: the loss is accepted in so many words.
    std::fs::remove_dir_all(&raft).unwrap();
    copy(&early, &raft);
    std::fs::remove_file(dir.path().join("raft.mark")).unwrap();
    let store = Store::open(config(dir.path()), Arc::new(Alone)).await.unwrap();
    store.wait_leader(std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.view().nodes().count(), 1);
    store.shutdown().await;
    drop(store);
    // The cure for a member: a store made anew does not mind the old mark.
    std::fs::remove_dir_all(&raft).unwrap();
    let store = bootstrap(config(dir.path())).await;
    store.shutdown().await;
    drop(store);
    Store::open(config(dir.path()), Arc::new(Alone)).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_snapshot_is_refused_under_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = || StoreConfig { segment_bytes: 128 * 1024, snapshot_entries: 1_000_000, keep_entries: 2, ..config(dir.path()) };
    let snapshots = dir.path().join("raft/snapshot");
    let store = bootstrap(config()).await;
    let mut older = None;
    for round in 0..2 {
        for n in 0..150 {
            let number = 150 * round + n;
            store.propose(vec![Action::Create(secret(number, &number.to_string(), 2_000))]).await.unwrap();
        }
        let before = store.status().snapshot_index;
        store.trigger_snapshot().await.unwrap();
        while store.status().snapshot_index == before {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        if round == 0 {
            let file = only_file(&snapshots, "snap");
            older = Some((std::fs::read(&file).unwrap(), file));
        }
    }
    // Some sixty entries each: the two last begin behind the older snapshot.
    let segments = || {
        let files = std::fs::read_dir(dir.path().join("raft/log")).unwrap();
        files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "seg")).count()
    };
    while segments() > 2 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    store.shutdown().await;
    drop(store);
    let (bytes, older) = older.unwrap();
    let newest = only_file(&snapshots, "snap");
    assert_ne!(older, newest);
    let intact = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes).unwrap();
    let says = refused(dir.path()).await;
    assert!(says.contains(newest.to_str().unwrap()) && says.contains("another snapshot"), "{says}");
    // With its own name it lacks what the log was cut for.
    std::fs::remove_file(&newest).unwrap();
    std::fs::write(&older, bytes).unwrap();
    let says = refused(dir.path()).await;
    assert!(says.contains("snap") && says.contains("missing"), "{says}");
    std::fs::remove_file(&older).unwrap();
    std::fs::write(&newest, intact).unwrap();
    Store::open(config(), Arc::new(Alone)).await.unwrap().shutdown().await;
}
