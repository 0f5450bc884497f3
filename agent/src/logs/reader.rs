//! Reads a task's log files: all, the last lines, or since a time; and follows them over rotations.

use super::line::{LogLine, LogStream};
use super::rotate::{CURRENT, path_of};
use skep_types::Timestamp;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often a followed file is looked at; only while somebody follows.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
/// Lines handed over at once.
const BATCH: usize = 256;
/// Bytes of a file read before what was found is handed over: a reader's memory is bounded, whatever a task writes.
const CHUNK: u64 = 1 << 20;
/// More rotated files than this are not looked for.
const MAX_FILES: u32 = 1000;

/// How much of the past is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    All,
    Last(usize),
}

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    pub stdout: bool,
    pub stderr: bool,
    pub since: Option<Timestamp>,
    pub tail: Tail,
    pub follow: bool,
}

impl LogQuery {
    fn wants(&self, line: &LogLine) -> bool {
        let stream = match line.stream {
            LogStream::Stdout => self.stdout,
            LogStream::Stderr => self.stderr,
        };
        stream && self.since.is_none_or(|since| line.time >= since)
    }
}

/// A place in the chain of files.
struct Cursor {
    dir: PathBuf,
    file: Option<(u64, BufReader<File>)>,
    /// A line without its end yet.
    partial: Vec<u8>,
}

/// The files there are, oldest first, with their inodes.
fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut list = Vec::new();
    for age in 0..MAX_FILES {
        let path = path_of(dir, age);
        match std::fs::metadata(&path) {
            Ok(meta) => list.push((meta.ino(), path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && age > 0 => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    list.reverse();
    Ok(list)
}

impl Cursor {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: None, partial: Vec::new() }
    }

    /// Hands over every whole line of the present file, until `budget` bytes were read.
    fn drain(&mut self, budget: &mut u64, take: &mut impl FnMut(LogLine)) -> io::Result<()> {
        let Some((_, reader)) = &mut self.file else { return Ok(()) };
        while *budget > 0 {
            let read = reader.read_until(b'\n', &mut self.partial)?;
            if read == 0 || self.partial.last() != Some(&b'\n') {
                break; // the end, or still being written
            }
            *budget = budget.saturating_sub(read as u64);
            if let Some(line) = LogLine::parse(&self.partial) {
                take(line);
            }
            self.partial.clear();
        }
        Ok(())
    }

    /// Hands over every whole line up to the present end of the newest file, or until `budget` bytes were read: a task may
    /// write faster than this reads. Returns what is left of the budget, 0 when there may be more.
    fn advance(&mut self, mut budget: u64, mut take: impl FnMut(LogLine)) -> io::Result<u64> {
        loop {
            self.drain(&mut budget, &mut take)?;
            if budget == 0 {
                return Ok(0);
            }
            // The next newer file, if this one is no longer the current one.
            let list = files(&self.dir)?;
            let next = match &self.file {
                None => list.first(),
                Some((inode, _)) => match list.iter().position(|(known, _)| known == inode) {
                    Some(place) => list.get(place + 1),
                    // It was rotated away for good: go on with the oldest there is.
                    None => list.first(),
                },
            };
            let Some((_, path)) = next else { return Ok(budget) };
            // What was written between our last look and the rotation.
            self.drain(&mut budget, &mut take)?;
            if budget == 0 {
                return Ok(0);
            }
            let file = File::open(path)?;
            let inode = file.metadata()?.ino();
            self.partial.clear();
            self.file = Some((inode, BufReader::new(file)));
        }
    }
}

/// Bytes that all files hold now, at least 1.
fn size(dir: &Path) -> io::Result<u64> {
    let sizes = files(dir)?.into_iter().map(|(_, path)| std::fs::metadata(path).map_or(0, |meta| meta.len()));
    Ok(sizes.sum::<u64>().max(1))
}

/// Sends the lines that `query` wants, in the order they were written; with `follow` until `stop` or until the
/// receiver is dropped. When `stop` comes, what is there is sent first. A task without any output has no files: that is no error.
///
/// # Errors
/// Of the file system.
pub async fn read_logs(dir: PathBuf, query: LogQuery, lines: mpsc::Sender<Vec<LogLine>>, stop: CancellationToken) -> io::Result<()> {
    let mut cursor = Cursor::new(&dir);
    let mut tail = query.tail;
    let mut last = stop.is_cancelled();
    // What was there at the beginning, and later what was there when `stop` came: more is not waited for.
    let mut there = size(&dir)?;
    loop {
        if !last && stop.is_cancelled() {
            last = true;
            there = size(&dir)?;
        }
        let ends = last || !query.follow;
        let budget = match tail {
            Tail::Last(_) => there,
            Tail::All if ends => there.min(CHUNK),
            Tail::All => CHUNK,
        };
        let this_tail = tail;
        // Log files may be large: not on a thread that others wait for.
        let (back, found) = tokio::task::spawn_blocking(move || {
            let mut found = VecDeque::new();
            let result = cursor.advance(budget, |line| {
                if query.wants(&line) {
                    if let Tail::Last(count) = this_tail
                        && found.len() >= count
                    {
                        found.pop_front();
                    }
                    if this_tail != Tail::Last(0) {
                        found.push_back(line);
                    }
                }
            });
            (cursor, result.map(|left| (left, found)))
        })
        .await
        .map_err(io::Error::other)?;
        cursor = back;
        tail = Tail::All;
        let (left, found) = found?;
        let mut found: Vec<LogLine> = found.into();
        while !found.is_empty() {
            let rest = found.split_off(found.len().min(BATCH));
            if lines.send(found).await.is_err() {
                return Ok(());
            }
            found = rest;
        }
        there = there.saturating_sub(budget - left);
        if left == 0 && (!ends || there > 0) {
            if lines.is_closed() {
                return Ok(());
            }
            continue;
        }
        if ends || (!dir.join(CURRENT).exists() && !dir.exists()) {
            return Ok(());
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = lines.closed() => return Ok(()),
            () = tokio::time::sleep(FOLLOW_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::encode;
    use super::super::options::LogOptions;
    use super::super::rotate::Rotating;
    use super::*;
    use time::OffsetDateTime;

    const ALL: LogQuery = LogQuery { stdout: true, stderr: true, since: None, tail: Tail::All, follow: false };

    fn write(log: &mut Rotating, number: i64, stream: LogStream) {
        let mut entry = Vec::new();
        let time = OffsetDateTime::from_unix_timestamp(number).unwrap();
        encode(&mut entry, stream, format!("line {number}\n").as_bytes(), time);
        log.write(&entry).unwrap();
    }

    async fn read(dir: &Path, query: LogQuery) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(100);
        read_logs(dir.to_owned(), query, sender, CancellationToken::new()).await.unwrap();
        let mut texts = Vec::new();
        while let Some(batch) = receiver.recv().await {
            texts.extend(batch.into_iter().map(|line| String::from_utf8(line.data).unwrap().trim_end().replace("line ", "")));
        }
        texts
    }

    /// About four entries per file.
    fn small() -> LogOptions {
        LogOptions { max_size: 300, max_file: 3, discard: false }
    }

    #[tokio::test]
    async fn lines_come_in_order_over_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Rotating::open(dir.path(), small()).unwrap();
        for number in 1..=10 {
            write(&mut log, number, if number % 2 == 0 { LogStream::Stderr } else { LogStream::Stdout });
        }
        let all = read(dir.path(), ALL).await;
        assert_eq!(all.last().unwrap(), "10");
        assert!(all.windows(2).all(|pair| pair[0].parse::<i64>().unwrap() + 1 == pair[1].parse::<i64>().unwrap()), "{all:?}");
        assert_eq!(read(dir.path(), LogQuery { tail: Tail::Last(2), ..ALL }).await, ["9", "10"]);
        assert_eq!(read(dir.path(), LogQuery { tail: Tail::Last(0), ..ALL }).await, Vec::<String>::new());
        assert_eq!(read(dir.path(), LogQuery { stderr: false, tail: Tail::Last(2), ..ALL }).await, ["7", "9"]);
        assert_eq!(read(dir.path(), LogQuery { since: Some(Timestamp::from_secs(8)), ..ALL }).await, ["8", "9", "10"]);
    }

    #[tokio::test]
    async fn a_task_without_output_has_no_lines() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path(), ALL).await.is_empty());
    }

    #[tokio::test]
    async fn following_sees_every_line_over_rotations_and_ends_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Rotating::open(dir.path(), LogOptions { max_size: 300, max_file: 50, discard: false }).unwrap();
        write(&mut log, 1, LogStream::Stdout);
        let (sender, mut receiver) = mpsc::channel(100);
        let stop = CancellationToken::new();
        let query = LogQuery { follow: true, tail: Tail::Last(1), ..ALL };
        let reading = tokio::spawn(read_logs(dir.path().to_owned(), query, sender, stop.clone()));
        let mut count = receiver.recv().await.unwrap().len();
        for number in 2..=40 {
            write(&mut log, number, LogStream::Stdout);
            if number % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
        stop.cancel();
        reading.await.unwrap().unwrap();
        while let Some(batch) = receiver.recv().await {
            count += batch.len();
        }
        assert_eq!(count, 40);
    }

    #[tokio::test]
    async fn a_torrent_is_read_in_bounded_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Rotating::open(dir.path(), LogOptions { max_size: 1 << 20, max_file: 3, discard: false }).unwrap();
        for number in 0..40_000 {
            write(&mut log, number, LogStream::Stdout);
        }
        let mut cursor = Cursor::new(dir.path());
        let (mut left, mut total) = (0, 0);
        while left == 0 {
            let mut bytes = 0;
            left = cursor.advance(4096, |line| bytes += line.data.len()).unwrap();
            assert!(bytes <= 4096, "{bytes}");
            total += 1;
        }
        assert!(total > 100, "{total}");
        // Without following, what is written meanwhile is not waited for.
        let (sender, mut receiver) = mpsc::channel(1);
        let reading = tokio::spawn(read_logs(dir.path().to_owned(), ALL, sender, CancellationToken::new()));
        let mut count = 0;
        while let Some(batch) = receiver.recv().await {
            count += batch.len();
            for _ in 0..batch.len() * 2 {
                write(&mut log, 0, LogStream::Stdout);
            }
        }
        reading.await.unwrap().unwrap();
        assert!(count < 80_000, "{count}");
    }
}
