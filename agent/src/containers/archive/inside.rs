//! Names in a container to descriptors, never out of its root.

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use skep_types::TaskId;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// The root directory of a container, as its processes see it: with its volumes.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// `None` if the process is not one of this task's container any more.
    pub fn of(pid: i32, task: &TaskId) -> Option<Self> {
        let root = open_dir(Path::new(&format!("/proc/{pid}/root"))).ok()?;
        // After the opening: a number that was given to another process meanwhile is not in the container's cgroup.
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        cgroups.lines().any(|line| line.split(['/', ':']).any(|part| part == task.as_str())).then_some(Self(root))
    }

    /// A directory with the files of a container that has no process.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self(open_dir(path)?))
    }

    /// Opens what is at a path, links followed inside the root.
    pub fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // An empty path is none; the root is.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(openat2(&self.0, path, how)?)
    }

    /// The directory that something is in, and its name there; `.` of a path that ends with one, and of the root.
    pub fn parent(&self, path: &str) -> io::Result<(OwnedFd, OsString)> {
        let clean = clean(path);
        let is_whole = path.ends_with("/.") || path.ends_with('/') || path == "." || clean.as_os_str().is_empty();
        let (parent, name) = match clean.file_name() {
            Some(name) if !is_whole => (clean.parent().unwrap_or(Path::new("")).to_owned(), name.to_owned()),
            _ => (clean, OsString::from(".")),
        };
        Ok((self.open(&parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?, name))
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt as _;
    Ok(std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC).open(path)?.into())
}

/// The path without `.`, `..` and the leading slash, as if no part of it were a link.
pub fn clean(path: &str) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/name"), "inside").unwrap();
        for (link, target) in [("absolute", "/etc"), ("up", "../../../../../../etc")] {
            std::os::unix::fs::symlink(target, dir.path().join(link)).unwrap();
        }
        let root = Root::at(dir.path()).unwrap();
        for path in ["/absolute/name", "up/name", "/../etc/name"] {
            let (parent, name) = root.parent(path).unwrap();
            assert_eq!(name, "name");
            let file =
                std::fs::File::from(nix::fcntl::openat(&parent, name.as_os_str(), OFlag::O_RDONLY, nix::sys::stat::Mode::empty()).unwrap());
            assert_eq!(std::io::read_to_string(file).unwrap(), "inside", "{path}");
        }
        assert_eq!(root.parent("/etc/.").unwrap().1, ".");
        assert_eq!(root.parent("/").unwrap().1, ".");
        assert!(root.parent("/none/x").is_err());
        assert!(Root::of(std::process::id().cast_signed(), &TaskId::for_test(1)).is_none());
    }

    #[test]
    fn paths_are_cleaned() {
        assert_eq!(clean("/a/./b/../c/"), Path::new("a/c"));
        assert_eq!(clean("../.."), Path::new(""));
    }
}
