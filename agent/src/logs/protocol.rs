//! What agent and log writer say to each other: one JSON object per line and direction. Fields are only ever added: a
//! writer outlives updates of skepd.

use super::options::LogOptions;
use serde::{Deserialize, Serialize};
use skep_types::TaskId;
use std::path::PathBuf;

/// The output of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    pub task: TaskId,
    pub stdout: PathBuf,
    /// Absent for a task with a terminal.
    #[serde(default)]
    pub stderr: Option<PathBuf>,
    /// Where its files are.
    pub dir: PathBuf,
    pub options: LogOptions,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Request {
    /// Reads these fifos from now on; the same again changes nothing.
    Open(Open),
    /// The task ended: writes what is in its fifos and closes them.
    Finish { task: TaskId },
    /// Which tasks are open?
    List,
    /// After the answer nothing is asked on this connection any more: the output of the task's next or present life comes on it
    /// ([`super::tap`]).
    Tap { task: TaskId },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Why it could not be done.
    pub error: Option<String>,
    pub tasks: Vec<TaskId>,
}
