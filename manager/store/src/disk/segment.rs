//! One file of the log.

use super::files::{self, File, FileExt, OpenOptions};
use super::frame::{self, Block, HEADER};
use super::key::{SealKey, Tag, random};
use super::keys::Keys;
use super::{DiskError, failed};
use ring::digest;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"SKEPSEG1";
/// Bytes before the first frame: magic, number, size of the file, salt, check, padding.
pub(crate) const PREFACE: usize = 64;
const SALT: usize = 24;
const BOUND: usize = 24 + SALT;

/// A segment that is part of the log.
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) key: SealKey,
}

/// One frame of a segment, opened.
pub(crate) struct Frame {
    pub(crate) kind: frame::FrameKind,
    pub(crate) offset: usize,
    pub(crate) payload: Vec<u8>,
    pub(crate) tag: Tag,
}

/// What [`Segment::scan`] found.
pub(crate) struct Scan {
    pub(crate) frames: Vec<Frame>,
    /// Where the next frame goes.
    pub(crate) end: usize,
    /// Whether a torn write or rests of one lie behind `end`.
    pub(crate) torn: bool,
}

pub(crate) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.seg"))
}

/// The number in a segment's file name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// The highest number of a segment in the directory.
pub(crate) fn newest(dir: &Path) -> Result<Option<u64>, DiskError> {
    let mut newest = None;
    for file in files::list(dir).map_err(failed("list", dir))? {
        newest = newest.max(file.file_name().and_then(|name| name.to_str()).and_then(segment_number));
    }
    Ok(newest)
}

/// The first bytes of a new segment and the key of its frames. Each segment has a key of its own, so that random
/// nonces cannot run out.
pub(crate) fn preface(keys: &Keys, number: u64, size: u64) -> (Vec<u8>, SealKey) {
    let salt: [u8; SALT] = random();
    let mut bytes = Vec::with_capacity(PREFACE);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(&salt);
    bytes.extend_from_slice(&digest::digest(&digest::SHA256, &bytes).as_ref()[..8]);
    let key = keys.derive(b"log", &bytes[8..BOUND]);
    bytes.resize(PREFACE, 0xa5);
    (bytes, key)
}

/// Whether the first frame opens with this key. It was durable before the segment got its name.
fn opens(key: &SealKey, bytes: &[u8]) -> bool {
    let rest = &bytes[PREFACE..];
    let Some(head) = rest.get(..HEADER) else { return false };
    let Block::Header(header) = frame::read_header(head) else { return false };
    let extent = &rest[HEADER..frame::frame_size(header.payload).min(rest.len())];
    frame::open_payload(key, &header, &mut extent.to_vec()).is_some()
}

impl Segment {
    /// Opens an existing segment. Its name appeared only after its first bytes were durable, so a bad preface is damage.
    pub(crate) fn open(dir: &Path, number: u64, keys: &Keys) -> Result<(Self, Vec<u8>), DiskError> {
        let path = segment_path(dir, number);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open the log segment", &path))?;
        let bytes = files::read(&path).map_err(failed("read the log segment", &path))?;
        let corrupt = |what| Err(DiskError::Corrupt { path: path.clone(), offset: 0, what });
        let Some(preface) = bytes.get(..PREFACE) else { return corrupt("the file is cut off") };
        if preface[..8] != MAGIC || preface[BOUND..BOUND + 8] != digest::digest(&digest::SHA256, &preface[..BOUND]).as_ref()[..8] {
            return corrupt("the first bytes are not those of a log segment");
        }
        if preface[8..16] != number.to_le_bytes() {
            return corrupt("it is another segment than its name says");
        }
        if preface[16..24] != (bytes.len() as u64).to_le_bytes() {
            return corrupt("the file has not the size it was made with");
        }
        let key = keys.find(b"log", &preface[8..BOUND], |key| opens(key, &bytes));
        Ok((Self { number, path, file, key }, bytes))
    }

    /// Reads all frames, checking the chain of tags from `previous` on (`None`: trust the first).
    ///
    /// In the `last` segment a write that a crash cut short ends the scan; everything else that does not fit is damage.
    pub(crate) fn scan(&self, bytes: &[u8], mut previous: Option<Tag>, last: bool) -> Result<Scan, DiskError> {
        let mut scan = Scan { frames: Vec::new(), end: PREFACE, torn: false };
        while scan.end < bytes.len() {
            let rest = &bytes[scan.end..];
            match self.frame(rest, scan.end, previous)? {
                Found::Frame(frame, size) => {
                    previous = Some(frame.tag);
                    scan.frames.push(frame);
                    scan.end += size;
                }
                Found::Blank if rest.iter().all(|byte| *byte == 0) => return Ok(scan),
                Found::Blank | Found::Torn => {
                    let beyond = &rest[frame::ALIGN.min(rest.len())..];
                    if !last || frame::frame_follows(self.number, beyond) {
                        return Err(self.corrupt(scan.end, "a record is cut off, but others follow it"));
                    }
                    scan.torn = true;
                    return Ok(scan);
                }
            }
        }
        Ok(scan)
    }

    fn frame(&self, rest: &[u8], offset: usize, previous: Option<Tag>) -> Result<Found, DiskError> {
        let header = match frame::read_header(&rest[..HEADER.min(rest.len())]) {
            Block::Header(header) => header,
            Block::Blank => return Ok(Found::Blank),
            Block::Torn => return Ok(Found::Torn),
            Block::Newer(format) => return Err(DiskError::Newer { path: self.path.clone(), format }),
            Block::Damaged => return Err(self.corrupt(offset, "the head of a record is damaged")),
        };
        if header.segment != self.number || previous.is_some_and(|previous| previous != header.previous) {
            return Err(self.corrupt(offset, "a record is not the one that was written here"));
        }
        let size = frame::frame_size(header.payload);
        let extent = &rest[..size.min(rest.len())];
        let mut body = extent[HEADER..].to_vec();
        match frame::open_payload(&self.key, &header, &mut body) {
            Some((payload, tag)) => Ok(Found::Frame(Frame { kind: header.kind, offset, payload: payload.to_vec(), tag }, size)),
            None if frame::looks_torn(&header, extent) => Ok(Found::Torn),
            None => Err(self.corrupt(offset, "a record does not match its seal")),
        }
    }

    /// The payload of the frame at `offset`.
    pub(crate) fn read_payload(&self, offset: u64, payload: usize) -> Result<Vec<u8>, DiskError> {
        let mut bytes = vec![0; frame::frame_size(payload)];
        self.file.read_exact_at(&mut bytes, offset).map_err(failed("read the log segment", &self.path))?;
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.frame(&bytes, at, None)? {
            Found::Frame(frame, _) => Ok(frame.payload),
            Found::Blank | Found::Torn => Err(self.corrupt(at, "a record that was there is gone")),
        }
    }

    pub(crate) fn corrupt(&self, offset: usize, what: &'static str) -> DiskError {
        DiskError::Corrupt { path: self.path.clone(), offset: offset as u64, what }
    }
}

enum Found {
    Frame(Frame, usize),
    Blank,
    Torn,
}
