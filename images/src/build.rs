//! Making small images from files on disk, the same bytes each time.
//!
//! The archive is an OCI layout that is a `docker load` archive as well, so every tool takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use tar::{EntryType, Header};

use crate::digest::{Digest, Hasher};
use crate::manifest::{Platform, media};
use crate::reference::Reference;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("cannot read {} for the image", path.display())]
    ReadSource { path: PathBuf, source: io::Error },
    #[error("cannot write the image archive {}", path.display())]
    WriteArchive { path: PathBuf, source: io::Error },
    #[error("cannot write the image archive")]
    Write { source: io::Error },
    #[error("{path:?} cannot be a path in an image; write it absolute and without '..'")]
    BadPath { path: String },
    #[error("{path:?} is in the layer twice")]
    Duplicate { path: String },
    #[error("{} changed while the image was made; try again", path.display())]
    Changed { path: PathBuf },
    #[error("an image that is pinned by digest cannot be made; give {name} a tag only")]
    Pinned { name: Reference },
}

/// Where the bytes of a file in a layer come from.
#[derive(Debug, Clone)]
pub enum FileSource {
    Path(PathBuf),
    Bytes(Vec<u8>),
    Directory,
    /// A symbolic link to this target, as the container will see it.
    Link(String),
}

/// One file of a layer. Owned by root, dated 1970.
#[derive(Debug, Clone)]
pub struct LayerFile {
    /// Absolute, as in the container.
    pub path: String,
    pub source: FileSource,
    /// Permission bits, such as `0o755`.
    pub mode: u32,
}

impl LayerFile {
    pub fn program(path: &str, source: impl Into<PathBuf>) -> Self {
        Self { path: path.to_owned(), source: FileSource::Path(source.into()), mode: 0o755 }
    }

    pub fn text(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), source: FileSource::Bytes(text.as_bytes().to_vec()), mode: 0o644 }
    }

    pub fn directory(path: &str, mode: u32) -> Self {
        Self { path: path.to_owned(), source: FileSource::Directory, mode }
    }
}

/// How containers of the image start.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `8080/tcp`.
    pub exposed_ports: Vec<String>,
    pub working_dir: Option<String>,
    pub user: Option<String>,
    pub stop_signal: Option<String>,
    pub labels: BTreeMap<String, String>,
}

/// An image to be.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    names: Vec<Reference>,
    config: ImageConfig,
    layers: Vec<Vec<LayerFile>>,
    platform: Platform,
}

/// Makes an archive with one image of one layer and writes it to `output`; returns the manifest's digest.
///
/// The file appears whole or not at all.
pub fn build_image_archive(output: &Path, name: &Reference, files: Vec<LayerFile>, config: ImageConfig) -> Result<Digest, BuildError> {
    let failed = |source| BuildError::WriteArchive { path: output.to_path_buf(), source };
    let mut partial = output.as_os_str().to_owned();
    partial.push(format!(".{}.part", std::process::id()));
    let partial = PathBuf::from(partial);
    let file = File::create(&partial).map_err(failed)?;
    let built = ImageBuilder::new(name.clone()).config(config).layer(files).write(io::BufWriter::new(file));
    let finished = built.and_then(|digest| std::fs::rename(&partial, output).map(|()| digest).map_err(failed));
    if finished.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    finished
}

impl ImageBuilder {
    pub fn new(name: Reference) -> Self {
        Self { names: vec![name], config: ImageConfig::default(), layers: Vec::new(), platform: Platform::host() }
    }

    /// A further name.
    pub fn tag(mut self, name: Reference) -> Self {
        self.names.push(name);
        self
    }

    pub fn config(mut self, config: ImageConfig) -> Self {
        self.config = config;
        self
    }

    /// The platform the programs were built for; this machine's unless set.
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Puts a layer on top. Parent directories are added as needed (0755).
    pub fn layer(mut self, files: Vec<LayerFile>) -> Self {
        self.layers.push(files);
        self
    }

    /// Writes the archive; returns the digest of the manifest.
    pub fn write(self, output: impl Write) -> Result<Digest, BuildError> {
        if let Some(name) = self.names.iter().find(|name| name.digest().is_some()) {
            return Err(BuildError::Pinned { name: name.clone() });
        }
        let failed = |source| BuildError::Write { source };
        let mut archive = Archive::new(output);
        archive.directory("blobs").map_err(failed)?;
        archive.directory("blobs/sha256").map_err(failed)?;
        let mut layers = Vec::new();
        for files in &self.layers {
            let layer = pack_layer(files)?;
            archive.blob(&layer).map_err(failed)?;
            layers.push(layer);
        }
        let config = Blob::of(self.config_json(&layers));
        archive.blob(&config).map_err(failed)?;
        let manifest = Blob::of(to_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "config": config.descriptor(media::OCI_CONFIG),
            "layers": layers.iter().map(|layer| layer.descriptor(media::OCI_LAYER)).collect::<Vec<_>>(),
        })));
        archive.blob(&manifest).map_err(failed)?;
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(failed)?;
        archive.file("index.json", &self.index_json(&manifest)).map_err(failed)?;
        let saved = json!([{
            "Config": config.path(),
            "RepoTags": self.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "Layers": layers.iter().map(Blob::path).collect::<Vec<_>>(),
        }]);
        archive.file("manifest.json", &to_bytes(&saved)).map_err(failed)?;
        archive.finish().map_err(failed)?;
        Ok(manifest.digest)
    }

    fn index_json(&self, manifest: &Blob) -> Vec<u8> {
        let manifests = self.names.iter().map(|name| {
            let mut entry = manifest.descriptor(media::OCI_MANIFEST);
            entry["platform"] = json!(self.platform);
            entry["annotations"] = json!({
                "io.containerd.image.name": name.canonical(),
                "org.opencontainers.image.ref.name": name.tag().unwrap_or_default(),
            });
            entry
        });
        let manifests: Vec<_> = manifests.collect();
        to_bytes(&json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": manifests }))
    }

    fn config_json(&self, layers: &[Blob]) -> Vec<u8> {
        let config = &self.config;
        let mut run = serde_json::Map::new();
        let mut set = |key: &str, value: serde_json::Value, is_set: bool| {
            if is_set {
                run.insert(key.to_owned(), value);
            }
        };
        let ports: BTreeMap<_, _> = config.exposed_ports.iter().map(|port| (port, json!({}))).collect();
        set("Entrypoint", json!(config.entrypoint), !config.entrypoint.is_empty());
        set("Cmd", json!(config.cmd), !config.cmd.is_empty());
        set("Env", json!(config.env), !config.env.is_empty());
        set("ExposedPorts", json!(ports), !ports.is_empty());
        set("WorkingDir", json!(config.working_dir), config.working_dir.is_some());
        set("User", json!(config.user), config.user.is_some());
        set("StopSignal", json!(config.stop_signal), config.stop_signal.is_some());
        set("Labels", json!(config.labels), !config.labels.is_empty());
        let mut image = json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "config": run,
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>() },
            "history": layers.iter().map(|_| json!({
                "created": "1970-01-01T00:00:00Z",
                "created_by": "skep",
            })).collect::<Vec<_>>(),
        });
        if let Some(variant) = &self.platform.variant {
            image["variant"] = json!(variant);
        }
        to_bytes(&image)
    }
}

/// Something that will lie under `blobs/sha256`. Layers are as large as the programs in them, and stay on disk.
struct Blob {
    digest: Digest,
    size: u64,
    data: Data,
}

enum Data {
    Memory(Vec<u8>),
    /// An unnamed temporary file, at its start.
    Spooled(File),
}

impl Blob {
    fn of(data: Vec<u8>) -> Self {
        Self { digest: Digest::of(&data), size: data.len() as u64, data: Data::Memory(data) }
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest.hex())
    }

    fn descriptor(&self, media_type: &str) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.size })
    }
}

fn to_bytes(value: &serde_json::Value) -> Vec<u8> {
    // serde_json's maps are sorted, so the bytes are the same each time.
    serde_json::to_vec(value).expect("plain data")
}

/// Packs a layer into a spool file, entries sorted by path.
fn pack_layer(files: &[LayerFile]) -> Result<Blob, BuildError> {
    let entries = with_parents(files)?;
    let spool = tempfile::tempfile().map_err(|source| BuildError::Write { source })?;
    let mut tar = Archive::new(Hashing { inner: spool, hasher: Hasher::default() });
    let write = |source| BuildError::Write { source };
    for (path, entry) in &entries {
        let mode = entry.map_or(0o755, |file| file.mode);
        match entry.map(|file| &file.source) {
            None | Some(FileSource::Directory) => tar.entry(path, EntryType::Directory, mode, 0, &mut io::empty()).map_err(write)?,
            Some(FileSource::Bytes(data)) => {
                tar.entry(path, EntryType::Regular, mode, data.len() as u64, &mut data.as_slice()).map_err(write)?;
            }
            Some(FileSource::Link(target)) => tar.link(path, target).map_err(write)?,
            Some(FileSource::Path(source)) => {
                let unreadable = |error| BuildError::ReadSource { path: source.clone(), source: error };
                let file = File::open(source).map_err(unreadable)?;
                let size = file.metadata().map_err(unreadable)?.len();
                // Exactly what the header says, or the tar would be out of step.
                let mut data = file.take(size);
                tar.entry(path, EntryType::Regular, mode, size, &mut data).map_err(write)?;
                if data.limit() > 0 {
                    return Err(BuildError::Changed { path: source.clone() });
                }
            }
        }
    }
    let Hashing { inner: mut spool, hasher } = tar.finish().map_err(write)?;
    spool.seek(SeekFrom::Start(0)).map_err(write)?;
    let size = hasher.length();
    Ok(Blob { digest: hasher.finish(), size, data: Data::Spooled(spool) })
}

/// The files by path without the leading slash, and the directories above them; sorted, so parents come first.
fn with_parents(files: &[LayerFile]) -> Result<BTreeMap<String, Option<&LayerFile>>, BuildError> {
    let mut entries: BTreeMap<String, Option<&LayerFile>> = BTreeMap::new();
    for file in files {
        let bad = || BuildError::BadPath { path: file.path.clone() };
        let inner = file.path.strip_prefix('/').ok_or_else(bad)?.trim_end_matches('/');
        if inner.split('/').any(|part| matches!(part, "" | "." | "..")) || inner.contains('\0') {
            return Err(bad());
        }
        for (slash, _) in inner.match_indices('/') {
            entries.entry(inner[..slash].to_owned()).or_insert(None);
        }
        if let Some(Some(_)) = entries.insert(inner.to_owned(), Some(file)) {
            return Err(BuildError::Duplicate { path: file.path.clone() });
        }
    }
    Ok(entries)
}

/// A tar whose headers depend on nothing but its arguments.
struct Archive<W: Write> {
    tar: tar::Builder<W>,
    blobs: BTreeSet<Digest>,
}

impl<W: Write> Archive<W> {
    fn new(output: W) -> Self {
        Self { tar: tar::Builder::new(output), blobs: BTreeSet::new() }
    }

    fn entry(&mut self, path: &str, kind: EntryType, mode: u32, size: u64, data: &mut dyn Read) -> io::Result<()> {
        let mut header = plain_header(kind, mode);
        header.set_size(size);
        let path = if kind == EntryType::Directory { format!("{path}/") } else { path.to_owned() };
        self.tar.append_data(&mut header, path, data)
    }

    fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.tar.append_link(&mut plain_header(EntryType::Symlink, 0o777), path, target)
    }

    fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, EntryType::Directory, 0o755, 0, &mut io::empty())
    }

    fn file(&mut self, path: &str, data: &[u8]) -> io::Result<()> {
        self.entry(path, EntryType::Regular, 0o644, data.len() as u64, &mut { data })
    }

    /// Equal layers are one blob, written once.
    fn blob(&mut self, blob: &Blob) -> io::Result<()> {
        if !self.blobs.insert(blob.digest.clone()) {
            return Ok(());
        }
        match &blob.data {
            Data::Memory(data) => self.file(&blob.path(), data),
            Data::Spooled(file) => self.entry(&blob.path(), EntryType::Regular, 0o644, blob.size, &mut { file }),
        }
    }

    fn finish(self) -> io::Result<W> {
        let mut output = self.tar.into_inner()?;
        output.flush()?;
        Ok(output)
    }
}

fn plain_header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hasher.update(&data[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Reference {
        "demo:1".parse().unwrap()
    }

    fn build(files: Vec<LayerFile>) -> Result<(Digest, Vec<u8>), BuildError> {
        let mut archive = Vec::new();
        let config = ImageConfig { entrypoint: vec!["/bin/demo".to_owned()], ..ImageConfig::default() };
        let digest = ImageBuilder::new(name()).config(config).layer(files).write(&mut archive)?;
        Ok((digest, archive))
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let files = || vec![LayerFile::text("/etc/motd", "hi"), LayerFile::directory("/tmp", 0o1777)];
        let (first, archive) = build(files()).unwrap();
        let (second, again) = build(files().into_iter().rev().collect()).unwrap();
        assert_eq!(first, second);
        assert_eq!(archive, again);
        let (other, _) = build(vec![LayerFile::text("/etc/motd", "ho")]).unwrap();
        assert_ne!(first, other);
    }

    #[test]
    fn parents_come_before_their_files() {
        let files = [LayerFile::text("/a/b/c", ""), LayerFile::text("/a-b", "")];
        let paths: Vec<_> = with_parents(&files).unwrap().into_keys().collect();
        assert_eq!(paths, ["a", "a-b", "a/b", "a/b/c"]);
    }

    #[test]
    fn bad_paths_and_missing_sources_are_refused() {
        for path in ["relative", "/", "/a/../b", "/a//b", "/./a", "/a\0"] {
            let refused = build(vec![LayerFile::text(path, "")]);
            assert!(matches!(refused, Err(BuildError::BadPath { .. })), "{path}");
        }
        let twice = build(vec![LayerFile::text("/a", ""), LayerFile::text("/a", "")]);
        assert!(matches!(twice, Err(BuildError::Duplicate { .. })));
        let missing = build(vec![LayerFile::program("/a", "/nonexistent/file")]);
        assert!(matches!(missing, Err(BuildError::ReadSource { .. })));
    }
}
