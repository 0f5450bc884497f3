//! Encrypted networks: WireGuard from node to node, under the VXLAN.
//!
//! ```text
//!   task ─ sandbox ─ vx0 ══► VXLAN, from fd4e:…::1 to fd4e:…::2 ══► sw<tag>0 ══► WireGuard, UDP, 198.18.0.1 to 198.18.0.2
//! ```
//! An encrypted network's VXLAN has no addresses but those within the tunnels, and each of those belongs to one key: so there
//! is no other way for its packets. [`guard`] drops and counts what would be one all the same. What is wanted is data
//! ([`Encryption`]), which the owner's thread carries out with everything else (`owner/secure.rs`). A node's private keys are in
//! its [`Keyring`]. `netlb/docs/encryption.md` says how keys are rotated, and what is not promised.

pub(crate) mod backend; // by what it is done
pub(crate) mod device; // a device as data
mod error; // what can go wrong
#[cfg(test)]
mod fixtures; // nodes for tests
pub(crate) mod guard; // the tables that keep clear packets out and in
mod kernel; // the kernel's WireGuard
mod key; // public and private halves
mod keyring; // the private ones on the disk
pub(crate) mod path; // addresses and sizes within the tunnels
mod userspace; // ours, by a TUN device
mod wanted; // what is asked for

pub use backend::{Backend, can_encrypt};
pub use error::SecureError;
pub use guard::Dropped;
pub use key::{NotAKey, PrivateKey, PublicKey};
pub use keyring::Keyring;
pub use path::{Sizes, sizes};
pub use wanted::{Driver, Encryption, KeyEpoch, Tunnel, TunnelPeer};

/// How often a peer hears from us if there is nothing to say: what NATs and firewalls forget after 30 s (whitepaper §6.5), and
/// what makes the first handshake come before the first packet.
const KEEPALIVE_SECONDS: u16 = 25;
