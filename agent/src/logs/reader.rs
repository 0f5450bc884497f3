//! Reads a task's log files: all, the last lines, or since a time; and follows them over rotations.

use super::line::{LONGEST_ENTRY, Lines, LogLine, LogStream};
use super::rotate::{CURRENT, Following, path_of};
use memchr::memchr;
use skep_types::Timestamp;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often a followed file is looked at; only while somebody follows.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
/// The same just after something came, and then twice as long each time: a torrent fills all files of a task in a fifth of a second.
const FOLLOW_SOON: Duration = Duration::from_millis(10);
/// Lines handed over at once.
const BATCH: usize = 8192;
/// Bytes of a file read before what was found is handed over: a reader's memory is bounded, whatever a task writes.
const CHUNK: u64 = 512 << 10;
/// Bytes of a file read at once, by a reader that has just begun or waits for more, and by one that is behind.
const BLOCK: std::ops::RangeInclusive<usize> = 16 << 10..=256 << 10;
/// More rotated files than this are not looked for.
const MAX_FILES: u32 = 1000;
/// Newer files that a reader holds open, so that it loses nothing if they are removed before it comes to them: so many, and so many bytes.
/// Files are kept for it for a while ([`Following`]). A reader that is behind further loses what is removed; a task never waits for its
/// readers.
const HELD: usize = 16;
const HELD_BYTES: u64 = 256 << 20;
/// Looks at the files when they are renamed between finding and opening one.
const LOOKS: usize = 4;

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
    fn wants(&self, stream: LogStream, time: Timestamp) -> bool {
        let stream = match stream {
            LogStream::Stdout => self.stdout,
            LogStream::Stderr => self.stderr,
        };
        stream && self.since.is_none_or(|since| time >= since)
    }
}

/// A file of the chain, held open.
struct Held {
    inode: u64,
    file: File,
}

/// A place in the chain of files.
struct Cursor {
    dir: PathBuf,
    /// The one that is read, and newer ones.
    held: VecDeque<Held>,
    /// What was read of the present file. Behind `from` is what was not handed over yet: the beginning of an entry.
    buffer: Vec<u8>,
    from: usize,
    /// This is the rest of something that is too long for an entry.
    is_overlong: bool,
    /// Bytes to read next.
    block: usize,
    lines: Lines,
    /// While it follows.
    following: Option<Following>,
}

/// The files there are, oldest first, with their inodes; only those that are newer than one with the inode `after`, if it is there.
fn files(dir: &Path, after: Option<u64>) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut list: Vec<(u64, PathBuf)> = Vec::new();
    let mut gaps = 0;
    for age in 0..MAX_FILES {
        let path = path_of(dir, age);
        let inode = match std::fs::metadata(&path) {
            Ok(meta) => meta.ino(),
            // While files are renamed there is one gap among them, which goes the other way than this.
            Err(error) if error.kind() == io::ErrorKind::NotFound && gaps < 1 => {
                gaps += 1;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        gaps = 0;
        if Some(inode) == after {
            break;
        }
        // Renamed before our eyes: the same one again.
        if list.last().is_none_or(|(last, _)| *last != inode) {
            list.push((inode, path));
        }
    }
    list.reverse();
    Ok(list)
}

impl Cursor {
    fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            held: VecDeque::new(),
            buffer: Vec::new(),
            from: 0,
            is_overlong: false,
            block: *BLOCK.start(),
            lines: Lines::default(),
            following: None,
        }
    }

    /// Opens files that are newer than those held.
    fn hold(&mut self) -> io::Result<()> {
        for _ in 0..LOOKS {
            // If the newest one held was removed, all there are are newer.
            let list = files(&self.dir, self.held.back().map(|newest| newest.inode))?;
            let mut is_as_listed = true;
            for (inode, path) in list {
                let file = match File::open(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    file => Some(file?),
                };
                let size = file.as_ref().map(File::metadata).transpose()?.filter(|meta| meta.ino() == inode).map(|meta| meta.len());
                let (Some(file), Some(size)) = (file, size) else {
                    is_as_listed = false;
                    break;
                };
                if self.held.len() > 1 && (self.held.len() > HELD || self.held_bytes() + size > HELD_BYTES) {
                    return Ok(());
                }
                self.held.push_back(Held { inode, file });
            }
            if is_as_listed {
                break;
            }
        }
        Ok(())
    }

    /// Bytes of the files held, the present one included.
    fn held_bytes(&self) -> u64 {
        self.held.iter().filter_map(|held| held.file.metadata().ok()).map(|meta| meta.len()).sum()
    }

    /// Finds the lines of every whole entry of the present file, until `budget` bytes were read.
    fn drain(&mut self, budget: &mut u64, wants: impl Fn(LogStream, Timestamp) -> bool) -> io::Result<()> {
        let Some(Held { file, .. }) = self.held.front_mut() else { return Ok(()) };
        loop {
            while let Some(length) = memchr(b'\n', &self.buffer[self.from..]) {
                if *budget == 0 {
                    return Ok(());
                }
                let entry = &self.buffer[self.from..self.from + length];
                if !std::mem::take(&mut self.is_overlong) {
                    self.lines.read(entry, &wants);
                }
                self.from += length + 1;
                *budget = budget.saturating_sub(length as u64 + 1);
            }
            if *budget == 0 {
                return Ok(());
            }
            self.buffer.drain(..self.from);
            self.from = 0;
            if self.buffer.len() > LONGEST_ENTRY {
                self.is_overlong = true;
                self.buffer.clear();
            }
            let there = self.buffer.len();
            self.buffer.resize(there + self.block, 0);
            let read = file.read(&mut self.buffer[there..]);
            self.buffer.truncate(there + *read.as_ref().unwrap_or(&0));
            match read? {
                // The end, or what is there is still being written.
                0 => {
                    self.block = *BLOCK.start();
                    self.buffer.shrink_to(self.block);
                    return Ok(());
                }
                read if read == self.block => self.block = (self.block * 4).min(*BLOCK.end()),
                _ => {}
            }
        }
    }

    /// Finds the wanted lines of every whole entry up to the present end of the newest file, or until `budget` bytes were read: a task
    /// may write faster than this reads. Returns what is left of the budget, 0 when there may be more.
    fn advance(&mut self, mut budget: u64, wants: impl Fn(LogStream, Timestamp) -> bool) -> io::Result<u64> {
        loop {
            self.drain(&mut budget, &wants)?;
            if budget == 0 {
                return Ok(0);
            }
            let is_begin = self.held.is_empty();
            self.hold()?;
            match self.held.len() {
                0 => return Ok(budget),
                _ if is_begin => continue,
                1 => return Ok(budget),
                _ => {}
            }
            // What was written between our last look and the rotation.
            self.drain(&mut budget, &wants)?;
            if budget == 0 {
                return Ok(0);
            }
            self.held.pop_front();
            self.buffer.clear();
            (self.from, self.is_overlong) = (0, false);
        }
    }

    /// The wanted lines of the next `budget` bytes, and what is left of them; only the last ones, if a tail is wanted.
    fn find(&mut self, query: &LogQuery, tail: Tail, mut budget: u64) -> io::Result<(u64, Vec<LogLine>)> {
        let wants = |stream, time| query.wants(stream, time);
        let Tail::Last(count) = tail else {
            let left = self.advance(budget, wants)?;
            return Ok((left, self.lines.take().collect()));
        };
        let mut last = VecDeque::new();
        loop {
            let part = budget.min(CHUNK);
            let left = self.advance(part, wants)?;
            budget -= part - left;
            last.extend(self.lines.take());
            last.drain(..last.len().saturating_sub(count));
            if left > 0 || budget == 0 {
                return Ok((budget, last.into()));
            }
        }
    }
}

/// Bytes that all files hold now, at least 1.
fn size(dir: &Path) -> io::Result<u64> {
    let sizes = files(dir, None)?.into_iter().map(|(_, path)| std::fs::metadata(path).map_or(0, |meta| meta.len()));
    Ok(sizes.sum::<u64>().max(1))
}

/// Log files may be large: not on a thread that others wait for.
async fn aside<T: Send + 'static>(
    mut cursor: Cursor,
    work: impl FnOnce(&mut Cursor) -> io::Result<T> + Send + 'static,
) -> io::Result<(Cursor, T)> {
    let (cursor, done) = tokio::task::spawn_blocking(move || {
        let done = work(&mut cursor);
        (cursor, done)
    })
    .await
    .map_err(io::Error::other)?;
    Ok((cursor, done?))
}

/// Hands lines over. While the receiver makes us wait, the files that come meanwhile are held. `None`: it is gone.
async fn send(mut cursor: Cursor, found: Vec<LogLine>, lines: &mpsc::Sender<Vec<LogLine>>, holds: bool) -> io::Result<Option<Cursor>> {
    let mut found = found.into_iter().peekable();
    while found.peek().is_some() {
        let permit = loop {
            tokio::select! {
                biased;
                permit = lines.reserve() => break permit,
                () = tokio::time::sleep(FOLLOW_EVERY), if holds => cursor = aside(cursor, Cursor::hold).await?.0,
            }
        };
        let Ok(permit) = permit else { return Ok(None) };
        permit.send(found.by_ref().take(BATCH).collect());
    }
    Ok(Some(cursor))
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
    let mut pause = FOLLOW_SOON;
    loop {
        if !last && stop.is_cancelled() {
            last = true;
            there = size(&dir)? + cursor.held_bytes();
        }
        let ends = last || !query.follow;
        let budget = match tail {
            Tail::Last(_) => there,
            Tail::All if ends => there.min(CHUNK),
            Tail::All => CHUNK,
        };
        let this_tail = std::mem::replace(&mut tail, Tail::All);
        let find = move |cursor: &mut Cursor| {
            if query.follow {
                cursor.following = cursor.following.take().or_else(|| Following::begin(&cursor.dir));
                cursor.hold()?;
            }
            cursor.find(&query, this_tail, budget)
        };
        let (back, (left, found)) = aside(cursor, find).await?;
        if !found.is_empty() {
            pause = FOLLOW_SOON;
        }
        let Some(back) = send(back, found, &lines, query.follow).await? else { return Ok(()) };
        cursor = back;
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
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(FOLLOW_EVERY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::{Stamp, encode};
    use super::super::options::LogOptions;
    use super::super::rotate::Rotating;
    use super::*;
    use time::OffsetDateTime;

    const ALL: LogQuery = LogQuery { stdout: true, stderr: true, since: None, tail: Tail::All, follow: false };

    fn write(log: &mut Rotating, number: i64, stream: LogStream) {
        let mut entry = Vec::new();
        let time = OffsetDateTime::from_unix_timestamp(number).unwrap();
        encode(&mut entry, stream, format!("line {number}\n").as_bytes(), &Stamp::at(time));
        log.write(&entry).unwrap();
    }

    async fn read(dir: &Path, query: LogQuery) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(100);
        read_logs(dir.to_owned(), query, sender, CancellationToken::new()).await.unwrap();
        let mut texts = Vec::new();
        while let Some(batch) = receiver.recv().await {
            texts.extend(batch.into_iter().map(|line| String::from_utf8(line.data.to_vec()).unwrap().trim_end().replace("line ", "")));
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

    fn numbers(cursor: &mut Cursor) -> Vec<u32> {
        let number = |line: LogLine| std::str::from_utf8(&line.data[5..]).unwrap().trim_end().parse().unwrap();
        cursor.lines.take().map(number).collect()
    }

    #[test]
    fn what_a_reader_is_behind_stays_there_for_it_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Rotating::open(dir.path(), LogOptions { max_size: 300, max_file: 2, discard: false }).unwrap();
        let mut cursor = Cursor::new(dir.path());
        // About ten files, of which two are left in the directory.
        for number in 1..=40 {
            write(&mut log, number, LogStream::Stdout);
            cursor.hold().unwrap();
        }
        assert!(cursor.advance(u64::MAX, |_, _| true).unwrap() > 0);
        assert_eq!(numbers(&mut cursor), (1..=40).collect::<Vec<_>>());
        // Further behind: the oldest are lost, nothing comes twice or out of its turn, and the end is there.
        for number in 41..=400 {
            write(&mut log, number, LogStream::Stdout);
            cursor.hold().unwrap();
            assert!(cursor.held.len() <= HELD + 1, "{}", cursor.held.len());
        }
        cursor.advance(u64::MAX, |_, _| true).unwrap();
        let seen = numbers(&mut cursor);
        assert_eq!((seen.first(), seen.last()), (Some(&41), Some(&400)));
        assert!(seen.is_sorted_by(|a, b| a < b) && seen.len() < 360, "{seen:?}");
    }

    #[test]
    fn what_is_no_entry_takes_no_memory_and_hides_no_entry_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Rotating::open(dir.path(), LogOptions::default()).unwrap();
        write(&mut log, 1, LogStream::Stdout);
        log.write(&vec![b'x'; 3 << 20]).unwrap();
        log.write(b"\n").unwrap();
        write(&mut log, 2, LogStream::Stdout);
        let mut cursor = Cursor::new(dir.path());
        cursor.advance(u64::MAX, |_, _| true).unwrap();
        assert_eq!(numbers(&mut cursor), [1, 2]);
        assert!(cursor.buffer.capacity() <= 4 * *BLOCK.end(), "{}", cursor.buffer.capacity());
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
            left = cursor.advance(4096, |_, _| true).unwrap();
            let bytes: usize = cursor.lines.take().map(|line| line.data.len()).sum();
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
