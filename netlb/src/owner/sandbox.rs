//! A network's namespace on this node, and the host's link to it.

use super::{Balancing, Known, Owner, Sandbox, Told, refused};
use crate::error::NetlbError;
use crate::names::{self, GATEWAY_LINK};
use crate::netlink::VethEnd;
use crate::netns::{self, Namespace};
use crate::nft::Family;
use crate::plan::layout::{self, LINK_SLOTS, Slot};
use crate::plan::namespace::MAIN;
use crate::plan::tables::SandboxTable;
use crate::plan::{State, Unwanted, difference};
use crate::sysctl::{self, Purpose};
use crate::wanted::Network;
use skep_failpoint::failpoint;
use skep_types::NetworkId;
use std::collections::BTreeSet;
use std::path::PathBuf;
use tracing::info;

impl Owner {
    pub(super) fn sandbox_path(&self, network: &NetworkId) -> PathBuf {
        self.dir.join(names::sandbox_file(network))
    }

    /// Makes the network's sandbox, or finds the one of an earlier run and mends it. Cheap if it is known already.
    pub(super) fn ensure_sandbox(&mut self, network: &Network) -> Result<(), NetlbError> {
        if self.sandboxes.get(&network.id).is_some_and(|sandbox| sandbox.network == *network) {
            return Ok(());
        }
        self.set_up_sandbox(network)
    }

    /// Makes or mends the sandbox whether it is known or not.
    pub(super) fn set_up_sandbox(&mut self, network: &Network) -> Result<(), NetlbError> {
        let path = self.sandbox_path(&network.id);
        let known = match self.sandboxes.remove(&network.id) {
            Some(sandbox) if !sandbox.namespace.is_mounted() => {
                sandbox.take_apart();
                None
            }
            other => other,
        };
        let (namespace, created) = match known {
            Some(sandbox) => (sandbox.namespace, false),
            None => match Namespace::open(&path, Purpose::Sandbox)? {
                Some(namespace) => (namespace, false),
                None => (Namespace::create(&path, Purpose::Sandbox)?, true),
            },
        };
        failpoint!("netlb.sandbox.created");
        let mut namespace = namespace;
        let slot = self.link_to_host(network, &mut namespace)?;
        failpoint!("netlb.sandbox.linked");
        let place = format!("the sandbox of network {}", network.name);
        let netlink = |source| NetlbError::Netlink { place: place.clone(), source };
        let wanted = layout::sandbox(network, slot, self.ipv6);
        let is = if created { State::default() } else { namespace.route.read(|_| true).map_err(netlink)? };
        NetlbError::all(refused(&place, namespace.route.apply(&difference(&is, &wanted, Unwanted::Keep))))?;
        failpoint!("netlb.sandbox.addressed");
        let families = if self.ipv6 { vec![Family::V4, Family::V6] } else { vec![Family::V4] };
        let resets = sysctl::kernel_rejects_before_routing();
        let table = |family| SandboxTable::new(family, network, self.ipvs).resetting(resets);
        let tables = families.into_iter().map(|family| (table(family), Known::No)).collect();
        let told = created.then(Told::default);
        let balancing = if self.ipvs { Some(Balancing::open(&namespace, &is)?) } else { None };
        let mut sandbox = Sandbox { network: network.clone(), slot, namespace, tables, planned: false, told, balancing };
        sandbox.have_tables()?;
        failpoint!("netlb.sandbox.tables");
        if created {
            info!(network = %network.id, name = %network.name, "sandbox made");
        }
        self.sandboxes.insert(network.id.clone(), sandbox);
        self.have_host_tables()?;
        self.route_to_sandboxes()
    }

    /// The veth pair between host and sandbox, made if either end is missing; the slot it has.
    fn link_to_host(&mut self, network: &Network, namespace: &mut Namespace) -> Result<Slot, NetlbError> {
        if network.internal {
            return Ok(Slot(0)); // has no link, so uses none
        }
        if !self.host_forwards {
            sysctl::let_host_forward()?;
            self.host_forwards = true;
        }
        let name = self.tag.host_link(network);
        let failed = |source| NetlbError::CreateLink { link: name.clone(), source };
        let there = self.host.link_index(&name).map_err(failed)?.is_some();
        let here = namespace.route.link_index(GATEWAY_LINK).map_err(failed)?.is_some();
        if there && here {
            let state = self.host.read_one(&name).map_err(failed)?;
            let addresses = state.links.get(&name).into_iter().flat_map(|link| &link.addresses);
            if let Some(slot) = addresses.filter_map(|address| Slot::of_address(address.addr())).next() {
                sysctl::let_loopback_leave_by(&name)?;
                // An earlier run led host-mode ports there, perhaps one that nothing is published at any more: as above, what is
                // connected stays as long as the task.
                let singles = state.routes.iter().filter(|route| route.link() == Some(&name) && route.table == MAIN);
                let singles = singles.map(|route| route.to).filter(|to| to.prefix_len() == to.max_prefix_len());
                self.gone.was_led_by_host(&network.id, singles.map(|to| to.addr()));
                return Ok(slot);
            }
        } else {
            // A link of that name is the rest of a sandbox that the kernel has not taken apart yet.
            self.host.delete_link(&name).map_err(failed)?;
            namespace.route.delete_link(GATEWAY_LINK).map_err(failed)?;
            let end = |name| VethEnd { name, mac: None };
            let fd = namespace.fd();
            self.host.create_veth(&end(&name), &end(GATEWAY_LINK), fd, network.mtu).map_err(failed)?;
        }
        self.host_state.links.remove(&name);
        self.host_state.routes.retain(|route| route.link() != Some(&name));
        self.host_state.neighbours.retain(|neighbour| neighbour.link != name);
        sysctl::let_loopback_leave_by(&name)?;
        self.free_slot()
    }

    /// A slot that nobody has on this host, be it another instance.
    fn free_slot(&mut self) -> Result<Slot, NetlbError> {
        let netlink = |source| NetlbError::Netlink { place: "the host".into(), source };
        let addresses = self.host.all_addresses().map_err(netlink)?;
        let mut taken: BTreeSet<Slot> = addresses.into_iter().filter_map(Slot::of_address).collect();
        taken.extend(self.sandboxes.values().filter(|s| !s.network.internal).map(|sandbox| sandbox.slot));
        (0..LINK_SLOTS).map(Slot).find(|slot| !taken.contains(slot)).ok_or(NetlbError::SlotsUsedUp(LINK_SLOTS))
    }

    /// What of ours should be in the host's namespace.
    pub(super) fn host_wanted(&self) -> State {
        let mut by_host = self.wanted.as_ref().map(|wanted| wanted.reached_by_host()).unwrap_or_default();
        for (network, address) in self.wanted.iter().flat_map(|wanted| self.gone.still_led_by_host(wanted)) {
            by_host.entry(network).or_default().insert(address);
        }
        let (mut state, nobody) = (State::default(), BTreeSet::new());
        for sandbox in self.sandboxes.values() {
            let led = by_host.get(&sandbox.network.id).unwrap_or(&nobody);
            state.merge(layout::host(&sandbox.network, sandbox.slot, &self.tag, led, self.ipv6));
        }
        state
    }

    /// Addresses and routes of the host towards the sandboxes.
    pub(super) fn route_to_sandboxes(&mut self) -> Result<(), NetlbError> {
        let wanted = self.host_wanted();
        if wanted == self.host_state {
            return Ok(());
        }
        // Links of sandboxes that are gone went with them, so what is known of them must not be removed again.
        let mut is = self.host_state.clone();
        is.links.retain(|name, _| wanted.links.contains_key(name));
        is.routes.retain(|route| route.link().is_some_and(|name| wanted.links.contains_key(name)));
        is.neighbours.retain(|neighbour| wanted.links.contains_key(&neighbour.link));
        let failed = self.host.apply(&difference(&is, &wanted, Unwanted::Remove));
        failpoint!("netlb.host.routed");
        if failed.is_empty() {
            self.host_state = wanted;
        } else {
            self.host_state = State::default();
        }
        NetlbError::all(refused("the host", failed))
    }

    /// Removes sandboxes that are neither wanted nor used by a task.
    pub(super) fn remove_unused_sandboxes(&mut self) -> Vec<NetlbError> {
        let Some(wanted) = &self.wanted else { return Vec::new() };
        let mut used: BTreeSet<&NetworkId> = wanted.networks.keys().collect();
        let known = self.tasks.values().chain(self.pending.values().map(|pending| &pending.network));
        used.extend(known.flat_map(|task| task.attachments.iter().map(|attachment| &attachment.network.id)));
        let unused: Vec<NetworkId> = self.sandboxes.keys().filter(|id| !used.contains(id)).cloned().collect();
        let mut errors = Vec::new();
        for id in unused {
            // Its sockets hold the namespace, so they go first.
            if let Some(sandbox) = self.sandboxes.remove(&id) {
                sandbox.take_apart();
                failpoint!("netlb.sandbox.apart");
            }
            match netns::remove(&self.sandbox_path(&id)) {
                Ok(()) => info!(network = %id, "sandbox removed"),
                Err(error) => errors.push(error),
            }
        }
        errors.extend(self.route_to_sandboxes().err());
        errors
    }
}
