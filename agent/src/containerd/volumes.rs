//! Mounts of a service made ready: bind sources checked, volumes of the local driver made and filled, tmpfs options read.

mod mounted; // volumes that are mounts: when, for whom
mod options; // what their driver's options ask for; pure

use super::copyup::{copy_tree, take_owner};
use super::files::{PayloadFile, TaskDir, unix_mode};
use super::rootfs;
use super::spec::ReadyMount;
use crate::error::ExecError;
use containerd_client::types::Mount as RootMount;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use skep_failpoint::failpoint;
use skep_types::{ContainerSpec, Driver, Mount, MountPropagation, MountType, TaskId};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub use mounted::Shelf;
pub(crate) use mounted::{keep_options, options_of, unmount};
pub(crate) use options::check as check_options;

/// What mounts are made from.
pub struct Place<'a> {
    pub task: &'a TaskId,
    /// `<data>/agent/volumes`.
    pub volumes: &'a Path,
    pub dir: &'a TaskDir,
    /// The container's root file system, not mounted yet.
    pub root: &'a [RootMount],
}

/// Mounts and the volumes that live as long as the task.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ready {
    pub mounts: Vec<ReadyMount>,
    pub own_volumes: Vec<String>,
}

/// Makes all mounts of a container ready. `image_volumes` are paths that the image wants on volumes.
pub fn make_ready(spec: &ContainerSpec, image_volumes: &[String], payloads: &[PayloadFile], place: &Place<'_>) -> Result<Ready, ExecError> {
    let mut ready = Ready::default();
    for mount in &spec.mounts {
        check_target(&mount.target)?;
        if ready.mounts.iter().any(|other| other.target == mount.target) {
            return Err(bad(format!("two mounts have the target {}", mount.target)));
        }
        let made = match mount.kind {
            MountType::Bind => bind(mount)?,
            MountType::Volume => volume(mount, place, &mut ready.own_volumes)?,
            MountType::Tmpfs => tmpfs(mount)?,
            MountType::NamedPipe => return Err(unsupported("a mount of type npipe", "; it exists on Windows only")),
            MountType::Cluster => return Err(unsupported("a mount of type cluster", "; use a bind or a local volume")),
        };
        ready.mounts.push(made);
    }
    for target in image_volumes {
        if check_target(target).is_ok()
            && !ready.mounts.iter().any(|mount| mount.target.trim_end_matches('/') == target.trim_end_matches('/'))
        {
            let mount = Mount { kind: MountType::Volume, target: target.clone(), ..Mount::default() };
            let made = volume(&mount, place, &mut ready.own_volumes)?;
            ready.mounts.push(made);
        }
    }
    for file in payloads {
        check_target(&file.target)?;
        let options = ["bind", "ro", "rprivate", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
        ready.mounts.push(ReadyMount { target: file.target.clone(), kind: "bind", source: file.source.clone(), options });
    }
    Ok(ready)
}

/// Mounts the volumes that are mounts by their driver's options; before [`make_ready`]. May wait for servers.
pub fn mount_all(mounts: &[Mount], task: &TaskId, shelf: &Shelf) -> Result<(), ExecError> {
    let mut own = 0;
    for mount in mounts.iter().filter(|mount| mount.kind == MountType::Volume) {
        let driver = mount.volume.as_ref().and_then(|options| options.driver.as_ref());
        check_driver(driver)?;
        let name = match mount.source.as_str() {
            "" => {
                own += 1;
                own_name(task, own - 1)
            }
            name => name.to_owned(),
        };
        shelf.take(&name, &driver.map(|driver| driver.options.clone()).unwrap_or_default(), task)?;
    }
    Ok(())
}

/// Of a volume that nobody gave a name.
fn own_name(task: &TaskId, index: usize) -> String {
    format!("{task}-{index}")
}

/// All names that volumes of a container may have, each once or more.
pub fn names<'a>(task: &'a TaskId, spec: &'a ContainerSpec, image_volumes: &'a [String]) -> impl Iterator<Item = String> + 'a {
    let of_spec = || spec.mounts.iter().filter(|mount| mount.kind == MountType::Volume);
    let given = of_spec().map(|mount| mount.source.clone()).filter(|name| !name.is_empty());
    given.chain((0..of_spec().count() + image_volumes.len()).map(|index| own_name(task, index)))
}

/// Removes the volumes that lived as long as their task.
pub fn remove_own(volumes: &Path, names: &[String]) -> Result<(), ExecError> {
    for name in names {
        let path = volumes.join(name);
        // What is mounted must never be emptied.
        if options_of(&path).is_some() {
            unmount(&path.join("_data"))?;
        }
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(ExecError::io("remove the volume", path)(error)),
            _ => {}
        }
    }
    Ok(())
}

fn bad(problem: String) -> ExecError {
    ExecError::BadSpec { field: "mounts", problem }
}

fn unsupported(what: &str, cure: &'static str) -> ExecError {
    ExecError::Unsupported { what: what.to_owned(), cure }
}

fn check_target(target: &str) -> Result<(), ExecError> {
    let path = Path::new(target);
    let odd = path.components().any(|part| part == Component::ParentDir) || target.contains('\0');
    if !path.is_absolute() || path == Path::new("/") || odd {
        return Err(bad(format!("the target {target:?} is not an absolute path inside the container")));
    }
    Ok(())
}

fn propagation(wish: MountPropagation) -> &'static str {
    match wish {
        MountPropagation::RPrivate => "rprivate",
        MountPropagation::Private => "private",
        MountPropagation::RShared => "rshared",
        MountPropagation::Shared => "shared",
        MountPropagation::RSlave => "rslave",
        MountPropagation::Slave => "slave",
    }
}

fn bind(mount: &Mount) -> Result<ReadyMount, ExecError> {
    let options = mount.bind.clone().unwrap_or_default();
    let source = PathBuf::from(&mount.source);
    if !source.is_absolute() {
        return Err(bad(format!("the source {:?} is not an absolute path", mount.source)));
    }
    if !source.exists() {
        if !options.create_mountpoint {
            return Err(ExecError::MountSourceMissing { path: mount.source.clone() });
        }
        fs::create_dir_all(&source).map_err(ExecError::io("make the directory", &source))?;
    }
    let mut list = vec![if options.non_recursive { "bind" } else { "rbind" }, propagation(options.propagation)];
    match (mount.read_only, options.non_recursive || options.read_only_non_recursive, options.read_only_force_recursive) {
        (false, ..) => {}
        (true, true, true) => return Err(bad(format!("{}: read-only cannot be both recursive and not", mount.target))),
        (true, true, false) => list.push("ro"),
        // Also what is mounted inside the source (runc 1.1 and Linux 5.12 on).
        (true, false, _) => list.push("rro"),
    }
    Ok(ReadyMount { target: mount.target.clone(), kind: "bind", source, options: list.into_iter().map(str::to_owned).collect() })
}

fn tmpfs(mount: &Mount) -> Result<ReadyMount, ExecError> {
    let wish = mount.tmpfs.clone().unwrap_or_default();
    let mut list: Vec<String> = ["nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
    for option in wish.options.split(',').filter(|option| !option.is_empty()) {
        let opposite = match option {
            "exec" => "noexec",
            "suid" => "nosuid",
            "dev" => "nodev",
            "noexec" => "exec",
            "nosuid" => "suid",
            "nodev" => "dev",
            "ro" | "rw" | "noatime" | "relatime" | "strictatime" | "nodiratime" | "sync" | "dirsync" => "",
            named if ["size=", "mode=", "uid=", "gid=", "nr_inodes=", "nr_blocks="].iter().any(|known| named.starts_with(known)) => "",
            _ => return Err(bad(format!("tmpfs option {option:?} is not known"))),
        };
        list.retain(|known| known != opposite && known != option);
        list.push(option.to_owned());
    }
    if wish.size_bytes < 0 {
        return Err(bad("the size of a tmpfs must not be negative".into()));
    }
    if wish.size_bytes > 0 {
        list.push(format!("size={}", wish.size_bytes));
    }
    list.push(format!("mode={:o}", if wish.mode == 0 { 0o1777 } else { unix_mode(wish.mode) }));
    if mount.read_only {
        list.push("ro".into());
    }
    Ok(ReadyMount { target: mount.target.clone(), kind: "tmpfs", source: "tmpfs".into(), options: list })
}

/// As dockerd's names; also keeps a name from leaving the directory.
pub(crate) fn is_volume_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(good) && name.len() <= 255
}

/// A volume of the local driver: `<volumes>/<name>/_data`.
fn volume(wish: &Mount, place: &Place<'_>, own: &mut Vec<String>) -> Result<ReadyMount, ExecError> {
    let options = wish.volume.clone().unwrap_or_default();
    check_driver(options.driver.as_ref())?;
    let name = if wish.source.is_empty() {
        let name = own_name(place.task, own.len());
        own.push(name.clone());
        name
    } else {
        wish.source.clone()
    };
    if !is_volume_name(&name) {
        return Err(bad(format!("{name:?} is not a volume name; use letters, digits, '_', '.' and '-'")));
    }
    let dir = place.volumes.join(&name);
    let data = dir.join("_data");
    let is_mount = options_of(&dir).is_some();
    let new = if is_mount { !dir.join("labels.json").exists() } else { !data.exists() };
    fs::create_dir_all(&data).map_err(ExecError::io("make the volume", &data))?;
    failpoint!("agent.volume.made");
    if new && !options.labels.is_empty() {
        let path = dir.join("labels.json");
        let text = serde_json::to_vec(&options.labels).map_err(|error| ExecError::io("write", &path)(error.into()))?;
        fs::write(&path, text).map_err(ExecError::io("write", &path))?;
    }
    let source = if options.subpath.is_empty() {
        match (is_mount, options.no_copy) {
            // Whoever shares a directory or a server could lead the copy astray; nobody has seen a new memory file system.
            (true, no_copy) => fill(&data, || mounted::take_fresh(&dir) && !no_copy, &wish.target, place, copy_tree)?,
            (false, true) => {}
            (false, false) => fill(&data, || true, &wish.target, place, copy_aside)?,
        }
        data
    } else {
        let inside = fs::File::open(&data).map_err(ExecError::io("open", &data)).map(|dir| open_beneath(&dir, &options.subpath))?;
        let missing = || ExecError::MountSourceMissing { path: format!("{} in volume {name}", options.subpath) };
        pin(&inside.ok_or_else(missing)?, place.dir)?
    };
    let mode = if wish.read_only { "ro" } else { "rw" };
    Ok(ReadyMount { target: wish.target.clone(), kind: "bind", source, options: ["rbind", "rprivate", mode].map(str::to_owned).to_vec() })
}

fn check_driver(driver: Option<&Driver>) -> Result<(), ExecError> {
    match driver {
        Some(driver) if !matches!(driver.name.as_str(), "" | "local") => {
            Err(ExecError::Unsupported { what: format!("volume driver {}", driver.name), cure: "; use local" })
        }
        _ => Ok(()),
    }
}

/// What is at `path` inside `dir`; links may lead anywhere in it, not out of it.
fn open_beneath(dir: &fs::File, path: &str) -> Option<fs::File> {
    let how =
        OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(dir, Path::new(path.trim_start_matches('/')), how).ok().map(fs::File::from)
}

/// Mounts what was opened in the task's directory: between our look and runc's, a container that shares the volume could put a
/// link to the host's files there.
fn pin(inside: &fs::File, dir: &TaskDir) -> Result<PathBuf, ExecError> {
    let at = dir.new_pin(inside.metadata().is_ok_and(|meta| meta.is_dir()))?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", inside.as_raw_fd()));
    mount(Some(&source), &at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|errno| ExecError::io("mount a part of a volume on", &at)(errno.into()))?;
    failpoint!("agent.volume.pinned");
    Ok(at)
}

/// Copies what the image has at the target into an empty volume, if that is wanted, by this way of copying.
fn fill(
    data: &Path,
    is_wanted: impl FnOnce() -> bool,
    target: &str,
    place: &Place<'_>,
    copy: fn(&Path, &Path) -> std::io::Result<()>,
) -> Result<(), ExecError> {
    /// Two tasks may begin with the same volume.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !is_wanted() {
        return Ok(());
    }
    let empty = fs::read_dir(data).map_err(ExecError::io("read", data))?.next().is_none();
    // Most images have nothing there: then nothing needs to be mounted.
    if !empty || rootfs::open(&rootfs::layers(place.root), target).is_none() {
        return Ok(());
    }
    let root = place.dir.join("rootfs");
    fs::create_dir_all(&root).map_err(ExecError::io("make the directory", &root))?;
    mount_root(place.root, &root)?;
    failpoint!("agent.volume.root_mounted");
    let copied = copy_target(&root, target, data, copy);
    let unmounted = umount2(&root, MntFlags::MNT_DETACH).map_err(|errno| ExecError::io("unmount", &root)(errno.into()));
    copied.and(unmounted)
}

fn copy_target(root: &Path, target: &str, data: &Path, copy: fn(&Path, &Path) -> std::io::Result<()>) -> Result<(), ExecError> {
    let dir = fs::File::open(root).map_err(ExecError::io("open", root))?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // A file, or a link that leads nowhere: nothing to copy.
    let Ok(inside) = openat2(&dir, Path::new(target.trim_start_matches('/')), how) else { return Ok(()) };
    let path = PathBuf::from(format!("/proc/self/fd/{}/", inside.as_raw_fd()));
    copy(&path, data).map_err(ExecError::io("fill the volume", data))
}

/// Copies beside the volume's files first, where no container sees it: one that has the volume could put links in the way of the copy.
fn copy_aside(from: &Path, data: &Path) -> std::io::Result<()> {
    let aside = data.with_file_name("filling");
    let _ = fs::remove_dir_all(&aside); // of a copy that was cut short
    fs::create_dir(&aside)?;
    let copied = copy_tree(from, &aside).and_then(|()| {
        failpoint!("agent.volume.copied");
        move_in(&aside, data)
    });
    let removed = fs::remove_dir_all(&aside);
    copied.and(removed)
}

/// Moves the entries of one directory into another one, which takes over owner and mode. What is there already stays.
fn move_in(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        match renameat2(AT_FDCWD, &entry.path(), AT_FDCWD, &to.join(entry.file_name()), RenameFlags::RENAME_NOREPLACE) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    take_owner(to, &fs::symlink_metadata(from)?)
}

/// Mounts a snapshot read-only for a moment.
fn mount_root(mounts: &[RootMount], at: &Path) -> Result<(), ExecError> {
    for one in mounts {
        let mut flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mut data = Vec::new();
        for option in &one.options {
            match option.as_str() {
                "rbind" | "bind" => flags |= MsFlags::MS_BIND,
                "ro" | "rw" => {}
                other => data.push(other),
            }
        }
        let data = data.join(",");
        let kind = if one.r#type == "bind" { None } else { Some(one.r#type.as_str()) };
        mount(Some(one.source.as_str()), at, kind, flags, Some(data.as_str()))
            .map_err(|errno| ExecError::io("mount the image's files on", at)(errno.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{BindOptions, TmpfsOptions, VolumeOptions};

    fn ready(mounts: Vec<Mount>, image: &[&str]) -> Result<Ready, ExecError> {
        let dir = tempfile::tempdir().unwrap();
        let task_dir = TaskDir::new(dir.path().join("task"));
        let volumes = dir.path().join("volumes");
        let place = Place { task: &TaskId::for_test(1), volumes: &volumes, dir: &task_dir, root: &[] };
        let image: Vec<String> = image.iter().map(|path| (*path).to_owned()).collect();
        make_ready(&ContainerSpec { mounts, ..ContainerSpec::default() }, &image, &[], &place)
    }

    fn of(kind: MountType, source: &str, target: &str) -> Mount {
        Mount { kind, source: source.into(), target: target.into(), ..Mount::default() }
    }

    #[test]
    fn a_missing_bind_source_is_named() {
        let error = ready(vec![of(MountType::Bind, "/no/such", "/d")], &[]).unwrap_err();
        assert_eq!(error.to_string(), "mount source /no/such does not exist on this node; make it or use a volume");
    }

    #[test]
    fn binds_are_recursively_read_only_unless_asked_otherwise() {
        let mut mount = Mount { read_only: true, ..of(MountType::Bind, "/tmp", "/d") };
        assert_eq!(ready(vec![mount.clone()], &[]).unwrap().mounts[0].options, ["rbind", "rprivate", "rro"]);
        mount.bind = Some(BindOptions { non_recursive: true, ..BindOptions::default() });
        assert_eq!(ready(vec![mount], &[]).unwrap().mounts[0].options, ["bind", "rprivate", "ro"]);
    }

    #[test]
    fn volumes_without_a_name_live_as_long_as_the_task() {
        let made = ready(vec![of(MountType::Volume, "data", "/a"), of(MountType::Volume, "", "/b")], &["/c", "/a"]).unwrap();
        assert_eq!(made.own_volumes.len(), 2);
        let spec = ContainerSpec {
            mounts: vec![of(MountType::Volume, "data", "/a"), of(MountType::Volume, "", "/b"), of(MountType::Tmpfs, "", "/t")],
            ..ContainerSpec::default()
        };
        let known: Vec<String> = names(&TaskId::for_test(1), &spec, &["/c".into(), "/a".into()]).collect();
        assert!(made.own_volumes.iter().chain([&"data".to_owned()]).all(|name| known.contains(name)), "{known:?} {made:?}");
        assert!(made.mounts[0].source.ends_with("volumes/data/_data"));
        assert_eq!(made.mounts.iter().map(|mount| mount.target.as_str()).collect::<Vec<_>>(), ["/a", "/b", "/c"]);
    }

    #[test]
    fn odd_names_targets_drivers_and_options_are_refused() {
        for name in ["../x", ".x", "a/b", "a b"] {
            assert!(ready(vec![of(MountType::Volume, name, "/d")], &[]).is_err(), "{name}");
        }
        for target in ["d", "/", "/a/../b", ""] {
            assert!(ready(vec![of(MountType::Tmpfs, "", target)], &[]).is_err(), "{target}");
        }
        let driver = |name: &str| Driver { name: name.into(), ..Driver::default() };
        let mut mount = of(MountType::Volume, "x", "/d");
        mount.volume = Some(VolumeOptions { driver: Some(driver("nfs")), ..VolumeOptions::default() });
        assert!(ready(vec![mount], &[]).unwrap_err().to_string().contains("volume driver nfs is not supported"));
        assert!(ready(vec![of(MountType::Tmpfs, "", "/d"), of(MountType::Tmpfs, "", "/d")], &[]).is_err());
    }

    #[test]
    fn what_a_container_put_into_a_volume_does_not_lead_the_copy_astray() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["host", "from/etc", "data"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("from/etc/passwd"), "image").unwrap();
        fs::write(path("from/other"), "image").unwrap();
        std::os::unix::fs::symlink(path("host"), path("data/etc")).unwrap();
        move_in(&path("from"), &path("data")).unwrap();
        assert_eq!(fs::read_dir(path("host")).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(path("data/other")).unwrap(), "image");
    }

    #[test]
    fn parts_of_a_volume_are_found_inside_it_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        std::os::unix::fs::symlink("sub", dir.path().join("good")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../..", dir.path().join("up")).unwrap();
        let data = fs::File::open(dir.path()).unwrap();
        assert!(open_beneath(&data, "/good").is_some());
        assert!(open_beneath(&data, "sub/../good").is_some());
        for bad in ["out", "out/passwd", "up", "../x", "sub/../../x", "none"] {
            assert!(open_beneath(&data, bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn tmpfs_options_replace_the_defaults() {
        let mut mount = of(MountType::Tmpfs, "", "/d");
        mount.tmpfs = Some(TmpfsOptions { size_bytes: 4096, mode: 0o700, options: "exec,uid=5".into() });
        assert_eq!(
            ready(vec![mount.clone()], &[]).unwrap().mounts[0].options,
            ["nosuid", "nodev", "exec", "uid=5", "size=4096", "mode=700"]
        );
        mount.tmpfs = Some(TmpfsOptions { options: "nonsense".into(), ..TmpfsOptions::default() });
        assert!(ready(vec![mount], &[]).is_err());
    }
}
