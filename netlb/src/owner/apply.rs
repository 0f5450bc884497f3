//! Carrying out what is wanted for the whole node.

use super::audit::Depth;
use super::gone::Gone;
use super::ipvs::SomePorts;
use super::overlay::remove_file_of_sandbox;
use super::task::remove_namespace;
use super::{Balancing, Known, Owner, Sandbox, refused};
use crate::delta::{Desired, Dirty, Members, Part, Spread};
use crate::error::NetlbError;
use crate::names::{self, SANDBOX_TABLE};
use crate::nft::flows::{Flow, UDP};
use crate::nft::socket::Nft;
use crate::nft::{Family, Table};
use crate::plan::Change;
use crate::plan::tables::{InSandbox, SandboxTable, Update};
use crate::wanted::{Network, Protocol, PublishedPort, TaskNetwork};
use skep_failpoint::failpoint;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use tracing::{debug, warn};

impl Owner {
    /// Brings what is dirty to what is wanted. Goes on after a failure, so that one network cannot keep the others from working;
    /// returns all of them.
    pub(super) fn apply(&mut self, dirty: &Dirty) -> Result<(), NetlbError> {
        let Some(wanted) = self.wanted.clone() else { return Ok(()) };
        if self.ipvs && !dirty.everything && dirty.whole_networks() {
            // Where the host leads ports depends on the sandbox that balances, which may be another one now.
            return self.apply(&Dirty::everything());
        }
        let mut errors = Vec::new();
        if dirty.whole_networks() {
            errors.extend(self.have_tunnels(wanted.encryption.as_ref()));
        }
        if dirty.everything {
            for spread in wanted.networks.values() {
                self.apply_network(spread, &mut errors);
            }
            errors.extend(self.join_no_others(&wanted));
        } else {
            for (id, part) in &dirty.networks {
                match (wanted.networks.get(id), part) {
                    (Some(spread), Part::Whole) => self.apply_network(spread, &mut errors),
                    (Some(spread), Part::Members(members)) => self.apply_members(spread, members, &dirty.published, &mut errors),
                    (None, _) => errors.extend(self.join_nobody(id)),
                }
            }
            errors.extend(self.balance_ports(dirty).err());
        }
        if dirty.whole_networks() || dirty.host_routes {
            errors.extend(self.route_to_sandboxes().err());
        }
        failpoint!("netlb.apply.routed");
        if dirty.everything || dirty.whole_networks() || !dirty.published.is_empty() {
            errors.extend(self.set_ports(&wanted, if dirty.everything { None } else { Some(&dirty.published) }).err());
        }
        failpoint!("netlb.apply.ports");
        if self.gone.note(dirty, &wanted) {
            errors.extend(self.route_to_sandboxes().err());
        }
        if dirty.everything {
            errors.extend(self.leave_all());
        } else {
            errors.extend(dirty.networks.keys().filter_map(|network| self.leave(network).err()));
        }
        if dirty.whole_networks() {
            errors.extend(self.remove_unused_sandboxes());
            errors.extend(self.leave_tunnels(wanted.encryption.as_ref()));
        }
        NetlbError::all(errors)
    }

    fn apply_network(&mut self, spread: &Spread, errors: &mut Vec<NetlbError>) {
        if let Err(error) = self.ensure_sandbox(&spread.network) {
            errors.push(error);
            return;
        }
        errors.extend(self.follow(&spread.network));
        errors.extend(self.join(spread).err());
        failpoint!("netlb.apply.joined");
        let published = self.published_into(&spread.network);
        if let Some(sandbox) = self.sandboxes.get_mut(&spread.network.id) {
            errors.extend(sandbox.set_tables(spread, &published).err());
        }
        failpoint!("netlb.apply.network");
    }

    /// The same where only members differ; all of it if it is not known that the rest is in place.
    /// `ports` are those that may differ, for IPVS.
    pub(super) fn apply_members(
        &mut self,
        spread: &Spread,
        members: &Members,
        ports: &BTreeSet<(Protocol, u16)>,
        errors: &mut Vec<NetlbError>,
    ) {
        let sandbox = self.sandboxes.get(&spread.network.id);
        if sandbox.is_none_or(|sandbox| sandbox.network != spread.network || !sandbox.is_settled()) {
            return self.apply_network(spread, errors);
        }
        errors.extend(self.join_members(spread, &members.addresses).err());
        failpoint!("netlb.apply.joined");
        let ports = self.some_published_into(&spread.network, ports);
        if let Some(sandbox) = self.sandboxes.get_mut(&spread.network.id) {
            errors.extend(sandbox.set_members(spread, members, &ports).err());
        }
        failpoint!("netlb.apply.network");
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
            if let Some(spread) = self.wanted.as_ref().and_then(|wanted| wanted.networks.get(&attachment.network.id)) {
                attachment.network.clone_from(&spread.network);
            }
        }
        task
    }

    /// Those ports, or all, and where other nodes' packets come. Whether anything of it differed from what the tables were told.
    pub(super) fn set_ports(&mut self, wanted: &Desired, which: Option<&BTreeSet<(Protocol, u16)>>) -> Result<bool, NetlbError> {
        let mut changed = false;
        let name = self.tag.table();
        // A node without networks and ports has no tables.
        let needed = !self.sandboxes.is_empty() || !wanted.published.is_empty();
        match which {
            Some(which) => self.gone.led_by_host(which.iter().filter_map(|key| wanted.published.get(key)).flatten()),
            None => self.gone.led_by_host(wanted.ports()),
        }
        let led = self.led_by_host(&wanted.published, which);
        let published = led.as_ref().unwrap_or(&wanted.published);
        let overlays: BTreeSet<(IpAddr, u16)> = self.sandboxes.values().filter_map(Sandbox::receives_at).collect();
        for (family, table, known) in &mut self.tables {
            if !needed && *known == Known::No {
                continue;
            }
            let mut update = table.lead(published, which);
            table.receive(&overlays, &mut update);
            changed |= update != Update::default();
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
        Ok(changed)
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
        self.gone = Gone::default();
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
            let remove = if is_sandbox { remove_file_of_sandbox } else { |path: &Path| remove_namespace(path, None) };
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
    /// Whether anything of it differed from what the tables were told.
    pub(super) fn set_tables(&mut self, wanted: &Spread, published: &[PublishedPort]) -> Result<bool, NetlbError> {
        self.planned = false;
        let led_elsewhere = self.balance(wanted, published)?;
        let changed = self.tell_tables(|table, balancing| {
            let marks = balancing.map(|balancing| balancing.marks(table.table_family())).unwrap_or_default();
            table.lead(&InSandbox { spread: wanted, marks })
        })?;
        self.planned = true;
        if led_elsewhere {
            self.forget_led_elsewhere();
        }
        Ok(changed)
    }

    /// Whether all that differs from what is wanted is what was not told yet.
    fn is_settled(&self) -> bool {
        let balanced = self.balancing.as_ref().is_none_or(Balancing::is_known);
        self.planned && balanced && self.told.as_ref().is_some_and(|told| told.is_done())
    }

    /// The same for those members and ports only, of a sandbox that is settled.
    fn set_members(&mut self, wanted: &Spread, members: &Members, ports: &SomePorts) -> Result<(), NetlbError> {
        self.planned = false;
        let told = self.balance_some(wanted, &members.vips, ports)?;
        self.tell_tables(|table, balancing| {
            let addresses = told.addresses.iter().filter(|address| Family::of(**address) == table.table_family());
            let marks = addresses.map(|address| (*address, balancing.and_then(|balancing| balancing.marks_served(*address))));
            table.lead_members(wanted, members, &marks.collect())
        })?;
        self.planned = true;
        if told.changed {
            self.forget_led_elsewhere();
        }
        Ok(())
    }

    /// Whether anything was planned that was not told yet.
    fn tell_tables(&mut self, plan: impl Fn(&mut SandboxTable, Option<&Balancing>) -> Update) -> Result<bool, NetlbError> {
        let place = self.place();
        let nft = self.namespace.nft.as_mut().expect("a sandbox has a netfilter socket");
        let (mut errors, mut changed) = (Vec::new(), false);
        for (table, known) in &mut self.tables {
            let update = plan(table, self.balancing.as_ref());
            changed |= update != Update::default();
            let family = table.table_family();
            // One that fails must not keep the other from being told: its plan is made, and would be taken for told.
            if let Err(source) = tell(nft, SANDBOX_TABLE, known, &update, || table.table(), family) {
                errors.push(table_error(SANDBOX_TABLE, &place, source));
            } else if update.flows_change {
                forget_stale(nft, family, &place, |flow| table.is_stale(flow));
            }
        }
        NetlbError::all(errors).map(|()| changed)
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
    let flows = nft.flows(UDP, family, is_stale);
    told_of_forgotten(nft, place, flows);
}

/// Forgets these, and tells how many they were, or that they could not be found.
pub(super) fn told_of_forgotten(nft: &mut Nft, place: &str, flows: std::io::Result<Vec<Flow>>) {
    let forgotten = flows.and_then(|flows| {
        flows.iter().try_for_each(|flow| nft.forget(flow))?;
        Ok(flows.len())
    });
    match forgotten {
        Ok(0) => {}
        Ok(count) => debug!(place, count, "flows to where nothing is forgotten"),
        Err(error) => warn!(place, %error, "could not look for flows that lead nowhere; some clients may have to wait"),
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
