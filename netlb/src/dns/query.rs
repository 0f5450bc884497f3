//! A question as it comes in: read once, and refused where it is none that can be answered.

use super::response::{self, HEADER};
use hickory_proto::op::{Header, HeaderCounts, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Records behind the question: OPT and a signature; more has no use.
const MOST_ADDITIONALS: u16 = 4;
/// RFC 1035 §2.3.4: a client that does not speak EDNS takes no more over UDP.
const SMALLEST_PAYLOAD: u16 = 512;
/// What we accept over UDP and, if the client does, send: it all goes over loopback, which has no fragments.
pub(super) const OUR_PAYLOAD: u16 = 4096;

/// How the question came; it says how long the answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// A question that can be answered.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) head: Head,
    /// Name, type and class as they came: they go back so, for clients check even the case (a defence against forged answers).
    pub(super) bytes: &'a [u8],
    query: Query,
    pub(super) kind: RecordType,
}

/// What every answer to a question needs to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) id: u16,
    pub(super) recursion_desired: bool,
    pub(super) checking_disabled: bool,
    /// Absent if the client does not speak EDNS.
    pub(super) edns: Option<EdnsAsked>,
    /// In bytes, of the whole answer.
    pub(super) limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EdnsAsked {
    pub(super) dnssec_ok: bool,
}

/// Why there is no question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unanswerable {
    /// Not even an answer: to an answer, so that two servers never talk to each other without end, or to no message at all.
    Ignore,
    /// This answer.
    Refuse(Vec<u8>),
}

impl<'a> Question<'a> {
    pub(super) fn read(message: &'a [u8], over: Transport) -> Result<Self, Unanswerable> {
        let mut decoder = BinDecoder::new(message);
        let Header { metadata, counts } = Header::read(&mut decoder).map_err(|_| Unanswerable::Ignore)?;
        if metadata.message_type == MessageType::Response {
            return Err(Unanswerable::Ignore);
        }
        let refuse = |code| Unanswerable::Refuse(response::refusal(metadata.id, metadata.op_code, metadata.recursion_desired, code));
        if metadata.op_code != OpCode::Query {
            return Err(refuse(ResponseCode::NotImp));
        }
        let malformed = || refuse(ResponseCode::FormErr);
        let HeaderCounts { queries, answers, authorities, additionals } = counts;
        // RFC 9619: a query has one question. Other records belong to kinds of questions that are refused anyway.
        if (queries, answers, authorities) != (1, 0, 0) || additionals > MOST_ADDITIONALS {
            return Err(refused_by_kind(&mut decoder, queries).map_or_else(malformed, refuse));
        }
        let query = Query::read(&mut decoder).map_err(|_| malformed())?;
        let bytes = &message[HEADER..decoder.index()];
        // A name with pointers in it would mean something else in the answer; nobody compresses the first name.
        if bytes.len() != wire_length(query.name()) + 4 {
            return Err(malformed());
        }
        let read = Message::read_records(&mut decoder, usize::from(additionals), true, OpCode::Query);
        let (_, edns, _) = read.map_err(|_| malformed())?;
        let limit = match (over, &edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => usize::from(SMALLEST_PAYLOAD),
            (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(SMALLEST_PAYLOAD, OUR_PAYLOAD)),
        };
        let head = Head {
            id: metadata.id,
            recursion_desired: metadata.recursion_desired,
            checking_disabled: metadata.checking_disabled,
            edns: edns.as_ref().map(|edns| EdnsAsked { dnssec_ok: edns.flags().dnssec_ok }),
            limit,
        };
        let (kind, class) = (query.query_type(), query.query_class());
        let question = Self { head, bytes, query, kind };
        if edns.is_some_and(|edns| edns.version() > 0) {
            return Err(Unanswerable::Refuse(question.bare(ResponseCode::BADVERS)));
        }
        if class != DNSClass::IN || is_refused(question.kind) {
            return Err(Unanswerable::Refuse(question.bare(ResponseCode::Refused)));
        }
        Ok(question)
    }

    fn bare(&self, code: ResponseCode) -> Vec<u8> {
        response::Response::new(&self.head, self.bytes, code, response::Origin::Ours { forwards: false }).finish()
    }

    pub(super) fn name(&self) -> &Name {
        self.query.name()
    }

    /// In lower case, without the last dot. `None` for names that no service can have: with dots or odd bytes in labels.
    pub(super) fn text(&self) -> Option<String> {
        let mut text = String::with_capacity(self.bytes.len());
        for label in self.name().iter() {
            if !text.is_empty() {
                text.push('.');
            }
            for byte in label {
                match byte {
                    b'.' => return None,
                    0x21..=0x7e => text.push(char::from(byte.to_ascii_lowercase())),
                    _ => return None,
                }
            }
        }
        Some(text)
    }
}

/// Bytes of the name in a message, without compression.
pub(super) fn wire_length(name: &Name) -> usize {
    name.iter().map(|label| label.len() + 1).sum::<usize>() + 1
}

/// Whole zones are for nobody to fetch, and ANY serves those who want long answers (RFC 8482).
fn is_refused(kind: RecordType) -> bool {
    matches!(kind, RecordType::AXFR | RecordType::IXFR | RecordType::ANY | RecordType::OPT | RecordType::TSIG | RecordType::SIG)
}

/// IXFR comes with a record that other questions do not have.
fn refused_by_kind(decoder: &mut BinDecoder<'_>, queries: u16) -> Option<ResponseCode> {
    let query = (queries == 1).then(|| Query::read(decoder).ok()).flatten()?;
    is_refused(query.query_type()).then_some(ResponseCode::Refused)
}
