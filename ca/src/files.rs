//! The identity on disk.
//!
//! ```text
//! <dir>/                     0700
//!   swarm-root-ca.crt        0644  roots, byte for byte as served
//!   swarm-node.crt           0644  chain, leaf first
//!   swarm-node.key           0600  PKCS#8; on a locked manager sealed by the unlock key (module `seal`)
//!   .swarm-node.crt          the next certificate, for a moment
//! ```
//! A renewal changes two files that belong together. Order (spec wire-behaviour 4.4): the new certificate under its dotted name,
//! the key, then the certificate gets its name. A crash in between leaves the new key beside the old certificate, and the
//! matching certificate under the dotted name: [`load`] sees that and finishes the renewal.
//!
//! A change of the unlock key: [`rewrite_key`] for the old and the new one, then the store's data key, then [`rewrite_key`] for the
//! new one alone. At each moment one unlock key opens both.

use crate::identity::{BadIdentity, Identity};
use crate::key::{BadKey, NodeKey};
use crate::roots::{BadRoots, RootBundle};
use crate::seal::{self, Unopened};
use crate::secret::Secret;
use skep_failpoint::failpoint;
use skep_types::UnlockKey;
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
    #[error("{path} is locked; unlock this node with `swarmctl cluster unlock` and the cluster's unlock key")]
    Locked { path: PathBuf },
    #[error(
        "the unlock key does not open {path}; print the present one with `swarmctl cluster unlock-key` on another manager, or, if the \
         key was changed while this node was down, use the one before it"
    )]
    WrongUnlockKey { path: PathBuf },
}

/// Whether there is an identity to load. A directory with roots only (a join that did not end) has none.
#[must_use]
pub fn exists(dir: &Path) -> bool {
    dir.join(KEY).exists() || dir.join(CERTIFICATE).exists()
}

/// Whether the node key is sealed, so that [`load`] needs the unlock key. `false` if there is none.
pub fn is_locked(dir: &Path) -> Result<bool, FileError> {
    match read(&dir.join(KEY)) {
        Ok(text) => Ok(seal::is_sealed(Secret::new(text).expose())),
        Err(FileError::Missing { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Loads and checks the identity. `None` if there is none.
///
/// `unlock` opens a sealed key; for one that is not sealed it is not used.
///
/// # Errors
/// [`FileError::Locked`] and [`FileError::WrongUnlockKey`] change nothing: ask for the key and try again.
pub fn load(dir: &Path, now: SystemTime, unlock: Option<&UnlockKey>) -> Result<Option<Identity>, FileError> {
    if !exists(dir) {
        return Ok(None);
    }
    check_private(dir, 0o022, "0700")?;
    let key_path = dir.join(KEY);
    let key_text = Secret::new(read(&key_path)?);
    check_private(&key_path, 0o077, "0600")?;
    let key_text = unsealed(key_text, &key_path, unlock)?;
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

fn unsealed(text: Secret, path: &Path, unlock: Option<&UnlockKey>) -> Result<Secret, FileError> {
    if !seal::is_sealed(text.expose()) {
        return Ok(text);
    }
    let path = || path.to_owned();
    let unlock = unlock.ok_or_else(|| FileError::Locked { path: path() })?;
    seal::open(text.expose(), unlock).map_err(|unopened| match unopened {
        Unopened::Wrong => FileError::WrongUnlockKey { path: path() },
        Unopened::Damaged => FileError::Content { path: path() },
    })
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
/// or the new one. With `unlock` the key is sealed.
pub fn save(dir: &Path, identity: &Identity, unlock: Option<&UnlockKey>) -> Result<(), FileError> {
    save_roots(dir, identity.roots())?;
    failpoint!("ca.identity.roots_saved");
    let staged_certificate = dir.join(STAGED_CERTIFICATE);
    write(&staged_certificate, &identity.chain_pem(), 0o644)?;
    // The dotted name must be on disk before the key loses its old partner.
    sync_dir(dir)?;
    failpoint!("ca.identity.certificate_staged");
    rewrite_key(dir, identity.key(), &unlock.into_iter().collect::<Vec<_>>())?;
    failpoint!("ca.identity.key_saved");
    rename(&staged_certificate, &dir.join(CERTIFICATE))?;
    sync_dir(dir)
}

/// Writes the node key anew, so that each of `unlock` opens it; with none it is plain. The old file is replaced at once or not at
/// all, and when this returns the new one survives a power cut.
pub fn rewrite_key(dir: &Path, key: &NodeKey, unlock: &[&UnlockKey]) -> Result<(), FileError> {
    let plain = key.pem();
    let text = if unlock.is_empty() { plain } else { seal::seal(&plain, unlock) };
    let staged = dir.join(format!(".{KEY}"));
    write(&staged, text.expose(), 0o600)?;
    failpoint!("ca.key.staged");
    rename(&staged, &dir.join(KEY))?;
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
        assert!(load(&dir, SystemTime::now(), None).unwrap().is_none());
        let identity = identity(&root);
        save(&dir, &identity, None).unwrap();
        let loaded = load(&dir, SystemTime::now(), None).unwrap().unwrap();
        assert_eq!(loaded.chain_pem(), identity.chain_pem());
        assert_eq!(loaded.roots(), identity.roots());
        assert_eq!((mode(&dir), mode(&dir.join(KEY)), mode(&dir.join(CERTIFICATE))), (0o700, 0o600, 0o644));
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, [CERTIFICATE, KEY, ROOTS]);
        remove(&dir).unwrap();
        assert!(load(&dir, SystemTime::now(), None).unwrap().is_none());
    }

    #[test]
    fn an_interrupted_renewal_is_finished_or_undone() {
        let (_temp, dir, root) = setup();
        let (old, new) = (identity(&root), identity(&root));
        save(&dir, &old, None).unwrap();
        // Cut off after the certificate was staged: the old identity is whole.
        write(&dir.join(STAGED_CERTIFICATE), &new.chain_pem(), 0o644).unwrap();
        assert_eq!(load(&dir, SystemTime::now(), None).unwrap().unwrap().chain_pem(), old.chain_pem());
        // Cut off after the key was replaced: the staged certificate is its partner.
        fs::write(dir.join(KEY), new.key().pem().expose()).unwrap();
        assert_eq!(load(&dir, SystemTime::now(), None).unwrap().unwrap().chain_pem(), new.chain_pem());
        assert!(!dir.join(STAGED_CERTIFICATE).exists());
        assert_eq!(load(&dir, SystemTime::now(), None).unwrap().unwrap().chain_pem(), new.chain_pem());
    }

    #[test]
    fn a_locked_identity_opens_with_its_unlock_key_only() {
        let (_temp, dir, root) = setup();
        assert!(!is_locked(&dir).unwrap());
        let (key, wrong) = (UnlockKey::new([1; 32]), UnlockKey::new([2; 32]));
        let identity = identity(&root);
        save(&dir, &identity, Some(&key)).unwrap();
        assert!(is_locked(&dir).unwrap());
        assert_eq!(mode(&dir.join(KEY)), 0o600);
        assert!(!fs::read_to_string(dir.join(KEY)).unwrap().contains("BEGIN PRIVATE KEY"));
        let opened = |key: Option<&UnlockKey>| load(&dir, SystemTime::now(), key);
        assert!(matches!(opened(None), Err(FileError::Locked { .. })));
        let refused = opened(Some(&wrong)).unwrap_err();
        assert!(matches!(refused, FileError::WrongUnlockKey { .. }));
        assert!(refused.to_string().contains("unlock-key"), "{refused}");
        assert_eq!(opened(Some(&key)).unwrap().unwrap().chain_pem(), identity.chain_pem());

        // From one key to the next, then to none.
        let next = UnlockKey::new([3; 32]);
        rewrite_key(&dir, identity.key(), &[&key, &next]).unwrap();
        assert!(opened(Some(&key)).is_ok() && opened(Some(&next)).is_ok() && opened(None).is_err());
        rewrite_key(&dir, identity.key(), &[&next]).unwrap();
        assert!(opened(Some(&key)).is_err() && opened(Some(&next)).is_ok());
        rewrite_key(&dir, identity.key(), &[]).unwrap();
        assert!(opened(None).is_ok() && opened(Some(&key)).is_ok());
        assert!(!is_locked(&dir).unwrap());

        fs::write(dir.join(KEY), "-----BEGIN SKEP SEALED PRIVATE KEY-----\nAQ==\n").unwrap();
        assert!(matches!(opened(Some(&key)), Err(FileError::Content { .. })));
    }

    #[test]
    fn damage_names_the_file_and_the_cure() {
        let (_temp, dir, root) = setup();
        save(&dir, &identity(&root), None).unwrap();
        let refused = || load(&dir, SystemTime::now(), None).unwrap_err();

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
