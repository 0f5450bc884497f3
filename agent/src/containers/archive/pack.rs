//! Files of a container to an archive.

use super::FileFacts;
use super::inside::{Root, clean};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEVPTS_SUPER_MAGIC, FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};
use skep_types::Timestamp;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// Each level holds a descriptor.
const DEEPEST: usize = 256;
/// What the kernel shows in these is no file.
const KERNEL: [FsType; 5] = [PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEVPTS_SUPER_MAGIC];

fn kind(stat: &FileStat) -> u32 {
    stat.st_mode & libc::S_IFMT
}

pub fn facts(root: &Root, path: &str) -> io::Result<FileFacts> {
    let (parent, name) = root.parent(path)?;
    let stat = fstatat(&parent, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let link_target = match kind(&stat) {
        libc::S_IFLNK => readlinkat(&parent, name.as_os_str())?.to_string_lossy().into_owned(),
        _ => String::new(),
    };
    let shown = clean(path).file_name().map_or_else(|| "/".to_owned(), |name| name.to_string_lossy().into_owned());
    let modified = Timestamp(stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec));
    Ok(FileFacts { name: shown, size: stat.st_size, mode: stat.st_mode, modified, link_target })
}

/// Writes the whole archive.
pub fn pack(root: &Root, path: &str, out: &mut impl Write) -> io::Result<()> {
    let (parent, name) = root.parent(path)?;
    let mut builder = Builder::new(out);
    let is_content = path.ends_with("/.") || path == ".";
    let first = match clean(path).file_name() {
        Some(last) if !is_content => PathBuf::from(last),
        _ => PathBuf::from("."),
    };
    add(&mut builder, &parent, &name, &first, None, 0)?;
    builder.finish()
}

fn header(stat: &FileStat, entry: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(entry);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(size);
    header
}

fn add(builder: &mut Builder<impl Write>, dir: &OwnedFd, name: &OsStr, path: &Path, device: Option<u64>, depth: usize) -> io::Result<()> {
    let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        // Gone since the directory was read.
        Err(nix::errno::Errno::ENOENT) if depth > 0 => return Ok(()),
        other => other?,
    };
    match kind(&stat) {
        libc::S_IFREG => {
            // Not blocking, should it have become something else.
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let file = File::from(openat(dir, name, flags, Mode::empty())?);
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            // As long as its header says, whatever becomes of the file meanwhile.
            let data = file.take(size).chain(io::repeat(0)).take(size);
            builder.append_data(&mut header(&stat, EntryType::Regular, size), path, data)
        }
        libc::S_IFDIR => add_dir(builder, dir, name, path, (device, &stat), depth),
        libc::S_IFLNK => builder.append_link(&mut header(&stat, EntryType::Symlink, 0), path, readlinkat(dir, name)?),
        libc::S_IFIFO => builder.append_data(&mut header(&stat, EntryType::Fifo, 0), path, io::empty()),
        kind @ (libc::S_IFCHR | libc::S_IFBLK) => {
            let entry = if kind == libc::S_IFCHR { EntryType::Char } else { EntryType::Block };
            let mut header = header(&stat, entry, 0);
            header.set_device_major(libc::major(stat.st_rdev))?;
            header.set_device_minor(libc::minor(stat.st_rdev))?;
            builder.append_data(&mut header, path, io::empty())
        }
        // Sockets mean nothing elsewhere.
        _ => Ok(()),
    }
}

fn add_dir(
    builder: &mut Builder<impl Write>,
    dir: &OwnedFd,
    name: &OsStr,
    path: &Path,
    (device, stat): (Option<u64>, &FileStat),
    depth: usize,
) -> io::Result<()> {
    builder.append_data(&mut header(stat, EntryType::Directory, 0), path, io::empty())?;
    if depth >= DEEPEST {
        return Err(io::Error::other(format!("{} is more than {DEEPEST} directories deep", path.display())));
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let inside = openat(dir, name, flags, Mode::empty())?;
    if device != Some(stat.st_dev) && fstatfs(&inside).is_ok_and(|fs| KERNEL.contains(&fs.filesystem_type())) {
        return Ok(());
    }
    let mut names: Vec<OsString> = Vec::new();
    for entry in Dir::from_fd(inside.try_clone()?)?.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    for name in names {
        add(builder, &inside, &name, &path.join(&name), Some(stat.st_dev), depth + 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_directory_is_packed_with_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("srv/app/empty")).unwrap();
        std::fs::write(dir.path().join("srv/app/file"), "text").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("srv/app/link")).unwrap();
        let root = Root::at(dir.path()).unwrap();
        let packed = |path: &str| {
            let mut out = Vec::new();
            pack(&root, path, &mut out).unwrap();
            let mut archive = tar::Archive::new(out.as_slice());
            let entries = archive.entries().unwrap().map(|entry| {
                let mut entry = entry.unwrap();
                let name = entry.path().unwrap().display().to_string();
                let link = entry.link_name().unwrap().map(|link| link.display().to_string());
                let text = io::read_to_string(&mut entry).unwrap();
                (name.trim_end_matches('/').to_owned(), link.unwrap_or(text))
            });
            entries.collect::<BTreeMap<_, _>>()
        };
        let entry = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let all = [entry("app", ""), entry("app/empty", ""), entry("app/file", "text"), entry("app/link", "/etc/passwd")];
        assert_eq!(packed("/srv/app"), BTreeMap::from(all));
        assert_eq!(packed("/srv/app/file"), BTreeMap::from([entry("file", "text")]));
        // The link itself, not what it leads to.
        assert_eq!(packed("/srv/app/link"), BTreeMap::from([entry("link", "/etc/passwd")]));
        assert!(packed("/srv/app/.").contains_key("file"));
        let link = facts(&root, "/srv/app/link").unwrap();
        assert_eq!((link.name.as_str(), link.link_target.as_str(), link.mode & libc::S_IFMT), ("link", "/etc/passwd", libc::S_IFLNK));
        assert!(facts(&root, "/srv/none").is_err());
    }
}
