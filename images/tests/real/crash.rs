//! Killed at every fail-point, then done again: the work ends well and nothing is left over.
//!
//! The jobs run in this test binary started anew ([`worker`]), so that SIGKILL hits a process of its own.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use skep_images::Reference;
use tempfile::TempDir;

use crate::harness::{Containerd, Registry, image_archive, ready};

const LOAD: [&str; 10] = [
    "images.lease.created",
    "images.load.blob",
    "images.load.read",
    "images.extract.prepared",
    "images.extract.applied",
    "images.extract.committed",
    "images.load.unpacked",
    "images.document.written",
    "images.image.named",
    "images.lease.deleted",
];
const PULL: [&str; 13] = [
    "images.lease.created",
    "images.blob.opened",
    "images.blob.written",
    "images.blob.committed",
    "images.pull.layer.fetched",
    "images.extract.prepared",
    "images.extract.applied",
    "images.extract.committed",
    "images.pull.unpacked",
    "images.document.written",
    "images.image.named",
    "images.pull.recorded",
    "images.lease.deleted",
];

/// Not a test of its own: what the others start, with a job in the environment.
#[tokio::test]
async fn worker() {
    let Ok(job) = std::env::var("SKEP_TEST_JOB") else { return };
    assert!(ready());
    let words: Vec<_> = job.split(' ').collect();
    let store = skep_images::ImageStore::connect(words[0], crate::harness::NAMESPACE).unwrap();
    let reference: Reference = words[2].parse().unwrap();
    let image = async || store.find(&reference).await.unwrap().unwrap();
    match words[1] {
        "load" => drop(store.load_file(Path::new(words[3])).await.unwrap()),
        "pull" => drop(store.pull(&reference, None, None).await.unwrap()),
        "prepare" => drop(store.prepare_snapshot("s", &image().await, HashMap::new()).await.unwrap()),
        "release" => store.remove_snapshot("s").await.unwrap(),
        "remove" => drop(store.remove(&reference).await.unwrap()),
        other => panic!("{other}"),
    }
}

struct Victim<'a> {
    containerd: &'a Containerd,
    reference: String,
    archive: String,
}

impl Victim<'_> {
    fn run(&self, job: &str, point: Option<&str>) -> ExitStatus {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let socket = self.containerd.socket();
        command.args(["--exact", "crash::worker"]);
        command.env("SKEP_TEST_JOB", format!("{} {job} {} {}", socket.display(), self.reference, self.archive));
        match point {
            Some(point) => command.env("SKEP_FAILPOINT", point),
            None => command.env_remove("SKEP_FAILPOINT"),
        };
        command.stdout(std::process::Stdio::null()).status().unwrap()
    }

    /// Dies at `point`, then does it again and succeeds.
    fn die_and_do_again(&self, job: &str, point: &str) {
        assert_eq!(self.run(job, Some(point)).signal(), Some(9), "{job} came by {point}");
        assert!(self.run(job, None).success(), "{job} again after {point}");
    }

    async fn is_clean_after(&self, point: &str) {
        let store = self.containerd.store();
        store.sweep().await.unwrap();
        self.containerd.collect_garbage();
        assert_eq!(self.containerd.remains(), ["", "", "", ""], "after {point}");
    }

    /// The image is whole: it survives a collection and can be prepared; then it goes.
    async fn use_and_remove(&self) {
        self.containerd.store().sweep().await.unwrap();
        self.containerd.collect_garbage();
        for job in ["prepare", "release", "remove"] {
            assert!(self.run(job, None).success(), "{job}");
        }
    }
}

#[tokio::test]
async fn a_load_may_be_killed_anywhere() {
    if !ready() {
        return;
    }
    let (containerd, folder) = (Containerd::start(), TempDir::new().unwrap());
    let archive = image_archive(folder.path(), "demo:1", 1, 600_000).display().to_string();
    let victim = Victim { containerd: &containerd, reference: "demo:1".to_owned(), archive };
    for point in LOAD {
        // Killed and never tried again: the image may be whole by then, else nothing is left.
        assert_eq!(victim.run("load", Some(point)).signal(), Some(9), "load came by {point}");
        assert!(victim.run("remove", None).success());
        victim.is_clean_after(point).await;
        // Killed and tried again.
        victim.die_and_do_again("load", point);
        victim.use_and_remove().await;
        victim.is_clean_after(point).await;
    }
}

#[tokio::test]
async fn a_pull_may_be_killed_anywhere() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    registry.push(&image_archive(folder.path(), "x:1", 2, 600_000), "app:v1", None);
    let reference = registry.reference("app:v1").to_string();
    let victim = Victim { containerd: &containerd, reference, archive: String::new() };
    for point in PULL {
        victim.die_and_do_again("pull", point);
        victim.use_and_remove().await;
        victim.is_clean_after(point).await;
    }
}

#[tokio::test]
async fn snapshots_and_removals_may_be_killed() {
    if !ready() {
        return;
    }
    let (containerd, folder) = (Containerd::start(), TempDir::new().unwrap());
    let archive = image_archive(folder.path(), "demo:1", 3, 1000).display().to_string();
    let victim = Victim { containerd: &containerd, reference: "demo:1".to_owned(), archive };
    assert!(victim.run("load", None).success());
    victim.die_and_do_again("prepare", "images.snapshot.prepared");
    victim.die_and_do_again("release", "images.snapshot.removed");
    // Unpacked anew because someone removed the snapshot.
    let store = containerd.store();
    let chain = store.find(&"demo:1".parse().unwrap()).await.unwrap().unwrap().chain_id().unwrap().to_string();
    containerd.ctr(&["snapshots", "rm", &chain]);
    victim.die_and_do_again("prepare", "images.unpack.labelled");
    assert!(victim.run("release", None).success());
    victim.die_and_do_again("remove", "images.image.removed");
    victim.is_clean_after("removal").await;
}
