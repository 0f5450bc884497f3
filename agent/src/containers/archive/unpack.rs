//! An archive to files of a container.

use super::inside::Root;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

/// Takes every entry in, in its order; ends with the first that cannot be written.
pub fn unpack(root: &Root, to: &str, keep_kind: bool, archive: impl Read) -> io::Result<()> {
    let to = super::inside::clean(to);
    let mut archive = Archive::new(archive);
    // A directory's time is set last: writing into it changes it.
    let mut times: Vec<(PathBuf, u64)> = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let relative = relative(&entry.path()?)?;
        let path = to.join(&relative);
        place(root, &to, &path, keep_kind, &mut entry).map_err(|error| named(&relative, error))?;
        if entry.header().entry_type().is_dir() {
            times.push((path, entry.header().mtime().unwrap_or(0)));
        }
    }
    for (path, time) in times.into_iter().rev() {
        if let Ok(dir) = root.open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            let _ = futimens(&dir, &seconds(time), &seconds(time)); // a time is not worth a failure
        }
    }
    Ok(())
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn relative(path: &Path) -> io::Result<PathBuf> {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::ParentDir => return Err(io::Error::other(format!("{} leads out of the archive", path.display()))),
            _ => {}
        }
    }
    Ok(parts)
}

fn seconds(time: u64) -> TimeSpec {
    TimeSpec::new(i64::try_from(time).unwrap_or(0), 0)
}

/// Opens the directory, making it and those above it where they are missing.
fn ensure_dir(root: &Root, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    match root.open(path, flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let above = ensure_dir(root, path.parent().ok_or(Errno::ENOENT)?)?;
    match mkdirat(&above, path.file_name().ok_or(Errno::ENOENT)?, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => root.open(path, flags),
        Err(errno) => Err(errno.into()),
    }
}

fn place(root: &Root, to: &Path, path: &Path, keep_kind: bool, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    // The directory it is unpacked into is there and stays as it is.
    if path == to {
        return Ok(());
    }
    let dir = ensure_dir(root, parent)?;
    let there = fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok();
    let is_dir = there.as_ref().map(|stat: &FileStat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR);
    let kind = entry.header().entry_type();
    match (is_dir, kind.is_dir()) {
        (Some(true), false) => return Err(io::Error::other("cannot overwrite directory with non-directory")),
        (Some(false), true) if keep_kind => return Err(io::Error::other("cannot overwrite non-directory with directory")),
        _ => {}
    }
    let mode = Mode::from_bits_truncate(entry.header().mode()? & 0o7777);
    let owner = (number(entry.header().uid()?)?, number(entry.header().gid()?)?);
    let owner = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    let time = seconds(entry.header().mtime().unwrap_or(0));
    let is_there_already = is_dir == Some(true);
    // A mounted file, such as the hosts file, cannot be replaced, only written.
    let in_the_way = if is_dir == Some(false) { unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir).err() } else { None };
    match kind {
        EntryType::Directory => {
            if !is_there_already {
                mkdirat(&dir, name, mode)?;
            }
            set(&dir, name, mode, owner)?;
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let new = match in_the_way {
                Some(Errno::EBUSY) => OFlag::O_TRUNC,
                Some(errno) => return Err(errno.into()),
                None => OFlag::O_CREAT | OFlag::O_EXCL,
            };
            let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | new;
            let mut file = File::from(openat(&dir, name, flags, Mode::from_bits_truncate(0o600))?);
            io::copy(entry, &mut file)?;
            nix::unistd::fchown(&file, Some(owner.0), Some(owner.1))?;
            fchmod(&file, mode)?;
            futimens(&file, &time, &time)?;
        }
        EntryType::Symlink => {
            let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link to nothing"))?;
            symlinkat(target.as_os_str(), &dir, name)?;
            fchownat(&dir, name, Some(owner.0), Some(owner.1), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            utimensat(&dir, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        }
        EntryType::Link => {
            let target = relative(&entry.link_name()?.ok_or_else(|| io::Error::other("a link to nothing"))?)?;
            let target = to.join(target);
            let from = root.open(target.parent().unwrap_or(Path::new("")), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            linkat(&from, target.file_name().ok_or(Errno::ENOENT)?, &dir, name, LinkatFlags::empty())?;
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            let flag = match kind {
                EntryType::Char => SFlag::S_IFCHR,
                EntryType::Block => SFlag::S_IFBLK,
                _ => SFlag::S_IFIFO,
            };
            let (major, minor) = (entry.header().device_major()?.unwrap_or(0), entry.header().device_minor()?.unwrap_or(0));
            mknodat(&dir, name, flag, mode, libc::makedev(major, minor))?;
            set(&dir, name, mode, owner)?;
        }
        // Such as headers for all entries, which say nothing of a file.
        _ => {}
    }
    Ok(())
}

fn number(id: u64) -> io::Result<u32> {
    u32::try_from(id).map_err(|_| io::Error::other(format!("{id} is no user or group")))
}

/// Not for links: they have no mode.
fn set(dir: &OwnedFd, name: &OsStr, mode: Mode, (uid, gid): (Uid, Gid)) -> io::Result<()> {
    fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    // What was made a moment ago may have become a link, which this would follow: only inside the container's own directory.
    fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::pack::pack;
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    #[test]
    fn what_was_packed_is_unpacked_as_it_was() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(from.path().join("app/sub")).unwrap();
        std::fs::write(from.path().join("app/sub/file"), "text").unwrap();
        std::fs::set_permissions(from.path().join("app/sub/file"), std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("sub/file", from.path().join("app/link")).unwrap();
        let mut archive = Vec::new();
        pack(&Root::at(from.path()).unwrap(), "/app", &mut archive).unwrap();
        std::fs::create_dir(to.path().join("srv")).unwrap();
        let root = Root::at(to.path()).unwrap();
        for _ in 0..2 {
            unpack(&root, "/srv", false, archive.as_slice()).unwrap();
        }
        let file = to.path().join("srv/app/sub/file");
        assert_eq!(std::fs::read_to_string(to.path().join("srv/app/link")).unwrap(), "text");
        assert_eq!(
            (file.metadata().unwrap().mode() & 0o777, file.metadata().unwrap().mtime()),
            (0o640, from.path().join("app/sub/file").metadata().unwrap().mtime())
        );
        // A file does not take the place of a directory.
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(unpack(&root, "/srv", false, archive.as_slice()).unwrap_err().to_string().contains("cannot overwrite directory"));
    }

    #[test]
    fn an_archive_does_not_lead_out_of_the_container() {
        let (outside, inside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut builder = tar::Builder::new(Vec::new());
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(EntryType::Symlink);
        link.set_size(0);
        link.set_mode(0o777);
        link.set_uid(0);
        link.set_gid(0);
        link.set_mtime(0);
        builder.append_link(&mut link, "away", outside.path()).unwrap();
        let mut file = tar::Header::new_gnu();
        file.set_size(1);
        file.set_mode(0o644);
        file.set_uid(0);
        file.set_gid(0);
        file.set_mtime(0);
        builder.append_data(&mut file, "away/x", &b"x"[..]).unwrap();
        let archive = builder.into_inner().unwrap();
        // The link leads to a directory of that name inside, which there is not.
        let unpacked = unpack(&Root::at(inside.path()).unwrap(), "/", false, archive.as_slice());
        assert!(!outside.path().join("x").exists(), "{unpacked:?}");
    }
}
