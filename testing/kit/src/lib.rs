//! Real hosts on one machine, for tests: a network namespace, a containerd and a skepd each, and a client beside them.
//!
//! * [`Lab`] makes a host and a client joined by a cable, runs the daemons, kills them, and takes everything away when dropped,
//!   also when the test failed.
//! * [`Inventory`] lists what exists of a host in the kernel and in containerd; two of them compared tell what leaked.
//! * [`need_root`] says loudly that a test is skipped, or fails where skipping is not meant (`SKEP_REQUIRE_REAL=1`).
//!
//! Everything is synchronous: a test is a script.

mod audit; // what exists of a host
mod lab; // a host and a client
mod process; // commands and daemons
mod sweep; // taking everything away
mod wait; // until something holds

pub use audit::Inventory;
pub use lab::{Lab, LabOptions};
pub use process::{Output, binary, run, whoami_image};
pub use wait::{eventually, need_root};
