//! Requests that nobody would send in earnest, to a running daemon: it answers each with an error in JSON or does what was asked, it never
//! panics, and its memory stays where it was. The same requests each time.

use crate::support::{lab, ok, request};
use anyhow::{Context as _, Result, ensure};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const REQUESTS: usize = 1_000;
/// For an answer that must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// An answer that may go on for ever, or wait for a registry that is not there, is left after so long.
const GLIMPSE: Duration = Duration::from_millis(200);
/// In paths of such answers.
const SLOW: [&str; 9] = ["events", "logs", "attach", "stats", "create", "distribution", "auth", "push", "load"];
/// Longer answers are cut off: they are no errors.
const MOST: usize = 1 << 20;
/// MiB that the daemon may grow by.
const GROWTH: u64 = 96;

/// Chance that can be repeated (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % end.max(1)
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    fn noise(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| u8::try_from(self.below(256)).unwrap_or(0)).collect()
    }
}

const METHODS: [&str; 8] = ["GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "PATCH", "BREW"];
const STEPS: [&str; 46] = [
    "containers",
    "images",
    "services",
    "tasks",
    "nodes",
    "networks",
    "volumes",
    "secrets",
    "configs",
    "exec",
    "swarm",
    "info",
    "events",
    "version",
    "_ping",
    "auth",
    "system",
    "df",
    "json",
    "create",
    "prune",
    "logs",
    "stats",
    "archive",
    "changes",
    "start",
    "top",
    "attach",
    "update",
    "inspect",
    "get",
    "load",
    "push",
    "tag",
    "history",
    "distribution",
    "unlockkey",
    "build",
    "commit",
    "connect",
    "disconnect",
    "box:1",
    "..",
    "%2e%2e",
    "%00%ff",
    "aaaaaaaaaaaa",
];
const NAMES: [&str; 24] = [
    "filters",
    "all",
    "limit",
    "size",
    "since",
    "until",
    "tail",
    "follow",
    "stdout",
    "stderr",
    "path",
    "fromImage",
    "tag",
    "repo",
    "names",
    "version",
    "h",
    "w",
    "signal",
    "t",
    "force",
    "name",
    "status",
    "platform",
];
const VALUES: [&str; 26] = [
    "1",
    "0",
    "true",
    "no",
    "",
    "-1",
    "18446744073709551616",
    "1e309",
    "NaN",
    "%7B%7D",
    "{",
    "%7B%22name%22%3A%5B%22x%22%5D%7D",
    "%7B%22name%22%3A%7B%22x%22%3Atrue%7D%7D",
    "%7B%22label%22%3A%5B%22a%3Db%22%2C%22%22%5D%7D",
    "%7B%22until%22%3A%5B%22yesterday%22%5D%7D",
    "%7B%22id%22%3A%5B%22%5C%5C(%22%5D%7D",
    "%5B%5B%5B%5B%5D%5D%5D%5D",
    "%7B%22a%22%3A%5B1%2Cnull%5D%7D",
    "%ff%fe",
    "%00",
    "../../etc/passwd",
    "/",
    "SIGKILL",
    "9223372036854775808",
    "1970-01-01T00:00:00.999999999999Z",
    "%F0%9F%90%99",
];
const BODIES: [&str; 16] = [
    "",
    "{}",
    "[]",
    "null",
    "{",
    "\"x\"",
    "1e999",
    r#"{"Name":1}"#,
    r#"{"Name":"x","Mode":{"Replicated":{"Replicas":-1}}}"#,
    r#"{"TaskTemplate":{"ContainerSpec":{"Image":"\u0000"}}}"#,
    r#"{"Image":"box:1","Cmd":["\ud800"]}"#,
    r#"{"Image":"box:1","Hostname":"a\nb"}"#,
    r#"{"Name":"x","Data":"!!!"}"#,
    r#"{"Name":"x","Data":"eA==","Labels":{"":""}}"#,
    r#"{"Driver":"overlay","Name":"\n","IPAM":{"Config":[{"Subnet":"x"}]}}"#,
    r#"{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"99999"}]}},"Image":"box:1"}"#,
];

/// A request as bytes, and whether it is a whole one that the server must answer.
fn thrown(dice: &mut Dice) -> (Vec<u8>, bool) {
    let mut path = String::new();
    if dice.below(3) > 0 {
        path.push_str(dice.of(&["/v1.41", "/v1.24", "/v1.50", "/v9.99", "/v1.1", "/v1.", "/vx"]));
    }
    for _ in 0..=dice.below(4) {
        path.push('/');
        path.push_str(dice.of(&STEPS));
    }
    // The daemon is to stay in its swarm, and to end by no request of ours.
    if path.contains("swarm") {
        path = "/swarm".into();
    }
    for number in 0..dice.below(4) {
        path.push(if number == 0 { '?' } else { '&' });
        path.push_str(&format!("{}={}", dice.of(&NAMES), dice.of(&VALUES)));
    }
    let method = dice.of(&METHODS);
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n");
    if dice.below(2) == 0 {
        head.push_str(&format!(
            "Content-Type: {}\r\n",
            dice.of(&["application/json", "application/x-tar", "text/plain", ";", "application/json; x"])
        ));
    }
    if dice.below(6) == 0 {
        head.push_str(&format!("X-Registry-Auth: {}\r\n", dice.of(&["e30=", "!!!", "eyJ1c2VybmFtZSI6MX0=", ""])));
    }
    if dice.below(12) == 0 {
        head.push_str(&format!("X-Long: {}\r\n", "y".repeat(dice.below(200_000))));
    }
    if dice.below(15) == 0 {
        head.push_str("Connection: Upgrade\r\nUpgrade: tcp\r\n");
    }
    let body = if dice.below(4) == 0 { dice.noise(3_000) } else { dice.of(&BODIES).as_bytes().to_vec() };
    let mut all = head.into_bytes();
    let is_whole = match dice.below(8) {
        // Chunks, good and bad.
        0 => {
            all.extend(format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len().max(1)).into_bytes());
            all.extend(if body.is_empty() { b"x" } else { body.as_slice() });
            all.extend(b"\r\n0\r\n\r\n");
            true
        }
        1 => {
            all.extend(b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n");
            all.extend(&body);
            false
        }
        2 => {
            all.extend(format!("Content-Length: {}\r\nContent-Length: 7\r\n\r\n", body.len()).into_bytes());
            all.extend(&body);
            false
        }
        3 => {
            // It ends before it is over.
            all.extend(format!("Content-Length: {}\r\n\r\n", body.len() + 10).into_bytes());
            all.extend(&body);
            false
        }
        4 => {
            let noise = dice.noise(400);
            let at = dice.below(all.len());
            all.splice(at..at, noise);
            all.extend(b"\r\n");
            false
        }
        _ => {
            all.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
            all.extend(&body);
            true
        }
    };
    (all, is_whole)
}

/// What came back until the end, or until nothing came for a while.
fn throw(socket: &Path, request: &[u8], is_whole: bool, must_answer: bool) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).context("the daemon takes no connection")?;
    stream.set_read_timeout(Some(if must_answer { PATIENCE } else { GLIMPSE }))?;
    // The server may have refused before it has read all.
    let written = stream.write_all(request);
    if written.is_ok() && !is_whole {
        // A server waits for the rest of what is not whole, and this is all there is.
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let (mut answer, mut piece) = (Vec::new(), [0; 16 * 1024]);
    while answer.len() < MOST {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => answer.extend(&piece[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionReset) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(answer)
}

/// An error is told in JSON with `message`, by whatever was wrong; hyper itself answers what is no HTTP with a bare status.
fn check(method: &[u8], answer: &[u8], is_whole: bool) -> Result<()> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        ensure!(answer.is_empty() || !is_whole, "half an answer: {text}");
        return Ok(());
    };
    let status: u16 = head.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("no status: {head}"))?;
    if is_whole && status >= 400 && !method.starts_with(b"HEAD") && head.to_lowercase().contains("content-type") {
        let told: serde_json::Value = serde_json::from_str(body.trim()).with_context(|| format!("an error that is no JSON: {text}"))?;
        ensure!(told["message"].as_str().is_some_and(|message| !message.is_empty()), "an error without words: {text}");
    }
    Ok(())
}

fn memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no memory")?;
    Ok(line.split_whitespace().next().context("no number")?.parse::<u64>()? / 1024)
}

#[test]
fn nothing_that_is_thrown_at_the_api_breaks_it() -> Result<()> {
    let Some(lab) = lab("the API under random requests")? else { return Ok(()) };
    let (socket, pid) = (lab.run_dir().join("docker.sock"), lab.skepd_pid().context("skepd runs")?);
    let mut dice = Dice(0x5eed_0006_d0c4_e121);
    let mut before = None;
    let mut answered = 0;
    for number in 0..REQUESTS {
        let (request, is_whole) = thrown(&mut dice);
        let shown = || format!("request {number}: {}", String::from_utf8_lossy(&request[..request.len().min(600)]));
        let line = String::from_utf8_lossy(&request[..request.len().min(300)]).lines().next().unwrap_or_default().to_owned();
        let must_answer = is_whole && !SLOW.iter().any(|word| line.contains(word));
        let answer = throw(&socket, &request, is_whole, must_answer).with_context(shown)?;
        ensure!(!must_answer || !answer.is_empty(), "no answer to {}", shown());
        answered += usize::from(!answer.is_empty());
        check(&request, &answer, is_whole).with_context(shown)?;
        // What every daemon loads once is no growth.
        if number == REQUESTS / 5 {
            before = Some(memory(pid)?);
        }
    }
    ensure!(answered > REQUESTS / 3, "only {answered} of {REQUESTS} requests were answered");
    ensure!(lab.skepd_pid() == Some(pid) && lab.is_alive(), "skepd is another one, or gone");
    let grown = memory(pid)?.saturating_sub(before.context("there were so many requests")?);
    ensure!(grown < GROWTH, "skepd grew by {grown} MiB");
    let log = lab.log();
    ensure!(!log.contains("panicked"), "{}", log.lines().filter(|line| line.contains("panicked")).take(3).collect::<Vec<_>>().join("\n"));
    // It answers as before.
    ensure!(ok(&lab, &["node", "ls", "-q"])?.lines().count() == 1 && request_is_ok(&lab)?);
    Ok(())
}

fn request_is_ok(lab: &skep_kit::Lab) -> Result<bool> {
    Ok(request(lab, "GET", "/v1.41/info", None)?.0 == 200)
}
