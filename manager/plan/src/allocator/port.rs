//! Ports that every node answers.

use super::ranges::Serial;
use skep_types::{Protocol, PublishPlace, ServiceId};
use std::collections::{BTreeMap, HashMap};

/// Ports for services that do not name one (`SK/manager/allocator/portallocator.go`).
const FIRST_DYNAMIC: u128 = 30_000;
const LAST_DYNAMIC: u128 = 32_767;

/// A port as it is held: a number may be held by several services, at places that do not meet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Held {
    pub protocol: Protocol,
    pub number: u16,
    pub place: PublishPlace,
}

impl Held {
    pub fn meets(&self, other: &Self) -> bool {
        (self.protocol, self.number) == (other.protocol, other.number) && self.place.meets(&other.place)
    }

    fn key(&self) -> (Protocol, u16) {
        (self.protocol, self.number)
    }
}

#[derive(Debug)]
pub(crate) struct Ports {
    /// By place; mostly there is one.
    holders: HashMap<(Protocol, u16), BTreeMap<PublishPlace, ServiceId>>,
    dynamic: HashMap<Protocol, Serial>,
}

impl Default for Ports {
    fn default() -> Self {
        let dynamic = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| (protocol, Serial::new(FIRST_DYNAMIC, LAST_DYNAMIC)));
        Self { holders: HashMap::new(), dynamic: dynamic.into() }
    }
}

impl Ports {
    fn serial(&mut self, protocol: Protocol) -> &mut Serial {
        self.dynamic.get_mut(&protocol).expect("every protocol has its range")
    }

    /// Whoever has the number, at some place or at all.
    pub fn first_holder(&self, protocol: Protocol, number: u16) -> Option<&ServiceId> {
        self.holders.get(&(protocol, number))?.values().next()
    }

    /// A service other than `own` that has the port at a place which meets this one's.
    pub fn other_holder(&self, port: &Held, own: &ServiceId) -> Option<&ServiceId> {
        let mut all = self.holders.get(&port.key())?.iter();
        all.find(|(place, holder)| place.meets(&port.place) && *holder != own).map(|(_, holder)| holder)
    }

    pub fn claim(&mut self, port: &Held, holder: &ServiceId) {
        self.serial(port.protocol).claim(u128::from(port.number));
        self.holders.entry(port.key()).or_default().insert(port.place.clone(), holder.clone());
    }

    /// A number that nobody has.
    pub fn take(&mut self, protocol: Protocol, place: &PublishPlace, holder: &ServiceId) -> Option<u16> {
        let number = self.serial(protocol).take().and_then(|number| u16::try_from(number).ok())?;
        self.holders.insert((protocol, number), [(place.clone(), holder.clone())].into());
        Some(number)
    }

    pub fn release(&mut self, port: &Held) {
        if self.forget(port) {
            self.serial(port.protocol).release(u128::from(port.number));
        }
    }

    pub fn cancel(&mut self, port: &Held) {
        if self.forget(port) {
            self.serial(port.protocol).cancel(u128::from(port.number));
        }
    }

    /// Whether nobody has the number any more.
    fn forget(&mut self, port: &Held) -> bool {
        let Some(holders) = self.holders.get_mut(&port.key()) else { return true };
        holders.remove(&port.place);
        let none = holders.is_empty();
        if none {
            self.holders.remove(&port.key());
        }
        none
    }

    pub fn seek_end(&mut self) {
        self.dynamic.values_mut().for_each(Serial::seek_end);
    }
}
