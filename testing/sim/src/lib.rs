//! Whole clusters in one thread on virtual time: what happens is decided by one seed, so what failed once fails again.
//!
//! Managers run the deciders of `skep-plan` as the leader's loop feeds them ([`skep_manager::pure::Mind`]), the tables of
//! `skep-store`, and of the dispatcher what it says to agents, keeps of the past and writes. Agents run the task machine, the
//! reports and the back-off of `skep-agent`. Modelled are the raft log ([`raft`](mod@raft)), the network ([`wire`](mod@wire)), disks,
//! containers, and the loops that `tokio` runs in the product ([`driver`](mod@driver), [`dispatcher`](mod@dispatcher),
//! [`agent`](mod@agent)).
//!
//! Start with [`Scenario::of_seed`] and [`run`]. What is checked after every event is in [`watch`](mod@watch), each by its name;
//! [`Mutant`] is a fault put in on purpose, which some check has to find.

pub mod agent; // one node: session, tasks, their records
pub mod backends; // who is told which tasks connections may be led to
pub mod container; // what really runs on nodes
pub mod desired; // whether the cluster is as it should be
pub mod dispatcher; // the leader and its agents
pub mod driver; // the leader's loop
pub mod group; // managers on real raft, and their disks
pub mod limits; // how many at once, and how soon
pub mod manager; // one manager: tables, trail, clock
pub mod mutant; // faults put in on purpose
pub mod numbered; // something of each node
pub mod queue; // virtual time
pub mod raft; // one log for all managers
pub mod regression; // scenarios in files
pub mod run; // from a seed to a verdict
pub mod scenario; // what users and faults do
pub mod shrink; // fewer operations, the same failure
pub mod spec; // services that users make
pub mod transitions; // which states a task may go through, and by whom
pub mod user; // operations, carried out
pub mod watch; // what must always hold
pub mod wire; // messages on their way
pub mod world; // everything together

pub use mutant::Mutant;
pub use run::{Outcome, Verdict, run};
pub use scenario::{Op, Scenario};
pub use shrink::shrink;
