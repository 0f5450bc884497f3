//! Lines of output, in the form of Docker's json-file driver: `{"log":"text\n","stream":"stdout","time":"RFC 3339"}`.

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memrchr};
use serde::{Deserialize, Serialize};
use skep_types::Timestamp;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest piece of a line, bytes; longer lines are cut into several entries, of which only the last ends with a newline
/// (moby `daemon/logger/copier.go`).
pub const PIECE: usize = 16 * 1024;
/// Longer than any entry: a byte of output takes six at most, such as `\u0000`.
pub const LONGEST_ENTRY: usize = 8 * PIECE;

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
    /// With its newline, if it had one. A part of what was read with it, which stays as long as any of its lines.
    pub data: Bytes,
}

#[derive(Deserialize)]
struct Json<'a> {
    log: std::borrow::Cow<'a, str>,
    stream: LogStream,
    time: std::borrow::Cow<'a, str>,
}

const LOG: &[u8] = br#"{"log":""#;
const STDOUT: &[u8] = br#"","stream":"stdout","time":""#;
const STDERR: &[u8] = br#"","stream":"stderr","time":""#;
const END: &[u8] = b"\"}";

/// When output was read, as it is written: once for all lines of a read.
pub struct Stamp(String);

impl Stamp {
    pub fn now() -> Self {
        Self::at(OffsetDateTime::now_utc())
    }

    pub fn at(time: OffsetDateTime) -> Self {
        Self(time.format(&Rfc3339).unwrap_or_default())
    }
}

/// Appends one entry; bytes that are not UTF-8 become U+FFFD, as in Docker's.
pub fn encode(out: &mut Vec<u8>, stream: LogStream, data: &[u8], stamp: &Stamp) {
    out.extend_from_slice(&LOG[..LOG.len() - 1]);
    // Into memory: it cannot fail.
    let _ = serde_json::to_writer(&mut *out, &*String::from_utf8_lossy(data));
    let rest = match stream {
        LogStream::Stdout => STDOUT,
        LogStream::Stderr => STDERR,
    };
    out.extend_from_slice(&rest[1..]);
    out.extend_from_slice(stamp.0.as_bytes());
    out.extend_from_slice(END);
    out.push(b'\n');
}

/// Lines out of entries, one text for all of them.
#[derive(Debug, Default)]
pub struct Lines {
    text: BytesMut,
    /// Where each ends in the text.
    ends: Vec<(Timestamp, LogStream, usize)>,
    /// The last time that was read, and its meaning: most entries have the time of the one before.
    known: Option<(Vec<u8>, Timestamp)>,
}

impl Lines {
    /// Adds the line of an entry (without the entry's newline) if it is wanted; what is no entry, such as the torn last one of a crash,
    /// is passed over.
    pub fn read(&mut self, entry: &[u8], wants: impl Fn(LogStream, Timestamp) -> bool) {
        let length = self.text.len();
        let Some((stream, time)) = self.usual(entry).or_else(|| {
            self.text.truncate(length);
            self.any(entry)
        }) else {
            self.text.truncate(length);
            return;
        };
        if wants(stream, time) {
            self.ends.push((time, stream, self.text.len()));
        } else {
            self.text.truncate(length);
        }
    }

    /// Of an entry as [`encode`] writes it.
    fn usual(&mut self, entry: &[u8]) -> Option<(LogStream, Timestamp)> {
        let rest = entry.strip_prefix(LOG)?.strip_suffix(END)?;
        let (rest, time) = rest.split_at(memrchr(b'"', rest)? + 1);
        let (stream, log) = match rest.strip_suffix(STDOUT) {
            Some(log) => (LogStream::Stdout, log),
            None => (LogStream::Stderr, rest.strip_suffix(STDERR)?),
        };
        let time = self.time(time)?;
        unescape(log, &mut self.text)?;
        Some((stream, time))
    }

    fn time(&mut self, text: &[u8]) -> Option<Timestamp> {
        if let Some((known, time)) = &self.known
            && known == text
        {
            return Some(*time);
        }
        let time = parse_time(std::str::from_utf8(text).ok()?)?;
        self.known = Some((text.to_vec(), time));
        Some(time)
    }

    /// Of an entry in any form that JSON allows.
    fn any(&mut self, entry: &[u8]) -> Option<(LogStream, Timestamp)> {
        let json: Json<'_> = serde_json::from_slice(entry).ok()?;
        let time = parse_time(&json.time)?;
        self.text.extend_from_slice(json.log.as_bytes());
        Some((json.stream, time))
    }

    /// All lines since the last call, as slices of one piece of memory.
    pub fn take(&mut self) -> impl ExactSizeIterator<Item = LogLine> + use<> {
        let text = self.text.split().freeze();
        let mut from = 0;
        std::mem::take(&mut self.ends).into_iter().map(move |(time, stream, end)| {
            let data = text.slice(from..end);
            from = end;
            LogLine { time, stream, data }
        })
    }
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(Timestamp(i64::try_from(time.unix_timestamp_nanos()).ok()?))
}

/// Appends what a JSON string without its quotes says; `None` if it is not one, or has escapes that no output is written with.
fn unescape(mut text: &[u8], out: &mut BytesMut) -> Option<()> {
    // Without an early end: so it is done sixteen bytes at a time.
    let is_odd = text.iter().fold(false, |odd, byte| odd | (*byte < b' '));
    if is_odd || std::str::from_utf8(text).is_err() {
        return None;
    }
    out.reserve(text.len());
    while let Some(at) = memchr(b'\\', text) {
        let (plain, rest) = text.split_at(at);
        if memchr(b'"', plain).is_some() {
            return None;
        }
        out.extend_from_slice(plain);
        let (byte, length) = match rest.get(1)? {
            b'n' => (b'\n', 2),
            b't' => (b'\t', 2),
            b'r' => (b'\r', 2),
            b'b' => (0x08, 2),
            b'f' => (0x0c, 2),
            same @ (b'"' | b'\\' | b'/') => (*same, 2),
            b'u' => (ascii(rest.get(2..6)?)?, 6),
            _ => return None,
        };
        out.extend_from_slice(&[byte]);
        text = &rest[length..];
    }
    if memchr(b'"', text).is_some() {
        return None;
    }
    out.extend_from_slice(text);
    Some(())
}

/// Four hexadecimal digits, if they are an ASCII character.
fn ascii(digits: &[u8]) -> Option<u8> {
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok().filter(u8::is_ascii)
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
            let end = memchr(b'\n', &data[..room.min(data.len())]).map(|at| at + 1);
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

    fn read(entry: &[u8]) -> Option<LogLine> {
        let mut lines = Lines::default();
        lines.read(entry, |_, _| true);
        lines.take().next()
    }

    #[test]
    fn an_entry_is_read_back_and_odd_bytes_are_replaced() {
        let mut text = Vec::new();
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap();
        encode(&mut text, LogStream::Stderr, b"say \"hi\"\t\xff\n", &Stamp::at(now));
        assert!(text.starts_with(br#"{"log":"say \"hi\"\t"#));
        let line = read(&text[..text.len() - 1]).unwrap();
        assert_eq!(line.time, Timestamp(1_700_000_000_123_456_789));
        assert_eq!(line.stream, LogStream::Stderr);
        assert_eq!(line.data, "say \"hi\"\t\u{fffd}\n".as_bytes());
        assert_eq!(read(b"{\"log\":\"torn"), None);
    }

    #[test]
    fn what_is_no_entry_is_passed_over() {
        let entry = |log: &str| format!(r#"{{"log":"{log}","stream":"stdout","time":"2026-01-02T03:04:05Z"}}"#);
        assert_eq!(read(entry("a").as_bytes()).unwrap().data, "a");
        // Ends of strings in the wrong place, escapes that there are not, control characters, another stream, no time.
        for odd in [r"a\", "a\"b", r"\x", r"\u12", r"\u+041", "a\nb", r"\ud800"] {
            assert_eq!(read(entry(odd).as_bytes()), None, "{odd:?}");
        }
        assert_eq!(read(entry("a").replace("stdout", "stdin").as_bytes()), None);
        assert_eq!(read(entry("a").replace("2026", "soon").as_bytes()), None);
        assert_eq!(read(entry("\u{e9}").as_bytes()).unwrap().data, "\u{e9}");
        // As another writer may have put it.
        let other = br#" { "time": "2026-01-02T03:04:05Z", "log": "\u00e9\ud83d\ude00\n", "stream": "stderr", "attrs": {} } "#;
        assert_eq!(read(other).unwrap().data, "\u{e9}\u{1f600}\n");
    }

    #[test]
    fn lines_that_are_not_wanted_leave_nothing() {
        let mut entries = Vec::new();
        for (stream, data) in [(LogStream::Stdout, "one\n"), (LogStream::Stderr, "two\n"), (LogStream::Stdout, "three")] {
            entries.push(Vec::new());
            encode(entries.last_mut().unwrap(), stream, data.as_bytes(), &Stamp::now());
        }
        let mut lines = Lines::default();
        for entry in &entries {
            lines.read(&entry[..entry.len() - 1], |stream, _| stream == LogStream::Stdout);
        }
        assert_eq!(lines.text, "one\nthree");
        assert_eq!(lines.take().map(|line| line.data).collect::<Vec<_>>(), ["one\n", "three"]);
        assert_eq!(lines.take().len(), 0);
    }

    proptest::proptest! {
        /// The quick way reads what the general one reads, and nothing else.
        #[test]
        fn any_output_is_read_back(data: Vec<u8>, stderr: bool, nanos in 0..4_000_000_000_000_000_000_i64) {
            let stream = if stderr { LogStream::Stderr } else { LogStream::Stdout };
            let mut entry = Vec::new();
            encode(&mut entry, stream, &data, &Stamp::at(OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).unwrap()));
            proptest::prop_assert_eq!(entry.pop(), Some(b'\n'));
            let text = String::from_utf8_lossy(&data);
            let wanted = LogLine { time: Timestamp(nanos), stream, data: Bytes::copy_from_slice(text.as_bytes()) };
            let mut lines = Lines::default();
            proptest::prop_assert_eq!(lines.usual(&entry), Some((stream, Timestamp(nanos))));
            proptest::prop_assert_eq!(&lines.text[..], text.as_bytes());
            proptest::prop_assert_eq!(read(&entry), Some(wanted));
        }

        #[test]
        fn whatever_stands_there_means_the_same_both_ways(mut entry in r#"\{"log":"([a-z"\\/\x00-\x20é]|\\[nrtbfu"x0]|\\u00[0-9a-f]{2}|\\ud83d|"|\}){0,12}","stream":"std(out|err)","time":"2026-01-02T03:04:05(.[0-9]{1,9})?Z"\}"#, cut in 0_usize..40) {
            if cut < 5 && entry.is_char_boundary(entry.len() - cut) {
                entry.truncate(entry.len() - cut);
            }
            let (mut quick, mut general) = (Lines::default(), Lines::default());
            if let Some(found) = quick.usual(entry.as_bytes()) {
                proptest::prop_assert_eq!(general.any(entry.as_bytes()), Some(found));
                proptest::prop_assert_eq!(quick.text, general.text);
            }
        }
    }
}
