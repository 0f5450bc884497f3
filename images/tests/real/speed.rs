//! How loading and pulling compare with containerd's own client on the same daemon. Prints; asserts the order of magnitude only.

use std::time::Instant;

use tempfile::TempDir;

use crate::harness::{Containerd, Registry, image_archive, ready};

const SIZE: usize = 60_000_000;

#[tokio::test]
async fn loading_and_pulling_keep_up_with_containerds_own_client() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    let archive = image_archive(folder.path(), "demo:1", 1, SIZE);
    registry.push(&archive, "app:v1", None);
    let reference = registry.reference("app:v1");
    let timed = |what: &str, start: Instant| {
        let took = start.elapsed();
        println!("{what}: {took:?}");
        took
    };
    let start = Instant::now();
    containerd.store_in("ours").load_file(&archive).await.unwrap();
    let our_load = timed("load, ours", start);
    drop(containerd);

    let containerd = Containerd::start();
    let start = Instant::now();
    containerd.ctr(&["images", "import", archive.to_str().unwrap()]);
    let their_load = timed("load, ctr", start);
    drop(containerd);

    let containerd = Containerd::start();
    let start = Instant::now();
    containerd.store().pull(&reference, None, None).await.unwrap();
    let our_pull = timed("pull, ours", start);
    drop(containerd);

    let containerd = Containerd::start();
    let start = Instant::now();
    containerd.ctr(&["images", "pull", "--plain-http", &reference.to_string()]);
    let their_pull = timed("pull, ctr", start);
    assert!(our_load < their_load * 5 && our_pull < their_pull * 5);
}
