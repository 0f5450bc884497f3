//! The orchestrators, driven by changes: which services, or which slots of them, are looked at.
//!
//! A service is looked at as a whole when it or anything else changed that may concern all of its slots. When such a look finds
//! nothing to do, the service is *settled*: from then on only those of its slots are looked at whose tasks change. A task that
//! fails among a hundred thousand then costs what it costs among ten.
//!
//! All that is kept between two looks is a cache of the state: when everybody may be looked at again, who is settled, which tasks a
//! slot has. [`Orchestrator::new`] makes it of a view, and one made at any moment of a history decides what one that saw all of it
//! decides (`tests/pipeline.rs` compares them). It is right because no change passes by unobserved: what was proposed is observed
//! as done, and if it is not written, observed once more the other way round; there only do wishes and states go back, and then the
//! whole service is looked at, for who is settled may be so only by what was taken back. Whoever lost changes, or does not know how
//! much of a proposal was written (the feed was too old, the store failed, somebody else leads), makes a new one. Times in it come
//! from the state (a task's creation and the delay of its policy) and from when the leader began, never from when it was looked at.

use crate::agenda::Agenda;
use crate::orchestrate::{Concerned, all_services, plan_service, plan_slot, services_of_node};
use crate::reaper::{is_removable, plan_reaping, plan_reaping_among};
use crate::update::is_under_way;
use crate::{Ids, Plan, Time};
use skep_types::{Change, ClusterView, NodeId, Object, ServiceId, ServiceMode, Task, TaskId, TaskState};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Services looked at before a plan is committed: a leader's first look at thousands is cut into pieces.
const SERVICES_PER_PLAN: usize = 64;
/// The same for single slots.
const SLOTS_PER_PLAN: usize = 1_000;

/// What there is to look at for the orchestrators and the reaper, and the memory that makes it little.
pub struct Orchestrator {
    services: Agenda<ServiceId>,
    slots: Agenda<(ServiceId, u64)>,
    concerned: Concerned,
    settled: HashSet<ServiceId>,
    tasks: TasksBySlot,
    reaping: BTreeSet<ServiceId>,
    reaping_slots: BTreeSet<(ServiceId, u64)>,
    /// The history limit changed. Besides the reaper it concerns those who conclude something from history that is not there.
    history_changed: bool,
}

impl Orchestrator {
    /// As a new leader begins: everything is looked at once.
    #[must_use]
    pub fn new(view: &dyn ClusterView) -> Self {
        let services = all_services(view);
        let mut this = Self {
            services: Agenda::default(),
            slots: Agenda::default(),
            concerned: Concerned::default(),
            settled: HashSet::new(),
            tasks: TasksBySlot::default(),
            reaping: services.clone(),
            reaping_slots: BTreeSet::new(),
            history_changed: false,
        };
        services.into_iter().for_each(|service| this.services.add(service));
        view.tasks().for_each(|task| this.tasks.insert(task));
        this
    }

    /// Takes a change in: each once, in their order.
    pub fn observe(&mut self, change: &Change) {
        self.concerned.add(change);
        match change {
            Change::Created(Object::Task(task)) => {
                self.tasks.insert(task);
                self.note_for_reaper(task);
            }
            Change::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                let has_ended = new.status.state.is_terminal() && !old.status.state.is_terminal();
                // What came before a task that only waited was kept until now.
                let is_released = old.desired_state == TaskState::Ready && new.desired_state != TaskState::Ready;
                if has_ended || is_released || is_removable(new) {
                    self.note_for_reaper(new);
                }
            }
            Change::Removed(Object::Task(task)) => self.tasks.remove(task),
            Change::Removed(Object::Service(service)) => drop(self.reaping.insert(service.id.clone())),
            // What an update was judged by may go now.
            Change::Updated { old: Object::Service(old), new: Object::Service(new) }
                if is_under_way(old) && (!is_under_way(new) || old.spec_version != new.spec_version) =>
            {
                self.reaping.insert(new.id.clone());
            }
            Change::Updated { old: Object::Cluster(old), new: Object::Cluster(new) } => {
                self.history_changed |= old.spec.task_history_retention_limit != new.spec.task_history_retention_limit;
            }
            _ => {}
        }
    }

    fn note_for_reaper(&mut self, task: &Task) {
        if let Some(service) = &task.service_id {
            self.reaping_slots.insert((service.clone(), task.slot));
        }
    }

    /// What services need now. `wake_at` says when to ask again if nothing changes until then.
    pub fn plan(&mut self, view: &dyn ClusterView, ids: &mut dyn Ids, time: impl Into<Time>) -> Plan {
        let time = time.into();
        let now = time.now();
        self.sort_concerned(view);
        let mut plan = self.plan_slots(view, ids, time);
        if plan.changes.is_empty() {
            plan = self.plan_whole(view, ids, time);
        }
        plan.wake_at = [self.services.next(now), self.slots.next(now)].into_iter().flatten().min();
        plan
    }

    /// Decides for what is concerned whether single slots will do.
    fn sort_concerned(&mut self, view: &dyn ClusterView) {
        if std::mem::take(&mut self.history_changed) {
            self.reaping = all_services(view);
            self.concerned.add_services(all_services(view));
        }
        let Concerned { services, nodes, mut slots } = std::mem::take(&mut self.concerned);
        for service in services {
            match slots.remove(&service) {
                Some(slots) => self.look_at_slots(service, slots),
                None => self.look_at_all(service),
            }
        }
        for node in nodes {
            let mut slots = slots_on_node(view, &node);
            for service in services_of_node(view, &node) {
                match slots.remove(&service) {
                    Some(slots) => self.look_at_slots(service, slots),
                    None => self.look_at_all(service),
                }
            }
        }
    }

    fn look_at_all(&mut self, service: ServiceId) {
        self.settled.remove(&service);
        self.services.add(service);
    }

    fn look_at_slots(&mut self, service: ServiceId, slots: BTreeSet<u64>) {
        if self.settled.contains(&service) {
            slots.into_iter().for_each(|slot| self.slots.add((service.clone(), slot)));
        } else {
            self.services.add(service);
        }
    }

    fn plan_slots(&mut self, view: &dyn ClusterView, ids: &mut dyn Ids, time: Time) -> Plan {
        let mut plan = Plan::default();
        loop {
            let due = self.slots.take(time.now(), SLOTS_PER_PLAN);
            if due.is_empty() {
                return plan;
            }
            for (service, slot) in due {
                // Otherwise all of its slots are looked at, this one too.
                if !self.settled.contains(&service) {
                    continue;
                }
                let tasks = self.tasks.of(view, &service, slot);
                match plan_slot(view, &service, (slot, &tasks), ids, time) {
                    Some(Plan { changes, wake_at }) => {
                        plan.changes.extend(changes);
                        if let Some(when) = wake_at {
                            self.slots.at((service, slot), when);
                        }
                    }
                    None => self.look_at_all(service),
                }
            }
            if !plan.changes.is_empty() {
                return plan;
            }
        }
    }

    fn plan_whole(&mut self, view: &dyn ClusterView, ids: &mut dyn Ids, time: Time) -> Plan {
        let mut plan = Plan::default();
        loop {
            let due = self.services.take(time.now(), SERVICES_PER_PLAN);
            if due.is_empty() {
                return plan;
            }
            for service in due {
                let Plan { changes, wake_at } = plan_service(view, &service, ids, time);
                if changes.is_empty() && is_replicated(view, &service) {
                    self.settled.insert(service.clone());
                } else {
                    self.settled.remove(&service);
                }
                if let Some(when) = wake_at {
                    self.services.at(service, when);
                }
                plan.changes.extend(changes);
            }
            if !plan.changes.is_empty() {
                return plan;
            }
        }
    }

    /// Tasks to be deleted, as far as the last [`Orchestrator::plan`] and what was observed since concern them.
    pub fn plan_reaping(&mut self, view: &dyn ClusterView) -> Plan {
        let mut plan = Plan::default();
        for (service, slot) in std::mem::take(&mut self.reaping_slots) {
            if self.reaping.contains(&service) {
                continue;
            }
            if is_replicated(view, &service) {
                plan.merge(plan_reaping_among(view, &service, &self.tasks.of(view, &service, slot)));
            } else {
                self.reaping.insert(service);
            }
        }
        for service in std::mem::take(&mut self.reaping) {
            plan.merge(plan_reaping(view, &service));
        }
        plan
    }
}

fn is_replicated(view: &dyn ClusterView, service: &ServiceId) -> bool {
    view.service(service).is_some_and(|service| matches!(service.spec.mode, ServiceMode::Replicated { .. }))
}

/// The slots that have a task on a node, by service.
fn slots_on_node(view: &dyn ClusterView, node: &NodeId) -> BTreeMap<ServiceId, BTreeSet<u64>> {
    let mut slots = BTreeMap::<ServiceId, BTreeSet<u64>>::new();
    for task in view.tasks_on_node(node) {
        if let Some(service) = task.service_id.as_ref().filter(|service| is_replicated(view, service)) {
            slots.entry(service.clone()).or_default().insert(task.slot);
        }
    }
    slots
}

/// Ids of the tasks of each slot. Tasks without a slot (those of global services) are not in it.
#[derive(Debug, Default)]
struct TasksBySlot(HashMap<ServiceId, HashMap<u64, Vec<TaskId>>>);

impl TasksBySlot {
    fn insert(&mut self, task: &Task) {
        let Some(service) = task.service_id.as_ref().filter(|_| task.slot != 0) else { return };
        // Nearly always one task; the history comes later.
        let slot = self.0.entry(service.clone()).or_default().entry(task.slot).or_insert_with(|| Vec::with_capacity(1));
        if !slot.contains(&task.id) {
            slot.push(task.id.clone());
        }
    }

    fn remove(&mut self, task: &Task) {
        let Some(service) = &task.service_id else { return };
        let Some(slots) = self.0.get_mut(service) else { return };
        if let Some(tasks) = slots.get_mut(&task.slot) {
            tasks.retain(|id| *id != task.id);
            if tasks.is_empty() {
                slots.remove(&task.slot);
            }
        }
        if slots.is_empty() {
            self.0.remove(service);
        }
    }

    fn of(&self, view: &dyn ClusterView, service: &ServiceId, slot: u64) -> Vec<Arc<Task>> {
        let ids = self.0.get(service).and_then(|slots| slots.get(&slot));
        ids.into_iter().flatten().filter_map(|id| view.task(id).cloned()).collect()
    }
}
