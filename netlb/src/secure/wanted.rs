//! What is wanted: which networks are encrypted, with which keys, between which nodes.

use super::key::{PrivateKey, PublicKey};
use skep_types::NetworkId;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Counts the generations of keys in a cluster: every node has one key pair per epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyEpoch(pub u32);

/// By what WireGuard is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Driver {
    /// The kernel where it can, else ourselves.
    #[default]
    Auto,
    Kernel,
    /// In this process, by a TUN device: packets flow only while it lives.
    Userspace,
}

/// How packets between nodes are encrypted, for those networks that ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// No packet of these leaves this node in clear, and none that came in clear is let in. To be said as soon as the network is
    /// known, whether or not there are keys yet: a network that is not in here *is* in clear.
    pub networks: BTreeSet<NetworkId>,
    /// This node's number in the cluster; its address within the tunnels follows from it.
    pub node_index: u32,
    /// What a packet to any of the other nodes may measure on its way, in bytes: see [`super::mtu`].
    pub path_mtu: u32,
    pub driver: Driver,
    /// One; two, of epochs that follow each other, while keys are rotated; none as long as keys are not known: then encrypted
    /// networks span no nodes, and it is an error that says so.
    pub tunnels: Vec<Tunnel>,
    /// The epoch whose tunnel this node sends by. It receives by all of them. A peer that is not in this one gets its packets
    /// by the other.
    pub sending: KeyEpoch,
}

/// This node's end of all tunnels of one epoch: a WireGuard device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    pub epoch: KeyEpoch,
    pub key: PrivateKey,
    /// UDP port of this node. Different in the two tunnels.
    pub port: u16,
    pub peers: Vec<TunnelPeer>,
}

/// The other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelPeer {
    pub node_index: u32,
    /// Of the same epoch.
    pub key: PublicKey,
    /// Its host's address and its port of this epoch. Behind a NAT it may come from elsewhere: what is authentic tells.
    pub endpoint: SocketAddr,
}
