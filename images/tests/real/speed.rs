//! How loading and pulling compare with containerd's own client on the same daemon. Prints; asserts the order of magnitude only.

use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::{Containerd, Registry, image_archive, ready};

const SIZE: usize = 60_000_000;

#[tokio::test]
#[ignore = "a measurement for a quiet machine"]
async fn loading_and_pulling_keep_up_with_containerds_own_client() {
    if !ready() {
        return;
    }
    let (registry, folder) = (Registry::start(), TempDir::new().unwrap());
    let archive = image_archive(folder.path(), "demo:1", 1, SIZE);
    registry.push(&archive, "app:v1", None);
    let reference = registry.reference("app:v1");
    let mut load_kept_up = false;
    let mut pull_kept_up = false;
    // The machine is shared: what else runs may hit one of the two alone, but not each time the same.
    for _ in 0..3 {
        let containerd = Containerd::start();
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
        load_kept_up |= our_load < their_load * 5;
        pull_kept_up |= our_pull < their_pull * 5;
        if load_kept_up && pull_kept_up {
            return;
        }
    }
    panic!("loading kept up: {load_kept_up}, pulling kept up: {pull_kept_up}");
}

fn timed(what: &str, start: Instant) -> Duration {
    let took = start.elapsed();
    println!("{what}: {took:?}");
    took
}
