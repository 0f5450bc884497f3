//! Which images an archive holds, by OCI layout (image-spec image-layout.md) or by `docker save`. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;

use super::ArchiveError;
use super::archive::Archive;
use crate::digest::Digest;
use crate::manifest::{Descriptor, ImageIndex, ImageManifest, media};
use crate::reference::Reference;

/// containerd's and Docker's annotation with the full name.
const FULL_NAME: &str = "io.containerd.image.name";
/// OCI's own, which some fill with a full name and some with a tag only.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// One image of an archive.
#[derive(Debug)]
pub(super) struct Found {
    pub names: Vec<Reference>,
    pub target: Descriptor,
    /// The manifest, where the archive has none and it was made from `manifest.json`.
    pub manifest: Option<Bytes>,
}

/// One element of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// The archive's images under their names, or its only one under `name`.
pub(super) fn found_images(archive: &Archive, name: Option<&Reference>) -> Result<Vec<Found>, ArchiveError> {
    let saved: Vec<SavedImage> = match archive.file("manifest.json") {
        Some(data) => serde_json::from_slice(data).map_err(|source| ArchiveError::Malformed { file: "manifest.json", source })?,
        None => Vec::new(),
    };
    let mut found = match archive.file("index.json") {
        Some(data) => from_layout(archive, data, &saved)?,
        None if archive.file("manifest.json").is_some() => {
            saved.iter().map(|image| from_saved(archive, image)).collect::<Result<_, _>>()?
        }
        None => return Err(ArchiveError::NotAnImageArchive),
    };
    if let Some(name) = name {
        match found.as_mut_slice() {
            [one] => one.names = vec![name.clone()],
            more => return Err(ArchiveError::SeveralImages { images: more.len() }),
        }
    }
    match found.iter().find(|image| image.names.is_empty()) {
        Some(nameless) => Err(ArchiveError::NoName { digest: nameless.target.digest.clone() }),
        None if found.is_empty() => Err(ArchiveError::NoImage),
        None => Ok(found),
    }
}

/// Images of an OCI layout, one for each target; names of the same target are gathered.
fn from_layout(archive: &Archive, index: &Bytes, saved: &[SavedImage]) -> Result<Vec<Found>, ArchiveError> {
    let index: ImageIndex = serde_json::from_slice(index).map_err(|source| ArchiveError::Malformed { file: "index.json", source })?;
    let mut by_target: BTreeMap<usize, Found> = BTreeMap::new();
    let mut positions: BTreeMap<Digest, usize> = BTreeMap::new();
    for (position, descriptor) in index.manifests.into_iter().enumerate() {
        if !descriptor.media_type.is_empty() && !media::MANIFESTS.contains(&descriptor.media_type.as_str()) {
            continue;
        }
        let position = *positions.entry(descriptor.digest.clone()).or_insert(position);
        let name = annotated_name(&descriptor)?;
        let found = by_target.entry(position).or_insert_with(|| Found {
            names: Vec::new(),
            target: Descriptor { annotations: None, platform: None, ..descriptor },
            manifest: None,
        });
        found.names.extend(name);
    }
    let mut found: Vec<Found> = by_target.into_values().collect();
    // `docker save` since 25 writes both; its names are in the older file.
    for image in found.iter_mut().filter(|image| image.names.is_empty()) {
        image.names = saved_names(archive, &image.target, saved)?;
    }
    for image in &mut found {
        image.names.sort();
        image.names.dedup();
    }
    Ok(found)
}

fn annotated_name(descriptor: &Descriptor) -> Result<Option<Reference>, ArchiveError> {
    let annotation = |key: &str| descriptor.annotations.as_ref().and_then(|map| map.get(key)).map(String::as_str);
    let name = match (annotation(FULL_NAME), annotation(REF_NAME)) {
        (Some(full), _) => full,
        // A bare word is a tag without a repository, which names nothing.
        (None, Some(name)) if name.contains([':', '/']) => name,
        _ => return Ok(None),
    };
    parse_name(name).map(Some)
}

/// Names that `manifest.json` gives to the image with this manifest.
fn saved_names(archive: &Archive, target: &Descriptor, saved: &[SavedImage]) -> Result<Vec<Reference>, ArchiveError> {
    let Some(data) = archive.document(&target.digest) else { return Ok(Vec::new()) };
    let Ok(manifest) = serde_json::from_slice::<ImageManifest>(&data) else { return Ok(Vec::new()) };
    let same_config = |image: &&SavedImage| archive.blob(&image.config).is_some_and(|config| config.digest == manifest.config.digest);
    let tags = saved.iter().filter(same_config).flat_map(|image| image.repo_tags.iter().flatten());
    tags.map(|tag| parse_name(tag)).collect()
}

/// An image of `docker save`: the manifest is ours to make.
fn from_saved(archive: &Archive, image: &SavedImage) -> Result<Found, ArchiveError> {
    let blob = |path: &String| archive.blob(path).ok_or_else(|| ArchiveError::MissingFile { path: path.chars().take(200).collect() });
    let config = blob(&image.config)?;
    let layers = image.layers.iter().map(|path| {
        let layer = blob(path)?;
        let media_type = if layer.gzipped { media::DOCKER_LAYER_GZIP } else { media::DOCKER_LAYER };
        Ok(Descriptor::new(media_type, layer.digest.clone(), layer.size))
    });
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(media::DOCKER_MANIFEST.to_owned()),
        config: Descriptor::new(media::DOCKER_CONFIG, config.digest.clone(), config.size),
        layers: layers.collect::<Result<_, ArchiveError>>()?,
    };
    let data = Bytes::from(serde_json::to_vec(&manifest).expect("a manifest is plain data"));
    let names = image.repo_tags.iter().flatten().map(|tag| parse_name(tag)).collect::<Result<_, _>>()?;
    let target = Descriptor::new(media::DOCKER_MANIFEST, Digest::of(&data), data.len() as u64);
    Ok(Found { names, target, manifest: Some(data) })
}

fn parse_name(name: &str) -> Result<Reference, ArchiveError> {
    name.parse().map_err(|source| ArchiveError::BadName { name: name.chars().take(200).collect(), source })
}
