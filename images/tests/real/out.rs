//! Images on their way out: archives and registries.

use futures_util::TryStreamExt as _;
use skep_images::{Auth, ImageError, ImageStore, PushProgress, PushStep, Reference, RegistryError, SavedImage};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::harness::{Containerd, Registry, image_archive, ready, run};

async fn image(store: &ImageStore, name: &str) -> skep_images::Image {
    store.find(&name.parse().unwrap()).await.unwrap().expect("it is here")
}

#[tokio::test]
async fn saved_images_load_elsewhere_as_what_they_were() {
    if !ready() {
        return;
    }
    let (from, to, folder) = (Containerd::start(), Containerd::start(), TempDir::new().unwrap());
    let store = from.store();
    store.load_file(&image_archive(folder.path(), "one:1", 1, 2_000_000)).await.unwrap();
    // As `docker pull` keeps it: packed layers, Docker's media types.
    let (oci, docker) = (folder.path().join("1.tar"), folder.path().join("docker.tar"));
    run(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "-q",
            &format!("oci-archive:{}", oci.display()),
            &format!("docker-archive:{}:two:2", docker.display()),
        ],
    );
    store.load_file(&docker).await.unwrap();
    let images = [image(&store, "one:1").await, image(&store, "two:2").await];
    let wanted = images.clone().map(|image| SavedImage { names: vec![image.reference().clone(), "more/names:3".parse().unwrap()], image });
    // A name can be given once only.
    let [mut first, second] = wanted;
    first.names.pop();
    let archive = store.save(vec![first, second]).await.unwrap();
    let data: Vec<u8> = archive
        .try_fold(Vec::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await
        .unwrap();

    let other = to.store();
    let loaded = other.load(std::io::Cursor::new(data.clone())).await.unwrap();
    let names: Vec<String> = loaded.iter().map(|image| image.reference().to_string()).collect();
    assert_eq!(names, ["one:1", "two:2", "more/names:3"]);
    for before in &images {
        let after = image(&other, &before.reference().to_string()).await;
        assert_eq!((after.id(), after.target(), after.chain_id()), (before.id(), before.target(), before.chain_id()));
        other.ensure_unpacked(&after).await.unwrap();
    }
    // And for others it is a docker archive.
    let file = folder.path().join("saved.tar");
    std::fs::write(&file, &data).unwrap();
    let told = run("skopeo", &["inspect", "--raw", &format!("docker-archive:{}:two:2", file.display())]);
    assert!(told.contains(images[1].id().to_string().as_str()), "{told}");
}

#[tokio::test]
async fn what_is_not_whole_is_not_saved() {
    if !ready() {
        return;
    }
    let (containerd, folder) = (Containerd::start(), TempDir::new().unwrap());
    let store = containerd.store();
    let image = store.load_file(&image_archive(folder.path(), "x:1", 1, 300_000)).await.unwrap().remove(0);
    let layer = containerd.ctr(&["content", "ls"]);
    // The large layer goes; the documents stay.
    let layer = layer.lines().find(|line| line.contains("kB") || line.contains("KiB")).and_then(|line| line.split_whitespace().next());
    let Some(layer) = layer.filter(|digest| *digest != image.id().to_string()) else { panic!("no layer is listed") };
    containerd.ctr(&["content", "delete", layer]);
    let saved = store.save(vec![SavedImage { image, names: Vec::new() }]).await.map(|_| ());
    assert!(matches!(saved, Err(ImageError::Incomplete { .. })), "{saved:?}");
}

async fn pushed(store: &ImageStore, from: &str, to: &Reference, auth: Option<&Auth>) -> Result<Vec<PushStep>, ImageError> {
    let (sender, mut news) = mpsc::channel::<PushProgress>(1000);
    store.push(&image(store, from).await, to, auth, Some(sender)).await?;
    let mut last = std::collections::BTreeMap::new();
    while let Some(one) = news.recv().await {
        assert!(one.done <= one.total);
        last.insert(one.layer.to_string(), one.step);
    }
    Ok(last.into_values().collect())
}

#[tokio::test]
async fn a_pushed_image_is_pulled_elsewhere() {
    if !ready() {
        return;
    }
    let (from, to, registry, folder) = (Containerd::start(), Containerd::start(), Registry::start(), TempDir::new().unwrap());
    let store = from.store();
    let image = store.load_file(&image_archive(folder.path(), "x:1", 1, 5_000_000)).await.unwrap().remove(0);
    let reference = registry.reference("team/app:v1");
    assert_eq!(pushed(&store, "x:1", &reference, None).await.unwrap(), [PushStep::Sent, PushStep::Sent]);
    let pulled = to.store().pull(&reference, None, None).await.unwrap();
    assert_eq!((pulled.target(), pulled.id()), (image.target(), image.id()));
    // Once more under another tag: nothing but the manifest goes.
    assert_eq!(pushed(&store, "x:1", &registry.reference("team/app:v2"), None).await.unwrap(), [PushStep::Exists, PushStep::Exists]);
    assert_eq!(to.store().pull(&registry.reference("team/app:v2"), None, None).await.unwrap().target(), image.target());
}

#[tokio::test]
async fn a_locked_registry_takes_images_of_those_it_knows() {
    if !ready() {
        return;
    }
    let (containerd, registry, folder) = (Containerd::start(), Registry::start_locked(), TempDir::new().unwrap());
    let store = containerd.store();
    store.load_file(&image_archive(folder.path(), "x:1", 1, 300_000)).await.unwrap();
    let reference = registry.reference("app:v1");
    let refused = pushed(&store, "x:1", &reference, None).await;
    assert!(matches!(refused, Err(ImageError::Registry(RegistryError::AccessDenied { .. }))), "{refused:?}");
    let refused = pushed(&store, "x:1", &reference, Some(&Auth::password("me", "wrong"))).await;
    assert!(matches!(refused, Err(ImageError::Registry(RegistryError::Unauthorised { .. }))), "{refused:?}");
    let known = Auth::password("me", "secret");
    assert_eq!(pushed(&store, "x:1", &reference, Some(&known)).await.unwrap(), [PushStep::Sent, PushStep::Sent]);
    assert!(store.pull(&reference, Some(&known), None).await.is_ok());
}
