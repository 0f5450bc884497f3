//! D4: `logs --follow` of a container that writes as fast as it can: how much comes a second, and whether all of it comes.

use super::runners::{Runner, image};
use crate::cpu::Reading;
use crate::field::Field;
use crate::report::{Goal, Report, Row};
use crate::stats::median;
use anyhow::{Context as _, Result, ensure};
use skep_agents::usage_of;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Lines of the file that is written again and again, of 100 bytes each, all different: 50 MB.
const LINES: usize = 500_000;
const LINE: usize = 100;
/// 500 MB in all.
const TIMES: usize = 10;
const WRITER: &str = "writer";
/// A follower that hears nothing for so long has lost the rest.
const SILENCE: Duration = Duration::from_secs(60);

/// What one follower saw.
struct Seen {
    bytes: usize,
    /// Where the text was first not what had been written.
    wrong_at: Option<usize>,
    wall: f64,
    cpu: f64,
    foreign: f64,
    /// KiB that the daemon grew by at most.
    grown: f64,
}

/// # Errors
/// If a container cannot be run or its log not read.
pub fn follow(field: &Field, count: usize) -> Result<Report> {
    let dir = tempfile::tempdir_in("/var/tmp")?;
    let mut text = String::with_capacity(LINES * LINE);
    for number in 0..LINES {
        writeln!(text, "{number:0width$}", width = LINE - 1)?;
    }
    std::fs::write(dir.path().join("lines"), &text)?;
    let runners = Runner::all(field, &image(dir.path())?)?;
    let mut report = Report::new("D4", "docker logs --follow of 500 MB");
    report.rounds = count;
    let wanted = text.len() * TIMES;
    for runner in &runners {
        let Some(socket) = runner.socket() else { continue };
        let pid = match (runner.name(), &field.dockerd) {
            ("skep", _) => field.lab.skepd_pid().context("skepd does not run")?,
            (_, Some(peer)) => *peer.daemons().first().context("dockerd does not run")?,
            _ => continue,
        };
        let mut all = Vec::new();
        for round in 0..count {
            eprint!("\r{}: round {} of {count} ", runner.name(), round + 1);
            let outcome = once(runner, socket, pid, dir.path(), text.as_bytes());
            runner.leave(WRITER);
            all.push(outcome?);
        }
        eprintln!();
        report.foreign.extend(all.iter().map(|seen| seen.foreign));
        let of = |value: &dyn Fn(&Seen) -> f64| median(&all.iter().map(value).collect::<Vec<_>>());
        let lost = all.iter().map(|seen| wanted.saturating_sub(seen.bytes)).max().unwrap_or(wanted);
        let wrong = all.iter().find_map(|seen| seen.wrong_at);
        let goal = |most| (runner.name() == "skep").then_some(Goal::Value(most));
        let name = runner.name();
        let note = wrong.map(|at| format!("the text differs from what was written at byte {at}")).unwrap_or_default();
        report.rows.push(Row::plain(format!("{name}: bytes lost"), "bytes", Some(lost as f64), goal(0.0)).note(note));
        report.rows.push(Row::plain(
            format!("{name}: rounds with other text"),
            "rounds",
            Some(all.iter().filter(|seen| seen.wrong_at.is_some()).count() as f64),
            goal(0.0),
        ));
        let each = wanted as f64 / 1e8;
        // 100 MB/s are a second for 100 MB.
        report.rows.push(Row::plain(format!("{name}: written and followed, 100 MB"), "s wall", of(&|seen| seen.wall / each), goal(1.0)));
        report.rows.push(Row::plain(format!("{name}: CPU of daemons and container, 100 MB"), "s CPU", of(&|seen| seen.cpu / each), None));
        report.rows.push(Row::plain(format!("{name}: growth of the daemon's memory"), "MiB", of(&|seen| seen.grown / 1024.0), goal(64.0)));
    }
    report.remarks.push("a container writes 50 MB ten times, 100 bytes a line; one follower compares every byte; logs with each daemon's defaults (ours: 3 files of 10 MiB; dockerd's: one without a limit)".into());
    Ok(report)
}

fn once(runner: &Runner, socket: &Path, pid: u32, dir: &Path, text: &[u8]) -> Result<Seen> {
    runner.create_writer(WRITER, dir, "lines", TIMES)?;
    // From now on the peak is this round's (proc(5), clear_refs).
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
    let memory = usage_of(pid).rss_kib;
    let (before, began) = (Reading::take(runner.daemons()), Instant::now());
    runner.start(WRITER)?;
    let (bytes, wrong_at) = read(socket, text)?;
    let wall = began.elapsed().as_secs_f64();
    let spent = before.until(&Reading::take(runner.daemons()));
    let grown = usage_of(pid).peak_kib.saturating_sub(memory) as f64;
    Ok(Seen { bytes, wrong_at, wall, cpu: spent.tree, foreign: spent.foreign_share(), grown })
}

/// Reads to the end; how many bytes came, and where they were first not the text again and again.
fn read(socket: &Path, text: &[u8]) -> Result<(usize, Option<usize>)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SILENCE))?;
    // HTTP/1.0: the answer has no chunks and ends with the connection.
    (&stream).write_all(format!("GET /v1.41/containers/{WRITER}/logs?follow=1&stdout=1 HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes())?;
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let mut head = String::new();
    reader.read_line(&mut head)?;
    ensure!(head.contains(" 200 "), "logs: {head}");
    let mut chunked = false;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
        if line.trim().is_empty() {
            break;
        }
    }
    ensure!(!chunked, "an answer to HTTP/1.0 in chunks");
    let (mut bytes, mut wrong_at) = (0, None);
    let (mut frame, mut payload) = ([0; 8], Vec::new());
    loop {
        match reader.read_exact(&mut frame) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok((bytes, wrong_at)),
            Err(error) => return Err(error).context("the log broke off"),
        }
        let length = u32::from_be_bytes([frame[4], frame[5], frame[6], frame[7]]) as usize;
        payload.resize(length, 0);
        reader.read_exact(&mut payload)?;
        let mut rest = payload.as_slice();
        while !rest.is_empty() && wrong_at.is_none() {
            let from = bytes % text.len();
            let size = rest.len().min(text.len() - from);
            if rest[..size] != text[from..from + size] {
                wrong_at = Some(bytes);
            }
            bytes += size;
            rest = &rest[size..];
        }
        bytes += rest.len();
    }
}
