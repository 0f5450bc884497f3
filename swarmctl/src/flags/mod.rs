//! Flags in the docker grammar, and what they mean in a service spec. Pure: nothing here asks the cluster.

mod create; // service create
mod grammar; // values of single flags
mod mount; // --mount
mod port; // --publish
mod shared; // flags of both create and update
#[cfg(test)]
mod tests;
mod update; // service update
mod values; // sizes, durations, pairs

pub use create::CreateFlags;
pub use grammar::{Grant, Grants};
pub use update::UpdateFlags;
pub use values::duration;
