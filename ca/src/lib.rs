//! Cluster identity: roots, join tokens, node certificates, and TLS configurations that renew themselves.
//!
//! * An authority: [`RootCa`] makes or loads a root and signs node certificates; [`JoinToken`] invites nodes.
//! * A node: [`NodeKey`] and its request, [`Identity`] (key, chain, roots), [`files`] that keep it, [`renewal_moment`].
//! * Connections: [`SecurityConfig`] is the handle everybody holds; [`serve_remote`] and [`serve_local`] turn listeners into
//!   streams of [`TlsConnection`]s that know their [`PeerIdentity`]; [`Connector`] is the client's side.
//!
//! Start with [`SecurityConfig`]. This crate knows no gRPC and no store: who may call what is decided by its users, from
//! [`PeerIdentity`]. Tasks: each [`TlsIncoming`] owns one that accepts, which owns one per handshake under way.
//! Clocks and random numbers are the caller's where a function is meant to be pure (tokens, renewal).

mod accept; // the server's side of one connection
mod authority; // HTTP/2 authorities that are none, on the local socket
mod bind; // the local socket's place in the file system
mod config; // the rustls configurations
mod connect; // the client's side
mod der; // pieces of DER and PEM
pub mod files; // the identity on disk
mod guest; // certificates that are no node's
mod identity; // key, certificate and roots of a node
mod incoming; // a listener that shakes hands
mod key; // private keys and certificate requests
mod manners; // who has had enough connections
mod peer; // who is at the other end
mod provider; // ring
mod refused; // who was not let in, counted
mod root; // the authority
mod roots; // the certificates a cluster trusts
mod seal; // the node key of a locked manager
mod secret; // text that must not be seen
mod security; // the configurations of this moment
mod sni; // server names that are no names, on the local socket
mod token; // join tokens
mod turns; // whose handshake is computed now

#[cfg(test)]
mod genuine_tests;
#[cfg(test)]
mod handshake_tests;
#[cfg(test)]
mod local_tests;

pub use accept::{AcceptError, Acceptor, Door, HANDSHAKE_TIMEOUT, TlsConnection};
pub use bind::{BindError, bind_local};
pub use config::unverified_client;
pub use connect::{CONNECT_TIMEOUT, ConnectError, Connector, connect_outside};
pub use files::FileError;
pub use guest::{
    BadGuest, CLIENT_LIFETIME, CLIENT_UNIT, Guest, GuestIdentity, LONGEST_CLIENT_LIFETIME, SERVER_UNIT, check_server_name, client_lifetime,
};
pub use identity::{BadIdentity, Expected, FirstManager, Identity, TlsInfo, renewal_moment};
pub use incoming::{Listener, TlsIncoming, serve_docker, serve_local, serve_remote};
pub use key::{BadCsr, BadKey, MAX_CSR, NodeKey, check_request, key_of_request};
pub use manners::{Manners, Unruly};
pub use peer::{BadSubject, PeerIdentity};
pub use provider::install_crypto_provider;
pub use refused::Refused;
pub use root::{
    CaError, CrossRequest, DEFAULT_LIFETIME, Issued, MANAGER_NAME, MIN_LIFETIME, ROOT_LIFETIME, ROOT_NAME, RootCa, Subject, WORKER_NAME,
    role_name,
};
pub use roots::{BadIssue, BadRoots, IssuerId, RootBundle, Untrusted};
pub use secret::{Secret, equal_in_constant_time};
pub use security::{BadDockerServer, Era, SecurityConfig, SecurityError};
pub use skep_types::{NodeRole, UnlockKey};
pub use token::{BadToken, JoinToken, role_of_token};
