//! Tasks by something that many tasks share.

use imbl::OrdMap;
use skep_types::{Task, TaskId};
use std::sync::Arc;

/// Holds the tasks themselves, so that walking one key's tasks costs no lookups.
#[derive(Clone)]
pub(super) struct TaskIndex<K: Ord + Clone> {
    by_key: OrdMap<K, OrdMap<TaskId, Arc<Task>>>,
}

impl<K: Ord + Clone> Default for TaskIndex<K> {
    fn default() -> Self {
        Self { by_key: OrdMap::new() }
    }
}

impl<K: Ord + Clone> TaskIndex<K> {
    pub(super) fn insert(&mut self, key: &K, task: &Arc<Task>) {
        match self.by_key.get_mut(key) {
            Some(tasks) => drop(tasks.insert(task.id.clone(), Arc::clone(task))),
            None => drop(self.by_key.insert(key.clone(), OrdMap::unit(task.id.clone(), Arc::clone(task)))),
        }
    }

    pub(super) fn remove(&mut self, key: &K, id: &TaskId) {
        if let Some(tasks) = self.by_key.get_mut(key) {
            tasks.remove(id);
            if tasks.is_empty() {
                self.by_key.remove(key);
            }
        }
    }

    /// Sorted by task id.
    pub(super) fn of(&self, key: &K) -> impl Iterator<Item = &Arc<Task>> + '_ {
        self.by_key.get(key).into_iter().flat_map(OrdMap::values)
    }
}
