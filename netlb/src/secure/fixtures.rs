//! Nodes of a cluster, for tests.

use super::key::{PrivateKey, PublicKey};
use super::wanted::{Driver, Encryption, KeyEpoch, Tunnel, TunnelPeer};
use skep_types::NetworkId;

/// The key is no point of the curve that anybody knows the private half of.
pub(super) fn peer(index: u32, epoch: u32) -> TunnelPeer {
    let mut key = [0x42; 32];
    key[..8].copy_from_slice(&(u64::from(index) << 32 | u64::from(epoch)).to_be_bytes());
    let port = if epoch.is_multiple_of(2) { 51820 } else { 51821 };
    let address = [198, 18, 0, u8::try_from(index).unwrap()];
    TunnelPeer { node_index: index, key: PublicKey(key), endpoint: (address, port).into() }
}

pub(super) fn tunnel(epoch: u32, peers: &[u32]) -> Tunnel {
    let port = if epoch.is_multiple_of(2) { 51820 } else { 51821 };
    let key = PrivateKey::generate().unwrap();
    Tunnel { epoch: KeyEpoch(epoch), key, port, peers: peers.iter().map(|index| peer(*index, epoch)).collect() }
}

/// Sends by the first of the tunnels.
pub(super) fn encryption(node_index: u32, tunnels: Vec<Tunnel>) -> Encryption {
    let sending = tunnels[0].epoch;
    Encryption { networks: [NetworkId::for_test(1)].into(), node_index, path_mtu: 1500, driver: Driver::Auto, tunnels, sending }
}
