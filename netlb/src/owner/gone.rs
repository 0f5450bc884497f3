//! Connections that lead to tasks that are gone: they are found and forgotten after all that is pressing.
//!
//! A client whose connection is forgotten is led elsewhere by its next packet, which resets it. To find such connections is a walk through
//! the kernel's table, of tens of milliseconds where there are a hundred thousand; so nobody who asks whether a change is in place
//! waits for it, and a tenth of a processor is all that these walks take.

use super::apply::told_of_forgotten;
use super::{Dirty, Owner};
use crate::delta::{Desired, Part};
use crate::nft::flows::TCP;
use crate::nft::socket::Nft;
use crate::wanted::PublishedPort;
use skep_types::NetworkId;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tokio::time::Instant;

/// What is gone while so many wait is not looked for: the sandbox's table resets what leads there, and a host port's clients find out
/// by themselves.
const MOST: usize = 1024;
/// A walk is followed by so many times its own length without one.
const REST: u32 = 9;

type Place = (NetworkId, IpAddr);

/// What is to be looked for, and when.
#[derive(Debug, Default)]
pub(super) struct Gone {
    waiting: BTreeSet<Place>,
    /// Where host-mode ports lead, or led: the host remembers these connections, and a sandbox that is gone with its last task resets none.
    by_host: BTreeSet<Place>,
    not_before: Option<Instant>,
}

impl Gone {
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.not_before.unwrap_or_else(Instant::now))
    }

    /// The host leads there from now on.
    pub(super) fn led_by_host<'a>(&mut self, ports: impl Iterator<Item = &'a PublishedPort>) {
        for port in ports {
            let network = port.host_network();
            let places = port.backends().iter().filter_map(|backend| Some((network?.clone(), backend.address)));
            self.by_host.extend(places);
        }
    }

    /// The host led there before this run.
    pub(super) fn was_led_by_host(&mut self, network: &NetworkId, addresses: impl Iterator<Item = IpAddr>) {
        self.by_host.extend(addresses.map(|address| (network.clone(), address)));
    }

    /// Where the host led, though perhaps nothing is published there any more: what is connected stays as long as the task.
    pub(super) fn still_led_by_host<'a>(&'a self, wanted: &'a Desired) -> impl Iterator<Item = (&'a NetworkId, IpAddr)> {
        self.by_host.iter().filter(|place| has(wanted, place)).map(|(network, address)| (network, *address))
    }

    /// Notes which addresses no task has any more. Whether the host may have a route to one of them.
    pub(super) fn note(&mut self, dirty: &Dirty, wanted: &Desired) -> bool {
        let members = dirty.networks.iter().filter_map(|(id, part)| match part {
            Part::Members(members) => Some(members.addresses.iter().map(|address| (id.clone(), *address))),
            Part::Whole => None,
        });
        // The kernel's filter by IPv6 addresses gives those that do not match (`ctnetlink_filter_match_tuple`), and all are too many.
        let members = members.flatten().filter(|(_, address)| address.is_ipv4());
        let (by_host, waiting) = (self.by_host.iter().cloned(), self.waiting.len());
        let gone_by_host: Vec<Place> = by_host.filter(|place| !has(wanted, place) && !self.waiting.contains(place)).collect();
        let routed = !gone_by_host.is_empty();
        let gone = gone_by_host.into_iter().chain(members.filter(|place| !has(wanted, place)));
        self.waiting.extend(gone.take(MOST.saturating_sub(waiting)));
        routed
    }
}

fn has(wanted: &Desired, (network, address): &Place) -> bool {
    wanted.networks.get(network).is_some_and(|spread| spread.has(*address))
}

impl Owner {
    /// Looks for the connections that led to one address.
    pub(super) fn forget_gone(&mut self) {
        let Some(place) = self.gone.waiting.pop_first() else { return };
        let by_host = self.gone.by_host.remove(&place);
        if self.wanted.as_ref().is_some_and(|wanted| has(wanted, &place)) {
            if by_host {
                self.gone.by_host.insert(place);
            }
            return; // another task has it by now
        }
        let (network, address) = place;
        let start = Instant::now();
        if by_host {
            forget_led_to(&mut self.nft, "the host", address);
        }
        // IPVS forgets by itself.
        if let Some(sandbox) = self.sandboxes.get_mut(&network).filter(|sandbox| sandbox.balancing.is_none() && address.is_ipv4()) {
            let place = sandbox.place();
            forget_led_to(sandbox.namespace.nft.as_mut().expect("a sandbox has a netfilter socket"), &place, address);
        }
        let end = Instant::now();
        self.gone.not_before = Some(end + (end - start) * REST);
    }
}

fn forget_led_to(nft: &mut Nft, place: &str, address: IpAddr) {
    let flows = nft.flows_led_to(TCP, address);
    told_of_forgotten(nft, place, flows);
}
