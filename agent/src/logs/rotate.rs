//! The files of one task's output: `current.log`, and before it `current.log.1`, `current.log.2` and so on, older ones last.

use super::options::LogOptions;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub const CURRENT: &str = "current.log";

/// The path of the `age`th file; 0 is the current one.
pub fn path_of(dir: &Path, age: u32) -> PathBuf {
    if age == 0 { dir.join(CURRENT) } else { dir.join(format!("{CURRENT}.{age}")) }
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
        let last = self.options.max_file - 1;
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
