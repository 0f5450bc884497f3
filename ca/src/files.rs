//! The identity on disk.
//!
//! ```text
//! <dir>/                     0700
//!   swarm-root-ca.crt        0644  roots, byte for byte as served
//!   swarm-node.crt           0644  chain, leaf first
//!   swarm-node.key           0600  PKCS#8
//!   .swarm-node.crt          the next certificate, for a moment
//! ```
//! A renewal changes two files that belong together. Order (spec wire-behaviour 4.4): the new certificate under its dotted name,
//! the key, then the certificate gets its name. A crash in between leaves the new key beside the old certificate, and the
//! matching certificate under the dotted name: [`load`] sees that and finishes the renewal.

use crate::identity::{BadIdentity, Identity};
use crate::key::{BadKey, NodeKey};
use crate::roots::{BadRoots, RootBundle};
use crate::secret::Secret;
use skep_failpoint::failpoint;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const ROOTS: &str = "swarm-root-ca.crt";
const CERTIFICATE: &str = "swarm-node.crt";
const KEY: &str = "swarm-node.key";
const STAGED_CERTIFICATE: &str = ".swarm-node.crt";

/// Far above any chain; a file of this size is none of ours.
const MAX_FILE: u64 = 1 << 20;

/// Why the identity on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("could not {step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is missing though the rest of the identity is there; restore it, or delete {dir} and join again", dir = path.parent().unwrap_or(path).display())]
    Missing { path: PathBuf },
    #[error("{path} can be read or written by other users (mode {mode:04o}); make it private with `chmod {cure} {path}`")]
    Permissions { path: PathBuf, mode: u32, cure: &'static str },
    #[error("{path} is not what belongs there (too long or not text); restore it, or delete the identity directory and join again")]
    Content { path: PathBuf },
    #[error("{path} is not usable")]
    Roots { path: PathBuf, source: BadRoots },
    #[error("{path} is not usable")]
    Key { path: PathBuf, source: BadKey },
    #[error("the identity in {dir} is not usable")]
    Identity { dir: PathBuf, source: BadIdentity },
}

/// Whether there is an identity to load. A directory with roots only (a join that did not end) has none.
#[must_use]
pub fn exists(dir: &Path) -> bool {
    dir.join(KEY).exists() || dir.join(CERTIFICATE).exists()
}

/// Loads and checks the identity. `None` if there is none.
pub fn load(dir: &Path, now: SystemTime) -> Result<Option<Identity>, FileError> {
    if !exists(dir) {
        return Ok(None);
    }
    check_private(dir, 0o022, "0700")?;
    let key_path = dir.join(KEY);
    let key_text = Secret::new(read(&key_path)?);
    check_private(&key_path, 0o077, "0600")?;
    let key = NodeKey::parse(key_text.expose()).map_err(|source| FileError::Key { path: key_path, source })?;
    let roots = load_roots(dir)?.ok_or_else(|| FileError::Missing { path: dir.join(ROOTS) })?;

    let bad = |source| FileError::Identity { dir: dir.to_owned(), source };
    let staged = dir.join(STAGED_CERTIFICATE);
    let first = match read(&dir.join(CERTIFICATE)) {
        Ok(chain) => Identity::new(key.clone(), &chain, roots.clone(), now).map_err(bad),
        Err(error) => Err(error),
    };
    let interrupted =
        matches!(first, Err(FileError::Missing { .. } | FileError::Identity { source: BadIdentity::Key(BadKey::Mismatch), .. }));
    if interrupted && staged.exists() {
        let identity = Identity::new(key, &read(&staged)?, roots, now).map_err(bad)?;
        rename(&staged, &dir.join(CERTIFICATE))?;
        sync_dir(dir)?;
        tracing::info!(node = %identity.node_id(), "finished an interrupted certificate renewal");
        return Ok(Some(identity));
    }
    first.map(Some)
}

/// The roots alone, as a join in progress has them. `None` if the file is not there.
pub fn load_roots(dir: &Path) -> Result<Option<RootBundle>, FileError> {
    let path = dir.join(ROOTS);
    match read(&path) {
        Ok(pem) => RootBundle::parse(&pem).map(Some).map_err(|source| FileError::Roots { path, source }),
        Err(FileError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the roots; when it returns they survive a power cut.
pub fn save_roots(dir: &Path, roots: &RootBundle) -> Result<(), FileError> {
    make_dir(dir)?;
    let staged = dir.join(format!(".{ROOTS}"));
    write(&staged, roots.pem(), 0o644)?;
    failpoint!("ca.roots.staged");
    rename(&staged, &dir.join(ROOTS))?;
    sync_dir(dir)
}

/// Writes roots, key and certificate; when it returns they survive a power cut, and a crash on the way leaves the old identity
/// or the new one.
pub fn save(dir: &Path, identity: &Identity) -> Result<(), FileError> {
    save_roots(dir, identity.roots())?;
    failpoint!("ca.identity.roots_saved");
    let staged_certificate = dir.join(STAGED_CERTIFICATE);
    write(&staged_certificate, &identity.chain_pem(), 0o644)?;
    // The dotted name must be on disk before the key loses its old partner.
    sync_dir(dir)?;
    failpoint!("ca.identity.certificate_staged");
    let staged_key = dir.join(format!(".{KEY}"));
    write(&staged_key, identity.key().pem().expose(), 0o600)?;
    rename(&staged_key, &dir.join(KEY))?;
    sync_dir(dir)?;
    failpoint!("ca.identity.key_saved");
    rename(&staged_certificate, &dir.join(CERTIFICATE))?;
    sync_dir(dir)
}

/// Forgets the identity (the node left its cluster). Goes on after a failure and returns the first.
pub fn remove(dir: &Path) -> Result<(), FileError> {
    let mut outcome = Ok(());
    for name in [KEY, CERTIFICATE, STAGED_CERTIFICATE, ROOTS, ".swarm-node.key", ".swarm-root-ca.crt"] {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => outcome = outcome.and(Err(FileError::Io { step: "remove", path, source })),
        }
    }
    outcome
}

fn make_dir(dir: &Path) -> Result<(), FileError> {
    let io = |step| move |source| FileError::Io { step, path: dir.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("create directory"))
}

fn read(path: &Path) -> Result<String, FileError> {
    let io = |source| FileError::Io { step: "read", path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() > MAX_FILE => return Err(FileError::Content { path: path.to_owned() }),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(FileError::Missing { path: path.to_owned() }),
        Err(error) => return Err(io(error)),
    }
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(FileError::Content { path: path.to_owned() }),
        other => other.map_err(io),
    }
}

fn check_private(path: &Path, forbidden: u32, cure: &'static str) -> Result<(), FileError> {
    let io = |source| FileError::Io { step: "look at", path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o7777;
    if mode & forbidden != 0 {
        return Err(FileError::Permissions { path: path.to_owned(), mode, cure });
    }
    Ok(())
}

/// Writes a new file and syncs it. A leftover of an earlier crash goes first, so that its mode is not inherited.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let io = |step| move |source| FileError::Io { step, path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("replace")(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(io("create"))?;
    // The process's umask may have taken bits away from 0644.
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(io("set the mode of"))?;
    file.write_all(text.as_bytes()).map_err(io("write"))?;
    file.sync_all().map_err(io("sync"))
}

fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(|source| FileError::Io { step: "rename into place", path: to.to_owned(), source })
}

fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| FileError::Io { step: "sync directory", path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DEFAULT_LIFETIME, RootCa};
    use skep_types::{ClusterId, NodeId};

    fn identity(root: &RootCa) -> Identity {
        let now = SystemTime::now();
        Identity::of_first_manager(root, NodeId::for_test(1), ClusterId::for_test(2), DEFAULT_LIFETIME, now).unwrap()
    }

    fn setup() -> (tempfile::TempDir, PathBuf, RootCa) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/identity");
        (temp, dir, RootCa::generate(SystemTime::now()).unwrap())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn an_identity_survives_the_disk() {
        let (_temp, dir, root) = setup();
        assert!(load(&dir, SystemTime::now()).unwrap().is_none());
        let identity = identity(&root);
        save(&dir, &identity).unwrap();
        let loaded = load(&dir, SystemTime::now()).unwrap().unwrap();
        assert_eq!(loaded.chain_pem(), identity.chain_pem());
        assert_eq!(loaded.roots(), identity.roots());
        assert_eq!((mode(&dir), mode(&dir.join(KEY)), mode(&dir.join(CERTIFICATE))), (0o700, 0o600, 0o644));
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, [CERTIFICATE, KEY, ROOTS]);
        remove(&dir).unwrap();
        assert!(load(&dir, SystemTime::now()).unwrap().is_none());
    }

    #[test]
    fn an_interrupted_renewal_is_finished_or_undone() {
        let (_temp, dir, root) = setup();
        let (old, new) = (identity(&root), identity(&root));
        save(&dir, &old).unwrap();
        // Cut off after the certificate was staged: the old identity is whole.
        write(&dir.join(STAGED_CERTIFICATE), &new.chain_pem(), 0o644).unwrap();
        assert_eq!(load(&dir, SystemTime::now()).unwrap().unwrap().chain_pem(), old.chain_pem());
        // Cut off after the key was replaced: the staged certificate is its partner.
        fs::write(dir.join(KEY), new.key().pem().expose()).unwrap();
        assert_eq!(load(&dir, SystemTime::now()).unwrap().unwrap().chain_pem(), new.chain_pem());
        assert!(!dir.join(STAGED_CERTIFICATE).exists());
        assert_eq!(load(&dir, SystemTime::now()).unwrap().unwrap().chain_pem(), new.chain_pem());
    }

    #[test]
    fn damage_names_the_file_and_the_cure() {
        let (_temp, dir, root) = setup();
        save(&dir, &identity(&root)).unwrap();
        let refused = || load(&dir, SystemTime::now()).unwrap_err();

        fs::set_permissions(dir.join(KEY), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(refused(), FileError::Permissions { mode: 0o644, .. }));
        assert!(refused().to_string().ends_with("swarm-node.key`"), "{}", refused());
        fs::set_permissions(dir.join(KEY), fs::Permissions::from_mode(0o600)).unwrap();

        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(refused(), FileError::Permissions { mode: 0o777, .. }));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();

        let certificate = fs::read(dir.join(CERTIFICATE)).unwrap();
        for cut in [0, 1, certificate.len() / 2, certificate.len() - 3] {
            fs::write(dir.join(CERTIFICATE), &certificate[..cut]).unwrap();
            assert!(matches!(refused(), FileError::Identity { .. }), "cut at {cut}: {}", refused());
        }
        fs::write(dir.join(CERTIFICATE), [0xff; 40]).unwrap();
        assert!(matches!(refused(), FileError::Content { .. }));
        fs::remove_file(dir.join(CERTIFICATE)).unwrap();
        assert!(matches!(refused(), FileError::Missing { .. }));
        fs::write(dir.join(CERTIFICATE), &certificate).unwrap();

        fs::remove_file(dir.join(ROOTS)).unwrap();
        assert!(matches!(refused(), FileError::Missing { .. }));
    }
}
