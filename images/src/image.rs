//! What is known of an image that is here.

use std::sync::Arc;

use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;
use crate::manifest::{Descriptor, Healthcheck, ImageManifest, ParsedConfig};
use crate::reference::Reference;

/// A local image. Cheap to clone; it says what was there when it was looked up.
#[derive(Debug, Clone)]
pub struct Image {
    reference: Reference,
    content: Arc<ImageContent>,
}

impl Image {
    pub(crate) fn new(reference: Reference, content: Arc<ImageContent>) -> Self {
        Self { reference, content }
    }

    /// The name under which it was found.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The digest people pin: of the index where the publisher has several platforms, else of the manifest.
    pub fn target(&self) -> &Digest {
        &self.content.target.digest
    }

    /// The digest of this platform's manifest.
    pub fn manifest(&self) -> &Digest {
        &self.content.manifest
    }

    /// The digest of the configuration: what Docker calls the image id.
    pub fn id(&self) -> &Digest {
        &self.content.config_digest
    }

    /// The committed snapshot that is the root file system; `None` for an image without layers.
    pub fn chain_id(&self) -> Option<&Digest> {
        self.content.chain_id.as_ref()
    }

    /// Entrypoint, command, environment, user, … as the image's author set them. Data, not trusted.
    pub fn config(&self) -> &ImageConfiguration {
        &self.content.config
    }

    /// `HEALTHCHECK`, where the image has one.
    pub fn healthcheck(&self) -> Option<&Healthcheck> {
        self.content.healthcheck.as_ref()
    }

    /// Bytes in the content store: manifest, configuration and packed layers.
    pub fn size(&self) -> u64 {
        self.content.size
    }

    /// Bytes of each packed layer, the lowest first.
    pub fn layer_sizes(&self) -> impl Iterator<Item = u64> {
        self.content.layers.iter().map(|layer| layer.blob.length())
    }

    pub(crate) fn content(&self) -> &Arc<ImageContent> {
        &self.content
    }
}

/// The part of an image that does not depend on its name, so it is kept per target digest.
#[derive(Debug)]
pub(crate) struct ImageContent {
    pub target: Descriptor,
    pub manifest: Digest,
    pub config_digest: Digest,
    pub layers: Vec<Layer>,
    pub chain_id: Option<Digest>,
    pub config: ImageConfiguration,
    pub healthcheck: Option<Healthcheck>,
    pub size: u64,
}

/// One layer: its blob, and the digest of what it unpacks to.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub blob: Descriptor,
    pub diff_id: Digest,
}

impl ImageContent {
    pub fn new(target: Descriptor, manifest: &Descriptor, parts: ImageManifest, parsed: ParsedConfig) -> Self {
        let blobs = parts.layers.iter().chain([&parts.config, manifest]);
        let size = blobs.map(Descriptor::length).sum();
        let layers = parts.layers.into_iter().zip(parsed.diff_ids);
        Self {
            target,
            manifest: manifest.digest.clone(),
            config_digest: parts.config.digest,
            layers: layers.map(|(blob, diff_id)| Layer { blob, diff_id }).collect(),
            chain_id: parsed.chain_id,
            config: parsed.config,
            healthcheck: parsed.healthcheck,
            size,
        }
    }
}
