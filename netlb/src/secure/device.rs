//! A WireGuard device as data: as it should be, as it is, and the steps between. Pure.

use super::key::{PrivateKey, PublicKey};
use super::path::{Sizes, inner, lane};
use super::wanted::Tunnel;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

/// As it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) key: PrivateKey,
    /// UDP.
    pub(crate) port: u16,
    pub(crate) mtu: u32,
    pub(crate) peers: BTreeMap<PublicKey, Place>,
}

/// Where a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) endpoint: SocketAddr,
    /// The one address that is its own: what comes from it has no other source, what goes there goes to it.
    pub(crate) inner: Ipv6Addr,
}

/// As it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) key: Option<PublicKey>,
    pub(crate) port: u16,
    pub(crate) peers: BTreeMap<PublicKey, FoundPeer>,
}

/// A peer as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FoundPeer {
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) allowed: BTreeSet<IpNet>,
    /// Time since the last handshake; `None` if there was none yet.
    pub(crate) handshake: Option<Duration>,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceChange {
    /// Set the device's key and port.
    Identity,
    RemovePeer(PublicKey),
    /// Add it, or give it this endpoint and this address and no other.
    SetPeer(PublicKey, Place),
}

impl Device {
    pub(crate) fn new(name: String, tunnel: &Tunnel, sizes: Sizes) -> Self {
        let place = |endpoint, index| Place { endpoint, inner: inner(index) };
        let peers = tunnel.peers.iter().map(|peer| (peer.key, place(peer.endpoint, peer.node_index))).collect();
        Self { name, key: tunnel.key.clone(), port: tunnel.port, mtu: sizes.tunnel, peers }
    }
}

/// The name of the device of a lane.
pub(crate) fn device_name(prefix: &str, tunnel: &Tunnel) -> String {
    format!("{prefix}{}", lane(tunnel))
}

/// What to do to the device. Peers that go come first: one that has a new key has its old one's address.
///
/// An endpoint that is other than was `told` stays: the peer's authentic packets came from there.
pub(crate) fn changes(is: &Found, wanted: &Device, told: Option<&Device>) -> Vec<DeviceChange> {
    let mut changes = Vec::new();
    if is.key != Some(wanted.key.public()) || is.port != wanted.port {
        changes.push(DeviceChange::Identity);
    }
    changes.extend(is.peers.keys().filter(|key| !wanted.peers.contains_key(*key)).map(|key| DeviceChange::RemovePeer(*key)));
    for (key, place) in &wanted.peers {
        let told = told.and_then(|told| told.peers.get(key));
        let found = is.peers.get(key);
        let there = found.is_some_and(|found| {
            let only: BTreeSet<IpNet> = [IpNet::from(std::net::IpAddr::V6(place.inner))].into();
            let endpoint = found.endpoint == Some(place.endpoint) || (found.endpoint.is_some() && told == Some(place));
            found.allowed == only && endpoint
        });
        if !there {
            changes.push(DeviceChange::SetPeer(*key, *place));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::tunnel;
    use super::super::path::sizes;
    use super::*;

    fn device(peers: &[u32]) -> Device {
        Device::new("w0".into(), &tunnel(4, peers), sizes(1500, false).unwrap())
    }

    fn as_found(device: &Device) -> Found {
        let peer = |place: &Place| FoundPeer {
            endpoint: Some(place.endpoint),
            allowed: [IpNet::from(std::net::IpAddr::V6(place.inner))].into(),
            handshake: None,
        };
        Found {
            key: Some(device.key.public()),
            port: device.port,
            peers: device.peers.iter().map(|(key, place)| (*key, peer(place))).collect(),
        }
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        let wanted = device(&[2, 3]);
        assert_eq!(changes(&as_found(&wanted), &wanted, None), []);
    }

    #[test]
    fn a_new_device_is_told_everything() {
        let wanted = device(&[2, 3]);
        let steps = changes(&Found::default(), &wanted, None);
        assert!(matches!(&steps[..], [DeviceChange::Identity, DeviceChange::SetPeer(..), DeviceChange::SetPeer(..)]), "{steps:?}");
    }

    #[test]
    fn a_peer_with_another_key_loses_its_old_one_first() {
        let wanted = device(&[2]);
        let mut is = as_found(&wanted);
        let old = PublicKey([7; 32]);
        let peer = is.peers.pop_first().unwrap().1;
        is.peers.insert(old, peer);
        let steps = changes(&is, &wanted, None);
        assert!(matches!(&steps[..], [DeviceChange::RemovePeer(key), DeviceChange::SetPeer(..)] if *key == old), "{steps:?}");
    }

    #[test]
    fn where_a_peer_came_from_counts_more_than_what_was_told_but_not_than_what_is_new() {
        let wanted = device(&[2]);
        let mut is = as_found(&wanted);
        let elsewhere = "203.0.113.9:4242".parse().unwrap();
        is.peers.values_mut().for_each(|peer| peer.endpoint = Some(elsewhere));
        assert_eq!(changes(&is, &wanted, Some(&wanted)), [], "it is behind a NAT");
        assert_eq!(changes(&is, &wanted, None).len(), 1, "after a start nobody knows what was told");
        let mut moved = wanted.clone();
        moved.peers.values_mut().for_each(|place| place.endpoint = "198.18.0.77:51820".parse().unwrap());
        assert_eq!(changes(&is, &moved, Some(&wanted)).len(), 1);
    }

    #[test]
    fn the_steps_lead_to_what_is_wanted_from_anywhere() {
        for (before, after) in [(&[][..], &[2, 3][..]), (&[2, 3], &[3, 4]), (&[2, 3, 4], &[]), (&[2], &[2])] {
            let (old, wanted) = (device(before), device(after));
            let mut is = as_found(&old);
            for step in changes(&is, &wanted, Some(&old)) {
                match step {
                    DeviceChange::Identity => (is.key, is.port) = (Some(wanted.key.public()), wanted.port),
                    DeviceChange::RemovePeer(key) => assert!(is.peers.remove(&key).is_some(), "only what is there is removed"),
                    DeviceChange::SetPeer(key, place) => {
                        let one = Device { peers: [(key, place)].into(), ..wanted.clone() };
                        is.peers.extend(as_found(&one).peers);
                    }
                }
            }
            assert_eq!(is, as_found(&wanted));
            assert_eq!(changes(&is, &wanted, Some(&wanted)), []);
        }
    }

    #[test]
    fn an_address_that_somebody_added_is_taken_away_again() {
        let wanted = device(&[2]);
        let mut is = as_found(&wanted);
        is.peers.first_entry().unwrap().get_mut().allowed.insert("::/0".parse().unwrap());
        assert_eq!(changes(&is, &wanted, Some(&wanted)).len(), 1);
    }
}
