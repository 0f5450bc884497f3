//! The files of a container that has no process: mounted for a moment, with its volumes, where one thread alone sees them.
//!
//! The thread has a mount namespace of its own, so that nothing is left mounted whatever becomes of it, and nobody else on the machine
//! sees the container's files at another place. Whoever uses this holds the container meanwhile: a second mount of its writable layer
//! beside that of its process would spoil it.

use super::inside::Root;
use crate::containerd::StoryMount;
use containerd_client::types::Mount;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, mkdirat};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};
use tokio::sync::oneshot;

/// What a container is put together from.
#[derive(Debug, Clone)]
pub struct Asleep {
    /// Of the root file system.
    pub layers: Vec<Mount>,
    pub mounts: Vec<StoryMount>,
    /// A directory of root's to mount on. All may use the same one.
    pub place: PathBuf,
}

impl Asleep {
    /// What `work` makes of the files.
    ///
    /// # Errors
    /// If they cannot be mounted.
    pub async fn with<T: Send + 'static>(self, work: impl FnOnce(&Root) -> T + Send + 'static) -> io::Result<T> {
        let (sender, done) = oneshot::channel();
        let alone = move || {
            let made = self.mounted().map(|root| work(&root));
            let _ = sender.send(made); // who asked may be gone
        };
        std::thread::Builder::new().name("container files".into()).spawn(alone)?;
        done.await.unwrap_or_else(|_| Err(io::Error::other("the thread that has the container's files ended")))
    }

    /// Only on a thread that ends afterwards.
    fn mounted(&self) -> io::Result<Root> {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.place)?;
        for layer in &self.layers {
            mount_layer(layer, &self.place)?;
        }
        let root = Root::at(&self.place)?;
        for one in self.mounts.iter().filter(|one| matches!(one.kind.as_str(), "bind" | "volume")) {
            mount_inside(&root, one).map_err(|error| io::Error::new(error.kind(), format!("cannot mount {}: {error}", one.target)))?;
        }
        Ok(root)
    }
}

fn mount_layer(layer: &Mount, at: &Path) -> io::Result<()> {
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mut data = Vec::new();
    for option in &layer.options {
        match option.as_str() {
            "bind" | "rbind" => flags |= MsFlags::MS_BIND,
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => {}
            other => data.push(other),
        }
    }
    let kind = (layer.r#type != "bind").then_some(layer.r#type.as_str());
    Ok(mount(Some(layer.source.as_str()), at, kind, flags, Some(data.join(",").as_str()))?)
}

/// Links of the container are followed within its root.
fn mount_inside(root: &Root, one: &StoryMount) -> io::Result<()> {
    let none = None::<&str>;
    let source = std::fs::metadata(&one.source)?;
    let target = target(root, Path::new(&one.target), source.is_dir())?;
    let at = PathBuf::from(format!("/proc/self/fd/{}", target.as_raw_fd()));
    mount(Some(&one.source), &at, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    if !one.is_writable {
        // The descriptor is of what is below; the name now leads to what is above.
        let above = root.open(&inner(Path::new(&one.target)), OFlag::O_PATH)?;
        let at = format!("/proc/self/fd/{}", above.as_raw_fd());
        mount(none, at.as_str(), none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, none)?;
    }
    Ok(())
}

fn inner(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// What is mounted on, made as the runtime makes it if it is not there.
fn target(root: &Root, path: &Path, is_dir: bool) -> io::Result<OwnedFd> {
    let path = inner(path);
    let mut here = PathBuf::new();
    for part in &path {
        let parent = root.open(&here, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        here.push(part);
        if root.open(&here, OFlag::O_PATH).is_ok() {
            continue;
        }
        if is_dir || here != path {
            mkdirat(&parent, part, Mode::from_bits_truncate(0o755))?;
        } else {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            drop(File::from(nix::fcntl::openat(&parent, part, flags, Mode::from_bits_truncate(0o644))?));
        }
    }
    root.open(&path, OFlag::O_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn asleep(dir: &Path, mounts: Vec<StoryMount>) -> Asleep {
        for name in ["lower/etc", "upper", "work", "volume"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::write(dir.join("lower/etc/name"), "image").unwrap();
        fs::write(dir.join("volume/kept"), "volume").unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let options = vec![format!("lowerdir={}", at("lower")), format!("upperdir={}", at("upper")), format!("workdir={}", at("work"))];
        let layer = Mount { r#type: "overlay".into(), source: "overlay".into(), options, ..Mount::default() };
        Asleep { layers: vec![layer], mounts, place: dir.join("place") }
    }

    fn volume(dir: &Path, target: &str, is_writable: bool) -> StoryMount {
        StoryMount { kind: "volume".into(), source: dir.join("volume"), target: target.into(), is_writable, ..StoryMount::default() }
    }

    fn read(root: &Root, path: &str) -> io::Result<String> {
        std::io::read_to_string(File::from(root.open(Path::new(path), OFlag::O_RDONLY)?))
    }

    #[tokio::test]
    async fn one_thread_sees_the_files_with_their_volumes_and_nobody_else_does() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let seen = asleep(dir.path(), vec![volume(dir.path(), "/data/in", true)]).with(|root| {
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
            for path in ["etc/new", "data/in/new"] {
                let (parent, name) = root.parent(path).unwrap();
                nix::fcntl::openat(&parent, name.as_os_str(), flags, Mode::from_bits_truncate(0o644)).unwrap();
            }
            (read(root, "etc/name").unwrap(), read(root, "data/in/kept").unwrap())
        });
        assert_eq!(seen.await.unwrap(), ("image".into(), "volume".into()));
        // What was written is where it belongs, and nothing is mounted here.
        assert!(dir.path().join("upper/etc/new").exists() && dir.path().join("volume/new").exists());
        assert_eq!(fs::read_dir(dir.path().join("place")).unwrap().count(), 0);
        assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(&*dir.path().to_string_lossy()));
    }

    #[tokio::test]
    async fn a_volume_behind_a_link_stays_inside_and_a_read_only_one_is_not_written() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let asleep = asleep(dir.path(), vec![volume(dir.path(), "/out/in", false)]);
        std::os::unix::fs::symlink("/etc", dir.path().join("lower/out")).unwrap();
        let refused = asleep.with(|root| {
            let (parent, _) = root.parent("/etc/in/new").unwrap();
            nix::fcntl::openat(&parent, "new", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::empty()).unwrap_err()
        });
        assert_eq!(refused.await.unwrap(), nix::errno::Errno::EROFS);
        assert!(!Path::new("/etc/in").exists());
    }
}
