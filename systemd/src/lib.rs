//! What a daemon says to systemd and gets from it. Elsewhere every call does nothing.
//!
//! * [`Notifier`]: ready, status, reloading, stopping (`sd_notify(3)`).
//! * [`watchdog`]: pings while the daemon says that it is alive; one future, owned and spawned by the caller.
//! * [`PassedSockets`]: listeners that systemd opened for us, by name (`sd_listen_fds(3)`).
//!
//! The unit is `units/skepd.service`. This crate starts no tasks of its own.

mod notify; // messages to the service manager
mod sockets; // listeners passed by the service manager
mod watchdog; // pings while alive

pub use notify::Notifier;
pub use sockets::{PassedSockets, SocketError};
pub use watchdog::{watchdog, watchdog_period};
