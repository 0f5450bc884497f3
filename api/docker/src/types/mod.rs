//! The JSON of each object, as the API has it; from `skep-types` and back. One file per object.
//!
//! Written by Go's rules: keys as they stand, `omitempty` fields absent when zero, structs never absent, durations in
//! nanoseconds, times in RFC 3339, null where dockerd has null.

pub(crate) mod common; // versions, times
pub(crate) mod container_spec; // what a container is made of
pub(crate) mod create; // what containers are asked for
pub(crate) mod driver; // by name with options
pub(crate) mod mount; // what is mounted into a container
pub(crate) mod network; // networks, as /networks shows them
pub(crate) mod node; // nodes
pub(crate) mod privileges; // what a container may do
pub(crate) mod reference; // to secrets and configs
pub(crate) mod resources; // amounts
pub(crate) mod secret; // secrets and configs
pub(crate) mod service; // services
pub(crate) mod service_spec; // what a service is to be
pub(crate) mod swarm; // the cluster, requests about it
pub(crate) mod system; // info, version
pub(crate) mod task; // tasks
pub(crate) mod task_spec; // what a task is to be
pub(crate) mod unsaid; // what this API has no words for
pub(crate) mod value; // absence, lengths of time, words

#[cfg(test)]
mod tests; // what is written is read back
