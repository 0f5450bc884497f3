//! Looking everything over: what differs from what is wanted is mended, what nobody wants is removed.

use super::apply::{audit_table, forget_stale};
use super::overlay::remove_file_of_sandbox;
use super::task::remove_namespace;
use super::{Owner, refused};
use crate::delta::{Dirty, Spread};
use crate::error::NetlbError;
use crate::handle::Audit;
use crate::names;
use crate::plan::layout;
use crate::plan::{State, Unwanted, difference};
use crate::wanted::{Network, TaskNetwork};
use skep_failpoint::failpoint;
use skep_types::NetworkId;
use std::collections::BTreeSet;
use std::path::Path;
use tracing::info;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// At everything.
    All,
    /// Leaving out tables that nobody else changed, and the namespaces of tasks whose link is in its place.
    WhatMayDiffer,
}

impl Owner {
    /// Goes on after a failure and returns all of them.
    pub(super) fn audit(&mut self, depth: Depth) -> Result<Audit, NetlbError> {
        let mut repaired = Vec::new();
        let mut errors = Vec::new();
        let mut note = |result: Result<Vec<String>, NetlbError>, errors: &mut Vec<NetlbError>| match result {
            Ok(mended) => repaired.extend(mended),
            Err(error) => errors.push(error),
        };
        note(self.audit_files(), &mut errors);
        failpoint!("netlb.audit.files");
        note(self.audit_tunnels(), &mut errors);
        failpoint!("netlb.audit.tunnels");
        let mut missing = BTreeSet::new();
        let networks: Vec<Network> = self.sandboxes.values().map(|sandbox| sandbox.network.clone()).collect();
        for network in &networks {
            note(self.audit_sandbox(network, depth, &mut missing), &mut errors);
            failpoint!("netlb.audit.sandbox");
        }
        note(self.audit_host(depth), &mut errors);
        failpoint!("netlb.audit.host");
        // A link on one of the host's is in the task's namespace only.
        let looked_at = |task: &TaskNetwork| missing.contains(&names::task_link(&task.task)) || !task.lans.is_empty();
        let suspect = |task: &&TaskNetwork| depth == Depth::All || looked_at(task);
        let tasks: Vec<TaskNetwork> = self.tasks.values().filter(suspect).cloned().collect();
        for task in tasks {
            let id = task.task.clone();
            let mended = self.mend_task(task);
            let words = |count| if count == 0 { Vec::new() } else { vec![format!("the network of task {id}: {count} changes")] };
            note(mended.map(words), &mut errors);
        }
        for mended in &repaired {
            info!(what = %mended, "audit mended");
        }
        NetlbError::all(errors).map(|()| Audit { repaired })
    }

    /// Namespaces that nobody wants, or only the files of them.
    fn audit_files(&mut self) -> Result<Vec<String>, NetlbError> {
        let mut removed = Vec::new();
        if self.wanted.is_none() {
            return Ok(removed);
        }
        let keep = self.files_wanted();
        // The network of a task that was not asked for in this process is not known: it may be any.
        let keep_sandboxes = !self.links_not_ensured().is_empty();
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if keep.contains(&name) || (keep_sandboxes && names::is_sandbox_file(&name)) {
                continue;
            }
            let remove = if names::is_sandbox_file(&name) { remove_file_of_sandbox } else { |path: &Path| remove_namespace(path, None) };
            remove(&entry.path())?;
            removed.push(format!("namespace {name}"));
        }
        Ok(removed)
    }

    /// The files of tasks and networks that are known or wanted.
    fn files_wanted(&self) -> BTreeSet<String> {
        let wanted = self.wanted.iter().flat_map(|wanted| &wanted.tasks);
        let tasks = self.tasks.keys().chain(self.pending.keys()).chain(wanted).map(|task| task.as_str().to_owned());
        tasks.chain(self.sandboxes.keys().map(names::sandbox_file)).collect()
    }

    /// Links that should be there and are not go into `missing`.
    fn audit_sandbox(&mut self, network: &Network, depth: Depth, missing: &mut BTreeSet<String>) -> Result<Vec<String>, NetlbError> {
        let mut mended = Vec::new();
        let Some(sandbox) = self.sandboxes.get_mut(&network.id) else { return Ok(mended) };
        let place = format!("the sandbox of network {}", network.name);
        let complete = sandbox.namespace.is_mounted() && {
            let failed = |source| NetlbError::Netlink { place: place.clone(), source };
            let inside = sandbox.namespace.route.link_index(names::GATEWAY_LINK).map_err(failed)?.is_some();
            let outside = self.host.link_index(&self.tag.host_link(network)).map_err(failed)?.is_some();
            network.internal || (inside && outside)
        };
        if !complete {
            self.set_up_sandbox(network)?;
            // Its tables are new, or of the same namespace; what is wanted in them is told again.
            mended.push(place.clone());
            self.apply(&Dirty::everything())?;
        }
        mended.extend(self.audit_overlay(&network.id)?);
        mended.extend(self.audit_balancing(&network.id)?);
        let wanted = self.sandbox_wanted(&network.id);
        let unwanted = if self.wanted.is_some() { Unwanted::Remove } else { Unwanted::Keep };
        let not_ensured = self.links_not_ensured();
        let Some(sandbox) = self.sandboxes.get_mut(&network.id) else { return Ok(mended) };
        let is = sandbox.namespace.route.read(|link| !not_ensured.contains(link) && !link_of_the_kernel(link));
        let is = is.map_err(|source| NetlbError::Netlink { place: place.clone(), source })?;
        missing.extend(wanted.links.keys().filter(|link| !is.links.contains_key(*link)).cloned());
        let changes: Vec<_> = difference(&is, &wanted, unwanted)
            .into_iter()
            // The tasks' own turn comes later: a link that is missing here is missing there.
            .filter(|change| crate::netlink::route::change_link(change).is_none_or(|link| is.links.contains_key(link)))
            .collect();
        mended.extend(changes.iter().map(|change| format!("{place}: {change:?}")));
        NetlbError::all(refused(&place, sandbox.namespace.route.apply(&changes)))?;
        // Changes are planned one by one: whether they led to what all of it leads to is looked at here.
        let spread = self.wanted.as_ref().filter(|_| depth == Depth::All && !self.ipvs).and_then(|wanted| wanted.networks.get(&network.id));
        if let Some(spread) = spread
            && sandbox.set_tables(spread, &[])?
        {
            mended.push(format!("the plan of {place}"));
        }
        mended.extend(sandbox.audit_tables(depth)?);
        Ok(mended)
    }

    /// All that a sandbox should have, its tasks' part included.
    fn sandbox_wanted(&self, id: &NetworkId) -> State {
        let Some(sandbox) = self.sandboxes.get(id) else { return State::default() };
        let mut state = layout::sandbox(&sandbox.network, sandbox.slot, self.ipv6);
        for task in self.tasks.values() {
            for attachment in task.attachments.iter().filter(|attachment| attachment.network.id == *id) {
                state.merge(sandbox.without_moved(layout::sandbox_for_task(task, attachment, self.ipv6)));
            }
        }
        state.merge(sandbox.told.as_ref().map_or_else(State::default, |told| told.state.clone()));
        state.routes.extend(sandbox.balancing.iter().flat_map(|balancing| balancing.routes.iter().cloned()));
        state
    }

    /// Sees to it that the way to other nodes is known to be what is wanted, and that its device is there. The rest is
    /// compared with all else of the sandbox.
    fn audit_overlay(&mut self, id: &NetworkId) -> Result<Vec<String>, NetlbError> {
        let Some(all) = self.wanted.clone() else { return Ok(Vec::new()) };
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return Ok(Vec::new()) };
        let place = sandbox.place();
        let wanted = all.networks.get(id).cloned().unwrap_or_else(|| Spread::alone(sandbox.network.clone()));
        let link = sandbox.told.as_ref().and_then(|told| told.state.links.get(names::OVERLAY_LINK)).cloned();
        let mut mended = Vec::new();
        if let Some(link) = link {
            let read = sandbox.namespace.route.read_one(names::OVERLAY_LINK);
            let is = read.map_err(|source| NetlbError::Netlink { place: place.clone(), source })?;
            if is.links.get(names::OVERLAY_LINK).is_none_or(|is| is.vxlan != link.vxlan) {
                sandbox.told = None;
                mended.push(format!("{place}: the link to other nodes"));
            }
        }
        self.join(&wanted)?;
        self.leave(id)?;
        Ok(mended)
    }

    /// Links of tasks that are wanted or being made, but of which this process does not know the network.
    fn links_not_ensured(&self) -> BTreeSet<String> {
        let wanted = self.wanted.iter().flat_map(|wanted| &wanted.tasks);
        let unknown = wanted.chain(self.pending.keys()).filter(|task| !self.tasks.contains_key(*task));
        unknown.map(names::task_link).collect()
    }

    fn audit_host(&mut self, depth: Depth) -> Result<Vec<String>, NetlbError> {
        let mut mended = Vec::new();
        let prefix = self.tag.link_prefix();
        let read = self.host.read(|link| link.starts_with(&prefix));
        let is = read.map_err(|source| NetlbError::Netlink { place: "the host".into(), source })?;
        // Routes without a link and rules are never ours here: another instance may have made them.
        let is = State { routes: is.routes.into_iter().filter(|route| route.link().is_some()).collect(), rules: Default::default(), ..is };
        let wanted = self.host_wanted();
        let unwanted = if self.wanted.is_some() { Unwanted::Remove } else { Unwanted::Keep };
        let changes = difference(&is, &wanted, unwanted);
        mended.extend(changes.iter().map(|change| format!("the host: {change:?}")));
        NetlbError::all(refused("the host", self.host.apply(&changes)))?;
        self.host_state = wanted;
        // Otherwise they have been looked at within the last second.
        if depth == Depth::All {
            if let Some(wanted) = self.wanted.clone()
                && self.set_ports(&wanted, None)?
            {
                mended.push("the plan of the host's ports".to_owned());
            }
            mended.extend(self.audit_host_tables()?);
        }
        Ok(mended)
    }

    pub(super) fn audit_host_tables(&mut self) -> Result<Vec<String>, NetlbError> {
        let mut all = Vec::new();
        for (family, table, known) in &mut self.tables {
            if self.sandboxes.is_empty() && *known == super::Known::No {
                continue;
            }
            if let Some(mended) = audit_table(&mut self.nft, &table.table(), known, "the host")? {
                all.push(mended);
                // What came while the table was not there was led nowhere.
                let addresses = self.host.all_addresses().unwrap_or_default();
                let is_here = |address: std::net::IpAddr| address.is_loopback() || addresses.contains(&address);
                forget_stale(&mut self.nft, *family, "the host", |flow| table.is_stale(flow, is_here));
            }
        }
        Ok(all)
    }
}

/// Tunnel devices that some kernels put into every namespace, and loopback's likes.
fn link_of_the_kernel(link: &str) -> bool {
    !(link == "lo" || link == names::GATEWAY_LINK || link == names::OVERLAY_LINK || link.starts_with('t') && link.len() > 8)
}
