use std::collections::HashMap;
use std::path::Path;

use skep_images::{ImageStore, Reference};
use tempfile::TempDir;

use crate::archives::{Layout, arch_index};
use crate::harness::{Containerd, Mounted, image_archive, noise, ready, run};

async fn is_usable(store: &ImageStore, name: &str, seed: u64, size: usize) {
    let reference: Reference = name.parse().unwrap();
    let image = store.find(&reference).await.unwrap().expect("it was loaded");
    let key = format!("s-{seed}-{}", rand::random::<u32>());
    let mounts = store.prepare_snapshot(&key, &image, HashMap::new()).await.unwrap();
    let mounted = Mounted::new(&mounts);
    assert_eq!(mounted.read("data"), noise(seed, size));
    assert_eq!(mounted.read("etc/motd"), b"hello from the first layer\n");
    drop(mounted);
    store.remove_snapshot(&key).await.unwrap();
}

fn gzipped(archive: &Path) -> std::path::PathBuf {
    let path = archive.with_extension("tar.gz");
    let mut packer = flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
    std::io::copy(&mut std::fs::File::open(archive).unwrap(), &mut packer).unwrap();
    packer.finish().unwrap();
    path
}

#[tokio::test]
async fn our_own_archives_load_and_are_kept_by_their_name() {
    if !ready() {
        return;
    }
    let (containerd, folder) = (Containerd::start(), TempDir::new().unwrap());
    let store = containerd.store();
    let archive = image_archive(folder.path(), "demo:1", 1, 2_000_000);
    let images = store.load_file(&archive).await.unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].reference().to_string(), "demo:1");
    containerd.collect_garbage();
    is_usable(&store, "demo:1", 1, 2_000_000).await;
    // Again, packed: nothing changes.
    let again = store.load_file(&gzipped(&archive)).await.unwrap();
    assert_eq!(again[0].target(), images[0].target());
    store.remove(&"demo:1".parse().unwrap()).await.unwrap();
    containerd.collect_garbage();
    assert_eq!(containerd.remains(), ["", "", "", ""]);
}

#[tokio::test]
async fn archives_of_other_tools_load() {
    if !ready() {
        return;
    }
    let (containerd, folder) = (Containerd::start(), TempDir::new().unwrap());
    let store = containerd.store();
    let archive = image_archive(folder.path(), "x:1", 2, 300_000);
    let from = format!("oci-archive:{}", archive.display());
    for (kind, name) in [("docker-archive", "saved:2"), ("oci-archive", "layout.example/repo:3")] {
        let file = folder.path().join(format!("{kind}.tar"));
        run("skopeo", &["--insecure-policy", "copy", "-q", &from, &format!("{kind}:{}:{name}", file.display())]);
        let images = store.load_file(&file).await.unwrap();
        assert_eq!(images[0].reference().to_string(), name);
        is_usable(&store, name, 2, 300_000).await;
        store.load_file(&gzipped(&file)).await.unwrap();
    }
    // And the other way round: skopeo takes ours as a docker archive.
    let copy = folder.path().join("copy.tar");
    let to = format!("oci-archive:{}", copy.display());
    run("skopeo", &["--insecure-policy", "copy", "-q", &format!("docker-archive:{}", archive.display()), &to]);
}

#[tokio::test]
async fn a_nameless_image_wants_a_name() {
    if !ready() {
        return;
    }
    let (containerd, folder) = (Containerd::start(), TempDir::new().unwrap());
    let store = containerd.store();
    let archive = image_archive(folder.path(), "x:1", 3, 1000);
    let file = folder.path().join("nameless.tar");
    let to = format!("oci-archive:{}", file.display());
    run("skopeo", &["--insecure-policy", "copy", "-q", &format!("oci-archive:{}", archive.display()), &to]);
    let refused = store.load_file(&file).await.unwrap_err();
    assert!(refused.to_string().contains("has no name"), "{refused}");
    let name: Reference = "mine:1".parse().unwrap();
    let open = tokio::fs::File::open(&file).await.unwrap();
    assert_eq!(store.load_as(open, &name).await.unwrap().reference(), &name);
    is_usable(&store, "mine:1", 3, 1000).await;
}

#[tokio::test]
async fn of_several_platforms_ours_is_taken() {
    if !ready() {
        return;
    }
    let containerd = Containerd::start();
    let store = containerd.store();
    let mut layout = Layout::default();
    let index = arch_index(&mut layout, &[("s390x", "for s390x"), (crate::archives::host_arch(), "for us")]);
    layout.name(&index, "multi:1");
    let image = store.load(std::io::Cursor::new(layout.tar())).await.unwrap().remove(0);
    assert_eq!(image.target().to_string(), index.digest.to_string());
    let fresh = containerd.store().find(&"multi:1".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((fresh.manifest(), fresh.chain_id()), (image.manifest(), image.chain_id()));
    containerd.collect_garbage();
    let mounts = store.prepare_snapshot("s", &fresh, HashMap::new()).await.unwrap();
    assert_eq!(Mounted::new(&mounts).read("file"), b"for us");
}

#[tokio::test]
async fn an_image_without_layers_has_an_empty_root() {
    if !ready() {
        return;
    }
    let containerd = Containerd::start();
    let store = containerd.store();
    let mut archive = Vec::new();
    skep_images::ImageBuilder::new("empty:1".parse().unwrap()).write(&mut archive).unwrap();
    let image = store.load(std::io::Cursor::new(archive)).await.unwrap().remove(0);
    assert_eq!(image.chain_id(), None);
    let mounts = store.prepare_snapshot("s", &image, HashMap::new()).await.unwrap();
    assert_eq!(std::fs::read_dir(Mounted::new(&mounts).path()).unwrap().count(), 0);
}
