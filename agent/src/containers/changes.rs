//! What a container changed of its image: the uppermost directory of its overlay against those below.

use super::{Containers, ContainersError};
use crate::containerd::{layers, open_in_layers};
use skep_types::TaskId;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// A container that changed more is shown so many.
const LIMIT: usize = 100_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Absolute, in the container.
    pub path: String,
    pub kind: ChangeKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Modified,
    Added,
    Deleted,
}

fn collect(upper: &Path, below: &[PathBuf], inside: &str, changes: &mut Vec<Change>) -> std::io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(upper.join(inside.trim_start_matches('/')))?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if changes.len() >= LIMIT {
            return Ok(());
        }
        let path = format!("{inside}/{}", entry.file_name().to_string_lossy());
        let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
        // overlayfs: a character device 0/0 stands for what was removed.
        let kind = if meta.file_type().is_char_device() && meta.rdev() == 0 {
            ChangeKind::Deleted
        } else if open_in_layers(below, &path).is_some() {
            ChangeKind::Modified
        } else {
            ChangeKind::Added
        };
        changes.push(Change { path: path.clone(), kind });
        if meta.is_dir() {
            collect(upper, below, &path, changes)?;
        }
    }
    Ok(())
}

impl Containers {
    /// # Errors
    /// If it is a task's and does not run: its files are there only as long as its process.
    pub async fn changes(&self, id: &TaskId) -> Result<Vec<Change>, ContainersError> {
        if self.facts(id)?.local.is_none() {
            self.running(id)?;
        }
        let layers = layers(&self.0.executor.root_mounts(id).await?);
        let looked = tokio::task::spawn_blocking(move || {
            let Some((upper, below)) = layers.split_first() else { return Ok(Vec::new()) };
            let mut changes = Vec::new();
            collect(upper, below, "", &mut changes).map_err(ContainersError::io("read", upper))?;
            Ok(changes)
        });
        looked.await.map_err(|_| ContainersError::Ending)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_files_are_told_from_changed_ones() {
        let (upper, lower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (dir, path) in [(lower.path(), "etc/old"), (upper.path(), "etc/old"), (upper.path(), "etc/new"), (upper.path(), "srv/x")] {
            fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
            fs::write(dir.join(path), "").unwrap();
        }
        let mut changes = Vec::new();
        collect(upper.path(), &[lower.path().to_owned()], "", &mut changes).unwrap();
        let told: Vec<String> = changes.iter().map(|change| format!("{:?} {}", change.kind, change.path)).collect();
        assert_eq!(told, ["Modified /etc", "Added /etc/new", "Modified /etc/old", "Added /srv", "Added /srv/x"]);
    }
}
