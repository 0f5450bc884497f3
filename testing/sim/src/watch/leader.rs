//! I5: what a leader comes to do that nobody disturbs, and how soon. Looked at once a second.

use super::Watch;
use super::drains::{is_stuck, outstays};
use crate::limits::SLACK;
use crate::queue::Moment;
use crate::raft::short;
use crate::transitions::may_run;
use crate::world::World;
use skep_plan::DEFAULT_DELAY;
use skep_store::View;
use skep_types::{Availability, ClusterView as _, NodeId, NodeState, Task, TaskId, TaskState, UpdateOrder};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// So many seconds a node may say nothing before it is called down: three beats of five seconds each, drawn out by chance, and as long
/// again at a new leader.
const SILENT: u32 = 40;
/// A leader has so many seconds to move what is on drained nodes.
const DRAINING: u32 = 60;
/// A task that nothing holds back any more is let run within so many seconds.
const RIPE: u32 = 4;
/// A task goes so many seconds after another one took its place on another node, and somebody is to do that as soon.
const OUTSTAYED: u32 = 10;
/// A policy's delay or what slows tasks down that cannot start, whichever is longer.
const BRAKE: Duration = Duration::from_secs(2);

/// For how many seconds something has been so.
#[derive(Default)]
pub struct Patience {
    silent: BTreeMap<NodeId, u32>,
    /// What nodes were called a second ago.
    called: BTreeMap<NodeId, NodeState>,
    drained: BTreeMap<NodeId, u32>,
    ripe: BTreeMap<TaskId, u32>,
    stuck: BTreeMap<TaskId, u32>,
    /// One manager has led, with a majority.
    led: u32,
    term: u64,
    /// A clock was set last.
    pub jumped: Moment,
}

impl Patience {
    /// Counts one more second in which it is so, or that it is not.
    fn count<K: Ord + Clone>(seconds: &mut BTreeMap<K, u32>, of: &K, is_so: bool) -> u32 {
        let count = seconds.entry(of.clone()).or_default();
        *count = if is_so { *count + 1 } else { 0 };
        *count
    }
}

impl World {
    pub(super) fn check_leader(&mut self) {
        let leads = self.raft.leader.is_some_and(|leader| self.has_majority(leader) && self.managers[leader].lead.is_some());
        let (view, now) = (self.raft.view(), self.now);
        let passes = |node: &NodeId| {
            let agent = self.agents.get(node);
            agent.is_some_and(|agent| agent.up && (0..self.managers.len()).any(|manager| self.wire.passes(node, manager, now)))
        };
        let heard: BTreeMap<NodeId, bool> = view.nodes().map(|node| (node.id.clone(), passes(&node.id))).collect();
        let patience = &mut self.watch.patience;
        patience.led = if leads && self.raft.term == patience.term { patience.led + 1 } else { 0 };
        patience.term = self.raft.term;
        let mut found = None;
        for node in view.nodes() {
            // Whoever is called otherwise than a second ago may have been heard in between, and cut off again at once.
            if patience.called.insert(node.id.clone(), node.status.state) != Some(node.status.state) {
                patience.silent.remove(&node.id);
            }
            let is_silent = !heard[&node.id] && node.status.state != NodeState::Down;
            let silent = Patience::count(&mut patience.silent, &node.id, is_silent).min(patience.led);
            if silent > SILENT {
                found = Some(format!("node {} says nothing for {silent} s and is {:?}", short(node.id.as_str()), node.status.state));
            }
            let drained = Patience::count(&mut patience.drained, &node.id, node.spec.availability == Availability::Drain);
            let is_there = |task: &Task| is_wanted(task) && !task.status.state.is_terminal() && task.service_id.is_some();
            let stays = |task: &&Arc<Task>| is_there(task) && !outstays(&view, task);
            if drained.min(patience.led) > DRAINING
                && let Some(task) = view.tasks_on_node(&node.id).find(stays)
            {
                found = Some(format!("task {} is wanted on node {}, which is drained", task.id, short(node.id.as_str())));
            }
            if node.spec.availability == Availability::Drain && node.spec.drain_order == UpdateOrder::StartFirst {
                for task in view.tasks_on_node(&node.id).filter(|task| outstays(&view, task)) {
                    let stuck = Patience::count(&mut patience.stuck, &task.id, is_stuck(&view, task)).min(patience.led);
                    if stuck > OUTSTAYED {
                        found = Some(format!("nobody sees to the place of task {} on a drained node for {stuck} s", task.id));
                    }
                }
            }
        }
        let found = found.or_else(|| self.watch.overripe(&view, now));
        if let Some(words) = found {
            self.watch.fail("I5", words);
        }
    }
}

fn is_wanted(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete
}

/// Of the same slot. Jobs have a slot 0, and those that are global have no other.
fn is_beside(task: &Task, other: &Task) -> bool {
    let has_slot = task.slot != 0 || task.job_iteration.is_some();
    other.id != task.id && other.slot == task.slot && (has_slot || other.node_id == task.node_id)
}

impl Watch {
    /// A task whose delay is long over, and before which nothing stops any more, still waits.
    fn overripe(&mut self, view: &View, now: Moment) -> Option<String> {
        let mut found = None;
        let waiting: Vec<&Arc<Task>> =
            view.tasks().filter(|task| task.desired_state == TaskState::Ready && !task.status.state.is_terminal()).collect();
        self.patience.ripe.retain(|id, _| waiting.iter().any(|task| task.id == *id));
        for task in waiting {
            let policy = task.spec.restart.as_ref();
            let needed = policy.map_or(DEFAULT_DELAY, |policy| policy.delay.unwrap_or(DEFAULT_DELAY)).max(BRAKE) + SLACK;
            // A new leader, or one whose clock was set, counts from there.
            let counted =
                Duration::from_secs(self.patience.led.into()).min(now - self.patience.jumped).min(now - self.memory.born(&task.id).0);
            let service = task.service_id.as_ref().filter(|service| view.service(service).is_some());
            let beside = service.into_iter().flat_map(|service| view.tasks_of_service(service));
            let is_alone = beside.filter(|other| is_beside(task, other)).all(|other| !may_run(other.status.state));
            let is_ripe = service.is_some() && counted > needed && is_alone;
            if Patience::count(&mut self.patience.ripe, &task.id, is_ripe) > RIPE {
                found = Some(format!("task {} waits on, though its delay is over and nothing stops before it", task.id));
            }
        }
        found
    }
}
