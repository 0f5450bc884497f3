//! One write of the log: a header, a sealed payload, padding.
//!
//! ```text
//!  0 magic "SKLF"      4 format   5 kind   6 zero (2)   8 payload bytes (u32)  12 zero (4)
//! 16 segment (u64)    24 nonce (12)       36 tag of the frame before (16)
//! 52 first 8 bytes of SHA-256 over 0..52  60 end mark (4)
//! 64 payload, sealed; tag (16); padding up to a multiple of 64, at least one byte
//! ```
//!
//! A frame is the unit of writing *and* of making durable: the next one is begun only when this one is on the disk. So an
//! invalid frame with a valid one behind it is damage. An invalid last frame is damage too, unless it looks torn: segments
//! are zeroed before use, and a sector that a crash kept from being written leaves zeros where sealed bytes would be.

use super::key::{NONCE_BYTES, SealKey, TAG_BYTES, Tag, random};
use ring::digest;

pub(crate) const HEADER: usize = 64;
/// Frames begin at multiples of this; also the size of the zero blocks that show a torn write. Sealed bytes have 64
/// zeros in a row once in 2^512 tries.
pub(crate) const ALIGN: usize = 64;
pub(crate) const FORMAT: u8 = 1;
const MAGIC: [u8; 4] = *b"SKLF";
const END_MARK: [u8; 4] = [0xa5; 4];
const PADDING: u8 = 0xa5;
const BOUND: usize = 52;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// Opens a segment: where the log is at.
    Start,
    Entries,
    /// Entries from an index on were replaced by another leader's.
    Truncate,
    /// A snapshot took the place of all entries so far.
    Reset,
    /// The store was shut down in order; nothing follows until the next start.
    Closed,
}

impl FrameKind {
    fn byte(self) -> u8 {
        match self {
            Self::Start => 0,
            Self::Entries => 1,
            Self::Truncate => 2,
            Self::Reset => 3,
            Self::Closed => 4,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Start, Self::Entries, Self::Truncate, Self::Reset, Self::Closed].into_iter().find(|kind| kind.byte() == byte)
    }
}

/// A header whose check fits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) kind: FrameKind,
    pub(crate) payload: usize,
    pub(crate) segment: u64,
    nonce: [u8; NONCE_BYTES],
    pub(crate) previous: Tag,
    bound: [u8; BOUND],
}

/// What a block of [`HEADER`] bytes is.
#[derive(Debug)]
pub(crate) enum Block {
    Header(Header),
    /// All zeros: nothing was written here.
    Blank,
    /// Written in part.
    Torn,
    Newer(u8),
    Damaged,
}

/// The bytes on disk of a frame with that much payload.
pub(crate) fn frame_size(payload: usize) -> usize {
    (HEADER + payload + TAG_BYTES + 1).next_multiple_of(ALIGN)
}

/// Appends the frame to `out` and returns its tag. `out` must hold a multiple of [`ALIGN`] bytes.
pub(crate) fn write_frame(key: &SealKey, kind: FrameKind, segment: u64, previous: Tag, payload: &[u8], out: &mut Vec<u8>) -> Tag {
    let begin = out.len();
    let nonce: [u8; NONCE_BYTES] = random();
    let mut bound = [0; BOUND];
    bound[..4].copy_from_slice(&MAGIC);
    bound[4] = FORMAT;
    bound[5] = kind.byte();
    let length = u32::try_from(payload.len()).expect("a frame fits a segment of a few MiB");
    bound[8..12].copy_from_slice(&length.to_le_bytes());
    bound[16..24].copy_from_slice(&segment.to_le_bytes());
    bound[24..36].copy_from_slice(&nonce);
    bound[36..52].copy_from_slice(&previous);
    out.extend_from_slice(&bound);
    out.extend_from_slice(&check(&bound));
    out.extend_from_slice(&END_MARK);
    let from = out.len();
    out.extend_from_slice(payload);
    let tag = key.seal(nonce, &bound, out, from);
    out.resize(begin + frame_size(payload.len()), PADDING);
    tag
}

/// What the block at the beginning of a possible frame says. `block` may be short at the end of a cut file.
pub(crate) fn read_header(block: &[u8]) -> Block {
    if block.iter().all(|byte| *byte == 0) {
        return Block::Blank;
    }
    if block.len() < HEADER {
        return Block::Torn;
    }
    let mut bound = [0; BOUND];
    bound.copy_from_slice(&block[..BOUND]);
    if bound[..4] == MAGIC && block[BOUND..60] == check(&bound) {
        if bound[4] != FORMAT {
            return Block::Newer(bound[4]);
        }
        return match parse(bound) {
            Some(header) => Block::Header(header),
            None => Block::Damaged,
        };
    }
    // A crash leaves zeros behind what it let through; the mark at the end is never zero.
    if block[HEADER - 1] == 0 { Block::Torn } else { Block::Damaged }
}

fn parse(bound: [u8; BOUND]) -> Option<Header> {
    let array = |from: usize| -> [u8; 8] { bound[from..from + 8].try_into().expect("8 bytes were asked for") };
    let (mut nonce, mut previous) = ([0; NONCE_BYTES], [0; TAG_BYTES]);
    nonce.copy_from_slice(&bound[24..36]);
    previous.copy_from_slice(&bound[36..52]);
    Some(Header {
        kind: FrameKind::from_byte(bound[5])?,
        payload: (u64::from_le_bytes(array(8)) & 0xffff_ffff) as usize,
        segment: u64::from_le_bytes(array(16)),
        nonce,
        previous,
        bound,
    })
}

/// The payload and the tag, if `body` (what follows the header) is what was sealed. Decrypts in place.
pub(crate) fn open_payload<'a>(key: &SealKey, header: &Header, body: &'a mut [u8]) -> Option<(&'a [u8], Tag)> {
    let sealed = body.get_mut(..header.payload + TAG_BYTES)?;
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&sealed[header.payload..]);
    let plain = key.open(header.nonce, &header.bound, sealed)?;
    Some((plain, tag))
}

/// Whether a frame that does not open was cut by a crash rather than damaged later. `extent` is all of it that the file has.
pub(crate) fn looks_torn(header: &Header, extent: &[u8]) -> bool {
    extent.len() < frame_size(header.payload)
        || extent.last() == Some(&0)
        || extent.chunks(ALIGN).any(|block| block.iter().all(|byte| *byte == 0))
}

/// Whether a frame of this segment begins at any block of `rest`, which itself begins at a block.
pub(crate) fn frame_follows(segment: u64, rest: &[u8]) -> bool {
    rest.chunks(ALIGN)
        .any(|block| block.starts_with(&MAGIC) && matches!(read_header(block), Block::Header(header) if header.segment == segment))
}

fn check(bound: &[u8]) -> [u8; 8] {
    let digest = digest::digest(&digest::SHA256, bound);
    digest.as_ref()[..8].try_into().expect("SHA-256 has 32 bytes")
}
