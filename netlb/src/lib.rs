//! The network of a node: a namespace per task, a sandbox per network, published ports.
//!
//! The agent says what it wants as data ([`Wanted`], [`TaskNetwork`]); this crate reads what is, works out the difference
//! (module `plan`, pure) and applies it over netlink. Every step may be repeated, so a crash at any point is mended by
//! asking again. What others break is noticed and mended unasked; [`Netlb::audit`] looks at all of it at once. Names of
//! links and tables carry a tag of the instance; nothing that is not ours is touched.
//!
//! Start with [`Netlb::start`]. It has one thread, `skep-netlb`, which owns all sockets and state and takes one message
//! after the other; a short-lived thread `skep-netns` makes or enters a namespace. `netlb/docs/netlb.md` has the pictures.
//!
//! A network may span nodes ([`Overlay`]): tasks, virtual addresses and published ports lead to wherever a task is.
//!
//! Networks may be encrypted between nodes ([`Encryption`]): WireGuard, the kernel's or our own.
//!
//! Connections are spread over tasks by nf_tables or IPVS ([`LbDriver`]).

mod delta; // what is wanted otherwise, and what is wanted by key
pub mod dns; // what tasks ask at 127.0.0.11
mod error; // what can go wrong
mod handle; // what the agent holds
mod ipvs; // the other load balancer
mod lb; // who balances
mod local; // which subnets this machine is in
mod names; // of links, tables and files
mod netlink; // messages and sockets of the kernel
mod netns; // making, entering and removing namespaces
mod nft; // nf_tables without the nft program
mod owner; // the thread that carries everything out
mod paths; // how large a packet between nodes may be
mod plan; // pure: from what is wanted to what to do
mod port; // is a port free on this host
mod said; // what is wanted, on its way to the owner
mod secure; // encrypted networks
mod sysctl; // settings of the kernel
mod wanted; // what the agent asks for

pub use delta::{Delta, NetworkDelta};
pub use error::NetlbError;
pub use handle::{Audit, Config, EncryptionStatus, Generation, Netlb, PeerStatus, TaskNetns};
pub use lb::{LbDriver, NoSuchDriver};
pub use local::local_prefixes;
pub use names::task_mac;
pub use owner::Oversight;
pub use paths::{Paths, network_mtu};
pub use port::port_is_taken;
pub use secure::{
    Backend as WireGuard, Driver, Dropped, Encryption, KeyEpoch, Keyring, NotAKey, PrivateKey, PublicKey, SecureError, Sizes, Tunnel,
    TunnelPeer, can_encrypt, sizes as encrypted_sizes,
};
pub use skep_types::{Affinity, PublishPlace};
pub use wanted::{
    Attachment, Backend, Endpoint, Lan, LanMode, Location, Mac, Network, Overlay, Peer, Protocol, PublishMode, PublishedPort, Subnet,
    TaskNetwork, Vip, Wanted, WantedNetwork,
};
