//! Status reports on their way into the store: the newest per task, while a commit is in flight. Pure.

use skep_types::{Action, ClusterView, TaskId, TaskStatus};
use std::collections::HashMap;

/// Reports that wait. Never more than there are tasks, for a newer report of a task replaces the older.
#[derive(Debug, Default)]
pub struct Reports {
    newest: HashMap<TaskId, TaskStatus>,
}

impl Reports {
    /// Takes a report in. One with a lower state than the one that waits is dropped: observed states only grow.
    pub fn add(&mut self, task: TaskId, status: TaskStatus) {
        match self.newest.entry(task) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(status);
            }
            std::collections::hash_map::Entry::Occupied(mut occupied) => {
                // A report that would go back is no error of the agent's: it may repeat itself after a reconnect.
                let _ = occupied.get_mut().advance(status);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }

    /// All reports that say something new.
    pub fn take(&mut self, view: &impl ClusterView) -> Vec<Action> {
        let mut actions: Vec<(TaskId, TaskStatus)> = std::mem::take(&mut self.newest).into_iter().collect();
        actions.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        actions
            .into_iter()
            .filter(|(id, status)| view.task(id).is_some_and(|task| is_news(&task.status, status)))
            .map(|(task, status)| Action::SetTaskStatus { task, status })
            .collect()
    }
}

/// Whether a report differs from what is stored, apart from who stored it when, and does not go back.
fn is_news(stored: &TaskStatus, report: &TaskStatus) -> bool {
    let TaskStatus { timestamp, state, message, err, container, ports, running_since: _, applied_by: _, applied_at: _ } = stored;
    report.state >= *state
        && !(report.state == *state
            && report.timestamp == *timestamp
            && report.message == *message
            && report.err == *err
            && report.container == *container
            && report.ports == *ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{NodeId, TaskState};

    fn status(state: TaskState, message: &str) -> TaskStatus {
        TaskStatus { state, message: message.into(), ..TaskStatus::default() }
    }

    #[test]
    fn only_the_newest_report_of_a_task_is_kept() {
        let mut reports = Reports::default();
        let task = TaskId::for_test(1);
        reports.add(task.clone(), status(TaskState::Preparing, "pulling"));
        reports.add(task.clone(), status(TaskState::Running, "started"));
        reports.add(task.clone(), status(TaskState::Preparing, "late"));
        assert_eq!(reports.newest[&task].message, "started");
        assert!(!reports.is_empty());
    }

    #[test]
    fn a_report_that_goes_back_or_says_nothing_new_is_dropped() {
        let stored = status(TaskState::Running, "started");
        assert!(!is_news(&stored, &status(TaskState::Starting, "starting")));
        assert!(!is_news(&stored, &stored.clone()));
        assert!(is_news(&stored, &status(TaskState::Running, "healthy")));
        assert!(is_news(&stored, &status(TaskState::Failed, "started")));
        let signed = TaskStatus { applied_by: Some(NodeId::for_test(3)), ..stored.clone() };
        assert!(!is_news(&signed, &stored));
    }
}
