//! How much room a request takes in memory, told before it is read into it.
//!
//! Two bytes on the wire may become an element of some hundred bytes in a list, so that a message of four megabytes, which callers
//! may send, would become more than a gigabyte. The bytes are gone through once, with the shape of the message at hand that the build
//! script took from the protocol files; what is found is never less than what prost will take.

/// A message, and what it consists of.
#[derive(Debug)]
struct Shape {
    /// With its package.
    name: &'static str,
    /// Of the structure, without what it points to.
    size: usize,
    /// Whether some method takes it.
    is_request: bool,
    /// By the numbers of fields.
    parts: &'static [(u32, Part)],
}

/// A field. Numbers in parentheses are places in [`SHAPES`].
#[derive(Debug, Clone, Copy)]
enum Part {
    Number,
    Numbers,
    Text,
    Texts,
    Message(usize),
    Messages(usize),
}

include!(concat!(env!("OUT_DIR"), "/shapes.rs"));

/// `String` and `Vec`.
const HEADER: usize = 24;
const NUMBER: usize = 8;
/// What the allocator takes for each piece beside its bytes, at most.
const PIECE: usize = 32;
/// A list begins with room for four, and doubles when it is full.
const FIRST: usize = 4;
const NEXT: usize = 2;
/// Deeper messages are refused by prost, too.
const DEPTH: u32 = 100;

/// The request takes more room than it was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooHeavy;

/// Where the shape of this request is; `None`: no method takes such a message, it is an answer.
pub(crate) fn request(package: &str, name: &str) -> Option<usize> {
    let wanted = || package.bytes().chain([b'.']).chain(name.bytes());
    let found = SHAPES.binary_search_by(|shape| shape.name.bytes().cmp(wanted())).ok()?;
    SHAPES[found].is_request.then_some(found)
}

/// Whether the request takes no more than `allowed` bytes. What is not well-formed is weighed as far as it can be read.
///
/// # Errors
/// If it takes more.
pub(crate) fn weigh(message: &[u8], shape: usize, allowed: usize) -> Result<(), TooHeavy> {
    Scale { left: allowed }.message(message, &SHAPES[shape], 0)
}

struct Scale {
    left: usize,
}

impl Scale {
    fn put(&mut self, bytes: usize) -> Result<(), TooHeavy> {
        self.left = self.left.checked_sub(bytes).ok_or(TooHeavy)?;
        Ok(())
    }

    fn message(&mut self, mut wire: &[u8], shape: &Shape, depth: u32) -> Result<(), TooHeavy> {
        if depth > DEPTH {
            return Ok(());
        }
        // By the place of a field: whether the list has its first elements.
        let mut begun = 0u64;
        while let Some((number, content)) = field(&mut wire) {
            let Ok(at) = shape.parts.binary_search_by_key(&number, |(number, _)| *number) else { continue };
            let bit = u32::try_from(at).ok().and_then(|at| 1u64.checked_shl(at)).unwrap_or(0);
            let room = if begun & bit == 0 { FIRST } else { NEXT };
            begun |= bit;
            match shape.parts[at].1 {
                Part::Number => {}
                Part::Numbers => self.put(NUMBER * (room + NEXT * content.len()))?,
                Part::Text => self.put(text(content))?,
                Part::Texts => self.put(HEADER * room + text(content))?,
                Part::Message(inner) => self.message(content, &SHAPES[inner], depth + 1)?,
                Part::Messages(inner) => {
                    let inner = &SHAPES[inner];
                    self.put(inner.size * room)?;
                    self.message(content, inner, depth + 1)?;
                }
            }
        }
        Ok(())
    }
}

fn text(content: &[u8]) -> usize {
    if content.is_empty() { 0 } else { content.len() + PIECE }
}

/// The next field and what it holds, which is nothing for numbers; `None` at the end, or where the bytes are no message. Groups, which no message of
/// ours has, are gone through as if their fields were the message's: prost skips them.
fn field<'a>(wire: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    let key = varint(wire)?;
    let number = u32::try_from(key >> 3).ok()?;
    let length = match key & 7 {
        0 => {
            varint(wire)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(wire)?).ok()?,
        3 | 4 => 0,
        5 => 4,
        _ => return None,
    };
    let (content, rest) = wire.split_at_checked(length)?;
    *wire = rest;
    Some((number, content))
}

fn varint(wire: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = wire.split_first()?;
        *wire = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests;
