//! Networks whose free addresses some node may still take for what they were, because this leader does not know what was freed lately.
//!
//! They open like single addresses in [`super::quarantine`]: when every node with an interest has acknowledged a revision of this
//! leader's, or after the same time.

use super::quarantine::LONGEST;
use skep_types::{NetworkId, Timestamp, Version};
use std::collections::BTreeMap;

/// The closed networks with the revision they wait for and since when; `None` until time is told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Embargo {
    networks: BTreeMap<NetworkId, (Version, Option<Timestamp>)>,
}

impl Embargo {
    /// Until its nodes have acknowledged this revision.
    pub fn close(&mut self, network: NetworkId, version: Version) {
        self.networks.insert(network, (version, None));
    }

    pub fn is_closed(&self, network: &NetworkId) -> bool {
        self.networks.contains_key(network)
    }

    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    pub fn forget(&mut self, network: &NetworkId) {
        self.networks.remove(network);
    }

    /// Tells the time. Returns whether a network was opened.
    pub fn settle(&mut self, now: Timestamp) -> bool {
        self.open(|_, (_, since)| *since.get_or_insert(now) + LONGEST <= now)
    }

    /// Given the revision that all nodes with an interest in a network acknowledged, if that is known. Returns whether one was opened.
    pub fn acknowledge(&mut self, acknowledged: &dyn Fn(&NetworkId) -> Option<Version>) -> bool {
        self.open(|network, (version, _)| acknowledged(network).is_some_and(|known| *version <= known))
    }

    fn open(&mut self, is_over: impl Fn(&NetworkId, &mut (Version, Option<Timestamp>)) -> bool) -> bool {
        let before = self.networks.len();
        self.networks.retain(|network, closed| !is_over(network, closed));
        self.networks.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_opens_when_all_nodes_heard_of_this_leader_or_after_a_minute() {
        let (one, two) = (NetworkId::for_test(1), NetworkId::for_test(2));
        let mut embargo = Embargo::default();
        embargo.close(one.clone(), Version(5));
        embargo.close(two.clone(), Version(5));
        assert!(!embargo.settle(Timestamp::from_secs(100)));
        assert!(!embargo.acknowledge(&|_| Some(Version(4))));
        assert!(embargo.acknowledge(&|network| (*network == one).then_some(Version(5))));
        assert!(!embargo.is_closed(&one) && embargo.is_closed(&two));
        assert!(!embargo.settle(Timestamp::from_secs(159)));
        assert!(embargo.settle(Timestamp::from_secs(160)) && embargo.is_empty());
    }
}
