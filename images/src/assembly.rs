//! An image that has been resolved but not recorded: the documents from its target down to its configuration. Pure.

use std::sync::Arc;

use bytes::Bytes;

use crate::digest::Digest;
use crate::image::ImageContent;
use crate::manifest::{Descriptor, ImageManifest, Manifest, ManifestError, Platform, choose_platform, media, parse_config};

/// An index may point to an index; more than this is a joke.
const MAX_DEPTH: usize = 3;

/// A document and where it was pointed to from.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub descriptor: Descriptor,
    pub data: Bytes,
}

/// What is wanted next on the way from the target to the configuration.
pub(crate) enum Next {
    /// Another index or manifest.
    Manifest(Descriptor),
    /// The manifest is there; now its configuration.
    Config(Resolved),
}

/// Follows indexes down to the manifest for one platform.
#[derive(Default)]
pub(crate) struct Resolver {
    documents: Vec<Document>,
}

impl Resolver {
    /// Takes a document, whose digest the caller has checked.
    pub fn take(mut self, mut document: Document, host: &Platform) -> Result<(Self, Next), ManifestError> {
        let digest = document.descriptor.digest.clone();
        let named = Some(document.descriptor.media_type.as_str()).filter(|named| !named.is_empty());
        let manifest = Manifest::parse(&document.data, &digest, named)?;
        // The record in containerd needs a type, and containerd reads the document by it.
        if !media::MANIFESTS.contains(&document.descriptor.media_type.as_str()) {
            document.descriptor.media_type = match &manifest {
                Manifest::Image(image) => image.media_type.clone().unwrap_or_else(|| media::OCI_MANIFEST.to_owned()),
                Manifest::Index(index) => index.media_type.clone().unwrap_or_else(|| media::OCI_INDEX.to_owned()),
            };
        }
        self.documents.push(document);
        let next = match manifest {
            Manifest::Index(_) if self.documents.len() >= MAX_DEPTH => {
                return Err(ManifestError::NestedTooDeep { digest });
            }
            Manifest::Index(index) => Next::Manifest(choose_platform(&index, host)?.clone()),
            Manifest::Image(parts) => {
                let documents = std::mem::take(&mut self.documents);
                Next::Config(Resolved { documents, parts })
            }
        };
        Ok((self, next))
    }
}

/// Target to manifest, without the configuration.
pub(crate) struct Resolved {
    /// Outermost first; the last is the manifest. Never empty.
    pub documents: Vec<Document>,
    pub parts: ImageManifest,
}

impl Resolved {
    pub fn with_config(self, data: Bytes) -> Result<Assembly, ManifestError> {
        let parsed = parse_config(&data, &self.parts.config.digest, self.parts.layers.len())?;
        let target = self.documents.first().expect("a resolved image has a manifest").descriptor.clone();
        let manifest = &self.documents.last().expect("a resolved image has a manifest").descriptor;
        let content = Arc::new(ImageContent::new(target, manifest, self.parts, parsed));
        Ok(Assembly { documents: self.documents, config: data, content })
    }
}

/// Everything of an image but the bytes of its layers.
pub(crate) struct Assembly {
    documents: Vec<Document>,
    config: Bytes,
    content: Arc<ImageContent>,
}

/// A document with the labels by which containerd's garbage collector follows it.
pub(crate) struct Labelled {
    pub digest: Digest,
    pub data: Bytes,
    pub labels: Vec<(String, String)>,
}

impl Assembly {
    pub fn content(&self) -> &Arc<ImageContent> {
        &self.content
    }

    /// The documents in the order to write them: each after what it refers to.
    ///
    /// Label names are containerd's `docs/garbage-collection.md`.
    pub fn documents(&self, snapshotter: &str) -> Vec<Labelled> {
        let content = &self.content;
        let chain = content.chain_id.iter();
        let mut list = vec![Labelled {
            digest: content.config_digest.clone(),
            data: self.config.clone(),
            labels: chain.map(|id| (format!("containerd.io/gc.ref.snapshot.{snapshotter}"), id.to_string())).collect(),
        }];
        let label = |(n, digest): (usize, &Digest)| (format!("containerd.io/gc.ref.content.l.{n}"), digest.to_string());
        let mut labels: Vec<_> = content.layers.iter().map(|layer| &layer.blob.digest).enumerate().map(label).collect();
        labels.push(("containerd.io/gc.ref.content.config".to_owned(), content.config_digest.to_string()));
        for document in self.documents.iter().rev() {
            let digest = document.descriptor.digest.clone();
            let above = vec![("containerd.io/gc.ref.content.m.0".to_owned(), digest.to_string())];
            let labels = std::mem::replace(&mut labels, above);
            list.push(Labelled { digest, data: document.data.clone(), labels });
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_document_is_labelled_with_what_it_refers_to() {
        let layer = Digest::of(b"layer");
        let config = format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#);
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{}","digest":"{}","size":{}}},
               "layers":[{{"mediaType":"{}","digest":"{layer}","size":5}}]}}"#,
            media::OCI_CONFIG,
            Digest::of(config.as_bytes()),
            config.len(),
            media::OCI_LAYER,
        );
        let host = Platform::host();
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{},
               "platform":{{"os":"{}","architecture":"{}"}}}}]}}"#,
            media::OCI_MANIFEST,
            Digest::of(manifest.as_bytes()),
            manifest.len(),
            host.os,
            host.architecture,
        );
        let document = |text: &str| Document {
            descriptor: Descriptor::new("", Digest::of(text.as_bytes()), text.len() as u64),
            data: text.to_owned().into(),
        };
        let (resolver, next) = Resolver::default().take(document(&index), &host).unwrap();
        assert!(matches!(next, Next::Manifest(wanted) if wanted.digest == Digest::of(manifest.as_bytes())));
        let (_, next) = resolver.take(document(&manifest), &host).unwrap();
        let Next::Config(resolved) = next else { panic!("the configuration comes after the manifest") };
        let assembly = resolved.with_config(config.clone().into()).unwrap();
        assert_eq!(assembly.content().target.media_type, media::OCI_INDEX);
        let documents = assembly.documents("overlayfs");
        let labels: Vec<_> = documents.iter().map(|document| document.labels.clone()).collect();
        let label = |key: &str, digest: Digest| (format!("containerd.io/gc.ref.{key}"), digest.to_string());
        assert_eq!(labels[0], [label("snapshot.overlayfs", layer.clone())]);
        let config = Digest::of(config.as_bytes());
        assert_eq!(labels[1], [label("content.l.0", layer), label("content.config", config)]);
        assert_eq!(labels[2], [label("content.m.0", Digest::of(manifest.as_bytes()))]);
    }
}
