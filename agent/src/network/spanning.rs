//! What managers say of other nodes taken in, and the waits for them: bounded, and none where nobody is to be waited for.

use super::convert::is_told_of;
use super::held::Phase;
use super::picture::{Changes, Picture};
use super::{NetlbNetwork, State};
use skep_types::{Task, TaskId};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::timeout;

/// For a manager to tell of the networks of a task that it just assigned: both leave it within a tenth of a second.
const TOLD_LIMIT: Duration = Duration::from_secs(3);
/// For all nodes to take a task out of their load balancers before it is stopped. The manager knows which of them still answer, and
/// waits for no other for more than 15 s (`manager/src/netstate/answering.rs`); this is for a manager that says nothing.
pub(super) const CLEARED_LIMIT: Duration = Duration::from_secs(20);

/// Whether a manager tells this node of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Following {
    /// None can be reached, or it does not know of this.
    #[default]
    Nobody,
    /// One was asked to.
    Asked,
    /// One does.
    Told,
}

impl NetlbNetwork {
    /// See [`crate::executor::Network::take`].
    pub(super) fn take_in(&self, changes: Changes) {
        let cleared: BTreeSet<TaskId> = changes.cleared.iter().cloned().collect();
        self.tell(|state| {
            let head = |picture: &Picture| (picture.node_index, picture.vxlan_port, picture.epochs);
            let before = head(&state.picture);
            let news = self.kept.is_some().then(|| changes.clone());
            let is_complete = changes.complete;
            let (touched, strangers) = state.picture.change(changes);
            state.tasks_told(is_complete);
            // Before netlb is told: a network begins with the size that it is to have.
            let encrypted = state.picture.encrypted_path;
            state.ways.look(&mut state.picture, false);
            state.ways.is_owed |= encrypted != state.picture.encrypted_path;
            if let Some(news) = news.filter(|_| !touched.is_empty() || before != head(&state.picture)) {
                state.news.add(news);
            }
            for network in strangers {
                tracing::warn!(%network, "a manager told of changes in a network that this node was not told of");
            }
            state.cleared.extend(cleared.into_iter().filter(|task| state.held.contains_key(task)));
            (touched, ())
        });
    }

    /// See [`crate::executor::Network::following`].
    pub(super) fn follow(&self, following: Following) {
        self.with(|state| state.following = following);
        self.changed.send_replace(());
    }

    /// Waits until a manager told of the task's networks, if one does: a task that starts should find the others.
    pub(super) async fn told_of(&self, task: &Task) {
        let is_told = |state: &State| {
            let spanning = super::joined(task).filter(|attachment| is_told_of(&attachment.network));
            let mut networks = spanning.map(|attachment| &attachment.network.id);
            state.following == Following::Nobody || networks.all(|id| state.picture.networks.contains_key(id))
        };
        if timeout(TOLD_LIMIT, self.until(is_told)).await.is_err() {
            tracing::warn!(task = %task.id, "no manager tells of the task's networks; it may not find those on other nodes yet");
        }
    }

    /// Waits until no node leads to the task any more.
    pub(super) async fn others_cleared(&self, task: &TaskId) {
        // A leader that dies meanwhile is no reason to hurry: the next one says it again, most often within the time there is.
        let is_cleared = |state: &State| !state.others_may_lead_to(task);
        if self.with(|state| state.following == Following::Nobody) {
            return;
        }
        if timeout(CLEARED_LIMIT, self.until(is_cleared)).await.is_err() {
            tracing::warn!(task = %task, "not every node said in time that it leads nobody to the task any more; it is stopped now");
        }
        self.with(|state| {
            if let Some(one) = state.held.get_mut(task)
                && let Phase::Leaving { others_may_lead_here } = &mut one.phase
            {
                *others_may_lead_here = false;
            }
        });
    }

    pub(super) async fn until(&self, holds: impl Fn(&State) -> bool) {
        let mut changed = self.changed.subscribe();
        while !self.with(|state| holds(state)) {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await; // never: we hold the sender
            }
        }
    }
}

impl State {
    /// A message is taken in, which tells of everything or of changes.
    fn tasks_told(&mut self, is_complete: bool) {
        // Of whom nothing is said when everything is, managers tell nobody.
        self.untold.retain(|task| !is_complete && !self.picture.tells_of(task));
    }

    /// Whether other nodes may still lead to the task.
    fn others_may_lead_to(&self, task: &TaskId) -> bool {
        let served = self.held.get(task).is_some_and(|one| one.phase == Phase::Leaving { others_may_lead_here: true });
        served && !self.cleared.contains(task) && (self.untold.contains(task) || self.picture.is_known_elsewhere(task))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixtures::{back, table, web};
    use crate::network::picture::Readiness;

    #[test]
    fn a_task_is_waited_for_only_while_others_may_lead_to_it() {
        let known = back(&[1, 2], &[(1, 1, Readiness::Leaving)]);
        let leaving = |others_may_lead_here| Phase::Leaving { others_may_lead_here };
        let mut state = State { held: table(vec![web(1, true)]), ..State::default() };
        state.picture.node_index = 1;
        state.picture.networks = [(known.network.id.clone(), known.clone())].into();
        let task = TaskId::for_test(1);
        let mut is_waited_for = |change: &dyn Fn(&mut State)| {
            let one = state.held.get_mut(&task).unwrap();
            one.phase = leaving(true);
            state.cleared.clear();
            state.untold.clear();
            state.picture.networks = [(known.network.id.clone(), known.clone())].into();
            change(&mut state);
            state.others_may_lead_to(&task)
        };
        assert!(is_waited_for(&|_| ()));
        assert!(!is_waited_for(&|state| state.cleared.extend([TaskId::for_test(1)])));
        assert!(!is_waited_for(&|state| state.held.get_mut(&TaskId::for_test(1)).unwrap().phase = leaving(false)), "it never served");
        assert!(!is_waited_for(&|state| state.picture.networks.clear()), "nobody knows of it");
        assert!(is_waited_for(&|state| {
            state.picture.networks.clear();
            state.untold.insert(TaskId::for_test(1));
        }));
        assert!(!is_waited_for(&|state| {
            state.picture.networks.values_mut().for_each(|network| network.peers.retain(|index, _| *index != 2));
        }));
    }
    #[test]
    fn a_task_is_untold_until_a_message_has_it_or_would_have_had_it() {
        let known = back(&[1, 2], &[(1, 1, Readiness::Planned)]);
        let mut state = State::default();
        state.picture.networks = [(known.network.id.clone(), known)].into();
        state.untold.extend([1, 9].map(TaskId::for_test));
        state.tasks_told(false);
        assert_eq!(state.untold, [TaskId::for_test(9)].into());
        state.tasks_told(true);
        assert!(state.untold.is_empty());
    }
}
