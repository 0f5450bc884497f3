//! The files of one task's output: `current.log`, and before it `current.log.1`, `current.log.2` and so on, older ones last.

use super::options::LogOptions;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub const CURRENT: &str = "current.log";
/// Files that are kept beyond the number asked for while somebody follows, who may not have come to them yet. A task writes its files
/// full in a few hundredths of a second if it likes; a follower may not even have the processor for so long.
const KEPT_FOR_FOLLOWERS: u32 = 16;
/// How many files there are to be, for the last follower to remove those beyond. It is there if there are any.
const BEYOND: &str = "beyond";

/// The path of the `age`th file; 0 is the current one.
pub fn path_of(dir: &Path, age: u32) -> PathBuf {
    if age == 0 { dir.join(CURRENT) } else { dir.join(format!("{CURRENT}.{age}")) }
}

/// As long as somebody has it, files that are rotated away stay there for a while. The last one to give it back removes them.
#[derive(Debug)]
pub struct Following {
    dir: PathBuf,
    lock: Option<Flock<File>>,
}

impl Following {
    /// `None` if there is no such directory (yet).
    pub fn begin(dir: &Path) -> Option<Self> {
        let lock = Flock::lock(File::open(dir).ok()?, FlockArg::LockSharedNonblock).ok()?;
        Some(Self { dir: dir.to_owned(), lock: Some(lock) })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.lock.take());
        if let Some(_alone) = alone(&self.dir) {
            remove_beyond(&self.dir);
        }
    }
}

/// A lock that nobody has who follows.
fn alone(dir: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(dir).ok()?, FlockArg::LockExclusiveNonblock).ok()
}

/// Removes files beyond the number asked for, if there are any. What cannot be removed now is when the next one is.
fn remove_beyond(dir: &Path) {
    let mark = dir.join(BEYOND);
    let Some(first) = fs::read_to_string(&mark).ok().and_then(|text| text.parse::<u32>().ok()) else { return };
    for age in first.max(1)..=first.saturating_add(KEPT_FOR_FOLLOWERS) {
        let _ = fs::remove_file(path_of(dir, age));
    }
    let _ = fs::remove_file(mark);
}

/// The file that is being written.
#[derive(Debug)]
pub struct Rotating {
    dir: PathBuf,
    options: LogOptions,
    file: File,
    size: u64,
}

impl Rotating {
    /// Opens the current file to go on with it.
    ///
    /// # Errors
    /// Of the file system.
    pub fn open(dir: &Path, options: LogOptions) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let file = append(&path_of(dir, 0))?;
        let size = file.metadata()?.len();
        let mut this = Self { dir: dir.to_owned(), options, file, size };
        this.end_torn_line()?;
        Ok(this)
    }

    /// A writer that was killed may have left half an entry; the next one begins on a line of its own.
    fn end_torn_line(&mut self) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        if self.size == 0 {
            return Ok(());
        }
        let mut last = [0];
        File::open(path_of(&self.dir, 0))?.read_exact_at(&mut last, self.size - 1)?;
        if last != *b"\n" {
            self.file.write_all(b"\n")?;
            self.size += 1;
        }
        Ok(())
    }

    /// Writes whole entries; begins a new file first if this one is full.
    ///
    /// # Errors
    /// Of the file system; a part of the entries may be lost then.
    pub fn write(&mut self, entries: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + entries.len() as u64 > self.options.max_size {
            self.rotate()?;
        }
        self.file.write_all(entries)?;
        self.size += entries.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        // Nobody begins to follow while this is held.
        let alone = alone(&self.dir);
        let last = match alone {
            Some(_) => {
                remove_beyond(&self.dir);
                self.options.max_file - 1
            }
            None => self.options.max_file - 1 + KEPT_FOR_FOLLOWERS,
        };
        if alone.is_none() && path_of(&self.dir, self.options.max_file - 1).exists() {
            fs::write(self.dir.join(BEYOND), self.options.max_file.to_string())?;
        }
        if last == 0 {
            // A reader that follows sees a new file, not one that shrinks.
            fs::remove_file(path_of(&self.dir, 0))?;
        }
        for age in (0..last).rev() {
            match fs::rename(path_of(&self.dir, age), path_of(&self.dir, age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = append(&path_of(&self.dir, 0))?;
        self.size = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(dir: &Path) -> Vec<Option<u64>> {
        (0..4).map(|age| fs::metadata(path_of(dir, age)).ok().map(|meta| meta.len())).collect()
    }

    #[test]
    fn full_files_are_pushed_back_and_the_oldest_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { max_size: 10, max_file: 3, discard: false };
        let mut log = Rotating::open(dir.path(), options).unwrap();
        for entry in ["111111\n", "2222222\n", "33333333\n", "444444444\n", "55\n"] {
            log.write(entry.as_bytes()).unwrap();
        }
        assert_eq!(sizes(dir.path()), [Some(3), Some(10), Some(9), None]);
    }

    #[test]
    fn files_beyond_the_number_stay_as_long_as_somebody_follows() {
        let dir = tempfile::tempdir().unwrap();
        let count = || fs::read_dir(dir.path()).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != BEYOND).count();
        let mut log = Rotating::open(dir.path(), LogOptions { max_size: 4, max_file: 2, discard: false }).unwrap();
        let (one, two) = (Following::begin(dir.path()).unwrap(), Following::begin(dir.path()).unwrap());
        for number in 10..20 {
            log.write(format!("{number}\n").as_bytes()).unwrap();
        }
        assert_eq!(count(), 10);
        drop(one);
        assert_eq!(count(), 10);
        for number in 20..50 {
            log.write(format!("{number}\n").as_bytes()).unwrap();
        }
        assert_eq!(count(), 2 + KEPT_FOR_FOLLOWERS as usize);
        drop(two);
        assert_eq!(count(), 2);
        assert!(!dir.path().join(BEYOND).exists());
        log.write(b"50\n").unwrap();
        assert_eq!(fs::read_to_string(path_of(dir.path(), 1)).unwrap(), "49\n");
    }

    #[test]
    fn what_a_follower_that_died_left_is_removed_with_the_next_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Rotating::open(dir.path(), LogOptions { max_size: 4, max_file: 1, discard: false }).unwrap();
        let mut follower = Following::begin(dir.path()).unwrap();
        for number in 10..15 {
            log.write(format!("{number}\n").as_bytes()).unwrap();
        }
        assert!(path_of(dir.path(), 4).exists());
        // Its lock is gone, and it did nothing any more.
        drop(follower.lock.take());
        std::mem::forget(follower);
        log.write(b"15\n").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_file_only_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Rotating::open(dir.path(), LogOptions { max_size: 10, max_file: 1, discard: false }).unwrap();
        log.write(b"1111111\n").unwrap();
        log.write(b"22222\n").unwrap();
        assert_eq!(sizes(dir.path()), [Some(6), None, None, None]);
    }

    #[test]
    fn a_torn_entry_is_ended_when_the_file_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path_of(dir.path(), 0), "whole\n{\"lo").unwrap();
        let mut log = Rotating::open(dir.path(), LogOptions::default()).unwrap();
        log.write(b"next\n").unwrap();
        assert_eq!(fs::read_to_string(path_of(dir.path(), 0)).unwrap(), "whole\n{\"lo\nnext\n");
    }
}
