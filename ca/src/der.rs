//! The few pieces of DER and PEM that no library here writes for us.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// One element: its tag, its content, and the bytes it takes as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element<'a> {
    pub tag: u8,
    pub content: &'a [u8],
    pub whole: &'a [u8],
}

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const INTEGER: u8 = 0x02;

/// Takes one element off the front. `None` for what is not DER.
pub(crate) fn take<'a>(input: &mut &'a [u8]) -> Option<Element<'a>> {
    let all = *input;
    let (&tag, rest) = all.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let octets = usize::from(first & 0x7f);
        // Four octets are 4 GiB; 0x80 alone is BER's indefinite form.
        if octets == 0 || octets > 4 || rest.len() < octets {
            return None;
        }
        let (length, rest) = rest.split_at(octets);
        (length.iter().fold(0usize, |sum, octet| (sum << 8) | usize::from(*octet)), rest)
    };
    if rest.len() < length {
        return None;
    }
    let header = all.len() - rest.len();
    *input = &rest[length..];
    Some(Element { tag, content: &rest[..length], whole: &all[..header + length] })
}

/// Takes one element of this tag.
pub(crate) fn take_tag<'a>(input: &mut &'a [u8], tag: u8) -> Option<Element<'a>> {
    take(input).filter(|element| element.tag == tag)
}

/// Writes one element.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let octets = length.to_be_bytes();
        let octets = &octets[octets.iter().take_while(|octet| **octet == 0).count()..];
        out.push(0x80 | octets.len() as u8);
        out.extend_from_slice(octets);
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// A PEM block with lines of 64 characters (RFC 7468) and a newline at the end.
pub(crate) fn pem_block(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn taking_undoes_writing(content in proptest::collection::vec(any::<u8>(), 0..70_000)) {
            let der = element(OCTET_STRING, &[&content]);
            let mut rest = der.as_slice();
            let taken = take_tag(&mut rest, OCTET_STRING).unwrap();
            prop_assert_eq!(taken.content, content.as_slice());
            prop_assert_eq!(taken.whole, der.as_slice());
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn junk_does_not_panic(junk: Vec<u8>) {
            let _ = take(&mut junk.as_slice());
        }
    }
}
