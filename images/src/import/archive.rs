//! Reading the tar of an image archive: every name, type and size is checked before anything is kept.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use tar::EntryType;

use super::ArchiveError;
use crate::digest::Digest;
use crate::manifest::MAX_BLOB;

pub(super) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Links in `docker save` archives point straight to a layer; a chain is an attack.
const MAX_LINKS: usize = 4;

/// What an archive may hold at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Files, links and directories.
    pub entries: u64,
    /// Bytes of the archive after gunzip.
    pub bytes: u64,
    /// Bytes of documents (manifests, configurations) kept in memory.
    pub memory: u64,
    /// One document.
    pub document: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self { entries: 100_000, bytes: 128 * 1024 * MIB, memory: 64 * MIB, document: 8 * MIB }
    }
}

/// Where the bytes of blobs go.
pub(super) trait BlobSink {
    /// Takes exactly `size` bytes of `data`; fails if they are not `expected`.
    fn store(&mut self, size: u64, expected: Option<&Digest>, data: &mut dyn Read) -> Result<Stored, ArchiveError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub digest: Digest,
    pub size: u64,
    pub gzipped: bool,
}

/// An archive that has been read: blobs are stored, documents in memory.
#[derive(Debug, Default)]
pub(super) struct Archive {
    documents: BTreeMap<String, Bytes>,
    blobs: BTreeMap<String, Stored>,
    links: BTreeMap<String, String>,
    by_digest: HashMap<Digest, Option<Bytes>>,
}

impl Archive {
    /// A small file by its path.
    pub fn file(&self, path: &str) -> Option<&Bytes> {
        self.documents.get(&self.followed(path)?)
    }

    /// A stored file by its path, links followed.
    pub fn blob(&self, path: &str) -> Option<&Stored> {
        self.blobs.get(&self.followed(path)?)
    }

    pub fn holds(&self, digest: &Digest) -> bool {
        self.by_digest.contains_key(digest)
    }

    /// A document by its digest, if it was small enough to keep.
    pub fn document(&self, digest: &Digest) -> Option<Bytes> {
        self.by_digest.get(digest).cloned().flatten()
    }

    fn followed(&self, path: &str) -> Option<String> {
        let mut path = normal_path(path).ok()?;
        for _ in 0..MAX_LINKS {
            match self.links.get(&path) {
                Some(to) => path.clone_from(to),
                None => return Some(path),
            }
        }
        None
    }

    fn is_taken(&self, path: &str) -> bool {
        self.documents.contains_key(path) || self.blobs.contains_key(path) || self.links.contains_key(path)
    }
}

/// Reads an archive to its end.
pub(super) fn read_archive(input: impl Read, limits: Limits, sink: &mut dyn BlobSink) -> Result<Archive, ArchiveError> {
    let read = |source| ArchiveError::Read { source };
    let mut input = BufReader::with_capacity(64 * 1024, input);
    let is_gzipped = input.fill_buf().map_err(read)?.starts_with(&GZIP_MAGIC);
    let input: Box<dyn Read> = if is_gzipped { Box::new(MultiGzDecoder::new(input)) } else { Box::new(input) };
    // One byte more than allowed, so that the limit shows.
    let mut input = tar::Archive::new(input.take(limits.bytes.saturating_add(1)));
    let mut archive = Archive::default();
    let (mut entries, mut bytes, mut memory) = (0, 0_u64, 0_u64);
    for entry in input.entries().map_err(read)? {
        let mut entry = entry.map_err(read)?;
        entries += 1;
        if entries > limits.entries {
            return Err(ArchiveError::TooLarge { what: "entries", limit: limits.entries });
        }
        let raw = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        bytes = bytes.saturating_add(size);
        if bytes > limits.bytes || size > MAX_BLOB {
            return Err(ArchiveError::TooLarge { what: "bytes", limit: limits.bytes });
        }
        let path = match entry.header().entry_type() {
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            EntryType::Regular | EntryType::Continuous | EntryType::Symlink | EntryType::Link => normal_path(&raw)?,
            _ => return Err(ArchiveError::UnsupportedEntry { path: shown(&raw) }),
        };
        if archive.is_taken(&path) {
            return Err(ArchiveError::Duplicate { path: shown(&path) });
        }
        if let EntryType::Symlink | EntryType::Link = entry.header().entry_type() {
            let target = entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
            let target = target.ok_or_else(|| ArchiveError::UnsupportedEntry { path: shown(&raw) })?;
            let is_symlink = entry.header().entry_type() == EntryType::Symlink;
            archive.links.insert(path.clone(), link_target(&path, &target, is_symlink)?);
            continue;
        }
        match kind_of(&path, size, &limits) {
            Kind::Document { expected } => {
                memory += size;
                if memory > limits.memory || size > limits.document {
                    return Err(ArchiveError::TooLarge { what: "bytes of documents", limit: limits.memory });
                }
                let mut data = Vec::new();
                entry.read_to_end(&mut data).map_err(read)?;
                if data.len() as u64 != size {
                    return Err(ArchiveError::CutShort);
                }
                let data = Bytes::from(data);
                let digest = Digest::of(&data);
                // A blob is stored as well: it may be a small layer.
                if expected.is_some() || is_docker_config(&path) {
                    let stored = sink.store(size, expected.as_ref().or(Some(&digest)), &mut data.as_ref())?;
                    archive.blobs.insert(path.clone(), stored);
                    archive.by_digest.insert(digest, Some(data.clone()));
                }
                archive.documents.insert(path, data);
            }
            Kind::Blob { expected } => {
                let stored = sink.store(size, expected.as_ref(), &mut entry)?;
                archive.by_digest.insert(stored.digest.clone(), None);
                archive.blobs.insert(path, stored);
            }
            Kind::Ignored => {}
        }
    }
    Ok(archive)
}

enum Kind {
    Document { expected: Option<Digest> },
    Blob { expected: Option<Digest> },
    Ignored,
}

fn kind_of(path: &str, size: u64, limits: &Limits) -> Kind {
    /// A layer can be this small too, and then it costs little to keep.
    const SMALL: u64 = 256 * 1024;
    if matches!(path, "index.json" | "manifest.json") {
        return Kind::Document { expected: None };
    }
    if let Some(hex) = path.strip_prefix("blobs/sha256/") {
        let Ok(expected) = format!("sha256:{hex}").parse() else { return Kind::Ignored };
        let expected = Some(expected);
        return if size <= SMALL.min(limits.document) { Kind::Document { expected } } else { Kind::Blob { expected } };
    }
    if is_docker_config(path) {
        return Kind::Document { expected: None };
    }
    if path.ends_with(".tar") || path.ends_with(".tar.gz") {
        return Kind::Blob { expected: None };
    }
    // `oci-layout`, `repositories`, `<id>/VERSION`, `<id>/json`: nothing in them is needed.
    Kind::Ignored
}

/// `docker save` keeps the configuration as `<hex>.json` at the top.
fn is_docker_config(path: &str) -> bool {
    path.ends_with(".json") && !path.contains('/') && !matches!(path, "index.json" | "manifest.json")
}

/// The path within the archive, without `.`; no `..`, no root, no surprises.
pub(super) fn normal_path(raw: &str) -> Result<String, ArchiveError> {
    let refuse = || ArchiveError::UnsafePath { path: shown(raw) };
    if raw.starts_with('/') || raw.contains(['\0', '\\']) || raw.len() > 4096 {
        return Err(refuse());
    }
    let parts: Vec<_> = raw.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(refuse());
    }
    Ok(parts.join("/"))
}

/// Symbolic links are relative to their directory and may climb within the archive; hard links start at its root.
fn link_target(from: &str, target: &str, is_symlink: bool) -> Result<String, ArchiveError> {
    let refuse = || ArchiveError::UnsafePath { path: shown(target) };
    if target.starts_with('/') || target.len() > 4096 {
        return Err(refuse());
    }
    let mut parts: Vec<&str> = if is_symlink { from.split('/').collect() } else { Vec::new() };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or_else(refuse)?;
            }
            part => parts.push(part),
        }
    }
    normal_path(&parts.join("/"))
}

fn shown(path: &str) -> String {
    path.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[derive(Default)]
    pub struct Memory(pub Vec<Stored>);

    impl BlobSink for Memory {
        fn store(&mut self, size: u64, expected: Option<&Digest>, data: &mut dyn Read) -> Result<Stored, ArchiveError> {
            let mut bytes = Vec::new();
            data.take(size).read_to_end(&mut bytes).unwrap();
            let digest = Digest::of(&bytes);
            if let Some(expected) = expected.filter(|expected| **expected != digest) {
                return Err(crate::StoreError::WrongDigest { expected: expected.clone() }.into());
            }
            let stored = Stored { digest, size: bytes.len() as u64, gzipped: bytes.starts_with(&GZIP_MAGIC) };
            self.0.push(stored.clone());
            Ok(stored)
        }
    }

    /// A tar made by hand: the tar crate refuses to write bad names.
    fn raw_tar(files: &[(&str, EntryType, &str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, kind, link, data) in files {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(data);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out.resize(out.len() + 1024, 0);
        out
    }

    fn read(data: &[u8]) -> Result<Archive, ArchiveError> {
        read_archive(data, Limits::default(), &mut Memory::default())
    }

    const FILE: EntryType = EntryType::Regular;

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["/etc/passwd.json", "../x.json", "a/../../x.json", "a\\b.json"] {
            let refused = read(&raw_tar(&[(path, FILE, "", b"x")])).unwrap_err();
            assert!(matches!(refused, ArchiveError::UnsafePath { .. }), "{path}: {refused}");
        }
        for target in ["/etc/shadow", "../../x", "../../../../../etc/shadow"] {
            let refused = read(&raw_tar(&[("a/layer.tar", EntryType::Symlink, target, b"")])).unwrap_err();
            assert!(matches!(refused, ArchiveError::UnsafePath { .. }), "{target}: {refused}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_path_leads_out(path in "[a-z./\\\\]{0,30}", target in "[a-z./]{0,30}") {
            for kept in [normal_path(&path).ok(), link_target("a/b/c", &target, true).ok()].into_iter().flatten() {
                proptest::prop_assert!(kept.split('/').all(|part| !matches!(part, "" | "." | "..")), "{}", kept);
            }
        }
    }

    #[test]
    fn devices_duplicates_and_link_loops_are_refused() {
        let device = read(&raw_tar(&[("dev", EntryType::Char, "", b"")]));
        assert!(matches!(device, Err(ArchiveError::UnsupportedEntry { .. })));
        let twice = read(&raw_tar(&[("a.tar", FILE, "", b"1"), ("./a.tar", FILE, "", b"2")]));
        assert!(matches!(twice, Err(ArchiveError::Duplicate { .. })));
        let archive = read(&raw_tar(&[("a.tar", EntryType::Symlink, "b.tar", b""), ("b.tar", EntryType::Symlink, "a.tar", b"")])).unwrap();
        assert_eq!(archive.blob("a.tar"), None);
    }

    #[test]
    fn links_to_layers_are_followed() {
        let archive = read(&raw_tar(&[
            ("one/layer.tar", FILE, "", b"layer"),
            ("two/layer.tar", EntryType::Symlink, "../one/layer.tar", b""),
            ("three/layer.tar", EntryType::Link, "one/layer.tar", b""),
        ]))
        .unwrap();
        for path in ["one/layer.tar", "two/layer.tar", "three/layer.tar"] {
            assert_eq!(archive.blob(path).unwrap().digest, Digest::of(b"layer"), "{path}");
        }
    }

    #[test]
    fn blobs_must_be_what_their_name_says() {
        let good = format!("blobs/sha256/{}", Digest::of(b"data").hex());
        assert!(read(&raw_tar(&[(&good, FILE, "", b"data")])).unwrap().holds(&Digest::of(b"data")));
        let refused = read(&raw_tar(&[(&good, FILE, "", b"tampered")])).unwrap_err();
        assert!(matches!(refused, ArchiveError::Store(crate::StoreError::WrongDigest { .. })), "{refused}");
    }

    #[test]
    fn gzip_is_seen_by_content_and_bombs_are_stopped() {
        let big = vec![0; 4 * 1024 * 1024];
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&raw_tar(&[("a/layer.tar", FILE, "", &big)])).unwrap();
        let packed = packed.finish().unwrap();
        assert!(packed.len() < 100_000);
        assert!(read(&packed).unwrap().blob("a/layer.tar").is_some());
        let limits = Limits { bytes: 1024 * 1024, ..Limits::default() };
        let refused = read_archive(packed.as_slice(), limits, &mut Memory::default()).unwrap_err();
        assert!(matches!(refused, ArchiveError::TooLarge { .. }), "{refused}");
    }

    #[test]
    fn absurd_sizes_counts_and_documents_are_refused() {
        let mut absurd = raw_tar(&[("a.tar", FILE, "", b"x")]);
        let mut header = tar::Header::new_gnu();
        header.set_path("a.tar").unwrap();
        header.set_size(u64::MAX / 2);
        header.set_cksum();
        absurd[..512].copy_from_slice(header.as_bytes());
        assert!(matches!(read(&absurd), Err(ArchiveError::TooLarge { .. } | ArchiveError::Read { .. })));
        let files = raw_tar(&[("a", FILE, "", b""), ("b", FILE, "", b""), ("c", FILE, "", b"")]);
        let limits = Limits { entries: 2, ..Limits::default() };
        assert!(matches!(
            read_archive(files.as_slice(), limits, &mut Memory::default()),
            Err(ArchiveError::TooLarge { what: "entries", .. })
        ));
        let huge = vec![b' '; 9 * 1024 * 1024];
        assert!(matches!(read(&raw_tar(&[("manifest.json", FILE, "", &huge)])), Err(ArchiveError::TooLarge { .. })));
    }

    #[test]
    fn a_cut_archive_is_an_error() {
        let whole = raw_tar(&[("manifest.json", FILE, "", &[b' '; 5000])]);
        assert!(read(&whole[..2000]).is_err());
    }
}
