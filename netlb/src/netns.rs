//! Network namespaces, kept alive by a bind mount under the run directory.
//!
//! A namespace is made and entered on a thread of its own that ends right after: a thread of a pool that stays in
//! another namespace would be the next caller's surprise. `/proc/thread-self` and not `/proc/self`: that is the main
//! thread's.

use crate::error::NetlbError;
use crate::netlink::route::RouteSocket;
use crate::nft::socket::Nft;
use crate::sysctl::{self, Purpose};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};
use skep_failpoint::failpoint;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS: FsType = FsType(0x6e73_6673);
/// Enough for what these threads do, and they are many.
pub(crate) const STACK: usize = 256 * 1024;

/// A namespace and a way to change it from any thread.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) path: PathBuf,
    file: File,
    pub(crate) route: RouteSocket,
    /// Only where it is used: in sandboxes.
    pub(crate) nft: Option<Nft>,
}

impl Namespace {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Makes a new namespace with loopback up and mounts it at `path`, replacing an empty file left by a crash.
    /// Blocks for about two milliseconds.
    pub(crate) fn create(path: &Path, purpose: Purpose) -> Result<Self, NetlbError> {
        on_own_thread(path, "create", || {
            let step = |step| move |source| NetlbError::Namespace { path: path.to_owned(), step, source };
            File::create(path).map_err(step("create the file of"))?;
            failpoint!("netlb.netns.file");
            unshare(CloneFlags::CLONE_NEWNET).map_err(|error| step("unshare")(error.into()))?;
            // Kept open before the mount: from here on the file is the namespace.
            let file = File::open(OWN_NAMESPACE).map_err(step("open"))?;
            let namespace = Self::here(path, file, purpose)?;
            mount(Some(OWN_NAMESPACE), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|error| step("mount")(error.into()))?;
            failpoint!("netlb.netns.mounted");
            Ok(namespace)
        })
    }

    fn here(path: &Path, file: File, purpose: Purpose) -> Result<Self, NetlbError> {
        let netlink = |source| NetlbError::Netlink { place: path.display().to_string(), source };
        let mut route = RouteSocket::open().map_err(netlink)?;
        let up = crate::plan::Change::SetLink { name: "lo".into(), mtu: None, mac: None, up: true };
        if let Some((_, error)) = route.apply(&[up]).pop() {
            return Err(netlink(error));
        }
        sysctl::set_for(purpose)?;
        let nft = match purpose {
            Purpose::Sandbox => Some(Nft::open().map_err(netlink)?),
            Purpose::Task { .. } | Purpose::Foreign => None,
        };
        Ok(Self { path: path.to_owned(), file, route, nft })
    }

    /// Opens the namespace mounted at `path`; `None` if there is none, or only the file that a crash left.
    pub(crate) fn open(path: &Path, purpose: Purpose) -> Result<Option<Self>, NetlbError> {
        let step = |step| move |source| NetlbError::Namespace { path: path.to_owned(), step, source };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(step("open"))?,
        };
        if !is_namespace(&file).map_err(step("look at"))? {
            return Ok(None);
        }
        on_own_thread(path, "enter", || {
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(|error| step("enter")(error.into()))?;
            let file = file.try_clone().map_err(step("open"))?;
            Self::here(path, file, purpose).map(Some)
        })
    }

    /// Runs `work` in this namespace, on a thread of its own; `what` says what for.
    pub(crate) fn inside<T: Send>(&self, what: &'static str, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, NetlbError> {
        let failed = |source| NetlbError::Namespace { path: self.path.clone(), step: what, source };
        on_own_thread(&self.path, what, || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.into()))?;
            work().map_err(failed)
        })
    }

    /// Whether the mount is still there and still this namespace.
    pub(crate) fn is_mounted(&self) -> bool {
        let same = || -> io::Result<bool> {
            let (mounted, held) = (std::fs::metadata(&self.path)?, self.file.metadata()?);
            Ok((mounted.dev(), mounted.ino()) == (held.dev(), held.ino()))
        };
        same().unwrap_or(false)
    }
}

/// Whether a namespace is mounted at `path`. Cheap.
pub(crate) fn exists(path: &Path) -> bool {
    File::open(path).and_then(|file| is_namespace(&file)).unwrap_or(false)
}

fn is_namespace(file: &File) -> io::Result<bool> {
    Ok(fstatfs(file)?.filesystem_type() == NSFS)
}

/// Mounts somebody else's namespace at `path`, where it is found from then on like one of ours; it lives at least as long.
///
/// # Errors
/// There is none at `theirs`, it is the host's own, or one that is in this directory already: of a task, or attached before.
pub(crate) fn adopt(theirs: &Path, path: &Path) -> Result<(), NetlbError> {
    let refused = |reason: &str| NetlbError::NotAttached { path: theirs.to_owned(), reason: reason.to_owned() };
    let file = File::open(theirs).map_err(|error| refused(&error.to_string()))?;
    if !is_namespace(&file).unwrap_or(false) {
        return Err(refused("it is not a namespace"));
    }
    let id = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let wanted = file.metadata().map(|found| (found.dev(), found.ino())).ok();
    if wanted == id(Path::new("/proc/self/ns/net")) {
        return Err(refused("it is the host's own"));
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let ours = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    if let Some(known) = ours.filter(|ours| ours != path).find(|ours| id(ours) == wanted) {
        let name = known.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(refused(&format!("it is that of task {name} already, and a namespace can be on the cluster's networks once only")));
    }
    let step = |step| move |source| NetlbError::Namespace { path: path.to_owned(), step, source };
    File::create(path).map_err(step("create the file of"))?;
    failpoint!("netlb.netns.adopting");
    let open = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    mount(Some(&open), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|error| step("mount")(error.into()))
}

/// Unmounts and removes the file; the kernel takes the namespace apart in the background once nobody is in it, and its
/// links with it, which is far cheaper than deleting each. What is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<(), NetlbError> {
    let step = |step| move |source| NetlbError::Namespace { path: path.to_owned(), step, source };
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            // A crash may have mounted twice.
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => break,
            Err(error) => return Err(step("unmount")(error.into())),
        }
    }
    failpoint!("netlb.netns.unmounted");
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(step("remove the file of")),
    }
}

fn on_own_thread<T: Send>(path: &Path, what: &'static str, work: impl FnOnce() -> Result<T, NetlbError> + Send) -> Result<T, NetlbError> {
    let failed = |source| NetlbError::Namespace { path: path.to_owned(), step: what, source };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("skep-netns".into()).stack_size(STACK);
        let joined = thread.spawn_scoped(scope, work).map_err(failed)?.join();
        joined.unwrap_or_else(|_| Err(failed(io::Error::other("the thread panicked"))))
    })
}
