use std::time::{Duration, Instant};

use skep_images::{ArchiveError, Auth, Digest, ImageError, Reference, RegistryError, StoreError};
use tempfile::TempDir;

use crate::archives::{Layout, arch_index, host_arch};
use crate::harness::{Containerd, Registry, image_archive, ready};

#[tokio::test]
async fn a_tampered_blob_is_refused_and_the_right_one_taken_later() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    registry.push(&image_archive(folder.path(), "x:1", 1, 2_000_000), "app:v1", None);
    let (store, reference) = (containerd.store(), registry.reference("app:v1"));
    // Find the large layer: the pull of a good copy tells its digest.
    let other = Containerd::start();
    let digests = {
        other.store().pull(&reference, None, None).await.unwrap();
        other.ctr(&["content", "ls", "-q"])
    };
    let largest = digests.lines().max_by_key(|digest| std::fs::metadata(registry.blob_file(digest)).unwrap().len());
    let file = registry.blob_file(largest.unwrap());
    let good = std::fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad[1_500_000] ^= 1;
    std::fs::write(&file, bad).unwrap();

    let refused = store.pull(&reference, None, None).await.unwrap_err();
    assert!(matches!(*refused, ImageError::Store(StoreError::WrongDigest { .. })), "{refused:?}");
    assert!(refused.to_string().starts_with("wrong digest"), "{refused}");
    assert!(store.find(&reference).await.unwrap().is_none());
    containerd.collect_garbage();
    assert_eq!(containerd.remains(), ["", "", "", ""]);

    std::fs::write(&file, good).unwrap();
    store.pull(&reference, None, None).await.unwrap();
}

#[tokio::test]
async fn a_tampered_manifest_is_refused() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start(), TempDir::new().unwrap());
    registry.push(&image_archive(folder.path(), "x:1", 2, 1000), "app:v1", None);
    let (store, reference) = (containerd.store(), registry.reference("app:v1"));
    let good = store.pull(&reference, None, None).await.unwrap();
    let file = registry.blob_file(&good.target().to_string());
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"schemaVersion\":2", "\"schemaVersion\": 2", 1)).unwrap();
    let refused = store.pull(&reference, None, None).await.unwrap_err();
    assert!(matches!(*refused, ImageError::Registry(RegistryError::WrongDigest { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_is_missing_or_locked_is_said_in_words() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start_locked(), TempDir::new().unwrap());
    let store = containerd.store();
    registry.push(&image_archive(folder.path(), "x:1", 3, 1000), "app:v1", Some("me:secret"));
    let reference = registry.reference("app:v1");

    let anonymous = store.pull(&reference, None, None).await.unwrap_err();
    assert!(matches!(*anonymous, ImageError::Registry(RegistryError::AccessDenied { .. })), "{anonymous:?}");
    let wrong = store.pull(&reference, Some(&Auth::password("me", "wrong")), None).await.unwrap_err();
    assert!(matches!(*wrong, ImageError::Registry(RegistryError::Unauthorised { .. })), "{wrong:?}");
    let json = r#"{"username":"me","password":"secret","serveraddress":"other.example"}"#;
    let foreign = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE, json);
    let foreign = store.pull(&reference, Auth::parse(&foreign).unwrap().as_ref(), None).await.unwrap_err();
    assert!(matches!(*foreign, ImageError::Registry(RegistryError::ForeignCredentials { .. })), "{foreign:?}");

    let right = Auth::password("me", "secret");
    store.pull(&reference, Some(&right), None).await.unwrap();
    let missing = store.pull(&registry.reference("app:v2"), Some(&right), None).await.unwrap_err();
    assert_eq!(missing.to_string(), format!("no such image: 127.0.0.1:{}/app:v2", registry.port));
    for error in [anonymous, wrong, foreign] {
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}

#[tokio::test]
async fn registries_that_are_not_there_are_given_up_soon() {
    if !ready() {
        return;
    }
    let (containerd, registry) = (Containerd::start(), Registry::start());
    let store = containerd.store();
    let start = Instant::now();
    let pull = async |name: String| {
        let reference: Reference = name.parse().unwrap();
        store.pull(&reference, None, None).await.unwrap_err()
    };
    let (nowhere, refused, plain) = tokio::join!(
        pull("registry.invalid/app".to_owned()),
        pull("127.0.0.1:1/app".to_owned()),
        // Not a loopback name, so TLS is spoken to a server that has none.
        pull(format!("0.0.0.0:{}/app", registry.port)),
    );
    assert!(nowhere.to_string().starts_with("no such host: registry registry.invalid"), "{nowhere}");
    assert!(matches!(*refused, ImageError::Registry(RegistryError::Unreachable { .. })), "{refused:?}");
    assert!(matches!(*plain, ImageError::Registry(RegistryError::Tls { .. })), "{plain:?}");
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_layer_that_unpacks_to_something_else_is_refused() {
    if !ready() {
        return;
    }
    let containerd = Containerd::start();
    let store = containerd.store();
    let mut layout = Layout::default();
    let layer = layout.layer("text");
    let manifest = layout.manifest(host_arch(), &[layer], &[Digest::of(b"something else")]);
    layout.name(&manifest, "liar:1");
    let refused = store.load(std::io::Cursor::new(layout.tar())).await.unwrap_err();
    assert!(matches!(refused, ImageError::Store(StoreError::WrongDiffId { .. })), "{refused:?}");
    containerd.collect_garbage();
    assert_eq!(containerd.remains(), ["", "", "", ""]);
}

#[tokio::test]
async fn broken_archives_are_refused_and_leave_nothing() {
    if !ready() {
        return;
    }
    let containerd = Containerd::start();
    let store = containerd.store();
    let made = |change: fn(&mut Layout)| {
        let mut layout = Layout::default();
        let layer = layout.layer("text");
        let manifest = layout.manifest(host_arch(), std::slice::from_ref(&layer), std::slice::from_ref(&layer.digest));
        layout.name(&manifest, "app:1");
        change(&mut layout);
        layout.tar()
    };
    let layer_of = |layout: &mut Layout| layout.layer("text");
    let tampered = {
        let mut layout = Layout::default();
        let layer = layer_of(&mut layout);
        let manifest = layout.manifest(host_arch(), std::slice::from_ref(&layer), std::slice::from_ref(&layer.digest));
        layout.name(&manifest, "app:1");
        layout.tamper(&layer, b"other".to_vec());
        layout.tar()
    };
    let lacking = {
        let mut layout = Layout::default();
        let layer = layer_of(&mut layout);
        let manifest = layout.manifest(host_arch(), std::slice::from_ref(&layer), std::slice::from_ref(&layer.digest));
        layout.name(&manifest, "app:1");
        layout.lose(&layer);
        layout.tar()
    };
    let foreign = {
        let mut layout = Layout::default();
        let index = arch_index(&mut layout, &[("s390x", "a"), ("ppc64le", "b")]);
        layout.name(&index, "app:1");
        layout.tar()
    };
    let whole = made(|_| {});
    let cut = whole[..whole.len() / 2].to_vec();
    let bad_name = made(|layout| {
        let layer = layout.layer("text");
        let manifest = layout.manifest(host_arch(), std::slice::from_ref(&layer), std::slice::from_ref(&layer.digest));
        layout.name(&manifest, "Not/A:Name:");
    });
    let cases = [
        ("tampered", tampered, "wrong digest"),
        ("lacking a layer", lacking, "archive lacks blob"),
        ("for other machines", foreign, "image has no variant for"),
        ("cut", cut, "archive"),
        ("no tar", b"this is no tar archive at all".to_vec(), "cannot read the archive"),
        ("empty", Vec::new(), "archive holds neither"),
        ("bad name", bad_name, "archive names an image"),
    ];
    for (what, archive, words) in cases {
        let refused = store.load(std::io::Cursor::new(archive)).await.expect_err(what);
        assert!(refused.to_string().contains(words), "{what}: {refused}");
    }
    let missing = store.load_file(std::path::Path::new("/nonexistent.tar")).await.unwrap_err();
    assert!(matches!(missing, ImageError::Archive(ArchiveError::Open { .. })));
    assert!(store.list().await.unwrap().is_empty());
    containerd.collect_garbage();
    assert_eq!(containerd.remains(), ["", "", "", ""]);
}

#[tokio::test]
async fn a_full_disk_is_said_in_words() {
    if !ready() {
        return;
    }
    let (containerd, folder) = (Containerd::start_on_small_disk(12), TempDir::new().unwrap());
    let store = containerd.store();
    let archive = image_archive(folder.path(), "big:1", 4, 20_000_000);
    let refused = store.load_file(&archive).await.unwrap_err();
    assert!(matches!(refused, ImageError::Store(StoreError::NoSpace { .. })), "{refused:?}");
}
