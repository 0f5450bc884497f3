//! How far the nodes of one network have come. Pure.

use skep_types::{NodeId, TaskId, Version};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Who has to acknowledge, and what waits for it. The lowest acknowledgement is found at once, however many nodes there are.
#[derive(Debug, Default)]
pub(super) struct Acks {
    nodes: HashMap<NodeId, Version>,
    /// How many nodes stand at a revision.
    counts: BTreeMap<Version, usize>,
    /// Tasks that leave, by the revision since which they do.
    leaving: BTreeSet<(Version, TaskId)>,
}

impl Acks {
    /// Sets what a node acknowledged; `None`: it is not waited for.
    pub(super) fn set(&mut self, node: &NodeId, programmed: Option<Version>) {
        let before = match programmed {
            Some(version) => self.nodes.insert(node.clone(), version),
            None => self.nodes.remove(node),
        };
        if let Some(before) = before
            && let Some(count) = self.counts.get_mut(&before)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&before);
            }
        }
        if let Some(version) = programmed {
            *self.counts.entry(version).or_default() += 1;
        }
    }

    /// Every node that is waited for has all changes up to here; `None`: no node is.
    pub(super) fn lowest(&self) -> Option<Version> {
        self.counts.first_key_value().map(|(version, _)| *version)
    }

    pub(super) fn wait(&mut self, since: Version, task: TaskId) {
        self.leaving.insert((since, task));
    }

    pub(super) fn forget(&mut self, since: Version, task: &TaskId) {
        self.leaving.remove(&(since, task.clone()));
    }

    /// The tasks that every node has taken out.
    pub(super) fn take_cleared(&mut self) -> Vec<TaskId> {
        let lowest = self.lowest();
        let mut cleared = Vec::new();
        while let Some((since, _)) = self.leaving.first()
            && lowest.is_none_or(|lowest| *since <= lowest)
            && let Some((_, task)) = self.leaving.pop_first()
        {
            cleared.push(task);
        }
        cleared
    }

    #[cfg(test)]
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.keys()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.nodes.is_empty() && self.leaving.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_cleared_by_the_last_node_that_is_waited_for() {
        let (one, two, task) = (NodeId::for_test(1), NodeId::for_test(2), TaskId::for_test(1));
        let mut acks = Acks::default();
        acks.set(&one, Some(Version(4)));
        acks.set(&two, Some(Version(9)));
        acks.wait(Version(5), task.clone());
        assert_eq!(acks.take_cleared(), []);
        acks.set(&one, Some(Version(5)));
        assert_eq!((acks.lowest(), acks.take_cleared()), (Some(Version(5)), vec![task.clone()]));
        acks.wait(Version(10), task.clone());
        acks.set(&one, None);
        assert_eq!(acks.take_cleared(), []);
        acks.set(&two, None);
        assert_eq!((acks.lowest(), acks.take_cleared()), (None, vec![task]));
        assert!(acks.is_idle());
    }
}
