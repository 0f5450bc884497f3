//! Tasks as the network sees them: from the tasks of this node and the picture that managers give of the others to what netlb
//! and its DNS are asked for (modules [`wanted`] and [`names`], pure), and the adapter, [`NetlbNetwork`].
//!
//! ```text
//!  drivers ── attach, serve, withdraw, detach ──► held ──┐
//!                                                        ├─► wanted ─► netlb      in effect: `programmed`
//!  session ── changes of a manager ──► wire ──► picture ─┴─► names ──► DNS servers
//! ```

mod bridge; // for tasks on no network of the cluster
mod convert; // the cluster's networks in netlb's words
#[cfg(test)]
mod fixtures;
mod follow; // what netlb is told of a change
mod held; // tasks of this node
mod kept; // the picture on disk, and its changes
mod keys; // of encrypted networks: made and forgotten
mod names; // what DNS answers from
mod picture; // what managers say of other nodes
mod resolvers; // the host's
mod secure; // with which keys to which nodes
mod spanning; // waiting for managers and other nodes
mod wanted; // what netlb is asked for
mod ways; // how large packets to other nodes may be
mod wire; // a manager's message, parsed

pub use bridge::ID as OWN_NETWORK;
#[cfg(test)]
pub(crate) use convert::wants_bridge as is_on_bridge;
pub use convert::{NO_NETWORK, is_lan, uses_host_network, with_link};
pub use picture::Changes;
pub use secure::Ends as TunnelEnds;
pub use spanning::Following;
pub use wire::changes as read_changes;

use crate::error::{NetworkError, chain};
use crate::executor::{Network, Sandbox};
use async_trait::async_trait;
use bridge::{Bridge, both_families};
use convert::{is_place, is_told_of, joined, task_network, uses_no_network, wants_bridge};
use follow::{Follower, Tell};
use held::{Held, Phase, host_ports};
use ipnet::IpNet;
use kept::{Kept, News};
use picture::{Epochs, Parts, Picture, Touched};
use resolvers::HostResolvers;
use secure::Own;
use skep_failpoint::failpoint;
use skep_netlb::dns::{ADDRESS, Asking, Dns, DnsLimits, Resolver};
use skep_netlb::{Netlb, NetlbError, TaskNetwork};
use skep_types::template::{NodeFacts, wanted_hostname};
use skep_types::{NetworkId, PortConfig, Task, TaskId, TaskState, TunnelKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use ways::Ways;

/// For rules to be in place before a task begins or answers; a slow kernel must not hold it up for ever.
const APPLY_LIMIT: Duration = Duration::from_secs(3);
/// How often the host's resolvers are read again, and a picture that could not be written is written after all.
const KEEP_EVERY: Duration = Duration::from_secs(2);
/// Of the host; tests have their own.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The tasks' network on this node, by netlb. Cheap to clone.
#[derive(Clone)]
pub struct NetlbNetwork {
    netlb: Netlb,
    dns: Dns,
    bridge: Bridge,
    /// Locked while it is written: one after the other, so that who finds nothing to be written knows that it was.
    kept: Option<Arc<tokio::sync::Mutex<Kept>>>,
    /// What host names of tasks may say of this node.
    facts: Arc<NodeFacts>,
    /// Where the keys of encrypted networks are; `None`: it does not encrypt.
    keyring: Option<PathBuf>,
    resolvers: Arc<Mutex<HostResolvers>>,
    state: Arc<Mutex<State>>,
    /// Anything in the state is not what it was.
    changed: Arc<watch::Sender<()>>,
}

#[derive(Default)]
struct State {
    held: BTreeMap<TaskId, Held>,
    picture: Picture,
    /// What netlb knows of these two.
    follower: Follower,
    own: Own,
    ways: Ways,
    /// Keys of other epochs than these were removed from the disk.
    tidied: Option<Epochs>,
    /// Of the picture, not written yet.
    news: News,
    /// The networks that the table of names has.
    named: BTreeSet<NetworkId>,
    following: Following,
    /// Of the tasks held those that no node leads to any more.
    cleared: BTreeSet<TaskId>,
    /// Those on networks of the cluster that managers have not told this node of yet; other nodes may know of them.
    untold: BTreeSet<TaskId>,
}

/// The task's networks with the sizes that they have on this node: what a manager last said of them may be newer than the task.
fn sized(mut network: TaskNetwork, picture: &Picture) -> TaskNetwork {
    for attachment in &mut network.attachments {
        let known = picture.networks.get(&attachment.network.id);
        let mtu = known.and_then(|known| known.network.wanted_mtu().or_else(|| ways::mtu(known, picture)));
        attachment.network.mtu = mtu.unwrap_or(attachment.network.mtu);
    }
    network
}

fn kernel(step: &'static str) -> impl FnOnce(NetlbError) -> NetworkError {
    move |error| NetworkError::Kernel { step, reason: chain(&error) }
}

/// What the task's own name leads to: not the bridge's IPv6, which a host may not have.
fn own_addresses(network: &TaskNetwork, bridge: Option<IpNet>) -> Vec<IpAddr> {
    let on_lans = network.lans.iter().flat_map(|lan| &lan.addresses);
    let every = network.attachments.iter().flat_map(|attachment| &attachment.addresses).chain(on_lans);
    let is_left_out = |address: &IpNet| bridge.is_some_and(|bridge| both_families(bridge)[1..].contains(address));
    every.filter(|address| !is_left_out(address)).map(IpNet::addr).collect()
}

/// A namespace of others that cannot be attached, or a host that has no link to a network, is no matter of time.
fn not_made(error: NetlbError) -> NetworkError {
    match error {
        NetlbError::NotAttached { .. } => NetworkError::NotAttached(error.to_string()),
        NetlbError::NotOnLan { .. } => NetworkError::NotOnLan(error.to_string()),
        other => kernel("make")(other),
    }
}

/// The resolvers that the service names; the host's if it names none.
fn resolvers(task: &Task) -> Result<Option<Arc<[Resolver]>>, NetworkError> {
    let servers = task.spec.container().and_then(|spec| spec.dns.as_ref()).map(|dns| dns.nameservers.as_slice()).unwrap_or_default();
    let read = |text: &String| match text.parse() {
        Ok(address) => Ok(Resolver::of_service(address)),
        Err(_) => Err(NetworkError::BadResolver { resolver: text.clone() }),
    };
    let list = servers.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok((!list.is_empty()).then(|| list.into()))
}

impl NetlbNetwork {
    /// Without other nodes to be remembered and with servers for names of its own.
    #[must_use]
    pub fn new(netlb: Netlb) -> Self {
        Self::with_dns(netlb, Dns::new(DnsLimits::default()))
    }

    /// With servers that outlive it: the next agent of this process takes them over.
    #[must_use]
    pub fn with_dns(netlb: Netlb, dns: Dns) -> Self {
        let bridge = Bridge::new(bridge::default_range(), netlb.netns_dir().with_file_name("bridge"));
        let resolvers = Arc::new(Mutex::new(HostResolvers::new(PathBuf::from(RESOLV_CONF))));
        Self {
            netlb,
            dns,
            bridge,
            kept: None,
            facts: Arc::default(),
            keyring: None,
            resolvers,
            state: Arc::default(),
            changed: Arc::new(watch::Sender::new(())),
        }
    }

    /// Remembers in this file what managers say of other nodes to the node of that id.
    #[must_use]
    pub fn remembering(self, file: &Path, node_id: &str) -> Self {
        Self { kept: Some(Arc::new(tokio::sync::Mutex::new(Kept::new(file, node_id)))), ..self }
    }

    /// On a node of which host names may say this.
    #[must_use]
    pub fn of_node(self, facts: NodeFacts) -> Self {
        Self { facts: Arc::new(facts), ..self }
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.state.lock().expect("no panic while held"))
    }

    /// Changes what is known and tells netlb and the servers what follows; within the lock, so that a later state is never overtaken
    /// by an earlier one. The parts of networks that changed are named; if none is, anything may have.
    fn tell<R>(&self, change: impl FnOnce(&mut State) -> (Touched, R)) -> R {
        self.tell_with(None, change)
    }

    /// The same of a task of this node as well.
    fn tell_with<R>(&self, task: Option<&TaskId>, change: impl FnOnce(&mut State) -> (Touched, R)) -> R {
        self.with(|state| {
            let (touched, result) = change(state);
            let State { held, picture, own, named, follower, .. } = state;
            match follower.follow(&touched, task, held, picture, own) {
                Tell::Whole(wanted) => self.netlb.set_wanted(*wanted),
                Tell::Change(delta) => self.netlb.change(delta),
            };
            let changes = names::changes(&touched, named, held, picture);
            if !changes.is_empty() {
                self.dns.change_names(|names| names::apply(names, changes));
            }
            self.changed.send_replace(());
            result
        })
    }

    /// The same for one task's part.
    fn tell_of<R>(&self, task: &TaskId, change: impl FnOnce(&mut State) -> R) -> R {
        self.tell_with(Some(task), |state| {
            let before = state.held.get(task).map(|one| Arc::clone(&one.task));
            let result = change(state);
            let after = state.held.get(task).map(|one| Arc::clone(&one.task));
            (before.into_iter().chain(after).flat_map(|task| names::touched_by(&task)).collect(), result)
        })
    }

    async fn applied(&self, step: &'static str) -> Result<(), NetworkError> {
        self.applied_within(APPLY_LIMIT, step).await
    }

    async fn applied_within(&self, limit: Duration, step: &'static str) -> Result<(), NetworkError> {
        match tokio::time::timeout(limit, self.netlb.applied()).await {
            Ok(applied) => applied.map_err(kernel(step)),
            Err(_) => Err(NetworkError::Kernel { step, reason: format!("not done within {} s", limit.as_secs()) }),
        }
    }

    /// Names for a task that is on networks of the cluster, or could not reach its host's resolvers. Returns what goes into its
    /// `resolv.conf`.
    async fn answer_names(&self, task: &Task, network: &TaskNetwork, path: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        let resolvers = resolvers(task)?;
        let is_needed = !uses_no_network(task)
            && (joined(task).next().is_some() || {
                let mut host = self.resolvers.lock().expect("no panic while held");
                host.refresh(&self.dns);
                resolvers.is_none() && host.are_all_on_loopback()
            });
        if !is_needed {
            return Ok(Vec::new());
        }
        let asking = Asking { asker: names::asker(task, network), resolvers };
        self.dns
            .serve(&task.id, path, asking)
            .await
            .map_err(|error| NetworkError::Kernel { step: "answer names on", reason: chain(&error) })?;
        Ok(vec![ADDRESS.into()])
    }

    /// Writes what is known of others and not written yet. On failure it is tried again some time later.
    async fn save(&self) {
        let Some(kept) = self.kept.clone() else { return };
        let mut kept = kept.lock_owned().await;
        let Some(news) = self.with(|state| state.news.take(kept.wants_whole(), &state.picture)) else { return };
        let this = self.clone();
        // The file stays locked until it is written, even if nobody waits for that any more.
        let saved = tokio::task::spawn_blocking(move || {
            if let Err(error) = kept.save(news) {
                tracing::warn!(%error, "what is known of other nodes could not be written; trying again");
                this.with(|state| state.news.everything());
            }
        });
        if let Err(error) = saved.await {
            tracing::error!(%error, "what is known of other nodes was not written");
        }
    }
}

#[async_trait]
impl Network for NetlbNetwork {
    async fn attach(&self, task: &Task) -> Result<Sandbox, NetworkError> {
        if uses_host_network(task) {
            return Ok(Sandbox::default());
        }
        resolvers(task)?;
        // Held from here on: two tasks that want one port cannot both find it free.
        let (network, bridge) = self.with(|State { held, picture, untold, .. }| {
            let host_ports = host_ports(task, held, skep_netlb::port_is_taken)?;
            held.remove(&task.id);
            let bridge = if wants_bridge(task) { Some(self.bridge.take(&task.id, held)?) } else { None };
            let network = sized(task_network(task, bridge)?, picture);
            let hostname = wanted_hostname(task, &self.facts);
            let one = Held { task: Arc::new(task.clone()), phase: Phase::Attached, host_ports, hostname, bridge };
            held.insert(task.id.clone(), one);
            if joined(task).any(|attachment| is_told_of(&attachment.network)) && !picture.tells_of(&task.id) {
                untold.insert(task.id.clone());
            }
            Ok::<_, NetworkError>((network, bridge))
        })?;
        let addresses = own_addresses(&network, bridge);
        failpoint!("agent.network.held");
        let made = self.netlb.ensure_task(network.clone()).await.map_err(not_made)?;
        let nameservers = self.answer_names(task, &network, &made.path).await?;
        failpoint!("agent.network.named");
        self.told_of(task).await;
        self.tell_of(&task.id, |_| ());
        // What it finds of others when it starts; a failure is netlb's to mend, and no reason not to start.
        if let Err(error) = self.applied("join").await {
            tracing::warn!(task = %task.id, error = %chain(&error), "a task may not reach others yet");
        }
        Ok(Sandbox { namespace: Some(made.path), addresses, nameservers })
    }

    async fn serve(&self, task: &Task) -> Result<Vec<PortConfig>, NetworkError> {
        let ports = self.tell_of(&task.id, |state| match state.held.get_mut(&task.id) {
            Some(one) => {
                one.phase = Phase::Serving;
                one.task = Arc::new(task.clone());
                one.host_ports.clone()
            }
            None => Vec::new(),
        });
        self.applied("open").await?;
        Ok(ports)
    }

    async fn withdraw(&self, task: &TaskId) {
        let served = self.with(|state| state.held.get(task).is_some_and(Held::is_serving));
        // A replacement may take its ports now.
        let leave = |state: &mut State| {
            if let Some(one) = state.held.get_mut(task) {
                one.host_ports.clear();
                if !matches!(one.phase, Phase::Leaving { .. }) {
                    one.phase = Phase::Leaving { others_may_lead_here: one.is_serving() };
                }
            }
        };
        self.tell_of(task, leave);
        // As long as others may take for it: this node leads to the task as they do, and may be as starved.
        if served && let Err(error) = self.applied_within(spanning::CLEARED_LIMIT, "close").await {
            tracing::warn!(task = %task, error = %chain(&error), "connections may still come to a task that is being stopped");
        }
    }

    async fn cleared(&self, task: &TaskId) {
        self.others_cleared(task).await;
    }

    async fn change(&self, task: &Task) -> Result<Sandbox, NetworkError> {
        let (network, bridge, comes) = self.with(|State { held, picture, .. }| {
            let one = held.get(&task.id).ok_or_else(|| NetworkError::Kernel { step: "change", reason: "it is not there".into() })?;
            let bridge = match (wants_bridge(task), one.bridge) {
                (true, None) => Some(self.bridge.take(&task.id, held)?),
                (true, known) => known,
                (false, _) => None,
            };
            let comes = task.networks.len() > one.task.networks.len();
            Ok::<_, NetworkError>((sized(task_network(task, bridge)?, picture), bridge, comes))
        })?;
        let know = || {
            self.tell_of(&task.id, |state| {
                if let Some(one) = state.held.get_mut(&task.id) {
                    (one.task, one.bridge) = (Arc::new(task.clone()), bridge);
                }
            });
        };
        // Nobody is led where no link is.
        if !comes {
            know();
        }
        let made = self.netlb.ensure_task(network.clone()).await.map_err(not_made)?;
        failpoint!("agent.network.changed");
        let nameservers = self.answer_names(task, &network, &made.path).await?;
        if nameservers.is_empty() {
            self.dns.stop(&task.id).await;
        }
        if comes {
            self.told_of(task).await;
            know();
        }
        if bridge.is_none() {
            self.bridge.free(&task.id);
        }
        if let Err(error) = self.applied("change").await {
            tracing::warn!(task = %task.id, error = %chain(&error), "a container may not reach others yet");
        }
        Ok(Sandbox { namespace: Some(made.path), addresses: own_addresses(&network, bridge), nameservers })
    }

    async fn detach(&self, task: &TaskId) -> Result<(), NetworkError> {
        // Its sockets would keep the namespace alive.
        self.dns.stop(task).await;
        self.netlb.remove_task(task.clone()).await.map_err(kernel("remove"))?;
        failpoint!("agent.network.removed");
        self.bridge.free(task);
        if self.with(|state| state.held.contains_key(task)) {
            self.tell_of(task, |state| {
                state.cleared.remove(task);
                state.untold.remove(task);
                state.held.remove(task)
            });
        }
        Ok(())
    }

    async fn recover(&self, tasks: &[(Task, bool)]) -> Result<(), NetworkError> {
        let (mut failed, mut found) = (Ok(()), Vec::new());
        let known = match &self.kept {
            Some(kept) => kept.lock().await.load(),
            None => None,
        };
        // First of all: connections of what runs must not find its devices narrower for a moment.
        self.with(|state| {
            if let Some(known) = &known {
                state.picture = known.clone();
            }
            state.ways.look(&mut state.picture, false);
        });
        self.resolvers.lock().expect("no panic while held").refresh(&self.dns);
        for (task, _) in tasks.iter().filter(|(task, running)| *running && !uses_host_network(task) && !is_place(task)) {
            let host_ports = self.with(|state| host_ports(task, &state.held, |_, _, _| false)).unwrap_or_default();
            // Ports that the node had chosen are told in the task's status.
            let chosen = &task.status.ports;
            let host_ports = if chosen.is_empty() { host_ports } else { chosen.clone() };
            let bridge = self.bridge.kept(&task.id).filter(|_| wants_bridge(task));
            match self.find(task, bridge).await {
                Ok((network, path)) => found.push((task, network, path)),
                Err(error) => failed = failed.and(Err(error)),
            }
            // One that is being stopped gets nothing more, and a replacement may have its ports; what is connected it keeps.
            let leaves = task.desired_state >= TaskState::Shutdown;
            let (phase, host_ports) =
                if leaves { (Phase::Leaving { others_may_lead_here: true }, Vec::new()) } else { (Phase::Serving, host_ports) };
            let hostname = wanted_hostname(task, &self.facts);
            let one = Held { task: Arc::new(task.clone()), phase, host_ports, hostname, bridge };
            self.with(|state| state.held.insert(task.id.clone(), one));
        }
        if let Err(error) = self.have_keys(known.as_ref().and_then(|known| known.epochs)).await {
            tracing::warn!(%error, "encrypted networks end at this node until there are");
        }
        self.tell(|state| {
            // Tasks were found meanwhile that netlb was not told of.
            state.follower = Follower::default();
            let own = state.held.values().flat_map(|one| names::touched_by(&one.task).into_keys());
            (own.chain(state.picture.networks.keys().cloned()).map(|id| (id, Parts::Whole)).collect(), ())
        });
        // Not before there are names: "no such name" is worse than no answer yet.
        for (task, network, path) in found {
            failed = failed.and(self.answer_names(task, &network, &path).await.map(drop));
        }
        failed
    }

    fn take(&self, changes: Changes) {
        self.take_in(changes);
    }

    async fn can_encrypt(&self) -> Result<(), String> {
        self.encrypts().await
    }

    async fn prepare(&self, changes: &Changes) {
        if let Err(error) = self.have_keys(changes.epochs).await {
            tracing::warn!(%error, "encrypted networks end at this node until there are; trying again");
        }
    }

    fn local_prefixes(&self) -> Vec<String> {
        skep_netlb::local_prefixes().iter().map(ToString::to_string).collect()
    }

    async fn underlay_mtu(&self, told: u32) -> u32 {
        self.other_underlay_mtu(told).await
    }

    fn tunnel_keys(&self) -> Vec<TunnelKey> {
        self.with(|state| state.own.public())
    }

    async fn programmed(&self) -> Result<(), NetworkError> {
        self.renew_keys().await?;
        // It takes as long as it takes, and fails by itself if it does: who gave up and asked again would wait for all that came
        // meanwhile as well, and on a node that is starved never get to the end.
        self.netlb.applied().await.map_err(kernel("change"))?;
        self.forget_keys().await;
        // Who restarts begins with what it reported: were it older, it would lead to tasks that were stopped since. A full disk is
        // not a reason to say nothing: the others would wait for this node with each task that they stop.
        self.save().await;
        Ok(())
    }

    fn following(&self, following: Following) {
        self.follow(following);
    }

    async fn keep(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(KEEP_EVERY) => {}
            }
            self.resolvers.lock().expect("no panic while held").refresh(&self.dns);
            self.look_at_ways();
            self.save().await;
        }
        self.save().await;
    }
}

impl NetlbNetwork {
    /// The network of a task that runs since before this agent.
    async fn find(&self, task: &Task, bridge: Option<IpNet>) -> Result<(TaskNetwork, PathBuf), NetworkError> {
        let network = self.with(|state| Ok::<_, NetworkError>(sized(task_network(task, bridge)?, &state.picture)))?;
        let found = self.netlb.ensure_task(network.clone()).await.map_err(kernel("find"))?;
        Ok((network, found.path))
    }
}
