//! Real hosts on one machine, for tests: a network namespace, a containerd and a skepd each.
//!
//! * [`Host`] is one machine: starts, kills, pauses and wipes its daemons, fills and stalls its disk, moves its clock.
//! * [`Lab`] is one host and a client joined by a cable; [`Cluster`] is many hosts on a switch that can cut any of them off, in
//!   one direction or both. Both take everything away when dropped, also when the test failed; what a killed test left is
//!   taken away by the next one.
//! * [`Scenario`] runs a test on a cluster and ends it with the questions that every test asks: do all managers hold the same
//!   state, is every acknowledged write there.
//! * [`Dice`] says when a fault comes and whom it hits; [`Cluster::aftermath`] asks what must hold again when it is over.
//! * [`Truth`] compares every node's network with the store's view, all the time.
//! * [`Journal`] writes while bad things happen and remembers what was acknowledged when.
//! * [`Inventory`] lists what exists of a host in the kernel and in containerd; two of them compared tell what leaked.
//! * [`Dockerd`] is Debian's dockerd on a host of its own, to join ours or be joined.
//! * [`need_root`] says loudly that a test is skipped, or fails where skipping is not meant (`SKEP_REQUIRE_REAL=1`).
//!
//! Everything is synchronous: a test is a script.

mod aftermath; // what must hold again after a fault
mod api; // our API, blocking
mod audit; // what exists of a host
mod cluster; // hosts on a switch
mod dice; // seeds, random moments
mod disk; // disks that are small, full or stuck
mod dockerd; // genuine peers
mod host; // one machine
mod inside; // of a network namespace
mod journal; // what was acknowledged
mod lab; // a host and a client
mod points; // fail-points in the sources
mod process; // commands and daemons
mod scenario; // a test on a cluster
mod standing; // a cluster that stays after its maker
mod sweep; // taking everything away
mod switch; // cables, and cutting them
mod truth; // networks as the store has them
mod wait; // until something holds

pub use api::Api;
pub use audit::Inventory;
pub use cluster::{Cluster, Replica, Size, Task};
pub use dice::Dice;
pub use disk::Stall;
pub use dockerd::{Dockerd, need_dockerd};
pub use host::Host;
pub use inside::inside;
pub use journal::{Journal, Record};
pub use lab::{Lab, LabOptions};
pub use points::fail_points;
pub use process::{Output, binary, run, whoami_image};
pub use scenario::{Scenario, is_left_out};
pub use standing::Standing;
pub use truth::Truth;
pub use wait::{eventually, need_root};
