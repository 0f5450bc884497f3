//! What must always hold, by its name in the list of invariants, looked at after every event that could break it.
//!
//! | name | what is looked at here |
//! |---|---|
//! | I1 | what a user was told to be written is in the log; nobody but users, and a rollback, changes a service's spec |
//! | I3 | an agent stops nothing that no manager's committed wish asks it to stop |
//! | I4 | no slot is let run while its last task may still run, or has two tasks that are wanted; two never run on one node, nor for long on
//! | | two that are in touch |
//! | I5 | once faults stop, the cluster gets as it should be ([`desired`](mod@crate::desired)); silent nodes are called down, drained ones emptied |
//! | I6 | observed states move along the table of transitions, wishes never back, nor before their delay; nodes suit what is put on them |
//! | I7 | an update begins no more slots at once than it may, and there are no more slots than replicas; a rollback goes to the spec before |
//! | I8 | after a message of revision r an agent knows exactly what the store had for it at r |
//! | I11 | no address and no port is given twice, in the store or among containers that run; none is given again while a node in touch has it
//! | | as another task's |
//! | I18 | clocks that jump, elections and late followers alone stop no task and take no node down |
//! | I20 | after the same entries all managers have the same tables |

use crate::container::Container;
use crate::limits::{Memory, SLACK};
use crate::queue::Moment;
use crate::raft::{Proposer, short};
use crate::transitions::{allows, may_be_born, may_be_deleted, may_run};
use crate::world::{Event, World};
use skep_manager::pure::same_but_status;
use skep_plan::{Constraints, MAX_STOP_WAIT};
use skep_store::{Commit, View};
use skep_types::{
    Action, Change, ClusterView as _, NodeId, NodeState, Object, PublishMode, Service, ServiceId, ServiceMode, Task, TaskId, TaskState,
    UpdateOrder, UpdateState, Version,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// So long two nodes that are in touch may both run a slot: the longest wait for a task to stop, and the time to hear of it.
const LONGEST_OVERLAP: u32 = 60 + 30;
/// A node that was in touch for so long, in seconds, is not called down.
const HEARD_OF: u32 = 17;

pub struct Watch {
    /// The first thing that did not hold, and how.
    pub violation: Option<(&'static str, String)>,
    calm: bool,
    /// Services whose tasks may overlap by the wish of a user.
    start_first: BTreeSet<ServiceId>,
    /// Services with their spec versions that were ever in the log, and what users were told is there.
    written: BTreeSet<(ServiceId, Option<Version>)>,
    acknowledged: BTreeSet<(ServiceId, Option<Version>)>,
    overlaps: BTreeMap<(ServiceId, u64), u32>,
    in_touch: BTreeMap<NodeId, u32>,
    pub memory: Memory,
    /// Of the leader that `memory` counts the seconds of.
    pub term: u64,
}

impl Watch {
    #[must_use]
    pub fn new(calm: bool) -> Self {
        Self {
            violation: None,
            calm,
            start_first: BTreeSet::new(),
            written: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            overlaps: BTreeMap::new(),
            in_touch: BTreeMap::new(),
            memory: Memory::default(),
            term: 0,
        }
    }

    pub fn fail(&mut self, name: &'static str, words: String) {
        self.violation.get_or_insert((name, words));
    }

    /// An entry was committed: `done` by whom, between two views of the log.
    pub fn committed(&mut self, done: &[(Proposer, Vec<Commit>)], before: &View, after: &View, now: Moment) {
        let mut addresses = false;
        for (by, commits) in done {
            for change in commits.iter().flat_map(|commit| &commit.changes) {
                self.memory.note(change, now);
                match change {
                    Change::Created(Object::Task(task)) => self.born(task, *by),
                    Change::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                        self.moved(old, new, *by);
                        self.placed(old, new, before);
                    }
                    Change::Removed(Object::Task(task)) => self.deleted(task, before, after),
                    Change::Created(Object::Service(service)) => self.service(None, service, *by),
                    Change::Updated { old: Object::Service(old), new: Object::Service(new) } => self.service(Some(old), new, *by),
                    Change::Removed(Object::Service(service)) if !matches!(by, Proposer::User { .. }) => {
                        self.fail("I1", format!("service {} was removed by {by:?}", service.name()));
                    }
                    Change::Updated { old: Object::Node(old), new: Object::Node(new) } => {
                        self.node(old.status.state, new.status.state, &new.id);
                        if old.spec != new.spec && !matches!(by, Proposer::User { .. }) {
                            self.fail("I1", format!("the spec of node {} was changed by {by:?}", short(new.id.as_str())));
                        }
                    }
                    _ => {}
                }
                addresses |= matches!(change, Change::Created(Object::Task(_) | Object::Service(_)) | Change::Updated { .. });
            }
            if matches!(by, Proposer::Driver { .. }) && done.len() == 1 {
                self.releases(commits, before, now);
                self.update_steps(commits, before, after);
                self.limits(*by, commits, before, after, now);
            }
        }
        if addresses {
            self.unique(after);
        }
    }

    fn born(&mut self, task: &Task, by: Proposer) {
        if !may_be_born(task.status.state) || !matches!(by, Proposer::Driver { .. }) {
            self.fail("I6", format!("task {} was born {} by {by:?}", task.id, task.status.state));
        }
    }

    fn moved(&mut self, old: &Task, new: &Task, by: Proposer) {
        if !allows(old.status.state, new.status.state, by) {
            self.fail("I6", format!("task {} went from {} to {} by {by:?}", new.id, old.status.state, new.status.state));
        }
        if new.desired_state < old.desired_state || (new.desired_state != old.desired_state && !matches!(by, Proposer::Driver { .. })) {
            self.fail("I6", format!("the wish for task {} went from {} to {} by {by:?}", new.id, old.desired_state, new.desired_state));
        }
        if old.node_id.is_some() && old.node_id != new.node_id {
            self.fail("I6", format!("task {} moved to another node", new.id));
        }
    }

    /// A task that got its node: does the node suit it? A node that changed a moment ago may have suited it when it was chosen.
    fn placed(&mut self, old: &Task, new: &Task, before: &View) {
        if old.status.state >= TaskState::Assigned || new.status.state != TaskState::Assigned {
            return;
        }
        let Some(node) = new.node_id.as_ref().and_then(|id| before.node(id)) else { return };
        let changed_lately = node.meta.version.0 + 25 > before.version().0;
        if !changed_lately && !Constraints::of(new.spec.placement.as_ref()).match_node(node) {
            self.fail("I6", format!("task {} was put on node {}, which its constraints exclude", new.id, short(node.id.as_str())));
        }
    }

    fn deleted(&mut self, task: &Task, before: &View, after: &View) {
        let gone = |id: &NodeId| after.node(id).is_none() || before.node(id).is_none();
        if !may_be_deleted(task.status.state) && !task.node_id.as_ref().is_some_and(gone) {
            self.fail("I6", format!("task {} was deleted while {}", task.id, task.status.state));
        }
    }

    fn service(&mut self, old: Option<&Service>, new: &Service, by: Proposer) {
        self.written.insert((new.id.clone(), new.spec_version));
        let overlaps = [&new.spec.update, &new.spec.rollback].into_iter().flatten().any(|config| config.order == UpdateOrder::StartFirst);
        if overlaps {
            self.start_first.insert(new.id.clone());
        }
        let Some(old) = old else { return };
        if old.spec == new.spec || matches!(by, Proposer::User { .. }) {
            return;
        }
        let rolls_back = new.update_status.as_ref().is_some_and(|status| status.state == UpdateState::RollbackStarted);
        if !rolls_back {
            self.fail("I1", format!("the spec of service {} was changed by {by:?}", new.name()));
        } else if old.previous_spec.as_ref() != Some(&new.spec) {
            self.fail("I7", format!("service {} was rolled back to a spec that was not the one before", new.name()));
        }
    }

    fn node(&mut self, old: NodeState, new: NodeState, id: &NodeId) {
        if old == new || new != NodeState::Down {
            return;
        }
        if self.calm {
            self.fail("I18", format!("node {} is called down in a run without faults", short(id.as_str())));
        }
        if self.in_touch.get(id).is_some_and(|seconds| *seconds > HEARD_OF) {
            self.fail("I4", format!("node {} is called down while it beats: its slots would run twice", short(id.as_str())));
        }
    }

    /// I4: whoever lets a task run, or makes one that is to run, has to be sure of those before it in its slot.
    fn releases(&mut self, commits: &[Commit], before: &View, now: Moment) {
        for change in commits.iter().flat_map(|commit| &commit.changes) {
            let (task, is_new) = match change {
                Change::Updated { old: Object::Task(old), new: Object::Task(new) }
                    if old.desired_state == TaskState::Ready && new.desired_state == TaskState::Running =>
                {
                    (new, false)
                }
                Change::Created(Object::Task(task)) if task.desired_state == TaskState::Running => (task, true),
                _ => continue,
            };
            let Some(service) = task.service_id.as_ref().filter(|service| !self.start_first.contains(*service)) else { continue };
            let patience_over = !is_new && now + SLACK >= self.memory.born(&task.id).0 + MAX_STOP_WAIT;
            let same_place = |other: &&Arc<Task>| other.slot == task.slot && (task.slot != 0 || other.node_id == task.node_id);
            for other in before.tasks_of_service(service).filter(same_place).filter(|other| other.id != task.id) {
                let silent =
                    other.node_id.as_ref().is_none_or(|node| before.node(node).is_none_or(|node| node.status.state == NodeState::Down));
                // What is being removed frees its number at once, as in the original.
                let leaving = other.desired_state >= TaskState::Remove || (is_new && other.desired_state >= TaskState::Shutdown);
                let same_node = task.node_id.is_some() && task.node_id == other.node_id;
                if may_run(other.status.state) && (same_node || !(silent || patience_over)) && !leaving {
                    let words = format!("task {} may run while task {} of its slot is still {}", task.id, other.id, other.status.state);
                    return self.fail("I4", words);
                }
            }
        }
    }

    /// I7: slots that an update begins in this commit, with those it has in work, are at most as many as it may have.
    fn update_steps(&mut self, commits: &[Commit], before: &View, after: &View) {
        let mut begun = BTreeMap::<&ServiceId, BTreeSet<(u64, Option<&NodeId>)>>::new();
        for change in commits.iter().flat_map(|commit| &commit.changes) {
            let Change::Updated { old: Object::Task(old), new: Object::Task(new) } = change else { continue };
            let Some(service) = new.service_id.as_ref().and_then(|id| after.service(id)) else { continue };
            let fine = |id: &NodeId| {
                before.node(id).is_some_and(|node| {
                    node.status.state != NodeState::Down
                        && node.spec.availability != skep_types::Availability::Drain
                        && Constraints::of(service.spec.task.placement.as_ref()).match_node(node)
                })
            };
            let stopped = old.desired_state <= TaskState::Running && new.desired_state == TaskState::Shutdown;
            let alive = !new.status.state.is_terminal() && new.node_id.as_ref().is_none_or(fine);
            if stopped && alive && new.spec_version != service.spec_version && !has_successor(before, new, service) {
                begun.entry(&service.id).or_default().insert((new.slot, new.node_id.as_ref().filter(|_| new.slot == 0)));
            }
        }
        for (id, slots) in begun {
            let Some(service) = after.service(id).filter(|service| !service.spec.mode.is_job()) else { continue };
            let state = service.update_status.as_ref().map_or(UpdateState::Unknown, |status| status.state);
            let config = match state {
                UpdateState::RollbackStarted => &service.spec.rollback,
                _ => &service.spec.update,
            };
            let config = config.clone().unwrap_or_default();
            // With start-first an old task is stopped when the new one runs: those are no new slots.
            if config.order == UpdateOrder::StartFirst || config.parallelism == 0 {
                continue;
            }
            let count = slots.len() as u64;
            if count > config.parallelism {
                let words =
                    format!("{count} slots of {} are stopped at once, by an update of {} at a time", service.name(), config.parallelism);
                return self.fail("I7", words);
            }
            if matches!(state, UpdateState::Paused | UpdateState::RollbackPaused) {
                return self.fail("I7", format!("service {} stops slots for an update that is paused", service.name()));
            }
        }
    }

    /// I11 among what is stored.
    fn unique(&mut self, view: &View) {
        let mut addresses = BTreeMap::<(String, String), String>::new();
        let mut ports = BTreeMap::<(NodeId, u32), TaskId>::new();
        let mut ingress = BTreeMap::<u32, ServiceId>::new();
        let mut found = None;
        for service in view.services() {
            let endpoint = service.endpoint.iter();
            for vip in endpoint.clone().flat_map(|endpoint| &endpoint.virtual_ips) {
                let owner = addresses.insert((vip.network_id.to_string(), bare(&vip.addr)), format!("service {}", service.name()));
                found = found.or(owner.map(|owner| format!("{} is an address of {owner} and of service {}", vip.addr, service.name())));
            }
            for port in endpoint.flat_map(|endpoint| &endpoint.ports).filter(|port| port.publish_mode == PublishMode::Ingress) {
                let owner = ingress.insert(port.published_port, service.id.clone()).filter(|owner| *owner != service.id);
                found = found.or(owner.map(|_| format!("port {} belongs to two services", port.published_port)));
            }
        }
        for task in view.tasks().filter(|task| task.status.state <= TaskState::Running) {
            for attached in &task.networks {
                for address in attached.addresses.iter().filter(|address| !address.is_empty()) {
                    let owner = addresses.insert((attached.network.id.to_string(), bare(address)), format!("task {}", task.id));
                    found = found.or(owner.map(|owner| format!("{address} is an address of {owner} and of task {}", task.id)));
                }
            }
            let Some(node) = task.node_id.as_ref().filter(|_| may_run(task.status.state)) else { continue };
            for port in host_ports(task) {
                let owner = ports.insert((node.clone(), port), task.id.clone());
                found = found.or(owner.map(|owner| format!("port {port} of a node belongs to task {owner} and to task {}", task.id)));
            }
        }
        if let Some(words) = found {
            self.fail("I11", words);
        }
    }

    /// I8: what an agent has been told by a message that names a revision.
    pub fn told(&mut self, node: &NodeId, told: &BTreeMap<TaskId, Arc<Task>>, view: Option<&View>, revision: Version) {
        let Some(view) = view else { return };
        let wanted = view.tasks_on_node(node).filter(|task| task.status.state >= TaskState::Assigned);
        let mut count = 0;
        for task in wanted {
            count += 1;
            let words = match told.get(&task.id) {
                Some(known) if same_but_status(known, task) => continue,
                Some(known) => format!("has task {} to be {} and not {}", task.id, known.desired_state, task.desired_state),
                None => format!("was not told of task {}", task.id),
            };
            return self.fail("I8", format!("node {} at revision {}: {words}", short(node.as_str()), revision.0));
        }
        if count != told.len() {
            self.fail("I8", format!("node {} at revision {} has tasks that are not its own", short(node.as_str()), revision.0));
        }
    }

    /// A user was told that this is written.
    pub fn acknowledged(&mut self, actions: &[Action]) {
        for action in actions {
            if let Action::Create(Object::Service(service)) | Action::Update(Object::Service(service)) = action {
                self.acknowledged.insert((service.id.clone(), service.spec_version));
            }
        }
    }

    /// I1, when all is over.
    pub fn check_acknowledged(&mut self) {
        let lost = self.acknowledged.difference(&self.written).next().map(|(service, _)| service.clone());
        if let Some(service) = lost {
            self.fail("I1", format!("a user was told that service {service} is written, and it is not"));
        }
    }
}

/// Whether the slot has a task of the present spec already: then the old one is only cleared away.
fn has_successor(before: &View, task: &Task, service: &Service) -> bool {
    before.tasks_of_service(&service.id).any(|other| {
        other.slot == task.slot
            && (task.slot != 0 || other.node_id == task.node_id)
            && other.id != task.id
            && other.desired_state <= TaskState::Running
            && other.spec_version == service.spec_version
    })
}

/// Without the length of the prefix.
fn bare(address: &str) -> String {
    address.split('/').next().unwrap_or_default().to_owned()
}

fn host_ports(task: &Task) -> impl Iterator<Item = u32> + '_ {
    let ports = task.endpoint.iter().flat_map(|endpoint| &endpoint.spec.ports);
    ports.filter(|port| port.publish_mode == PublishMode::Host && port.published_port > 0).map(|port| port.published_port)
}

impl World {
    /// A container is started: what else runs?
    pub fn check_start(&mut self, node: &NodeId, new: &Container) {
        let mut found = None;
        for (other_node, agent) in &self.agents {
            let here = other_node == node;
            for other in agent.containers.values().filter(|other| other.alive && other.task != new.task) {
                let mode = new.service.as_ref().and_then(|id| self.raft.truth.service(id)).map(|service| &service.spec.mode);
                let same_slot = other.service == new.service && other.slot == new.slot && new.service.is_some();
                let overlapping = new.service.as_ref().is_some_and(|service| self.watch.may_overlap(service));
                if here
                    && same_slot
                    && !overlapping
                    && matches!(mode, Some(ServiceMode::Replicated { .. } | ServiceMode::Global))
                    && !leaves(agent, other)
                {
                    found = found.or(Some(("I4", format!("tasks {} and {} of one slot run on one node", other.task, new.task))));
                }
                if here && new.ports.iter().any(|port| port.published_port > 0 && other.ports.contains(port)) {
                    found = found.or(Some(("I11", format!("tasks {} and {} have one port of one node", other.task, new.task))));
                }
                let in_cluster = self.raft.truth.node(other_node).is_some();
                if in_cluster && agent.up && new.addresses.iter().any(|address| other.addresses.contains(address)) {
                    found = found.or(Some(("I11", format!("tasks {} and {} run with one address", other.task, new.task))));
                }
            }
        }
        if let Some((name, words)) = found {
            self.watch.fail(name, words);
        }
    }

    /// I3, I18: an agent stops a task.
    pub fn check_stop(&mut self, node: &NodeId, id: &TaskId) {
        let Some(agent) = self.agents.get(node) else { return };
        let Some((_, desired, unassigned)) = agent.task(id) else { return };
        let sick = agent.containers.get(id).is_some_and(|container| container.checked);
        let wanted = self.raft.truth.task(id).is_none_or(|task| task.desired_state >= TaskState::Shutdown);
        if !sick && (!wanted || (!unassigned && desired < TaskState::Shutdown)) {
            self.watch.fail("I3", format!("node {} stops task {id}, which nobody asked for", short(node.as_str())));
        }
        if self.watch.calm {
            self.watch.fail("I18", format!("task {id} is stopped in a run without faults"));
        }
    }

    /// What takes its time to be wrong.
    pub fn check_slowly(&mut self) {
        let mut running = BTreeMap::<(ServiceId, u64), u32>::new();
        for (node, agent) in &self.agents {
            let in_touch = agent.is_in_touch() && (0..self.managers.len()).all(|manager| self.wire.passes(node, manager, self.now));
            let seconds = self.watch.in_touch.entry(node.clone()).or_default();
            *seconds = if in_touch { *seconds + 1 } else { 0 };
            if !in_touch {
                continue;
            }
            for container in agent.containers.values().filter(|container| container.alive && !container.is_job && container.slot > 0) {
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
        if self.mutant == Some(crate::Mutant::PanicsAlone) {
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

/// It was taken from its agent, which stops it.
fn leaves(agent: &crate::agent::Agent, container: &Container) -> bool {
    agent.task(&container.task).is_none_or(|(_, _, unassigned)| unassigned)
}

impl Watch {
    /// For so long the node is in touch with all managers.
    #[must_use]
    pub fn seconds_in_touch(&self, node: &NodeId) -> u32 {
        self.in_touch.get(node).copied().unwrap_or(0)
    }

    /// Its user wants new tasks to start before old ones stop.
    #[must_use]
    pub fn may_overlap(&self, service: &ServiceId) -> bool {
        self.start_first.contains(service)
    }
}
