//! The tasks that a node should have: what a manager's message makes of them. `worker.rs` of the agent.

use super::Agent;
use super::session::Link;
use super::task::{Driven, Record};
use crate::container::Container;
use crate::mutant::Mutant;
use crate::wire::{ConnId, Up};
use crate::world::World;
use skep_agent::pure::{Alone, Event as Step, Machine, Recovered, sort};
use skep_manager::pure::Name;
use skep_proto::v1::AssignmentsMessage;
use skep_proto::v1::assignments_message::Type;
use skep_types::{NodeId, Task, TaskId, TaskState, Version};
use std::sync::Arc;

impl Agent {
    /// Makes the task known to others of its slot.
    pub(super) fn enter(&mut self, record: &Record) {
        let id = &record.task.id;
        self.slots.told(&record.task);
        if record.unassigned {
            self.slots.unassigned(id);
        }
        if self.containers.get(id).is_some_and(|container| container.alive) {
            self.slots.found(id);
        }
    }
}

impl World {
    pub(super) fn begin_task(&mut self, node: &NodeId, mut record: Record) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        record.status.state = record.status.state.max(TaskState::Assigned);
        let id = record.task.id.clone();
        let found = agent.containers.get(&id).map_or(Recovered::Nothing, Container::found);
        let (wish, unassigned) = (record.task.desired_state, record.unassigned);
        let desired = if unassigned { wish.max(TaskState::Shutdown) } else { wish };
        let (machine, actions) = Machine::new(record.status.state, desired, found);
        agent.reports.remember(&id, record.status.clone());
        agent.tasks.insert(id.clone(), Driven { record, machine, stops: false, held: None, waits: false, op: 0 });
        agent.save(&id);
        self.carry_out(node, &id, actions);
        if unassigned && self.mutant != Some(Mutant::KeepsRemoved) {
            self.step(node, &id, Step::Unassigned);
        }
    }

    pub(super) fn assigned(&mut self, node: &NodeId, conn: ConnId, message: AssignmentsMessage) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        let Link::Up { reference, session, .. } = &mut agent.link else { return };
        let gap = message.r#type == Type::Incremental as i32 && message.applies_to != *reference;
        reference.clone_from(&message.results_in);
        let session = session.clone();
        let name = (!gap).then(|| message.results_in.clone());
        let sorted = sort(message);
        if sorted.complete || name.is_none() {
            agent.applied = None;
        }
        let wanted: Vec<TaskId> = sorted.tasks.iter().map(|task| task.id.clone()).collect();
        let mut gone = sorted.removed_tasks;
        if sorted.complete {
            gone.extend(agent.tasks.keys().chain(agent.told.keys()).filter(|id| !wanted.contains(id)).cloned());
            let strays: Vec<TaskId> =
                agent.containers.keys().filter(|id| !agent.tasks.contains_key(*id) && !wanted.contains(id)).cloned().collect();
            for stray in strays {
                agent.containers.remove(&stray);
            }
        }
        gone.iter().for_each(|id| agent.slots.unassigned(id));
        sorted.tasks.iter().for_each(|task| agent.slots.told(task));
        for task in sorted.tasks {
            if let Some(agent) = self.agents.get_mut(node) {
                agent.told.insert(task.id.clone(), Arc::new(task.clone()));
            }
            self.assign(node, task);
        }
        for id in gone {
            if let Some(agent) = self.agents.get_mut(node) {
                agent.told.remove(&id);
                let news = agent.tasks.get_mut(&id).is_some_and(|driven| !std::mem::replace(&mut driven.record.unassigned, true));
                agent.save(&id);
                if news && self.mutant != Some(Mutant::KeepsRemoved) {
                    self.step(node, &id, Step::Unassigned);
                }
            }
        }
        let Some(agent) = self.agents.get_mut(node) else { return };
        match name {
            Some(name) => {
                agent.kept = Some((name.clone(), agent.told.clone()));
                agent.applied = Some(name.clone());
                if let Some(name) = Name::parse(&name) {
                    self.check_told(node, name.revision);
                }
            }
            None => {
                agent.link = match std::mem::replace(&mut agent.link, Link::None) {
                    Link::Up { conn, session, began, reporting, .. } => {
                        Link::Up { conn, session, began, reporting, reference: String::new() }
                    }
                    other => other,
                };
                self.up(conn, Up::Assignments { session, applied: String::new() });
            }
        }
    }

    fn check_told(&mut self, node: &NodeId, revision: Version) {
        let told = &self.agents[node].told;
        let view = self.raft.views.get(&revision);
        self.watch.told(node, told, view, revision);
    }

    fn assign(&mut self, node: &NodeId, mut task: Task) {
        if self.mutant == Some(Mutant::StartsEarly) && task.desired_state == TaskState::Ready {
            task.desired_state = TaskState::Running;
        }
        let Some(agent) = self.agents.get_mut(node) else { return };
        let id = task.id.clone();
        let Some(driven) = agent.tasks.get_mut(&id) else {
            let record = Record { status: task.status.clone(), task: Arc::new(task), alone: Alone::default(), unassigned: false };
            agent.enter(&record);
            return self.begin_task(node, record);
        };
        // Assigned again while it is being removed, or an older wish (`worker.rs`, `drive.rs`).
        if driven.record.unassigned || task.desired_state < driven.machine.desired() {
            return;
        }
        task.status = driven.record.task.status.clone();
        task.meta = driven.record.task.meta;
        if task == *driven.record.task {
            return;
        }
        let desired = task.desired_state;
        driven.record.task = Arc::new(task);
        agent.save(&id);
        if self.mutant == Some(Mutant::DeafToWishes) && desired >= TaskState::Shutdown && self.dice.roll(3) == 0 {
            return;
        }
        self.step(node, &id, Step::Desired(desired));
    }
}
