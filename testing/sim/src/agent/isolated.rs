//! A node without a manager: tasks that ended are started again all the same. `task/isolated.rs` and `reach.rs` of the agent.

use super::Timer;
use super::session::Link;
use crate::world::World;
use skep_agent::pure::{Event as Step, restart_after, wait};
use skep_types::{NodeId, TaskId, TaskState};
use std::time::Duration;

/// Without a session for so long, a node is on its own (`reach.rs`).
const ALONE: Duration = Duration::from_secs(10);

impl World {
    /// Sets the timers of tasks that may run again without a manager.
    pub(super) fn look_alone(&mut self, node: &NodeId) {
        let clock = self.node_clock();
        let Some(agent) = self.agents.get(node) else { return };
        let cut_off_in = (agent.lost_at + ALONE).saturating_sub(self.now);
        if matches!(agent.link, Link::Up { .. }) {
            return;
        }
        let mut timers = Vec::new();
        for (id, driven) in &agent.tasks {
            let record = &driven.record;
            let after = restart_after(&record.task, &record.status, &record.alone).filter(|_| driven.machine.can_restart());
            if let Some(after) = after {
                timers.push((id.clone(), wait(after, record.status.timestamp, clock).max(cut_off_in)));
            }
        }
        for (task, delay) in timers {
            self.agent_after(node, delay, Timer::Restart { task });
        }
    }

    pub(super) fn restart_alone(&mut self, node: &NodeId, id: &TaskId) {
        let clock = self.node_clock();
        let Some(agent) = self.agents.get_mut(node) else { return };
        let alone = !matches!(agent.link, Link::Up { .. }) && self.now >= agent.lost_at + ALONE;
        let Some(driven) = agent.tasks.get_mut(id).filter(|_| alone) else { return };
        let record = &mut driven.record;
        let due = restart_after(&record.task, &record.status, &record.alone).filter(|_| driven.machine.can_restart());
        if due.is_none_or(|after| !wait(after, record.status.timestamp, clock).is_zero()) {
            return;
        }
        record.alone.note(clock);
        self.step(node, id, Step::Restart);
    }

    /// A node that begins to be on its own stops its tasks: a mutant only.
    pub fn panics_alone(&mut self, node: &NodeId) {
        let Some(agent) = self.agents.get(node).filter(|agent| agent.up && !matches!(agent.link, Link::Up { .. })) else { return };
        if self.now < agent.lost_at + ALONE {
            return;
        }
        let tasks: Vec<TaskId> = agent.tasks.keys().cloned().collect();
        for task in tasks {
            self.step(node, &task, Step::Desired(TaskState::Shutdown));
        }
    }
}
