//! What one node has to be told anew. Pure.
//!
//! A set, not a queue: what changes twice before it is said is said once, as it is then. It is bounded by what there is: too many
//! single parts of a network become the whole of it.

use skep_types::{NetworkId, ServiceId, TaskId};
use std::collections::{BTreeMap, BTreeSet};

/// Parts of one network that are kept one by one; a node that reads slowly is told the whole network when there are more.
const MOST_PARTS: usize = 4_096;

/// Something a node has to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touch {
    /// The node's own number, or the port.
    Header,
    /// The node's interest in the network began, ended, or is of another kind now.
    Interest(NetworkId),
    /// The network's own settings.
    Network(NetworkId),
    /// A node with that number.
    Peer(NetworkId, u32),
    Endpoint(NetworkId, TaskId),
    /// The same for a task that is to leave: it does not wait for company.
    Leaving(NetworkId, TaskId),
    Service(NetworkId, ServiceId),
    /// One of the node's tasks may be stopped now.
    Cleared(TaskId),
}

/// What is to be said about one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Extent {
    Whole,
    Parts(Parts),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub network: bool,
    pub peers: BTreeSet<u32>,
    pub endpoints: BTreeSet<TaskId>,
    pub services: BTreeSet<ServiceId>,
}

impl Parts {
    fn len(&self) -> usize {
        usize::from(self.network) + self.peers.len() + self.endpoints.len() + self.services.len()
    }
}

/// All that one node has to be told.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Whatever was said before does not count any more.
    pub(super) everything: bool,
    pub(super) header: bool,
    pub(super) networks: BTreeMap<NetworkId, Extent>,
    pub(super) cleared: BTreeSet<TaskId>,
    urgent: bool,
    /// Since the last look, things put in twice included.
    count: usize,
}

impl Dirty {
    pub fn everything() -> Self {
        Self { everything: true, count: 1, urgent: true, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether it is to be said without waiting for more.
    pub fn is_pressing(&self, batch: usize) -> bool {
        self.urgent || self.count >= batch
    }

    pub fn put(&mut self, touch: Touch) {
        if self.everything {
            return;
        }
        self.count += 1;
        match touch {
            Touch::Header => self.header = true,
            Touch::Interest(network) => drop(self.networks.insert(network, Extent::Whole)),
            Touch::Network(network) => self.part(network, |parts| parts.network = true),
            Touch::Peer(network, index) => self.part(network, |parts| parts.peers.extend([index])),
            Touch::Endpoint(network, task) => self.part(network, |parts| parts.endpoints.extend([task])),
            Touch::Leaving(network, task) => {
                self.urgent = true;
                self.part(network, |parts| parts.endpoints.extend([task]));
            }
            Touch::Service(network, service) => self.part(network, |parts| parts.services.extend([service])),
            Touch::Cleared(task) => {
                self.urgent = true;
                self.cleared.insert(task);
            }
        }
    }

    fn part(&mut self, network: NetworkId, add: impl FnOnce(&mut Parts)) {
        let extent = self.networks.entry(network).or_insert_with(|| Extent::Parts(Parts::default()));
        if let Extent::Parts(parts) = extent {
            add(parts);
            if parts.len() > MOST_PARTS {
                *extent = Extent::Whole;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkId {
        NetworkId::for_test(1)
    }

    #[test]
    fn too_many_parts_become_the_whole() {
        let mut dirty = Dirty::default();
        for number in 0..=MOST_PARTS as u64 {
            assert!(matches!(dirty.networks.get(&network()), None | Some(Extent::Parts(_))));
            dirty.put(Touch::Endpoint(network(), TaskId::for_test(number)));
        }
        assert_eq!(dirty.networks.get(&network()), Some(&Extent::Whole));
        dirty.put(Touch::Peer(network(), 1));
        assert_eq!(dirty.networks.get(&network()), Some(&Extent::Whole));
    }

    #[test]
    fn only_what_leaves_does_not_wait() {
        let mut dirty = Dirty::default();
        dirty.put(Touch::Endpoint(network(), TaskId::for_test(1)));
        assert!(!dirty.is_empty() && !dirty.is_pressing(100));
        dirty.put(Touch::Leaving(network(), TaskId::for_test(1)));
        assert!(dirty.is_pressing(100));
        let mut dirty = Dirty::default();
        (0..100).for_each(|index| dirty.put(Touch::Peer(network(), index)));
        assert!(dirty.is_pressing(100));
    }
}
