//! Services whose tasks end: replicated and global jobs (wire-behaviour 13).

use crate::constraint::Constraints;
use crate::replicated;
use crate::restart;
use crate::slot::{Context, Host, Run, Slot};
use skep_types::{Node, NodeId, NodeState, TaskState};
use std::collections::{BTreeMap, BTreeSet};

/// Tasks of earlier iterations go; those of this one stay in the slot.
fn keep_current(context: &mut Context<'_>, slot: &mut Slot) {
    let iteration = context.service.job_status.map(|status| status.iteration);
    if slot.runs.iter().all(|run| run.task.job_iteration == iteration) {
        return;
    }
    let (now, before) = std::mem::take(&mut slot.runs).into_iter().partition(|run| run.task.job_iteration == iteration);
    slot.runs = now;
    let mut before = Slot { runs: before };
    before.want_all(TaskState::Remove);
    context.settle(before);
}

fn is_complete(slot: &Slot) -> bool {
    slot.runs.iter().any(|run| run.observed() == TaskState::Complete)
}

pub(crate) fn plan_replicated(context: &mut Context<'_>, max_concurrent: u64, total: u64) {
    let mut slots = replicated::gather(context);
    slots.values_mut().for_each(|slot| keep_current(context, slot));
    slots.retain(|_, slot| !slot.runs.is_empty());
    for (number, slot) in &mut slots {
        restart::replace_ended(context, slot, *number, None, &|_| false);
        restart::release_waiting(context, slot, *number, None);
    }
    let complete = slots.values().filter(|slot| is_complete(slot)).count() as u64;
    let active = slots.values().filter(|slot| !is_complete(slot) && slot.is_live()).count() as u64;
    let new = max_concurrent.saturating_sub(active).min(total.saturating_sub(complete).saturating_sub(active));
    // A slot that failed for good is tried no more; it holds its number. One whose task had to leave its node is filled again.
    let is_taken = |slot: &Slot| slot.is_live() || is_complete(slot) || !restart::may_begin(context, slot);
    let taken: BTreeSet<u64> = slots.iter().filter(|(_, slot)| is_taken(slot)).map(|(number, _)| *number).collect();
    for number in (0..total).filter(|number| !taken.contains(number)).take(usize::try_from(new).unwrap_or(usize::MAX)) {
        let first = slots.get(&number).map_or(TaskState::Complete, |slot| slot.first_wish(TaskState::Complete));
        let Some(run) = context.create(number, None, first) else { break };
        slots.entry(number).or_default().runs.push(run);
    }
    for slot in slots.into_values() {
        context.settle(slot);
    }
}

pub(crate) fn plan_global(context: &mut Context<'_>) {
    let view = context.view;
    let mut slots: BTreeMap<&NodeId, (&Node, Slot)> = view.nodes().map(|node| (&node.id, (&**node, Slot::default()))).collect();
    for task in view.tasks_of_service(&context.service.id) {
        match task.node_id.as_ref().and_then(|node| slots.get_mut(node)) {
            Some((_, slot)) if task.desired_state < TaskState::Remove => slot.runs.push(Run::stored(task)),
            Some(_) => {}
            None => context.remove(task),
        }
    }
    for (_, slot) in slots.values_mut() {
        slot.sort();
        keep_current(context, slot);
    }
    let constraints = Constraints::of(context.service.spec.task.placement.as_ref());
    for (node, slot) in slots.values_mut() {
        let host = Host::of(node);
        if is_complete(slot) {
            // It may have been lost from sight, with another one made in its place that waits for its end: that is not needed.
            let is_idle = |run: &&mut Run| run.desired == TaskState::Ready || host.gives_up_tasks();
            let others = slot.runs.iter_mut().filter(|run| run.observed() < TaskState::Complete);
            others.filter(is_idle).for_each(|run| run.want(TaskState::Shutdown));
        } else if host.gives_up_tasks() {
            slot.want_all(TaskState::Shutdown);
        } else if slot.is_live() {
            restart::replace_ended(context, slot, 0, Some(&node.id), &|_| false);
            restart::release_waiting(context, slot, 0, Some(&node.id));
        } else if host == Host::Fine
            && node.status.state == NodeState::Ready
            && constraints.match_node(node)
            && restart::may_begin(context, slot)
        {
            slot.runs.extend(context.create(0, Some(node.id.clone()), slot.first_wish(TaskState::Complete)));
        }
    }
    for (_, slot) in slots.into_values() {
        context.settle(slot);
    }
}
