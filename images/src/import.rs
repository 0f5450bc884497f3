//! Loading archives: OCI layouts and `docker save`, from a stream, into containerd.

mod archive; // the tar itself: names, limits, links
mod contents; // which images an archive holds; pure
mod error;

use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use skep_failpoint::failpoint;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::archive::{Archive, BlobSink, Stored, read_archive};
use self::contents::{Found, found_images};
use crate::assembly::{Document, Next, Resolver};
use crate::digest::{Digest, Hasher};
use crate::error::ImageError;
use crate::image::Image;
use crate::manifest::{Descriptor, MAX_CONFIG, MAX_MANIFEST};
use crate::progress::Listeners;
use crate::reference::Reference;
use crate::store::{ImageStore, Lease, OpenBlob, Origin, StoreError};

pub use self::archive::Limits;
pub use self::error::ArchiveError;

/// Pieces in which blobs go to containerd.
const PIECE: usize = 1024 * 1024;

impl ImageStore {
    /// Loads all images of an archive, gzipped or not, and unpacks them; what it holds is checked as a pull is.
    ///
    /// Reads to the end and never seeks. Dropping the future stops it within one blob's piece.
    pub async fn load<R>(&self, archive: R) -> Result<Vec<Image>, ImageError>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        self.load_within(archive, None, Limits::default()).await
    }

    /// As [`load`](Self::load), from a file.
    pub async fn load_file(&self, path: &Path) -> Result<Vec<Image>, ImageError> {
        let open = |source| ArchiveError::Open { path: path.to_path_buf(), source };
        let file = tokio::fs::File::open(path).await.map_err(open)?;
        self.load(file).await
    }

    /// As [`load`](Self::load), with other limits, and under `name` if there is one: then the archive must hold one image.
    pub async fn load_within<R>(&self, archive: R, name: Option<&Reference>, limits: Limits) -> Result<Vec<Image>, ImageError>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let lease = self.lease("load", &format!("{:x}", rand::random::<u128>())).await?;
        let outcome = self.load_under(&lease, archive, name, limits).await;
        // Nothing of a failed load is of use later, so the lease goes in any case.
        let released = self.release(lease).await;
        let images = outcome?;
        released?;
        Ok(images)
    }

    async fn load_under<R>(&self, lease: &Lease, archive: R, name: Option<&Reference>, limits: Limits) -> Result<Vec<Image>, ImageError>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let stop = CancellationToken::new();
        let _stop_on_drop = stop.clone().drop_guard();
        let runtime = Handle::current();
        let mut sink = StoreSink { store: self.clone(), lease: lease.shared(), runtime: runtime.clone(), stop: stop.clone() };
        let reader = BlockingReader { inner: archive, runtime, stop };
        // tar and gzip are synchronous; the thread ends with the stream, or at the next read after `stop`.
        let reading = tokio::task::spawn_blocking(move || read_archive(reader, limits, &mut sink));
        let archive = reading.await.map_err(|_| ArchiveError::Interrupted)??;
        failpoint!("images.load.read");
        let mut images = Vec::new();
        for found in found_images(&archive, name)? {
            images.extend(self.load_one(lease, &archive, found).await?);
        }
        Ok(images)
    }

    async fn load_one(&self, lease: &Lease, archive: &Archive, found: Found) -> Result<Vec<Image>, ImageError> {
        let mut resolver = Resolver::default();
        let mut wanted = found.target;
        let mut given = found.manifest;
        let resolved = loop {
            let data = match given.take() {
                Some(made_here) => made_here,
                None => self.document(archive, &wanted, MAX_MANIFEST).await?,
            };
            let (further, next) = resolver.take(Document { descriptor: wanted, data }, self.platform())?;
            match next {
                Next::Manifest(descriptor) => (resolver, wanted) = (further, descriptor),
                Next::Config(resolved) => break resolved,
            }
        };
        let config = self.document(archive, &resolved.parts.config, MAX_CONFIG).await?;
        let assembly = resolved.with_config(config)?;
        for layer in &assembly.content().layers {
            if !archive.holds(&layer.blob.digest) && !self.has_blob(&layer.blob.digest).await? {
                return Err(ArchiveError::MissingBlob { digest: layer.blob.digest.clone() }.into());
            }
        }
        self.unpack(lease, assembly.content(), &Listeners::default()).await?;
        failpoint!("images.load.unpacked");
        let content = self.record(lease, &assembly, &found.names, Origin::Here).await?;
        Ok(found.names.into_iter().map(|name| Image::new(name, content.clone())).collect())
    }

    /// A manifest, index or configuration: from the archive's memory, or from the content store.
    async fn document(&self, archive: &Archive, wanted: &Descriptor, limit: u64) -> Result<Bytes, ImageError> {
        if let Some(data) = archive.document(&wanted.digest) {
            return Ok(data);
        }
        match self.read_blob(&wanted.digest, limit).await {
            Err(error) if error.is_not_found() => Err(ArchiveError::MissingBlob { digest: wanted.digest.clone() }.into()),
            result => Ok(result?),
        }
    }

    /// Loads the one image of an archive under a name of the caller's choice, for archives that carry none.
    pub async fn load_as<R>(&self, archive: R, name: &Reference) -> Result<Image, ImageError>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let mut images = self.load_within(archive, Some(name), Limits::default()).await?;
        images.pop().ok_or_else(|| ArchiveError::NoImage.into())
    }
}

/// Carries blobs from the reading thread into containerd.
struct StoreSink {
    store: ImageStore,
    lease: Lease,
    runtime: Handle,
    stop: CancellationToken,
}

impl BlobSink for StoreSink {
    fn store(&mut self, size: u64, expected: Option<&Digest>, data: &mut dyn Read) -> Result<Stored, ArchiveError> {
        // A name of its own: a pull of the same blob may be under way.
        let name = format!("skep-load-{:032x}", rand::random::<u128>());
        let opened = self.runtime.block_on(self.store.open_blob(&self.lease, &name, size, expected));
        let mut writer = match opened? {
            OpenBlob::Exists => None,
            OpenBlob::Writing(writer) => Some(writer),
        };
        // A blob that another namespace of this containerd has is only committed.
        let is_whole = writer.as_ref().is_some_and(|writer| size > 0 && writer.offset() == size);
        let mut hasher = Hasher::default();
        let mut first_bytes = Vec::new();
        let mut piece = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE).max(1))];
        while hasher.length() < size {
            if self.stop.is_cancelled() {
                return Err(ArchiveError::Interrupted);
            }
            let got = data.read(&mut piece).map_err(|source| ArchiveError::Read { source })?;
            if got == 0 {
                return Err(ArchiveError::CutShort);
            }
            if first_bytes.is_empty() {
                first_bytes = piece[..got.min(8)].to_vec();
            }
            hasher.update(&piece[..got]);
            if let Some(writer) = writer.as_mut().filter(|_| !is_whole) {
                self.runtime.block_on(writer.write(Bytes::copy_from_slice(&piece[..got])))?;
            }
        }
        let digest = hasher.finish();
        // Also where containerd has the blob: an archive that lies about one part is not to be trusted in the others.
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(StoreError::WrongDigest { expected: expected.clone() }.into());
        }
        if let Some(writer) = writer {
            self.runtime.block_on(writer.commit(Some(&digest), Default::default()))?;
        }
        failpoint!("images.load.blob");
        Ok(Stored { digest, size, gzipped: first_bytes.starts_with(&archive::GZIP_MAGIC) })
    }
}

/// An asynchronous stream for a synchronous reader on a blocking thread.
struct BlockingReader<R> {
    inner: R,
    runtime: Handle,
    stop: CancellationToken,
}

impl<R: AsyncRead + Unpin> Read for BlockingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (inner, stop) = (&mut self.inner, &self.stop);
        self.runtime.block_on(async {
            tokio::select! {
                result = inner.read(buffer) => result,
                () = stop.cancelled() => Err(io::ErrorKind::ConnectionAborted.into()),
            }
        })
    }
}
