//! Tasks that were told to stop and have not said that they did: no other task of their slot begins where they are.

use super::hash::ById;
use super::node::{is_active, takes_room};
use skep_types::{NodeId, ServiceId, Task, TaskId, TaskState};
use std::collections::BTreeMap;

/// By service and slot; tasks without a slot have their node from the orchestrator, which waits for the one before.
#[derive(Debug, Default)]
pub(crate) struct Leaving(ById<ServiceId, BTreeMap<u64, Vec<Leaver>>>);

#[derive(Debug)]
struct Leaver {
    task: TaskId,
    node: NodeId,
    /// Its slot was given up: who gets the number anew knows nothing of it.
    is_removed: bool,
}

fn is_leaving(task: &Task) -> bool {
    task.slot != 0 && !is_active(task) && takes_room(task)
}

impl Leaving {
    pub fn add(&mut self, task: &Task) {
        if let (Some(service), Some(node)) = (&task.service_id, &task.node_id)
            && is_leaving(task)
        {
            let slot = self.0.entry(service.clone()).or_default().entry(task.slot).or_default();
            let is_removed = task.desired_state >= TaskState::Remove;
            slot.push(Leaver { task: task.id.clone(), node: node.clone(), is_removed });
        }
    }

    pub fn remove(&mut self, task: &Task) {
        let Some(service) = task.service_id.as_ref().filter(|_| is_leaving(task)) else { return };
        let Some(slots) = self.0.get_mut(service) else { return };
        if let Some(tasks) = slots.get_mut(&task.slot) {
            tasks.retain(|leaver| leaver.task != task.id);
            if tasks.is_empty() {
                slots.remove(&task.slot);
            }
        }
        if slots.is_empty() {
            self.0.remove(service);
        }
    }

    /// Nodes that are nothing for `task` now. One that waits with desired state READY may lie where the one before it stops: it is not
    /// released before. For what is being removed it would not wait.
    pub fn nodes(&self, task: &Task) -> impl Iterator<Item = &NodeId> {
        let waits = task.desired_state == TaskState::Ready;
        let slots = task.service_id.as_ref().and_then(|service| self.0.get(service));
        let leavers = slots.and_then(|slots| slots.get(&task.slot)).into_iter().flatten();
        leavers.filter(move |leaver| leaver.is_removed || !waits).map(|leaver| &leaver.node)
    }

    pub fn concerns(&self, task: &Task) -> bool {
        !self.0.is_empty() && self.nodes(task).next().is_some()
    }
}
