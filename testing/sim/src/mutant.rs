//! Faults put in on purpose: each must be found by some invariant, or the invariants are too weak.
//!
//! They sit between the product's code and the world, never in the product: what is decided, proposed, applied, said or heard is
//! spoiled on its way.

mod draft; // what the deciders propose

use crate::raft::Entry;
use skep_kit::Dice;
use skep_store::{Tables, View};
use skep_types::{Action, ClusterView as _, NodeState, Object, Task, TaskState, Version};
use std::sync::Arc;

macro_rules! mutants {
    ($($(#[doc = $words:literal])+ $name:ident,)+) => {
        /// One fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant {
            $($(#[doc = $words])+ $name,)+
        }

        impl Mutant {
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What is wrong, for the table.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($words),+).trim_ascii(),)+
                }
            }
        }
    };
}

mutants! {
    /// The leader's loop forgets when it wanted to look again.
    LostWakeUp,
    /// The leader's loop looks again ten minutes late.
    LateWakeUp,
    /// The deciders are not told of a commit.
    LostEvent,
    /// What was decided on an old version is written all the same.
    StaleWrite,
    /// An update stops one slot more than it may.
    SurgeOffByOne,
    /// A rollback stops one slot more than its config says.
    SurgeInRollback,
    /// A replacement may run before the task it replaces has stopped.
    EarlyRelease,
    /// A replacement does not wait for the restart delay.
    NoRestartDelay,
    /// A task gets an address that another one has.
    AddressTwice,
    /// A service gets the virtual address of another one.
    VipTwice,
    /// A service gets the published port of another one.
    PortTwice,
    /// Addresses that were freed are given again before the nodes know of it.
    ForgedAcknowledgements,
    /// A node acknowledges the state of networks before it is in place.
    AcknowledgesEarly,
    /// The leader clears a task before nodes have taken it out.
    ClearsEarly,
    /// An agent stops tasks before they are cleared.
    StopsUncleared,
    /// A node leads connections to tasks that only start.
    LeadsToStarting,
    /// A task is put on a node that its constraints exclude.
    WrongNode,
    /// A task is put on a node that takes none.
    ClosedNode,
    /// A node gets more tasks of a service than it allows.
    TooManyOnNode,
    /// A task is put where another one has its host port.
    HostPortTwice,
    /// A slot is replaced twice.
    SlotTwice,
    /// A service gets one replica too many.
    OneTooMany,
    /// A node gets two tasks of a global service.
    GlobalTwice,
    /// A job runs one task more at once than it may.
    JobTooMany,
    /// Tasks stay on a drained node.
    DrainIgnored,
    /// A drain that starts first stops tasks before others run in their place.
    DrainStopsFirst,
    /// A wish that a task stops is not written.
    LostWish,
    /// An automatic rollback restores another spec than the one before.
    WrongRollback,
    /// An automatic rollback restores the spec before with another config.
    RollbackConfig,
    /// An update that failed goes on.
    NeverPauses,
    /// An update is called complete when it begins.
    CompletesEarly,
    /// The reaper deletes tasks that run.
    EagerReaper,
    /// The reaper deletes nothing.
    LazyReaper,
    /// A report with a lower state is written.
    StatusBack,
    /// A wish for a task is taken back.
    WishBack,
    /// Reports are acknowledged to agents and not written.
    LostReport,
    /// A report is written to another task.
    ReportOfAnother,
    /// Heartbeats count for too short a time.
    NoGrace,
    /// Nodes that are silent are not called down.
    NeverDown,
    /// Nodes that come back stay down.
    StaysDown,
    /// A manager forgets what it said to agents.
    TrailGap,
    /// A change is left out of a message to an agent.
    LostAssignment,
    /// A task is left out of the first message to an agent.
    LostAtFirst,
    /// An agent that comes again is not told what changed meanwhile.
    ResumesWithNothing,
    /// A follower skips what it does not like.
    FollowerSkips,
    /// A follower applies an entry once more when others have come since.
    AppliesTwice,
    /// Users are answered before a majority has what they wrote.
    EarlyAck,
    /// A leader that was deposed answers users.
    OldLeaderAnswers,
    /// What a leader wrote last is gone when it dies: it was acknowledged before it was on disks.
    LostTail,
    /// An agent does not hear that a task is to stop.
    DeafToWishes,
    /// An agent does not stop tasks that were taken from it.
    KeepsRemoved,
    /// An agent starts tasks that are to wait.
    StartsEarly,
    /// An agent acknowledges tasks before its disk has them.
    AckBeforeDisk,
    /// A task counts as stopped while its container runs on.
    LeakedContainer,
    /// The end of a task is not reported.
    SilentEnd,
    /// A task whose health check fails is left running.
    IgnoresHealth,
    /// An agent without a manager stops its tasks.
    PanicsAlone,
    /// An agent that starts stops the tasks it finds.
    StopsOnStart,
}

impl Mutant {
    /// Spoils what the dispatcher writes.
    pub fn spoil_reports(self, actions: &mut Vec<Action>, view: &View, dice: &mut Dice) {
        match self {
            Self::StatusBack if dice.roll(5) == 0 => {
                for action in actions {
                    let Action::SetTaskStatus { task, .. } = action else { continue };
                    if let Some(stored) = view.task(task).filter(|task| task.status.state > TaskState::Ready) {
                        let mut back = Task::clone(stored);
                        back.status.state = TaskState::Preparing;
                        *action = Action::Update(Object::Task(Arc::new(back)));
                    }
                }
            }
            Self::LostReport => actions.retain(|action| !matches!(action, Action::SetTaskStatus { .. }) || dice.roll(6) > 0),
            Self::ReportOfAnother if dice.roll(5) == 0 => {
                for action in actions {
                    let Action::SetTaskStatus { task, .. } = action else { continue };
                    let other = view.tasks().find(|other| other.id != *task && other.status.state <= TaskState::Running);
                    if let Some(other) = other {
                        *task = other.id.clone();
                    }
                }
            }
            Self::StaysDown => actions.retain(|action| match action {
                Action::Update(Object::Node(node)) => {
                    !(node.status.state == NodeState::Ready
                        && view.node(&node.id).is_some_and(|stored| stored.status.state == NodeState::Down))
                }
                _ => true,
            }),
            _ => {}
        }
    }

    /// Spoils what is committed.
    pub fn spoil_entry(self, entry: &mut Entry, truth: &Tables) {
        if self != Self::StaleWrite {
            return;
        }
        let fresh = |stored: Option<Version>, version: &mut Version| *version = stored.unwrap_or(*version);
        for action in entry.proposals.iter_mut().flat_map(|proposal| &mut proposal.transaction.actions) {
            match action {
                Action::Update(Object::Service(service)) => {
                    fresh(truth.service(&service.id).map(|stored| stored.meta.version), &mut Arc::make_mut(service).meta.version);
                }
                Action::Update(Object::Task(task)) => {
                    fresh(truth.task(&task.id).map(|stored| stored.meta.version), &mut Arc::make_mut(task).meta.version);
                }
                Action::Update(Object::Node(node)) => {
                    fresh(truth.node(&node.id).map(|stored| stored.meta.version), &mut Arc::make_mut(node).meta.version);
                }
                _ => {}
            }
        }
    }

    /// Spoils what a manager applies.
    pub fn spoil_apply(self, manager: usize, index: usize, entry: &mut Arc<Entry>, log: &[Arc<Entry>]) {
        if manager != 1 || index <= 20 || !index.is_multiple_of(7) {
            return;
        }
        match self {
            Self::FollowerSkips => Arc::make_mut(entry).proposals.clear(),
            Self::AppliesTwice => Arc::make_mut(entry).proposals.extend_from_slice(&log[index - 20].proposals),
            _ => {}
        }
    }
}
