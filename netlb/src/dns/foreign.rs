//! Names that are not ours: the question as it is sent on, the check of what comes back, the answer as it is handed over.
//!
//! What comes back stays as it came, byte for byte, but for the id, the case of the name, the times to live and EDNS: so
//! record types that nobody here knows pass unchanged, and nothing of an answer is interpreted but its frame.

use super::query::{Head, Question};
use super::response::{self, HEADER, Origin, Response};
use hickory_proto::op::{MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use std::time::Duration;

const RECURSION_DESIRED: u16 = 0x0100;
const CHECKING_DISABLED: u16 = 0x0010;
/// All but the answer's own kind, the operation and the code are passed on: AA, TC, RD, RA, AD, CD.
const FLAGS_PASSED_ON: u16 = 0x07b0;

/// A question for others to answer.
#[derive(Debug, Clone)]
pub struct Foreign {
    head: Head,
    question: Vec<u8>,
}

/// Two questions with one key have one answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    question: Vec<u8>,
    dnssec_ok: bool,
    checking_disabled: bool,
}

/// An answer that was checked against its question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Received {
    /// Without EDNS, which is between us and the resolver.
    bytes: Vec<u8>,
    flags: u16,
    counts: [u16; 4],
    records: Vec<Record>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    /// Where the next one begins.
    end: usize,
    ttl_at: usize,
    kind: RecordType,
}

/// Why bytes that came are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("it answers another question")]
    NotAsked,
    #[error("it is malformed")]
    Malformed,
}

impl Foreign {
    pub(super) fn new(question: &Question<'_>) -> Self {
        Self { head: question.head, question: question.bytes.to_vec() }
    }

    pub(super) fn key(&self) -> Key {
        let mut question = self.question.clone();
        lower(&mut question);
        let dnssec_ok = self.head.edns.is_some_and(|edns| edns.dnssec_ok);
        Key { question, dnssec_ok, checking_disabled: self.head.checking_disabled }
    }

    /// What is sent to a resolver: made anew, so that nothing passes but the question. EDNS only if the client speaks it: who
    /// does not gets the short answer that every resolver can give, or a long one over TCP.
    pub(super) fn query(&self, id: u16) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(&self.question);
        if let Some(edns) = self.head.edns {
            response::put_opt(&mut bytes, 0, edns.dnssec_ok);
        }
        let desired = if self.head.recursion_desired { RECURSION_DESIRED } else { 0 };
        let disabled = if self.head.checking_disabled { CHECKING_DISABLED } else { 0 };
        response::put_header(&mut bytes, id, desired | disabled, [1, 0, 0, u16::from(self.head.edns.is_some())]);
        bytes
    }

    /// Whether these bytes answer the query with that id. Where they came from is the socket's to check.
    pub(super) fn check(&self, id: u16, bytes: &[u8]) -> Result<Received, Unfit> {
        let mut decoder = BinDecoder::new(bytes);
        let header = hickory_proto::op::Header::read(&mut decoder).map_err(|_| Unfit::Malformed)?;
        let same_frame = header.metadata.id == id
            && header.metadata.message_type == MessageType::Response
            && header.metadata.op_code == OpCode::Query
            && header.counts.queries == 1;
        let same_question =
            bytes.get(HEADER..HEADER + self.question.len()).is_some_and(|question| question.eq_ignore_ascii_case(&self.question));
        // Without its case: some resolvers give it back in lower case.
        if !same_frame || !same_question {
            return Err(Unfit::NotAsked);
        }
        Received::read(bytes, HEADER + self.question.len(), header.counts).ok_or(Unfit::Malformed)
    }

    /// The answer for the client, so long after it was received.
    pub(super) fn reply(&self, received: &Received, age: Duration) -> Vec<u8> {
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let reserved = if self.head.edns.is_some() { 11 } else { 0 };
        let fits = |record: &&Record| record.end + reserved <= self.head.limit;
        let kept = received.records.iter().take_while(fits).count();
        let end = received.records[..kept].last().map_or(HEADER + self.question.len(), |record| record.end);
        let mut bytes = received.bytes[..end].to_vec();
        bytes[HEADER..HEADER + self.question.len()].copy_from_slice(&self.question);
        for record in &received.records[..kept] {
            let place = &mut bytes[record.ttl_at..record.ttl_at + 4];
            let ttl = u32::from_be_bytes([place[0], place[1], place[2], place[3]]).saturating_sub(age);
            place.copy_from_slice(&ttl.to_be_bytes());
        }
        let mut left = u16::try_from(kept).unwrap_or(u16::MAX);
        let [_, mut answers, mut authorities, mut additionals] = received.counts;
        // Answers and authorities that do not fit are missed, what is additional is not.
        let truncated = left < answers.saturating_add(authorities);
        for count in [&mut answers, &mut authorities, &mut additionals] {
            *count = left.min(*count);
            left -= *count;
        }
        if let Some(edns) = self.head.edns {
            response::put_opt(&mut bytes, 0, edns.dnssec_ok);
            additionals += 1;
        }
        let flags = 0x8000 | (received.flags & (FLAGS_PASSED_ON | 0xf)) | if truncated { 0x0200 } else { 0 };
        response::put_header(&mut bytes, self.head.id, flags, [1, answers, authorities, additionals]);
        bytes
    }

    /// When there is no answer to be had.
    pub(super) fn failure(&self) -> Vec<u8> {
        Response::new(&self.head, &self.question, ResponseCode::ServFail, Origin::Foreign).finish()
    }
}

/// Lower case without looking at where labels begin: their lengths are below 64 and so are no letters. Type and class, the
/// last four bytes, are left.
fn lower(question: &mut [u8]) {
    if let Some(end) = question.len().checked_sub(4) {
        question[..end].make_ascii_lowercase();
    }
}

impl Received {
    fn read(bytes: &[u8], question_end: usize, counts: hickory_proto::op::HeaderCounts) -> Option<Self> {
        let mut at = question_end;
        let mut kept = [1, 0, 0, 0];
        let mut records = Vec::new();
        'all: for (section, count) in [counts.answers, counts.authorities, counts.additionals].into_iter().enumerate() {
            for _ in 0..count {
                let record = read_record(bytes, at)?;
                if record.kind == RecordType::OPT {
                    // The last one, as everybody sends it. Were more behind, cutting it out would move what names point to.
                    break 'all;
                }
                at = record.end;
                kept[section + 1] += 1;
                records.push(record);
            }
        }
        let flags = u16::from_be_bytes([bytes[2], bytes[3]]);
        Some(Self { bytes: bytes[..at].to_vec(), flags, counts: kept, records })
    }

    pub(super) fn is_truncated(&self) -> bool {
        self.flags & 0x0200 != 0
    }

    /// Whether this settles it: the name is there or it is not. Otherwise another resolver may know.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.flags & 0xf, 0 | 3)
    }

    /// Bytes in memory, roughly.
    pub(super) fn size(&self) -> usize {
        self.bytes.len() + self.records.len() * size_of::<Record>()
    }

    /// How long it may be kept, in seconds; `None` if not at all. Of an answer the shortest of its times; of "no" what the zone's
    /// SOA says (RFC 2308 §5), and without one it is not kept.
    pub(super) fn keep(&self) -> Option<Lifetime> {
        if self.is_truncated() || !self.is_final() {
            return None;
        }
        let answers = usize::from(self.counts[1]);
        let seconds = match self.records.get(..answers) {
            Some(answers) if !answers.is_empty() && self.flags & 0xf == 0 => {
                Lifetime::Answer(answers.iter().map(|record| self.ttl(record)).min()?)
            }
            _ => {
                let soa = self.records.iter().skip(answers).find(|record| record.kind == RecordType::SOA)?;
                let minimum = self.u32_at(soa.end - 4)?;
                Lifetime::Absence(self.ttl(soa).min(minimum))
            }
        };
        Some(seconds)
    }

    fn ttl(&self, record: &Record) -> u32 {
        // RFC 2181 §8: with the upper bit set it is no time at all.
        self.u32_at(record.ttl_at).filter(|ttl| *ttl <= i32::MAX.cast_unsigned()).unwrap_or(0)
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes.get(at..at + 4)?.try_into().ok()?))
    }
}

/// In seconds, as the answer has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    Answer(u32),
    Absence(u32),
}

fn read_record(bytes: &[u8], at: usize) -> Option<Record> {
    /// Type, class, time to live, length.
    const FIXED: usize = 10;
    let mut decoder = BinDecoder::new(bytes).clone(u16::try_from(at).ok()?);
    Name::read(&mut decoder).ok()?;
    let fixed_at = decoder.index();
    let fixed = bytes.get(fixed_at..fixed_at + FIXED)?;
    let end = fixed_at + FIXED + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let kind = RecordType::from(u16::from_be_bytes([fixed[0], fixed[1]]));
    // An SOA has two names of a byte at least, and five numbers.
    let whole = end <= bytes.len() && (kind != RecordType::SOA || end - fixed_at - FIXED >= 22);
    whole.then_some(Record { end, ttl_at: fixed_at + 4, kind })
}

#[cfg(test)]
mod tests;
