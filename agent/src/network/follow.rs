//! What netlb is to be told when something changed: as little as follows from it. Pure.
//!
//! [`super::wanted`] says what the whole node should be. Here an index says which tasks and services can have a part in what a
//! change leads to; `wanted` is asked about a world of those alone, and what it says of the rest is not looked at:
//! ```text
//!   touched ─► affected: tasks, virtual addresses, ports ─► all that have a part in these ─► wanted ─► of it what is affected
//! ```
//! The index may name too many, never too few; so what has a part in what is written once, in `wanted`.

use super::bridge::{both_families, bridge_network};
use super::convert::{bare, overlays, port, protocol};
use super::held::Held;
use super::picture::{Epochs, NetworkPicture, Parts, PeerNode, Picture, SpannedService, Touched};
use super::secure::{Ends, Own};
use super::wanted::{vips, wanted};
use ipnet::IpNet;
use skep_netlb::{Delta, NetworkDelta, Protocol, Wanted, WantedNetwork};
use skep_types::{Network, NetworkId, ServiceId, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

type Table = BTreeMap<TaskId, Held>;
type Port = (Protocol, u16);
type Address = (NetworkId, IpAddr);
/// A service as one network knows it.
type Place = (ServiceId, NetworkId);

/// What to tell netlb.
#[derive(Debug)]
pub enum Tell {
    /// Boxed, for the other is small and usual.
    Whole(Box<Wanted>),
    Change(Delta),
}

/// What netlb was told, as far as it matters for what to tell next.
#[derive(Debug, Default)]
pub struct Follower {
    /// `None`: nothing.
    world: Option<Frame>,
    /// What holds for all of a network.
    frames: BTreeMap<NetworkId, NetworkFrame>,
    is_encrypted: bool,
    index: Index,
}

/// What all networks depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    node_index: u32,
    vxlan_port: u16,
    epochs: Option<Epochs>,
    encrypted_path: Option<u32>,
    ends: Option<Ends>,
    /// The epochs of this node's keys.
    keys: Vec<u32>,
}

type NetworkFrame = (Arc<Network>, BTreeMap<u32, PeerNode>);

impl Frame {
    fn of(picture: &Picture, own: &Own) -> Self {
        let Picture { node_index, vxlan_port, epochs, encrypted_path, .. } = *picture;
        Self { node_index, vxlan_port, epochs, encrypted_path, ends: own.ends, keys: own.keys.keys().copied().collect() }
    }
}

fn frame_of(known: &NetworkPicture) -> NetworkFrame {
    (Arc::clone(&known.network), known.peers.clone())
}

impl Follower {
    /// What to tell after a change of these parts of networks and of this task of this node. Is neither named, anything may have
    /// changed.
    pub fn follow(&mut self, touched: &Touched, task: Option<&TaskId>, held: &Table, picture: &Picture, own: &Own) -> Tell {
        let is_named = task.is_some() || !touched.is_empty();
        if !is_named || self.world.as_ref() != Some(&Frame::of(picture, own)) {
            return self.whole(held, picture, own);
        }
        let mut change = Touch::default();
        change.tasks.extend(task.cloned());
        for (id, parts) in touched {
            let frame = picture.networks.get(id);
            let is_same = frame.is_some_and(|known| self.frames.get(id).is_some_and(|(n, p)| *n == known.network && *p == known.peers));
            match parts {
                Parts::Some { tasks, services } if is_same => {
                    change.tasks.extend(tasks.iter().cloned());
                    change.services.extend(services.iter().map(|service| (service.clone(), id.clone())));
                }
                Parts::Some { .. } | Parts::Whole => {
                    change.networks.insert(id.clone());
                    self.index.all_on(id, &mut change);
                    let known = frame.into_iter();
                    change.tasks.extend(known.clone().flat_map(|known| known.tasks.keys().cloned()));
                    change.services.extend(known.flat_map(|known| known.services.keys().map(|service| (service.clone(), id.clone()))));
                    match frame {
                        Some(known) => drop(self.frames.insert(id.clone(), frame_of(known))),
                        None => drop(self.frames.remove(id)),
                    }
                }
            }
        }
        let mut affected = Affected::default();
        self.index.affected_by(&change, &mut affected);
        let candidates: BTreeSet<&NetworkId> = touched.keys().collect();
        for network in self.index.learn(&change, &candidates, held, picture) {
            // The first came or the last went: with it the whole network does, and what its services publish.
            self.index.all_on(&network, &mut change);
            change.networks.insert(network);
        }
        self.index.affected_by(&change, &mut affected);
        let (part_held, part_picture) = self.index.world_of(&affected, &change, held, picture);
        let part = wanted(&part_held, &part_picture, own);
        if !change.networks.is_empty() && (self.is_encrypted || part.encryption.is_some()) {
            // What is encrypted depends on all networks.
            return self.whole(held, picture, own);
        }
        Tell::Change(delta(&change, affected, held, part))
    }

    fn whole(&mut self, held: &Table, picture: &Picture, own: &Own) -> Tell {
        let whole = wanted(held, picture, own);
        self.world = Some(Frame::of(picture, own));
        self.frames = picture.networks.iter().map(|(id, known)| (id.clone(), frame_of(known))).collect();
        self.is_encrypted = whole.encryption.is_some();
        self.index = Index::default();
        let mut all = Touch::default();
        all.tasks.extend(held.keys().cloned());
        for (id, known) in &picture.networks {
            all.tasks.extend(known.tasks.keys().cloned());
            all.services.extend(known.services.keys().map(|service| (service.clone(), id.clone())));
        }
        self.index.learn(&all, &picture.networks.keys().collect(), held, picture);
        Tell::Whole(Box::new(whole))
    }
}

/// Of what is wanted in a part of the world, what is affected.
fn delta(change: &Touch, affected: Affected, held: &Table, part: Wanted) -> Delta {
    let mut delta = Delta::default();
    let mut found: BTreeMap<NetworkId, WantedNetwork> = part.networks.into_iter().map(|one| (one.network.id.clone(), one)).collect();
    for id in &change.networks {
        let whole = found.remove(id).map_or(NetworkDelta::Gone, NetworkDelta::Whole);
        delta.networks.insert(id.clone(), whole);
    }
    // Of networks that are understood and were wanted before.
    for (id, network) in found {
        let mut known: BTreeMap<TaskId, _> = network.endpoints.into_iter().map(|one| (one.task.clone(), one)).collect();
        let mut backends: BTreeMap<IpAddr, Vec<IpAddr>> = network.vips.into_iter().map(|vip| (vip.address, vip.backends)).collect();
        let tasks = affected.tasks.iter().filter(|(_, on)| on.contains(&id));
        let endpoints: BTreeMap<_, _> = tasks.map(|(task, _)| (task.clone(), known.remove(task))).collect();
        let vips = affected.vips.range((id.clone(), IpAddr::from([0, 0, 0, 0]))..).take_while(|(network, _)| *network == id);
        let vips: BTreeMap<_, _> = vips.map(|(_, address)| (*address, backends.remove(address))).collect();
        if !endpoints.is_empty() || !vips.is_empty() {
            delta.networks.insert(id, NetworkDelta::Members { endpoints, vips });
        }
    }
    delta.published = affected.ports.into_iter().map(|key| (key, Vec::new())).collect();
    for port in part.published {
        if let Some(list) = delta.published.get_mut(&(port.protocol, port.port)) {
            list.push(port);
        }
    }
    delta.tasks = change.tasks.iter().map(|task| (task.clone(), held.contains_key(task))).collect();
    delta
}

/// What is not what it was.
#[derive(Debug, Default)]
struct Touch {
    tasks: BTreeSet<TaskId>,
    services: BTreeSet<Place>,
    /// As a whole; all on it is in the above.
    networks: BTreeSet<NetworkId>,
}

/// What may be wanted otherwise.
#[derive(Debug, Default)]
struct Affected {
    /// With the networks on which they are or were.
    tasks: BTreeMap<TaskId, BTreeSet<NetworkId>>,
    services: BTreeSet<ServiceId>,
    vips: BTreeSet<Address>,
    ports: BTreeSet<Port>,
}

/// Who can have a part in what.
#[derive(Debug, Default)]
struct Index {
    tasks: BTreeMap<TaskId, TaskEntry>,
    services: BTreeMap<ServiceId, BTreeMap<NetworkId, ServiceEntry>>,
    claims: BTreeMap<Address, BTreeSet<TaskId>>,
    of_service: BTreeMap<ServiceId, BTreeSet<TaskId>>,
    with_vip: BTreeMap<Address, BTreeSet<Who>>,
    with_port: BTreeMap<Port, BTreeSet<Who>>,
    /// All that are told of or attached.
    on: BTreeMap<NetworkId, BTreeSet<TaskId>>,
    /// Those of them that make a network wanted.
    members: BTreeMap<NetworkId, BTreeSet<TaskId>>,
    services_on: BTreeMap<NetworkId, BTreeSet<ServiceId>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Service(Place),
    Task(TaskId),
}

/// What is known of a task, by managers and by this node.
#[derive(Debug, Default)]
struct TaskEntry {
    on: BTreeMap<NetworkId, BTreeSet<IpAddr>>,
    members: BTreeSet<NetworkId>,
    services: BTreeSet<ServiceId>,
    vips: BTreeSet<Address>,
    ports: BTreeSet<Port>,
}

#[derive(Debug, Default)]
struct ServiceEntry {
    vips: BTreeSet<Address>,
    ports: BTreeSet<Port>,
}

impl TaskEntry {
    fn of<'a>(id: &TaskId, networks: impl Iterator<Item = &'a NetworkId>, held: &Table, picture: &Picture) -> Self {
        let mut this = Self::default();
        for network in networks {
            let Some(told) = picture.networks.get(network).and_then(|known| known.tasks.get(id)) else { continue };
            this.on.entry(network.clone()).or_default().extend(&told.addresses);
            if told.node_index != picture.node_index {
                this.members.insert(network.clone());
            }
            this.services.extend(told.service.clone());
        }
        let Some(one) = held.get(id) else { return this };
        this.services.extend(one.task.service_id.clone());
        for attachment in overlays(&one.task) {
            let network = &attachment.network.id;
            this.on.entry(network.clone()).or_default().extend(bare(attachment));
            this.members.insert(network.clone());
            this.vips.extend(vips(&one.task, network).map(|vip| (network.clone(), vip)));
        }
        if let Some(address) = one.bridge {
            let network = bridge_network(address).id;
            this.members.insert(network.clone());
            this.on.insert(network, both_families(address).iter().map(IpNet::addr).collect());
        }
        let configs = one.task.endpoint.iter().flat_map(|endpoint| &endpoint.ports).chain(&one.host_ports);
        this.ports.extend(configs.filter_map(|config| Some((protocol(config.protocol), port(config.published_port)?))));
        this
    }

    fn addresses(&self) -> impl Iterator<Item = Address> {
        self.on.iter().flat_map(|(network, addresses)| addresses.iter().map(|address| (network.clone(), *address)))
    }
}

impl ServiceEntry {
    fn of(network: &NetworkId, service: &SpannedService) -> Self {
        let published = service.ports.iter().filter_map(|port| Some((protocol(port.protocol), port.published?)));
        let vips = service.virtual_ips.iter().map(|vip| (network.clone(), *vip)).collect();
        Self { vips, ports: published.collect() }
    }
}

/// Adds the value behind the key, or takes it away and the key with the last one.
fn put<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: K, value: V, is_there: bool) {
    if is_there {
        map.entry(key).or_default().insert(value);
    } else if let Some(values) = map.get_mut(&key) {
        values.remove(&value);
        if values.is_empty() {
            map.remove(&key);
        }
    }
}

impl Index {
    /// All that is on a network, as far as it is known.
    fn all_on(&self, network: &NetworkId, touch: &mut Touch) {
        touch.tasks.extend(self.on.get(network).into_iter().flatten().cloned());
        let services = self.services_on.get(network).into_iter().flatten();
        touch.services.extend(services.map(|service| (service.clone(), network.clone())));
    }

    /// Looks at what was touched anew; `candidates`: the networks whose tasks may be told otherwise. Returns the networks to which
    /// the first came or from which the last went.
    fn learn(&mut self, touch: &Touch, candidates: &BTreeSet<&NetworkId>, held: &Table, picture: &Picture) -> BTreeSet<NetworkId> {
        let mut was_empty: BTreeMap<NetworkId, bool> = BTreeMap::new();
        for id in &touch.tasks {
            let before = self.tasks.remove(id).unwrap_or_default();
            let networks: BTreeSet<&NetworkId> = before.on.keys().chain(candidates.iter().copied()).collect();
            let after = TaskEntry::of(id, networks.into_iter(), held, picture);
            for network in before.members.iter().chain(&after.members) {
                was_empty.entry(network.clone()).or_insert_with(|| !self.members.contains_key(network));
            }
            self.put_task(id, &before, false);
            self.put_task(id, &after, true);
            if !after.on.is_empty() || !after.services.is_empty() || !after.ports.is_empty() {
                self.tasks.insert(id.clone(), after);
            }
        }
        for place in &touch.services {
            let (service, network) = place;
            let known = picture.networks.get(network).and_then(|known| known.services.get(service));
            if let Some(before) = self.services.get_mut(service).and_then(|places| places.remove(network)) {
                self.put_service(place, &before, false);
            }
            if let Some(known) = known {
                let after = ServiceEntry::of(network, known);
                self.put_service(place, &after, true);
                self.services.entry(service.clone()).or_default().insert(network.clone(), after);
            } else if self.services.get(service).is_some_and(BTreeMap::is_empty) {
                self.services.remove(service);
            }
        }
        was_empty.into_iter().filter(|(id, was)| *was == self.members.contains_key(id)).map(|(id, _)| id).collect()
    }

    fn put_task(&mut self, id: &TaskId, entry: &TaskEntry, is_there: bool) {
        entry.addresses().for_each(|address| put(&mut self.claims, address, id.clone(), is_there));
        entry.services.iter().for_each(|service| put(&mut self.of_service, service.clone(), id.clone(), is_there));
        entry.vips.iter().for_each(|vip| put(&mut self.with_vip, vip.clone(), Who::Task(id.clone()), is_there));
        entry.ports.iter().for_each(|port| put(&mut self.with_port, *port, Who::Task(id.clone()), is_there));
        entry.on.keys().for_each(|network| put(&mut self.on, network.clone(), id.clone(), is_there));
        entry.members.iter().for_each(|network| put(&mut self.members, network.clone(), id.clone(), is_there));
    }

    fn put_service(&mut self, place: &Place, entry: &ServiceEntry, is_there: bool) {
        entry.vips.iter().for_each(|vip| put(&mut self.with_vip, vip.clone(), Who::Service(place.clone()), is_there));
        entry.ports.iter().for_each(|port| put(&mut self.with_port, *port, Who::Service(place.clone()), is_there));
        put(&mut self.services_on, place.1.clone(), place.0.clone(), is_there);
    }

    fn claimants(&self, entry: &TaskEntry) -> impl Iterator<Item = &TaskId> {
        entry.addresses().filter_map(|address| self.claims.get(&address)).flatten()
    }

    /// What depends on what was touched, as it is known now.
    fn affected_by(&self, touch: &Touch, out: &mut Affected) {
        let entry = |id: &TaskId| self.tasks.get(id);
        let rivals = touch.tasks.iter().filter_map(entry).flat_map(|entry| self.claimants(entry));
        for id in touch.tasks.iter().chain(rivals) {
            let on = out.tasks.entry(id.clone()).or_default();
            let Some(entry) = entry(id) else { continue };
            on.extend(entry.on.keys().cloned());
            out.services.extend(entry.services.iter().cloned());
            out.ports.extend(&entry.ports);
        }
        out.services.extend(touch.services.iter().map(|(service, _)| service.clone()));
        for service in &out.services {
            for entry in self.entries_of(service) {
                out.vips.extend(entry.vips.iter().cloned());
                out.ports.extend(&entry.ports);
            }
            // While no manager tells of the service, its tasks do.
            for entry in self.of_service.get(service).into_iter().flatten().filter_map(entry) {
                out.vips.extend(entry.vips.iter().cloned());
            }
        }
    }

    fn entries_of(&self, service: &ServiceId) -> impl Iterator<Item = &ServiceEntry> {
        self.services.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// All that have a part in what is affected, and of every network one that makes it wanted.
    fn world_of(&self, affected: &Affected, touch: &Touch, held: &Table, picture: &Picture) -> (Table, Picture) {
        let mut tasks: BTreeSet<&TaskId> = affected.tasks.keys().collect();
        let mut services: BTreeSet<&ServiceId> = affected.services.iter().collect();
        let sharing_vips = affected.vips.iter().filter_map(|vip| self.with_vip.get(vip));
        for who in sharing_vips.chain(affected.ports.iter().filter_map(|port| self.with_port.get(port))).flatten() {
            match who {
                Who::Service((service, _)) => services.insert(service),
                Who::Task(task) => tasks.insert(task),
            };
        }
        services.extend(tasks.iter().filter_map(|id| self.tasks.get(*id)).flat_map(|entry| &entry.services));
        tasks.extend(services.iter().filter_map(|service| self.of_service.get(*service)).flatten());
        let rivals: Vec<&TaskId> = tasks.iter().filter_map(|id| self.tasks.get(*id)).flat_map(|entry| self.claimants(entry)).collect();
        tasks.extend(rivals);
        let mut networks: BTreeSet<&NetworkId> = touch.networks.iter().collect();
        // Those that something left, too: what they say of it now is that there is nothing.
        networks.extend(affected.tasks.values().flatten());
        networks.extend(affected.vips.iter().map(|(network, _)| network));
        networks.extend(tasks.iter().filter_map(|id| self.tasks.get(*id)).flat_map(|entry| entry.on.keys()));
        networks.extend(services.iter().filter_map(|service| self.services.get(*service)).flat_map(BTreeMap::keys));
        tasks.extend(networks.iter().filter_map(|network| self.members.get(*network)?.first()));
        let part = |known: &NetworkPicture| NetworkPicture {
            network: Arc::clone(&known.network),
            peers: known.peers.clone(),
            tasks: tasks.iter().filter_map(|id| known.tasks.get_key_value(*id)).map(|(id, task)| (id.clone(), task.clone())).collect(),
            services: services
                .iter()
                .filter_map(|id| known.services.get_key_value(*id))
                .map(|(id, one)| (id.clone(), one.clone()))
                .collect(),
        };
        let known = networks.into_iter().filter_map(|id| Some((id.clone(), part(picture.networks.get(id)?))));
        let part_picture = Picture {
            revision: picture.revision,
            node_index: picture.node_index,
            vxlan_port: picture.vxlan_port,
            epochs: picture.epochs,
            encrypted_path: picture.encrypted_path,
            networks: known.collect(),
        };
        let own = tasks.iter().filter_map(|id| held.get_key_value(*id)).map(|(id, one)| (id.clone(), one.clone()));
        (own.collect(), part_picture)
    }
}

#[cfg(test)]
mod tests;
