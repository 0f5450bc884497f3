//! Carrying out encryption between nodes: tables that keep clear packets back, tunnels, routes into them.
//!
//! In this order, so that at no point anything leaves or comes in clear: the tables learn of a network before it spans nodes
//! ([`Owner::have_tunnels`], [`Owner::way_between_nodes`]), and forget it when it spans none any more
//! ([`Owner::leave_tunnels`]). A tunnel that fails leaves its peers without packets, not the packets without a tunnel.

use super::apply::{audit_table, table_error, tell};
use super::{Known, Owner, refused};
use crate::delta::Spread;
use crate::error::NetlbError;
use crate::handle::{EncryptionStatus, PeerStatus};
use crate::names::OVERLAY_LINK;
use crate::nft::{Family, Table};
use crate::plan::tables::Update;
use crate::plan::{Change, State, Unwanted, difference};
use crate::secure::backend::{self, Tunnels};
use crate::secure::device::{Device, DeviceChange, Found, FoundPeer, changes, device_name};
use crate::secure::guard::{self, Dropped, OnWire};
use crate::secure::path::{self, Sizes};
use crate::secure::{Backend, Driver, Encryption, SecureError, Tunnel};
use crate::sysctl;
use crate::wanted::Overlay;
use skep_failpoint::failpoint;
use skep_types::NetworkId;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{info, warn};

const LANES: [u8; 2] = [0, 1];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// What the kernel was told of encryption.
pub(super) struct Secure {
    by: Option<Running>,
    /// What is in place as far as it is known; looked at before anything is worked out, for most changes are none of ours.
    in_place: Option<Encryption>,
    /// Of the tunnels that are wanted; `None` if those cannot be.
    sizes: Option<Sizes>,
    devices: BTreeMap<String, Device>,
    /// Addresses and routes; `None`: to be read from the kernel.
    state: Option<State>,
    /// The networks that the tables know.
    guarded: BTreeSet<OnWire>,
    /// How much is known of the tables, in the order of [`FAMILIES`].
    tables: [Known; 2],
    /// Nothing of an earlier run is left that nobody wants.
    settled: bool,
}

/// What does WireGuard.
struct Running {
    asked: Driver,
    is: Backend,
    tunnels: Box<dyn Tunnels>,
}

impl Default for Secure {
    fn default() -> Self {
        let (devices, guarded, tables) = (BTreeMap::new(), BTreeSet::new(), [Known::No; 2]);
        Self { by: None, in_place: None, sizes: None, devices, state: None, guarded, tables, settled: false }
    }
}

impl Owner {
    /// Keeps clear packets of the encrypted networks back, and puts in place the tunnels that are wanted. What is not wanted any
    /// more stays until [`Owner::leave_tunnels`].
    pub(super) fn have_tunnels(&mut self, wanted: Option<&Encryption>) -> Vec<NetlbError> {
        let Some(wanted) = wanted else { return Vec::new() };
        let networks = self.on_wire(wanted).union(&self.secure.guarded).copied().collect();
        let guarded = self.guard(networks);
        failpoint!("netlb.secure.guarded");
        let mut results = vec![guarded];
        if self.secure.in_place.as_ref() != Some(wanted) {
            self.secure.in_place = None;
            let set_up = self.set_up_tunnels(wanted);
            self.secure.in_place = set_up.is_ok().then(|| wanted.clone());
            results.push(set_up);
        }
        results.into_iter().filter_map(Result::err).collect()
    }

    /// How a network spans nodes: an encrypted one over the tunnels. It is refused as long as clear packets of it could come in
    /// or leave, and one that was not encrypted before is cut off then.
    pub(super) fn way_between_nodes(&mut self, wanted: &Spread) -> Result<Option<Overlay>, NetlbError> {
        let (Some(overlay), Some(encryption)) = (&wanted.overlay, self.encryption_of(&wanted.network.id)) else {
            return Ok(wanted.overlay.clone());
        };
        let network = &wanted.network;
        let refused = |reason: String| NetlbError::BadOverlay { network: network.name.clone(), reason };
        let way = match self.secure.sizes {
            None => Err(refused("there can be no tunnels as they are asked for".into())),
            Some(sizes) if network.mtu > sizes.network => Err(refused(format!(
                "its packets may measure {} bytes, and encrypted ones {} where {} get from node to node; give it that mtu or less",
                network.mtu, sizes.network, encryption.path_mtu
            ))),
            Some(_) if !self.is_guarded(overlay, network.vni) => Err(refused("clear packets of it could not be kept back".into())),
            Some(_) => Ok(Some(path::over_tunnels(overlay.clone()))),
        };
        if way.is_err() {
            self.cut_clear_way(&network.id)?;
        }
        way
    }

    /// Takes away the tunnels that are not wanted, and lets the tables forget networks that are not encrypted any more.
    pub(super) fn leave_tunnels(&mut self, wanted: Option<&Encryption>) -> Vec<NetlbError> {
        let names: BTreeSet<String> =
            wanted.iter().flat_map(|wanted| wanted.tunnels.iter().map(|tunnel| self.device_name(tunnel))).collect();
        let mut results = Vec::new();
        let was_settled = self.secure.settled;
        if !was_settled || self.secure.devices.keys().any(|name| !names.contains(name)) {
            let gone = self.remove_devices(&names);
            self.secure.settled = gone.is_ok();
            results.push(gone);
            failpoint!("netlb.secure.left");
        }
        match wanted {
            Some(wanted) => {
                let networks = self.on_wire(wanted);
                if networks != self.secure.guarded {
                    results.push(self.guard(networks));
                }
            }
            None if was_settled && self.secure.tables == [Known::No; 2] && self.secure.by.is_none() => {}
            None => results.push(self.end_encryption()),
        }
        results.into_iter().filter_map(Result::err).collect()
    }

    /// Looks the tunnels over and mends them. What was mended, in words.
    pub(super) fn audit_tunnels(&mut self) -> Result<Vec<String>, NetlbError> {
        let Some(wanted) = self.wanted.clone() else { return Ok(Vec::new()) };
        let mut mended = Vec::new();
        let Some(encryption) = &wanted.encryption else {
            return NetlbError::all(self.leave_tunnels(None)).map(|()| mended);
        };
        mended.extend(self.audit_guard()?);
        let sizes = path::check(encryption)?;
        // If this fails half-way the next change finds out what is missing.
        let in_place = self.secure.in_place.take();
        self.run_backend(encryption.driver)?;
        for device in path::devices(encryption, &self.tag.tunnel_prefix(), sizes) {
            let steps = self.mend_device(device.clone())?;
            mended.extend(steps.iter().map(|step| format!("the tunnel {}: {step:?}", device.name)));
        }
        self.secure.state = None;
        mended.extend(self.route_into_tunnels(encryption, sizes)?.iter().map(|change| format!("the host: {change:?}")));
        self.secure.in_place = in_place;
        Ok(mended)
    }

    /// The tables that keep clear packets back, if any network is encrypted.
    pub(super) fn audit_guard(&mut self) -> Result<Vec<String>, NetlbError> {
        let mut mended = Vec::new();
        if self.wanted.as_ref().is_some_and(|wanted| wanted.encryption.is_some()) {
            for (at, family) in FAMILIES.into_iter().enumerate() {
                let table = self.guard_table(family);
                mended.extend(audit_table(&mut self.nft, &table, &mut self.secure.tables[at], "the host")?);
            }
        }
        Ok(mended)
    }

    pub(super) fn guard_is_missing(&mut self) -> Result<bool, NetlbError> {
        let name = self.tag.guard_table();
        for (at, family) in FAMILIES.into_iter().enumerate() {
            if self.secure.tables[at] == Known::Yes && !self.is_there(family, &name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// See [`crate::Netlb::encryption`].
    pub(super) fn encryption(&mut self) -> Result<EncryptionStatus, NetlbError> {
        let name = self.tag.guard_table();
        let mut dropped = Dropped::default();
        for family in FAMILIES {
            for (rule, packets) in self.nft.counted(family, &name).map_err(|source| table_error(&name, "the host", source))? {
                dropped.add(&rule, packets);
            }
        }
        let mut status = EncryptionStatus { by: self.secure.by.as_ref().map(|by| by.is), dropped, peers: Vec::new() };
        let wanted = self.wanted.clone();
        for tunnel in wanted.iter().flat_map(|wanted| &wanted.encryption).flat_map(|encryption| &encryption.tunnels) {
            let name = self.device_name(tunnel);
            let found = self.secure.by.as_mut().map_or(Ok(None), |by| by.tunnels.read(&name))?.unwrap_or_default();
            let handshake = |key| found.peers.get(key).and_then(|found: &FoundPeer| found.handshake);
            let (epoch, peers) = (tunnel.epoch, tunnel.peers.iter());
            status.peers.extend(peers.map(|peer| PeerStatus { epoch, node_index: peer.node_index, handshake: handshake(&peer.key) }));
        }
        status.peers.sort();
        Ok(status)
    }

    fn device_name(&self, tunnel: &Tunnel) -> String {
        device_name(&self.tag.tunnel_prefix(), tunnel)
    }

    fn encryption_of(&self, network: &NetworkId) -> Option<&Encryption> {
        let encryption = self.wanted.as_ref().and_then(|wanted| wanted.encryption.as_ref());
        encryption.filter(|encryption| encryption.networks.contains(network))
    }

    /// The encrypted networks as packets show them. One that is not said to span nodes (yet) has no packets.
    fn on_wire(&self, encryption: &Encryption) -> BTreeSet<OnWire> {
        let wanted = self.wanted.iter().flat_map(|wanted| wanted.networks.values());
        let encrypted = wanted.filter(|wanted| encryption.networks.contains(&wanted.network.id));
        encrypted.filter_map(|wanted| Some(OnWire { port: wanted.overlay.as_ref()?.port, vni: wanted.network.vni })).collect()
    }

    fn is_guarded(&self, overlay: &Overlay, vni: u32) -> bool {
        self.secure.tables == [Known::Yes; 2] && self.secure.guarded.contains(&OnWire { port: overlay.port, vni })
    }

    fn guard_table(&self, family: Family) -> Table {
        guard::table(family, self.tag.guard_table(), &self.tag.tunnel_prefix(), &self.secure.guarded)
    }

    /// Lets the tables have these networks and no others.
    fn guard(&mut self, networks: BTreeSet<OnWire>) -> Result<(), NetlbError> {
        if networks == self.secure.guarded && self.secure.tables == [Known::Yes; 2] {
            return Ok(());
        }
        let name = self.tag.guard_table();
        let before = std::mem::replace(&mut self.secure.guarded, networks);
        let update = Update { changes: guard::difference(&before, &self.secure.guarded), ..Update::default() };
        for (at, family) in FAMILIES.into_iter().enumerate() {
            let whole = self.guard_table(family);
            if let Err(source) = tell(&mut self.nft, &name, &mut self.secure.tables[at], &update, || whole, family) {
                // The other one may lack the update, so both are told anew.
                self.secure.tables = [Known::No; 2];
                return Err(table_error(&name, "the host", source));
            }
        }
        Ok(())
    }

    fn run_backend(&mut self, asked: Driver) -> Result<&mut Running, SecureError> {
        if self.secure.by.as_ref().is_none_or(|by| by.asked != asked) {
            // One ends before another begins: both have the same names and ports.
            self.secure.by = None;
            self.secure.devices.clear();
            let (is, tunnels) = backend::start(asked)?;
            info!(by = ?is, "packets between nodes of encrypted networks are encrypted");
            self.secure.by = Some(Running { asked, is, tunnels });
        }
        Ok(self.secure.by.as_mut().expect("it was put there above"))
    }

    fn set_up_tunnels(&mut self, wanted: &Encryption) -> Result<(), NetlbError> {
        backend::check_ipv6()?;
        self.secure.sizes = None;
        let sizes = path::check(wanted)?;
        self.secure.sizes = Some(sizes);
        self.run_backend(wanted.driver)?;
        for device in path::devices(wanted, &self.tag.tunnel_prefix(), sizes) {
            if self.secure.devices.get(&device.name) != Some(&device) {
                self.mend_device(device)?;
            }
        }
        self.route_into_tunnels(wanted, sizes).map(drop)
    }

    /// Reads the device and puts it in order; the steps that took.
    fn mend_device(&mut self, device: Device) -> Result<Vec<DeviceChange>, NetlbError> {
        let told = self.secure.devices.remove(&device.name);
        let Some(by) = &mut self.secure.by else { return Ok(Vec::new()) };
        // With another key or port it is another device: what it knows of its peers means nothing any more.
        let same = |found: &Found| found.key == Some(device.key.public()) && found.port == device.port;
        let found = by.tunnels.read(&device.name)?.filter(same);
        let is = match found {
            Some(found) => found,
            None => {
                by.tunnels.make(&device)?;
                failpoint!("netlb.secure.made");
                sysctl::let_tunnel_have_address(&device.name)?;
                self.secure.state = None;
                Found::default()
            }
        };
        let steps = changes(&is, &device, told.as_ref());
        if !steps.is_empty() {
            by.tunnels.change(&device, &steps)?;
        }
        failpoint!("netlb.secure.told");
        self.secure.devices.insert(device.name.clone(), device);
        Ok(steps)
    }

    /// Addresses and routes of the tunnels; the steps that took. Routes by a tunnel that is not wanted are led over to another one
    /// or taken away, while that tunnel itself stays for what is still on its way.
    fn route_into_tunnels(&mut self, wanted: &Encryption, sizes: Sizes) -> Result<Vec<Change>, NetlbError> {
        let state = path::host(wanted, &self.tag.tunnel_prefix(), sizes);
        if self.secure.state.as_ref() == Some(&state) {
            return Ok(Vec::new());
        }
        let mut is = match self.secure.state.take() {
            Some(known) => known,
            None => self.read_tunnels()?,
        };
        is.links.retain(|name, _| state.links.contains_key(name));
        let steps = difference(&is, &state, Unwanted::Remove);
        NetlbError::all(refused("the host", self.host.apply(&steps)))?;
        failpoint!("netlb.secure.routed");
        self.secure.state = Some(state);
        Ok(steps)
    }

    fn read_tunnels(&mut self) -> Result<State, NetlbError> {
        let prefix = self.tag.tunnel_prefix();
        let read = self.host.read(|link| link.starts_with(&prefix));
        read.map(path::part_of).map_err(|source| NetlbError::Netlink { place: "the host".into(), source })
    }

    /// Removes the devices of both lanes but those with these names, an earlier run's too.
    fn remove_devices(&mut self, kept: &BTreeSet<String>) -> Result<(), NetlbError> {
        let prefix = self.tag.tunnel_prefix();
        let mut errors: Vec<NetlbError> = Vec::new();
        for name in LANES.map(|lane| format!("{prefix}{lane}")).into_iter().filter(|name| !kept.contains(name)) {
            self.secure.devices.remove(&name);
            let failed = |source| SecureError::Device { link: name.clone(), step: "remove", source };
            let removed = match &mut self.secure.by {
                Some(by) => by.tunnels.remove(&name),
                None => self.host.delete_link(&name).map_err(failed),
            };
            errors.extend(removed.err().map(NetlbError::from));
        }
        NetlbError::all(errors)
    }

    /// Nothing is encrypted any more.
    fn end_encryption(&mut self) -> Result<(), NetlbError> {
        let mut errors = Vec::new();
        (self.secure.by, self.secure.in_place, self.secure.sizes, self.secure.state) = (None, None, None, None);
        let name = self.tag.guard_table();
        let mut there = Vec::new();
        for (at, family) in FAMILIES.into_iter().enumerate() {
            if self.secure.tables[at] != Known::No || self.is_there(family, &name)? {
                there.push((at, family));
            }
        }
        if there.is_empty() {
            return Ok(());
        }
        // Before the tables, which say that it is ours: another instance may have it too.
        errors.extend(refused("the host", self.host.apply(&[Change::RemoveRoute(path::nowhere())])));
        failpoint!("netlb.secure.unrouted");
        for (at, family) in there {
            let mut batch = self.nft.batch(family);
            batch.remove(&name);
            errors.extend(self.nft.commit(batch).err().map(|source| table_error(&name, "the host", source)));
            self.secure.tables[at] = Known::No;
        }
        self.secure.guarded.clear();
        NetlbError::all(errors)
    }

    fn is_there(&mut self, family: Family, name: &str) -> Result<bool, NetlbError> {
        let tables = self.nft.tables(family).map_err(|source| table_error(name, "the host", source))?;
        Ok(tables.iter().any(|table| table == name))
    }

    /// Deletes a network's link to other nodes if its packets travel in clear.
    fn cut_clear_way(&mut self, network: &NetworkId) -> Result<(), NetlbError> {
        let Some(sandbox) = self.sandboxes.get_mut(network) else { return Ok(()) };
        let failed = |source| NetlbError::Netlink { place: format!("the sandbox of network {network}"), source };
        let read = sandbox.namespace.route.read_one(OVERLAY_LINK).map_err(failed)?;
        let is_clear = read.links.get(OVERLAY_LINK).and_then(|link| link.vxlan).is_some_and(|vxlan| !path::is_inner(vxlan.underlay));
        if is_clear {
            warn!(%network, "a network that is to be encrypted cannot be yet; it is cut off from other nodes");
            sandbox.told = None;
            sandbox.namespace.route.delete_link(OVERLAY_LINK).map_err(failed)?;
        }
        Ok(())
    }
}
