//! Carrying out what is wanted for the whole node.

use super::audit::Depth;
use super::overlay::remove_file_of_sandbox;
use super::{Known, Owner, Sandbox, refused};
use crate::error::NetlbError;
use crate::names::{self, SANDBOX_TABLE};
use crate::netns;
use crate::nft::flows::Flow;
use crate::nft::socket::Nft;
use crate::nft::{Family, Table};
use crate::plan::Change;
use crate::plan::tables::{InSandbox, Update};
use crate::wanted::{Location, Network, PublishedPort, TaskNetwork, Wanted, WantedNetwork};
use skep_failpoint::failpoint;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tracing::{debug, warn};

impl Owner {
    /// Goes on after a failure, so that one network cannot keep the others from working; returns all of them.
    pub(super) fn apply(&mut self, wanted: Arc<Wanted>) -> Result<(), NetlbError> {
        let mut errors = Vec::new();
        self.wanted = Some(Arc::clone(&wanted));
        errors.extend(self.have_tunnels(wanted.encryption.as_ref()));
        for network in &wanted.networks {
            if let Err(error) = self.ensure_sandbox(&network.network) {
                errors.push(error);
                continue;
            }
            errors.extend(self.follow(&network.network));
            errors.extend(self.join(network).err());
            failpoint!("netlb.apply.joined");
            let published = self.published_into(&network.network);
            if let Some(sandbox) = self.sandboxes.get_mut(&network.network.id) {
                errors.extend(sandbox.set_tables(network, &published).err());
            }
            failpoint!("netlb.apply.network");
        }
        errors.extend(self.join_no_others(&wanted));
        errors.extend(self.route_to_sandboxes().err());
        failpoint!("netlb.apply.routed");
        errors.extend(self.set_ports(&wanted).err());
        failpoint!("netlb.apply.ports");
        errors.extend(self.leave_all());
        errors.extend(self.remove_unused_sandboxes());
        errors.extend(self.leave_tunnels(wanted.encryption.as_ref()));
        NetlbError::all(errors)
    }

    /// Gives the tasks on a network that changed what is new: the size of packets, say.
    fn follow(&mut self, network: &Network) -> Vec<NetlbError> {
        let outdated = |task: &&TaskNetwork| task.attachments.iter().any(|a| a.network.id == network.id && a.network != *network);
        let tasks: Vec<TaskNetwork> = self.tasks.values().filter(outdated).cloned().collect();
        tasks.into_iter().filter_map(|task| self.mend_task(task).err()).collect()
    }

    /// What is wanted of a network counts, not what was when the task began.
    pub(super) fn up_to_date(&self, mut task: TaskNetwork) -> TaskNetwork {
        for attachment in &mut task.attachments {
            let wanted = self.wanted.iter().flat_map(|wanted| &wanted.networks);
            if let Some(wanted) = wanted.map(|wanted| &wanted.network).find(|network| network.id == attachment.network.id) {
                attachment.network.clone_from(wanted);
            }
        }
        task
    }

    fn set_ports(&mut self, wanted: &Wanted) -> Result<(), NetlbError> {
        let name = self.tag.table();
        // A node without networks and ports has no tables.
        let needed = !self.sandboxes.is_empty() || !wanted.published.is_empty();
        let published = self.led_by_host(&wanted.published).into_owned();
        for (family, table, known) in &mut self.tables {
            if !needed && *known == Known::No {
                continue;
            }
            let update = table.update(&published);
            // A whole table may take the place of an earlier run's, of which we do not know where it led.
            let flows_change = update.flows_change || *known != Known::Yes;
            tell(&mut self.nft, &name, known, &update, || table.table(), *family)
                .map_err(|source| table_error(&name, "the host", source))?;
            failpoint!("netlb.apply.flows");
            if flows_change {
                let addresses = self.host.all_addresses().unwrap_or_default();
                let is_here = |address: IpAddr| address.is_loopback() || addresses.contains(&address);
                forget_stale(&mut self.nft, *family, "the host", |flow| table.is_stale(flow, is_here));
            }
        }
        Ok(())
    }

    /// The host's tables without any port, if there are none of an earlier run: egress needs them.
    pub(super) fn have_host_tables(&mut self) -> Result<(), NetlbError> {
        let name = self.tag.table();
        let failed = |source| table_error(&name, "the host", source);
        for (family, table, known) in &mut self.tables {
            if *known != Known::No {
                continue;
            }
            if self.nft.tables(*family).map_err(failed)?.contains(&name) {
                *known = Known::Adopted;
                continue;
            }
            self.nft.replace(&table.table()).map_err(failed)?;
            *known = Known::Yes;
        }
        Ok(())
    }

    /// Takes away all that is ours. Links first, so that nothing reaches a host whose tables are gone.
    pub(super) fn remove_everything(&mut self) -> Result<(), NetlbError> {
        let mut errors = Vec::new();
        self.wanted = None;
        self.tasks.clear();
        for pending in self.pending.values_mut() {
            pending.removed = true;
        }
        for sandbox in std::mem::take(&mut self.sandboxes).into_values() {
            sandbox.take_apart();
        }
        failpoint!("netlb.everything.apart");
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let is_sandbox = entry.file_name().to_str().is_some_and(names::is_sandbox_file);
            let remove = if is_sandbox { remove_file_of_sandbox } else { netns::remove };
            errors.extend(remove(&entry.path()).err());
            failpoint!("netlb.everything.namespace");
        }
        let prefix = self.tag.link_prefix();
        match self.host.read(|link| link.starts_with(&prefix)) {
            Ok(state) => {
                let gone: Vec<Change> = state.links.into_keys().map(Change::RemoveLink).collect();
                errors.extend(refused("the host", self.host.apply(&gone)));
            }
            Err(source) => errors.push(NetlbError::Netlink { place: "the host".into(), source }),
        }
        self.host_state = crate::plan::State::default();
        failpoint!("netlb.everything.links");
        errors.extend(self.leave_tunnels(None));
        let name = self.tag.table();
        for (family, table, known) in &mut self.tables {
            *table = crate::plan::tables::HostTable::new(*family, self.tag.clone());
            *known = Known::No;
            let mut batch = self.nft.batch(*family);
            batch.remove(&name);
            errors.extend(self.nft.commit(batch).err().map(|source| table_error(&name, "the host", source)));
        }
        failpoint!("netlb.everything.tables");
        NetlbError::all(errors)
    }
}

impl Sandbox {
    pub(super) fn place(&self) -> String {
        format!("the sandbox of network {}", self.network.name)
    }

    /// Brings the tables, and IPVS if it balances, to what is wanted; `published` are the ports that end in this network.
    pub(super) fn set_tables(&mut self, wanted: &WantedNetwork, published: &[PublishedPort]) -> Result<(), NetlbError> {
        let place = self.place();
        let led_elsewhere = self.balance(wanted, published)?;
        let nft = self.namespace.nft.as_mut().expect("a sandbox has a netfilter socket");
        let here = wanted.endpoints.iter().filter(|endpoint| endpoint.location == Location::Local);
        let peers = wanted.overlay.iter().flat_map(|overlay| &overlay.peers);
        let mut inside = InSandbox {
            vips: &wanted.vips,
            marks: BTreeMap::new(),
            local: here.flat_map(|endpoint| endpoint.addresses.iter().copied()).collect(),
            peers: peers.map(|peer| (peer.mac, peer.node_index)).collect(),
        };
        for (table, known) in &mut self.tables {
            let family = table.table_family();
            inside.marks = self.balancing.as_ref().map(|balancing| balancing.marks(family)).unwrap_or_default();
            let update = table.update(&inside);
            tell(nft, SANDBOX_TABLE, known, &update, || table.table(), family)
                .map_err(|source| table_error(SANDBOX_TABLE, &place, source))?;
            if update.flows_change {
                forget_stale(nft, family, &place, |flow| table.is_stale(flow));
            }
        }
        if led_elsewhere {
            self.forget_led_elsewhere();
        }
        Ok(())
    }

    /// The tables without any virtual address, if there are none of an earlier run: egress needs them.
    pub(super) fn have_tables(&mut self) -> Result<(), NetlbError> {
        let place = self.place();
        let failed = |source| table_error(SANDBOX_TABLE, &place, source);
        let nft = self.namespace.nft.as_mut().expect("a sandbox has a netfilter socket");
        for (table, known) in self.tables.iter_mut().filter(|(_, known)| *known == Known::No) {
            if nft.tables(table.table_family()).map_err(failed)?.iter().any(|name| name == SANDBOX_TABLE) {
                *known = Known::Adopted;
                continue;
            }
            nft.replace(&table.table()).map_err(failed)?;
            *known = Known::Yes;
        }
        Ok(())
    }

    /// Puts tables that differ from what we told the kernel in order. What was mended, in words.
    pub(super) fn audit_tables(&mut self, depth: Depth) -> Result<Vec<String>, NetlbError> {
        let place = self.place();
        let nft = self.namespace.nft.as_mut().expect("a sandbox has a netfilter socket");
        let changed = nft.changed_by_others().map_err(|source| table_error(SANDBOX_TABLE, &place, source))?;
        if !changed && depth == Depth::WhatMayDiffer {
            return Ok(Vec::new());
        }
        let mut mended = Vec::new();
        for (table, known) in &mut self.tables {
            let whole = table.table();
            mended.extend(audit_table(nft, &whole, known, &place).inspect_err(|_| nft.look_again())?);
        }
        Ok(mended)
    }
}

pub(super) fn audit_table(nft: &mut Nft, table: &Table, known: &mut Known, place: &str) -> Result<Option<String>, NetlbError> {
    let failed = |source| table_error(&table.name, place, source);
    if *known == Known::Adopted || (*known == Known::Yes && nft.holds(table).map_err(failed)?) {
        return Ok(None);
    }
    nft.replace(table).map_err(failed)?;
    *known = Known::Yes;
    Ok(Some(format!("table {} of {:?} in {place}", table.name, table.family)))
}

/// Forgets UDP flows that lead nowhere. A failure costs clients up to two minutes, not the network: it is only told.
pub(super) fn forget_stale(nft: &mut Nft, family: Family, place: &str, is_stale: impl Fn(&Flow) -> bool) {
    let forgotten = nft.udp_flows(family, is_stale).and_then(|flows| {
        flows.iter().try_for_each(|flow| nft.forget(flow))?;
        Ok(flows.len())
    });
    match forgotten {
        Ok(0) => {}
        Ok(count) => debug!(place, count, "udp flows to where nothing is forgotten"),
        Err(error) => warn!(place, %error, "could not look for udp flows that lead nowhere; some clients may have to wait"),
    }
}

pub(super) fn table_error(table: &str, place: &str, source: std::io::Error) -> NetlbError {
    NetlbError::Table { table: table.to_owned(), place: place.to_owned(), source }
}

/// Sends the update, or the whole table where the kernel's is not known to be ours. One transaction either way: traffic
/// sees the old state or the new one.
pub(super) fn tell(
    nft: &mut Nft,
    name: &str,
    known: &mut Known,
    update: &Update,
    whole: impl FnOnce() -> Table,
    family: Family,
) -> std::io::Result<()> {
    if *known == Known::Yes {
        // Until this is through nobody knows what the kernel holds; the next attempt replaces the table.
        *known = Known::No;
        let mut batch = nft.batch(family);
        for chain in &update.chains {
            batch.chain(name, chain);
            batch.rules(name, chain);
        }
        batch.change(name, &update.changes);
        match nft.commit(batch) {
            // Somebody else changed our table: it is replaced below.
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::AlreadyExists) => {}
            other => {
                if other.is_ok() {
                    *known = Known::Yes;
                }
                return other;
            }
        }
    }
    *known = Known::No;
    nft.replace(&whole())?;
    *known = Known::Yes;
    Ok(())
}
