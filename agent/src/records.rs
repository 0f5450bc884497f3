//! The tasks of this node on its disk: `<data>/agent/tasks/<task id>.json`; and the containers that are no tasks, in
//! `<data>/agent/containers`.
//!
//! Read at start only. A record is replaced by rename, so that it is whole at any moment; it is not synced: after a
//! power cut no process of the task is left either, and the manager sends the task again.

use crate::error::AgentError;
use crate::task::Alone;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skep_types::{Task, TaskId, TaskStatus};
use std::fs;
use std::io::Write;
use std::marker::PhantomData;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One task as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub task: Task,
    /// What this node observed; it wins over the status inside the task.
    pub status: TaskStatus,
    #[serde(default)]
    pub alone: Alone,
    /// No assignment names it any more: it goes, and who takes its place waits for that, also after a restart.
    #[serde(default)]
    pub unassigned: bool,
}

/// What there is one record of.
pub trait Recorded: Serialize + DeserializeOwned {
    fn id(&self) -> &TaskId;
}

impl Recorded for Record {
    fn id(&self) -> &TaskId {
        &self.task.id
    }
}

/// The records of tasks.
pub type Records = RecordDir<Record>;

/// A directory of records.
#[derive(Debug, Clone)]
pub struct RecordDir<R> {
    dir: PathBuf,
    kind: PhantomData<R>,
}

impl<R: Recorded> RecordDir<R> {
    /// # Errors
    /// If the directory cannot be made.
    pub fn open(dir: &Path) -> Result<Self, AgentError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| AgentError::Directory { path: dir.to_owned(), source })?;
        Ok(Self { dir: dir.to_owned(), kind: PhantomData })
    }

    /// All records. Half-written files of a crash are removed; a record that a power cut damaged is set aside as `.bad`
    /// with a warning, as the manager will send its task again.
    ///
    /// # Errors
    /// If the directory or a file in it cannot be read.
    pub fn load(&self) -> Result<Vec<R>, AgentError> {
        let directory = |source| AgentError::Directory { path: self.dir.clone(), source };
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(directory)? {
            let path = entry.map_err(directory)?.path();
            if path.extension().is_some_and(|end| end == "new") {
                fs::remove_file(&path).map_err(directory)?;
            } else if path.extension().is_some_and(|end| end == "json") {
                let text = fs::read(&path).map_err(directory)?;
                match serde_json::from_slice(&text) {
                    Ok(record) => records.push(record),
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "damaged task record set aside");
                        fs::rename(&path, path.with_extension("bad")).map_err(directory)?;
                    }
                }
            }
        }
        Ok(records)
    }

    /// # Errors
    /// Of the file system, such as a full disk; the old record is still there then.
    pub fn save(&self, record: &R) -> std::io::Result<()> {
        self.write(record, false)
    }

    /// The same, and it is there after a power cut: of what nobody else remembers.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_for_good(&self, record: &R) -> std::io::Result<()> {
        self.write(record, true)
    }

    fn write(&self, record: &R, is_synced: bool) -> std::io::Result<()> {
        let path = self.path(record.id());
        let new = path.with_extension("new");
        let text = serde_json::to_vec(record).map_err(std::io::Error::other)?;
        // Readable by root only: it may hold credentials for a registry.
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        if is_synced {
            file.sync_all()?;
        }
        skep_failpoint::failpoint!("agent.record.written");
        fs::rename(&new, &path)?;
        if is_synced { fs::File::open(&self.dir)?.sync_all() } else { Ok(()) }
    }

    /// # Errors
    /// Of the file system; no record is not an error.
    pub fn remove(&self, task: &TaskId) -> std::io::Result<()> {
        match fs::remove_file(self.path(task)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn path(&self, task: &TaskId) -> PathBuf {
        self.dir.join(format!("{task}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::task;
    use skep_types::TaskState;

    #[test]
    fn records_are_read_back_and_remains_of_a_crash_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("tasks")).unwrap();
        let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        let record = Record { task: task(1, "busybox"), status, alone: Alone::default(), unassigned: false };
        records.save(&record).unwrap();
        fs::write(dir.path().join("tasks/x.new"), "{").unwrap();
        assert_eq!(records.load().unwrap(), [record.clone()]);
        assert!(!dir.path().join("tasks/x.new").exists());
        records.remove(&record.task.id).unwrap();
        records.remove(&record.task.id).unwrap();
        assert_eq!(records.load().unwrap(), []);
    }

    #[test]
    fn a_damaged_record_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        fs::write(dir.path().join("x.json"), "{").unwrap();
        assert_eq!(records.load().unwrap(), []);
        assert!(dir.path().join("x.bad").exists());
    }
}
