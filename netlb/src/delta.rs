//! What is wanted otherwise than before, and what is wanted by key, so that a change costs what changes and not what there is.
//!
//! [`Delta`] is what a caller says, [`Desired`] what the owner keeps, [`Dirty`] what of it must be told to the kernel.

use crate::secure::Encryption;
use crate::wanted::{Endpoint, Location, Network, Overlay, Protocol, PublishedPort, Vip, Wanted, WantedNetwork};
use skep_types::{NetworkId, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What is wanted otherwise than before; all that it does not name stays. Of two that follow each other the later one counts for
/// what both name, so they may be carried out as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    pub networks: BTreeMap<NetworkId, NetworkDelta>,
    /// All that is published on that port of this node, whatever the mode; nothing: it is published no more.
    pub published: BTreeMap<(Protocol, u16), Vec<PublishedPort>>,
    /// Whether this node holds the task.
    pub tasks: BTreeMap<TaskId, bool>,
}

/// How a network is wanted otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkDelta {
    /// It is new, or more of it changed than who is on it. Costs as much as there are tasks on it.
    Whole(WantedNetwork),
    /// It is not wanted any more.
    Gone,
    /// Only who is on it; means nothing for a network that is not wanted. `None`: not any more.
    Members { endpoints: BTreeMap<TaskId, Option<Endpoint>>, vips: BTreeMap<IpAddr, Option<Vec<IpAddr>>> },
}

impl Delta {
    /// Nothing is wanted otherwise.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.published.is_empty() && self.tasks.is_empty()
    }

    /// Makes it both, one after the other.
    pub(crate) fn then(&mut self, later: Self) {
        for (id, later) in later.networks {
            match (self.networks.get_mut(&id), later) {
                (Some(NetworkDelta::Gone), NetworkDelta::Members { .. }) => {}
                (Some(NetworkDelta::Whole(known)), NetworkDelta::Members { endpoints, vips }) => {
                    let mut merged = Spread::from(known.clone());
                    merged.change(endpoints, vips, &mut Members::default());
                    *known = merged.into();
                }
                (Some(NetworkDelta::Members { endpoints, vips }), NetworkDelta::Members { endpoints: late, vips: late_vips }) => {
                    endpoints.extend(late);
                    vips.extend(late_vips);
                }
                (_, later) => drop(self.networks.insert(id, later)),
            }
        }
        self.published.extend(later.published);
        self.tasks.extend(later.tasks);
    }
}

/// What was said and not carried out yet. No larger than what is wanted, however often something is said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Takes the place of all before.
    pub(crate) whole: Option<Desired>,
    /// Comes after that.
    pub(crate) delta: Delta,
}

impl Said {
    pub(crate) fn set(&mut self, wanted: Wanted) {
        *self = Self { whole: Some(wanted.into()), delta: Delta::default() };
    }

    pub(crate) fn change(&mut self, delta: Delta) {
        match &mut self.whole {
            Some(whole) => drop(whole.change(delta)),
            None => self.delta.then(delta),
        }
    }
}

/// What is wanted, by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Desired {
    pub(crate) networks: BTreeMap<NetworkId, Spread>,
    pub(crate) published: BTreeMap<(Protocol, u16), Vec<PublishedPort>>,
    pub(crate) tasks: BTreeSet<TaskId>,
    pub(crate) encryption: Option<Encryption>,
    /// Those ports to which the host needs a route.
    by_host: BTreeSet<(Protocol, u16)>,
}

/// A network and who is on it, by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spread {
    pub(crate) network: Network,
    pub(crate) overlay: Option<Overlay>,
    pub(crate) endpoints: BTreeMap<TaskId, Endpoint>,
    pub(crate) vips: BTreeMap<IpAddr, Vec<IpAddr>>,
    /// Who has an address. More than one may be said to, for a while.
    claims: BTreeMap<IpAddr, BTreeSet<TaskId>>,
}

/// What of a network must be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    /// Of tasks that came, went or moved.
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) vips: BTreeSet<IpAddr>,
}

/// See [`Members`]; `Whole` is also what is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    Members(Members),
}

/// What of what is wanted must be told to the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// All of it, named or not.
    pub(crate) everything: bool,
    pub(crate) networks: BTreeMap<NetworkId, Part>,
    pub(crate) published: BTreeSet<(Protocol, u16)>,
    /// A port to which the host needs a route came, went or changed.
    pub(crate) host_routes: bool,
}

impl Dirty {
    pub(crate) fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// Whether a network came, went, or more of one changed than who is on it.
    pub(crate) fn whole_networks(&self) -> bool {
        self.everything || self.networks.values().any(|part| *part == Part::Whole)
    }
}

impl From<Wanted> for Desired {
    fn from(wanted: Wanted) -> Self {
        let mut this = Self { tasks: wanted.tasks, encryption: wanted.encryption, ..Self::default() };
        this.networks = wanted.networks.into_iter().map(|network| (network.network.id.clone(), network.into())).collect();
        for port in wanted.published {
            this.published.entry((port.protocol, port.port)).or_default().push(port);
        }
        this.by_host = this.published.iter().filter(|(_, ports)| needs_host_route(ports)).map(|(key, _)| *key).collect();
        this
    }
}

fn needs_host_route(ports: &[PublishedPort]) -> bool {
    ports.iter().any(|port| port.host_network().is_some())
}

impl Desired {
    /// Takes the change over and says what must be told.
    pub(crate) fn change(&mut self, delta: Delta) -> Dirty {
        let mut dirty = Dirty::default();
        for (id, change) in delta.networks {
            let part = match change {
                NetworkDelta::Whole(network) => {
                    self.networks.insert(id.clone(), network.into());
                    Part::Whole
                }
                NetworkDelta::Gone => {
                    self.networks.remove(&id);
                    Part::Whole
                }
                NetworkDelta::Members { endpoints, vips } => {
                    let Some(known) = self.networks.get_mut(&id) else { continue };
                    let mut members = Members::default();
                    known.change(endpoints, vips, &mut members);
                    Part::Members(members)
                }
            };
            dirty.networks.insert(id, part);
        }
        for (key, ports) in delta.published {
            let by_host = needs_host_route(&ports);
            let was = if by_host { !self.by_host.insert(key) } else { self.by_host.remove(&key) };
            dirty.host_routes |= was || by_host;
            if ports.is_empty() {
                self.published.remove(&key);
            } else {
                self.published.insert(key, ports);
            }
            dirty.published.insert(key);
        }
        for (task, held) in delta.tasks {
            if held {
                self.tasks.insert(task);
            } else {
                self.tasks.remove(&task);
            }
        }
        dirty
    }

    /// The addresses to which the host needs a route, by network.
    pub(crate) fn reached_by_host(&self) -> BTreeMap<&NetworkId, BTreeSet<IpAddr>> {
        let mut by_network: BTreeMap<&NetworkId, BTreeSet<IpAddr>> = BTreeMap::new();
        for port in self.by_host.iter().filter_map(|key| self.published.get(key)).flatten() {
            if let Some(network) = port.host_network() {
                by_network.entry(network).or_default().extend(port.backends().iter().map(|backend| backend.address));
            }
        }
        by_network
    }

    /// All published ports, one after the other.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &PublishedPort> {
        self.published.values().flatten()
    }
}

impl From<WantedNetwork> for Spread {
    fn from(WantedNetwork { network, overlay, endpoints, vips }: WantedNetwork) -> Self {
        let mut this = Self::alone(network);
        this.overlay = overlay;
        for endpoint in endpoints {
            let task = endpoint.task.clone();
            this.put(task, Some(endpoint), &mut BTreeSet::new());
        }
        for Vip { address, backends } in vips {
            this.vips.entry(address).or_default().extend(backends);
        }
        this
    }
}

impl From<Spread> for WantedNetwork {
    fn from(Spread { network, overlay, endpoints, vips, claims: _ }: Spread) -> Self {
        let vips = vips.into_iter().map(|(address, backends)| Vip { address, backends }).collect();
        Self { network, overlay, endpoints: endpoints.into_values().collect(), vips }
    }
}

impl Spread {
    /// A network of this node only, which nobody needs to be told of.
    pub(crate) fn alone(network: Network) -> Self {
        Self { network, overlay: None, endpoints: BTreeMap::new(), vips: BTreeMap::new(), claims: BTreeMap::new() }
    }

    fn change(&mut self, endpoints: BTreeMap<TaskId, Option<Endpoint>>, vips: BTreeMap<IpAddr, Option<Vec<IpAddr>>>, dirty: &mut Members) {
        for (task, endpoint) in endpoints {
            self.put(task, endpoint, &mut dirty.addresses);
        }
        for (address, backends) in vips {
            match backends {
                Some(backends) => drop(self.vips.insert(address, backends)),
                None => drop(self.vips.remove(&address)),
            }
            dirty.vips.insert(address);
        }
    }

    /// In the place of what was known of the task; what addresses that is about goes into `dirty`.
    fn put(&mut self, task: TaskId, endpoint: Option<Endpoint>, dirty: &mut BTreeSet<IpAddr>) {
        let before = match &endpoint {
            Some(endpoint) => self.endpoints.insert(task.clone(), endpoint.clone()),
            None => self.endpoints.remove(&task),
        };
        for address in before.iter().flat_map(|before| &before.addresses) {
            dirty.insert(*address);
            if let Some(claims) = self.claims.get_mut(address) {
                claims.remove(&task);
                if claims.is_empty() {
                    self.claims.remove(address);
                }
            }
        }
        for address in endpoint.iter().flat_map(|endpoint| &endpoint.addresses) {
            dirty.insert(*address);
            self.claims.entry(*address).or_default().insert(task.clone());
        }
    }

    /// Where the address is.
    pub(crate) fn place(&self, address: IpAddr) -> Option<Location> {
        let task = self.claims.get(&address)?.last()?;
        self.endpoints.get(task).map(|endpoint| endpoint.location)
    }

    /// Whether any task has it.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.claims.contains_key(&address)
    }

    /// All addresses and where each is.
    pub(crate) fn places(&self) -> impl Iterator<Item = (IpAddr, Location)> {
        self.claims.keys().filter_map(|address| Some((*address, self.place(*address)?)))
    }
}

#[cfg(test)]
mod tests;
