//! What really runs on nodes, and who stops it.

use crate::container::Container;
use crate::mutant::Mutant;
use crate::queue::Moment;
use crate::raft::short;
use crate::world::{Event, World};
use skep_types::{ClusterView as _, NodeId, ServiceId, ServiceMode, TaskId, TaskState};
use std::collections::BTreeMap;
use std::time::Duration;

/// So long two nodes that are in touch may both run a slot: the longest wait for a task to stop, and the time to hear of it. One that is
/// being stopped does not count: after a minute it is not waited for any more, however much longer its node needs.
const LONGEST_OVERLAP: u32 = 60 + 30;

impl World {
    /// A container is started: what else runs? A node holds a task back until those that it replaces are gone, whatever managers call them;
    /// what it has no record of it cannot wait for. I3, I4, I11.
    pub fn check_start(&mut self, node: &NodeId, new: &Container) {
        let service = new.service.as_ref().and_then(|id| self.raft.truth.service(id));
        let has_slots = service.is_some_and(|service| matches!(service.spec.mode, ServiceMode::Replicated { .. } | ServiceMode::Global));
        let overlapping = new.service.as_ref().is_some_and(|service| self.watch.may_overlap(service));
        let mut found = None;
        for (other_node, agent) in self.agents.iter() {
            let here = other_node == node;
            for other in agent.containers.values().filter(|other| other.alive && other.task != new.task) {
                let same_slot = || other.service == new.service && other.slot == new.slot && new.service.is_some();
                if here && has_slots && !overlapping && same_slot() && agent.task(&other.task).is_some() {
                    found = found.or(Some(("I4", format!("tasks {} and {} of one slot run on one node", other.task, new.task))));
                }
                if here && new.ports.iter().any(|port| port.published_port > 0 && other.ports.contains(port)) {
                    found = found.or(Some(("I11", format!("tasks {} and {} have one port of one node", other.task, new.task))));
                }
                let shares_address = || new.addresses.iter().any(|address| other.addresses.contains(address));
                if agent.up && shares_address() && self.raft.truth.node(other_node).is_some() {
                    found = found.or(Some(("I11", format!("tasks {} and {} run with one address", other.task, new.task))));
                }
            }
        }
        let wish = self.raft.truth.task(&new.task).map(|task| task.desired_state);
        if let Some(wish) = wish.filter(|wish| *wish < TaskState::Running) {
            let words = format!("node {} starts task {}, which is to be {wish} only", short(node.as_str()), new.task);
            found = found.or(Some(("I3", words)));
        }
        if let Some((name, words)) = found {
            self.watch.fail(name, words);
        }
    }

    /// I3, I7, I18: an agent stops a task.
    pub fn check_stop(&mut self, node: &NodeId, id: &TaskId) {
        let Some(agent) = self.agents.get(node) else { return };
        let Some((_, _, unassigned)) = agent.task(id) else { return };
        let sick = agent.containers.get(id).is_some_and(|container| container.checked);
        let wanted = self.raft.truth.task(id).is_none_or(|task| task.desired_state >= TaskState::Shutdown);
        // What is decided counts when it is heard: until then the node goes on as it was told.
        let told = unassigned || agent.told.get(id).is_some_and(|task| task.desired_state >= TaskState::Shutdown);
        let asked_for = wanted && told;
        if !sick && !asked_for {
            self.watch.fail("I3", format!("node {} stops task {id}, which nobody asked for", short(node.as_str())));
        }
        self.check_served(node, id);
        if self.watch.calm {
            self.watch.fail("I18", format!("task {id} is stopped in a run without faults"));
        }
    }

    /// What takes its time to be wrong.
    pub fn check_slowly(&mut self) {
        let mut running = BTreeMap::<(ServiceId, u64), u32>::new();
        for (node, agent) in self.agents.iter() {
            let in_touch = agent.is_in_touch() && (0..self.managers.len()).all(|manager| self.wire.passes(node, manager, self.now));
            let seconds = if in_touch { self.watch.seconds_in_touch(node) + 1 } else { 0 };
            self.watch.in_touch.insert(node.clone(), seconds);
            if !in_touch {
                continue;
            }
            let runs =
                |container: &&Container| container.alive && !container.is_job && container.slot > 0 && !agent.is_stopping(&container.task);
            for container in agent.containers.values().filter(runs) {
                if let Some(service) = container.service.clone().filter(|service| !self.watch.may_overlap(service)) {
                    *running.entry((service, container.slot)).or_default() += 1;
                }
            }
        }
        let twice: BTreeMap<_, _> = running.into_iter().filter(|(_, count)| *count > 1).collect();
        self.watch.overlaps.retain(|slot, _| twice.contains_key(slot));
        for slot in twice.into_keys() {
            let seconds = self.watch.overlaps.entry(slot.clone()).or_default();
            *seconds += 1;
            if *seconds > LONGEST_OVERLAP {
                let (service, number) = slot;
                self.watch.fail("I4", format!("slot {number} of service {service} runs twice on nodes that are in touch"));
                break;
            }
        }
        self.check_leader();
        self.write_entry();
        if self.mutant == Some(Mutant::PanicsAlone) {
            let nodes: Vec<NodeId> = self.agents.keys().cloned().collect();
            nodes.iter().for_each(|node| self.panics_alone(node));
        }
        self.after(Duration::from_secs(1), Event::Check);
    }

    /// How long ago something was, for words.
    #[must_use]
    pub fn since(&self, moment: Moment) -> Duration {
        self.now.saturating_sub(moment)
    }
}
