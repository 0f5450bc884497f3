//! Which tasks of one slot this node has, and which of them another one has to wait for. Pure.
//!
//! A manager replaces a task when it hears that it ended. What it heard may be old: a node that was cut off before its report was
//! acknowledged starts the task again by itself. When it is reached, it is told in one breath that the task is to go and that
//! another is to run in its place, and two processes of one slot may not have the same volume, nor the same port, at once. Only the
//! node knows what runs on it, so it keeps the order. Tasks that are wanted beside each other, as an update does that starts the
//! new one first, hold nobody.

use skep_types::{ServiceId, Task, TaskId, TaskState};
use std::collections::BTreeMap;

/// The tasks of this node, as far as one may stand in another's way.
#[derive(Debug, Clone, Default)]
pub struct Slots(BTreeMap<TaskId, Member>);

#[derive(Debug, Clone, Default)]
struct Member {
    /// Tasks of global services have number 0; those of no service are in nobody's way.
    slot: Option<(ServiceId, u64)>,
    /// It is to stop, or no assignment names it.
    unwanted: bool,
    /// It may have a process.
    runs: bool,
}

impl Slots {
    /// A task is assigned, or told of anew. Who is unwanted stays so.
    pub fn told(&mut self, task: &Task) {
        let member = self.0.entry(task.id.clone()).or_default();
        member.slot = task.service_id.clone().map(|service| (service, task.slot));
        member.unwanted |= task.desired_state >= TaskState::Shutdown;
    }

    /// No assignment names the task any more.
    pub fn unassigned(&mut self, id: &TaskId) {
        if let Some(member) = self.0.get_mut(id) {
            member.unwanted = true;
        }
    }

    /// A process of the task was found.
    pub fn found(&mut self, id: &TaskId) {
        if let Some(member) = self.0.get_mut(id) {
            member.runs = true;
        }
    }

    /// The task is to be started, and counts as running from now on.
    ///
    /// # Errors
    /// The task it has to wait for; nothing is changed then.
    pub fn start(&mut self, id: &TaskId) -> Result<(), TaskId> {
        if let Some(before) = self.before(id) {
            return Err(before.clone());
        }
        self.found(id);
        Ok(())
    }

    /// The task that has to be gone before this one is started: of the same slot, unwanted, and it may have a process.
    #[must_use]
    pub fn before(&self, id: &TaskId) -> Option<&TaskId> {
        let slot = self.0.get(id)?.slot.as_ref()?;
        let is_before = |other: &Member| other.unwanted && other.runs && other.slot.as_ref() == Some(slot);
        self.0.iter().find(|(other, member)| *other != id && is_before(member)).map(|(other, _)| other)
    }

    /// The task has no process; whether that is news.
    pub fn ended(&mut self, id: &TaskId) -> bool {
        self.0.get_mut(id).is_some_and(|member| std::mem::take(&mut member.runs))
    }

    pub fn forget(&mut self, id: &TaskId) {
        self.0.remove(id);
    }
}

/// Why a task is not started yet, for people.
#[must_use]
pub fn waits_for(before: &TaskId) -> String {
    format!("task {before} of the same slot is still being stopped on this node")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::task;

    fn in_slot(number: u64, slot: u64) -> Task {
        Task { slot, ..task(number, "busybox") }
    }

    fn to_stop(task: &Task) -> Task {
        Task { desired_state: TaskState::Shutdown, ..task.clone() }
    }

    /// Task 1 of slot 1, which runs.
    fn with_one() -> (Slots, Task) {
        let (mut slots, one) = (Slots::default(), in_slot(1, 1));
        slots.told(&one);
        slots.start(&one.id).unwrap();
        (slots, one)
    }

    #[test]
    fn who_is_to_stop_is_waited_for_until_its_process_is_gone() {
        let (mut slots, one) = with_one();
        let two = in_slot(2, 1);
        slots.told(&two);
        slots.told(&to_stop(&one));
        slots.told(&one);
        assert_eq!(slots.start(&two.id), Err(one.id.clone()), "an older edition that comes late does not make it wanted");
        assert!(slots.ended(&one.id));
        assert!(!slots.ended(&one.id));
        assert_eq!(slots.start(&two.id), Ok(()));
    }

    #[test]
    fn who_is_assigned_no_more_is_waited_for_until_it_is_forgotten() {
        let (mut slots, one) = with_one();
        let two = in_slot(2, 1);
        slots.told(&two);
        slots.unassigned(&one.id);
        assert_eq!(slots.before(&two.id), Some(&one.id));
        slots.forget(&one.id);
        assert_eq!(slots.before(&two.id), None);
    }

    #[test]
    fn tasks_that_are_wanted_that_never_ran_or_of_other_slots_hold_nobody() {
        let (mut slots, one) = with_one();
        let (beside, elsewhere) = (in_slot(2, 1), in_slot(3, 2));
        slots.told(&beside);
        slots.told(&elsewhere);
        assert_eq!(slots.start(&beside.id), Ok(()), "an update may start the new one first");
        slots.told(&to_stop(&one));
        assert_eq!(slots.before(&elsewhere.id), None);
        let (never, other) = (in_slot(4, 2), Task { service_id: Some("service2".parse().unwrap()), ..in_slot(5, 1) });
        slots.told(&to_stop(&never));
        slots.told(&other);
        assert_eq!((slots.before(&elsewhere.id), slots.before(&other.id)), (None, None));
        assert_eq!(slots.before(&one.id), None, "nobody waits for itself");
    }

    #[test]
    fn global_tasks_of_one_service_have_one_slot_on_a_node_and_tasks_of_no_service_have_none() {
        for (service, is_held) in [(in_slot(1, 0).service_id, true), (None, false)] {
            let mut slots = Slots::default();
            let [one, two] = [1, 2].map(|number| Task { service_id: service.clone(), ..in_slot(number, 0) });
            slots.told(&one);
            slots.found(&one.id);
            slots.unassigned(&one.id);
            slots.told(&two);
            assert_eq!(slots.start(&two.id).is_err(), is_held);
        }
    }
}
