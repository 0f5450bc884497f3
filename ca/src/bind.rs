//! The local socket's place in the file system.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Why the local socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("could not {step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("another daemon listens on {path}; stop it, or give this one a run directory of its own (--run-dir)")]
    InUse { path: PathBuf },
    #[error("{path} exists and is not a socket; move it away")]
    NotASocket { path: PathBuf },
}

/// Opens the local socket: directory 0700 (made if missing), socket 0600. A socket nobody listens on is a dead daemon's and goes.
pub fn bind_local(path: &Path) -> Result<UnixListener, BindError> {
    let io = |step| move |source| BindError::Io { step, path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("create the directory of"))?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket { path: path.to_owned() }),
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(BindError::InUse { path: path.to_owned() }),
        Ok(_) => fs::remove_file(path).map_err(io("remove the old socket"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("look at")(error)),
    }
    let listener = UnixListener::bind(path).map_err(io("listen on"))?;
    // Until here the directory's mode keeps others out.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io("set the mode of"))?;
    Ok(listener)
}
