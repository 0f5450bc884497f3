//! HTTP/2 authorities that are none, on the local socket.
//!
//! A genuine `swarmctl` sends its socket's path also as `:authority`: percent-encoded if it is of our days (grpc-go 1.79), as it is
//! if it is older (grpc-go 1.53). The crate `http` refuses `%`, `/` and spaces there, and h2 resets the stream before any code of
//! ours sees the request. Nobody needs the value, so each of these characters in it becomes a `-` on the way from TLS to h2, with
//! nothing else changed:
//!
//! * In plain HPACK strings (RFC 7541 §5.2) that is one byte for another.
//! * In Huffman-coded ones all four characters have codes of 6 bits (RFC 7541 appendix B): one code for another.
//!
//! So neither the length of a frame changes, nor the size of an entry of HPACK's dynamic table (which counts decoded characters):
//! client and server stay in step, and later requests that refer to the entry are right by themselves.
//!
//! Only header blocks in one frame are touched; gRPC requests of `swarmctl` are some 200 bytes.

/// What a client says first, RFC 9113 §3.4.
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The largest frame a server must take; ours announces no larger one.
const MAX_BLOCK: usize = 1 << 14;
/// `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;

/// Rewrites one direction of one connection, piece by piece.
#[derive(Debug)]
pub(crate) struct AuthorityFilter {
    /// Bytes to let through before the next frame header.
    pass: usize,
    /// A frame header, or a frame whose header block is to be looked at, as far as it arrived.
    held: Vec<u8>,
}

impl AuthorityFilter {
    pub(crate) fn new() -> Self {
        Self { pass: PREFACE, held: Vec::new() }
    }

    /// Takes what arrived and appends what may go on.
    pub(crate) fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            if self.pass > 0 {
                let (now, later) = input.split_at(self.pass.min(input.len()));
                out.extend_from_slice(now);
                self.pass -= now.len();
                input = later;
                continue;
            }
            let wanted = self.wanted();
            let (now, later) = input.split_at((wanted - self.held.len()).min(input.len()));
            self.held.extend_from_slice(now);
            input = later;
            if self.held.len() == wanted {
                self.complete(out);
            }
        }
    }

    /// What is left when the connection ends in the middle of a frame.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }

    /// How many bytes belong to what is held: the header alone at first, then the frame.
    fn wanted(&self) -> usize {
        match self.held.len() {
            0..FRAME_HEADER => FRAME_HEADER,
            _ => FRAME_HEADER + self.length(),
        }
    }

    fn length(&self) -> usize {
        self.held[..3].iter().fold(0, |sum, octet| (sum << 8) | usize::from(*octet))
    }

    /// Either the frame header is whole, or the whole frame is.
    fn complete(&mut self, out: &mut Vec<u8>) {
        let (length, kind, flags) = (self.length(), self.held[3], self.held[4]);
        let looked_at = kind == HEADERS && flags & END_HEADERS != 0 && (1..=MAX_BLOCK).contains(&length);
        if self.held.len() == FRAME_HEADER && looked_at {
            return;
        }
        if self.held.len() == FRAME_HEADER {
            self.pass = length;
        } else if let Some(block) = block_of(&mut self.held[FRAME_HEADER..], flags) {
            // A block that cannot be parsed is for h2 to refuse.
            let _ = mend_block(block);
        }
        out.append(&mut self.held);
    }
}

/// The header block in the payload of a HEADERS frame, RFC 9113 §6.2.
fn block_of(payload: &mut [u8], flags: u8) -> Option<&mut [u8]> {
    let (start, padding) = match flags & PADDED {
        0 => (0, 0),
        _ => (1, usize::from(*payload.first()?)),
    };
    let start = start + if flags & PRIORITY == 0 { 0 } else { 5 };
    let end = payload.len().checked_sub(padding)?;
    payload.get_mut(start..end)
}

/// Walks over the fields of a block (RFC 7541 §6) and mends the values of `:authority`.
fn mend_block(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(first) = block.get(at).copied() {
        let prefix = match first {
            0x80.. => 7,     // a field of a table
            0x40..0x80 => 6, // a literal to be remembered
            0x20..0x40 => 5, // the table's new size
            _ => 4,          // a literal not to be remembered
        };
        let name = integer(block, &mut at, prefix)?;
        if matches!(prefix, 7 | 5) {
            continue;
        }
        if name == 0 {
            string(block, &mut at)?;
        }
        let (value, huffman) = string(block, &mut at)?;
        if name == AUTHORITY {
            let value = &mut block[value];
            if huffman {
                mend_huffman(value);
            } else {
                value.iter_mut().filter(|byte| REFUSED.contains(byte)).for_each(|byte| *byte = b'-');
            }
        }
    }
    Some(())
}

/// RFC 7541 §5.1.
fn integer(block: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(*block.get(*at)?) & mask;
    *at += 1;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let octet = usize::from(*block.get(*at)?);
        *at += 1;
        value += (octet & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Where the content of a string lies, and whether it is Huffman-coded.
fn string(block: &[u8], at: &mut usize) -> Option<(std::ops::Range<usize>, bool)> {
    let huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let range = *at..at.checked_add(length).filter(|end| *end <= block.len())?;
    *at = range.end;
    Some((range, huffman))
}

/// How many codes of each length the table of RFC 7541 appendix B has. The code is canonical (codes of one length are consecutive,
/// and follow those of the shorter ones), so that this alone tells where each character ends.
const CODES: [u32; 31] = [0, 0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 0, 4];
/// What paths have and authorities must not have, and the codes of that, all of the same length as that of `-`.
const REFUSED: [u8; 3] = *b" %/";
const REFUSED_CODES: [u32; 3] = [0b01_0100, 0b01_0101, 0b01_1000];
const DASH_CODE: u32 = 0b01_0110;
const CODE_LENGTH: usize = 6;

/// Turns each code of a refused character into that of `-`.
fn mend_huffman(text: &mut [u8]) {
    let (mut code, mut length, mut first) = (0u32, 0usize, 0u32);
    for bit in 0..text.len() * 8 {
        code = (code << 1) | u32::from(text[bit / 8] >> (7 - bit % 8) & 1);
        first = (first + CODES[length]) << 1;
        length += 1;
        if length == CODES.len() {
            return; // no code is that long
        }
        if code.wrapping_sub(first) < CODES[length] {
            if length == CODE_LENGTH && REFUSED_CODES.contains(&code) {
                for back in 0..CODE_LENGTH {
                    let (at, mask) = ((bit - back) / 8, 1 << (7 - (bit - back) % 8));
                    text[at] = if DASH_CODE >> back & 1 == 1 { text[at] | mask } else { text[at] & !mask };
                }
            }
            (code, length, first) = (0, 0, 0);
        }
    }
}

#[cfg(test)]
mod tests;
