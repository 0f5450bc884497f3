//! Gives every pending task a node, or says why there is none (wire-behaviour 14).
//!
//! The [`Scheduler`] is a cache of the store: built once from a view, then fed every [`Change`]. Tasks of one service and spec
//! version are placed together. Candidates are kept in ordered sets per kind of need (`class`), and per service for the nodes
//! that already run it (`load`); a change of a node is only noted, and the sets catch up when they are used. So placing costs
//! O(log nodes) per task, and a change costs O(log nodes) per set in use.

mod class; // candidates with the same fixed needs
mod explain; // why there is no node
mod hash; // maps by our own numbers and ids
mod leaving; // what stops, and where
mod load; // where a service runs and fails
mod log; // which nodes changed
mod need; // what a task needs
mod node; // what is left of a node
mod observe; // taking changes into account
mod order; // sorted keys that ask for no memory
mod pass; // placing one group

pub use explain::{NodeVerdict, Refusal};
pub use need::Misfit;
pub(crate) use need::normal_architecture;

use crate::Plan;
use crate::constraint::Constraints;
use crate::orphan::set_state;
use class::Class;
use hash::ById;
use leaving::Leaving;
use load::{Load, Standing};
use log::{Log, Number};
use need::{Fixed, Need};
use node::Place;
use order::Order;
use pass::{Notes, Pass};
use skep_types::{
    Action, Change, ClusterView, GenericResource, NodeId, Object, ServiceId, Task, TaskId, TaskState, TaskStatus, Timestamp, Version,
};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// A changed reason is written to waiting tasks no more often than this.
const EXPLAIN_PERIOD: Duration = Duration::from_secs(10);

/// Kinds of need whose candidates are kept in order; the least recently used one is forgotten.
const CLASSES: usize = 256;

/// Tasks placed in one plan at most; more are left for the next one, which [`Plan::wake_at`] asks for at once.
const TASKS_PER_PLAN: usize = 10_000;

/// Groups that became empty and are kept for the next ones.
const SPARE_GROUPS: usize = 64;

/// Tasks that are placed together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum GroupKey {
    /// With what [`need::differences`] tells of them: a task that was made while its service was being rolled back has the version of the
    /// spec before, and the ports of the one after.
    Service(ServiceId, Version, u64),
    Single(TaskId),
}

/// A pending task. By slot, so that low ones are placed first, and by id.
#[derive(Debug)]
struct Waiting(u64, Arc<Task>);

impl Waiting {
    fn compare(&self, slot: u64, id: &TaskId) -> Ordering {
        self.0.cmp(&slot).then_with(|| self.1.id.cmp(id))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        self.compare(other.0, &other.1.id)
    }
}

#[derive(Debug, Default)]
struct Group {
    tasks: Order<Waiting>,
    /// Why the last attempt left tasks over, and up to where in the log it looked.
    refusal: Option<(Arc<str>, u64)>,
    explained: Timestamp,
    /// Tasks whose status does not say so yet.
    untold: BTreeSet<(u64, TaskId)>,
}

/// Memory that every plan needs and none keeps.
#[derive(Debug, Default)]
struct Scratch {
    fresh: Order<GroupKey>,
    chosen: Vec<(Arc<Task>, Number, Vec<GenericResource>)>,
    careful: Vec<Arc<Task>>,
    notes: Notes,
    standing: Standing,
    groups: Vec<Group>,
}

impl Group {
    /// As it was when it was new, but for its memory.
    fn emptied(mut self) -> Self {
        self.tasks.clear();
        Self { tasks: self.tasks, ..Self::default() }
    }
}

#[derive(Debug, Default)]
pub struct Scheduler {
    places: Vec<Place>,
    numbers: ById<NodeId, Number>,
    loads: ById<ServiceId, Load>,
    classes: HashMap<Fixed, usize>,
    /// By the number in `classes`.
    class: Vec<Option<Class>>,
    log: Log,
    passes: u64,

    groups: ById<GroupKey, Group>,
    /// Groups worth an attempt: new tasks in them. Others wait for a node to gain.
    fresh: Order<GroupKey>,
    waiting: BTreeSet<GroupKey>,
    /// Pending tasks that have their node already, such as those of global services.
    bound: BTreeMap<TaskId, Arc<Task>>,
    fresh_bound: BTreeSet<TaskId>,
    refused_bound: HashMap<NodeId, BTreeSet<TaskId>>,
    /// Pending tasks that are not wanted any more.
    unwanted: BTreeMap<TaskId, Arc<Task>>,
    /// Placed by the last plan, not yet seen in a commit.
    tentative: ById<TaskId, Arc<Task>>,
    leaving: Leaving,
    scratch: Scratch,
}

impl Scheduler {
    /// Reads all nodes and tasks once.
    #[must_use]
    pub fn new(view: &dyn ClusterView) -> Self {
        let mut this = Self::default();
        for node in view.nodes() {
            this.observe(&Change::Created(Object::Node(Arc::clone(node))));
        }
        for task in view.tasks() {
            this.observe(&Change::Created(Object::Task(Arc::clone(task))));
        }
        this
    }

    /// Takes a committed change into account.
    pub fn observe(&mut self, change: &Change) {
        match change {
            Change::Created(Object::Task(new)) => self.observe_task(None, Some(new)),
            Change::Updated { old: Object::Task(old), new: Object::Task(new) } => self.observe_task(Some(old), Some(new)),
            Change::Removed(Object::Task(old)) => self.observe_task(Some(old), None),
            Change::Created(Object::Node(node)) | Change::Updated { new: Object::Node(node), .. } => self.observe_node(node),
            Change::Removed(Object::Node(node)) => self.remove_node(&node.id),
            Change::Removed(Object::Service(service)) => {
                if let Some(load) = self.loads.get_mut(&service.id) {
                    load.drop_standing();
                    if load.here.is_empty() {
                        self.loads.remove(&service.id);
                    }
                }
            }
            _ => {}
        }
    }

    /// Places what can be placed, and writes into the other pending tasks why they wait. The changes stand for themselves: they
    /// may be committed in parts.
    #[must_use]
    pub fn schedule(&mut self, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        self.expire_tentative();
        for task in self.unwanted.values() {
            plan.changes.push(set_state(task, TaskState::Shutdown, "stopped before it was placed", "", now));
        }
        self.schedule_bound(now, &mut plan);
        self.wake_waiting();
        let mut left = TASKS_PER_PLAN;
        let mut fresh = std::mem::replace(&mut self.fresh, std::mem::take(&mut self.scratch.fresh));
        for key in fresh.iter() {
            if left == 0 {
                self.fresh.insert(key.clone());
                plan.wake(now);
                continue;
            }
            left -= self.schedule_group(key, left, now, &mut plan);
        }
        fresh.clear();
        self.scratch.fresh = fresh;
        self.explain_waiting(now, &mut plan);
        self.log.trim(2 * self.places.len() + 1024);
        if self.tentative.capacity() > 64 * self.tentative.len().max(16) {
            // After a large plan come small ones, which would find each of their few entries far from the others.
            self.tentative.shrink_to(2 * self.tentative.len());
        }
        plan
    }

    /// How many tasks wait for a node.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.bound.len() + self.groups.values().map(|group| group.tasks.len()).sum::<usize>()
    }

    /// What the last plan placed and no commit has confirmed is pending again.
    fn expire_tentative(&mut self) {
        if self.tentative.is_empty() {
            // Draining would wipe all of the table.
            return;
        }
        // The table stays as large as it was: the next plan fills it again.
        let lost: Vec<_> = self.tentative.drain().collect();
        for (id, task) in lost {
            self.subtract(&task);
            if self.bound.contains_key(&id) {
                self.fresh_bound.insert(id);
            } else {
                let key = group_key(&task);
                if self.groups.contains_key(&key) {
                    self.fresh.insert(key);
                }
            }
        }
    }

    /// What a task needs, also of those beside it.
    fn need_of(&self, task: &Task) -> Need {
        Need { avoid: self.leaving.nodes(task).cloned().collect(), ..Need::of(task) }
    }

    /// The candidates for these needs, up to date.
    fn class_for(&mut self, fixed: &Fixed) -> usize {
        self.passes += 1;
        let id = match self.classes.get(fixed) {
            Some(id) => *id,
            None => self.new_class(fixed),
        };
        let class = self.class[id].as_mut().expect("classes in the index exist");
        class.used = self.passes;
        class.catch_up(&self.places, &self.log);
        id
    }

    fn new_class(&mut self, fixed: &Fixed) -> usize {
        if self.classes.len() >= CLASSES {
            let oldest = self
                .classes
                .iter()
                .min_by_key(|(_, id)| self.class[**id].as_ref().map(|class| class.used))
                .map(|(fixed, id)| (fixed.clone(), *id));
            if let Some((fixed, id)) = oldest {
                self.classes.remove(&fixed);
                self.class[id] = None;
            }
        }
        // Numbers are not used again: services remember the order of their nodes by them.
        let placement = skep_types::Placement { constraints: fixed.constraints.clone(), ..skep_types::Placement::default() };
        self.class.push(Some(Class::new(fixed.clone(), Constraints::of(Some(&placement)))));
        self.classes.insert(fixed.clone(), self.class.len() - 1);
        self.class.len() - 1
    }

    /// Places up to `limit` tasks of a group; returns how many it looked at.
    fn schedule_group(&mut self, key: &GroupKey, limit: usize, now: Timestamp, plan: &mut Plan) -> usize {
        let Some(group) = self.groups.get(key) else { return 0 };
        let Some(Waiting(_, first)) = group.tasks.first() else { return 0 };
        let need = Need::of(first);
        let (service, version) = (first.service_id.clone(), first.spec_version);
        let class_id = self.class_for(&need.fixed);
        let class = self.class[class_id].take().expect("class_for made it");
        let mut load = service.as_ref().and_then(|service| self.loads.remove(service)).unwrap_or_default();
        let Scratch { chosen, careful, notes, standing: spare, .. } = &mut self.scratch;
        let mut standing = load.take_standing(class_id, &class, &self.places, &self.log, spare);
        notes.failing = load.failing_nodes(version, now);
        let group = self.groups.get(key).expect("looked up above");
        let leaving = &self.leaving;
        let (mut is_full, mut is_held_up) = (false, false);
        let mut pass = Pass::new(&mut self.places, &mut load, &class, &mut standing, &need, &mut self.log, notes);
        for Waiting(_, task) in group.tasks.iter().take(limit) {
            if leaving.concerns(task) {
                careful.push(Arc::clone(task));
                continue;
            }
            let Some((number, given)) = pass.next() else {
                is_full = true;
                break;
            };
            chosen.push((Arc::clone(task), number, given));
        }
        // Few: each looks for itself, because not every node will do.
        for task in careful.drain(..) {
            let need = Need { avoid: leaving.nodes(&task).cloned().collect(), ..need.clone() };
            match Pass::new(&mut self.places, &mut load, &class, &mut standing, &need, &mut self.log, notes).next() {
                Some((number, given)) => chosen.push((task, number, given)),
                None => is_held_up = true,
            }
        }
        let placed = chosen.len();
        load.put_standing(class_id, standing, spare);
        self.class[class_id] = Some(class);
        if let Some(service) = service.filter(|_| !load.is_idle()) {
            self.loads.insert(service, load);
        }
        plan.changes.reserve(chosen.len());
        self.tentative.reserve(chosen.len());
        for (task, number, given) in chosen.drain(..) {
            let node = self.places[number as usize].id.clone();
            let task = Arc::new(assigned(&task, node, given, now));
            plan.changes.push(Action::Update(Object::Task(Arc::clone(&task))));
            self.tentative.insert(task.id.clone(), task);
        }
        if is_full {
            self.waiting.insert(key.clone());
        } else if self.groups.get(key).is_some_and(|group| group.tasks.len() > limit) {
            self.fresh.insert(key.clone());
            plan.wake(now);
        } else if is_held_up {
            self.waiting.insert(key.clone());
        }
        placed.max(1).min(limit)
    }

    /// Groups that wait are tried again if a node gained something since and now suits.
    fn wake_waiting(&mut self) {
        let keys: Vec<GroupKey> = self.waiting.iter().cloned().collect();
        for key in keys {
            let Some(group) = self.groups.get(&key) else {
                self.waiting.remove(&key);
                continue;
            };
            let Some((_, position)) = group.refusal else { continue };
            if position == self.log.end() {
                continue;
            }
            if self.has_gained(&key, position) {
                self.waiting.remove(&key);
                self.fresh.insert(key);
            }
        }
    }

    fn has_gained(&mut self, key: &GroupKey, position: u64) -> bool {
        let Some(news) = self.log.since(position) else { return true };
        let gained: Vec<Number> = news.filter(|(_, gained)| *gained).map(|(number, _)| number).collect();
        if gained.is_empty() {
            return false;
        }
        let Some(first) = self.groups.get(key).and_then(|group| group.tasks.first()).map(|Waiting(_, first)| first) else { return false };
        let need = Need::of(first);
        let service = first.service_id.clone();
        let class_id = self.class_for(&need.fixed);
        let class = self.class[class_id].as_ref().expect("class_for made it");
        let load = service.as_ref().and_then(|service| self.loads.get(service));
        gained.into_iter().any(|number| {
            let here = load.map_or(0, |load| load.count(number));
            class.is_member(number) && self.places[number as usize].has_room(&need, here)
        })
    }

    fn explain_waiting(&mut self, now: Timestamp, plan: &mut Plan) {
        let keys: Vec<GroupKey> = self.waiting.iter().cloned().collect();
        for key in keys {
            let end = self.log.end();
            let Some(group) = self.groups.get(&key) else { continue };
            let first = group.tasks.iter().find(|Waiting(_, task)| !self.tentative.contains_key(&task.id));
            let Some(Waiting(_, first)) = first else { continue };
            let due = group.explained + EXPLAIN_PERIOD;
            let reason = match &group.refusal {
                Some((reason, position)) if *position == end || now < due => {
                    if *position != end {
                        plan.wake(due);
                    }
                    Arc::clone(reason)
                }
                _ => {
                    let reason: Arc<str> = self.refusal_of(&Arc::clone(first)).to_string().into();
                    let group = self.groups.get_mut(&key).expect("looked up above");
                    if group.refusal.as_ref().is_none_or(|(known, _)| *known != reason) {
                        let differs = |Waiting(_, task): &&Waiting| task.status.err != *reason;
                        group.untold = group.tasks.iter().filter(differs).map(|Waiting(slot, task)| (*slot, task.id.clone())).collect();
                    }
                    group.refusal = Some((Arc::clone(&reason), end));
                    group.explained = now;
                    reason
                }
            };
            let group = self.groups.get(&key).expect("looked up above");
            let untold = group
                .untold
                .iter()
                .filter(|(_, id)| !self.tentative.contains_key(id))
                .filter_map(|(slot, id)| group.tasks.get(|other| other.compare(*slot, id)));
            plan.changes.extend(untold.map(|Waiting(_, task)| set_state(task, TaskState::Pending, &task.status.message, &reason, now)));
        }
    }

    fn schedule_bound(&mut self, now: Timestamp, plan: &mut Plan) {
        for id in std::mem::take(&mut self.fresh_bound) {
            let Some(task) = self.bound.get(&id).cloned() else { continue };
            let Some(node) = &task.node_id else { continue };
            let need = Need::of(&task);
            let number = self.numbers.get(node).copied();
            let class_id = self.class_for(&need.fixed);
            let class = self.class[class_id].as_ref().expect("class_for made it");
            let here = task
                .service_id
                .as_ref()
                .and_then(|service| self.loads.get(service))
                .zip(number)
                .map_or(0, |(load, number)| load.count(number));
            let fitting = number.filter(|number| class.is_member(*number) && self.places[*number as usize].has_room(&need, here));
            let Some(number) = fitting else {
                let misfit = number.and_then(|number| self.places[number as usize].misfit(&need, &class.constraints, here));
                let reason = explain::on_its_node(misfit.as_ref());
                if task.status.err != reason {
                    plan.changes.push(set_state(&task, TaskState::Pending, &task.status.message, &reason, now));
                }
                self.refused_bound.entry(node.clone()).or_default().insert(id);
                continue;
            };
            let given = self.places[number as usize].claim(&need);
            if let Some(service) = &task.service_id {
                self.loads.entry(service.clone()).or_default().add(number);
            }
            self.log.push(number, false);
            let task = Arc::new(assigned(&task, node.clone(), given, now));
            plan.changes.push(Action::Update(Object::Task(Arc::clone(&task))));
            self.tentative.insert(id, task);
        }
    }
}

fn group_key(task: &Task) -> GroupKey {
    match (&task.service_id, task.spec_version) {
        (Some(service), Some(version)) => GroupKey::Service(service.clone(), version, need::differences(task)),
        _ => GroupKey::Single(task.id.clone()),
    }
}

/// The task on its node. Field by field: a clone would copy the old status only to drop it.
fn assigned(task: &Task, node: NodeId, given: Vec<GenericResource>, now: Timestamp) -> Task {
    let status = TaskStatus {
        timestamp: now,
        state: TaskState::Assigned,
        message: "scheduler assigned task to node".to_owned(),
        applied_at: Some(now),
        ..TaskStatus::default()
    };
    Task {
        id: task.id.clone(),
        meta: task.meta,
        spec: Arc::clone(&task.spec),
        spec_version: task.spec_version,
        service_id: task.service_id.clone(),
        slot: task.slot,
        node_id: Some(node),
        annotations: task.annotations.clone(),
        service_annotations: task.service_annotations.clone(),
        status,
        desired_state: task.desired_state,
        networks: task.networks.clone(),
        endpoint: task.endpoint.clone(),
        log_driver: task.log_driver.clone(),
        assigned_generic_resources: given,
        job_iteration: task.job_iteration,
    }
}
