//! Netlink messages as bytes: a header, a family's fixed part, attributes that may nest.
//!
//! Layout: `netlink(7)`, `include/uapi/linux/netlink.h`. All lengths and types are in host order; what an attribute
//! holds is the family's matter (nf_tables wants big endian nearly everywhere, routing host order).

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NESTED: u16 = 1 << 15;
/// The upper two bits of an attribute's type are flags (nested, network byte order).
const TYPE_MASK: u16 = 0x3fff;

/// Rounds up to the four bytes that netlink aligns everything to.
fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Builds any number of messages one behind the other, ready for one `send`.
#[derive(Debug, Default, Clone)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    message: usize,
}

impl Writer {
    /// Starts a message; [`Writer::end`] must follow before the next one.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, sequence: u32) -> &mut Self {
        self.message = self.bytes.len();
        self.put(&0u32.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(&flags.to_ne_bytes());
        self.put(&sequence.to_ne_bytes());
        self.put(&0u32.to_ne_bytes())
    }

    /// Closes the message begun last: its length is known now.
    pub(crate) fn end(&mut self) {
        let length = u32::try_from(self.bytes.len() - self.message).expect("a message is far below 4 GiB");
        self.bytes[self.message..self.message + 4].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    /// Sets a flag in the header of the message begun last.
    pub(crate) fn add_flag(&mut self, flag: u16) {
        let at = self.message + 6;
        let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | flag;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Adds raw bytes: the fixed part that follows the header.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("an attribute is below 64 KiB");
        self.put(&length.to_ne_bytes()).put(&kind.to_ne_bytes()).put(value);
        self.pad();
        self
    }

    /// Text with the terminating NUL.
    pub(crate) fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut value = Vec::with_capacity(text.len() + 1);
        value.extend_from_slice(text.as_bytes());
        value.push(0);
        self.attribute(kind, &value)
    }

    pub(crate) fn host_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    pub(crate) fn big_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// An attribute made of attributes.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.put(&[0; ATTRIBUTE_HEADER]);
        inner(self);
        let length = u16::try_from(self.bytes.len() - start).expect("the caller keeps nests below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        self
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Makes room, so that what is added is not moved, which would leave a copy behind.
    pub(crate) fn reserve(&mut self, bytes: usize) -> &mut Self {
        self.bytes.reserve(bytes);
        self
    }

    /// Overwrites all of it.
    pub(crate) fn wipe(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.bytes);
    }
}

/// One message as received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// The messages in one datagram; a truncated tail ends the list.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let message =
            Message { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, sequence: u32_at(bytes, 8)?, body: &bytes[HEADER..length] };
        bytes = bytes.get(align(length)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The attributes behind a fixed part of `skip` bytes, as (type without flags, value).
pub(crate) fn attributes(body: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(align(skip)..).unwrap_or(&[]);
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        if length < ATTRIBUTE_HEADER || length > rest.len() {
            return None;
        }
        let found = (u16_at(rest, 2)? & TYPE_MASK, &rest[ATTRIBUTE_HEADER..length]);
        rest = rest.get(align(length)..).unwrap_or(&[]);
        Some(found)
    })
}

/// The first attribute of that type.
pub(crate) fn attribute(body: &[u8], skip: usize, kind: u16) -> Option<&[u8]> {
    attributes(body, skip).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|part| part.try_into().ok()).map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map(u32::from_ne_bytes)
}

/// Text up to the first NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_padded_and_knows_its_length() {
        let mut out = Writer::default();
        out.begin(0x10, 0x5, 7).put(&[1, 2, 3, 4]).text(3, "ab");
        out.end();
        let mut wanted = Vec::new();
        wanted.extend_from_slice(&28u32.to_ne_bytes());
        wanted.extend_from_slice(&0x10u16.to_ne_bytes());
        wanted.extend_from_slice(&0x5u16.to_ne_bytes());
        wanted.extend_from_slice(&7u32.to_ne_bytes());
        wanted.extend_from_slice(&0u32.to_ne_bytes());
        wanted.extend_from_slice(&[1, 2, 3, 4]);
        wanted.extend_from_slice(&7u16.to_ne_bytes());
        wanted.extend_from_slice(&3u16.to_ne_bytes());
        wanted.extend_from_slice(b"ab\0\0");
        assert_eq!(out.as_bytes(), wanted);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut out = Writer::default();
        for sequence in [1, 2] {
            out.begin(40, 1, sequence).put(&[9; 4]).host_u32(1, 77).nest(2, |nest| {
                nest.big_u32(5, 0x0102_0304).text(6, "name");
            });
            out.end();
        }
        let read: Vec<_> = messages(out.as_bytes()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[1].sequence, 2);
        let nest = attribute(read[1].body, 4, 2).unwrap();
        assert_eq!(attribute(nest, 0, 5).unwrap(), [1, 2, 3, 4]);
        assert_eq!(text(attribute(nest, 0, 6).unwrap()), "name");
    }

    #[test]
    fn cut_and_absurd_lengths_end_the_reading() {
        assert_eq!(messages(&[3, 0, 0, 0, 1, 2]).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0], 0).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 1], 0).count(), 0);
        assert_eq!(attributes(&[], 16).count(), 0);
    }
}
