//! The identity on disk, and the unlock key it is sealed with on a locked manager.
//!
//! One owner of these files while the daemon runs: a renewal and a change of the unlock key never write at the same time.

use anyhow::{Context, Result};
use skep_ca::{FileError, Identity, NodeRole, RootBundle, SecurityConfig, SecurityError, UnlockKey, files};
use skep_store::Store;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::Mutex;

/// What is found at a start.
#[derive(Debug)]
pub enum Found {
    Nothing,
    /// The unlock key is needed.
    Locked,
    Identity(Box<Identity>),
}

/// Could not be written or put to use.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Security(#[from] SecurityError),
}

/// Handle on the directory `identity`. Clones share it.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    /// What the node key of a manager and its store's data key are sealed with; held while either is written.
    unlock: Mutex<Option<UnlockKey>>,
}

impl Vault {
    pub fn new(data_dir: &Path) -> Self {
        Self(Arc::new(Inner { dir: data_dir.join("identity"), unlock: Mutex::new(None) }))
    }

    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// # Errors
    /// Damage, with its cure.
    pub fn find(&self) -> Result<Found, FileError> {
        match files::load(&self.0.dir, SystemTime::now(), None) {
            Ok(Some(identity)) => Ok(Found::Identity(Box::new(identity))),
            Ok(None) => Ok(Found::Nothing),
            Err(FileError::Locked { .. }) => Ok(Found::Locked),
            Err(error) => Err(error),
        }
    }

    /// Loads the identity by the unlock key, which is held from then on. A key that is not needed is not looked at.
    ///
    /// # Errors
    /// [`FileError::WrongUnlockKey`] changes nothing.
    pub async fn unlock(&self, key: UnlockKey) -> Result<Option<Identity>, FileError> {
        let mut unlock = self.0.unlock.lock().await;
        let identity = files::load(&self.0.dir, SystemTime::now(), Some(&key))?;
        *unlock = Some(key);
        Ok(identity)
    }

    /// Seals the node key with the key that is held and no other: a change of the unlock key that was cut short is over.
    pub async fn settle(&self, identity: &Identity) -> Result<(), FileError> {
        let unlock = self.0.unlock.lock().await;
        files::rewrite_key(&self.0.dir, identity.key(), &unlock.iter().collect::<Vec<_>>())
    }

    /// What the next identity of a manager is sealed with.
    pub async fn hold(&self, key: Option<UnlockKey>) {
        *self.0.unlock.lock().await = key;
    }

    pub async fn key(&self) -> Option<UnlockKey> {
        self.0.unlock.lock().await.clone()
    }

    /// Writes an identity and puts it to use. Workers' keys are never sealed (wire-behaviour 5).
    pub async fn adopt(&self, security: &SecurityConfig, identity: Identity) -> Result<(), AdoptError> {
        let unlock = self.0.unlock.lock().await;
        let sealed_by = unlock.as_ref().filter(|_| identity.role() == NodeRole::Manager);
        files::save(&self.0.dir, &identity, sealed_by)?;
        skep_failpoint::failpoint!("skepd.identity.saved");
        security.install(identity)?;
        Ok(())
    }

    /// Writes roots that the identity in use holds under.
    pub async fn save_roots(&self, roots: &RootBundle) -> Result<(), FileError> {
        let _unlock = self.0.unlock.lock().await;
        files::save_roots(&self.0.dir, roots)
    }

    /// Seals the node key and the store's data key with another unlock key, or with none. At every moment one key opens both.
    /// Tells whether anything had to be done.
    ///
    /// # Errors
    /// What of it could not be written; repeating goes on where it ended.
    pub async fn reseal(&self, security: &SecurityConfig, store: &Store, new: Option<UnlockKey>) -> Result<bool> {
        let mut unlock = self.0.unlock.lock().await;
        if *unlock == new {
            return Ok(false);
        }
        let identity = security.identity().context("a manager has an identity")?;
        if let (Some(old), Some(new)) = (&*unlock, &new) {
            files::rewrite_key(&self.0.dir, identity.key(), &[old, new])?;
            skep_failpoint::failpoint!("skepd.reseal.both");
        }
        store.rewrap(new.as_ref()).await.context("cannot seal the store's data key")?;
        skep_failpoint::failpoint!("skepd.reseal.store");
        files::rewrite_key(&self.0.dir, identity.key(), &new.iter().collect::<Vec<_>>())?;
        skep_failpoint::failpoint!("skepd.reseal.identity");
        *unlock = new;
        Ok(true)
    }

    /// Forgets the identity on disk and the unlock key.
    pub async fn clear(&self) -> Result<(), FileError> {
        let mut unlock = self.0.unlock.lock().await;
        *unlock = None;
        files::remove(&self.0.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_ca::{DEFAULT_LIFETIME, RootCa};
    use skep_types::{ClusterId, NodeId};

    fn identity() -> Identity {
        let (root, now) = (RootCa::generate(SystemTime::now()).unwrap(), SystemTime::now());
        Identity::of_first_manager(&root, NodeId::for_test(1), ClusterId::for_test(2), DEFAULT_LIFETIME, now).unwrap()
    }

    #[tokio::test]
    async fn what_a_locked_manager_adopts_opens_by_its_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let (vault, security) = (Vault::new(dir.path()), SecurityConfig::without_identity().unwrap());
        assert!(matches!(vault.find().unwrap(), Found::Nothing));
        let key = UnlockKey::new([5; 32]);
        vault.hold(Some(key.clone())).await;
        vault.adopt(&security, identity()).await.unwrap();
        assert!(security.identity().is_some());

        let later = Vault::new(dir.path());
        assert!(matches!(later.find().unwrap(), Found::Locked));
        let wrong = later.unlock(UnlockKey::new([6; 32])).await.unwrap_err();
        assert!(matches!(wrong, FileError::WrongUnlockKey { .. }));
        assert_eq!(later.key().await, None);
        assert!(later.unlock(key.clone()).await.unwrap().is_some());
        assert_eq!(later.key().await, Some(key));
        later.clear().await.unwrap();
        assert!(matches!(later.find().unwrap(), Found::Nothing));
    }
}
