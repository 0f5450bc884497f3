//! A task's namespace: made, mended, removed.

use super::{Made, Owner, Pending, Reply, refused, task_path};
use crate::error::NetlbError;
use crate::handle::TaskNetns;
use crate::names;
use crate::netlink::VethEnd;
use crate::netns::{self, Namespace};
use crate::plan::layout;
use crate::plan::{Link, State, Unwanted, difference};
use crate::sysctl::{self, Purpose};
use crate::wanted::{Attachment, Lan, TaskNetwork};
use skep_failpoint::failpoint;
use skep_types::{NetworkId, TaskId};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::{debug, warn};

impl Owner {
    /// Answers at once for a namespace that is there; else starts a thread that makes one, and [`Owner::finish`] answers.
    pub(super) fn ensure_task(&mut self, network: TaskNetwork, reply: Reply<TaskNetns>) {
        let network = self.up_to_date(network);
        if let Some(pending) = self.pending.get_mut(&network.task) {
            // One task has one network, and the latest wish counts: also one to have it after it was to be removed.
            *pending = Pending { network, removed: false, replies: std::mem::take(&mut pending.replies) };
            pending.replies.push(reply);
            return;
        }
        let path = task_path(&self.dir, &network.task);
        let there = check(&network).and_then(|()| {
            let sandboxes = network.attachments.iter().try_for_each(|a| self.ensure_sandbox(&a.network));
            sandboxes?;
            network.lans.iter().try_for_each(|lan| self.parent_of(lan).map(drop))?;
            Ok(netns::exists(&path))
        });
        match there {
            Err(error) => drop(reply.send(Err(error))),
            Ok(false) if network.foreign.is_some() => drop(reply.send(self.attach_foreign(network, path))),
            Ok(true) => drop(reply.send(self.mend_task(network).map(|_| TaskNetns { path }))),
            Ok(false) => self.make(network, reply),
        }
    }

    /// Puts somebody else's namespace on its network. One that cannot be is as it was afterwards.
    fn attach_foreign(&mut self, network: TaskNetwork, path: PathBuf) -> Result<TaskNetns, NetlbError> {
        let task = network.task.clone();
        if let Err(error) = self.mend_task(network) {
            if let Err(error) = remove_namespace(&path, None) {
                warn!(%task, error = error.chain(), "a namespace that failed was not left");
            }
            return Err(error);
        }
        debug!(%task, "namespace attached");
        Ok(TaskNetns { path })
    }

    fn make(&mut self, network: TaskNetwork, reply: Reply<TaskNetns>) {
        let (task, path, made) = (network.task.clone(), task_path(&self.dir, &network.task), self.made.clone());
        let purpose = purpose(&network, self.ipv6);
        let run = {
            let (task, path) = (task.clone(), path.clone());
            move || {
                let namespace = Namespace::create(&path, purpose);
                // An owner that has ended leaves the namespace to the next audit.
                drop(made.blocking_send(Made { task, namespace }));
            }
        };
        match std::thread::Builder::new().name("skep-netns".into()).stack_size(netns::STACK).spawn(run) {
            Ok(_) => {
                self.pending.insert(task, Pending { network, replies: vec![reply], removed: false });
            }
            Err(source) => drop(reply.send(Err(NetlbError::Namespace { path, step: "start a thread for", source }))),
        }
    }

    /// Puts a namespace that was just made on its networks.
    pub(super) fn finish(&mut self, made: Made) {
        let Some(pending) = self.pending.remove(&made.task) else { return };
        let path = task_path(&self.dir, &made.task);
        let network = self.up_to_date(pending.network);
        let outcome = match made.namespace {
            Ok(_) if pending.removed => Err(NetlbError::Removed { task: made.task.to_string() }),
            Ok(mut namespace) => self.connect(&network, &mut namespace, Found::Nothing),
            Err(error) => Err(error),
        };
        if outcome.is_ok() {
            debug!(task = %made.task, "namespace made");
            self.tasks.insert(made.task, network);
        } else if let Err(error) = netns::remove(&path) {
            warn!(task = %made.task, error = error.chain(), "a namespace that failed was not removed");
        }
        let outcome = outcome.map(|()| TaskNetns { path }).map_err(Arc::new);
        for reply in pending.replies {
            drop(reply.send(outcome.clone().map_err(NetlbError::Shared)));
        }
    }

    /// Looks over a namespace that is there. How many things were mended.
    pub(super) fn mend_task(&mut self, network: TaskNetwork) -> Result<usize, NetlbError> {
        let network = self.up_to_date(network);
        let path = task_path(&self.dir, &network.task);
        let purpose = purpose(&network, self.ipv6);
        let mut namespace = match Namespace::open(&path, purpose)? {
            Some(namespace) => namespace,
            None => match &network.foreign {
                None => Namespace::create(&path, purpose)?,
                Some(theirs) => {
                    netns::adopt(theirs, &path)?;
                    failpoint!("netlb.task.adopted");
                    let gone = || NetlbError::NotAttached { path: theirs.clone(), reason: "it went while it was attached".into() };
                    Namespace::open(&path, purpose)?.ok_or_else(gone)?
                }
            },
        };
        let has_left = self.leave_networks(&network)?;
        let mut mended = 0;
        self.connect(&network, &mut namespace, Found::Something(&mut mended))?;
        self.tasks.insert(network.task.clone(), network);
        if has_left {
            NetlbError::all(self.remove_unused_sandboxes())?;
        }
        Ok(mended)
    }

    /// Takes a task that goes on off the networks that it is to leave. Whether there were any.
    fn leave_networks(&mut self, network: &TaskNetwork) -> Result<bool, NetlbError> {
        let Some(known) = self.tasks.get(&network.task) else { return Ok(false) };
        let link = names::task_link(&network.task);
        let is_wanted = |id: &NetworkId| network.attachments.iter().any(|attachment| attachment.network.id == *id);
        let ids = known.attachments.iter().map(|attachment| &attachment.network.id);
        let left: Vec<NetworkId> = ids.filter(|id| !is_wanted(id)).cloned().collect();
        for id in &left {
            let Some(sandbox) = self.sandboxes.get_mut(id) else { continue };
            let failed = |source| NetlbError::Netlink { place: format!("the sandbox of network {}", sandbox.network.name), source };
            // Its other end goes with it.
            if sandbox.namespace.route.link_index(&link).map_err(failed)?.is_some() {
                sandbox.namespace.route.delete_link(&link).map_err(failed)?;
            }
            failpoint!("netlb.task.unlinked");
        }
        Ok(!left.is_empty())
    }

    /// Gives the namespace its links and addresses, and the sandboxes their side of it.
    fn connect(&mut self, network: &TaskNetwork, namespace: &mut Namespace, found: Found<'_>) -> Result<(), NetlbError> {
        let task = &network.task;
        let place = format!("the namespace of task {task}");
        let wanted = layout::task_side(network, self.ipv6);
        let mut mended = 0;
        let known_empty = matches!(found, Found::Nothing);
        let mut is = if known_empty {
            // As it was just made: loopback is up, nothing else is there.
            let lo = wanted.links.get("lo").cloned().unwrap_or_default();
            State { links: [("lo".to_owned(), lo)].into(), ..State::default() }
        } else {
            namespace.route.read(|_| true).map_err(|source| NetlbError::Netlink { place: place.clone(), source })?
        };
        for (index, attachment) in network.attachments.iter().enumerate() {
            mended += self.connect_to(network, attachment, index, namespace, &mut is, known_empty)?;
            failpoint!("netlb.task.linked");
        }
        for (index, lan) in network.lans.iter().enumerate() {
            mended += self.connect_to_lan(network, lan, index, namespace, &mut is)?;
            failpoint!("netlb.task.linked");
        }
        let changes = difference(&is, &wanted, Unwanted::Keep);
        mended += changes.len();
        NetlbError::all(refused(&place, namespace.route.apply(&changes)))?;
        failpoint!("netlb.task.addressed");
        if let Found::Something(count) = found {
            *count = mended;
        }
        Ok(())
    }

    /// The link to one network and the sandbox's side of it.
    fn connect_to(
        &mut self,
        network: &TaskNetwork,
        attachment: &Attachment,
        index: usize,
        namespace: &mut Namespace,
        is: &mut State,
        known_empty: bool,
    ) -> Result<usize, NetlbError> {
        let (inside, outside) = (layout::inside_link(network, index), names::task_link(&network.task));
        let failed = |source| NetlbError::CreateLink { link: format!("{inside} of task {}", network.task), source };
        self.ensure_sandbox(&attachment.network)?;
        let sandbox = self.sandboxes.get_mut(&attachment.network.id).expect("it was just ensured");
        let place = format!("the sandbox of network {}", attachment.network.name);
        let wanted = sandbox.without_moved(layout::sandbox_for_task(network, attachment, self.ipv6));
        let mut before = State::default();
        let there = !known_empty && sandbox.namespace.route.link_index(&outside).map_err(failed)?.is_some();
        if there && is.links.contains_key(&inside) {
            let read = sandbox.namespace.route.read_one(&outside);
            before = read.map_err(|source| NetlbError::Netlink { place: place.clone(), source })?;
        } else {
            if there {
                sandbox.namespace.route.delete_link(&outside).map_err(failed)?;
            }
            if is.links.remove(&inside).is_some() {
                namespace.route.delete_link(&inside).map_err(failed)?;
            }
            is.routes.retain(|route| route.link() != Some(&inside));
            is.neighbours.retain(|neighbour| neighbour.link != inside);
            let mac = Some(layout::mac_of(network, attachment));
            let here = VethEnd { name: &outside, mac: Some(names::sandbox_mac(&attachment.network)) };
            let peer = VethEnd { name: &inside, mac };
            let mtu = attachment.network.mtu;
            let mut made = sandbox.namespace.route.create_veth(&here, &peer, namespace.fd(), mtu);
            if made.as_ref().is_err_and(|error| error.raw_os_error() == Some(nix::libc::EEXIST)) {
                // The rest of a namespace that the kernel has not taken apart yet.
                sandbox.namespace.route.delete_link(&outside).map_err(failed)?;
                made = sandbox.namespace.route.create_veth(&here, &peer, namespace.fd(), mtu);
            }
            made.map_err(failed)?;
            is.links.insert(inside.clone(), Link { mtu: Some(mtu), mac, ..Link::default() });
            before.links.clone_from(&wanted.links);
        }
        if network.foreign.is_some() {
            namespace.inside("refuse redirects in", || sysctl::refuse_redirects_on(&inside))?;
        }
        let changes = difference(&before, &wanted, Unwanted::Keep);
        NetlbError::all(refused(&place, sandbox.namespace.route.apply(&changes)))?;
        Ok(changes.len() + usize::from(!there))
    }

    /// The link on one of the host's. It goes with the namespace, and with the host's link: then it is made anew when that is back.
    fn connect_to_lan(
        &mut self,
        network: &TaskNetwork,
        lan: &Lan,
        index: usize,
        namespace: &Namespace,
        is: &mut State,
    ) -> Result<usize, NetlbError> {
        let inside = layout::lan_link(network, index);
        if is.links.contains_key(&inside) {
            return Ok(0);
        }
        let parent = self.parent_of(lan)?;
        let mac = layout::lan_mac(lan);
        let made = self.host.create_macvlan(&inside, parent, lan.mode, mac, namespace.fd());
        made.map_err(|error| not_on(lan, error.to_string()))?;
        is.links.insert(inside, Link { mac, ..Link::default() });
        Ok(1)
    }

    /// The number of the host's link, if the network can be joined by it.
    fn parent_of(&mut self, lan: &Lan) -> Result<u32, NetlbError> {
        let netlink = |source| NetlbError::Netlink { place: "the host".into(), source };
        let missing = || not_on(lan, "this host has no such link; make it, or keep the service off this node by a constraint".into());
        let index = self.host.link_index(&lan.parent).map_err(netlink)?.ok_or_else(missing)?;
        let state = self.host.read_one(&lan.parent).map_err(netlink)?;
        let most = state.links.get(&lan.parent).and_then(|link| link.mtu);
        match (lan.mtu, most) {
            (Some(wanted), Some(most)) if wanted > most => Err(not_on(lan, format!("its packets have {most} bytes at most, not {wanted}"))),
            _ => Ok(index),
        }
    }

    /// Removes the task's namespace, and sandboxes that nobody needs any more.
    pub(super) fn remove_task(&mut self, task: &TaskId) -> Result<(), NetlbError> {
        if let Some(pending) = self.pending.get_mut(task) {
            pending.removed = true; // its maker removes it
            return Ok(());
        }
        let known = self.tasks.remove(task);
        let mut errors: Vec<_> = remove_namespace(&task_path(&self.dir, task), known.as_ref()).err().into_iter().collect();
        failpoint!("netlb.task.removed");
        errors.extend(self.remove_unused_sandboxes());
        NetlbError::all(errors)
    }
}

/// What is known of a namespace beforehand.
enum Found<'a> {
    /// It is new.
    Nothing,
    /// It must be read; the number of changes goes here.
    Something(&'a mut usize),
}

/// Removes a task's namespace; of somebody else's, what is ours in it. `known`: the task's network; any kind if it is not known.
pub(super) fn remove_namespace(path: &Path, known: Option<&TaskNetwork>) -> Result<(), NetlbError> {
    let mut errors = Vec::new();
    if known.is_none_or(|network| network.foreign.is_some()) {
        errors.extend(leave_namespace(path).err());
    }
    errors.extend(netns::remove(path).err());
    NetlbError::all(errors)
}

/// Takes out what we put into somebody else's namespace. Of one of ours nothing: its links have other names.
fn leave_namespace(path: &Path) -> Result<(), NetlbError> {
    let task = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<TaskId>().ok());
    let (Some(task), Some(mut namespace)) = (task, Namespace::open(path, Purpose::Foreign)?) else { return Ok(()) };
    let link = names::task_link(&task);
    let failed = |source| NetlbError::Netlink { place: path.display().to_string(), source };
    if namespace.route.link_index(&link).map_err(failed)?.is_none() {
        return Ok(());
    }
    namespace.inside("take the way to names out of", crate::dns::leave)?;
    failpoint!("netlb.task.unnamed");
    // Last: it says that something is left. The sandbox's end goes with it.
    namespace.route.delete_link(&link).map_err(failed)
}

fn not_on(lan: &Lan, reason: String) -> NetlbError {
    NetlbError::NotOnLan { network: lan.name.clone(), parent: lan.parent.clone(), reason }
}

fn purpose(network: &TaskNetwork, ipv6: bool) -> Purpose {
    if network.foreign.is_some() {
        return Purpose::Foreign;
    }
    let ours = network.attachments.iter().flat_map(|attachment| &attachment.addresses);
    let mut addresses = ours.chain(network.lans.iter().flat_map(|lan| &lan.addresses));
    Purpose::Task { ipv6: ipv6 && addresses.any(|address| address.addr().is_ipv6()) }
}

fn check(network: &TaskNetwork) -> Result<(), NetlbError> {
    if let Some(path) = network.foreign.as_ref().filter(|_| network.attachments.len() != 1 || !network.lans.is_empty()) {
        return Err(NetlbError::NotAttached { path: path.clone(), reason: "it is not for exactly one network of ours".into() });
    }
    let ours = network.attachments.iter().map(|attachment| (&attachment.addresses, &attachment.network.name));
    for (addresses, name) in ours.chain(network.lans.iter().map(|lan| (&lan.addresses, &lan.name))) {
        let v4 = addresses.iter().filter(|address| address.addr().is_ipv4()).count();
        if v4 > 1 || addresses.len() - v4 > 1 {
            return Err(NetlbError::TwoAddresses { task: network.task.to_string(), network: name.clone() });
        }
    }
    Ok(())
}
