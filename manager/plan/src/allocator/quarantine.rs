//! Addresses that were freed and that some node may still take for what they were.
//!
//! An address goes back to the others when every node with an interest in its network, or that had one and may still have it in place, has
//! acknowledged a revision at which it was free, or after [`LONGEST`]: a node that hears nothing for so long is cut off, and nobody reaches it either.

use skep_types::{NetworkId, Timestamp, Version};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// How long a node that does not answer keeps an address from being given again.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// Another leader wrote when an address was freed, by its own clock: only what is older than this by ours was surely freed long ago.
const DOUBT: Duration = Duration::from_secs(3_600);

/// All freed addresses, by network.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    wards: BTreeMap<NetworkId, Ward>,
}

#[derive(Debug, Default)]
struct Ward {
    /// Every address in here with the revision it waits for; `None` until that is known.
    held: HashMap<IpAddr, Option<Version>>,
    /// Put in since the last look.
    fresh: BTreeMap<IpAddr, When>,
    /// The oldest first. An address may have been taken back meanwhile: `held` decides.
    waiting: VecDeque<Batch>,
}

/// When an address was freed, as far as that is known.
#[derive(Debug, Clone, Copy)]
enum When {
    /// By what is looked at next.
    Now,
    /// By somebody's clock.
    Since(Timestamp),
    /// By the commit of this revision.
    At(Version),
}

#[derive(Debug)]
struct Batch {
    version: Version,
    since: Timestamp,
    addresses: Vec<IpAddr>,
}

impl Ward {
    fn stamp(&mut self, version: Version, now: Timestamp) -> Vec<IpAddr> {
        let (mut batches, mut over) = (BTreeMap::<Version, Vec<IpAddr>>::new(), Vec::new());
        for (address, when) in std::mem::take(&mut self.fresh) {
            let Some(held) = self.held.get_mut(&address).filter(|held| held.is_none()) else { continue };
            let freed = match when {
                When::Since(since) if since + LONGEST + DOUBT <= now => {
                    self.held.remove(&address);
                    over.push(address);
                    continue;
                }
                When::Now | When::Since(_) => version,
                When::At(version) => version,
            };
            *held = Some(freed);
            batches.entry(freed).or_default().push(address);
        }
        self.waiting.extend(batches.into_iter().map(|(version, addresses)| Batch { version, since: now, addresses }));
        over
    }

    fn release(&mut self, is_over: impl Fn(&Batch) -> bool) -> Vec<IpAddr> {
        let mut released = Vec::new();
        while let Some(batch) = self.waiting.pop_front_if(|batch| is_over(batch)) {
            for address in batch.addresses {
                if self.held.get(&address) == Some(&Some(batch.version)) {
                    self.held.remove(&address);
                    released.push(address);
                }
            }
        }
        released
    }
}

impl Quarantine {
    /// An address was freed, now or at a time in the past.
    pub fn put(&mut self, network: &NetworkId, address: IpAddr, since: Option<Timestamp>) {
        let ward = self.wards.entry(network.clone()).or_default();
        ward.held.insert(address, None);
        ward.fresh.insert(address, since.map_or(When::Now, When::Since));
    }

    /// An address was freed by the commit of that revision, before this leader began: no later one has to be acknowledged.
    pub fn put_at(&mut self, network: &NetworkId, address: IpAddr, version: Version) {
        let ward = self.wards.entry(network.clone()).or_default();
        let before = match ward.fresh.get(&address) {
            Some(When::At(before)) => *before,
            _ => version,
        };
        ward.held.insert(address, None);
        ward.fresh.insert(address, When::At(version.max(before)));
    }

    /// Somebody has the address again: that it was freed was only tried out.
    pub fn take_back(&mut self, network: &NetworkId, address: IpAddr) {
        if let Some(ward) = self.wards.get_mut(network) {
            ward.held.remove(&address);
        }
    }

    pub fn holds(&self, network: &NetworkId, address: IpAddr) -> bool {
        self.wards.get(network).is_some_and(|ward| ward.held.contains_key(&address))
    }

    /// Everything in here, with the revision it waits for, if that is known.
    pub fn all(&self) -> impl Iterator<Item = (&NetworkId, IpAddr, Option<Version>)> {
        self.wards.iter().flat_map(|(network, ward)| ward.held.iter().map(move |(address, version)| (network, *address, *version)))
    }

    pub fn forget(&mut self, network: &NetworkId) {
        self.wards.remove(network);
    }

    pub fn is_empty(&self) -> bool {
        self.wards.is_empty()
    }

    /// What was put in before now was free at this revision. Returns what has waited long enough.
    pub fn settle(&mut self, version: Version, now: Timestamp) -> Vec<(NetworkId, IpAddr)> {
        self.look(|_, ward| {
            let mut released = ward.stamp(version, now);
            released.extend(ward.release(|batch| batch.since + LONGEST <= now));
            released
        })
    }

    /// Returns what no node holds any more, given the revision that all nodes with an interest in a network acknowledged; `None`: that is
    /// not known.
    pub fn acknowledge(&mut self, acknowledged: &dyn Fn(&NetworkId) -> Option<Version>) -> Vec<(NetworkId, IpAddr)> {
        self.look(|network, ward| match acknowledged(network) {
            Some(version) => ward.release(|batch| batch.version <= version),
            None => Vec::new(),
        })
    }

    fn look(&mut self, mut each: impl FnMut(&NetworkId, &mut Ward) -> Vec<IpAddr>) -> Vec<(NetworkId, IpAddr)> {
        let mut released = Vec::new();
        self.wards.retain(|network, ward| {
            released.extend(each(network, ward).into_iter().map(|address| (network.clone(), address)));
            !(ward.fresh.is_empty() && ward.waiting.is_empty())
        });
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn network() -> NetworkId {
        NetworkId::for_test(1)
    }

    /// Nothing.
    const NONE: [IpAddr; 0] = [];

    fn released(of: &mut Quarantine, acknowledged: u64) -> Vec<IpAddr> {
        of.acknowledge(&|_| Some(Version(acknowledged))).into_iter().map(|(_, address)| address).collect()
    }

    #[test]
    fn an_address_returns_when_all_nodes_know_that_it_is_free() {
        let mut quarantine = Quarantine::default();
        quarantine.put(&network(), address(1), None);
        assert_eq!(released(&mut quarantine, 99), NONE, "nobody can know a revision that is not known yet");
        assert_eq!(quarantine.settle(Version(5), Timestamp::from_secs(100)), []);
        quarantine.put(&network(), address(2), None);
        assert_eq!(quarantine.settle(Version(7), Timestamp::from_secs(101)), []);
        assert_eq!(released(&mut quarantine, 4), NONE);
        assert_eq!(released(&mut quarantine, 6), [address(1)]);
        assert!(!quarantine.holds(&network(), address(1)) && quarantine.holds(&network(), address(2)));
        assert_eq!(released(&mut quarantine, 7), [address(2)]);
        assert!(quarantine.is_empty());
    }

    #[test]
    fn a_node_that_says_nothing_holds_it_for_a_minute() {
        let mut quarantine = Quarantine::default();
        quarantine.put(&network(), address(1), None);
        quarantine.put(&network(), address(2), Some(Timestamp::from_secs(30)));
        quarantine.put(&network(), address(3), Some(Timestamp::from_secs(9_000)));
        let first = quarantine.settle(Version(5), Timestamp::from_secs(10_000));
        assert_eq!(first, [(network(), address(2))], "it was freed long ago");
        assert_eq!(quarantine.settle(Version(9), Timestamp::from_secs(10_059)), []);
        let second = quarantine.settle(Version(9), Timestamp::from_secs(10_060));
        assert_eq!(second, [(network(), address(1)), (network(), address(3))]);
    }

    #[test]
    fn what_was_freed_at_a_revision_that_is_known_waits_for_no_later_one() {
        let mut quarantine = Quarantine::default();
        quarantine.put(&network(), address(1), Some(Timestamp::from_secs(90)));
        for (last, version) in [(1, 4), (2, 7), (2, 6), (3, 9)] {
            quarantine.put_at(&network(), address(last), Version(version));
        }
        quarantine.put(&network(), address(3), None);
        assert_eq!(quarantine.settle(Version(20), Timestamp::from_secs(100)), []);
        assert_eq!(released(&mut quarantine, 6), [address(1)]);
        assert_eq!(released(&mut quarantine, 7), [address(2)], "freed twice");
        assert_eq!(released(&mut quarantine, 19), NONE, "freed once more");
        assert_eq!(released(&mut quarantine, 20), [address(3)]);
    }

    #[test]
    fn what_was_taken_back_is_not_released_and_may_be_freed_again() {
        let mut quarantine = Quarantine::default();
        quarantine.put(&network(), address(1), None);
        quarantine.take_back(&network(), address(1));
        quarantine.settle(Version(5), Timestamp::from_secs(100));
        assert_eq!(released(&mut quarantine, 99), NONE);
        quarantine.put(&network(), address(1), None);
        quarantine.settle(Version(6), Timestamp::from_secs(100));
        quarantine.take_back(&network(), address(1));
        quarantine.put(&network(), address(1), None);
        quarantine.settle(Version(8), Timestamp::from_secs(100));
        assert_eq!(released(&mut quarantine, 7), NONE, "the earlier time does not count");
        assert_eq!(released(&mut quarantine, 8), [address(1)]);
    }
}
