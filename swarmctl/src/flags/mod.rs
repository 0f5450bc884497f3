//! Flags in the docker grammar, and what they mean in a spec. Pure: nothing here asks the cluster.

mod address; // host:port of a manager
mod cluster; // cluster update
mod create; // service create
mod grammar; // values of single flags
mod mount; // --mount
mod network; // network create
mod node; // node update, node ls --filter
mod payload; // secret create, config create
mod port; // --publish
mod shared; // flags of both create and update
#[cfg(test)]
mod tests;
mod update; // service update
mod values; // sizes, durations, pairs

pub use address::manager_address;
pub use cluster::{ClusterFlags, ExternalCas, external_ca, set_external_cas};
pub use create::CreateFlags;
pub use grammar::{Grant, Grants, order};
pub use network::NetworkFlags;
pub use node::{NodeFilter, NodeFlags, node_filter, node_filters};
pub use payload::{PayloadFilter, PayloadFilters, PayloadFlags, payload_filter};
pub use update::UpdateFlags;
pub use values::duration;
