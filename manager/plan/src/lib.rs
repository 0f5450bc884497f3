//! Turns the cluster as it is into changes that bring it nearer to what was asked.
//!
//! Everything here is a plain function of a [`ClusterView`](skep_types::ClusterView) and a time, or a cache of the store that
//! is fed its changes. Nothing is written, sent or slept on, no clock is read and no random number drawn: `skep-manager`
//! commits a [`Plan`], waits for its `wake_at` or for a change, and asks again. A second run on the result proposes nothing.
//!
//! Start with [`plan_service`]: it keeps one service at what its spec says (replicas, restarts, updates, jobs). A task it creates
//! is NEW, gets its addresses from the [`Allocator`] (PENDING) and its node from the [`Scheduler`] (ASSIGNED); then it is the
//! agent's. [`validate`] says what is wrong with a spec before any of this begins.

mod agenda; // what is to be looked at, and when
mod allocator; // subnets, addresses, virtual IPs, ports
mod constraint; // the language of placement constraints
mod defaults; // what is not said
mod dirty; // whether a task is still what its service asks for
mod enforce; // tasks whose node does not suit any more
mod explain; // why things are as they are, for people
mod global; // one task per node
mod job; // services that end
mod orchestrate; // what one service needs now
mod orchestrator; // which of them are looked at
mod orphan; // tasks of lost nodes
mod proposal; // plans and ids
mod reaper; // history limit, deletion
mod replicated; // a number of tasks
mod resources; // what is left of a node
mod restart; // when a task that ended is replaced
mod revise; // what a user's create, update and rollback do to a service
mod roles; // who is a manager
mod rotation; // moving nodes to a new root
mod scheduler; // which node
mod slot; // the model orchestrators work on
mod time; // delays that other clocks began
mod update; // rolling updates, rollback
pub mod validate; // what is wrong with a spec

pub use agenda::Agenda;
pub use allocator::{AddressAudit, Allocator, FreedAddresses, FreedLately, SubnetError, is_ingress, is_overlay, resolve_network};
pub use constraint::{BadConstraint, Constraint, Constraints};
pub use defaults::with_defaults;
pub use dirty::is_task_dirty;
pub use enforce::plan_enforcement;
pub use explain::{Finding, NodeGroup, Placed, Placement, Verdict, explain_node, explain_service, explain_task, plan_placement};
pub use orchestrate::{Concerned, all_services, plan_service, plan_slot, services_of_node};
pub use orchestrator::Orchestrator;
pub use orphan::{NODE_DOWN_PERIOD, plan_orphans, plan_orphans_of_gone_nodes};
pub use proposal::{Ids, Plan};
pub use reaper::{is_removable, plan_reaping, plan_reaping_among, plan_reaping_of_strays};
pub use resources::{Free, Lack};
pub use restart::{DEFAULT_DELAY, MAX_STOP_WAIT};
pub use revise::{new_service, rolled_back_by_user, updated};
pub use roles::{CannotGo, RaftMember, RolePlan, RoleStep, can_go, is_plain_worker, plan_roles};
pub use rotation::{ROTATION_BATCH, ROTATION_INTERVAL, Rotation, RotationTarget, plan_rotation};
pub use scheduler::{Misfit, NodeVerdict, Refusal, Scheduler};
pub use time::{Beginning, Time};
pub use update::DEFAULT_MONITOR;
