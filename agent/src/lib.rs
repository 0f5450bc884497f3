//! Runs the tasks of one node: a session with the managers, one state machine per task, containers by containerd.
//!
//! Start with [`Agent`], which puts the parts together, and [`Engine`], the part of it that needs no manager.
//! [`Executor`], [`Images`] and [`Network`] are what the engine needs of others; [`ContainerdExecutor`], [`NodeImages`]
//! and [`NetlbNetwork`] are the real ones.
//!
//! ```text
//!  manager ◄──session──► engine ──► worker ──► one driver per task ──► executor ──► containerd
//!                          ▲  assignments, payloads        │ statuses      │ images, network, log writer
//!                          └────────────── reports ◄───────┘
//! ```
//!
//! Tasks: the session, the worker and its drivers, containerd's events, the keeper of the log writer; [`Agent`] owns all of
//! them. Processes: one log writer per node ([`run_log_writer`]), which outlives skepd.

mod agent; // all parts together
mod applied; // the assignment message applied last
mod attachment; // containers that others started
mod board; // what happened lately
mod containerd; // the executor that drives containerd
mod containers; // the containers of tasks, for people
mod engine; // all that needs no manager
mod error; // why something could not be done
mod executor; // what the agent asks of others
mod health; // health checks
mod locals; // containers that are no tasks
mod logs; // output of containers: the writer process, rotation, reading
mod network; // tasks as the network sees them
mod node_images; // images for the executor and for the local socket
mod payloads; // secrets and configs, in memory
mod places; // on networks of the cluster, of containers that are no tasks
mod reach; // whether a manager can be reached
mod records; // tasks on this node's disk
mod report; // what this node tells of itself
mod reports; // statuses on their way to the manager
mod session; // with the managers
mod task; // one task: deciding and doing
#[cfg(test)]
mod testing;
mod worker; // the set of tasks

pub use agent::{Agent, AgentConfig, AgentDeps};
pub use board::{Board, Happened, HealthResult, HealthView, NetworkName, What};
pub use containerd::{ContainerdConfig, ContainerdExecutor, Program, Story, StoryMount};
pub use containers::{
    AttachWish, Attached, BlockUsage, Change, ChangeKind, Chunk, ContainerFacts, Containers, ContainersError, ExecPhase, ExecView,
    ExecWish, FileFacts, Incoming, NetworkUsage, Outgoing, Patience, Until, Usage, Volume, Volumes, Waiting,
};
pub use engine::Engine;
pub use error::{AgentError, ExecError, ImageError, NetworkError};
pub use executor::{Executor, Found, ImageConfig, ImageReady, Images, Network, Probe, Sandbox, Started};
pub use locals::{Local, LocalWish, Place, RestartWish, Restarts, predefined};
pub use logs::{LogLine, LogOptions, LogQuery, LogStream, LogWriter, LogWriterCommand, LogWriterError, Tail, read_logs, run_log_writer};
pub use network::{Changes as NetworkChanges, Following, NO_NETWORK, NetlbNetwork, OWN_NETWORK, TunnelEnds};
pub use node_images::NodeImages;
pub use payloads::Payloads;
pub use places::{PlaceError, PlaceWish};
pub use report::{NodeSettings, machine_architecture, machine_hostname, machine_resources, node_description};
pub use reports::Reports;
pub use session::{Answer, Backoff, Describe, Dial, DialError, ManagerAddress, SessionState, TlsDial};
pub use skep_netlb::task_mac;
pub use skep_types::template::{NodeFacts, TemplateError};
pub use task::Outcome;
pub use worker::{Assign, TaskList};

/// The parts that have no clock, no socket and no task of their own, for the cluster simulator (`testing/sim`) and nobody else.
#[doc(hidden)]
pub mod pure {
    pub use crate::session::pure::*;
    pub use crate::task::isolated::{Alone, restart_after, wait};
    pub use crate::task::machine::{Action, Event, Machine, Outcome, RETRY_DELAY, Recovered};
    pub use crate::task::slots::{Slots, waits_for};
}
