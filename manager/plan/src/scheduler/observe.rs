//! Taking changes of the store into account: what nodes have left, what waits, what failed.

use super::log::Number;
use super::node::{Place, is_active, takes_room};
use super::{Group, SPARE_GROUPS, Scheduler, Waiting, group_key};
use skep_types::{Node, NodeId, Object, Task, TaskState};
use std::sync::Arc;

impl Scheduler {
    pub(super) fn note(&mut self, number: Number, gained: bool) {
        self.log.push(number, gained);
        if gained
            && !self.refused_bound.is_empty()
            && let Some(tasks) = self.refused_bound.remove(&self.places[number as usize].id)
        {
            self.fresh_bound.extend(tasks);
        }
    }

    pub(super) fn observe_node(&mut self, node: &Arc<Node>) {
        let number = match self.numbers.get(&node.id) {
            Some(number) => {
                if !self.places[*number as usize].update(node) {
                    return;
                }
                *number
            }
            None => {
                let number = Number::try_from(self.places.len()).expect("fewer than 2^32 nodes were ever in the cluster");
                self.places.push(Place::new(node));
                self.numbers.insert(node.id.clone(), number);
                number
            }
        };
        self.note(number, true);
    }

    pub(super) fn remove_node(&mut self, id: &NodeId) {
        let Some(number) = self.numbers.remove(id) else { return };
        self.places[number as usize].remove();
        self.log.push(number, false);
        for load in self.loads.values_mut() {
            load.here.remove(&number);
            load.forget_node(number);
            load.drop_standing();
        }
    }

    pub(super) fn observe_task(&mut self, old: Option<&Arc<Task>>, new: Option<&Arc<Task>>) {
        let Some(id) = new.or(old).map(|task| &task.id) else { return };
        let placed = self.tentative.remove(id);
        // What was counted as placed is now committed just so: nothing to count again.
        let confirmed = matches!((&placed, new), (Some(placed), Some(new)) if is_same_claim(placed, new));
        if !confirmed {
            if let Some(placed) = placed {
                self.subtract(&placed);
            }
            let unchanged = matches!((old, new), (Some(old), Some(new)) if is_same_claim(old, new));
            if !unchanged {
                if let Some(old) = old.filter(|old| takes_room(old)) {
                    self.subtract(old);
                }
                if let Some(new) = new.filter(|new| takes_room(new)) {
                    self.add(new);
                }
            }
        }
        if let Some(old) = old {
            self.leaving.remove(old);
        }
        if let Some(new) = new {
            self.leaving.add(new);
        }
        if let (Some(old), Some(new)) = (old, new) {
            self.note_failure(old, new);
        }
        // What its node gained meanwhile is news for it still, when only the words change by which it waits.
        let is_fresh = self.fresh_bound.contains(id);
        if let Some(old) = old.filter(|old| old.status.state == TaskState::Pending) {
            self.forget_pending(old);
        }
        if let Some(new) = new.filter(|new| new.status.state == TaskState::Pending) {
            let is_news = !old.is_some_and(|old| old.status.state == TaskState::Pending && old.desired_state == new.desired_state);
            self.note_pending(new, is_news || is_fresh);
        }
    }

    /// Takes over how a change that was observed before it was written was written in the end: the same object under the version that
    /// the store gave it. What is proposed about it next is measured by that version.
    pub fn confirm(&mut self, written: &Object) {
        let Object::Task(task) = written else { return };
        if task.status.state != TaskState::Pending {
            return;
        }
        let known = match self.bound.get_mut(&task.id) {
            Some(known) => Some(known),
            None => {
                let group = self.groups.get_mut(&group_key(task));
                let waiting = group.and_then(|group| group.tasks.get_mut(|other| other.compare(task.slot, &task.id)));
                waiting.map(|Waiting(_, known)| known)
            }
        };
        if let Some(known) = known {
            *known = Arc::clone(task);
        }
    }

    fn add(&mut self, task: &Task) {
        let Some(number) = task.node_id.as_ref().and_then(|node| self.numbers.get(node)).copied() else { return };
        self.places[number as usize].add(task);
        if let Some(service) = task.service_id.as_ref().filter(|_| is_active(task)) {
            self.loads.entry(service.clone()).or_default().add(number);
        }
        self.note(number, false);
    }

    pub(super) fn subtract(&mut self, task: &Task) {
        let Some(number) = task.node_id.as_ref().and_then(|node| self.numbers.get(node)).copied() else { return };
        self.places[number as usize].subtract(task);
        if let Some(service) = task.service_id.as_ref().filter(|_| is_active(task))
            && let Some(load) = self.loads.get_mut(service)
        {
            load.subtract(number);
            if load.is_idle() {
                self.loads.remove(service);
            }
        }
        self.note(number, true);
    }

    fn note_failure(&mut self, old: &Task, new: &Task) {
        let failed = matches!(new.status.state, TaskState::Failed | TaskState::Rejected) && !old.status.state.is_terminal();
        let number = new.node_id.as_ref().filter(|_| failed).and_then(|node| self.numbers.get(node)).copied();
        if let (Some(number), Some(service)) = (number, &new.service_id) {
            let when = new.status.applied_at.unwrap_or(new.status.timestamp);
            self.loads.entry(service.clone()).or_default().note_failure(new.spec_version, number, when);
        }
    }

    fn note_pending(&mut self, task: &Arc<Task>, is_news: bool) {
        if task.desired_state >= TaskState::Shutdown {
            self.unwanted.insert(task.id.clone(), Arc::clone(task));
        } else if let Some(node) = &task.node_id {
            self.bound.insert(task.id.clone(), Arc::clone(task));
            if is_news {
                self.fresh_bound.insert(task.id.clone());
            } else {
                self.refused_bound.entry(node.clone()).or_default().insert(task.id.clone());
            }
        } else {
            let key = group_key(task);
            let spare = &mut self.scratch.groups;
            let group = self.groups.entry(key.clone()).or_insert_with(|| spare.pop().unwrap_or_default());
            let place = (task.slot, task.id.clone());
            match &group.refusal {
                Some((reason, _)) if **reason == *task.status.err => drop(group.untold.remove(&place)),
                Some(_) => drop(group.untold.insert(place.clone())),
                // Most are placed at once; an attempt that leaves some over notes who is to be told.
                None => {}
            }
            group.tasks.insert(Waiting(task.slot, Arc::clone(task)));
            if is_news || group.refusal.is_none() {
                self.fresh.insert(key);
            } else {
                self.waiting.insert(key);
            }
        }
    }

    fn forget_pending(&mut self, task: &Task) {
        self.unwanted.remove(&task.id);
        if self.bound.remove(&task.id).is_some() {
            self.fresh_bound.remove(&task.id);
            if let Some(node) = &task.node_id
                && let Some(tasks) = self.refused_bound.get_mut(node)
            {
                tasks.remove(&task.id);
                if tasks.is_empty() {
                    self.refused_bound.remove(node);
                }
            }
        }
        let key = group_key(task);
        if let Some(group) = self.groups.get_mut(&key) {
            let place = (task.slot, task.id.clone());
            group.tasks.take(|other| other.compare(task.slot, &task.id));
            group.untold.remove(&place);
            if group.tasks.is_empty() {
                let group = self.groups.remove(&key);
                self.scratch.groups.extend(group.map(Group::emptied));
                self.scratch.groups.truncate(SPARE_GROUPS);
                self.fresh.remove(&key);
                self.waiting.remove(&key);
            }
        }
    }
}

/// Whether both stand for the same claim on the same node.
fn is_same_claim(a: &Task, b: &Task) -> bool {
    takes_room(a) == takes_room(b)
        && (!takes_room(a)
            || (is_same_node(a, b) && is_active(a) == is_active(b) && a.assigned_generic_resources == b.assigned_generic_resources))
}

/// Mostly one is made of the other and shares its id: then the text need not be looked at.
fn is_same_node(a: &Task, b: &Task) -> bool {
    match (&a.node_id, &b.node_id) {
        (Some(a), Some(b)) => std::ptr::eq(a.as_str(), b.as_str()) || a == b,
        (a, b) => a.is_none() && b.is_none(),
    }
}
