//! Volumes that are mounts, by options of their driver: mounted on `<volumes>/<name>/_data` with the first task of this node that uses one,
//! unmounted after the last.
//!
//! Who uses it stands in `<run>/volumes/<name>/`, a file for each task, made before the mount and removed after the unmount: a crash in
//! between leaves what the next look can finish. Both directories are empty when the machine starts anew, as its mounts are gone.

use super::options::{self, MountCall};
use super::{bad, is_volume_name};
use crate::error::ExecError;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use skep_failpoint::failpoint;
use skep_types::{Labels, TaskId};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

/// What the volume is made of, if it is more than a directory.
const OPTIONS: &str = "options.json";
/// Beside a memory file system that nobody has seen yet: the image's files may be copied into it.
const FRESH: &str = "fresh";
const LOCK: &str = "lock";

/// The options of an existing volume; `None`: it is a directory.
pub(crate) fn options_of(dir: &Path) -> Option<Labels> {
    serde_json::from_slice(&fs::read(dir.join(OPTIONS)).ok()?).ok()
}

/// Where the volumes of this node are, and who uses those that are mounts.
#[derive(Debug, Clone)]
pub struct Shelf {
    /// `<data>/agent/volumes`.
    pub volumes: PathBuf,
    /// `<run>/volumes`.
    pub users: PathBuf,
}

impl Shelf {
    /// Makes the volume usable for the task: mounts it, unless it is mounted or a plain directory. May wait for a server.
    ///
    /// # Errors
    /// For options that cannot be mounted or differ from those that the volume is in use with; of mount(2), with type and device.
    pub fn take(&self, name: &str, wanted: &Labels, task: &TaskId) -> Result<(), ExecError> {
        if !is_volume_name(name) {
            return Err(bad(format!("{name:?} is not a volume name; use letters, digits, '_', '.' and '-'")));
        }
        let dir = self.volumes.join(name);
        if wanted.is_empty() && options_of(&dir).is_none() {
            return Ok(());
        }
        options::check(wanted).map_err(|error| bad(error.to_string()))?;
        let data = dir.join("_data");
        fs::create_dir_all(&data).map_err(ExecError::io("make the volume", &data))?;
        let _lock = lock(&dir, FlockArg::LockExclusive)?;
        let others = self.others(name, task)?;
        if others == 0 {
            // Of users that are gone without having been able to unmount it.
            unmount(&data)?;
        }
        let now = agree(name, &dir, wanted, others)?;
        let users = self.users.join(name);
        fs::create_dir_all(&users).map_err(ExecError::io("make the directory", &users))?;
        let mark = users.join(task.as_str());
        fs::write(&mark, b"").map_err(ExecError::io("write", &mark))?;
        failpoint!("agent.volume.marked");
        if others == 0 {
            let call = options::call(&now, resolve).map_err(|error| bad(crate::error::chain(&error)))?;
            let fresh = dir.join(FRESH);
            let _ = fs::remove_file(&fresh);
            mount_at(&call, &data).map_err(|source| refused(name, &call, source))?;
            failpoint!("agent.volume.mounted");
            if call.kind == "tmpfs" {
                fs::write(&fresh, b"").map_err(ExecError::io("write", &fresh))?;
            }
        }
        Ok(())
    }

    /// Ends the task's use of all such volumes; unmounts those that nobody else uses. Waits for nobody: one that is just being mounted is an
    /// error, to be tried again.
    ///
    /// # Errors
    /// The first one; the others are let go all the same.
    pub fn let_go(&self, task: &TaskId) -> Result<(), ExecError> {
        let mut outcome = Ok(());
        for entry in fs::read_dir(&self.users).into_iter().flatten().flatten() {
            let mark = entry.path().join(task.as_str());
            if mark.exists()
                && let Some(name) = entry.file_name().to_str()
            {
                outcome = outcome.and(self.let_one_go(name, &mark, task));
            }
        }
        outcome
    }

    fn let_one_go(&self, name: &str, mark: &Path, task: &TaskId) -> Result<(), ExecError> {
        let dir = self.volumes.join(name);
        // Without the directory there is nothing to unmount.
        let _lock = if dir.exists() { Some(lock(&dir, FlockArg::LockExclusiveNonblock)?) } else { None };
        let last = self.others(name, task)? == 0;
        if last {
            unmount(&dir.join("_data"))?;
        }
        failpoint!("agent.volume.unmounted");
        fs::remove_file(mark).map_err(ExecError::io("remove", mark))?;
        if last {
            let _ = fs::remove_dir(self.users.join(name));
        }
        Ok(())
    }

    /// How many other tasks use it.
    fn others(&self, name: &str, task: &TaskId) -> Result<usize, ExecError> {
        let users = self.users.join(name);
        match fs::read_dir(&users) {
            Ok(entries) => Ok(entries.flatten().filter(|entry| entry.file_name() != task.as_str()).count()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(ExecError::io("read", users)(error)),
        }
    }
}

/// The options that the volume has from now on. What it has on the disk is in its device, so nothing is lost when nobody uses it and they
/// change; but a directory with files is never hidden.
fn agree(name: &str, dir: &Path, wanted: &Labels, others: usize) -> Result<Labels, ExecError> {
    let known = options_of(dir);
    match known {
        Some(known) if wanted.is_empty() || known == *wanted => return Ok(known),
        Some(_) if others > 0 => {
            return Err(bad(format!("volume {name} is in use on this node with other driver options; use another name")));
        }
        None if fs::read_dir(dir.join("_data")).is_ok_and(|mut entries| entries.next().is_some()) => {
            return Err(bad(format!(
                "volume {name} exists on this node without driver options and holds files; use another name, or remove it there"
            )));
        }
        _ => {}
    }
    keep_options(dir, wanted).map_err(ExecError::io("write", dir.join(OPTIONS)))?;
    Ok(wanted.clone())
}

/// Makes the volume in this directory one that is a mount by these options.
///
/// # Errors
/// Of the file system.
pub(crate) fn keep_options(dir: &Path, options: &Labels) -> io::Result<()> {
    let part = dir.join("options.part");
    write_private(&part, &serde_json::to_vec(options)?)?;
    fs::rename(&part, dir.join(OPTIONS))
}

/// There may be passwords in it.
fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, text)
}

fn lock(dir: &Path, how: FlockArg) -> Result<Flock<File>, ExecError> {
    let path = dir.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(ExecError::io("open", &path))?;
    Flock::lock(file, how).map_err(|(_, errno)| ExecError::io("lock", &path)(errno.into()))
}

/// Whether this is the first use of a memory file system; never twice.
pub(super) fn take_fresh(dir: &Path) -> bool {
    fs::remove_file(dir.join(FRESH)).is_ok()
}

/// IPv4 first, as dockerd's.
fn resolve(host: &str) -> io::Result<IpAddr> {
    let found: Vec<IpAddr> = (host, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

fn mount_at(call: &MountCall, at: &Path) -> io::Result<()> {
    let data = call.data.join(",");
    mount(Some(call.device.as_str()), at, Some(call.kind.as_str()), call.flags, Some(data.as_str()))?;
    let changed = (|| {
        // A bind mount takes no other flags in its first call (mount(2)).
        if call.flags.contains(MsFlags::MS_BIND) && !(call.flags - MsFlags::MS_BIND - MsFlags::MS_REC).is_empty() {
            let flags = (call.flags - MsFlags::MS_REC) | MsFlags::MS_REMOUNT;
            mount(None::<&str>, at, None::<&str>, flags, None::<&str>)?;
        }
        if !call.propagation.is_empty() {
            mount(None::<&str>, at, None::<&str>, call.propagation, None::<&str>)?;
        }
        Ok::<(), Errno>(())
    })();
    if changed.is_err() {
        let _ = umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    Ok(changed?)
}

fn refused(name: &str, call: &MountCall, source: io::Error) -> ExecError {
    let cure = match source.raw_os_error() {
        Some(libc::ENODEV) => {
            "; this node's kernel has no such file system: load its module there, or keep the tasks to nodes that have it"
        }
        Some(libc::EINVAL) => "; the file system refuses the options",
        _ => "",
    };
    ExecError::VolumeMount { volume: name.to_owned(), kind: call.kind.clone(), device: call.device.clone(), cure, source }
}

/// Takes away what is mounted there, if anything is; what is below stays as it is.
///
/// # Errors
/// Of umount(2).
pub(crate) fn unmount(data: &Path) -> Result<(), ExecError> {
    loop {
        match umount2(data, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or it is not there.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            // Without the right to mount there is nothing that we mounted.
            Err(Errno::EPERM) if !nix::unistd::geteuid().is_root() => return Ok(()),
            Err(errno) => return Err(ExecError::io("unmount the volume", data)(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn shelf(dir: &tempfile::TempDir) -> Shelf {
        Shelf { volumes: dir.path().join("volumes"), users: dir.path().join("users") }
    }

    fn is_mounted(at: &Path) -> bool {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        text.lines().any(|line| line.split(' ').nth(4) == at.to_str())
    }

    #[test]
    fn a_volume_is_mounted_from_its_first_user_to_its_last() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: only root may mount");
            assert!(std::env::var_os("SKEP_REQUIRE_REAL").is_none());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (shelf, data) = (shelf(&dir), dir.path().join("volumes/v/_data"));
        let (one, two) = (TaskId::for_test(1), TaskId::for_test(2));
        let small = labels(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")]);
        shelf.take("v", &small, &one).unwrap();
        assert!(is_mounted(&data) && take_fresh(data.parent().unwrap()) && !take_fresh(data.parent().unwrap()));
        fs::write(data.join("x"), "1").unwrap();
        // Those who do not say get it as it is; others than it has are refused while it is in use.
        shelf.take("v", &Labels::new(), &two).unwrap();
        shelf.take("v", &small, &two).unwrap();
        assert_eq!(fs::read(data.join("x")).unwrap(), b"1");
        let large = labels(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=2m")]);
        let error = shelf.take("v", &large, &TaskId::for_test(3)).unwrap_err().words();
        assert!(error.contains("volume v is in use on this node with other driver options"), "{error}");
        shelf.let_go(&one).unwrap();
        assert!(is_mounted(&data));
        shelf.let_go(&two).unwrap();
        shelf.let_go(&two).unwrap();
        assert!(!is_mounted(&data) && !dir.path().join("users/v").exists());
        // Nobody uses it: it may become another.
        shelf.take("v", &large, &one).unwrap();
        assert!(is_mounted(&data) && options_of(&dir.path().join("volumes/v")) == Some(large));
        shelf.let_go(&one).unwrap();
    }

    #[test]
    fn a_mount_that_fails_names_volume_type_device_and_cause() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: only root may mount");
            assert!(std::env::var_os("SKEP_REQUIRE_REAL").is_none());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (shelf, task) = (shelf(&dir), TaskId::for_test(1));
        let error = |pairs: &[(&str, &str)]| shelf.take("v", &labels(pairs), &task).unwrap_err().words();
        let unknown = error(&[("type", "nosuchfs"), ("device", "nas:/x"), ("o", "password=hunter2")]);
        assert_eq!(
            unknown,
            "could not mount volume v (type nosuchfs, device nas:/x); this node's kernel has no such file system: load its module there, or \
             keep the tasks to nodes that have it: No such device (os error 19)"
        );
        let missing = error(&[("type", "none"), ("device", "/no/such/dir"), ("o", "bind")]);
        assert!(missing.starts_with("could not mount volume v (type none, device /no/such/dir): No such file"), "{missing}");
        shelf.let_go(&task).unwrap();
        assert!(!dir.path().join("users/v").exists());
    }

    #[test]
    fn files_of_a_plain_volume_are_never_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(&dir);
        fs::create_dir_all(dir.path().join("volumes/db/_data")).unwrap();
        fs::write(dir.path().join("volumes/db/_data/table"), "1").unwrap();
        let wanted = labels(&[("type", "tmpfs"), ("device", "tmpfs")]);
        let error = shelf.take("db", &wanted, &TaskId::for_test(1)).unwrap_err().words();
        assert!(error.contains("volume db exists on this node without driver options and holds files"), "{error}");
        assert!(shelf.take("db", &Labels::new(), &TaskId::for_test(1)).is_ok());
        assert!(shelf.take("../db", &wanted, &TaskId::for_test(1)).is_err());
    }
}
