//! Snapshots: all objects in one sealed file.
//!
//! ```text
//! "SKEPSNAP"  format (1)  zero (7)  salt (32)  check (8: SHA-256 over the bytes before)     56 bytes
//! chunks of 64 KiB, each sealed with its number and whether it is the last; the last one is shorter
//! ```
//! Inside the chunks: length (u32) and [`SnapshotHead`]; length and object, one by one; a zero length; the state hash.
//! A chunk that is missing, swapped, cut off or of another file does not open.

use super::files::{self, File, FileExt, OpenOptions, OpenOptionsExt};
use super::key::{NONCE_BYTES, SealKey, TAG_BYTES, random};
use super::keys::Keys;
use super::{DiskError, counted_sync, failed, make_dir, sync_dir};
use crate::codec;
use crate::compact::Record;
use crate::raft::types::{LogId, Membership};
use crate::table::{StateHash, StateHasher, Tables, encode_object};
use ring::digest;
use serde::{Deserialize, Serialize};
use skep_types::Version;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"SKEPSNAP";
const FORMAT: u8 = 1;
const SALT: usize = 32;
const BOUND: usize = 16 + SALT;
const PREFACE: usize = BOUND + 8;
/// Plain bytes of a chunk.
pub(crate) const CHUNK: usize = 64 * 1024;
const SEALED: usize = CHUNK + TAG_BYTES;

/// What a snapshot says of itself, before the objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: Membership,
    pub(crate) revision: Version,
    pub(crate) objects: u64,
}

fn seal_preface(keys: &Keys) -> ([u8; PREFACE], SealKey) {
    let mut bytes = [0; PREFACE];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8] = FORMAT;
    bytes[16..BOUND].copy_from_slice(&random::<SALT>());
    let check = digest::digest(&digest::SHA256, &bytes[..BOUND]);
    bytes[BOUND..].copy_from_slice(&check.as_ref()[..8]);
    let key = keys.derive(b"snapshot", &bytes[..BOUND]);
    (bytes, key)
}

fn nonce(chunk: u64) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[4..].copy_from_slice(&chunk.to_be_bytes());
    nonce
}

/// Seals what is written to it, chunk by chunk, into a new file.
pub(crate) struct SealedWriter {
    file: BufWriter<File>,
    path: PathBuf,
    key: SealKey,
    chunk: u64,
    plain: Vec<u8>,
    failed: bool,
    /// Plain bytes so far.
    pub(crate) position: u64,
}

impl SealedWriter {
    pub(crate) fn create(path: &Path, keys: &Keys) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .map_err(failed("create the snapshot", path))?;
        let (preface, key) = seal_preface(keys);
        let mut file = BufWriter::with_capacity(SEALED, file);
        file.write_all(&preface).map_err(failed("write the snapshot", path))?;
        Ok(Self { file, path: path.to_owned(), key, chunk: 0, plain: Vec::with_capacity(SEALED), failed: false, position: 0 })
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), DiskError> {
        if self.failed {
            let source = std::io::Error::other("a part of it could not be written before");
            return Err(DiskError::Io { step: "write the snapshot", path: self.path.clone(), source });
        }
        while !bytes.is_empty() {
            // The last chunk is sealed as such by `finish`, so a full one is written only when more comes.
            if self.plain.len() == CHUNK {
                self.flush_chunk(false)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.plain.len()));
            self.plain.extend_from_slice(now);
            self.position += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn flush_chunk(&mut self, last: bool) -> Result<(), DiskError> {
        // What is sealed once cannot be sealed again: without success this is the end of it.
        self.failed = true;
        self.key.seal(nonce(self.chunk), &[u8::from(last)], &mut self.plain, 0);
        self.file.write_all(&self.plain).map_err(failed("write the snapshot", &self.path))?;
        self.plain.clear();
        self.chunk += 1;
        self.failed = false;
        Ok(())
    }

    /// Durable under its present name when this returns.
    pub(crate) fn finish(mut self) -> Result<(), DiskError> {
        self.flush_chunk(true)?;
        let file = self.file.into_inner().map_err(|error| failed("write the snapshot", &self.path)(error.into_error()))?;
        skep_failpoint::failpoint!("store.snapshot.written");
        counted_sync();
        file.sync_all().map_err(failed("sync the snapshot", &self.path))
    }
}

/// Opens the chunks of a sealed file one by one.
pub(crate) struct SealedReader {
    file: File,
    path: PathBuf,
    key: SealKey,
    /// Plain bytes in all.
    pub(crate) length: u64,
    chunks: u64,
    chunk: u64,
    plain: Vec<u8>,
    /// Next byte to give out.
    pub(crate) position: u64,
}

impl SealedReader {
    pub(crate) fn open(path: &Path, keys: &Keys) -> Result<Self, DiskError> {
        let file = File::open(path).map_err(failed("open the snapshot", path))?;
        let corrupt = |offset, what| DiskError::Corrupt { path: path.to_owned(), offset, what };
        let mut preface = [0; PREFACE];
        file.read_exact_at(&mut preface, 0).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => corrupt(0, "the snapshot is cut off"),
            _ => failed("read the snapshot", path)(error),
        })?;
        if preface[..8] != MAGIC || preface[BOUND..] != digest::digest(&digest::SHA256, &preface[..BOUND]).as_ref()[..8] {
            return Err(corrupt(0, "the first bytes are not those of a snapshot"));
        }
        if preface[8] != FORMAT {
            return Err(DiskError::Newer { path: path.to_owned(), format: preface[8] });
        }
        let sealed = files::size_of(&file).map_err(failed("read the size of the snapshot", path))? - PREFACE as u64;
        let chunks = sealed.div_ceil(SEALED as u64);
        let length = sealed
            .checked_sub(chunks * TAG_BYTES as u64)
            .filter(|_| chunks > 0)
            .ok_or_else(|| corrupt(sealed, "the snapshot is cut off"))?;
        let key = keys.derive(b"snapshot", &preface[..BOUND]);
        let mut reader = Self { file, path: path.to_owned(), key, length, chunks, chunk: u64::MAX, plain: Vec::new(), position: 0 };
        let first = reader.sealed(0)?;
        let opens = |key: &SealKey| key.open(nonce(0), &[u8::from(chunks == 1)], &mut first.clone()).is_some();
        reader.key = keys.find(b"snapshot", &preface[..BOUND], opens);
        Ok(reader)
    }

    /// Copies the next bytes; 0 at the end.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize, DiskError> {
        if self.position >= self.length {
            // An empty rest is sealed as well: without this a file cut at a chunk's end would pass.
            self.load(self.chunks - 1)?;
            return Ok(0);
        }
        self.load(self.position / CHUNK as u64)?;
        let from = usize::try_from(self.position % CHUNK as u64).unwrap_or(0);
        let count = out.len().min(self.plain.len() - from);
        out[..count].copy_from_slice(&self.plain[from..from + count]);
        self.position += count as u64;
        Ok(count)
    }

    fn offset(&self, chunk: u64) -> u64 {
        PREFACE as u64 + chunk * SEALED as u64
    }

    /// A chunk as it is in the file.
    fn sealed(&self, chunk: u64) -> Result<Vec<u8>, DiskError> {
        let offset = self.offset(chunk);
        let last = chunk + 1 == self.chunks;
        let end = if last { self.length + self.chunks * TAG_BYTES as u64 + PREFACE as u64 } else { offset + SEALED as u64 };
        let mut bytes = vec![0; usize::try_from(end - offset).unwrap_or(SEALED)];
        self.file.read_exact_at(&mut bytes, offset).map_err(failed("read the snapshot", &self.path))?;
        Ok(bytes)
    }

    fn load(&mut self, chunk: u64) -> Result<(), DiskError> {
        if self.chunk == chunk {
            return Ok(());
        }
        let mut bytes = self.sealed(chunk)?;
        let last = chunk + 1 == self.chunks;
        let plain = self.key.open(nonce(chunk), &[u8::from(last)], &mut bytes).map(<[u8]>::len);
        let Some(length) = plain else {
            let offset = self.offset(chunk);
            return Err(DiskError::Corrupt { path: self.path.clone(), offset, what: "a part of the snapshot does not match its seal" });
        };
        bytes.truncate(length);
        self.plain = bytes;
        self.chunk = chunk;
        Ok(())
    }

    fn exact(&mut self, out: &mut [u8]) -> Result<(), DiskError> {
        let mut filled = 0;
        while filled < out.len() {
            match self.read(&mut out[filled..])? {
                0 => return Err(self.corrupt("the snapshot ends too early")),
                count => filled += count,
            }
        }
        Ok(())
    }

    fn corrupt(&self, what: &'static str) -> DiskError {
        DiskError::Corrupt { path: self.path.clone(), offset: self.position, what }
    }

    /// The next part with its length before it; empty at the end mark.
    fn part(&mut self, out: &mut Vec<u8>) -> Result<(), DiskError> {
        let mut length = [0; 4];
        self.exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length as u64 > self.length - self.position {
            return Err(self.corrupt("a part of the snapshot is longer than the file"));
        }
        out.resize(length, 0);
        self.exact(out)
    }
}

/// Writes the tables into `path`; durable there when this returns.
pub(crate) fn write(path: &Path, keys: &Keys, head: &SnapshotHead, tables: &Tables) -> Result<StateHash, DiskError> {
    let mut out = SealedWriter::create(path, keys)?;
    let put = |out: &mut SealedWriter, bytes: &[u8]| {
        out.write(&u32::try_from(bytes.len()).expect("an object is at most some MiB").to_le_bytes())?;
        out.write(bytes)
    };
    put(&mut out, &codec::encode("snapshot head", head)?)?;
    let mut hasher = StateHasher::new(tables.revision());
    let mut bytes = Vec::new();
    for object in tables.objects() {
        encode_object(tables, object, &mut bytes)?;
        hasher.add(&bytes);
        put(&mut out, &bytes)?;
    }
    let hash = hasher.finish();
    out.write(&[0; 4])?;
    out.write(&hash.0)?;
    out.finish()?;
    Ok(hash)
}

/// What a snapshot says of itself.
pub(crate) fn read_head(path: &Path, keys: &Keys) -> Result<SnapshotHead, DiskError> {
    let mut bytes = Vec::new();
    SealedReader::open(path, keys)?.part(&mut bytes)?;
    Ok(codec::decode("snapshot head", &bytes)?)
}

/// Reads a snapshot in full and checks that it is the state it says it is.
pub(crate) fn load(path: &Path, keys: &Keys) -> Result<(SnapshotHead, Tables), DiskError> {
    let mut input = SealedReader::open(path, keys)?;
    let mut bytes = Vec::new();
    input.part(&mut bytes)?;
    let head: SnapshotHead = codec::decode("snapshot head", &bytes)?;
    let mut tables = Tables::new();
    tables.set_revision(head.revision);
    let mut hasher = StateHasher::new(head.revision);
    loop {
        input.part(&mut bytes)?;
        if bytes.is_empty() {
            break;
        }
        hasher.add(&bytes);
        let record: Record = codec::decode("object", &bytes)?;
        let object = record.object(|task| tables.service_spec(task));
        tables.restore(object.map_err(|_| input.corrupt("a task of the snapshot has no service to share a spec with"))?);
    }
    let mut hash = [0; 32];
    input.exact(&mut hash)?;
    if hasher.finish().0 != hash || tables.len() as u64 != head.objects || input.read(&mut [0])? != 0 {
        return Err(input.corrupt("the objects of the snapshot are not those it was made of"));
    }
    Ok((head, tables))
}

/// Where snapshots are kept; the one with the highest index counts.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotDir {
    pub(crate) dir: PathBuf,
    pub(crate) keys: Keys,
}

impl SnapshotDir {
    pub(crate) fn open(dir: &Path, keys: &Keys) -> Result<Self, DiskError> {
        make_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), keys: keys.clone() })
    }

    /// A name for a snapshot in the making.
    pub(crate) fn temporary(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{what}.new"))
    }

    pub(crate) fn path(&self, last: LogId) -> PathBuf {
        self.dir.join(format!("{:016x}-{:x}.snap", last.index, last.leader_id.term))
    }

    /// The newest snapshot's file.
    pub(crate) fn newest(&self) -> Result<Option<PathBuf>, DiskError> {
        Ok(self.all()?.pop())
    }

    /// Reads it in full. An older one under its name is refused.
    pub(crate) fn load_newest(&self) -> Result<Option<(PathBuf, SnapshotHead, Tables)>, DiskError> {
        let Some(path) = self.newest()? else { return Ok(None) };
        let (head, tables) = load(&path, &self.keys)?;
        if head.last.map(|last| self.path(last)).as_ref() != Some(&path) {
            return Err(DiskError::Corrupt { path, offset: 0, what: "it is another snapshot than its name says" });
        }
        Ok(Some((path, head, tables)))
    }

    fn all(&self) -> Result<Vec<PathBuf>, DiskError> {
        let mut found = Vec::new();
        for path in files::list(&self.dir).map_err(failed("list", &self.dir))? {
            if path.extension().is_some_and(|extension| extension == "snap") {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Gives a finished file its name and removes the older ones. Until the name is durable they stay.
    pub(crate) fn publish(&self, temporary: &Path, last: LogId) -> Result<PathBuf, DiskError> {
        let path = self.path(last);
        skep_failpoint::failpoint!("store.snapshot.rename");
        files::rename(temporary, &path).map_err(failed("rename the snapshot to", &path))?;
        sync_dir(&self.dir)?;
        skep_failpoint::failpoint!("store.snapshot.renamed");
        self.remove_older()?;
        Ok(path)
    }

    /// Removes what a crash left: unfinished files and all but the newest snapshot.
    pub(crate) fn tidy(&self) -> Result<(), DiskError> {
        for path in files::list(&self.dir).map_err(failed("list", &self.dir))? {
            if path.extension().is_some_and(|extension| extension == "new") {
                files::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        self.remove_older()
    }

    fn remove_older(&self) -> Result<(), DiskError> {
        let mut all = self.all()?;
        all.pop();
        for old in all {
            files::remove_file(&old).map_err(failed("remove", &old))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
