//! Letting IPVS balance in a sandbox: services, the routes that bring packets to it, and what clients of UDP remember.

use super::apply::forget_stale;
use super::{Owner, Sandbox, refused};
use crate::delta::Spread;
use crate::error::NetlbError;
use crate::ipvs::model::{difference, same};
use crate::ipvs::{Ipvs, ServiceChange, Services};
use crate::names::SANDBOX_TABLE;
use crate::netns::Namespace;
use crate::nft::Family;
use crate::nft::socket::Nft;
use crate::plan::balancer::{Balancer, Leading, Marks, closing, through_sandbox};
use crate::plan::layout::End;
use crate::plan::namespace::LOCAL;
use crate::plan::tables::{MARKS, Published, marks_in};
use crate::plan::{self, Route, RouteKind, State, Unwanted};
use crate::wanted::{Network, PublishedPort, Vip};
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
    is: Option<Services>,
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
    fn known(&mut self, nft: &mut Nft) -> io::Result<Services> {
        if let Some(mut is) = self.is.take() {
            let refresh: Vec<_> = closing(&is).collect();
            for asked in refresh {
                is.insert(asked, self.socket.targets(asked)?);
            }
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
        self.socket.read()
    }

    /// Brings IPVS to what is wanted. Whether anything changed.
    fn tell(&mut self, mut is: Services, exists: impl Fn(IpAddr) -> bool) -> io::Result<bool> {
        let mut changed = false;
        loop {
            let services = self.plan.services(&is, &exists);
            let changes = difference(&is, &services);
            changed |= !changes.is_empty();
            for change in &changes {
                self.socket.apply(*change)?;
            }
            is = services;
            let closed = |change: &ServiceChange| matches!(change, ServiceChange::SetTarget { open: false, .. });
            if !changes.iter().any(closed) {
                break;
            }
            // Those that had nobody connected may go at once.
            let refresh: Vec<_> = closing(&is).collect();
            for asked in refresh {
                is.insert(asked, self.socket.targets(asked)?);
            }
        }
        self.plan.told(&is);
        self.is = Some(is);
        Ok(changed)
    }

    /// The virtual addresses of that family that it serves.
    pub(super) fn marks(&self, family: Family) -> BTreeMap<IpAddr, Marks> {
        self.plan.marks(family)
    }

    fn routes_wanted(&self) -> BTreeSet<Route> {
        let addresses = [Family::V4, Family::V6].into_iter().flat_map(|family| self.plan.marks(family).into_keys());
        let local = |address: IpAddr| Route { table: LOCAL, ..Route::new(address.into(), RouteKind::Local { link: "lo".into() }) };
        addresses.map(local).collect()
    }
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
        balancing.plan.want(Leading { vips: &vips, published, entries: &entries }, &is);
        let changed = balancing.tell(is, |address| wanted.has(address)).map_err(failed)?;
        let routes = balancing.routes_wanted();
        let state = |routes: &BTreeSet<Route>| State { routes: routes.clone(), ..State::default() };
        let steps = plan::difference(&state(&balancing.routes), &state(&routes), Unwanted::Remove);
        NetlbError::all(refused(&place, self.namespace.route.apply(&steps)))?;
        balancing.routes = routes;
        Ok(changed)
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
        let held = same(&found, &told);
        balancing.is = Some(found);
        Ok(held)
    }
}

impl Owner {
    /// Published ports as the host's tables lead them: with IPVS, to the sandbox that balances.
    /// `None`: as they are wanted.
    pub(super) fn led_by_host(&self, published: &Published) -> Option<Published> {
        let balances = |sandbox: &&Sandbox| sandbox.balancing.is_some() && sandbox.network.ingress;
        let entries = self.sandboxes.values().find(balances)?.entries();
        Some(published.iter().map(|(key, ports)| (*key, through_sandbox(ports, &entries))).collect())
    }

    /// The ports that IPVS leads on in that network.
    pub(super) fn published_into(&self, network: &Network) -> Vec<PublishedPort> {
        let wanted = self.wanted.iter().filter(|_| network.ingress && self.ipvs);
        wanted.flat_map(|wanted| wanted.ports().cloned()).collect()
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
