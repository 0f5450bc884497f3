//! Images out into an archive: an OCI layout that is a `docker load` archive as well, written as it is read.

use std::collections::HashSet;
use std::io;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::Image;
use crate::manifest::{Descriptor, ImageManifest, MAX_MANIFEST, media};
use crate::reference::Reference;
use crate::store::ImageStore;

/// The unit of a tar.
const BLOCK: u64 = 512;

/// An image of an archive to be, and the names it is to have there: none for one that was asked for by its id.
#[derive(Debug, Clone)]
pub struct SavedImage {
    pub image: Image,
    pub names: Vec<Reference>,
}

/// What the archive is written of, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Its path and bytes.
    File(&'static str, Bytes),
    Blob(Descriptor),
    /// Two empty blocks.
    End,
}

/// An image as its manifest tells it.
struct Described {
    /// Of this platform's manifest: what else the publisher has is not here.
    manifest: Descriptor,
    parts: ImageManifest,
    names: Vec<Reference>,
}

impl ImageStore {
    /// An archive of these images, in pieces. Each blob is in it once and is checked as it goes; what is found wrong ends the stream with an
    /// error, so that nobody takes half an archive for a whole one.
    ///
    /// # Errors
    /// [`ImageError::Incomplete`] if a blob is gone, before anything was written.
    pub async fn save(&self, images: Vec<SavedImage>) -> Result<BoxStream<'static, io::Result<Bytes>>, ImageError> {
        let mut all = Vec::new();
        for saved in images {
            all.push(self.described(saved).await?);
        }
        let store = self.clone();
        let pieces = stream::iter(parts(&all)).flat_map(move |part| match part {
            Part::File(path, data) => {
                stream::iter([Ok(header(path, data.len() as u64)), Ok(data.clone()), Ok(padding(data.len() as u64))]).boxed()
            }
            Part::Blob(blob) => {
                let head = stream::once(std::future::ready(Ok(header(&path_of(&blob.digest), blob.length()))));
                let tail = stream::once(std::future::ready(Ok(padding(blob.length()))));
                head.chain(store.stream_blob(&blob).map_err(io::Error::other)).chain(tail).boxed()
            }
            Part::End => stream::iter([Ok(Bytes::from_static(&[0; 2 * BLOCK as usize]))]).boxed(),
        });
        // After an error nothing comes: an archive must not go on behind a hole.
        let whole = pieces.scan(false, |broken, piece| {
            let was_broken = std::mem::replace(broken, *broken || piece.is_err());
            std::future::ready((!was_broken).then_some(piece))
        });
        Ok(whole.boxed())
    }

    async fn described(&self, saved: SavedImage) -> Result<Described, ImageError> {
        let image = &saved.image;
        let incomplete = || ImageError::Incomplete { image: image.reference().to_string() };
        let (manifest, parts) = self.outgoing_manifest(image).await?;
        for blob in parts.layers.iter().chain([&parts.config]) {
            if !self.has_blob(&blob.digest).await? {
                return Err(incomplete());
            }
        }
        Ok(Described { manifest: manifest.0, parts, names: saved.names })
    }

    /// The manifest of an image that is to leave: as it is stored, and what it says.
    ///
    /// # Errors
    /// [`ImageError::Incomplete`] if it is gone.
    pub(crate) async fn outgoing_manifest(&self, image: &Image) -> Result<((Descriptor, Bytes), ImageManifest), ImageError> {
        let digest = image.manifest();
        let data = self.read_blob(digest, MAX_MANIFEST).await.map_err(|error| match error {
            error if error.is_not_found() => ImageError::Incomplete { image: image.reference().to_string() },
            error => error.into(),
        })?;
        let malformed = |source| crate::ManifestError::Malformed { what: "manifest", digest: digest.clone(), source };
        let parts: ImageManifest = serde_json::from_slice(&data).map_err(malformed)?;
        let media_type = parts.media_type.as_deref().unwrap_or(media::OCI_MANIFEST);
        Ok(((Descriptor::new(media_type, digest.clone(), data.len() as u64), data), parts))
    }
}

fn parts(images: &[Described]) -> Vec<Part> {
    let mut seen: HashSet<&Digest> = HashSet::new();
    let blobs = images.iter().flat_map(|image| image.parts.layers.iter().chain([&image.parts.config, &image.manifest]));
    let blobs = blobs.filter(|blob| seen.insert(&blob.digest)).cloned().map(Part::Blob);
    let files = [
        Part::File("oci-layout", Bytes::from_static(br#"{"imageLayoutVersion":"1.0.0"}"#)),
        Part::File("index.json", bytes_of(&index(images))),
        Part::File("manifest.json", bytes_of(&saved(images))),
        Part::End,
    ];
    blobs.chain(files).collect()
}

/// One entry for each name; an image without one has an entry too.
fn index(images: &[Described]) -> Value {
    let entry = |image: &Described, name: Option<&Reference>| {
        let mut entry = json!({ "mediaType": image.manifest.media_type, "digest": image.manifest.digest, "size": image.manifest.size });
        if let Some(name) = name {
            entry["annotations"] = json!({
                "io.containerd.image.name": name.canonical(),
                "org.opencontainers.image.ref.name": name.tag().unwrap_or_default(),
            });
        }
        entry
    };
    let entries = images.iter().flat_map(|image| match image.names.as_slice() {
        [] => vec![entry(image, None)],
        names => names.iter().map(|name| entry(image, Some(name))).collect(),
    });
    json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries.collect::<Vec<_>>() })
}

/// `manifest.json`: what `docker load` of all versions reads.
fn saved(images: &[Described]) -> Value {
    let one = |image: &Described| {
        let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
        json!({
            "Config": path_of(&image.parts.config.digest),
            "RepoTags": if names.is_empty() { Value::Null } else { json!(names) },
            "Layers": image.parts.layers.iter().map(|layer| path_of(&layer.digest)).collect::<Vec<_>>(),
        })
    };
    Value::Array(images.iter().map(one).collect())
}

fn path_of(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn bytes_of(value: &Value) -> Bytes {
    value.to_string().into()
}

/// Depends on nothing but its arguments. Sizes above 8 GiB go in binary, as GNU tar has it.
fn header(path: &str, size: u64) -> Bytes {
    let mut header = Header::new_gnu();
    // All our paths are shorter than the hundred bytes of the field.
    let _ = header.set_path(path);
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Bytes::copy_from_slice(header.as_bytes())
}

fn padding(size: u64) -> Bytes {
    const EMPTY: [u8; BLOCK as usize] = [0; BLOCK as usize];
    let rest = usize::try_from((BLOCK - size % BLOCK) % BLOCK).unwrap_or(0);
    Bytes::from_static(&EMPTY[..rest])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(media_type: &str, data: &[u8]) -> Descriptor {
        Descriptor::new(media_type, Digest::of(data), data.len() as u64)
    }

    fn described(layers: &[&[u8]], names: &[&str]) -> Described {
        let parts = ImageManifest {
            schema_version: 2,
            media_type: None,
            config: blob(media::OCI_CONFIG, b"config"),
            layers: layers.iter().map(|layer| blob(media::OCI_LAYER, layer)).collect(),
        };
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        Described { manifest: blob(media::OCI_MANIFEST, b"manifest"), parts, names }
    }

    #[test]
    fn each_blob_is_written_once_and_named_where_it_is_used() {
        let images = [described(&[b"one", b"two", b"one"], &["a:1", "b:2"]), described(&[b"two"], &[])];
        let blobs = parts(&images).into_iter().filter(|part| matches!(part, Part::Blob(_))).count();
        assert_eq!(blobs, 4, "two layers, a configuration, a manifest");
        let saved = saved(&images);
        assert_eq!(saved[0]["Layers"].as_array().unwrap().len(), 3, "a layer that is there twice is named twice");
        assert_eq!((&saved[0]["RepoTags"], &saved[1]["RepoTags"]), (&json!(["a:1", "b:2"]), &Value::Null));
        let index = index(&images);
        let named: Vec<_> =
            index["manifests"].as_array().unwrap().iter().map(|one| one["annotations"]["io.containerd.image.name"].clone()).collect();
        assert_eq!(named, [json!("docker.io/library/a:1"), json!("docker.io/library/b:2"), Value::Null]);
    }

    #[test]
    fn pieces_fill_whole_blocks() {
        for size in [0, 1, 511, 512, 513, 9 << 30] {
            assert_eq!((size + padding(size).len() as u64) % BLOCK, 0, "{size}");
            let head = header("blobs/sha256/x", size);
            assert_eq!((head.len(), Header::from_byte_slice(&head).size().unwrap()), (512, size));
        }
    }
}
