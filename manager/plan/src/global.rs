//! Keeps one task of a global service on every node that takes it (wire-behaviour 11.2).

use crate::constraint::Constraints;
use crate::dirty::Dirt;
use crate::slot::{Context, Host, Run, Slot};
use crate::{restart, update};
use skep_types::{Node, NodeId, TaskState};
use std::collections::BTreeMap;

/// What a node is to the service.
#[derive(Clone, Copy)]
struct Place {
    host: Host,
    /// Its constraints allow the node.
    matches: bool,
}

impl Place {
    fn takes_tasks(self) -> bool {
        self.host == Host::Fine && self.matches
    }
}

/// All nodes: each is asked about several times.
type Places<'a> = BTreeMap<&'a NodeId, Place>;

pub(crate) fn plan(context: &mut Context<'_>) {
    let constraints = Constraints::of(context.service.spec.task.placement.as_ref());
    let view = context.view;
    let place = |node: &Node| Place { host: Host::of(node), matches: constraints.match_node(node) };
    let places: Places<'_> = view.nodes().map(|node| (&node.id, place(node))).collect();
    let mut slots = gather(context, &places);
    for (id, _) in places.iter().filter(|(_, place)| place.takes_tasks()) {
        slots.entry((*id).clone()).or_default();
    }
    let dirt = Dirt::new(view, context.service);
    for (id, slot) in &mut slots {
        if let Some(place) = places.get(id) {
            keep_one(context, id, slot, *place, &dirt);
        }
    }
    // Tasks on paused nodes stay as they are, and what a node was asked to give up is not begun anew there.
    let is_open = |_: &Context<'_>, id: &NodeId| places.get(id).is_some_and(|place| place.takes_tasks());
    update::step(context, &mut slots, &dirt, is_open, |context, node, desired| context.create(0, Some(node.clone()), desired));
    for (id, slot) in &mut slots {
        restart::release_waiting(context, slot, 0, Some(id));
    }
    for slot in slots.into_values() {
        context.settle(slot);
    }
}

/// The tasks by node. Those of a node that no longer exists are deleted.
fn gather(context: &mut Context<'_>, places: &Places<'_>) -> BTreeMap<NodeId, Slot> {
    let mut slots = BTreeMap::<NodeId, Slot>::new();
    for task in context.view.tasks_of_service(&context.service.id) {
        match &task.node_id {
            Some(node) if places.contains_key(node) => {
                if task.desired_state < TaskState::Remove {
                    slots.entry(node.clone()).or_default().runs.push(Run::stored(task));
                }
            }
            _ => context.remove(task),
        }
    }
    slots.values_mut().for_each(Slot::sort);
    slots
}

fn keep_one(context: &mut Context<'_>, id: &NodeId, slot: &mut Slot, place: Place, dirt: &Dirt<'_>) {
    if place.host.gives_up_tasks() || !place.matches {
        slot.want_all(TaskState::Shutdown);
        return;
    }
    if slot.is_live() {
        restart::replace_ended(context, slot, 0, Some(id), &|run| dirt.is_dirty(&run.task));
        return;
    }
    // Stopped because the node was away: start again. Ended by itself: as its policy says.
    if place.host == Host::Fine && restart::may_begin(context, slot) {
        // What the node was told to stop while it was away may run there still: the new task waits for it.
        slot.runs.extend(context.create(0, Some(id.clone()), slot.first_wish(TaskState::Running)));
    }
}
