//! Images in containerd: found, unpacked, named, removed.

mod client; // the connection, one call at a time
mod content; // blobs
mod error; // what can go wrong
mod lease; // keeping the garbage collector off
mod outgoing; // blobs that leave
mod records; // names
mod snapshot; // layers and the roots of containers

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use containerd_client::types::Mount;
use futures_util::stream::BoxStream;

use self::client::Containerd;
use self::content::Labels;
use self::lease::ActiveLeases;
pub(crate) use self::records::Origin;
use self::snapshot::SNAPSHOTTER;
use crate::assembly::{Assembly, Document, Next, Resolver};
use crate::digest::{Digest, chain_id};
use crate::error::ImageError;
use crate::gates::Gates;
use crate::image::{Image, ImageContent};
use crate::manifest::{Descriptor, MAX_CONFIG, MAX_MANIFEST, Platform};
use crate::progress::{Listeners, Phase};
use crate::pull::Pulls;
use crate::reference::Reference;
use crate::registry::{HttpRegistry, Registry, RegistryConfig};

pub(crate) use self::content::{BlobWriter, OpenBlob, blob_name};
pub use self::error::StoreError;
pub(crate) use self::lease::Lease;
pub use self::snapshot::SnapshotInfo;

/// More images than this on one node, and the cache starts anew; an entry has a few kilobytes.
const MAX_CACHED: usize = 512;

/// The images of one containerd namespace. Cheap to clone; all clones share caches and running pulls.
///
/// Nothing connects before it is used, and a restarted containerd is found again.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    containerd: Containerd,
    leases: ActiveLeases,
    registry: Arc<dyn Registry>,
    platform: Platform,
    pulls: Pulls,
    /// By target digest: content never changes under its digest.
    contents: Mutex<HashMap<Digest, Arc<ImageContent>>>,
    /// Chain ids seen committed; forgotten when containerd says otherwise.
    unpacked: Mutex<HashSet<Digest>>,
    /// One unpacking at a time per image.
    unpacking: Gates<Digest>,
    /// One download at a time per blob: images share layers.
    fetching: Gates<Digest>,
}

impl ImageStore {
    /// The store in `namespace` of the containerd behind `socket`. Goes nowhere yet; errors are about the arguments.
    pub fn connect(socket: impl Into<PathBuf>, namespace: &str) -> Result<Self, StoreError> {
        Self::connect_with(socket, namespace, RegistryConfig::default())
    }

    /// As [`connect`](Self::connect), with what the operator says about registries.
    pub fn connect_with(socket: impl Into<PathBuf>, namespace: &str, registries: RegistryConfig) -> Result<Self, StoreError> {
        Self::connect_with_registry(socket, namespace, Arc::new(HttpRegistry::new(registries)))
    }

    /// As [`connect`](Self::connect), with another source of images.
    pub fn connect_with_registry(socket: impl Into<PathBuf>, namespace: &str, registry: Arc<dyn Registry>) -> Result<Self, StoreError> {
        let inner = Inner {
            containerd: Containerd::new(socket.into(), namespace)?,
            leases: ActiveLeases::default(),
            registry,
            platform: Platform::host(),
            pulls: Pulls::default(),
            contents: Mutex::default(),
            unpacked: Mutex::default(),
            unpacking: Gates::default(),
            fetching: Gates::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The socket of the containerd behind it.
    pub fn socket(&self) -> &Path {
        self.inner.containerd.socket()
    }

    /// The snapshotter that holds unpacked images and the snapshots of containers.
    pub fn snapshotter(&self) -> &'static str {
        SNAPSHOTTER
    }

    pub fn namespace(&self) -> &str {
        self.inner.containerd.namespace()
    }

    /// Looks an image up locally: one call for a known name, some more the first time and for pinned references.
    ///
    /// A reference with a digest also finds an image of the same repository that was stored under a tag.
    /// `None` also when only remains of the image are there.
    pub async fn find(&self, reference: &Reference) -> Result<Option<Image>, ImageError> {
        let Some(target) = self.find_target(reference).await? else { return Ok(None) };
        let content = self.content(&target).await?;
        Ok(content.map(|content| Image::new(reference.clone(), content)))
    }

    /// Whether this very name, without a digest, was given to an image on this node, by an archive or by [`tag`](Self::tag), so that no registry
    /// need know it.
    pub async fn is_named_here(&self, reference: &Reference) -> Result<bool, ImageError> {
        let named = self.inner.containerd.named(&reference.local_name()).await?;
        Ok(reference.digest().is_none() && named.is_some_and(|named| named.origin == Origin::Here))
    }

    async fn find_target(&self, reference: &Reference) -> Result<Option<Descriptor>, ImageError> {
        let named = self.inner.containerd.named(&reference.local_name()).await?;
        let Some(digest) = reference.digest() else { return Ok(named.map(|named| named.target)) };
        if let Some(named) = named.filter(|named| named.target.digest.to_string() == digest) {
            return Ok(Some(named.target));
        }
        let repository = reference.repository();
        let same_repository = |name: &str| name.strip_prefix(&repository).is_some_and(|rest| rest.starts_with([':', '@']));
        let names = self.inner.containerd.names(Some(digest)).await?;
        Ok(names.into_iter().find(|named| same_repository(&named.name)).map(|named| named.target))
    }

    /// All images with a name that people could have typed, in order of name. Incomplete ones are left out.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut names = self.inner.containerd.names(None).await?;
        names.sort_by(|a, b| a.name.cmp(&b.name));
        let mut images = Vec::new();
        for named in names {
            let Ok(reference) = named.name.parse::<Reference>() else { continue };
            match self.content(&named.target).await {
                Ok(Some(content)) => images.push(Image::new(reference, content)),
                Ok(None) => tracing::debug!(image = %reference, "incomplete image left out"),
                Err(error @ (ImageError::Manifest(_) | ImageError::Store(StoreError::WrongDigest { .. }))) => {
                    tracing::debug!(image = %reference, %error, "unusable image left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(images)
    }

    /// Forgets an image; whether it was there. containerd removes what no other image and no container uses.
    pub async fn remove(&self, reference: &Reference) -> Result<bool, ImageError> {
        Ok(self.inner.containerd.unname(&reference.local_name()).await?)
    }

    /// Gives an image that is here a further name.
    pub async fn tag(&self, image: &Image, reference: &Reference) -> Result<Image, ImageError> {
        let lease = self.lease("tag", image.target()).await?;
        let name = reference.local_name();
        let named = self.inner.containerd.set_name(lease.id(), &name, &image.content().target, Origin::Here).await;
        lease.release(&self.inner.containerd).await?;
        named?;
        Ok(Image::new(reference.clone(), Arc::clone(image.content())))
    }

    /// Makes sure that the image's layers are unpacked. May be repeated; costs nothing once known.
    ///
    /// Fails with [`ImageError::Incomplete`] if a layer is gone from the content store: pull again.
    pub async fn ensure_unpacked(&self, image: &Image) -> Result<(), ImageError> {
        let Some(chain_id) = image.chain_id() else { return Ok(()) };
        if self.known_unpacked(chain_id) {
            return Ok(());
        }
        let _one_at_a_time = self.inner.unpacking.enter(chain_id).await;
        if self.known_unpacked(chain_id) {
            return Ok(());
        }
        if !self.inner.containerd.is_unpacked(chain_id).await? {
            let lease = self.lease("unpack", image.target()).await?;
            let done = self.unpack_stored(&lease, image).await;
            lease.release(&self.inner.containerd).await?;
            done.map_err(|error| match error {
                ImageError::Store(error) if error.is_not_found() => ImageError::Incomplete { image: image.reference().to_string() },
                error => error,
            })?;
        }
        self.remember_unpacked(chain_id);
        Ok(())
    }

    async fn unpack_stored(&self, lease: &Lease, image: &Image) -> Result<(), ImageError> {
        self.unpack(lease, image.content(), &Listeners::default()).await?;
        // From here on the image itself keeps its snapshots.
        let labels = image.chain_id().map(|id| (format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}"), id.to_string()));
        self.inner.containerd.label_blob(image.id(), labels.into_iter().collect()).await?;
        skep_failpoint::failpoint!("images.unpack.labelled");
        Ok(())
    }

    /// A writable root file system for a container, as mounts for containerd's `Task.Create`. One call, usually.
    ///
    /// It is safe from containerd's garbage collector until [`remove_snapshot`](Self::remove_snapshot).
    /// Repeated with the same key and image it gives the same mounts.
    pub async fn prepare_snapshot(&self, key: &str, image: &Image, labels: HashMap<String, String>) -> Result<Vec<Mount>, ImageError> {
        let parent = image.chain_id().map(ToString::to_string).unwrap_or_default();
        match self.inner.containerd.prepare_container(key, &parent, labels.clone()).await {
            Err(error) if error.is_not_found() => {}
            result => return Ok(result?),
        }
        // Not unpacked yet, or what we remember is no longer so.
        if let Some(chain_id) = image.chain_id() {
            self.inner.unpacked.lock().expect("no panic while held").remove(chain_id);
        }
        self.ensure_unpacked(image).await?;
        Ok(self.inner.containerd.prepare_container(key, &parent, labels).await?)
    }

    /// Removes a container's snapshot; one that is not there is fine.
    pub async fn remove_snapshot(&self, key: &str) -> Result<(), ImageError> {
        Ok(self.inner.containerd.remove_snapshot(key).await?)
    }

    /// All snapshots that [`prepare_snapshot`](Self::prepare_snapshot) made and nobody removed, for an audit.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, ImageError> {
        Ok(self.inner.containerd.container_snapshots().await?)
    }

    /// Drops what crashed or cancelled pulls left behind, so that containerd can collect it; returns how many leases.
    ///
    /// Work of this process that is under way is spared. Partial downloads of others are lost to resumption.
    pub async fn sweep(&self) -> Result<usize, ImageError> {
        Ok(self.inner.containerd.sweep_leases(&self.inner.leases).await?)
    }
}

/// For the modules that bring images in.
impl ImageStore {
    pub(crate) fn pulls(&self) -> &Pulls {
        &self.inner.pulls
    }

    pub(crate) fn registry(&self) -> &dyn Registry {
        &*self.inner.registry
    }

    pub(crate) fn fetching(&self) -> &Gates<Digest> {
        &self.inner.fetching
    }

    pub(crate) fn platform(&self) -> &Platform {
        &self.inner.platform
    }

    /// `purpose` and `subject` name the lease, so that the same work takes the same lease again.
    pub(crate) async fn lease(&self, purpose: &str, subject: &(dyn std::fmt::Display + Sync)) -> Result<Lease, ImageError> {
        let id = format!("skep-{purpose}-{}", Digest::of(subject.to_string().as_bytes()).hex());
        Ok(self.inner.containerd.lease(&self.inner.leases, id).await?)
    }

    pub(crate) async fn release(&self, lease: Lease) -> Result<(), ImageError> {
        Ok(lease.release(&self.inner.containerd).await?)
    }

    pub(crate) async fn open_blob(&self, lease: &Lease, name: &str, total: u64, expected: Option<&Digest>) -> Result<OpenBlob, StoreError> {
        self.inner.containerd.open_blob(lease.id(), name, total, expected).await
    }

    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.inner.containerd.has_blob(digest).await
    }

    /// See [`Containerd::stream_blob`].
    pub(crate) fn stream_blob(&self, blob: &Descriptor) -> BoxStream<'static, Result<Bytes, StoreError>> {
        self.inner.containerd.stream_blob(blob)
    }

    pub(crate) async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        self.inner.containerd.read_blob(digest, limit).await
    }

    /// Unpacks all layers, whose blobs must be there.
    pub(crate) async fn unpack(&self, lease: &Lease, content: &ImageContent, listeners: &Listeners) -> Result<(), ImageError> {
        if let Some(chain_id) = &content.chain_id
            && self.inner.containerd.hold_if_unpacked(lease.id(), chain_id).await?
        {
            for layer in &content.layers {
                listeners.tell(&layer.blob.digest, layer.blob.length(), layer.blob.length(), Phase::Unpacked);
            }
            return Ok(());
        }
        for position in 0..content.layers.len() {
            self.unpack_one(lease, content, position, listeners).await?;
        }
        Ok(())
    }

    /// Unpacks the layer at `position`; those below must have been.
    pub(crate) async fn unpack_one(
        &self,
        lease: &Lease,
        content: &ImageContent,
        position: usize,
        listeners: &Listeners,
    ) -> Result<(), ImageError> {
        let below = content.layers[..position].iter().map(|layer| &layer.diff_id);
        let parent = chain_id(below.clone());
        let layer = &content.layers[position];
        let own = chain_id(below.chain([&layer.diff_id])).expect("there is at least this layer");
        let size = layer.blob.length();
        listeners.tell(&layer.blob.digest, size, size, Phase::Unpacking);
        if !self.inner.containerd.hold_if_unpacked(lease.id(), &own).await? {
            self.inner.containerd.unpack_layer(lease.id(), layer, parent.as_ref(), &own).await?;
        }
        listeners.tell(&layer.blob.digest, size, size, Phase::Unpacked);
        Ok(())
    }

    /// Writes the documents of an image whose layers are stored and unpacked, and gives it its names.
    pub(crate) async fn record(
        &self,
        lease: &Lease,
        assembly: &Assembly,
        names: &[Reference],
        origin: Origin,
    ) -> Result<Arc<ImageContent>, ImageError> {
        for document in assembly.documents(SNAPSHOTTER) {
            let labels: Labels = document.labels.into_iter().collect();
            self.inner.containerd.put_blob(lease.id(), &document.data, &document.digest, labels).await?;
            skep_failpoint::failpoint!("images.document.written");
        }
        let content = Arc::clone(assembly.content());
        for name in names {
            self.inner.containerd.set_name(lease.id(), &name.local_name(), &content.target, origin).await?;
        }
        if let Some(chain_id) = &content.chain_id {
            self.remember_unpacked(chain_id);
        }
        self.remember(Arc::clone(&content));
        Ok(content)
    }

    /// The image behind a target, from memory or from the content store; `None` if a document of it is missing.
    async fn content(&self, target: &Descriptor) -> Result<Option<Arc<ImageContent>>, ImageError> {
        let known = self.inner.contents.lock().expect("no panic while held").get(&target.digest).cloned();
        if known.is_some() {
            return Ok(known);
        }
        match self.read_content(target.clone()).await {
            Ok(content) => {
                self.remember(Arc::clone(&content));
                Ok(Some(content))
            }
            Err(ImageError::Store(error)) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_content(&self, target: Descriptor) -> Result<Arc<ImageContent>, ImageError> {
        let mut resolver = Resolver::default();
        let mut wanted = target;
        loop {
            let data = self.read_blob(&wanted.digest, MAX_MANIFEST).await?;
            let (further, next) = resolver.take(Document { descriptor: wanted, data }, self.platform())?;
            match next {
                Next::Manifest(descriptor) => (resolver, wanted) = (further, descriptor),
                Next::Config(resolved) => {
                    let config = self.read_blob(&resolved.parts.config.digest, MAX_CONFIG).await?;
                    return Ok(Arc::clone(resolved.with_config(config)?.content()));
                }
            }
        }
    }

    fn remember(&self, content: Arc<ImageContent>) {
        let mut contents = self.inner.contents.lock().expect("no panic while held");
        if contents.len() >= MAX_CACHED {
            contents.clear();
        }
        contents.insert(content.target.digest.clone(), content);
    }

    fn known_unpacked(&self, chain_id: &Digest) -> bool {
        self.inner.unpacked.lock().expect("no panic while held").contains(chain_id)
    }

    fn remember_unpacked(&self, chain_id: &Digest) {
        let mut unpacked = self.inner.unpacked.lock().expect("no panic while held");
        if unpacked.len() >= MAX_CACHED {
            unpacked.clear();
        }
        unpacked.insert(chain_id.clone());
    }
}
