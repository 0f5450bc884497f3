//! The first instruction in a container: the program there writes the time into a FIFO that is mounted into it.

use anyhow::{Context, Result};
use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the directory is seen in the container.
pub const TARGET: &str = "/stamp";

/// A FIFO in a directory of its own, open here, so that writers never wait for a reader.
#[derive(Debug)]
pub struct Stamps {
    dir: PathBuf,
    fifo: File,
    rest: Vec<u8>,
}

impl Stamps {
    /// # Errors
    /// If the FIFO cannot be made.
    pub fn new(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let path = dir.join("fifo");
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o666)).with_context(|| format!("cannot make {}", path.display()))?;
        let fifo = File::options().read(true).write(true).custom_flags(O_NONBLOCK).open(&path)?;
        Ok(Self { dir, fifo, rest: Vec::new() })
    }

    /// The directory to mount at [`TARGET`].
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The command line that writes a stamp and then waits to be stopped.
    #[must_use]
    pub fn command() -> Vec<String> {
        vec!["/whoami".into(), "stamp".into(), format!("{TARGET}/fifo")]
    }

    /// The stamps that came since the last call, as seconds since 1970.
    pub fn read(&mut self) -> Vec<f64> {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.fifo.read(&mut buffer) {
            self.rest.extend_from_slice(&buffer[..count]);
        }
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        String::from_utf8_lossy(&whole).lines().filter_map(|line| line.parse::<f64>().ok()).map(|nanos| nanos / 1e9).collect()
    }
}

/// Seconds since 1970, the clock of the stamps.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn half_a_line_waits_for_its_other_half() {
        let dir = tempfile::tempdir().unwrap();
        let mut stamps = Stamps::new(dir.path().join("s")).unwrap();
        let mut writer = File::options().write(true).open(dir.path().join("s/fifo")).unwrap();
        writer.write_all(b"1000000000\n25").unwrap();
        assert_eq!(stamps.read(), [1.0]);
        writer.write_all(b"00000000\n").unwrap();
        assert_eq!(stamps.read(), [2.5]);
        assert!(stamps.read().is_empty());
    }
}
