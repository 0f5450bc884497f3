//! The Docker Engine API 1.24 to 1.50: HTTP in, calls of this node and of the cluster out.
//!
//! A translator without memory: whatever is asked is answered from [`Backend`], whose traits `skepd` implements over the
//! manager's services and the agent. What a field means is said in one place, the file of its object in `types`; what dockerd
//! would answer is the rule, and where this system cannot do what is asked it says so with 501 and a sentence.
//!
//! Start with [`serve`]: one task accepts, one per connection answers; they end with its token. A request goes through
//! `front` (version, headers), the routes of its object's file, `body` and `query` (what was asked), a trait of [`Backend`],
//! and comes back as JSON of `types` or as an [`ApiError`].

mod backend; // what the endpoints need of the node and of the cluster
mod body; // JSON as dockerd reads and writes it
mod config; // /configs
mod container; // /containers
mod container_id; // a task's container in this API
mod distribution; // /distribution
mod error; // refusals and their status
mod events; // /events
mod everywhere; // /containers of all nodes
mod exec; // /exec
mod filters; // ?filters=
mod front; // versions, headers, unknown paths
mod hijack; // connections that become streams
mod image; // /images
mod info; // /info
mod logs; // logs of services and tasks
mod lookup; // full id, name, beginning of an id
mod network; // /networks
mod node; // /nodes
mod outside; // requests over a network
mod query; // booleans and numbers of a query
mod secret; // /secrets
mod server; // listeners, connections
mod service; // /services
mod stream; // frames and lines
mod swarm; // /swarm
mod system; // /version, /_ping, /auth, what there is none of
mod talk; // a client and a process
mod task; // /tasks
mod tasks_only; // what other hosts reach of a node
mod types; // the JSON of each object
mod version; // of the API
mod volume; // /volumes
mod when; // points in time

pub use backend::*;
pub use container_id::{container_id, task_of_container, task_of_exec};
pub use error::{ApiError, ErrorKind};
pub use everywhere::task_labels;
pub use front::Front;
pub use outside::Gate;
pub use server::{Incoming, Listener, answer, serve};
pub use types::network::predefined_network_id;
pub use version::ApiVersion;
