//! Looks into an image's files without mounting them: the directories of an overlay are searched from the top.
//!
//! Symbolic links are followed inside one layer only, and never out of it (`openat2` with `RESOLVE_IN_ROOT`).

use super::spec::UserIds;
use crate::error::ExecError;
use containerd_client::types::Mount;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Longest file that is read; nobody's passwd is that long.
const LIMIT: u64 = 4 << 20;

/// The directories that make up a root file system, the uppermost first.
pub fn layers(mounts: &[Mount]) -> Vec<PathBuf> {
    let Some(mount) = mounts.first() else { return Vec::new() };
    if mount.r#type != "overlay" {
        return vec![PathBuf::from(&mount.source)];
    }
    let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
    let lower = option("lowerdir=").unwrap_or_default().split(':').filter(|dir| !dir.is_empty());
    option("upperdir=").into_iter().chain(lower).map(PathBuf::from).collect()
}

fn open_in(root: &Path, path: &Path) -> nix::Result<File> {
    let dir = File::open(root).map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let how = OpenHow::new()
        // Only found, not opened: an image may have a device there, and opening some has effects.
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(&dir, path, how).map(File::from)
}

/// Finds a file or directory of the image, for [`std::fs::File::metadata`] only; `None` if it is not there.
pub fn open(layers: &[PathBuf], path: &str) -> Option<File> {
    let path = Path::new(path.trim_start_matches('/'));
    for layer in layers {
        // A parent that an upper layer removed or replaced hides what is below (overlayfs: character device 0/0, opaque).
        let mut here = layer.clone();
        let mut hidden = false;
        let mut parents = path.components().peekable();
        while let Some(part) = parents.next() {
            here.push(part);
            let Ok(meta) = here.symlink_metadata() else { break };
            if meta.file_type().is_char_device() && meta.rdev() == 0 {
                return None;
            }
            if parents.peek().is_some() && meta.is_dir() && is_opaque(&here) {
                hidden = true;
            }
        }
        match open_in(layer, path) {
            Ok(file) => return Some(file),
            Err(_) if hidden => return None,
            Err(_) => {}
        }
    }
    None
}

fn is_opaque(dir: &Path) -> bool {
    // Only read access to an attribute; a missing one and a file system without attributes are the same here.
    super::copyup::attribute(dir, c"trusted.overlay.opaque").as_deref() == Some(b"y")
}

fn read(layers: &[PathBuf], path: &str) -> String {
    let mut text = Vec::new();
    let found = open(layers, path).filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()));
    if let Some(file) = found.and_then(|found| File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()) {
        let _ = file.take(LIMIT).read_to_end(&mut text); // what cannot be read is as if it were not there
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The user a container runs as, from the image's `/etc/passwd` and `/etc/group`.
///
/// # Errors
/// For a name that is in neither, or a number that is none.
pub fn resolve_user(layers: &[PathBuf], wanted: &str, extra_groups: &[String]) -> Result<UserIds, ExecError> {
    resolve(wanted, extra_groups, &read(layers, "/etc/passwd"), &read(layers, "/etc/group"))
}

/// Fields of the lines of a file such as passwd.
fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 3)
}

/// As runc's `user.GetExecUser`: `name|uid[:group|gid]`; a name goes before a number.
fn resolve(wanted: &str, extra_groups: &[String], passwd: &str, group: &str) -> Result<UserIds, ExecError> {
    let bad = |reason| ExecError::BadUser { user: wanted.to_owned(), reason };
    let (user, primary) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user = if user.is_empty() { "0" } else { user };
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| i32::try_from(*id).is_ok());
    let by_name = entries(passwd).find(|fields| fields[0] == user);
    let line = by_name.or_else(|| entries(passwd).find(|fields| number(user).is_some() && number(fields[2]) == number(user)));
    let mut ids = UserIds::default();
    let mut name = "";
    match &line {
        Some(fields) => {
            name = fields[0];
            ids.uid = number(fields[2]).ok_or_else(|| bad("its line in the image's /etc/passwd has no number"))?;
            ids.gid = fields.get(3).and_then(|gid| number(gid)).unwrap_or(0);
            ids.home = fields.get(5).map(|home| (*home).to_owned()).unwrap_or_default();
        }
        None => ids.uid = number(user).ok_or_else(|| bad("no such user in the image's /etc/passwd"))?,
    }
    let group_id = |wanted: &str| {
        let named = entries(group).find(|fields| fields[0] == wanted).and_then(|fields| number(fields[2]));
        named.or_else(|| number(wanted))
    };
    if !primary.is_empty() {
        ids.gid = group_id(primary).ok_or_else(|| bad("no such group in the image's /etc/group"))?;
    } else if !name.is_empty() {
        // Member groups count only when no group was asked for.
        let member = |fields: &Vec<&str>| fields.get(3).is_some_and(|list| list.split(',').any(|one| one == name));
        ids.groups = entries(group).filter(member).filter_map(|fields| number(fields[2])).collect();
    }
    for extra in extra_groups {
        ids.groups.push(group_id(extra).ok_or_else(|| bad("one of its additional groups is not in the image's /etc/group"))?);
    }
    ids.groups.sort_unstable();
    ids.groups.dedup();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\napp:x:1000:1001::/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\nvideo:x:44:app\napp:x:1001:\n";

    fn user(text: &str, groups: &[&str]) -> Result<UserIds, ExecError> {
        let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        resolve(text, &groups, PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers_are_found_with_their_groups() {
        let root = UserIds { uid: 0, gid: 0, groups: vec![10], home: "/root".into() };
        assert_eq!(user("", &[]).unwrap(), root);
        let app = UserIds { uid: 1000, gid: 1001, groups: vec![10, 44], home: "/home/app".into() };
        assert_eq!(user("app", &[]).unwrap(), app);
        assert_eq!(user("1000", &[]).unwrap(), app);
        assert_eq!(user("app:video", &[]).unwrap(), UserIds { gid: 44, groups: vec![], ..app.clone() });
        assert_eq!(user("77:88", &["wheel", "5"]).unwrap(), UserIds { uid: 77, gid: 88, groups: vec![5, 10], home: String::new() });
    }

    #[test]
    fn unknown_users_and_groups_are_refused() {
        assert!(user("nobody", &[]).unwrap_err().to_string().contains("no such user"));
        assert!(user("app:none", &[]).unwrap_err().to_string().contains("no such group"));
        assert!(user("4294967295", &[]).is_err());
        assert!(user("app", &["none"]).is_err());
    }

    #[test]
    fn upper_layers_hide_lower_ones_and_links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower) = (dir.path().join("u"), dir.path().join("l"));
        std::fs::create_dir_all(upper.join("etc")).unwrap();
        std::fs::create_dir_all(lower.join("etc")).unwrap();
        std::fs::write(upper.join("etc/passwd"), "up").unwrap();
        std::fs::write(lower.join("etc/passwd"), "low").unwrap();
        std::fs::write(lower.join("etc/group"), "low").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", lower.join("etc/link")).unwrap();
        let mount = Mount {
            r#type: "overlay".into(),
            options: vec!["workdir=/w".into(), format!("upperdir={}", upper.display()), format!("lowerdir={}", lower.display())],
            ..Mount::default()
        };
        let layers = layers(&[mount]);
        assert_eq!(layers.len(), 2);
        assert_eq!(read(&layers, "/etc/passwd"), "up");
        assert_eq!(read(&layers, "/etc/group"), "low");
        assert_eq!(read(&layers, "/etc/link"), "");
    }

    #[test]
    fn what_is_no_regular_file_is_not_even_opened() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("passwd");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        let layers = [dir.path().to_owned()];
        let found = open(&layers, "/passwd").unwrap();
        assert!(found.metadata().unwrap().file_type().is_fifo());
        // Whoever opens a pipe for writing without waiting is told whether it has a reader.
        let write = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&pipe);
        assert_eq!(write.unwrap_err().raw_os_error(), Some(libc::ENXIO));
        assert_eq!(read(&layers, "/passwd"), "");
    }
}
