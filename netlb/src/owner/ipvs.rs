//! Letting IPVS balance in a sandbox: services, the routes that bring packets to it, and what clients of UDP remember.

use super::apply::forget_stale;
use super::{Owner, Sandbox, refused};
use crate::delta::{Dirty, Members, Spread};
use crate::error::NetlbError;
use crate::ipvs::model::{difference, same};
use crate::ipvs::{Asked, Ipvs, ServiceChange};
use crate::names::SANDBOX_TABLE;
use crate::netns::Namespace;
use crate::nft::Family;
use crate::nft::socket::Nft;
use crate::plan::balancer::{Balancer, Held, Leading, Marks, through_sandbox};
use crate::plan::layout::End;
use crate::plan::namespace::LOCAL;
use crate::plan::tables::{MARKS, Published, marks_in};
use crate::plan::{self, Route, RouteKind, State, Unwanted};
use crate::wanted::{Network, Protocol, PublishedPort, Vip};
use skep_types::NetworkId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

/// IPVS in a sandbox, and what it was told.
#[derive(Debug)]
pub(super) struct Balancing {
    socket: Ipvs,
    plan: Balancer,
    /// `None`: to be read from the kernel.
    is: Option<Held>,
    /// Routes by which the sandbox takes packets to virtual addresses for its own.
    pub(super) routes: BTreeSet<Route>,
}

impl Balancing {
    /// Opens it; `found` is what was read in the sandbox.
    pub(super) fn open(namespace: &Namespace, found: &State) -> Result<Self, NetlbError> {
        let socket = namespace.inside("open IPVS in", Ipvs::open)?;
        let local = found.routes.iter().filter(|route| matches!(route.kind, RouteKind::Local { .. }));
        Ok(Self { socket, plan: Balancer::default(), is: None, routes: local.cloned().collect() })
    }

    /// What the kernel has; if it is not known, so are the marks not, which are in the table that an earlier run left.
    fn known(&mut self, nft: &mut Nft) -> io::Result<Held> {
        if let Some(mut is) = self.is.take() {
            self.count_connections(&mut is)?;
            return Ok(is);
        }
        let mut marks = self.plan.marks(Family::V4);
        marks.extend(self.plan.marks(Family::V6));
        for family in [Family::V4, Family::V6] {
            match nft.elements(family, SANDBOX_TABLE, MARKS) {
                Ok(elements) => marks.extend(marks_in(&elements)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.plan = Balancer::with_marks(marks);
        Ok(self.socket.read()?.into())
    }

    /// Reads what is connected to targets that only keep what is connected.
    fn count_connections(&mut self, is: &mut Held) -> io::Result<()> {
        for asked in is.closing().clone() {
            is.put(asked, Some(self.socket.targets(asked)?));
        }
        Ok(())
    }

    /// Brings these services of IPVS to what is wanted, and those that have somebody leaving.
    fn tell(&mut self, mut is: Held, mut which: BTreeSet<Asked>, exists: impl Fn(IpAddr) -> bool) -> io::Result<Told> {
        which.extend(is.closing());
        let mut changed = false;
        loop {
            let services = self.plan.services(&which, is.services(), &exists);
            let changes = difference(&is.some(&which), &services);
            changed |= !changes.is_empty();
            for change in &changes {
                self.socket.apply(*change)?;
            }
            for asked in &which {
                is.put(*asked, services.get(asked).cloned());
            }
            let closed = |change: &ServiceChange| matches!(change, ServiceChange::SetTarget { open: false, .. });
            if !changes.iter().any(closed) {
                break;
            }
            // Those that had nobody connected may go at once.
            self.count_connections(&mut is)?;
        }
        let addresses = self.plan.told(&which, is.services());
        self.is = Some(is);
        Ok(Told { changed, addresses })
    }

    /// Whether it is known what the kernel has.
    pub(super) fn is_known(&self) -> bool {
        self.is.is_some()
    }

    /// The marks of that virtual address, if it is served.
    pub(super) fn marks_served(&self, address: IpAddr) -> Option<Marks> {
        self.plan.marks_served(address)
    }

    /// The virtual addresses of that family that it serves.
    pub(super) fn marks(&self, family: Family) -> BTreeMap<IpAddr, Marks> {
        self.plan.marks(family)
    }

    fn routes_wanted(&self) -> BTreeSet<Route> {
        let addresses = [Family::V4, Family::V6].into_iter().flat_map(|family| self.plan.marks(family).into_keys());
        addresses.map(local).collect()
    }
}

/// Published ports that may differ, and what is left of them.
#[derive(Debug, Default)]
pub(super) struct SomePorts {
    which: BTreeSet<(Protocol, u16)>,
    published: Vec<PublishedPort>,
}

/// What telling it came to.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Anything was told: UDP may have been led elsewhere before.
    pub(super) changed: bool,
    /// The virtual addresses that were looked at.
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// By which a sandbox takes packets to that address for its own.
fn local(address: IpAddr) -> Route {
    Route { table: LOCAL, ..Route::new(address.into(), RouteKind::Local { link: "lo".into() }) }
}

fn routes_to(addresses: BTreeSet<IpAddr>) -> BTreeSet<Route> {
    addresses.into_iter().map(local).collect()
}

fn from_routes(routes: BTreeSet<Route>) -> State {
    State { routes, ..State::default() }
}

impl Sandbox {
    /// The sandbox's end of its link to the host.
    fn entries(&self) -> Vec<IpAddr> {
        let own = [self.slot.v4(End::Sandbox).addr(), self.slot.v6(End::Sandbox).addr()];
        let entered = self.network.ingress && !self.network.internal;
        own.into_iter().take(self.tables.len()).filter(|_| entered).collect()
    }

    /// Brings IPVS and what leads to it to what is wanted, if it balances here. Whether UDP may have been led elsewhere before.
    pub(super) fn balance(&mut self, wanted: &Spread, published: &[PublishedPort]) -> Result<bool, NetlbError> {
        let (place, entries) = (self.place(), self.entries());
        let failed = |source| NetlbError::Ipvs { place: place.clone(), source };
        let both = self.tables.len() > 1;
        let Some(balancing) = self.balancing.as_mut() else { return Ok(false) };
        let nft = self.namespace.nft.as_mut().expect("a sandbox has a netfilter socket");
        // From here on nobody knows what the kernel holds until all is done.
        let is = balancing.known(nft).map_err(failed)?;
        let vips = wanted.vips.iter().filter(|(address, _)| both || address.is_ipv4());
        let vips: Vec<_> = vips.map(|(address, backends)| Vip { address: *address, backends: backends.clone() }).collect();
        let every = balancing.plan.want(Leading { vips: &vips, published, entries: &entries }, is.services());
        let told = balancing.tell(is, every, |address| wanted.has(address)).map_err(failed)?;
        let routes = balancing.routes_wanted();
        let steps = plan::difference(&from_routes(balancing.routes.clone()), &from_routes(routes.clone()), Unwanted::Remove);
        NetlbError::all(refused(&place, self.namespace.route.apply(&steps)))?;
        balancing.routes = routes;
        Ok(told.changed)
    }

    /// The same where only those virtual addresses and ports may differ, of a sandbox of which is known what the kernel has.
    pub(super) fn balance_some(&mut self, wanted: &Spread, vips: &BTreeSet<IpAddr>, some: &SomePorts) -> Result<Told, NetlbError> {
        if self.balancing.is_none() {
            return Ok(Told::default());
        }
        let (place, entries) = (self.place(), self.entries());
        let failed = |source| NetlbError::Ipvs { place: place.clone(), source };
        let both = self.tables.len() > 1;
        let Some(balancing) = self.balancing.as_mut() else { return Ok(Told::default()) };
        let nft = self.namespace.nft.as_mut().expect("a sandbox has a netfilter socket");
        let is = balancing.known(nft).map_err(failed)?;
        let vips = vips.iter().filter(|address| both || address.is_ipv4());
        let backends = |address: &IpAddr| wanted.vips.get(address).cloned().unwrap_or_default();
        let vips: Vec<_> = vips.map(|address| Vip { address: *address, backends: backends(address) }).collect();
        let leading = Leading { vips: &vips, published: &some.published, entries: &entries };
        let touched = balancing.plan.want_some(leading, &some.which, is.services());
        let told = balancing.tell(is, touched, |address| wanted.has(address)).map_err(failed)?;
        let (served, gone): (BTreeSet<_>, BTreeSet<_>) =
            told.addresses.iter().partition(|address| balancing.plan.marks_served(**address).is_some());
        let (served, gone) = (routes_to(served), routes_to(gone));
        let come = served.difference(&balancing.routes).cloned().collect();
        let leave = gone.intersection(&balancing.routes).cloned().collect();
        let steps = plan::difference(&from_routes(leave), &from_routes(come), Unwanted::Remove);
        NetlbError::all(refused(&place, self.namespace.route.apply(&steps)))?;
        balancing.routes.retain(|route| !gone.contains(route));
        balancing.routes.extend(served);
        Ok(told)
    }

    /// Forgets UDP flows that IPVS leads elsewhere now.
    pub(super) fn forget_led_elsewhere(&mut self) {
        let place = self.place();
        let Some(balancing) = &self.balancing else { return };
        let nft = self.namespace.nft.as_mut().expect("a sandbox has a netfilter socket");
        for (table, _) in &self.tables {
            forget_stale(nft, table.table_family(), &place, |flow| balancing.plan.is_stale(flow));
        }
    }

    /// Whether IPVS holds what it was told, but for what is connected. What it holds is known afterwards.
    fn holds_services(&mut self) -> Result<bool, NetlbError> {
        let place = self.place();
        let Some(balancing) = self.balancing.as_mut() else { return Ok(true) };
        let Some(told) = balancing.is.take() else { return Ok(false) };
        let found = balancing.socket.read().map_err(|source| NetlbError::Ipvs { place, source })?;
        let held = same(&found, told.services());
        balancing.is = Some(found.into());
        Ok(held)
    }
}

impl Owner {
    /// Published ports as the host's tables lead them, those or all: with IPVS, to the sandbox that balances.
    /// `None`: as they are wanted.
    pub(super) fn led_by_host(&self, published: &Published, which: Option<&BTreeSet<(Protocol, u16)>>) -> Option<Published> {
        let balances = |sandbox: &&Sandbox| sandbox.balancing.is_some() && sandbox.network.ingress;
        let entries = self.sandboxes.values().find(balances)?.entries();
        let led = |(key, ports): (&(Protocol, u16), &Vec<PublishedPort>)| (*key, through_sandbox(ports, &entries));
        Some(match which {
            None => published.iter().map(led).collect(),
            Some(which) => which.iter().filter_map(|key| published.get_key_value(key)).map(led).collect(),
        })
    }

    /// The ports that IPVS leads on in that network.
    pub(super) fn published_into(&self, network: &Network) -> Vec<PublishedPort> {
        let wanted = self.wanted.iter().filter(|_| network.ingress && self.ipvs);
        wanted.flat_map(|wanted| wanted.ports().cloned()).collect()
    }

    /// Those of them that may differ, for that network.
    pub(super) fn some_published_into(&self, network: &Network, which: &BTreeSet<(Protocol, u16)>) -> SomePorts {
        if !network.ingress || !self.ipvs {
            return SomePorts::default();
        }
        let published = self.wanted.iter().flat_map(|wanted| which.iter().filter_map(|key| wanted.published.get(key)));
        SomePorts { which: which.clone(), published: published.flatten().cloned().collect() }
    }

    /// Tells IPVS of ports that may differ where nothing else does.
    pub(super) fn balance_ports(&mut self, dirty: &Dirty) -> Result<(), NetlbError> {
        let Some(wanted) = self.wanted.clone().filter(|_| self.ipvs && !dirty.published.is_empty()) else { return Ok(()) };
        let of_ingress =
            self.sandboxes.values().filter(|sandbox| sandbox.network.ingress && !dirty.networks.contains_key(&sandbox.network.id));
        let networks: Vec<Network> = of_ingress.map(|sandbox| sandbox.network.clone()).collect();
        let mut errors = Vec::new();
        for network in networks {
            match wanted.networks.get(&network.id) {
                Some(spread) => self.apply_members(spread, &Members::default(), &dirty.published, &mut errors),
                None => self.apply_members(&Spread::alone(network), &Members::default(), &dirty.published, &mut errors),
            }
        }
        NetlbError::all(errors)
    }

    /// Looks IPVS over, and lets targets go to which nothing is connected any more.
    pub(super) fn audit_balancing(&mut self, id: &NetworkId) -> Result<Option<String>, NetlbError> {
        let Some(all) = self.wanted.clone() else { return Ok(None) };
        let Some(sandbox) = self.sandboxes.get_mut(id).filter(|sandbox| sandbox.balancing.is_some()) else { return Ok(None) };
        let held = sandbox.holds_services()?;
        let (network, place) = (sandbox.network.clone(), sandbox.place());
        let published = self.published_into(&network);
        let wanted = all.networks.get(id).cloned().unwrap_or_else(|| Spread::alone(network));
        if let Some(sandbox) = self.sandboxes.get_mut(id) {
            sandbox.set_tables(&wanted, &published)?;
        }
        Ok((!held).then(|| format!("services of IPVS in {place}")))
    }
}
