//! What the endpoints need of the node and of the cluster. `skepd` implements it.
//!
//! Objects are those of `skep-types`. An id is a full one everywhere: names and beginnings are looked up by the endpoints
//! (`lookup`). Refusals are [`ApiError`]s with the words that a client is to see; a node that is no manager refuses every call of
//! [`Cluster`] with 503 and one of dockerd's texts, see [`SwarmState::refusal`].

mod cluster; // services, tasks, secrets, networks …
mod containers; // of this node
mod happenings; // here and in the cluster
mod images; // of this node
mod node; // this node and its membership
mod reach; // the way to other nodes
mod volumes; // of this node

pub use cluster::*;
pub use containers::*;
pub use happenings::*;
pub use images::*;
pub use node::*;
pub use reach::*;
pub use volumes::*;

use std::sync::Arc;

/// State of all handlers. Clones share it.
#[derive(Clone)]
pub struct Backend {
    pub cluster: Arc<dyn Cluster>,
    pub node: Arc<dyn NodeLife>,
    pub containers: Arc<dyn Containers>,
    pub images: Arc<dyn Images>,
    pub volumes: Arc<dyn Volumes>,
    pub happenings: Arc<dyn Happenings>,
}
