//! Each agent holds a connection, and each connection is an open file on both sides.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The system allows too few open files.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    #[error("{needed} open files are needed and {allowed} allowed; raise the hard limit (ulimit -Hn)")]
    TooFew { needed: u64, allowed: u64 },
    #[error("the limit of open files cannot be changed")]
    System(#[from] nix::Error),
}

/// Makes room for this many open files in this process and those it starts from now on.
///
/// # Errors
/// If the hard limit is lower and we may not raise it.
pub fn raise_open_files(needed: u64) -> Result<(), LimitError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= needed {
        return Ok(());
    }
    if hard >= needed {
        return Ok(setrlimit(Resource::RLIMIT_NOFILE, needed, hard)?);
    }
    // Root may raise the hard limit as well.
    setrlimit(Resource::RLIMIT_NOFILE, needed, needed).map_err(|_| LimitError::TooFew { needed, allowed: hard })
}
