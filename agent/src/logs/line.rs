//! Lines of output, in the form of Docker's json-file driver: `{"log":"text\n","stream":"stdout","time":"RFC 3339"}`.

use serde::{Deserialize, Serialize};
use skep_types::Timestamp;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest piece of a line, bytes; longer lines are cut into several entries, of which only the last ends with a newline
/// (moby `daemon/logger/copier.go`).
pub const PIECE: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// One line, or a piece of a very long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub time: Timestamp,
    pub stream: LogStream,
    /// With its newline, if it had one.
    pub data: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Json<'a> {
    log: std::borrow::Cow<'a, str>,
    stream: LogStream,
    time: std::borrow::Cow<'a, str>,
}

impl LogLine {
    /// Reads a line of a file; `None` if it is not one, such as the torn last line of a crash.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let json: Json<'_> = serde_json::from_slice(text).ok()?;
        let time = OffsetDateTime::parse(&json.time, &Rfc3339).ok()?;
        let time = Timestamp(i64::try_from(time.unix_timestamp_nanos()).ok()?);
        Some(Self { time, stream: json.stream, data: json.log.into_owned().into_bytes() })
    }
}

/// Appends one entry; bytes that are not UTF-8 become U+FFFD, as in Docker's.
pub fn encode(out: &mut Vec<u8>, stream: LogStream, data: &[u8], now: OffsetDateTime) {
    let time = now.format(&Rfc3339).unwrap_or_default();
    let json = Json { log: String::from_utf8_lossy(data), stream, time: time.into() };
    if serde_json::to_writer(&mut *out, &json).is_ok() {
        out.push(b'\n');
    }
}

/// Cuts a stream of bytes into lines and pieces.
#[derive(Debug, Default)]
pub struct Splitter {
    rest: Vec<u8>,
}

impl Splitter {
    /// Takes bytes in and gives out what is complete.
    pub fn feed(&mut self, mut data: &[u8], mut emit: impl FnMut(&[u8])) {
        while !data.is_empty() {
            let room = PIECE - self.rest.len();
            let end = data.iter().take(room).position(|byte| *byte == b'\n').map(|at| at + 1);
            match end {
                Some(end) if self.rest.is_empty() => emit(&data[..end]),
                Some(end) => {
                    self.rest.extend_from_slice(&data[..end]);
                    emit(&self.rest);
                    self.rest.clear();
                }
                None if data.len() >= room => {
                    self.rest.extend_from_slice(&data[..room]);
                    emit(&self.rest);
                    self.rest.clear();
                }
                None => {
                    self.rest.extend_from_slice(data);
                    return;
                }
            }
            data = &data[end.unwrap_or(room)..];
        }
        // Most streams write whole lines; a buffer that was needed once is not kept for ever.
        if self.rest.is_empty() && self.rest.capacity() > 1024 {
            self.rest = Vec::new();
        }
    }

    /// The end of the stream: what is there without a newline.
    pub fn finish(&mut self, mut emit: impl FnMut(&[u8])) {
        if !self.rest.is_empty() {
            emit(&std::mem::take(&mut self.rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(parts: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for part in parts {
            splitter.feed(part, |line| lines.push(line.to_vec()));
        }
        splitter.finish(|line| lines.push(line.to_vec()));
        lines
    }

    #[test]
    fn lines_are_put_together_from_partial_reads() {
        assert_eq!(cut(&[b"a\nb", b"c\n", b"\n", b"end"]), [b"a\n".to_vec(), b"bc\n".to_vec(), b"\n".to_vec(), b"end".to_vec()]);
    }

    #[test]
    fn a_long_line_is_cut_into_pieces_of_16_kib() {
        let long = vec![b'x'; PIECE * 2 + 5];
        let lines = cut(&[&long[..1000], &long[1000..], b"\nnext\n"]);
        assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [PIECE, PIECE, 6, 5]);
        let exact = vec![b'x'; PIECE];
        assert_eq!(cut(&[&exact, b"\n"]).iter().map(Vec::len).collect::<Vec<_>>(), [PIECE, 1]);
    }

    #[test]
    fn an_entry_is_read_back_and_odd_bytes_are_replaced() {
        let mut text = Vec::new();
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap();
        encode(&mut text, LogStream::Stderr, b"say \"hi\"\t\xff\n", now);
        assert!(text.starts_with(br#"{"log":"say \"hi\"\t"#));
        let line = LogLine::parse(&text[..text.len() - 1]).unwrap();
        assert_eq!(line.time, Timestamp(1_700_000_000_123_456_789));
        assert_eq!(line.stream, LogStream::Stderr);
        assert_eq!(line.data, "say \"hi\"\t\u{fffd}\n".as_bytes());
        assert_eq!(LogLine::parse(b"{\"log\":\"torn"), None);
    }
}
