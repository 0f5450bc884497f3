//! What a cluster is made of: nodes, services, tasks, networks, secrets, and their ids, states and versions.
//!
//! Plain data and the rules that hold between its parts. Nothing here waits, reads a clock, draws a random number or
//! touches the outside: the deciders of `skep-plan`, the store's `apply` and the simulator all build on that.
//!
//! Start with [`Service`] and [`Task`]. [`ClusterView`] is how deciders see the cluster, [`Action`] how they change it.
//! [`FieldError`] is what every check of outside input returns.

mod cluster; // the cluster object, its CA, keys and settings
mod container; // what a container is made of
mod error; // a field that cannot be accepted
mod id; // 25 characters of base 36
mod meta; // versions, names, labels
mod network; // networks and attachments
mod node; // machines
mod resources; // CPU, memory, generic resources, platforms
mod secret; // secrets and configs
mod service; // what to run and how to change it
mod task; // one attempt at running one slot
pub mod template; // placeholders in a container's settings
mod time; // points in time, revisions
mod tunnel; // keys of encrypted networks
mod unlock_key; // what opens a locked manager
mod view; // seeing and changing the cluster

pub use cluster::*;
pub use container::*;
pub use error::FieldError;
pub use id::*;
pub use meta::{Annotations, Driver, Labels, Meta};
pub use network::*;
pub use node::*;
pub use resources::*;
pub use secret::*;
pub use service::*;
pub use task::*;
pub use time::{Timestamp, Version};
pub use tunnel::*;
pub use unlock_key::{BadUnlockKey, UNLOCK_SUBSYSTEM, UnlockKey};
pub use view::*;
