//! How large a packet to each of the other nodes may be: what the kernel says of the way there, and what that node said of its device.

use super::NetlbNetwork;
use super::picture::{NetworkPicture, PeerNode, Picture, Touched};
use super::wanted::VXLAN_PORT;
use skep_netlb::{Paths, network_mtu};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Between two looks at all ways, where there are few.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The more nodes there are, the more rarely all ways are looked at: a look at one takes about 10 µs.
const LOOK_EVERY_PER_NODE: Duration = Duration::from_millis(20);
/// How often routers on the ways are asked what they take.
const PROBE_EVERY: Duration = Duration::from_secs(60);

/// What was found out last.
#[derive(Debug, Default)]
pub struct Ways {
    /// Opened when it is first needed; `None` as well while the kernel lets us have none.
    paths: Option<Paths>,
    /// By node. 0: there is no way.
    to: BTreeMap<IpAddr, u32>,
    /// Of this node's device towards the others; 0 = not known yet.
    pub own: u32,
    looked: Option<Instant>,
    probed: Option<Instant>,
    /// Networks of which nothing else changed are to have another size.
    pub is_owed: bool,
}

/// What a packet to a node may measure, if that is known from either side.
fn way(node: &PeerNode) -> Option<u32> {
    [node.path, node.mtu].into_iter().filter(|mtu| *mtu > 0).min()
}

/// Nodes of the other family are no peers.
fn others<'a>(known: &'a NetworkPicture, this: &'a PeerNode) -> impl Iterator<Item = &'a PeerNode> {
    known.peers.values().filter(|node| node.index != this.index && node.underlay.is_ipv4() == this.underlay.is_ipv4())
}

/// What a packet of a task may measure: the least over the network's nodes, so that one size serves all of its tasks. `None` where its user
/// chose, and while nothing is known. For an encrypted one all nodes count that any such network is on, since they share tunnels.
pub fn mtu(known: &NetworkPicture, picture: &Picture) -> Option<u32> {
    if known.network.wanted_mtu().is_some() || !super::convert::spans(&known.network) {
        return None;
    }
    let this = known.peers.get(&picture.node_index)?;
    let encrypted = known.network.is_encrypted();
    let path = if encrypted { picture.encrypted_path } else { others(known, this).filter_map(way).min() };
    path.map(|path| network_mtu(Some(path), this.underlay.is_ipv6(), encrypted))
}

/// The least over all nodes with which this one has an encrypted network.
fn encrypted_path(picture: &Picture) -> Option<u32> {
    let of = |known: &NetworkPicture| others(known, known.peers.get(&picture.node_index)?).filter_map(way).min();
    picture.networks.values().filter(|known| known.network.is_encrypted()).filter_map(of).min()
}

impl Ways {
    /// Finds out what is not known yet of the ways to the nodes of the picture, or all of it (`again`), and notes it there. Returns whether
    /// anything is new.
    pub fn look(&mut self, picture: &mut Picture, again: bool) -> bool {
        let Some(mut paths) = self.paths.take().or_else(open) else { return false };
        let this = picture.networks.values().find_map(|known| known.peers.get(&picture.node_index)).map(|node| node.underlay);
        let nodes = picture.networks.values().flat_map(|known| known.peers.values()).map(|node| node.underlay);
        let others: BTreeSet<IpAddr> = nodes.filter(|node| Some(*node) != this).collect();
        self.to.retain(|node, _| others.contains(node));
        let before = self.own;
        for node in others {
            let is_known = self.to.contains_key(&node);
            if is_known && !again {
                continue;
            }
            // What cannot be asked now stays as it was.
            let Ok(mtu) = paths.mtu_to(node) else { continue };
            if let Some(mtu) = mtu.filter(|_| !is_known) {
                paths.probe(node, port(picture), mtu);
            }
            self.to.insert(node, mtu.unwrap_or_default());
        }
        if let Some(this) = this.filter(|_| again || self.own == 0) {
            self.own = paths.mtu_of_device(this).ok().flatten().unwrap_or(self.own);
        }
        self.paths = Some(paths);
        self.note(picture) || before != self.own
    }

    /// Writes into the picture what is known; whether that was new to it.
    fn note(&self, picture: &mut Picture) -> bool {
        let mut is_new = false;
        for node in picture.networks.values_mut().flat_map(|known| known.peers.values_mut()) {
            let path = self.to.get(&node.underlay).copied().unwrap_or_default();
            is_new |= std::mem::replace(&mut node.path, path) != path;
        }
        let path = encrypted_path(picture);
        is_new | (std::mem::replace(&mut picture.encrypted_path, path) != path)
    }

    fn is_due(&self, now: Instant) -> bool {
        let nodes = u32::try_from(self.to.len()).unwrap_or(u32::MAX);
        let every = LOOK_EVERY.max(LOOK_EVERY_PER_NODE.saturating_mul(nodes));
        self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= every)
    }

    /// As large as the device lets them be: routers may take more than they did.
    fn probe(&mut self, picture: &Picture, now: Instant) {
        if self.own == 0 || self.probed.is_some_and(|probed| now.saturating_duration_since(probed) < PROBE_EVERY) {
            return;
        }
        self.probed = Some(now);
        if let Some(paths) = &self.paths {
            self.to.keys().for_each(|node| paths.probe(*node, port(picture), self.own));
        }
    }
}

fn port(picture: &Picture) -> u16 {
    if picture.vxlan_port == 0 { VXLAN_PORT } else { picture.vxlan_port }
}

fn open() -> Option<Paths> {
    Paths::open().inspect_err(|error| tracing::warn!(%error, "the kernel cannot be asked for the size of packets to other nodes")).ok()
}

impl NetlbNetwork {
    /// Looks at all ways if it is time: devices and routes change without a word to us.
    pub(super) fn look_at_ways(&self) {
        let now = Instant::now();
        let is_new = self.with(|state| {
            if !state.ways.is_due(now) {
                return false;
            }
            state.ways.looked = Some(now);
            let is_new = state.ways.look(&mut state.picture, true);
            state.ways.probe(&state.picture, now);
            std::mem::take(&mut state.ways.is_owed) | is_new
        });
        if is_new {
            // Nothing is named: any network may have another size.
            self.tell(|_| (Touched::new(), ()));
        }
    }

    /// See [`crate::executor::Network::underlay_mtu`].
    pub(super) async fn other_underlay_mtu(&self, told: u32) -> u32 {
        self.until(|state| ![0, told].contains(&state.ways.own)).await;
        self.with(|state| state.ways.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixtures::{back, peer};

    /// Of this node and some others: number, way there, what they say.
    fn picture(sizes: &[(u32, u32, u32)]) -> Picture {
        let mut known = back(&[1], &[]);
        for (index, path, mtu) in sizes {
            known.peers.insert(*index, PeerNode { path: *path, mtu: *mtu, ..peer(*index) });
        }
        Picture { node_index: 1, networks: [(known.network.id.clone(), known)].into(), ..Picture::default() }
    }

    fn size(picture: &Picture) -> Option<u32> {
        mtu(picture.networks.values().next().unwrap(), picture)
    }

    #[test]
    fn the_narrowest_way_is_that_of_the_whole_network() {
        assert_eq!(size(&picture(&[])), None, "it spans nothing");
        assert_eq!(size(&picture(&[(2, 9000, 9000), (3, 9000, 1400)])), Some(1350), "as that node says");
        assert_eq!(size(&picture(&[(2, 1500, 9000), (3, 9000, 0)])), Some(1450), "as this one knows");
        assert_eq!(size(&picture(&[(2, 0, 0)])), None, "nothing is known");
        let mut other = picture(&[(2, 9000, 9000)]);
        let known = other.networks.values_mut().next().unwrap();
        known.peers.insert(3, PeerNode { underlay: "2001:db8::3".parse().unwrap(), mtu: 1300, ..peer(3) });
        assert_eq!(size(&other), Some(8950), "a node that cannot be reached does not count");
    }

    #[test]
    fn what_the_user_chose_stays() {
        let mut chosen = picture(&[(2, 9000, 9000)]);
        let known = chosen.networks.values_mut().next().unwrap();
        let network = std::sync::Arc::make_mut(&mut known.network);
        network.spec.driver.get_or_insert_default().options.insert("mtu".into(), "1300".into());
        assert_eq!(size(&chosen), None);
    }

    #[test]
    fn ways_are_noted_and_news_is_news_once() {
        // Loopback is a way there is everywhere.
        let mut picture = picture(&[]);
        let known = picture.networks.values_mut().next().unwrap();
        known.peers.insert(1, PeerNode { underlay: [127, 0, 0, 1].into(), ..peer(1) });
        known.peers.insert(2, PeerNode { underlay: [127, 0, 0, 2].into(), ..peer(2) });
        let mut ways = Ways::default();
        assert!(ways.look(&mut picture, false));
        assert!(ways.own >= 1280);
        assert!(picture.networks.values().next().unwrap().peers[&2].path >= 1280);
        assert!(!ways.look(&mut picture, true));
        let known = picture.networks.values_mut().next().unwrap();
        known.peers.insert(2, PeerNode { underlay: [127, 0, 0, 2].into(), ..peer(2) });
        assert!(ways.look(&mut picture, false), "a manager told of the node anew");
        picture.networks.clear();
        ways.look(&mut picture, false);
        assert!(ways.to.is_empty());
    }
}
