//! Joining a sandbox to those of other nodes, and letting it go.
//!
//! What comes is put in place before virtual addresses and ports lead there, what goes is taken away after they lead
//! elsewhere: hence two steps, [`Owner::join`] and [`Owner::leave`].

use super::{Owner, Sandbox, refused};
use crate::delta::{Desired, Spread};
use crate::error::NetlbError;
use crate::names::OVERLAY_LINK;
use crate::netlink::route::RouteSocket;
use crate::netns::{self, Namespace};
use crate::plan::overlay::{self, leads_away, part_of};
use crate::plan::{Change, Link, Route, State, Unwanted, difference, layout};
use crate::sysctl::{self, Purpose};
use crate::wanted::{Network, Overlay};
use skep_failpoint::failpoint;
use skep_types::NetworkId;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use tracing::warn;

/// What the kernel was told of a network's other nodes.
#[derive(Debug, Default)]
pub(super) struct Told {
    overlay: Option<Overlay>,
    pub(super) state: State,
    /// Steps that [`Owner::leave`] has still to take.
    leaving: Vec<Change>,
}

impl Told {
    /// Whether nothing of it is left to do.
    pub(super) fn is_done(&self) -> bool {
        self.leaving.is_empty()
    }
}

/// What to do now, and what once nothing leads there any more.
struct Steps {
    coming: Vec<Change>,
    leaving: Vec<Change>,
}

impl Owner {
    /// Puts in place what other nodes are wanted on the network. Its sandbox must be there.
    pub(super) fn join(&mut self, wanted: &Spread) -> Result<(), NetlbError> {
        let network = &wanted.network;
        let overlay = self.way_between_nodes(wanted)?;
        let Some(sandbox) = self.sandboxes.get_mut(&network.id) else { return Ok(()) };
        let state = match &overlay {
            None => State::default(),
            Some(with) => {
                overlay::check(network, with)?;
                if !sysctl::kernel_has_ipv6() {
                    let reason = "nodes reach each other by IPv6 link-local addresses, and the kernel of this one has no IPv6; \
                                  boot it without ipv6.disable=1";
                    return Err(NetlbError::BadOverlay { network: network.name.clone(), reason: reason.into() });
                }
                overlay::overlay(network, with, wanted.places(), self.ipv6)
            }
        };
        let place = sandbox.place();
        let link = state.links.get(OVERLAY_LINK);
        let vxlan = |state: &State| state.links.get(OVERLAY_LINK).and_then(|link| link.vxlan);
        // From here on nobody knows what the kernel holds until all is done.
        let is = match sandbox.told.take() {
            Some(told) if told.leaving.is_empty() && vxlan(&told.state) == vxlan(&state) => told.state,
            _ => {
                if let Some(link) = link {
                    have_vxlan(&mut self.host, sandbox, network, link)?;
                }
                let read = sandbox.namespace.route.read(|link| link == OVERLAY_LINK);
                part_of(read.map_err(|source| NetlbError::Netlink { place: place.clone(), source })?)
            }
        };
        failpoint!("netlb.overlay.linked");
        let Steps { coming, leaving } = self.steps(&network.id, &is, &state);
        let sandbox = self.sandboxes.get_mut(&network.id).expect("it was there above");
        sandbox.take(&coming)?;
        failpoint!("netlb.overlay.told");
        sandbox.told = Some(Told { overlay, state, leaving });
        Ok(())
    }

    /// The same where only tasks with these addresses came, moved or went: looks at those alone, for the network may have
    /// thousands. What was told before must be done.
    pub(super) fn join_members(&mut self, wanted: &Spread, addresses: &BTreeSet<IpAddr>) -> Result<(), NetlbError> {
        let id = &wanted.network.id;
        let Some(told) = self.sandboxes.get(id).and_then(|sandbox| sandbox.told.as_ref()) else { return Ok(()) };
        let Some(overlay) = told.overlay.as_ref().filter(|_| !addresses.is_empty()) else { return Ok(()) };
        let places = addresses.iter().filter_map(|address| Some((*address, wanted.place(*address)?)));
        let state = State { routes: overlay::routes(overlay, places, self.ipv6), ..State::default() };
        let is = State { routes: overlay::routes_to(&told.state, addresses), ..State::default() };
        let steps = self.steps(id, &is, &state);
        let sandbox = self.sandboxes.get_mut(id).expect("it was there above");
        let mut told = sandbox.told.take().expect("it was there above");
        sandbox.take(&steps.coming)?;
        failpoint!("netlb.overlay.moved");
        for route in &is.routes {
            told.state.routes.remove(route);
        }
        told.state.routes.extend(state.routes);
        told.leaving = steps.leaving;
        sandbox.told = Some(told);
        Ok(())
    }

    /// From one state of the way to other nodes to another. A task of this node whose address is no longer said to be
    /// elsewhere takes its traffic over in the same step.
    fn steps(&self, network: &NetworkId, is: &State, state: &State) -> Steps {
        let mut target = state.clone();
        if !is.routes.is_empty() {
            target.routes.extend(self.routes_to_tasks(network).filter(|route| leads_away(is, route) && !leads_away(state, route)));
        }
        let (leaving, coming) = difference(is, &target, Unwanted::Remove).into_iter().partition(Change::takes_away);
        Steps { coming, leaving }
    }

    /// Takes away what [`Owner::join`] left because something might still lead there.
    pub(super) fn leave(&mut self, network: &NetworkId) -> Result<(), NetlbError> {
        let Some(sandbox) = self.sandboxes.get_mut(network) else { return Ok(()) };
        let Some(told) = sandbox.told.as_mut().filter(|told| !told.leaving.is_empty()) else { return Ok(()) };
        let steps = std::mem::take(&mut told.leaving);
        let failed = sandbox.namespace.route.apply(&steps);
        if !failed.is_empty() {
            sandbox.told = None;
        }
        failpoint!("netlb.overlay.left");
        NetlbError::all(refused(&sandbox.place(), failed))
    }

    /// [`Owner::leave`] for every network.
    pub(super) fn leave_all(&mut self) -> Vec<NetlbError> {
        let networks: Vec<NetworkId> = self.sandboxes.keys().cloned().collect();
        networks.iter().filter_map(|network| self.leave(network).err()).collect()
    }

    /// A sandbox that only a task keeps has no part in an overlay.
    pub(super) fn join_no_others(&mut self, wanted: &Desired) -> Vec<NetlbError> {
        let kept: Vec<NetworkId> = self.sandboxes.keys().filter(|id| !wanted.networks.contains_key(*id)).cloned().collect();
        kept.iter().filter_map(|id| self.join_nobody(id)).collect()
    }

    /// The same for one sandbox, if it is there.
    pub(super) fn join_nobody(&mut self, id: &NetworkId) -> Option<NetlbError> {
        let network = self.sandboxes.get(id)?.network.clone();
        self.join(&Spread::alone(network)).err()
    }

    /// The sandbox's routes to this node's tasks, whether or not one to another node has their place.
    fn routes_to_tasks(&self, network: &NetworkId) -> impl Iterator<Item = Route> {
        let on = self.tasks.values().flat_map(|task| task.attachments.iter().map(move |attachment| (task, attachment)));
        let here = on.filter(|(_, attachment)| attachment.network.id == *network);
        here.flat_map(|(task, attachment)| layout::sandbox_for_task(task, attachment, self.ipv6).routes)
    }
}

impl Sandbox {
    /// The underlay address and port at which its VXLAN device receives.
    pub(super) fn receives_at(&self) -> Option<(IpAddr, u16)> {
        let overlay = self.told.as_ref()?.overlay.as_ref()?;
        Some((overlay.this.underlay, overlay.port))
    }

    fn take(&mut self, steps: &[Change]) -> Result<(), NetlbError> {
        let failed = self.namespace.route.apply(steps);
        NetlbError::all(refused(&self.place(), failed))
    }

    /// Leaves out the routes whose place one to another node has.
    pub(super) fn without_moved(&self, mut state: State) -> State {
        if let Some(told) = &self.told {
            state.routes.retain(|route| !leads_away(&told.state, route));
        }
        state
    }

    /// Deletes the VXLAN device. The kernel would do so together with the namespace, but some time later, and as long
    /// nobody else could have its id.
    pub(super) fn take_apart(mut self) {
        if let Err(error) = self.namespace.route.delete_link(OVERLAY_LINK) {
            warn!(network = %self.network.id, %error, "the VXLAN device of a network that is removed could not be deleted");
        }
    }
}

/// Removes a sandbox that is known by its file only.
pub(super) fn remove_file_of_sandbox(path: &Path) -> Result<(), NetlbError> {
    match Namespace::open(path, Purpose::Sandbox) {
        Ok(Some(mut namespace)) => {
            if let Err(error) = namespace.route.delete_link(OVERLAY_LINK) {
                warn!(path = %path.display(), %error, "the VXLAN device of a network that is removed could not be deleted");
            }
        }
        Ok(None) => {}
        Err(error) => warn!(error = error.chain(), "a sandbox that is removed could not be looked into"),
    }
    netns::remove(path)
}

/// The device with that number, port and address; a different one is replaced.
fn have_vxlan(host: &mut RouteSocket, sandbox: &mut Sandbox, network: &Network, wanted: &Link) -> Result<(), NetlbError> {
    let (Some(vxlan), Some(mac)) = (wanted.vxlan, wanted.mac) else { return Ok(()) };
    let failed = |source| NetlbError::Vxlan { network: network.name.clone(), vni: vxlan.vni, port: vxlan.port, source };
    let route = &mut sandbox.namespace.route;
    if let Some(found) = route.read_one(OVERLAY_LINK).map_err(failed)?.links.get(OVERLAY_LINK) {
        if found.vxlan == Some(vxlan) {
            return Ok(());
        }
        route.delete_link(OVERLAY_LINK).map_err(failed)?;
    }
    host.create_vxlan(OVERLAY_LINK, &vxlan, mac, network.mtu, sandbox.namespace.fd()).map_err(failed)
}
