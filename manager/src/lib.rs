//! The manager of a cluster: its API, and while it leads, the loops that bring the cluster to what was asked.
//!
//! Start with [`Manager::start`]. It is given a store and an identity; it opens no socket itself: the starter serves
//! [`ManagerHandle::remote_routes`] on the TCP port and [`ManagerHandle::local_routes`] on the local socket, by [`serve`].
//! [`initial_objects`] is what a new cluster's store begins with.
//!
//! Tasks of one manager, all owned by its handle:
//! * one that follows the raft group, one that tells it this manager's address, one that ends streams of nodes that lost
//!   their rights;
//! * one that follows the settings in the cluster object;
//! * one that follows the leadership, and per term of leading:
//!   * `drive`: the deciders of `skep-plan`, asked one after the other, each proposal committed before the next question;
//!   * `dispatcher`: three, for events to agents, writes from agents, and missed heartbeats;
//!   * `netstate`: what nodes have to know of networks, and have done about it;
//!   * `ca`: lets nodes in, signs certificates, moves nodes to a new root;
//!   * `roles`: promotes and demotes.
//! * Streams (sessions, assignments, networks, logs, watches) have no tasks: they are polled by their connections and end with them.
//!
//! Channels: one per log subscription, bounded, the publisher waits; all else is "look at the state again" by `Notify`.
//! Decisions are not made here but in `skep-plan`; what is written is kept by `skep-store`.

mod authorize; // who may call what
mod bootstrap; // what a cluster is born with
mod ca; // certificates for nodes
mod clock; // time
mod control; // the API for clients
mod cut; // answers that can be ended
mod dispatcher; // the API for agents
mod drive; // the loop of all deciders
mod forward; // calls that only the leader answers
mod health; // is this manager well
mod logs; // log lines from agents to clients
mod manager; // starting, leading, stopping
mod netstate; // networks that span hosts, as nodes have to know them
mod peers; // the other managers
mod resource; // networks for containers outside services
mod roles; // who is a manager
mod routes; // which services there are
mod serve; // gRPC over TLS
mod settings; // what the cluster object says about this manager
mod shared; // what all parts hold
mod tunnels; // to the Docker API of nodes
mod watch; // changes for clients

pub use authorize::ConnectionInfo;
pub use bootstrap::{NewCluster, initial_objects};
pub use control::{InHand, TakesInHand};
pub use drive::{AddressCounts, AddressTotals};
pub use manager::{Manager, ManagerConfig, ManagerHandle};
pub use peers::{JoinError, LeaveError, PeerTransport, join_managers};
pub use serve::{Crowd, RemoteAddr, ServeError, serve, serve_beside};
pub use shared::ManagerPeer;
/// What of a service is allowed but will not work as hoped.
pub use skep_plan::validate::advice;

/// The parts that have no clock, no socket and no task of their own, for the cluster simulator (`testing/sim`) and nobody else.
#[doc(hidden)]
pub mod pure {
    pub use crate::control::removal;
    pub use crate::dispatcher::pure::*;
    pub use crate::drive::{Draft, Mind, Own};
    pub use crate::netstate::pure::*;
}
