//! What a change means for whom. Pure.

use super::dirty::Touch;
use super::facts::{self, DEFAULT_VXLAN_PORT, endpoint, host, readiness, service_entry};
use super::index::{Index, Member, Net, Out, Seat};
use skep_proto::skep::network_endpoint::Readiness;
use skep_types::template::NodeFacts;
use skep_types::{Change, Cluster, Network, NetworkId, Node, NodeId, Object, Service, ServiceId, Task, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Index {
    pub(super) fn note(&mut self, change: &Change, out: Out) {
        let gone = matches!(change, Change::Removed(_));
        match change.object() {
            Object::Task(task) => self.put_task(&task.id, (!gone).then_some(task), out),
            Object::Node(node) => self.put_node(&node.id, (!gone).then_some(node), out),
            Object::Service(service) => self.put_service(&service.id, (!gone).then_some(service), out),
            Object::Network(network) => self.put_network(network, !gone, out),
            Object::Cluster(cluster) => self.put_cluster(cluster, out),
            Object::Secret(_) | Object::Config(_) => {}
        }
    }

    fn put_cluster(&mut self, cluster: &Cluster, out: Out) {
        let port = if cluster.vxlan_port == 0 { DEFAULT_VXLAN_PORT } else { cluster.vxlan_port };
        if std::mem::replace(&mut self.vxlan_port, port) != port {
            self.nodes.keys().for_each(|node| out(node, Touch::Header));
        }
        if self.epochs != cluster.tunnel_epochs {
            self.epochs.clone_from(&cluster.tunnel_epochs);
            self.epochs_since = self.version;
            self.nodes.keys().for_each(|node| out(node, Touch::Header));
        }
    }

    fn put_task(&mut self, id: &TaskId, new: Option<&Arc<Task>>, out: Out) {
        let new = new.filter(|task| host(task).is_some() && facts::networks(task).next().is_some());
        let old = match new {
            Some(task) => self.tasks.insert(id.clone(), Arc::clone(task)),
            None => self.tasks.remove(id),
        };
        let attached = |task: Option<&Arc<Task>>| -> BTreeSet<NetworkId> {
            task.into_iter().flat_map(|task| facts::networks(task)).map(|attachment| attachment.network.id.clone()).collect()
        };
        let (before, after) = (attached(old.as_ref()), attached(new));
        for network in before.union(&after) {
            let was = old.as_ref().filter(|_| before.contains(network));
            let is = new.filter(|_| after.contains(network));
            let (from, to) = (was.and_then(|task| host(task)), is.and_then(|task| host(task)));
            let same = match (was, is) {
                (Some(was), Some(is)) => {
                    let no_node = NodeFacts::default();
                    from == to && endpoint(was, network, 0, &no_node) == endpoint(is, network, 0, &no_node)
                }
                _ => false,
            };
            if from != to {
                from.inspect(|node| self.take_from(node, network, id, out));
                to.inspect(|node| self.put_on(node, network, id, out));
            }
            let is_seen = |node: Option<&NodeId>| node.is_some_and(|node| self.spanning.contains(node));
            if !same && (is_seen(from) || is_seen(to)) {
                let leaves = is.is_some_and(|task| readiness(task) == Readiness::Leaving);
                let touch = if leaves { Touch::Leaving } else { Touch::Endpoint };
                self.tell(network, &touch(network.clone(), id.clone()), out);
            }
            self.drop_if_void(network);
        }
        if new.is_none_or(|task| readiness(task) != Readiness::Leaving) {
            self.forget_leaving(id);
            if let Some(seat) = old.as_ref().and_then(|old| host(old)).and_then(|node| self.nodes.get_mut(node)) {
                seat.cleared.remove(id);
            }
        }
    }

    /// A task that is to leave begins to wait, once all that changed with it is in: whom it waits for may be among that.
    pub(super) fn note_leaving(&mut self, change: &Change, out: Out) {
        let Object::Task(task) = change.object() else { return };
        if self.leaving.contains_key(&task.id) {
            return;
        }
        let known = self.tasks.get(&task.id).filter(|task| readiness(task) == Readiness::Leaving).cloned();
        known.iter().for_each(|task| self.leave(task, out));
    }

    fn put_on(&mut self, node: &NodeId, network: &NetworkId, task: &TaskId, out: Out) {
        let hosts = &mut self.networks.entry(network.clone()).or_default().hosts;
        let tasks = hosts.entry(node.clone()).or_default();
        tasks.insert(task.clone());
        if tasks.len() == 1 {
            self.nodes.entry(node.clone()).or_default().networks.insert(network.clone());
            self.host_changed(node, network, out);
        }
    }

    fn take_from(&mut self, node: &NodeId, network: &NetworkId, task: &TaskId, out: Out) {
        let Some(net) = self.networks.get_mut(network) else { return };
        let Some(tasks) = net.hosts.get_mut(node) else { return };
        tasks.remove(task);
        if tasks.is_empty() {
            net.hosts.remove(node);
            if let Some(seat) = self.nodes.get_mut(node) {
                seat.networks.remove(network);
                if seat.place.is_some() {
                    seat.left.insert(network.clone(), self.version);
                }
            }
            self.host_changed(node, network, out);
            self.drop_seat_if_void(node);
        }
    }

    /// The node has its first task on the network, or had its last: what it is told there is of another kind now, and others have
    /// to know it, or not any more.
    fn host_changed(&mut self, node: &NodeId, network: &NetworkId, out: Out) {
        out(node, Touch::Interest(network.clone()));
        if let Some(number) = self.nodes.get(node).and_then(|seat| seat.place.as_ref()).map(|place| place.index) {
            self.tell(network, &Touch::Peer(network.clone(), number), out);
        }
        self.expect(node, network, out);
    }

    fn put_node(&mut self, id: &NodeId, new: Option<&Arc<Node>>, out: Out) {
        let seat = self.nodes.entry(id.clone()).or_default();
        let place = new.and_then(|node| facts::place(node));
        let was_known = std::mem::replace(&mut seat.exists, new.is_some());
        // A task's host name is made when it begins: another name of the node later changes none.
        seat.facts = new.map(|node| NodeFacts::of(node)).unwrap_or_default();
        let down = new.is_none_or(|node| facts::is_down(node));
        let was_down = std::mem::replace(&mut seat.down, down);
        let before = std::mem::replace(&mut seat.place, place.clone());
        if down || place.is_none() {
            self.unheard.remove(id);
        } else if !was_known {
            self.unheard.insert(id.clone(), self.version);
        }
        if let (Some(before), Some(now)) = (&before, &place)
            && facts::is_change_of_keys(before, now)
        {
            self.keys_changed(id, now.index, out);
        } else if before != place {
            self.place_changed(id, before.as_ref().map(|place| place.index), place.as_ref().map(|place| place.index), out);
        }
        if before != place || was_down != down {
            let of_seat = |seat: &Seat| seat.networks.iter().chain(seat.left.keys()).cloned().collect();
            let networks: BTreeSet<NetworkId> = self.nodes.get(id).map(of_seat).unwrap_or_default();
            networks.union(&self.ingress.clone()).for_each(|network| {
                self.expect(id, network, out);
                self.drop_if_void(network);
            });
        }
        self.drop_seat_if_void(id);
    }

    /// Those that send to the node encrypted are told; not all those that share the ingress network with it.
    fn keys_changed(&mut self, id: &NodeId, number: u32, out: Out) {
        for network in self.nodes.get(id).into_iter().flat_map(|seat| &seat.networks) {
            let is_encrypted = |net: &Net| net.network.as_ref().is_some_and(|network| network.is_encrypted());
            if self.networks.get(network).is_some_and(is_encrypted) {
                self.tell(network, &Touch::Peer(network.clone(), number), out);
            }
        }
    }

    /// The node got its number or its underlay address, or lost them.
    fn place_changed(&mut self, id: &NodeId, before: Option<u32>, now: Option<u32>, out: Out) {
        if let Some(number) = before
            && self.numbers.get(&number) == Some(id)
        {
            self.numbers.remove(&number);
        }
        match now {
            Some(number) => {
                self.numbers.insert(number, id.clone());
                self.spanning.insert(id.clone());
            }
            None => drop(self.spanning.remove(id)),
        }
        out(id, Touch::Header);
        let hosted = self.nodes.get(id).into_iter().flat_map(|seat| &seat.networks);
        let networks: BTreeSet<&NetworkId> = hosted.chain(&self.ingress).collect();
        for network in networks {
            let Some(net) = self.networks.get(network) else { continue };
            for number in BTreeSet::from([before, now]).into_iter().flatten() {
                self.tell(network, &Touch::Peer(network.clone(), number), out);
            }
            if before != now {
                for task in net.hosts.get(id).into_iter().flatten() {
                    self.tell(network, &Touch::Endpoint(network.clone(), task.clone()), out);
                }
                out(id, Touch::Interest(network.clone()));
            }
        }
    }

    fn put_service(&mut self, id: &ServiceId, new: Option<&Arc<Service>>, out: Out) {
        let new = new.filter(|service| service.endpoint.is_some());
        let old = self.services.remove(id);
        for target in old.iter().flat_map(|member| targets(&member.service)) {
            if let Some(services) = self.wanting.get_mut(&target) {
                services.remove(id);
                if services.is_empty() {
                    self.wanting.remove(&target);
                }
            }
        }
        for target in new.into_iter().flat_map(|service| targets(service)) {
            self.wanting.entry(target).or_default().insert(id.clone());
        }
        let new = new.map(|service| Member { service: Arc::clone(service), networks: self.networks_of(service) });
        let attached =
            |member: &Option<Member>| -> BTreeSet<NetworkId> { member.iter().flat_map(|member| member.networks.keys()).cloned().collect() };
        let networks = &attached(&old) | &attached(&new);
        if let Some(member) = new {
            self.services.insert(id.clone(), member);
        }
        let new = self.services.get(id);
        for network in &networks {
            let net = self.networks.entry(network.clone()).or_default();
            let entry = |member: Option<&Member>| {
                let aliases = member?.networks.get(network)?.clone();
                Some(service_entry(&member?.service, network, net.ingress, aliases))
            };
            let (before, now) = (entry(old.as_ref()), entry(new));
            if now.is_some() {
                net.services.insert(id.clone());
            } else {
                net.services.remove(id);
            }
            if before != now {
                self.tell(network, &Touch::Service(network.clone(), id.clone()), out);
            }
        }
        networks.iter().for_each(|network| self.drop_if_void(network));
    }

    /// The networks a service is on: those that it has an address on, and those that it asks for.
    fn networks_of(&self, service: &Service) -> BTreeMap<NetworkId, Vec<String>> {
        let vips = service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips);
        let mut networks: BTreeMap<NetworkId, Vec<String>> = vips.map(|vip| (vip.network_id.clone(), Vec::new())).collect();
        for config in service.networks() {
            if let Some(id) = self.resolve(&config.target) {
                networks.entry(id).or_default().extend(config.aliases.iter().cloned());
            }
        }
        networks
    }

    /// As [`skep_plan::resolve_network`].
    fn resolve(&self, target: &str) -> Option<NetworkId> {
        let by_id = target.parse().ok().filter(|id| self.networks.get(id).is_some_and(|net| net.network.is_some()));
        by_id.or_else(|| self.names.get(&target.to_lowercase()).cloned())
    }

    fn put_network(&mut self, network: &Arc<Network>, exists: bool, out: Out) {
        let (id, name) = (&network.id, network.spec.annotations.name.to_lowercase());
        let new = Some(network).filter(|network| exists && facts::spans(network)).cloned();
        let is_ingress = new.as_ref().is_some_and(|network| skep_plan::is_ingress(network));
        let net = self.networks.entry(id.clone()).or_default();
        let before = std::mem::replace(&mut net.network, new.clone());
        let same_kind = before.is_some() == new.is_some() && net.ingress == is_ingress;
        if let (true, Some(old), Some(new)) = (same_kind, &before, &new) {
            if (&old.spec, &old.ipam, &old.driver_state) != (&new.spec, &new.ipam, &new.driver_state) {
                self.tell(id, &Touch::Network(id.clone()), out);
            }
            return;
        }
        // Rare: everybody who had an interest or has one now is looked at.
        let everybody: BTreeSet<NodeId> = net.hosts.keys().chain(&self.spanning).cloned().collect();
        let concerns_all = net.ingress || is_ingress;
        net.ingress = is_ingress;
        let concerned: Vec<NodeId> = if concerns_all { everybody.into_iter().collect() } else { net.hosts.keys().cloned().collect() };
        if is_ingress {
            self.ingress.insert(id.clone());
        } else {
            self.ingress.remove(id);
        }
        if new.is_some() {
            self.names.insert(name.clone(), id.clone());
        } else if self.names.get(&name) == Some(id) {
            self.names.remove(&name);
        }
        for node in concerned {
            out(&node, Touch::Interest(id.clone()));
            self.expect(&node, id, out);
        }
        let wanting = [id.as_str().to_lowercase(), name].into_iter().filter_map(|target| self.wanting.get(&target)).flatten();
        for service in wanting.cloned().collect::<BTreeSet<ServiceId>>() {
            let service = self.services.get(&service).map(|member| Arc::clone(&member.service));
            service.iter().for_each(|service| self.put_service(&service.id, Some(service), out));
        }
        self.drop_if_void(id);
    }

    pub(super) fn drop_if_void(&mut self, id: &NetworkId) {
        if self.networks.get(id).is_some_and(|net| net.is_void()) {
            self.networks.remove(id);
        }
    }

    fn drop_seat_if_void(&mut self, node: &NodeId) {
        if self.nodes.get(node).is_some_and(|seat| !seat.exists && seat.networks.is_empty()) {
            self.nodes.remove(node);
        }
    }
}

/// What a service calls its networks, in small letters: names are compared so.
fn targets(service: &Service) -> impl Iterator<Item = String> {
    service.networks().iter().map(|config| config.target.to_lowercase())
}
