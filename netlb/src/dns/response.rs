//! Answers as bytes. Written here rather than with hickory's encoder, which keeps a list of all names for compression:
//! the only name that repeats is the question's, and that is always at the same place.

use super::query::{Head, OUR_PAYLOAD};
use hickory_proto::op::{OpCode, ResponseCode};
use hickory_proto::rr::RecordType;

/// Bytes of a message before the question.
pub(super) const HEADER: usize = 12;
/// RFC 6891 §6.1.2: root, type, payload, extended code and flags, no options.
const OPT_LENGTH: usize = 11;
/// A pointer to the question's name (RFC 1035 §4.1.4).
const SAME_NAME: [u8; 2] = [0xc0, HEADER as u8];
const INTERNET: [u8; 2] = [0, 1];

const IS_RESPONSE: u16 = 0x8000;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const CHECKING_DISABLED: u16 = 0x0010;

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The names of this cluster; foreign ones are asked for, too, or not.
    Ours {
        forwards: bool,
    },
    Foreign,
}

/// An answer being written. Records that do not fit are left out, and the client is told to ask over TCP.
#[derive(Debug)]
pub(super) struct Response {
    bytes: Vec<u8>,
    head: Head,
    code: u16,
    flags: u16,
    answers: u16,
    additionals: u16,
}

impl Response {
    pub(super) fn new(head: &Head, question: &[u8], code: ResponseCode, origin: Origin) -> Self {
        let mut flags = IS_RESPONSE;
        for (bit, holds) in [
            (AUTHORITATIVE, matches!(origin, Origin::Ours { .. }) && matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)),
            (RECURSION_DESIRED, head.recursion_desired),
            (RECURSION_AVAILABLE, origin != Origin::Ours { forwards: false }),
            (CHECKING_DISABLED, head.checking_disabled),
        ] {
            flags |= if holds { bit } else { 0 };
        }
        let mut bytes = Vec::with_capacity(HEADER + question.len() + 128);
        bytes.extend_from_slice(&[0; HEADER]);
        bytes.extend_from_slice(question);
        Self { bytes, head: *head, code: u16::from(code), flags, answers: 0, additionals: 0 }
    }

    /// Adds a record of the name that was asked for. `false` if it does not fit: then nothing more will.
    pub(super) fn answer(&mut self, kind: RecordType, ttl: u32, data: &[u8]) -> bool {
        let fits = self.record(&SAME_NAME, kind, ttl, data);
        if fits {
            self.answers += 1;
        } else {
            self.flags |= TRUNCATED;
        }
        fits
    }

    /// Adds a record that was not asked for; one that does not fit is not missed. After all answers.
    pub(super) fn additional(&mut self, owner: &[u8], kind: RecordType, ttl: u32, data: &[u8]) -> bool {
        let fits = self.record(owner, kind, ttl, data);
        self.additionals += u16::from(fits);
        fits
    }

    fn record(&mut self, owner: &[u8], kind: RecordType, ttl: u32, data: &[u8]) -> bool {
        const FIXED: usize = 10;
        let reserved = if self.head.edns.is_some() { OPT_LENGTH } else { 0 };
        let Ok(length) = u16::try_from(data.len()) else { return false };
        if self.bytes.len() + owner.len() + FIXED + data.len() + reserved > self.head.limit {
            return false;
        }
        self.bytes.extend_from_slice(owner);
        self.bytes.extend_from_slice(&u16::from(kind).to_be_bytes());
        self.bytes.extend_from_slice(&INTERNET);
        self.bytes.extend_from_slice(&ttl.to_be_bytes());
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(data);
        true
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        if let Some(edns) = self.head.edns {
            put_opt(&mut self.bytes, self.code, edns.dnssec_ok);
            self.additionals += 1;
        }
        put_header(&mut self.bytes, self.head.id, self.flags | (self.code & 0xf), [1, self.answers, 0, self.additionals]);
        self.bytes
    }
}

pub(super) fn put_header(bytes: &mut [u8], id: u16, flags: u16, counts: [u16; 4]) {
    let [questions, answers, authorities, additionals] = counts;
    for (place, value) in bytes.chunks_exact_mut(2).zip([id, flags, questions, answers, authorities, additionals]) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// `code` in full, of which the upper bits are here.
pub(super) fn put_opt(bytes: &mut Vec<u8>, code: u16, dnssec_ok: bool) {
    bytes.push(0);
    bytes.extend_from_slice(&u16::from(RecordType::OPT).to_be_bytes());
    bytes.extend_from_slice(&OUR_PAYLOAD.to_be_bytes());
    let high = u8::try_from(code >> 4).unwrap_or(u8::MAX);
    bytes.extend_from_slice(&[high, 0, if dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
}

/// An answer to what could not be read so far that its question could be repeated.
pub(super) fn refusal(id: u16, operation: OpCode, recursion_desired: bool, code: ResponseCode) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    let desired = if recursion_desired { RECURSION_DESIRED } else { 0 };
    let flags = IS_RESPONSE | u16::from(u8::from(operation)) << 11 | desired | (u16::from(code) & 0xf);
    put_header(&mut bytes, id, flags, [0; 4]);
    bytes
}
