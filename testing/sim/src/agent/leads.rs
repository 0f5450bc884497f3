//! Where a node sends packets and leads connections, and the wait before a task is stopped. A model of `network/` of the agent: `Picture::change`,
//! `acknowledge` of `session/networks.rs`, `others_cleared` of `network/spanning.rs`.

use super::session::Link;
use super::{Agent, Done, Timer};
use crate::backends::index_of;
use crate::mutant::Mutant;
use crate::queue::Moment;
use crate::raft::short;
use crate::watch::Signalled;
use crate::wire::{ConnId, Up};
use crate::world::World;
use skep_proto::skep::NetworkChanges;
use skep_proto::skep::network_endpoint::Readiness;
use skep_types::{ClusterView as _, NetworkId, NodeId, NodeState, TaskId, TaskState, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// `CLEARED_LIMIT` of the agent.
const CLEARED_LIMIT: Duration = Duration::from_secs(20);
/// After what could not be put in place.
const RETRY: Duration = Duration::from_secs(1);
/// The leader waits so long for a node that owes an acknowledgement, and for one that fails (`netstate/answering.rs`). It counts the first
/// from when it said something or heard the last acknowledgement, whichever way what it said takes: one that comes in by a manager which is
/// cut off may come when most of that time is over. The wait of a stream that is new begins a moment before anything is said.
const OWING: Duration = Duration::from_millis(14_900);
const FAILING: Duration = Duration::from_secs(5);
/// A node that comes back has so long to catch up; what it has in place then it was asked to before.
const SETTLING: Duration = Duration::from_secs(5);

/// A task on a network.
type Place = (NetworkId, TaskId);

/// What is to be done about a task.
struct Endpoint {
    /// Connections may be led there.
    ready: bool,
    addresses: Vec<String>,
}

/// What is to be so from now on; `None`: the task is not there any more.
type Changed = BTreeMap<Place, Option<Endpoint>>;

/// What a node knows of others and what it has done about it.
#[derive(Default)]
pub struct Leads {
    known: BTreeMap<NetworkId, Known>,
    revision: Version,
    /// By the stream of this connection.
    conn: ConnId,
    cleared: BTreeSet<TaskId>,
    /// Tasks of its own that managers have not told it of yet (`untold` of the agent's `network.rs`).
    untold: BTreeSet<TaskId>,
    /// Being put in place; what was said since then is put there afterwards.
    programming: Option<(ConnId, Version)>,
    /// What that changes of what is in the kernel, and what changed since.
    underway: Changed,
    changed: Changed,
    stale: bool,
    /// Since when the leader waits for it, at the latest.
    owing: Option<Moment>,
    failing: Option<Moment>,
    fails_until: Moment,
    /// It was not waited for until then.
    settles_until: Moment,
    /// All that was said up to here is in the kernel.
    placed: Version,
    /// In the kernel: tasks that connections are led to, and whose each address is.
    serving: BTreeSet<Place>,
    located: BTreeMap<NetworkId, BTreeMap<String, TaskId>>,
    /// The addresses of each of those.
    addresses: BTreeMap<Place, Vec<String>>,
}

/// One network. Tasks: whether connections may be led to them.
#[derive(Default)]
struct Known {
    peers: BTreeSet<u32>,
    tasks: BTreeMap<TaskId, bool>,
}

/// A stop that waits.
#[derive(Debug)]
pub struct Held {
    delay: Duration,
    outcome: Done,
}

impl Leads {
    /// What is in the kernel and on the disk stays.
    pub(super) fn process_dies(&mut self) {
        self.programming = None;
        self.cleared.clear();
        self.untold.clear();
    }

    /// The kernel is gone, too. What it knew counts until the node was told everything anew: its routes, and who else is on its networks,
    /// come back from its disk.
    pub(super) fn host_dies(&mut self) {
        let (located, addresses) = (std::mem::take(&mut self.located), std::mem::take(&mut self.addresses));
        let known = std::mem::take(&mut self.known);
        *self = Self { located, addresses, known, ..Self::default() };
    }

    /// Whose the address is, as far as the kernel knows.
    pub fn owner(&self, network: &NetworkId, address: &str) -> Option<&TaskId> {
        self.located.get(network)?.get(address)
    }

    /// The network of a task is made.
    pub fn attach(&mut self, task: &TaskId) {
        if !self.known.values().any(|known| known.tasks.contains_key(task)) {
            self.untold.insert(task.clone());
        }
    }

    pub(super) fn forget(&mut self, task: &TaskId) {
        self.cleared.remove(task);
        self.untold.remove(task);
    }

    /// Begins to put what is known in place, with what could not be put there before.
    fn begin(&mut self) {
        self.programming = Some((self.conn, self.revision));
        self.underway.append(&mut self.changed);
    }

    /// It is in the kernel now. Returns where connections are led to from now on.
    fn settle(&mut self) -> Vec<Place> {
        let mut new = Vec::new();
        let underway = std::mem::take(&mut self.underway);
        // An address that goes from one task to another goes first.
        for place in underway.keys() {
            self.unlocate(place);
        }
        for (place, endpoint) in underway {
            let Some(Endpoint { ready, addresses }) = endpoint else {
                self.serving.remove(&place);
                continue;
            };
            if !addresses.is_empty() {
                let located = self.located.entry(place.0.clone()).or_default();
                located.extend(addresses.iter().map(|address| (address.clone(), place.1.clone())));
                self.addresses.insert(place.clone(), addresses);
            }
            if !ready {
                self.serving.remove(&place);
            } else if !self.serving.contains(&place) {
                new.push(place.clone());
                self.serving.insert(place);
            }
        }
        new
    }

    fn unlocate(&mut self, place: &Place) {
        let Some(addresses) = self.addresses.remove(place) else { return };
        let Some(located) = self.located.get_mut(&place.0) else { return };
        for address in addresses {
            if located.get(&address) == Some(&place.1) {
                located.remove(&address);
            }
        }
    }

    /// What was known of a network does not count any more.
    fn drop_network(&mut self, id: &NetworkId) {
        for task in self.known.remove(id).into_iter().flat_map(|known| known.tasks.into_keys()) {
            self.changed.insert((id.clone(), task), None);
        }
    }

    /// Whether another node may lead to the task (`Picture::is_known_elsewhere`), or nothing is known of that yet.
    fn may_be_known_elsewhere(&self, task: &TaskId, own: u32) -> bool {
        self.untold.contains(task)
            || self.known.values().any(|known| known.tasks.contains_key(task) && known.peers.iter().any(|peer| *peer != own))
    }

    /// The leader may have given it up, and goes on without it.
    fn is_given_up(&self, now: Moment) -> bool {
        let for_longer = |since: Option<Moment>, limit| since.is_some_and(|since| now >= since + limit);
        now < self.settles_until || for_longer(self.owing, OWING) || for_longer(self.failing, FAILING)
    }

    /// Takes a message in; `false`: it tells of a part of what was not told before.
    fn change(&mut self, changes: NetworkChanges, starting: bool) -> bool {
        if changes.complete {
            let all: Vec<NetworkId> = self.known.keys().cloned().collect();
            all.iter().for_each(|id| self.drop_network(id));
            // What is in the kernel since before the process died, too.
            let places = self.serving.iter().chain(self.addresses.keys());
            self.changed.extend(places.map(|place| (place.clone(), None)));
        }
        for delta in changes.networks {
            let Ok(id) = delta.network_id.parse::<NetworkId>() else { return false };
            if delta.removed {
                self.drop_network(&id);
                continue;
            }
            if changes.complete || delta.complete {
                self.drop_network(&id);
                self.known.insert(id.clone(), Known::default());
            }
            let Some(known) = self.known.get_mut(&id) else { return false };
            for peer in &delta.removed_peers {
                known.peers.remove(peer);
            }
            known.peers.extend(delta.peers.iter().map(|peer| peer.node_index));
            for task in delta.removed_endpoints.iter().filter_map(|task| task.parse::<TaskId>().ok()) {
                if known.tasks.remove(&task).is_some() {
                    self.changed.insert((id.clone(), task), None);
                }
            }
            for endpoint in &delta.endpoints {
                let Ok(task) = endpoint.task_id.parse::<TaskId>() else { return false };
                let readiness = endpoint.readiness();
                let ready = readiness == Readiness::Ready || (starting && readiness == Readiness::Starting);
                known.tasks.insert(task.clone(), ready);
                self.changed.insert((id.clone(), task), Some(Endpoint { ready, addresses: endpoint.addresses.clone() }));
            }
        }
        let known = &self.known;
        self.untold.retain(|task| !changes.complete && !known.values().any(|known| known.tasks.contains_key(task)));
        self.revision = Version(changes.revision);
        true
    }
}

impl World {
    /// A manager told of backends, at the time `said`.
    pub(super) fn backends_told(&mut self, node: &NodeId, conn: ConnId, changes: NetworkChanges, said: Moment) {
        let starting = self.mutant == Some(Mutant::LeadsToStarting);
        let Some(agent) = self.agents.get_mut(node) else { return };
        let (leads, tasks) = (&mut agent.leads, &agent.tasks);
        let cleared = changes.cleared_tasks.iter().filter_map(|task| task.parse().ok());
        leads.cleared.extend(cleared.filter(|task| tasks.contains_key(task)));
        if !leads.change(changes, starting) {
            let words = format!("node {} is told of a change in a network that it was not told of", short(node.as_str()));
            return self.watch.fail("I13", words);
        }
        if leads.conn != conn {
            // It is told everything anew; what it still owed by another stream nobody waits for.
            leads.owing = None;
        }
        (leads.conn, leads.stale) = (conn, true);
        leads.owing.get_or_insert(said);
        if leads.programming.is_none() {
            self.program(node, Duration::ZERO);
        }
        let held = self.agents[node].tasks.iter().filter(|(_, driven)| driven.held.is_some()).map(|(id, _)| id);
        let ready: Vec<TaskId> = held.filter(|task| !self.others_may_lead_to(node, task)).cloned().collect();
        for task in ready {
            self.send_signal(node, &task, false);
        }
    }

    /// Puts what is known now in place, which takes its time. Now and then a node is busy, or fails for a while.
    fn program(&mut self, node: &NodeId, pause: Duration) {
        let longest = if self.backend_dice.roll(12) == 0 { 2_000 } else { 80 };
        let time = self.backend_dice.moment(5..longest);
        let fails = !self.healed && self.backend_dice.roll(40) == 0;
        let fails_for = self.backend_dice.moment(0..9_000);
        let now = self.now;
        let Some(agent) = self.agents.get_mut(node) else { return };
        let (times, until) = agent.slow;
        let time = if now < until { time * times } else { time };
        let leads = &mut agent.leads;
        if fails && now >= leads.fails_until {
            leads.fails_until = now + fails_for;
        }
        leads.stale = false;
        leads.begin();
        if self.mutant == Some(Mutant::AcknowledgesEarly) {
            let (by, revision) = (leads.conn, leads.revision);
            if let Some((conn, session)) = agent.session_up().filter(|(conn, _)| *conn == by) {
                self.up(conn, Up::Backends { session, programmed: Some(revision) });
            }
            return self.agent_after(node, pause + time + Duration::from_secs(20), Timer::Backends);
        }
        self.agent_after(node, pause + time, Timer::Backends);
    }

    pub(super) fn backends_done(&mut self, node: &NodeId) {
        let (now, healed) = (self.now, self.healed);
        let Some(agent) = self.agents.get_mut(node) else { return };
        let session = agent.session_up();
        let leads = &mut agent.leads;
        let Some((by, revision)) = leads.programming.take() else { return };
        let told = |session: Option<(ConnId, String)>| session.filter(|(conn, _)| *conn == by);
        if now < leads.fails_until && !healed {
            let is_news = leads.failing.is_none();
            leads.failing.get_or_insert(now);
            if let Some((conn, session)) = told(session).filter(|_| is_news) {
                self.up(conn, Up::Backends { session, programmed: None });
            }
            return self.program(node, RETRY);
        }
        if leads.is_given_up(now) {
            leads.settles_until = now + SETTLING;
        }
        let new = leads.settle();
        leads.placed = revision;
        leads.failing = None;
        if leads.conn == by {
            leads.owing = leads.stale.then_some(now);
        }
        let again = leads.stale;
        if let Some((_, task)) = new.iter().find(|(_, task)| !self.watch.fit.contains(task)) {
            let words = format!("node {} leads to task {task}, which is not healthy yet", short(node.as_str()));
            self.watch.fail("I13", words);
        }
        // What it does with its own tasks nobody waits for, nor for a node from which no connection can come.
        let agent = &self.agents[node];
        let counts = |(network, task): &&Place| {
            let is_elsewhere = self.watch.signalled.get(task).is_some_and(|signalled| signalled.node != *node);
            is_elsewhere && !self.was_given_up_for(agent, task) && self.has_interest(agent, network)
        };
        let late = new.iter().find(counts).filter(|_| self.is_waited_for(agent));
        if let Some((_, task)) = late {
            let words = format!("node {} begins to lead to task {task}, which was sent SIGTERM", short(node.as_str()));
            self.watch.fail("I13", words);
        }
        if let Some((conn, session)) = told(session) {
            self.up(conn, Up::Backends { session, programmed: Some(revision) });
        }
        if again {
            self.program(node, Duration::ZERO);
        }
    }

    /// Whether the stop of a task waits for other nodes.
    fn others_may_lead_to(&self, node: &NodeId, task: &TaskId) -> bool {
        let Some(agent) = self.agents.get(node) else { return false };
        self.watch.fit.contains(task) && !agent.leads.cleared.contains(task) && agent.leads.may_be_known_elsewhere(task, index_of(node))
    }

    /// A task is to be stopped: at once, or when nobody leads to it any more.
    pub(super) fn hold_stop(&mut self, node: &NodeId, task: &TaskId, delay: Duration, outcome: Done) {
        // The order counts: the operation before is nobody's from now on.
        self.operate(node, task, delay, outcome.clone());
        let may_lead = self.others_may_lead_to(node, task) && self.mutant != Some(Mutant::StopsUncleared);
        let Some(agent) = self.agents.get_mut(node) else { return };
        let follows = matches!(agent.link, Link::Up { .. });
        let Some(driven) = agent.tasks.get_mut(task) else { return };
        // One that fails or leaves with its node is nobody's to clear: no manager knows of it yet.
        if driven.record.task.desired_state < TaskState::Shutdown || !follows {
            return;
        }
        if !may_lead {
            return self.check_signal(node, task);
        }
        agent.ops += 1;
        let op = agent.ops;
        (driven.op, driven.held) = (op, Some(Held { delay, outcome }));
        self.agent_after(node, CLEARED_LIMIT, Timer::StopLimit { task: task.clone(), op });
    }

    pub(super) fn stop_limit(&mut self, node: &NodeId, task: &TaskId, op: u64) {
        let driven = self.agents.get(node).and_then(|agent| agent.tasks.get(task));
        if driven.is_some_and(|driven| driven.op == op && driven.held.is_some()) {
            self.send_signal(node, task, true);
        }
    }

    /// The wait is over. `too_long`: nobody said so.
    fn send_signal(&mut self, node: &NodeId, task: &TaskId, too_long: bool) {
        let driven = self.agents.get_mut(node).and_then(|agent| agent.tasks.get_mut(task));
        let Some(Held { delay, outcome }) = driven.and_then(|driven| driven.held.take()) else { return };
        if !too_long {
            self.check_signal(node, task);
        }
        self.operate(node, task, delay, outcome);
    }

    /// I13: a task is sent SIGTERM while some node in touch leads to it.
    fn check_signal(&mut self, node: &NodeId, task: &TaskId) {
        // Of whom managers know that it ended, and which its node started again while it was cut off, is no endpoint any more.
        let Some(stored) = self.raft.truth.task(task).filter(|task| task.status.state <= TaskState::Running) else { return };
        let networks: Vec<NetworkId> = stored.networks.iter().map(|attached| attached.network.id.clone()).collect();
        let leads_on = |agent: &Agent| {
            let pair = |network: &NetworkId| (network.clone(), task.clone());
            networks.iter().any(|network| agent.leads.serving.contains(&pair(network)) && self.has_interest(agent, network))
        };
        let mut others = self.agents.values().filter(|agent| agent.id != *node && self.is_waited_for(agent));
        if let Some(other) = others.find(|agent| leads_on(agent) && !self.was_given_up_for(agent, task)) {
            let (node, other) = (short(node.as_str()), short(other.id.as_str()));
            let words = format!("node {node} sends task {task} SIGTERM while node {other} leads to it");
            return self.watch.fail("I13", words);
        }
        if self.watch.signalled.contains_key(task) {
            return;
        }
        let without = self.agents.values().filter(|agent| !self.is_waited_for(agent)).map(|agent| agent.id.clone()).collect();
        let signalled = Signalled { node: node.clone(), revision: self.raft.truth.revision(), without };
        self.watch.signalled.insert(task.clone(), signalled);
    }

    /// Whether the task was sent `SIGTERM` without a wait for the node, which has not come to what was said since then: it may put in
    /// place what it was told before, also when it has a new stream meanwhile and the next leader waits for it.
    fn was_given_up_for(&self, agent: &Agent, task: &TaskId) -> bool {
        let signalled = self.watch.signalled.get(task);
        signalled.is_some_and(|signalled| signalled.without.contains(&agent.id) && agent.leads.placed < signalled.revision)
    }

    /// I11: a container takes an address that some node in touch still knows as another task's, and from which packets can come.
    pub fn check_location(&mut self, node: &NodeId, task: &TaskId, addresses: &[(NetworkId, String)]) {
        let in_touch = |node: &NodeId| self.watch.seconds_in_touch(node) > 5;
        let stale = self.agents.values().filter(|agent| agent.id != *node && in_touch(&agent.id)).find_map(|agent| {
            let owner = |(network, address): &(NetworkId, String)| {
                agent.leads.owner(network, address).filter(|other| *other != task && self.has_interest(agent, network))
            };
            let other = addresses.iter().find_map(owner)?;
            Some(format!("task {task} starts with an address that node {} knows as task {other}'s", short(agent.id.as_str())))
        });
        if let Some(words) = stale {
            self.watch.fail("I11", words);
        }
    }

    /// Whether a leader has to wait for the node: nothing disturbs it.
    fn is_waited_for(&self, agent: &Agent) -> bool {
        let is_up = self.raft.truth.node(&agent.id).is_some_and(|node| node.status.state != NodeState::Down);
        is_up && self.watch.seconds_in_touch(&agent.id) > 5 && !agent.leads.is_given_up(self.now)
    }

    /// Whether connections can come from the node at all: from a task it has had for a while, or to a port that all nodes answer.
    fn has_interest(&self, agent: &Agent, network: &NetworkId) -> bool {
        let stands = |task: &TaskId| {
            let stored = self.raft.truth.task(task).filter(|task| task.node_id.as_ref() == Some(&agent.id));
            stored.is_some_and(|task| (TaskState::Assigned..=TaskState::Running).contains(&task.status.state))
        };
        let mut running = agent.containers.values().filter(|container| container.alive && self.now >= container.since + SETTLING);
        self.raft.truth.network(network).is_some_and(|network| skep_plan::is_ingress(network))
            || running.any(|container| container.addresses.iter().any(|(id, _)| id == network) && stands(&container.task))
    }
}
