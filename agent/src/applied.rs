//! Which assignment message this node has applied last: offered to the next manager, which then tells only what came after.
//!
//! It is kept beside the task records, with a sum over the tasks as they were then. After a restart it counts only if the records
//! give the same sum, so a crash in the middle of anything, a record that was lost, or files that a power cut left unequal in age
//! cost a complete message and nothing else. Secrets and configs live in memory only: a node that had any starts with nothing.

use serde::{Deserialize, Serialize};
use skep_types::{Meta, Task, TaskId, TaskStatus};
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// The name of the last message. Written by the worker, read by the session; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied(Arc<Mutex<Option<String>>>);

impl Applied {
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().expect("no panic while held")
    }

    /// What to offer; `None` = everything has to be told.
    pub(crate) fn offer(&self) -> Option<String> {
        self.lock().clone()
    }

    /// From now on nothing is sure until the next [`Ledger::applied`].
    pub(crate) fn doubt(&self) {
        *self.lock() = None;
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Of the cluster that named the message: ids of nodes are unique.
    node: String,
    name: String,
    tasks: u64,
}

/// The worker's end: the tasks it was given, and the file.
pub(crate) struct Ledger {
    path: PathBuf,
    node: String,
    applied: Applied,
    tasks: BTreeMap<TaskId, u64>,
}

impl Ledger {
    pub(crate) fn new(path: &Path, node: &str, applied: Applied) -> Self {
        Self { path: path.to_owned(), node: node.to_owned(), applied, tasks: BTreeMap::new() }
    }

    /// After a restart, when all recorded tasks were given to [`Self::assigned`]. `is_sure`: there is nothing besides them that
    /// only a complete message could put in order.
    pub(crate) fn recover(&self, is_sure: bool) {
        let kept = std::fs::read(&self.path).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
        let name = kept.filter(|kept| is_sure && kept.node == self.node && kept.tasks == self.sum()).map(|kept| kept.name);
        *self.applied.lock() = name;
    }

    pub(crate) fn assigned(&mut self, task: &Task) {
        self.tasks.insert(task.id.clone(), fingerprint(task));
    }

    pub(crate) fn unassigned(&mut self, task: &TaskId) {
        self.tasks.remove(task);
    }

    /// A message is applied to its end. `bare`: this node holds no secrets and configs.
    pub(crate) fn applied(&self, name: String, bare: bool) {
        let written = if bare {
            self.write(&Kept { node: self.node.clone(), name: name.clone(), tasks: self.sum() })
        } else {
            match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        if let Err(error) = written {
            tracing::warn!(%error, path = %self.path.display(), "could not keep what was applied; the next start asks for everything");
        }
        *self.applied.lock() = Some(name);
    }

    /// The node leaves its cluster.
    pub(crate) fn forget(&self) {
        self.applied.doubt();
        // What is left of the file counts for the old node's id only.
        let _ = std::fs::remove_file(&self.path);
    }

    fn write(&self, kept: &Kept) -> std::io::Result<()> {
        let new = self.path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(kept).map_err(std::io::Error::other)?)?;
        skep_failpoint::failpoint!("agent.applied.written");
        std::fs::rename(new, &self.path)
    }

    fn sum(&self) -> u64 {
        self.tasks.values().fold(self.tasks.len() as u64, |sum, part| sum.wrapping_add(*part))
    }
}

/// Of what a manager says of a task: not its status, nor when it was written. Only compared on one node; another version of the
/// program may give other numbers, which costs a complete message.
fn fingerprint(task: &Task) -> u64 {
    let told = Task { status: TaskStatus::default(), meta: Meta::default(), ..task.clone() };
    let mut hasher = DefaultHasher::new();
    // A task that cannot be written has no record either.
    serde_json::to_vec(&told).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::task;
    use skep_types::TaskState;

    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn ledger(&self, node: &str, tasks: &[Task]) -> Ledger {
            let mut ledger = Ledger::new(&self.dir.path().join("applied.json"), node, Applied::default());
            tasks.iter().for_each(|task| ledger.assigned(task));
            ledger
        }

        /// What is offered after a restart with these records.
        fn restart(&self, node: &str, tasks: &[Task], is_sure: bool) -> Option<String> {
            let ledger = self.ledger(node, tasks);
            ledger.recover(is_sure);
            ledger.applied.offer()
        }
    }

    #[test]
    fn after_a_restart_the_name_counts_only_if_the_records_say_the_same() {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        let (one, two) = (task(1, "busybox"), task(2, "busybox"));
        let ledger = bench.ledger("n1", &[one.clone(), two.clone()]);
        ledger.applied("4@77".into(), true);
        assert_eq!(ledger.applied.offer().as_deref(), Some("4@77"));

        let progressed = Task { status: TaskStatus { state: TaskState::Running, ..TaskStatus::default() }, ..one.clone() };
        assert_eq!(bench.restart("n1", &[two.clone(), progressed], true).as_deref(), Some("4@77"), "progress does not matter");
        assert_eq!(bench.restart("n1", &[one.clone(), two.clone()], false), None, "something else is there");
        assert_eq!(bench.restart("n2", &[one.clone(), two.clone()], true), None, "another node, another cluster");
        assert_eq!(bench.restart("n1", std::slice::from_ref(&one), true), None, "a record was lost");
        let stopping = Task { desired_state: TaskState::Shutdown, ..two.clone() };
        assert_eq!(bench.restart("n1", &[one.clone(), stopping], true), None, "a record is newer");

        ledger.applied("5@80".into(), false);
        assert_eq!(ledger.applied.offer().as_deref(), Some("5@80"), "in this life it counts");
        assert_eq!(bench.restart("n1", &[one, two], true), None, "secrets do not outlive the process");
    }

    #[test]
    fn doubt_lasts_until_the_next_message_is_applied() {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        let ledger = bench.ledger("n1", &[]);
        ledger.applied("1@5".into(), true);
        ledger.applied.doubt();
        assert_eq!(ledger.applied.offer(), None);
        ledger.applied("2@6".into(), true);
        assert_eq!(ledger.applied.offer().as_deref(), Some("2@6"));
        std::fs::write(bench.dir.path().join("applied.json"), "{").unwrap();
        assert_eq!(bench.restart("n1", &[], true), None);
    }
}
