//! Who has which address and which port, by what is stored: kept as commits come, so that a look costs what a commit changed.

use crate::transitions::may_run;
use skep_store::View;
use skep_types::{
    Change, ClusterView as _, NetworkAttachment, NetworkId, NodeId, Object, PortConfig, PublishMode, ServiceId, Task, TaskId, TaskState,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one at a time may have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    /// Of a network, without the length of the prefix.
    Address(NetworkId, String),
    /// Of a node.
    Port(NodeId, u32),
    /// That all nodes answer.
    Ingress(u32),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Service(ServiceId),
    Task(TaskId),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// In the order of their ids.
    of: BTreeMap<Thing, Vec<Owner>>,
    /// What somebody got since the last look.
    touched: Vec<Thing>,
}

impl Owners {
    /// Of everything that is there.
    #[must_use]
    pub fn of(view: &View) -> Self {
        let mut this = Self::default();
        let services = view.services().map(|service| Object::Service(Arc::clone(service)));
        let tasks = view.tasks().map(|task| Object::Task(Arc::clone(task)));
        services.chain(tasks).for_each(|object| this.note(&Change::Created(object)));
        this.touched.clear();
        this
    }

    /// Takes a change in.
    pub fn note(&mut self, change: &Change) {
        let (old, new) = match change {
            Change::Created(new) => (None, Some(new)),
            Change::Updated { old, new } => (Some(old), Some(new)),
            Change::Removed(old) => (Some(old), None),
        };
        if matches!((old, new), (Some(Object::Task(old)), Some(Object::Task(new))) if has_the_same(old, new)) {
            return;
        }
        let Some(owner) = owner(change.object()) else { return };
        let (before, now) = (old.map(things).unwrap_or_default(), new.map(things).unwrap_or_default());
        if before == now {
            return;
        }
        for thing in &before {
            if let Some(owners) = self.of.get_mut(thing) {
                if let Some(index) = owners.iter().position(|other| *other == owner) {
                    owners.remove(index);
                }
                if owners.is_empty() {
                    self.of.remove(thing);
                }
            }
        }
        for thing in now {
            let owners = self.of.entry(thing.clone()).or_default();
            let index = owners.partition_point(|other| *other <= owner);
            owners.insert(index, owner.clone());
            self.touched.push(thing);
        }
    }

    /// What was given since the last look and has more than one owner now.
    pub fn twice(&mut self) -> Option<String> {
        std::mem::take(&mut self.touched).iter().find_map(|thing| {
            let owners = self.of.get(thing)?;
            let (one, other) = match (thing, owners.as_slice()) {
                // A service may publish a number twice, by two protocols.
                (Thing::Ingress(_), [one, .., last]) if one != last => (one, last),
                (Thing::Address(..) | Thing::Port(..), [one, other, ..]) => (one, other),
                _ => return None,
            };
            Some(format!("{} belongs to {} and to {}", thing.words(), one.words(), other.words()))
        })
    }
}

impl Thing {
    fn words(&self) -> String {
        match self {
            Self::Address(_, address) => format!("address {address}"),
            Self::Port(_, port) => format!("port {port} of a node"),
            Self::Ingress(port) => format!("port {port}"),
        }
    }
}

impl Owner {
    fn words(&self) -> String {
        match self {
            Self::Service(id) => format!("service {id}"),
            Self::Task(id) => format!("task {id}"),
        }
    }
}

fn owner(object: &Object) -> Option<Owner> {
    match object {
        Object::Service(service) => Some(Owner::Service(service.id.clone())),
        Object::Task(task) => Some(Owner::Task(task.id.clone())),
        _ => None,
    }
}

/// Whether two states of a task surely have the same things; most changes are such.
fn has_the_same(old: &Task, new: &Task) -> bool {
    let phase = |task: &Task| (task.status.state <= TaskState::Running, may_run(task.status.state));
    let attached = |task: &Task| task.networks.len();
    let same_network =
        |(one, two): (&NetworkAttachment, &NetworkAttachment)| one.network.id == two.network.id && one.addresses == two.addresses;
    phase(old) == phase(new)
        && old.node_id == new.node_id
        && old.endpoint == new.endpoint
        && attached(old) == attached(new)
        && old.networks.iter().zip(&new.networks).all(same_network)
}

/// What an object has: a task until it has ended, ports of its node while it may run there.
fn things(object: &Object) -> Vec<Thing> {
    let number = |port: &PortConfig, mode| (port.publish_mode == mode).then_some(port.published_port);
    match object {
        Object::Service(service) => {
            let Some(endpoint) = &service.endpoint else { return Vec::new() };
            let addresses = endpoint.virtual_ips.iter().map(|vip| Thing::Address(vip.network_id.clone(), bare(&vip.addr)));
            let ports = endpoint.ports.iter().filter_map(|port| number(port, PublishMode::Ingress));
            addresses.chain(ports.map(Thing::Ingress)).collect()
        }
        Object::Task(task) if task.status.state <= TaskState::Running => {
            let addresses = task.networks.iter().flat_map(|attached| {
                let given = attached.addresses.iter().filter(|address| !address.is_empty());
                given.map(|address| Thing::Address(attached.network.id.clone(), bare(address)))
            });
            let node = task.node_id.as_ref().filter(|_| may_run(task.status.state));
            let endpoint = task.endpoint.iter().filter_map(|endpoint| Some((node?, endpoint)));
            let ports = endpoint.flat_map(|(node, endpoint)| endpoint.spec.ports.iter().map(move |port| (node, port)));
            let ports = ports.filter_map(|(node, port)| Some((node, number(port, PublishMode::Host).filter(|port| *port > 0)?)));
            addresses.chain(ports.map(|(node, port)| Thing::Port(node.clone(), port))).collect()
        }
        _ => Vec::new(),
    }
}

/// Without the length of the prefix.
fn bare(address: &str) -> String {
    address.split('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::Owners;
    use crate::scenario::Scenario;
    use crate::world::World;

    #[test]
    fn what_commits_left_is_what_a_look_at_everything_finds() {
        for seed in 0..6 {
            let mut world = World::new(&Scenario::of_seed(seed), None, false);
            for event in 1..3_000 {
                assert!(world.happen(), "seed {seed}: {:?}", world.watch.violation);
                if event % 100 == 0 {
                    assert_eq!(world.watch.owners, Owners::of(&world.raft.view()), "seed {seed}");
                }
            }
        }
    }
}
