//! Simulated agents: real TLS sessions with real managers, and tasks that are played instead of run.
//!
//! * [`join`] makes members of a cluster by its join token, each with a key and a certificate of its own, as real nodes do.
//! * [`Fleet`] runs an agent for each member: it holds the session, beats, takes assignments, reports what its tasks would
//!   do, and finds another manager when its own is gone. [`Tally`] counts what happened.
//! * [`Play`] says what a task does; it is pure.
//!
//! On the wire an agent does what `skep-agent` does: one connection, four streams and calls side by side, the same limits and
//! back-off. What it leaves out is all below: no containers, no records on disk. A task is RUNNING as soon as it is wanted
//! so, without the states in between that a real one reports.
//!
//! Tasks: one for each agent, owned by the fleet, and what hyper needs for its connection, which ends with it.

mod agent; // one agent's life
mod dial; // TLS and HTTP/2 with little memory
mod fleet; // many agents
mod join; // by token
mod limits; // open files
mod managers; // whom to connect to
mod member; // key, certificate, configuration
mod play; // what tasks do
mod tally; // what happened
mod usage; // memory and CPU time of a process

pub use dial::{DialError, Http2, connect, origin};
pub use fleet::{Fleet, FleetOptions};
pub use join::{JoinError, JoinOptions, Roots, fetch_roots, join, join_each, join_one};
pub use limits::{LimitError, raise_open_files};
pub use member::{BadMember, Member, Trust, load_members, save_members};
pub use play::{Applied, Behaviour, Play};
pub use tally::{Count, Tally};
pub use usage::{Usage, usage_of};
