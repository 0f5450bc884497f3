//! The files of the store: the operating system's, as they are; with the feature `sim` perhaps those of a simulator.

#[cfg(feature = "sim")]
mod modelled;

#[cfg(feature = "sim")]
pub(crate) use self::modelled::{File, FileExt, OpenOptions, OpenOptionsExt};
#[cfg(not(feature = "sim"))]
pub(crate) use std::fs::{File, OpenOptions};
#[cfg(not(feature = "sim"))]
pub(crate) use std::os::unix::fs::{FileExt, OpenOptionsExt};

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Goes on with the simulator that has the path, if one has.
macro_rules! modelled {
    ($path:expr, $simulator:ident => $step:expr) => {
        #[cfg(feature = "sim")]
        if let Some($simulator) = crate::sim::owner($path) {
            return $step;
        }
    };
}

pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    modelled!(path, _simulator => modelled::read(path));
    fs::read(path)
}

pub(crate) fn read_to_string(path: &Path) -> io::Result<String> {
    modelled!(path, _simulator => String::from_utf8(modelled::read(path)?).map_err(|_| io::ErrorKind::InvalidData.into()));
    fs::read_to_string(path)
}

pub(crate) fn size(path: &Path) -> io::Result<u64> {
    modelled!(path, _simulator => File::open(path)?.size());
    fs::metadata(path).map(|meta| meta.len())
}

pub(crate) fn size_of(file: &File) -> io::Result<u64> {
    #[cfg(feature = "sim")]
    return file.size();
    #[cfg(not(feature = "sim"))]
    file.metadata().map(|meta| meta.len())
}

pub(crate) fn exists(path: &Path) -> bool {
    modelled!(path, simulator => simulator.exists(path));
    path.exists()
}

/// What is in a directory, in no order.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    modelled!(dir, simulator => simulator.list(dir));
    fs::read_dir(dir)?.map(|file| Ok(file?.path())).collect()
}

/// With all above it; for this user only.
pub(crate) fn create_private_dirs(dir: &Path) -> io::Result<()> {
    modelled!(dir, simulator => simulator.create_dirs(dir));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    modelled!(from, simulator => simulator.rename(from, to));
    fs::rename(from, to)
}

/// Two names change places in one step.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    modelled!(one, simulator => simulator.exchange(one, other));
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).map_err(io::Error::from)
}

pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    modelled!(path, simulator => simulator.remove_file(path));
    fs::remove_file(path)
}

pub(crate) fn remove_dirs(dir: &Path) -> io::Result<()> {
    modelled!(dir, simulator => simulator.remove_dirs(dir));
    fs::remove_dir_all(dir)
}

/// Reserves space, where the file system can.
pub(crate) fn allocate(file: &File, size: u64) -> io::Result<()> {
    #[cfg(feature = "sim")]
    let Some(file) = file.real() else { return Ok(()) };
    match nix::fcntl::posix_fallocate(file, 0, i64::try_from(size).unwrap_or(i64::MAX)) {
        Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A lock that goes with this; and with the process.
#[cfg(not(feature = "sim"))]
pub(crate) type Lock = nix::fcntl::Flock<File>;
#[cfg(feature = "sim")]
pub(crate) use self::modelled::Lock;

/// # Errors
/// `WouldBlock` while somebody else holds it.
pub(crate) fn lock(file: File) -> io::Result<Lock> {
    #[cfg(feature = "sim")]
    return modelled::lock(file);
    #[cfg(not(feature = "sim"))]
    flock(file)
}

fn flock(file: fs::File) -> io::Result<nix::fcntl::Flock<fs::File>> {
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}
