//! Which observed states a task may go through, and who may say so: the table of SwarmKit's `design/tla/Tasks.tla` and
//! wire-behaviour 10. Reports merge on their way, so a step here may be several there.

use crate::raft::Proposer;
use skep_types::TaskState::{
    self, Accepted, Assigned, Complete, Failed, New, Orphaned, Pending, Rejected, Remove, Running, Shutdown, Starting,
};

/// Whether the store may show `to` after `from`, written by `by`.
#[must_use]
pub fn allows(from: TaskState, to: TaskState, by: Proposer) -> bool {
    if from == to {
        return true;
    }
    match by {
        Proposer::Driver { .. } => match to {
            // Allocator and scheduler, perhaps in one write.
            Pending | Assigned => from < to,
            // What was never placed has nothing to stop.
            Shutdown => from < Assigned,
            // Enforcement of constraints.
            Rejected => from < Complete,
            Orphaned => (Assigned..=Running).contains(&from),
            _ => false,
        },
        Proposer::Writer { .. } => match (from, to) {
            (New | Pending, _) | (_, Orphaned | Remove) => false,
            (from, _) if from.is_terminal() => false,
            // Before it starts a task is rejected; from there on it fails. A report of the step between may have been overtaken.
            (from, Rejected) => from < Running,
            (_, Complete | Failed | Shutdown) => true,
            (from, to) => from < to && to >= Accepted,
        },
        // `node rm`
        Proposer::User { .. } => to == Orphaned && from < Complete,
    }
}

/// Whether a task may be born with this state: one write may hold what three components did, also that they thought better of it.
#[must_use]
pub fn may_be_born(state: TaskState) -> bool {
    state <= Assigned || state == Shutdown
}

/// Whether a task with this state may be deleted from the store.
#[must_use]
pub fn may_be_deleted(state: TaskState) -> bool {
    state < Assigned || state.is_terminal()
}

/// A process of the task may be there.
#[must_use]
pub fn may_run(state: TaskState) -> bool {
    (Assigned..=Running).contains(&state)
}

/// The agent has begun with it.
#[must_use]
pub fn is_under_way(state: TaskState) -> bool {
    (Accepted..=Starting).contains(&state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_component_moves_tasks_its_own_way_only() {
        let driver = Proposer::Driver { manager: 0, term: 1 };
        let writer = Proposer::Writer { manager: 0, term: 1 };
        let user = Proposer::User { attempt: 0 };
        assert!(allows(New, Assigned, driver) && !allows(New, Assigned, writer));
        assert!(allows(Assigned, Running, writer) && !allows(Assigned, Running, driver));
        assert!(!allows(Running, Starting, writer) && !allows(Failed, Running, writer) && !allows(Complete, Failed, writer));
        assert!(allows(Running, Orphaned, user) && !allows(Running, Shutdown, user) && !allows(Complete, Orphaned, user));
    }
}
