//! What is to be told to the manager: the newest status of each task, waiting while there is no session.

use skep_types::{TaskId, TaskStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, watch};

/// Written by the tasks, emptied by the session. As large as there are tasks: only the newest status of each is kept.
#[derive(Clone, Default)]
pub struct Reports(Arc<Shared>);

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    changed: Notify,
    /// Counts the calls that managers acknowledged.
    told: watch::Sender<u64>,
}

#[derive(Default)]
struct Table {
    newest: BTreeMap<TaskId, TaskStatus>,
    unsent: BTreeSet<TaskId>,
    /// Of these a manager has acknowledged the newest status.
    heard: BTreeSet<TaskId>,
}

impl Table {
    fn set(&mut self, task: &TaskId, status: TaskStatus) {
        self.newest.insert(task.clone(), status);
        self.unsent.insert(task.clone());
        self.heard.remove(task);
    }
}

impl Reports {
    /// A new status; one with a lower state than the known one is ignored.
    pub fn put(&self, task: &TaskId, status: TaskStatus) {
        {
            let mut table = self.0.table.lock().expect("no panic while held");
            if table.newest.get(task).is_some_and(|known| known.state > status.state || *known == status) {
                return;
            }
            table.set(task, status);
        }
        self.0.changed.notify_one();
    }

    /// A status that takes the place of a higher one, of which no manager has heard: the task runs again.
    pub fn take_back(&self, task: &TaskId, status: TaskStatus) {
        self.0.table.lock().expect("no panic while held").set(task, status);
        self.0.changed.notify_one();
    }

    /// A manager acknowledged these.
    pub fn told(&self, batch: &[(TaskId, TaskStatus)]) {
        {
            let mut table = self.0.table.lock().expect("no panic while held");
            for (task, status) in batch {
                if table.newest.get(task) == Some(status) {
                    table.heard.insert(task.clone());
                }
            }
        }
        self.0.told.send_modify(|count| *count += 1);
    }

    /// Returns when a manager has acknowledged the newest status of a task. May be dropped any time.
    pub(crate) async fn heard(&self, task: &TaskId) {
        let mut told = self.0.told.subscribe();
        // The sender lives as long as we do.
        while !self.0.table.lock().expect("no panic while held").heard.contains(task) && told.changed().await.is_ok() {}
    }

    /// The task is known but needs no report until the next session.
    pub fn remember(&self, task: &TaskId, status: TaskStatus) {
        self.0.table.lock().expect("no panic while held").newest.entry(task.clone()).or_insert(status);
    }

    pub fn forget(&self, task: &TaskId) {
        let mut table = self.0.table.lock().expect("no panic while held");
        table.newest.remove(task);
        table.unsent.remove(task);
        table.heard.remove(task);
    }

    /// A new session: everything is told again (wire-behaviour 9.3).
    pub fn resend_all(&self) {
        {
            let mut table = self.0.table.lock().expect("no panic while held");
            table.unsent = table.newest.keys().cloned().collect();
        }
        self.0.changed.notify_one();
    }

    /// Sending these failed: they wait again, unless newer ones came.
    pub fn put_back(&self, batch: &[(TaskId, TaskStatus)]) {
        {
            let mut table = self.0.table.lock().expect("no panic while held");
            for (task, _) in batch {
                if table.newest.contains_key(task) {
                    table.unsent.insert(task.clone());
                }
            }
        }
        self.0.changed.notify_one();
    }

    /// Waits until something is to be told and takes it, at most `limit` statuses. Safe to drop: nothing is taken before
    /// it returns.
    pub async fn take(&self, limit: usize) -> Vec<(TaskId, TaskStatus)> {
        loop {
            let batch = self.take_now(limit);
            if !batch.is_empty() {
                return batch;
            }
            self.0.changed.notified().await;
        }
    }

    /// What is to be told now, at most `limit` statuses.
    #[must_use]
    pub fn take_now(&self, limit: usize) -> Vec<(TaskId, TaskStatus)> {
        let mut table = self.0.table.lock().expect("no panic while held");
        let mut batch = Vec::new();
        while batch.len() < limit {
            let Some(task) = table.unsent.pop_first() else { break };
            if let Some(status) = table.newest.get(&task).cloned() {
                batch.push((task, status));
            }
        }
        batch
    }

    /// The newest status of a task.
    #[must_use]
    pub fn newest(&self, task: &TaskId) -> Option<TaskStatus> {
        self.0.table.lock().expect("no panic while held").newest.get(task).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::TaskState;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus { state, ..TaskStatus::default() }
    }

    #[tokio::test]
    async fn only_the_newest_status_of_a_task_is_sent_and_never_a_lower_one() {
        let reports = Reports::default();
        let id = TaskId::for_test(1);
        reports.put(&id, status(TaskState::Preparing));
        reports.put(&id, status(TaskState::Running));
        reports.put(&id, status(TaskState::Ready));
        assert_eq!(reports.take(10).await, [(id.clone(), status(TaskState::Running))]);
        reports.resend_all();
        assert_eq!(reports.take(10).await.len(), 1);
    }

    #[tokio::test]
    async fn what_could_not_be_sent_waits_unless_forgotten() {
        let reports = Reports::default();
        let (one, two) = (TaskId::for_test(1), TaskId::for_test(2));
        reports.put(&one, status(TaskState::Running));
        reports.put(&two, status(TaskState::Running));
        let batch = reports.take(10).await;
        reports.put(&one, status(TaskState::Failed));
        reports.forget(&two);
        reports.put_back(&batch);
        assert_eq!(reports.take(10).await, [(one, status(TaskState::Failed))]);
    }

    #[tokio::test]
    async fn a_status_is_heard_when_its_newest_edition_was_acknowledged() {
        let reports = Reports::default();
        let id = TaskId::for_test(1);
        let is_heard = || tokio::time::timeout(std::time::Duration::from_millis(5), reports.heard(&id));
        reports.put(&id, status(TaskState::Running));
        let batch = reports.take(10).await;
        reports.put(&id, status(TaskState::Failed));
        reports.told(&batch);
        assert!(is_heard().await.is_err(), "of the end nobody was told");
        reports.told(&reports.take(10).await);
        assert!(is_heard().await.is_ok());
        reports.take_back(&id, status(TaskState::Running));
        assert!(is_heard().await.is_err());
        assert_eq!(reports.take(10).await, [(id.clone(), status(TaskState::Running))]);
    }
}
