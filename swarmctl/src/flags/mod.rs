//! Flags in the docker grammar, and what they mean in a service spec. Pure: nothing here asks the cluster.

mod mount; // --mount
mod port; // --publish
mod service; // everything of `service create` and `service update`
mod values; // sizes, durations, pairs

pub use service::{CreateFlags, Grant, Grants, UpdateFlags};
pub use values::duration;
