//! Encrypted networks: with which keys packets go to which nodes. Pure.
//!
//! A network that is to be encrypted has no way between nodes for which there are no keys at both ends: then it ends at this node.

use super::held::Held;
use super::picture::{Epochs, PeerNode, Picture};
use skep_netlb::{Driver, Encryption, KeyEpoch, PrivateKey, PublicKey, Tunnel, TunnelPeer};
use skep_types::{NetworkId, TaskId, TunnelKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// What a packet on the hosts' own network may measure, where that is not known.
const ETHERNET: u32 = 1500;

/// How this node encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// By what.
    pub driver: Driver,
    /// UDP port of the tunnels of even epochs; those of odd ones have the next.
    pub port: u16,
}

/// This node's end of the tunnels.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// `None`: it does not encrypt.
    pub ends: Option<Ends>,
    /// By epoch.
    pub keys: BTreeMap<u32, PrivateKey>,
}

/// The networks that are to be encrypted, whether or not a manager told of them.
fn encrypted(held: &BTreeMap<TaskId, Held>, picture: &Picture) -> BTreeSet<NetworkId> {
    let told = picture.networks.values().map(|known| &known.network);
    let attached = held.values().flat_map(|one| &one.task.networks).map(|attachment| &attachment.network);
    told.chain(attached).filter(|network| network.is_encrypted()).map(|network| network.id.clone()).collect()
}

impl Ends {
    fn port_of(self, epoch: u32) -> u16 {
        self.port + u16::from(epoch % 2 == 1)
    }
}

impl Own {
    /// The epochs in use that this node has keys of; none if it cannot send by the one that is to be sent by.
    fn epochs(&self, picture: &Picture) -> Option<(Ends, Epochs, Vec<u32>)> {
        let (ends, epochs) = (self.ends?, picture.epochs?);
        let known: Vec<u32> = epochs.all().filter(|epoch| self.keys.contains_key(epoch)).collect();
        known.contains(&epochs.sending).then_some((ends, epochs, known))
    }

    /// Whether packets can go to that node and come from it.
    pub fn reaches(&self, picture: &Picture, peer: &PeerNode) -> bool {
        self.epochs(picture).is_some_and(|(_, _, known)| peer.keys.iter().flatten().any(|key| known.contains(&key.epoch)))
    }

    /// How the networks that are to be encrypted are; `None` if there are none, or this node has no keys: then none of them spans nodes.
    pub fn encryption(&self, held: &BTreeMap<TaskId, Held>, picture: &Picture) -> Option<Encryption> {
        let networks = encrypted(held, picture);
        if networks.is_empty() || picture.node_index == 0 {
            return None;
        }
        let (ends, epochs, known) = self.epochs(picture)?;
        let tunnel = |epoch: u32| {
            let key = self.keys.get(&epoch)?.clone();
            let peers = peers(picture, epoch, key.public());
            Some(Tunnel { epoch: KeyEpoch(epoch), key, port: ends.port_of(epoch), peers })
        };
        Some(Encryption {
            networks,
            node_index: picture.node_index,
            path_mtu: picture.encrypted_path.unwrap_or(ETHERNET),
            driver: ends.driver,
            tunnels: known.into_iter().filter_map(tunnel).collect(),
            sending: KeyEpoch(epochs.sending),
        })
    }

    /// The public halves, for managers.
    pub fn public(&self) -> Vec<TunnelKey> {
        let Some(ends) = self.ends else { return Vec::new() };
        let tell =
            |(epoch, key): (&u32, &PrivateKey)| TunnelKey { epoch: *epoch, public: key.public().0.to_vec(), port: ends.port_of(*epoch) };
        self.keys.iter().map(tell).collect()
    }
}

/// The other ends of an epoch's tunnels. One key is one node's: who claims another's gets nothing, and takes nothing.
fn peers(picture: &Picture, epoch: u32, own: PublicKey) -> Vec<TunnelPeer> {
    let on_encrypted = picture.networks.values().filter(|known| known.network.is_encrypted()).flat_map(|known| known.peers.values());
    let nodes: BTreeMap<u32, &PeerNode> = on_encrypted.map(|node| (node.index, node)).collect();
    let mut claimed = BTreeSet::from([own]);
    let mut peers = Vec::new();
    for node in nodes.into_values().filter(|node| node.index != picture.node_index) {
        let Some(key) = node.keys.iter().flatten().find(|key| key.epoch == epoch) else { continue };
        if claimed.insert(PublicKey(key.public)) {
            let endpoint = SocketAddr::new(node.underlay, key.port);
            peers.push(TunnelPeer { node_index: node.index, key: PublicKey(key.public), endpoint });
        }
    }
    peers
}

#[cfg(test)]
mod tests;
