//! Addresses that were freed of late, as a manager remembers them that does not lead: what had them may be gone from the store when it
//! does, and some node may still know them.

use super::quarantine::LONGEST;
use super::service::vips;
use super::{addresses, holds_addresses};
use skep_types::{Change, NetworkId, Object, Version};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

/// Addresses that are remembered; with more the oldest are forgotten, and this manager does not know them all.
const MOST: usize = 65_536;

/// Times are those of a clock that cannot be set.
#[derive(Debug)]
pub struct FreedAddresses {
    /// Since when all are known; `None`: of the cluster's whole life.
    since: Option<Duration>,
    /// The oldest first.
    recent: VecDeque<(Duration, Freed)>,
}

/// An address, and the revision at which it was freed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    pub network: NetworkId,
    pub address: IpAddr,
    pub at: Version,
}

/// What a new leader is told of the last minute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FreedLately {
    pub addresses: Vec<Freed>,
    /// There may be more.
    pub incomplete: bool,
}

/// What an object in the store has for itself.
fn held(object: &Object) -> Vec<(NetworkId, IpAddr)> {
    match object {
        Object::Service(service) => vips(service),
        Object::Task(task) if holds_addresses(task) => addresses(&task.networks),
        Object::Node(node) => addresses(&node.attachments),
        _ => Vec::new(),
    }
}

impl FreedAddresses {
    /// `since`: when it begins to be told of changes; `None` if it is told of all there ever were.
    #[must_use]
    pub fn new(since: Option<Duration>) -> Self {
        Self { since, recent: VecDeque::new() }
    }

    /// Changes were missed before now.
    pub fn missed(&mut self, now: Duration) {
        self.since = Some(now);
    }

    /// A change that was committed as this revision, seen now.
    pub fn observe(&mut self, at: Version, change: &Change, now: Duration) {
        let (old, new) = match change {
            Change::Created(_) => return,
            Change::Updated { old, new } => (held(old), held(new)),
            Change::Removed(old) => (held(old), Vec::new()),
        };
        self.forget(now);
        let freed = old.into_iter().filter(|one| !new.contains(one));
        self.recent.extend(freed.map(|(network, address)| (now, Freed { network, address, at })));
        if self.recent.len() > MOST {
            self.recent.drain(..self.recent.len() - MOST);
            self.since = Some(self.recent.front().map_or(now, |(at, ..)| *at));
        }
    }

    /// Of the last minute.
    #[must_use]
    pub fn lately(&mut self, now: Duration) -> FreedLately {
        self.forget(now);
        let addresses = self.recent.iter().map(|(_, freed)| freed.clone()).collect();
        FreedLately { addresses, incomplete: self.since.is_some_and(|since| since + LONGEST > now) }
    }

    fn forget(&mut self, now: Duration) {
        while self.recent.pop_front_if(|(at, ..)| *at + LONGEST <= now).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Network, NetworkAttachment, NetworkSpec, Node, NodeId};
    use std::sync::Arc;

    fn with(address: &str) -> Object {
        let network = Arc::new(Network::new(NetworkId::for_test(1), NetworkSpec::default()));
        let addresses = vec![address.to_owned()];
        let mut node = Node::new(NodeId::for_test(1));
        node.attachments = vec![NetworkAttachment { network, addresses, aliases: Vec::new(), driver_attachment_opts: Default::default() }];
        Object::Node(Arc::new(node))
    }

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn last(of: &FreedLately) -> Vec<String> {
        of.addresses.iter().map(|freed| freed.address.to_string()).collect()
    }

    #[test]
    fn what_went_with_its_holder_is_known_for_a_minute() {
        let mut freed = FreedAddresses::new(None);
        freed.observe(Version(7), &Change::Created(with("10.0.0.2/24")), at(1));
        freed.observe(Version(7), &Change::Updated { old: with("10.0.0.2/24"), new: with("10.0.0.3/24") }, at(10));
        freed.observe(Version(7), &Change::Removed(with("10.0.0.3/24")), at(30));
        assert_eq!(last(&freed.lately(at(69))), ["10.0.0.2", "10.0.0.3"]);
        assert_eq!(last(&freed.lately(at(70))), ["10.0.0.3"]);
        assert_eq!(freed.lately(at(90)), FreedLately::default());
    }

    #[test]
    fn who_missed_something_says_so_for_a_minute() {
        let mut freed = FreedAddresses::new(Some(at(5)));
        assert!(freed.lately(at(64)).incomplete && !freed.lately(at(65)).incomplete);
        freed.missed(at(70));
        assert!(freed.lately(at(129)).incomplete && !freed.lately(at(130)).incomplete);
    }

    #[test]
    fn more_than_a_bound_is_not_remembered() {
        let mut freed = FreedAddresses::new(None);
        (0..=MOST as u64).for_each(|number| freed.observe(Version(7), &Change::Removed(with("10.0.0.2/24")), at(1 + number / MOST as u64)));
        let lately = freed.lately(at(2));
        assert!(lately.addresses.len() == MOST && lately.incomplete);
    }
}
