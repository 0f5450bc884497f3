//! What the client printed, made comparable.

use skep_kit::Output;

/// Words of one answer; ids, times and the host's name are marks.
pub struct Answer {
    status: i32,
    stdout: String,
    stderr: String,
}

pub enum Comparison {
    Same,
    /// How, for people.
    Different(String),
}

impl Answer {
    pub fn new(output: &Output, host_name: &str) -> Self {
        let plain = |text: &str| plain(&named(text, host_name));
        Self { status: output.status, stdout: plain(&output.stdout), stderr: plain(&output.stderr) }
    }

    /// The refusal, which the last line of the client is; what it warns of before is not, and what it logs is not the same each time.
    fn refusal(&self) -> &str {
        let mut lines = self.stderr.lines().filter(|line| !line.starts_with("time="));
        let first = lines.clone().next();
        lines.find(|line| line.contains("Error")).or(first).unwrap_or_default()
    }

    fn is_of_daemon(&self) -> bool {
        self.stderr.contains("Error response from daemon")
    }

    /// Of what may be refused as well.
    pub fn compare(&self, other: &Self) -> Comparison {
        if self.status != 0 && other.status != 0 && !self.stderr.is_empty() {
            return self.compare_refusals(other, false);
        }
        self.judge(other, self.status == other.status && self.stdout == other.stdout)
    }

    pub fn compare_refusals(&self, other: &Self, with_words: bool) -> Comparison {
        let is_refused = self.status != 0 && self.status == other.status && self.is_of_daemon() == other.is_of_daemon();
        // What the client itself refuses is the same client's word.
        let same_words = self.refusal() == other.refusal();
        self.judge(other, is_refused && (same_words || (self.is_of_daemon() && !with_words)))
    }

    fn judge(&self, other: &Self, is_same: bool) -> Comparison {
        if is_same {
            return Comparison::Same;
        }
        let show = |one: &Self| format!("{} {}{}", one.status, one.stdout, one.stderr);
        Comparison::Different(format!("here:  {}\n    there: {}", show(self).trim_end(), show(other).trim_end()))
    }
}

/// With a mark for the host's name, where it is a word: short names are parts of ids, too.
fn named(text: &str, host_name: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(host_name).filter(|_| !host_name.is_empty()) {
        let (before, found) = rest.split_at(at);
        let behind = &found[host_name.len()..];
        let joins = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let is_part = joins(before.chars().next_back().or(out.chars().next_back())) || joins(behind.chars().next());
        out += before;
        out += if is_part { host_name } else { "HOST" };
        rest = behind;
    }
    out + rest
}

/// A word that differs from cluster to cluster, as a mark; `None`: any other word.
fn mark(word: &str) -> Option<&'static str> {
    let has = |of: fn(&u8) -> bool| word.bytes().any(|byte| of(&byte));
    let all = |of: fn(u8) -> bool| word.bytes().all(of);
    let is_mixed = has(u8::is_ascii_digit) && has(u8::is_ascii_lowercase) && all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    match word.len() {
        64 if all(|byte| byte.is_ascii_hexdigit()) => Some("DIGEST"),
        25 if is_mixed => Some("ID"),
        // Ids may be of digits only.
        12 if is_mixed || all(|byte| byte.is_ascii_digit()) => Some("SHORT"),
        _ => None,
    }
}

/// `2026-11-23T07:09:07.3Z` and the like.
fn is_time(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() >= 20 && bytes[4] == b'-' && bytes[7] == b'-' && bytes[10] == b'T' && bytes[..4].iter().all(u8::is_ascii_digit)
}

/// What joins words that are marks on their own.
const JOINTS: [char; 3] = ['-', ':', '.'];

fn plain(text: &str) -> String {
    // Empty parts of resources count as none: they are not kept.
    let text = text.replace(r#""Limits":{},"Reservations":{}"#, "").replace(r#""Limits":{},"#, "").replace(r#","Reservations":{}"#, "");
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || JOINTS.contains(&c);
    let mut out = String::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_of_word(c)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        if is_time(word) {
            out += "TIME";
        } else {
            for part in word.split_inclusive(JOINTS) {
                let bare = part.trim_end_matches(JOINTS);
                out += mark(bare).unwrap_or(bare);
                out += &part[bare.len()..];
            }
        }
        let next = behind.chars().next().map_or(0, char::len_utf8);
        out += &behind[..next];
        rest = &behind[next..];
    }
    out
}

#[test]
fn what_the_client_logs_is_no_refusal() {
    let said = |stderr: &str| Answer { status: 1, stdout: String::new(), stderr: stderr.into() };
    let (plain, logged) =
        (said("no such directory\n"), said("time=\"TIME\" level=error msg=\"Can't close tar writer\"\nno such directory\n"));
    assert_eq!(logged.refusal(), "no such directory");
    assert!(matches!(logged.compare_refusals(&plain, false), Comparison::Same));
    assert!(matches!(said("no such file\n").compare_refusals(&plain, false), Comparison::Different(_)));
}

#[test]
fn ids_and_times_are_marks() {
    let id = "ujdpwsbblvvbf6gybjomt4z5y";
    assert_eq!(plain(&format!("web.1.{id} x")), "web.1.ID x");
    assert_eq!(plain("at 2026-11-23T07:09:07.309156739Z, 10.0.0.1:80 a-b"), "at TIME, 10.0.0.1:80 a-b");
    assert_eq!(plain(&format!("sha256:{}\n", "0a".repeat(32))), "sha256:DIGEST\n");
    assert_eq!(plain("303165327979"), "SHORT");
    assert_eq!(named("vm v7rvmsma vm-1 (vm)", "vm"), "HOST v7rvmsma HOST-1 (HOST)");
    assert_eq!(plain(r#"{"Limits":{},"Reservations":{}}"#), "{}");
}
