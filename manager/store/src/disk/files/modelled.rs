//! A file that is the operating system's or a simulator's.

use crate::sim::{Handle, Opening, owner, simulator};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

pub(crate) enum File {
    Real(std::fs::File),
    Modelled(Modelled),
}

/// Closed when it is dropped.
pub(crate) struct Modelled(Handle);

impl Drop for Modelled {
    fn drop(&mut self) {
        if let Some(simulator) = simulator() {
            simulator.close(self.0);
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the simulator of this file has ended")
}

impl Modelled {
    fn with<T>(&self, step: impl FnOnce(&dyn crate::sim::Simulator, Handle) -> io::Result<T>) -> io::Result<T> {
        step(&*simulator().ok_or_else(gone)?, self.0)
    }
}

impl File {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).open(path)
    }

    pub(crate) fn real(&self) -> Option<&std::fs::File> {
        match self {
            Self::Real(file) => Some(file),
            Self::Modelled(_) => None,
        }
    }

    pub(crate) fn sync_all(&self) -> io::Result<()> {
        match self {
            Self::Real(file) => file.sync_all(),
            Self::Modelled(file) => file.with(|simulator, file| simulator.sync(file)),
        }
    }

    pub(crate) fn sync_data(&self) -> io::Result<()> {
        match self {
            Self::Real(file) => file.sync_data(),
            Self::Modelled(file) => file.with(|simulator, file| simulator.sync(file)),
        }
    }

    pub(crate) fn set_len(&self, size: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => file.set_len(size),
            Self::Modelled(file) => file.with(|simulator, file| simulator.set_len(file, size)),
        }
    }

    pub(super) fn size(&self) -> io::Result<u64> {
        match self {
            Self::Real(file) => file.metadata().map(|meta| meta.len()),
            Self::Modelled(file) => file.with(|simulator, file| simulator.len(file)),
        }
    }
}

/// Writing goes on at the end, which is what those who write in this way want.
impl io::Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Real(file) => file.write(bytes),
            Self::Modelled(file) => file.with(|simulator, file| {
                simulator.write_at(file, simulator.len(file)?, bytes)?;
                Ok(bytes.len())
            }),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What [`std::os::unix::fs::FileExt`] has and the store uses.
pub(crate) trait FileExt {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;
}

impl FileExt for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => file.write_all_at(bytes, offset),
            Self::Modelled(file) => file.with(|simulator, file| simulator.write_at(file, offset, bytes)),
        }
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => file.read_exact_at(out, offset),
            Self::Modelled(file) => {
                let count = file.with(|simulator, file| simulator.read_at(file, offset, out))?;
                if count == out.len() { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
            }
        }
    }
}

/// As [`std::fs::OpenOptions`].
#[derive(Debug, Clone)]
pub(crate) struct OpenOptions {
    real: std::fs::OpenOptions,
    how: Opening,
}

impl OpenOptions {
    pub(crate) fn new() -> Self {
        Self { real: std::fs::OpenOptions::new(), how: Opening::default() }
    }

    pub(crate) fn read(&mut self, yes: bool) -> &mut Self {
        self.real.read(yes);
        self
    }

    pub(crate) fn write(&mut self, yes: bool) -> &mut Self {
        self.real.write(yes);
        self.how.write = yes;
        self
    }

    pub(crate) fn create(&mut self, yes: bool) -> &mut Self {
        self.real.create(yes);
        self.how.create = yes;
        self
    }

    pub(crate) fn create_new(&mut self, yes: bool) -> &mut Self {
        self.real.create_new(yes);
        self.how.create_new = yes;
        self
    }

    pub(crate) fn truncate(&mut self, yes: bool) -> &mut Self {
        self.real.truncate(yes);
        self.how.truncate = yes;
        self
    }

    pub(crate) fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        match owner(path) {
            Some(simulator) => simulator.open(path, self.how).map(|file| File::Modelled(Modelled(file))),
            None => self.real.open(path).map(File::Real),
        }
    }
}

/// What [`std::os::unix::fs::OpenOptionsExt`] has and the store uses.
pub(crate) trait OpenOptionsExt {
    fn mode(&mut self, mode: u32) -> &mut Self;
}

impl OpenOptionsExt for OpenOptions {
    fn mode(&mut self, mode: u32) -> &mut Self {
        self.real.mode(mode);
        self
    }
}

pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = vec![0; usize::try_from(file.size()?).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Held as long as it is there.
pub(crate) enum Lock {
    Real { _held: nix::fcntl::Flock<std::fs::File> },
    Modelled { _held: Modelled },
}

pub(super) fn lock(file: File) -> io::Result<Lock> {
    match file {
        File::Real(file) => super::flock(file).map(|held| Lock::Real { _held: held }),
        File::Modelled(file) => file.with(|simulator, file| simulator.lock(file)).map(|()| Lock::Modelled { _held: file }),
    }
}
