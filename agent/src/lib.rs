//! Runs the tasks of one node: a session with the managers, one state machine per task, containers by containerd.
//!
//! Start with [`Engine`], which owns all tasks; [`Executor`], [`Images`] and [`Network`] are what it needs of others.

mod containerd; // the executor that drives containerd
mod engine; // all that needs no manager
mod error; // why something could not be done
mod executor; // what the agent asks of others
mod health; // health checks
mod logs; // output of containers: the writer process, rotation, reading
mod payloads; // secrets and configs, in memory
mod records; // tasks on this node's disk
mod reports; // statuses on their way to the manager
mod task; // one task: deciding and doing
mod template; // placeholders in specs
#[cfg(test)]
mod testing;
mod worker; // the set of tasks

pub use containerd::{ContainerdConfig, ContainerdExecutor};
pub use engine::Engine;
pub use error::{AgentError, ExecError, ImageError, NetworkError};
pub use executor::{Executor, Found, ImageConfig, ImageReady, Images, Network, Probe, Sandbox, Started};
pub use logs::{LogLine, LogOptions, LogQuery, LogStream, LogWriter, LogWriterCommand, LogWriterError, Tail, read_logs, run_log_writer};
pub use payloads::Payloads;
pub use reports::Reports;
pub use task::Outcome;
pub use template::{NodeFacts, TemplateError};
pub use worker::{Assign, TaskList};
