//! The private keys of this node, in a directory that only its owner may read.
//!
//! A file per epoch: which key is which must outlive a crash between making one and telling the manager of it.

use super::error::SecureError;
use super::key::PrivateKey;
use super::wanted::KeyEpoch;
use skep_failpoint::failpoint;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const ENDING: &str = ".key";
const NEW: &str = "new";
/// A file is 44 bytes and a line's end; what is longer is none of ours.
const LONGEST: u64 = 64;

/// Where the keys are kept.
#[derive(Debug, Clone)]
pub struct Keyring {
    dir: PathBuf,
}

impl Keyring {
    /// Makes the directory if it is not there (mode 0700), and takes away what others were allowed there.
    pub fn open(dir: &Path) -> Result<Self, SecureError> {
        let keyring = Self { dir: dir.to_owned() };
        let failed = |source| SecureError::Keys { path: dir.to_owned(), step: "prepare", source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
        Ok(keyring)
    }

    /// The key of that epoch, made now if there is none. On the disk before it is returned.
    pub fn key(&self, epoch: KeyEpoch) -> Result<PrivateKey, SecureError> {
        let path = self.path(epoch);
        if let Some(key) = read(&path)? {
            return Ok(key);
        }
        let failed = |step| {
            let path = path.clone();
            move |source| SecureError::Keys { path, step, source }
        };
        let key = PrivateKey::generate().map_err(failed("make"))?;
        let new = self.dir.join(NEW);
        write(&new, &key).map_err(failed("write"))?;
        failpoint!("netlb.secure.key");
        std::fs::rename(&new, &path).map_err(failed("write"))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed("write"))?;
        Ok(key)
    }

    /// Removes the keys of other epochs; for when no node uses them any more.
    pub fn keep_only(&self, epochs: &[KeyEpoch]) -> Result<(), SecureError> {
        let kept: Vec<PathBuf> = epochs.iter().map(|epoch| self.path(*epoch)).collect();
        let failed = |source| SecureError::Keys { path: self.dir.clone(), step: "look through", source };
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let ours = path.extension().is_some_and(|ending| ending == &ENDING[1..]) || path.ends_with(NEW);
            if ours && !kept.contains(&path) {
                std::fs::remove_file(&path).map_err(|source| SecureError::Keys { path, step: "remove", source })?;
            }
        }
        Ok(())
    }

    fn path(&self, epoch: KeyEpoch) -> PathBuf {
        self.dir.join(format!("{}{ENDING}", epoch.0))
    }
}

/// The key in that file, if there is one. One that others may read is refused: nobody knows who did.
fn read(path: &Path) -> Result<Option<PrivateKey>, SecureError> {
    let failed = |source| SecureError::Keys { path: path.to_owned(), step: "read", source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(SecureError::KeyIsOpen { path: path.to_owned(), mode: mode & 0o777 });
    }
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(LONGEST).expect("64")));
    file.take(LONGEST).read_to_string(&mut text).map_err(failed)?;
    PrivateKey::parse(&text).map(Some).map_err(|_| SecureError::BadKey { path: path.to_owned() })
}

fn write(path: &Path, key: &PrivateKey) -> io::Result<()> {
    // One of an earlier attempt: a crash left it before anybody was told.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(key.text().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_is_made_once_and_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("wireguard");
        let keyring = Keyring::open(&keys).unwrap();
        let first = keyring.key(KeyEpoch(1)).unwrap();
        let second = keyring.key(KeyEpoch(2)).unwrap();
        assert_ne!(first, second);
        assert_eq!(Keyring::open(&keys).unwrap().key(KeyEpoch(1)).unwrap(), first);
        assert_eq!((mode(&keys), mode(&keys.join("1.key"))), (0o700, 0o600));
        keyring.keep_only(&[KeyEpoch(2)]).unwrap();
        assert!(!keys.join("1.key").exists());
        assert_eq!(keyring.key(KeyEpoch(2)).unwrap(), second);
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused_with_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::open(dir.path()).unwrap();
        keyring.key(KeyEpoch(1)).unwrap();
        let file = dir.path().join("1.key");
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let error = keyring.key(KeyEpoch(1)).unwrap_err().to_string();
        assert!(error.contains("640") && error.contains("remove it"), "{error}");
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&file, "no key").unwrap();
        let error = keyring.key(KeyEpoch(1)).unwrap_err().to_string();
        assert!(error.contains("remove it") && !error.contains("no key"), "{error}");
    }

    #[test]
    fn what_a_crash_left_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::open(dir.path()).unwrap();
        std::fs::write(dir.path().join(NEW), "half a k").unwrap();
        keyring.key(KeyEpoch(7)).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
