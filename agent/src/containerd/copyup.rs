//! Copies a directory of an image into a new volume, with owners, modes, links and attributes.
#![allow(unsafe_code, reason = "extended attributes are only in libc")]

use std::ffi::CStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// The value of an extended attribute, if there is one; links are not followed.
pub fn attribute(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut value = vec![0u8; 4096];
    // SAFETY: both names end with NUL and outlive the call; the kernel writes at most `len` bytes into the live buffer.
    let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

fn set_attribute(path: &Path, name: &CStr, value: &[u8]) {
    if let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) {
        // SAFETY: both names end with NUL, `value` is live and its length is given.
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    }
}

/// Copies what is in `from` into the existing directory `to`, which takes owner and mode of `from`.
///
/// # Errors
/// The first one of the file system.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_entry(&entry.path(), &to.join(entry.file_name()), &entry.metadata()?)?;
    }
    take_owner(to, &fs::symlink_metadata(from)?)
}

fn copy_entry(from: &Path, to: &Path, meta: &Metadata) -> io::Result<()> {
    use nix::sys::stat::{Mode, SFlag, mknod};
    let kind = meta.file_type();
    if kind.is_dir() {
        fs::create_dir(to)?;
        return copy_tree(from, to);
    }
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
        return std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()));
    }
    if kind.is_file() {
        fs::copy(from, to)?;
    } else {
        let flag = match (kind.is_fifo(), kind.is_char_device(), kind.is_block_device()) {
            (true, ..) => SFlag::S_IFIFO,
            (_, true, _) => SFlag::S_IFCHR,
            (_, _, true) => SFlag::S_IFBLK,
            _ => return Ok(()), // a socket nobody listens on
        };
        mknod(to, flag, Mode::from_bits_truncate(meta.mode()), meta.rdev())?;
    }
    // Such as `ping`, that may open raw sockets.
    if let Some(value) = attribute(from, c"security.capability") {
        set_attribute(to, c"security.capability", &value);
    }
    take_owner(to, meta)
}

/// Owner and mode of another file.
pub(super) fn take_owner(to: &Path, meta: &Metadata) -> io::Result<()> {
    std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    // After the owner: that clears setuid.
    fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_copied_with_modes_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("sub/file"), "x").unwrap();
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o711)).unwrap();
        std::os::unix::fs::symlink("sub/file", from.join("link")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        copy_tree(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("link")).unwrap(), "x");
        assert_eq!(fs::metadata(to.join("sub/file")).unwrap().mode() & 0o7777, 0o4751);
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o711);
        assert!(fs::symlink_metadata(to.join("pipe")).unwrap().file_type().is_fifo());
    }
}
