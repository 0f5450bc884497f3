use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use skep_images::{Phase, Progress};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::harness::{Containerd, Mounted, Proxy, Registry, image_archive, noise, ready, reference_at};

#[tokio::test]
async fn a_pulled_image_can_be_mounted_and_is_removed_without_a_trace() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    registry.push(&image_archive(folder.path(), "x:1", 1, 3_000_000), "team/app:v1", None);
    let store = containerd.store();
    let reference = registry.reference("team/app:v1");
    assert!(store.find(&reference).await.unwrap().is_none());

    let (sender, mut events) = mpsc::channel(1000);
    let image = store.pull(&reference, None, Some(sender)).await.unwrap();
    assert_eq!(image.reference(), &reference);
    assert_eq!(image.config().config().as_ref().unwrap().entrypoint().as_deref(), Some(&["/bin/demo".to_owned()][..]));
    assert!(image.size() > 3_000_000);
    let mut last: HashMap<_, Progress> = HashMap::new();
    while let Some(event) = events.recv().await {
        last.insert(event.layer.clone(), event);
    }
    assert_eq!(last.len(), 2);
    assert!(last.values().all(|event| event.phase == Phase::Unpacked && event.done == event.total));

    // Another process finds the same, by tag and by digest.
    let other = containerd.store();
    let found = other.find(&reference).await.unwrap().unwrap();
    assert_eq!((found.target(), found.chain_id()), (image.target(), image.chain_id()));
    let pinned = reference.pinned(&image.target().to_string()).unwrap();
    assert_eq!(other.find(&pinned).await.unwrap().unwrap().target(), image.target());
    assert_eq!(other.list().await.unwrap().len(), 1);

    let labels = HashMap::from([("skep.task".to_owned(), "t1".to_owned())]);
    containerd.collect_garbage();
    let mounts = other.prepare_snapshot("task-1", &found, labels.clone()).await.unwrap();
    assert_eq!(other.prepare_snapshot("task-1", &found, labels).await.unwrap(), mounts, "may be repeated");
    containerd.collect_garbage();
    let mounted = Mounted::new(&mounts);
    assert_eq!(mounted.read("etc/motd"), b"hello from the first layer\n");
    assert_eq!(mounted.read("data"), noise(1, 3_000_000));
    let metadata = std::fs::metadata(mounted.path().join("tmp")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.mtime()), (0o1777, 0, 0));
    std::fs::write(mounted.path().join("etc/motd"), "changed").unwrap();
    drop(mounted);
    let snapshots = store.snapshots().await.unwrap();
    assert_eq!(snapshots.len(), 1);
    assert_eq!((snapshots[0].key.as_str(), snapshots[0].labels["skep.task"].as_str()), ("task-1", "t1"));

    assert!(store.remove(&reference).await.unwrap());
    assert!(!store.remove(&reference).await.unwrap());
    containerd.collect_garbage();
    // A container in use keeps its layers.
    let mounted = Mounted::new(&mounts);
    assert_eq!(mounted.read("etc/motd"), b"changed");
    drop(mounted);
    store.remove_snapshot("task-1").await.unwrap();
    store.remove_snapshot("task-1").await.unwrap();
    containerd.collect_garbage();
    assert_eq!(containerd.remains(), ["", "", "", ""]);
    assert!(store.find(&reference).await.unwrap().is_none());
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    let size = 8_000_000;
    registry.push(&image_archive(folder.path(), "x:1", 2, size), "app:v1", None);
    let proxy = Proxy::start(registry.port, 3, 2_000_000);
    let reference = reference_at(proxy.port, "app:v1");
    let (sender, mut events) = mpsc::channel(1000);
    let image = containerd.store().pull(&reference, None, Some(sender)).await.unwrap();
    assert_eq!(proxy.cuts.load(Ordering::SeqCst), 3, "the connection was cut");
    let carried = proxy.bytes.load(Ordering::SeqCst);
    assert!(carried < size as u64 * 5 / 4, "{carried} bytes were fetched for {size}");
    let mut retries = 0;
    while let Some(event) = events.recv().await {
        retries += u32::from(event.phase == Phase::Retrying);
    }
    assert_eq!(retries, 3);
    let mounts = containerd.store().prepare_snapshot("s", &image, HashMap::new()).await.unwrap();
    assert_eq!(Mounted::new(&mounts).read("data"), noise(2, size));
}

#[tokio::test]
async fn pulls_of_one_image_are_one_pull() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    let size = 4_000_000;
    registry.push(&image_archive(folder.path(), "x:1", 3, size), "app:v1", None);
    let proxy = Proxy::start(registry.port, 0, 0);
    let reference = reference_at(proxy.port, "app:v1");
    let store = containerd.store();
    let pulls = (0..8).map(|_| store.pull(&reference, None, None));
    let images = futures_util::future::try_join_all(pulls).await.unwrap();
    assert!(images.iter().all(|image| image.target() == images[0].target()));
    let carried = proxy.bytes.load(Ordering::SeqCst);
    assert!(carried < size as u64 * 5 / 4, "{carried} bytes were fetched for {size}");

    // The same again costs a look at the manifest, no layers.
    store.pull(&reference, None, None).await.unwrap();
    assert!(proxy.bytes.load(Ordering::SeqCst) - carried < 20_000);
    assert_eq!(containerd.remains()[0], "", "no lease is left");
}

#[tokio::test]
async fn images_with_common_layers_fetch_them_once() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    let size = 4_000_000;
    let archive = image_archive(folder.path(), "x:1", 4, size);
    registry.push(&archive, "one:v1", None);
    registry.push(&archive, "two:v1", None);
    let proxy = Proxy::start(registry.port, 0, 0);
    let store = containerd.store();
    let (one, two) = (reference_at(proxy.port, "one:v1"), reference_at(proxy.port, "two:v1"));
    let (first, second) = tokio::join!(store.pull(&one, None, None), store.pull(&two, None, None));
    assert_eq!(first.unwrap().chain_id(), second.unwrap().chain_id());
    assert!(proxy.bytes.load(Ordering::SeqCst) < size as u64 * 5 / 4);
    store.remove(&one).await.unwrap();
    containerd.collect_garbage();
    let image = store.find(&two).await.unwrap().unwrap();
    store.prepare_snapshot("s", &image, HashMap::new()).await.unwrap();
}

#[tokio::test]
async fn what_another_namespace_has_is_not_fetched_again() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    registry.push(&image_archive(folder.path(), "x:1", 7, 2_000_000), "app:v1", None);
    let proxy = Proxy::start(registry.port, 0, 0);
    let reference = reference_at(proxy.port, "app:v1");
    containerd.store_in("other").pull(&reference, None, None).await.unwrap();
    let before = proxy.bytes.load(Ordering::SeqCst);
    let image = containerd.store().pull(&reference, None, None).await.unwrap();
    assert!(proxy.bytes.load(Ordering::SeqCst) - before < 20_000);
    let mounts = containerd.store().prepare_snapshot("s", &image, HashMap::new()).await.unwrap();
    assert_eq!(Mounted::new(&mounts).read("data"), noise(7, 2_000_000));
    // A loaded archive may be known elsewhere as well.
    let archive = image_archive(folder.path(), "demo:8", 8, 1_000_000);
    containerd.store_in("other").load_file(&archive).await.unwrap();
    containerd.store().load_file(&archive).await.unwrap();
}

#[tokio::test]
async fn a_moved_tag_is_followed() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    let (store, reference) = (containerd.store(), registry.reference("app:v1"));
    registry.push(&image_archive(folder.path(), "x:1", 5, 1000), "app:v1", None);
    let old = store.pull(&reference, None, None).await.unwrap();
    registry.push(&image_archive(folder.path(), "x:1", 6, 1000), "app:v1", None);
    let pinned = reference.pinned(&old.target().to_string()).unwrap();
    store.pull(&pinned, None, None).await.unwrap();
    let new = store.pull(&reference, None, None).await.unwrap();
    assert_ne!(new.target(), old.target());
    assert_eq!(store.find(&reference).await.unwrap().unwrap().target(), new.target());
    assert_eq!(store.find(&pinned).await.unwrap().unwrap().target(), old.target());
}
