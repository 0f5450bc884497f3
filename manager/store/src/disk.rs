//! What is written to the disk, and how it is read back without trusting it.
//!
//! ```text
//! raft/dek                      data keys (0600), sealed by the unlock key if the cluster is locked
//! raft/state                    vote and newest segment, twice
//! raft/log/0000000000000007.seg segments, preallocated and recycled; frames chained by their tags
//! raft/log/spare                the next segment, ready or being zeroed
//! raft/snapshot/12-900.snap     the newest snapshot
//! raft.mark                     how far all that had come, so that it is noticed when it is put back as a whole
//! ```
//!
//! Everything here blocks; `raft` calls it from threads of its own.

pub(crate) mod files;
pub(crate) mod frame;
pub(crate) mod key;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod mark;
pub(crate) mod segment;
pub(crate) mod slot;
pub(crate) mod snapshot;
pub(crate) mod spare;
pub(crate) mod state;

use self::files::File;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong on the disk, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("could not {step} {}", .path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "no space left to {step} {}; free some space, the store goes on by itself then", .path.display()
    )]
    Full { step: &'static str, path: PathBuf },
    #[error(
        "{} is damaged at byte {offset} ({what}); nothing was applied from there on. Restore the raft directory from a backup, \
         or remove it and join this node to the cluster again", .path.display()
    )]
    Corrupt { path: PathBuf, offset: u64, what: &'static str },
    #[error(
        "{} is missing although other files of the store are there; restore the raft directory from a backup, \
         or remove it and join this node to the cluster again", .path.display()
    )]
    MissingFile { path: PathBuf },
    #[error(
        "{} was put back to an earlier state: {what} when {} was written last. It may have forgotten what it acknowledged and for whom it \
         voted. Remove both and join this node to the cluster again. If there is no other manager and the loss is known and meant, \
         remove {} alone and start again", .path.display(), .mark.display(), .mark.display()
    )]
    PutBack { path: PathBuf, mark: PathBuf, what: &'static str },
    #[error("{} cannot be read with this data key; put back the file `dek` that belongs to it", .path.display())]
    WrongKey { path: PathBuf },
    #[error("{} was written by a newer version of skep (format {format}); start that version again", .path.display())]
    Newer { path: PathBuf, format: u8 },
    #[error("{} is in use by another process", .path.display())]
    InUse { path: PathBuf },
    #[error("{} is locked; give the cluster's unlock key with `swarmctl cluster unlock`", .path.display())]
    Locked { path: PathBuf },
    #[error(
        "{} cannot be opened with this unlock key; print the right one with `swarmctl cluster unlock-key` on a manager that is not \
         locked. A key that was rotated since this manager went down no longer counts for the others, but still for this one",
        .path.display()
    )]
    WrongUnlockKey { path: PathBuf },
    #[error("could not encode what is to be written")]
    Codec(#[from] crate::codec::CodecError),
}

impl DiskError {
    /// Whether waiting and trying again can help.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// Names the step and the file of an I/O error, and tells a full disk from a broken one.
pub(crate) fn failed<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DiskError + 'a {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full { step, path: path.to_owned() },
        _ => DiskError::Io { step, path: path.to_owned(), source },
    }
}

/// Makes names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), DiskError> {
    counted_sync();
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("sync the directory", path))
}

/// Makes a directory that is not there, with all above it, for this user only; durable when this returns. Whatever is made durable
/// in it later would be gone with its name.
pub(crate) fn make_dir(path: &Path) -> Result<(), DiskError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !files::exists(dir)).collect();
    files::create_private_dirs(path).map_err(failed("create the directory", path))?;
    missing.into_iter().rev().try_for_each(sync_parent)
}

/// The name of a directory with something behind it.
pub(crate) fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    dir.with_file_name(name)
}

/// Makes the name of a file or directory durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), DiskError> {
    sync_dir(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

static SYNCS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// How often this process has asked the disk to make something durable.
pub(crate) fn syncs() -> u64 {
    SYNCS.load(std::sync::atomic::Ordering::Relaxed)
}

pub(crate) fn counted_sync() {
    SYNCS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}
