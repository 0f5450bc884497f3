//! Keeps a replicated service at its replica count (wire-behaviour 11.1).

use crate::dirty::Dirt;
use crate::slot::{Context, Run, Slot};
use crate::{restart, update};
use skep_types::{NodeId, Task, TaskState, UpdateState};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub(crate) fn plan(context: &mut Context<'_>, replicas: u64) {
    let mut slots = gather(context);
    scale(context, &mut slots, usize::try_from(replicas).unwrap_or(usize::MAX));
    let (view, service) = (context.view, context.service);
    let dirt = Dirt::new(view, service);
    for (number, slot) in &mut slots {
        restart::replace_ended(context, slot, *number, None, &|run| dirt.is_dirty(&run.task));
    }
    update::step(context, &mut slots, &dirt, |_, _| true, |context, number, desired| context.create(*number, None, desired));
    for (number, slot) in &mut slots {
        restart::release_waiting(context, slot, *number, None);
    }
    for slot in slots.into_values() {
        context.settle(slot);
    }
}

/// One slot of a service that needs nothing else. `None`: the slot is one that only a look at all of them can judge.
///
/// Does what [`plan`] does for this slot while all others stay as they are: those are counted, none is surplus and no update runs.
pub(crate) fn plan_slot(context: &mut Context<'_>, number: u64, tasks: &[Arc<Task>]) -> Option<()> {
    let status = context.service.update_status.as_ref().map_or(UpdateState::Unknown, |status| status.state);
    if !matches!(status, UpdateState::Unknown | UpdateState::Completed | UpdateState::RollbackCompleted) {
        return None;
    }
    let mut slots = by_slot(tasks);
    // Everything in it is being removed, and was when all slots were looked at: it does not count.
    let Some(mut slot) = slots.remove(&number) else { return Some(()) };
    let dirt = Dirt::new(context.view, context.service);
    if slot.live().count() != 1 || slot.live().any(|run| dirt.is_dirty(&run.task)) {
        return None;
    }
    restart::replace_ended(context, &mut slot, number, None, &|run| dirt.is_dirty(&run.task));
    restart::release_waiting(context, &mut slot, number, None);
    context.settle(slot);
    Some(())
}

/// The tasks by slot number, without those that are being removed.
pub(crate) fn gather(context: &Context<'_>) -> BTreeMap<u64, Slot> {
    by_slot(context.view.tasks_of_service(&context.service.id))
}

fn by_slot<'a>(tasks: impl IntoIterator<Item = &'a Arc<Task>>) -> BTreeMap<u64, Slot> {
    let mut slots = BTreeMap::<u64, Slot>::new();
    for task in tasks {
        if task.desired_state < TaskState::Remove {
            slots.entry(task.slot).or_default().runs.push(Run::stored(task));
        }
    }
    slots.values_mut().for_each(Slot::sort);
    slots
}

/// A slot counts if it has a live task, or if its last one ended and its policy says to leave it at that.
fn counts(context: &Context<'_>, slot: &Slot) -> bool {
    slot.is_live() || slot.runs.len().checked_sub(1).is_some_and(|newest| !restart::is_allowed(context, slot, newest))
}

fn scale(context: &mut Context<'_>, slots: &mut BTreeMap<u64, Slot>, wanted: usize) {
    let counted: Vec<u64> = slots.iter().filter(|(_, slot)| counts(context, slot)).map(|(number, _)| *number).collect();
    if counted.len() < wanted {
        fill(context, slots, &counted, wanted - counted.len());
    } else if counted.len() > wanted {
        for number in victims(slots, &counted, counted.len() - wanted) {
            slots.get_mut(&number).expect("victims are taken from the slots").want_all(TaskState::Remove);
        }
    }
    // Numbers that are not needed any more keep no history either.
    let surplus = |(number, slot): (&u64, &mut Slot)| {
        if !slot.is_live() && counted.binary_search(number).is_err() {
            slot.want_all(TaskState::Remove);
        }
    };
    slots.iter_mut().for_each(surplus);
}

fn fill(context: &mut Context<'_>, slots: &mut BTreeMap<u64, Slot>, counted: &[u64], missing: usize) {
    let mut taken = counted.iter().copied().peekable();
    let free = (1u64..).filter(move |number| {
        while taken.peek().is_some_and(|first| first < number) {
            taken.next();
        }
        taken.peek() != Some(number)
    });
    for number in free.take(missing) {
        // One that its node does not suit any more was asked to stop.
        let first = slots.get(&number).map_or(TaskState::Running, |slot| slot.first_wish(TaskState::Running));
        let Some(run) = context.create(number, None, first) else { return };
        slots.entry(number).or_default().runs.push(run);
    }
}

/// Which slots go: dead ones, then those not yet on a node or on several, then so that the nodes end up even.
fn victims(slots: &BTreeMap<u64, Slot>, counted: &[u64], surplus: usize) -> Vec<u64> {
    let mut by_node = HashMap::<&NodeId, Vec<(bool, u64)>>::new();
    let mut ranked = Vec::with_capacity(counted.len());
    for number in counted {
        let slot = &slots[number];
        let mut live = slot.live();
        match (live.next(), live.next()) {
            (None, _) => ranked.push((3u8, 0usize, *number)),
            (Some(run), None) => match &run.task.node_id {
                Some(node) => by_node.entry(node).or_default().push((run.observed() != TaskState::Running, *number)),
                None => ranked.push((2, 0, *number)),
            },
            (Some(_), Some(_)) => ranked.push((2, 0, *number)),
        }
    }
    for copies in by_node.values_mut() {
        copies.sort_unstable(); // running ones and low numbers first, so those stay
        ranked.extend(copies.iter().enumerate().map(|(index, (_, number))| (1, index, *number)));
    }
    ranked.sort_unstable_by_key(|rank| Reverse(*rank));
    ranked.into_iter().take(surplus).map(|(_, _, number)| number).collect()
}
