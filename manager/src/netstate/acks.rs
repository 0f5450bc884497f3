//! How far the nodes of one network have come. Pure.

use skep_types::{NodeId, TaskId, Version};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Who has to acknowledge, and what waits for it. The lowest acknowledgement is found at once, however many nodes there are.
#[derive(Debug, Default)]
pub(super) struct Acks {
    nodes: HashMap<NodeId, Stand>,
    /// Of all nodes: addresses wait for them.
    all: Counts,
    /// Of those that answer: tasks wait for them.
    answering: Counts,
    /// Tasks that leave, by the revision since which they do.
    leaving: BTreeSet<(Version, TaskId)>,
}

/// How far a node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) programmed: Version,
    /// Whether it can be expected to say more.
    pub(super) answers: bool,
}

/// How many nodes stand at a revision.
#[derive(Debug, Default)]
struct Counts(BTreeMap<Version, usize>);

impl Counts {
    fn add(&mut self, version: Version) {
        *self.0.entry(version).or_default() += 1;
    }

    fn remove(&mut self, version: Version) {
        if let Some(count) = self.0.get_mut(&version) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&version);
            }
        }
    }

    fn lowest(&self) -> Option<Version> {
        self.0.first_key_value().map(|(version, _)| *version)
    }
}

impl Acks {
    /// Sets how far a node is; `None`: it is not waited for.
    pub(super) fn set(&mut self, node: &NodeId, stand: Option<Stand>) {
        let before = match stand {
            Some(stand) => self.nodes.insert(node.clone(), stand),
            None => self.nodes.remove(node),
        };
        if let Some(before) = before {
            self.all.remove(before.programmed);
            if before.answers {
                self.answering.remove(before.programmed);
            }
        }
        if let Some(stand) = stand {
            self.all.add(stand.programmed);
            if stand.answers {
                self.answering.add(stand.programmed);
            }
        }
    }

    /// Every node that counts has all changes up to here; `None`: no node does.
    pub(super) fn lowest(&self) -> Option<Version> {
        self.all.lowest()
    }

    pub(super) fn wait(&mut self, since: Version, task: TaskId) {
        self.leaving.insert((since, task));
    }

    pub(super) fn forget(&mut self, since: Version, task: &TaskId) {
        self.leaving.remove(&(since, task.clone()));
    }

    /// The tasks that every node that answers has taken out.
    pub(super) fn take_cleared(&mut self) -> Vec<TaskId> {
        let lowest = self.answering.lowest();
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

    fn at(version: u64) -> Option<Stand> {
        Some(Stand { programmed: Version(version), answers: true })
    }

    #[test]
    fn a_task_is_cleared_by_the_last_node_that_is_waited_for() {
        let (one, two, task) = (NodeId::for_test(1), NodeId::for_test(2), TaskId::for_test(1));
        let mut acks = Acks::default();
        acks.set(&one, at(4));
        acks.set(&two, at(9));
        acks.wait(Version(5), task.clone());
        assert_eq!(acks.take_cleared(), []);
        acks.set(&one, at(5));
        assert_eq!((acks.lowest(), acks.take_cleared()), (Some(Version(5)), vec![task.clone()]));
        acks.wait(Version(10), task.clone());
        acks.set(&one, None);
        assert_eq!(acks.take_cleared(), []);
        acks.set(&two, None);
        assert_eq!((acks.lowest(), acks.take_cleared()), (None, vec![task]));
        assert!(acks.is_idle());
    }

    #[test]
    fn a_node_that_does_not_answer_holds_addresses_back_and_no_task() {
        let (one, two, task) = (NodeId::for_test(1), NodeId::for_test(2), TaskId::for_test(1));
        let mut acks = Acks::default();
        acks.set(&one, at(9));
        acks.set(&two, at(4));
        acks.wait(Version(5), task.clone());
        acks.set(&two, Some(Stand { programmed: Version(4), answers: false }));
        assert_eq!((acks.lowest(), acks.take_cleared()), (Some(Version(4)), vec![task.clone()]));
        acks.wait(Version(6), task.clone());
        acks.set(&one, Some(Stand { programmed: Version(5), answers: false }));
        assert_eq!((acks.lowest(), acks.take_cleared()), (Some(Version(4)), vec![task]), "nobody answers");
    }
}
