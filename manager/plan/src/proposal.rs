//! What a decider returns, and where it gets new ids from.

use skep_types::{Action, TaskId, Timestamp};

/// Changes that bring the cluster nearer to what was asked, and when to look again even if nothing changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub changes: Vec<Action>,
    /// `None` = only when something changes. A moment that is not after the `now` of the call means: more is left, call again.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Asks to be called again at `moment` at the latest.
    pub fn wake(&mut self, moment: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(moment, |earlier| earlier.min(moment)));
    }

    /// Both plans in one: the changes in order, the earlier wake-up.
    pub fn merge(&mut self, other: Self) {
        self.changes.extend(other.changes);
        if let Some(moment) = other.wake_at {
            self.wake(moment);
        }
    }
}

/// A source of new task ids. This crate has no random numbers; any closure that returns 17 random bytes will do.
pub trait Ids {
    fn task(&mut self) -> TaskId;
}

impl<F: FnMut() -> [u8; 17]> Ids for F {
    fn task(&mut self) -> TaskId {
        TaskId::from_random(self())
    }
}
