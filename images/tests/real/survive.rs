use std::collections::HashMap;
use std::time::{Duration, Instant};

use skep_images::{ImageError, StoreError};
use tempfile::TempDir;

use crate::harness::{Containerd, Mounted, Proxy, Registry, image_archive, noise, ready, reference_at};

#[tokio::test]
async fn a_restarted_containerd_is_found_again() {
    if !ready() {
        return;
    }
    let (mut containerd, folder) = (Containerd::start(), TempDir::new().unwrap());
    let store = containerd.store();
    let image = store.load_file(&image_archive(folder.path(), "demo:1", 1, 1000)).await.unwrap().remove(0);
    containerd.kill();
    let finding = {
        let (store, reference) = (store.clone(), image.reference().clone());
        tokio::spawn(async move { store.find(&reference).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    containerd.start_again();
    assert!(finding.await.unwrap().unwrap().is_some());
    store.prepare_snapshot("s", &image, HashMap::new()).await.unwrap();
    containerd.kill();
    let gone = store.find(image.reference()).await.unwrap_err();
    assert!(matches!(gone, ImageError::Store(StoreError::Unreachable { .. })), "{gone:?}");
    assert!(gone.to_string().contains("is it running?"));
}

#[tokio::test]
async fn a_pull_outlives_a_restart_of_containerd() {
    if !ready() {
        return;
    }
    let (mut containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    let size = 30_000_000;
    registry.push(&image_archive(folder.path(), "x:1", 6, size), "app:v1", None);
    let reference = registry.reference("app:v1");
    let store = containerd.store();
    let (sender, mut events) = tokio::sync::mpsc::channel(1);
    let pulling = {
        let (store, reference) = (store.clone(), reference.clone());
        tokio::spawn(async move { store.pull(&reference, None, Some(sender)).await })
    };
    while let Some(event) = events.recv().await {
        if event.done > 1_000_000 {
            break;
        }
    }
    drop(events);
    assert!(!pulling.is_finished());
    containerd.kill();
    containerd.start_again();
    let image = pulling.await.unwrap().unwrap();
    let mounts = store.prepare_snapshot("s", &image, HashMap::new()).await.unwrap();
    assert_eq!(Mounted::new(&mounts).read("data"), noise(6, size));
}

#[tokio::test]
async fn what_a_dying_containerd_left_of_a_snapshot_is_cleared() {
    if !ready() {
        return;
    }
    let (mut containerd, folder) = (Containerd::start(), TempDir::new().unwrap());
    let store = containerd.store();
    let image = store.load_file(&image_archive(folder.path(), "demo:1", 2, 1000)).await.unwrap().remove(0);
    // It dies after it moved a snapshot's directory into place and before it wrote down the number, which it gives out again.
    containerd.kill();
    let directories = containerd.snapshot_directories();
    let last = directories.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap().parse::<u64>().unwrap()).max();
    for number in last.unwrap() + 1..last.unwrap() + 4 {
        std::fs::create_dir_all(directories.join(number.to_string()).join("fs/of nobody")).unwrap();
    }
    containerd.start_again();
    let mounts = store.prepare_snapshot("s", &image, HashMap::new()).await.unwrap();
    assert_eq!(Mounted::new(&mounts).read("data"), noise(2, 1000));
    let other = store.load_file(&image_archive(folder.path(), "demo:2", 3, 1000)).await.unwrap().remove(0);
    store.prepare_snapshot("t", &other, HashMap::new()).await.unwrap();
    for directory in directories.read_dir().unwrap() {
        assert!(!directory.unwrap().path().join("fs/of nobody").exists());
    }
}

#[tokio::test]
async fn a_cancelled_pull_goes_on_or_is_swept() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    let size = 6_000_000;
    registry.push(&image_archive(folder.path(), "x:1", 2, size), "app:v1", None);
    // Cut for ever after 2 MB: the pull makes progress but does not end soon.
    let proxy = Proxy::start(registry.port, u64::MAX, 2_000_000);
    let reference = reference_at(proxy.port, "app:v1");
    let store = containerd.store();
    let (sender, mut events) = tokio::sync::mpsc::channel(100);
    tokio::select! {
        done = store.pull(&reference, None, Some(sender)) => panic!("ended: {done:?}"),
        () = async {
            while let Some(event) = events.recv().await {
                if event.done > 1_000_000 {
                    break;
                }
            }
        } => {}
    }
    assert_ne!(containerd.remains()[2], "", "the partial blob waits");
    containerd.collect_garbage();
    assert_ne!(containerd.remains()[2], "", "also through a garbage collection");
    assert_eq!(store.sweep().await.unwrap(), 1);
    containerd.collect_garbage();
    assert_eq!(containerd.remains(), ["", "", "", ""]);
}

#[tokio::test]
async fn lost_layers_are_unpacked_again() {
    if !ready() {
        return;
    }
    let (containerd, folder) = (Containerd::start(), TempDir::new().unwrap());
    let store = containerd.store();
    let image = store.load_file(&image_archive(folder.path(), "demo:1", 3, 1000)).await.unwrap().remove(0);
    // Someone removes the snapshot behind our back; the one below goes with it as garbage.
    containerd.ctr(&["snapshots", "rm", &image.chain_id().unwrap().to_string()]);
    containerd.collect_garbage();
    assert_eq!(containerd.remains()[3], "");
    store.prepare_snapshot("s", &image, HashMap::new()).await.unwrap();
    containerd.collect_garbage();
    assert_eq!(containerd.ctr(&["snapshots", "ls"]).lines().count(), 1 + 3);
}

#[tokio::test]
async fn an_image_without_its_blobs_says_so_and_is_mended_by_a_pull() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    registry.push(&image_archive(folder.path(), "x:1", 5, 500_000), "app:v1", None);
    let (store, reference) = (containerd.store(), registry.reference("app:v1"));
    let image = store.pull(&reference, None, None).await.unwrap();
    let size = |digest: &&str| std::fs::metadata(registry.blob_file(digest)).unwrap().len();
    let blobs = containerd.ctr(&["content", "ls", "-q"]);
    let largest = blobs.lines().max_by_key(size).unwrap();
    containerd.ctr(&["content", "rm", largest]);
    containerd.ctr(&["snapshots", "rm", &image.chain_id().unwrap().to_string()]);
    let refused = store.prepare_snapshot("s", &image, HashMap::new()).await.unwrap_err();
    assert!(matches!(refused, ImageError::Incomplete { .. }), "{refused:?}");
    let image = store.pull(&reference, None, None).await.unwrap();
    store.prepare_snapshot("s", &image, HashMap::new()).await.unwrap();
    // Without its manifest it is as good as not there.
    containerd.ctr(&["content", "rm", &image.target().to_string()]);
    assert!(containerd.store().find(&reference).await.unwrap().is_none());
    assert!(containerd.store().list().await.unwrap().is_empty());
}

#[tokio::test]
#[ignore = "a measurement for a quiet machine"]
async fn the_fast_path_is_fast() {
    if !ready() {
        return;
    }
    let (containerd, folder) = (Containerd::start(), TempDir::new().unwrap());
    let store = containerd.store();
    let image = store.load_file(&image_archive(folder.path(), "demo:1", 4, 1000)).await.unwrap().remove(0);
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..50 {
        let key = format!("s{round}");
        let start = Instant::now();
        store.find(image.reference()).await.unwrap().unwrap();
        let found = Instant::now();
        store.prepare_snapshot(&key, &image, HashMap::new()).await.unwrap();
        let prepared = Instant::now();
        store.remove_snapshot(&key).await.unwrap();
        let spans = [found - start, prepared - found, prepared.elapsed()];
        times.iter_mut().zip(spans).for_each(|(list, span)| list.push(span));
    }
    times.iter_mut().for_each(|list| list.sort());
    let [find, prepare, remove] = times.map(|list| list[list.len() / 2]);
    println!("median of 50: find {find:?}, prepare {prepare:?}, remove {remove:?}");
    // Only an order of magnitude would be wrong.
    assert!(find < Duration::from_millis(500) && prepare < Duration::from_secs(2));
}
