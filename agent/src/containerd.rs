//! The executor that drives containerd: its tasks, containers, snapshots and events, and the files round a container.
//!
//! Used of containerd are only the services that 1.6 and all later versions have. Exits are learnt from one
//! subscription for all tasks ([`events`]); nothing polls.

mod client; // calls with namespace and deadline
mod config; // where containers are run
mod copyup; // filling a new volume from the image
mod events; // one subscription, who waits for which exit
mod exec; // processes that people talk with
mod failure; // runc's words into ours
mod files; // hosts, resolv.conf, secrets, fifos of one task
mod host; // what the kernel can do
mod init; // process 1 of containers that ask for one
mod local; // containers that are no tasks
mod prepare; // from a task to a container
mod probe; // health checks
mod recover; // what earlier lives left
mod rootfs; // looking into an image without mounting it
mod run; // the executor
mod shims; // processes that containerd lost
mod signal; // by name and number
pub(crate) mod spec; // OCI runtime specification, pure
mod start; // from a container to a process
mod stop; // and back to nothing
mod story; // what became of a container
mod volumes; // the local volume driver

pub use config::ContainerdConfig;
pub(crate) use exec::Begun;
pub use exec::Program;
pub(crate) use rootfs::{layers, open as open_in_layers};
pub use run::ContainerdExecutor;
pub(crate) use signal::signal_number;
pub use story::{Story, StoryMount};
pub(crate) use volumes::{check_options, is_volume_name, keep_options, options_of, unmount};
