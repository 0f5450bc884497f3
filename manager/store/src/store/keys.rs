//! The data key: locked by an unlock key or in clear.

use super::Store;
use crate::disk::DiskError;
use crate::disk::keys::Keys;
use crate::error::StoreError;
use crate::open::KEY_FILE;
use crate::seam::blocking;
use skep_types::UnlockKey;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

impl Store {
    /// Whether the store in `dir` opens with an unlock key only. `false` if there is none.
    ///
    /// # Errors
    /// A key file that cannot be read.
    pub fn is_locked(dir: &Path) -> Result<bool, DiskError> {
        match Keys::is_locked(&dir.join(KEY_FILE)) {
            Err(DiskError::MissingFile { .. }) => Ok(false),
            locked => locked,
        }
    }

    /// Keeps the data key sealed by `unlock` from now on, or in clear. The file is replaced at once or not at all.
    ///
    /// A store that was not locked before gets a new data key, because the former one was on the disk in clear: log, vote and
    /// snapshots are sealed with the new one from here on. The former one is kept, sealed as well, for as long as files need it.
    ///
    /// # Errors
    /// [`StoreError::KeyElsewhere`], or why a file could not be written. As long as [`Store::is_locked`] says otherwise, the key is
    /// kept as it was.
    pub async fn rewrap(&self, unlock: Option<&UnlockKey>) -> Result<(), StoreError> {
        let Some(file) = self.0.key_file.clone() else { return Err(StoreError::KeyElsewhere) };
        let (keys, unlock) = (self.0.keys.clone(), unlock.cloned());
        let written = blocking(move || {
            let path = file.lock().unwrap_or_else(PoisonError::into_inner);
            if unlock.is_none() || Keys::is_locked(&path)? {
                return keys.write(&path, unlock.as_ref()).map(|()| false);
            }
            // Nothing is sealed with the new key before it is kept.
            let next = keys.with_new();
            next.write(&path, unlock.as_ref())?;
            skep_failpoint::failpoint!("store.rotate.written");
            keys.become_those(&next);
            Ok(true)
        });
        let rotated = written.await.map_err(|_| StoreError::Stopped)?.map_err(StoreError::Disk)?;
        if rotated {
            let resealed = self.0.log.reseal().await;
            resealed.map_err(|source| DiskError::Io { step: "seal with a new key the log of", path: PathBuf::from("raft"), source })?;
            // The snapshot that there is has the former key, and keeps it from being dropped.
            self.trigger_snapshot().await?;
        }
        Ok(())
    }
}
