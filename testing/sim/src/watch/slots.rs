//! Slots: whose turn it is in them, and how many an update has in work.

use super::Watch;
use crate::limits::{Place, SLACK};
use crate::queue::Moment;
use crate::transitions::may_run;
use skep_plan::{Constraints, MAX_STOP_WAIT};
use skep_store::{Commit, View};
use skep_types::{
    Availability, Change, ClusterView as _, NodeId, NodeState, Object, Service, ServiceId, Task, TaskState, UpdateOrder, UpdateState,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Watch {
    /// I4: whoever lets a task run, or makes one that is to run, has to be sure of those before it in its slot.
    pub(super) fn releases(&mut self, commits: &[Commit], (seen, before, after): (&View, &View, &View), now: Moment) {
        for change in commits.iter().flat_map(|commit| &commit.changes) {
            let (task, is_new) = match change {
                Change::Updated { old: Object::Task(old), new: Object::Task(new) }
                    if old.desired_state == TaskState::Ready && new.desired_state == TaskState::Running =>
                {
                    (new, false)
                }
                Change::Created(Object::Task(task)) if task.desired_state == TaskState::Running => (task, true),
                _ => continue,
            };
            let Some(service) = task.service_id.as_ref().filter(|service| !self.start_first.contains(*service)) else { continue };
            let patience_over = !is_new && now + SLACK >= self.memory.born(&task.id).0 + MAX_STOP_WAIT;
            let same_place = |other: &&Arc<Task>| other.slot == task.slot && (task.slot != 0 || other.node_id == task.node_id);
            for other in before.tasks_of_service(service).filter(same_place).filter(|other| other.id != task.id) {
                let is_down = |id: &NodeId| seen.node(id).is_none_or(|node| node.status.state == NodeState::Down);
                let silent = other.node_id.as_ref().is_none_or(is_down);
                if after.task(&other.id).is_none_or(|other| other.status.state.is_terminal()) {
                    continue;
                }
                // One that was never let run has no process: it may be given up for another.
                if other.desired_state <= TaskState::Ready {
                    continue;
                }
                // What is being removed frees its number at once, as in the original.
                let leaving = other.desired_state >= TaskState::Remove || (is_new && other.desired_state >= TaskState::Shutdown);
                let same_node = task.node_id.is_some() && task.node_id == other.node_id;
                if may_run(other.status.state) && (same_node || !(silent || patience_over)) && !leaving {
                    let words = format!("task {} may run while task {} of its slot is still {}", task.id, other.id, other.status.state);
                    return self.fail("I4", words);
                }
            }
        }
    }

    /// I7: slots that an update begins in this commit, with those it has in work, are at most as many as it may have.
    ///
    /// A task that is stopped because its node takes none is not of the update. Whether it was so, who decided says: what has come
    /// back while this was being written was still away for it. Nor is one of it that was given up.
    pub(super) fn update_steps(&mut self, commits: &[Commit], (seen, before, after): (&View, &View, &View), now: Moment) {
        let mut begun = BTreeMap::<&ServiceId, BTreeSet<(u64, Option<&NodeId>)>>::new();
        for change in commits.iter().flat_map(|commit| &commit.changes) {
            let Change::Updated { old: Object::Task(old), new: Object::Task(new) } = change else { continue };
            let Some(service) = new.service_id.as_ref().and_then(|id| after.service(id)) else { continue };
            let fine = |id: &NodeId| {
                seen.node(id).is_some_and(|node| {
                    node.status.state != NodeState::Down
                        && node.spec.availability != Availability::Drain
                        && Constraints::of(service.spec.task.placement.as_ref()).match_node(node)
                })
            };
            let stopped = old.desired_state <= TaskState::Running && new.desired_state == TaskState::Shutdown;
            let alive = !new.status.state.is_terminal() && new.node_id.as_ref().is_some_and(fine);
            let of_update = |task: &Task| !self.has_successor(before, task, service) && !self.was_given_up(old, commits, seen, now);
            if stopped && alive && new.spec_version != service.spec_version && of_update(new) {
                begun.entry(&service.id).or_default().insert((new.slot, new.node_id.as_ref().filter(|_| new.slot == 0)));
            }
        }
        for (id, slots) in begun {
            let Some(service) = after.service(id).filter(|service| !service.spec.mode.is_job()) else { continue };
            let state = service.update_status.as_ref().map_or(UpdateState::Unknown, |status| status.state);
            let config = match state {
                UpdateState::RollbackStarted => &service.spec.rollback,
                _ => &service.spec.update,
            };
            let config = config.clone().unwrap_or_default();
            // With start-first an old task is stopped when the new one runs: those are no new slots.
            if config.order == UpdateOrder::StartFirst || config.parallelism == 0 {
                continue;
            }
            let begun: BTreeSet<Place> = slots.into_iter().map(|(slot, node)| (slot, node.cloned())).collect();
            // What ended in this very write is in work no more.
            let goes_on = &self.slots_in_work(service, before) & &self.slots_in_work(service, after);
            let count = begun.union(&goes_on).count() as u64;
            if count > config.parallelism {
                let words = format!("{count} slots of {} are in work, by an update of {} at a time", service.name(), config.parallelism);
                return self.fail("I7", words);
            }
            if matches!(state, UpdateState::Paused | UpdateState::RollbackPaused) {
                return self.fail("I7", format!("service {} stops slots for an update that is paused", service.name()));
            }
        }
    }

    /// Whether the task was never let run, because on its own node the one before it does not stop, and after a minute of that another one
    /// was made for any node (`release_waiting` of the restarts): the one before was stopped long ago, the slot has nothing to lose, and
    /// it is so in slots that an update has not come to, too. What an update begins by stopping waits at first; this one runs at once.
    fn was_given_up(&self, task: &Task, commits: &[Commit], seen: &View, now: Moment) -> bool {
        let same_slot = |other: &Task| other.service_id == task.service_id && other.slot == task.slot && other.id != task.id;
        let stops = |other: &Task| other.desired_state >= TaskState::Shutdown && may_run(other.status.state);
        let stops_here = |other: &&Arc<Task>| same_slot(other) && stops(other) && other.node_id == task.node_id;
        let runs_at_once = |change: &Change| matches!(change, Change::Created(Object::Task(other)) if same_slot(other) && other.desired_state == TaskState::Running);
        task.slot != 0
            && task.desired_state == TaskState::Ready
            && now + SLACK >= self.memory.born(&task.id).0 + MAX_STOP_WAIT
            && task.service_id.as_ref().is_some_and(|service| seen.tasks_of_service(service).any(|other| stops_here(&other)))
            && commits.iter().flat_map(|commit| &commit.changes).any(runs_at_once)
    }

    /// Whether the slot has a task of the present spec already: then the old one is only cleared away. Where a user once had new tasks
    /// start first, any other one that is wanted will do.
    fn has_successor(&self, before: &View, task: &Task, service: &Service) -> bool {
        let any = self.may_overlap(&service.id);
        before.tasks_of_service(&service.id).any(|other| {
            other.slot == task.slot
                && (task.slot != 0 || other.node_id == task.node_id)
                && other.id != task.id
                && other.desired_state <= TaskState::Running
                && (any || other.spec_version == service.spec_version)
        })
    }
}
