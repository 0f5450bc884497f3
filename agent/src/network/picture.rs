//! What managers say of networks that span nodes, kept by differences. Pure.
//!
//! It is what this node knows of others. Of its own tasks it knows better by itself ([`super::held`]).

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use skep_types::{Affinity, Network, NetworkId, Protocol, PublishPlace, ServiceId, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// All networks this node has an interest in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// Of the cluster's state.
    pub revision: u64,
    /// The number of this node among its peers; 0 = none yet.
    pub node_index: u32,
    /// UDP port of VXLAN; 0 = the usual one.
    pub vxlan_port: u16,
    /// Of the keys of encrypted networks; `None` before there are any.
    #[serde(default)]
    pub epochs: Option<Epochs>,
    /// What a packet may measure on the narrowest way to a node with which this one has an encrypted network, as far as it is known.
    #[serde(skip)]
    pub encrypted_path: Option<u32>,
    pub networks: BTreeMap<NetworkId, NetworkPicture>,
}

/// Which keys nodes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epochs {
    pub oldest: u32,
    /// By whose tunnels nodes send. They receive by all.
    pub sending: u32,
    /// The oldest or the one after it.
    pub newest: u32,
}

impl Epochs {
    pub fn all(self) -> std::ops::RangeInclusive<u32> {
        self.oldest..=self.newest
    }
}

/// One network and who is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPicture {
    pub network: Arc<Network>,
    /// This node is among them.
    pub peers: BTreeMap<u32, PeerNode>,
    pub tasks: BTreeMap<TaskId, SpannedTask>,
    pub services: BTreeMap<ServiceId, SpannedService>,
}

/// A node with an interest in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNode {
    pub index: u32,
    pub underlay: IpAddr,
    pub mac: [u8; 6],
    /// Of its end of the tunnels, if the network is encrypted: of no epoch, one or two.
    #[serde(default)]
    pub keys: [Option<PeerKey>; 2],
    /// What a packet may measure on its device towards the others, in bytes, as it said; 0 = it did not.
    #[serde(default)]
    pub mtu: u32,
    /// The same of the way from this node to it, as this node's kernel says; 0 = there is none, or it was not looked at.
    #[serde(skip)]
    pub path: u32,
}

/// Where and by which key a node is reached encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerKey {
    pub epoch: u32,
    pub public: [u8; 32],
    /// UDP.
    pub port: u16,
}

/// A task, or a container attached from outside, on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpannedTask {
    pub id: TaskId,
    pub service: Option<ServiceId>,
    /// 0 for global services.
    pub slot: u64,
    pub node_index: u32,
    pub addresses: Vec<IpAddr>,
    pub name: String,
    pub hostnames: Vec<String>,
    pub readiness: Readiness,
}

/// How far a task is, as managers know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Readiness {
    /// It has a node; nothing leads to it yet.
    Planned,
    /// It runs and is not healthy yet.
    Starting,
    Ready,
    /// To be stopped: nothing new should come to it.
    Leaving,
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpannedService {
    pub id: ServiceId,
    pub name: String,
    pub aliases: Vec<String>,
    /// None: names lead to the tasks' own addresses.
    pub virtual_ips: Vec<IpAddr>,
    pub ports: Vec<SpannedPort>,
}

/// A port that a service's tasks listen on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpannedPort {
    pub name: String,
    pub protocol: Protocol,
    pub target: u16,
    /// On every node; only on the ingress network. Where, to whom and to which task goes with it.
    pub published: Option<u16>,
    #[serde(default)]
    pub place: PublishPlace,
    #[serde(default)]
    pub affinity: Affinity,
    #[serde(default)]
    pub allow: Vec<IpNet>,
}

/// A message of a manager.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Changes {
    pub revision: u64,
    /// Networks that are not in it are of no interest.
    #[serde(skip_serializing_if = "is_false")]
    pub complete: bool,
    pub networks: Vec<Delta>,
    /// Tasks of this node that no node leads to any more.
    #[serde(skip)]
    pub cleared: Vec<TaskId>,
    pub node_index: u32,
    pub vxlan_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<Epochs>,
}

/// What changed on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    pub id: NetworkId,
    /// Of no interest any more.
    #[serde(default, skip_serializing_if = "is_false")]
    pub removed: bool,
    /// Peers, tasks and services that are not in it are gone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub complete: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Arc<Network>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerNode>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<SpannedTask>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<SpannedService>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_peers: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_tasks: Vec<TaskId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_services: Vec<ServiceId>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Which parts of the networks are not what they were.
pub type Touched = BTreeMap<NetworkId, Parts>;

/// Of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parts {
    /// Everything, or whether it is known at all.
    Whole,
    Some {
        tasks: BTreeSet<TaskId>,
        services: BTreeSet<ServiceId>,
    },
}

impl Delta {
    pub fn of(id: NetworkId) -> Self {
        Self {
            id,
            removed: false,
            complete: false,
            network: None,
            peers: Vec::new(),
            tasks: Vec::new(),
            services: Vec::new(),
            removed_peers: Vec::new(),
            removed_tasks: Vec::new(),
            removed_services: Vec::new(),
        }
    }

    /// How many things it names.
    pub fn parts(&self) -> usize {
        let gone = self.removed_peers.len() + self.removed_tasks.len() + self.removed_services.len();
        1 + self.peers.len() + self.tasks.len() + self.services.len() + gone
    }
}

impl NetworkPicture {
    /// Nobody is on it.
    pub fn new(network: Arc<Network>) -> Self {
        Self { network, peers: BTreeMap::new(), tasks: BTreeMap::new(), services: BTreeMap::new() }
    }

    fn change(&mut self, delta: Delta) -> Parts {
        let is_whole = delta.complete || delta.network.as_ref().is_some_and(|network| *network != self.network);
        if delta.complete {
            self.peers.clear();
            self.tasks.clear();
            self.services.clear();
        }
        if let Some(network) = delta.network {
            self.network = network;
        }
        let tasks = delta.tasks.iter().map(|task| &task.id).chain(&delta.removed_tasks).cloned().collect();
        let services = delta.services.iter().map(|service| &service.id).chain(&delta.removed_services).cloned().collect();
        // What goes before what comes: who is in both stays.
        self.peers.retain(|index, _| !delta.removed_peers.contains(index));
        for id in &delta.removed_tasks {
            self.tasks.remove(id);
        }
        for id in &delta.removed_services {
            self.services.remove(id);
        }
        self.peers.extend(delta.peers.into_iter().map(|peer| (peer.index, peer)));
        self.tasks.extend(delta.tasks.into_iter().map(|task| (task.id.clone(), task)));
        self.services.extend(delta.services.into_iter().map(|service| (service.id.clone(), service)));
        if is_whole { Parts::Whole } else { Parts::Some { tasks, services } }
    }
}

impl Picture {
    /// Takes a message in. A difference to a network that is not known is left out, and its id returned among the strangers: the
    /// sender and this node do not speak of the same.
    pub fn change(&mut self, changes: Changes) -> (Touched, Vec<NetworkId>) {
        let (mut touched, mut strangers) = (Touched::new(), Vec::new());
        self.revision = changes.revision;
        self.node_index = changes.node_index;
        self.vxlan_port = changes.vxlan_port;
        self.epochs = changes.epochs;
        if changes.complete {
            let told: BTreeSet<&NetworkId> = changes.networks.iter().map(|delta| &delta.id).collect();
            let gone: Vec<NetworkId> = self.networks.keys().filter(|id| !told.contains(id)).cloned().collect();
            for id in gone {
                self.networks.remove(&id);
                touched.insert(id, Parts::Whole);
            }
        }
        for mut delta in changes.networks {
            let id = delta.id.clone();
            if delta.removed {
                self.networks.remove(&id);
                touched.insert(id, Parts::Whole);
                continue;
            }
            delta.complete |= changes.complete;
            match (self.networks.get_mut(&id), delta.network.clone()) {
                (Some(known), _) => {
                    touched.insert(id, known.change(delta));
                }
                (None, Some(network)) => {
                    let mut new = NetworkPicture::new(network);
                    new.change(delta);
                    self.networks.insert(id.clone(), new);
                    touched.insert(id, Parts::Whole);
                }
                (None, None) => strangers.push(id),
            }
        }
        (touched, strangers)
    }

    /// Whether managers want the task gone, on whatever network.
    pub fn is_leaving(&self, task: &TaskId) -> bool {
        self.networks.values().filter_map(|network| network.tasks.get(task)).any(|task| task.readiness == Readiness::Leaving)
    }

    /// Whether managers told of the task, on whatever network.
    pub fn tells_of(&self, task: &TaskId) -> bool {
        self.networks.values().any(|network| network.tasks.contains_key(task))
    }

    /// Whether another node may lead to the task: it knows of it and is on a network of its.
    pub fn is_known_elsewhere(&self, task: &TaskId) -> bool {
        let others = |network: &NetworkPicture| network.peers.keys().any(|index| *index != self.node_index);
        self.networks.values().any(|network| network.tasks.contains_key(task) && others(network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixtures::{back, overlay, peer, remote, service1};

    fn id(number: u64) -> NetworkId {
        NetworkId::for_test(number)
    }

    fn first() -> (Picture, Touched) {
        let mut picture = Picture::default();
        let known = back(&[1, 2], &[(1, 1, Readiness::Ready), (2, 2, Readiness::Starting)]);
        let delta = Delta {
            network: Some(known.network.clone()),
            peers: known.peers.into_values().collect(),
            tasks: known.tasks.into_values().collect(),
            services: known.services.into_values().collect(),
            ..Delta::of(id(2))
        };
        let changes = Changes { revision: 7, complete: true, networks: vec![delta], node_index: 1, ..Changes::default() };
        let (touched, strangers) = picture.change(changes);
        assert!(strangers.is_empty());
        (picture, touched)
    }

    fn difference(revision: u64, delta: Delta) -> Changes {
        Changes { revision, networks: vec![delta], node_index: 1, ..Changes::default() }
    }

    #[test]
    fn a_complete_state_takes_the_place_of_all() {
        let (mut picture, touched) = first();
        assert_eq!(picture.networks[&id(2)], back(&[1, 2], &[(1, 1, Readiness::Ready), (2, 2, Readiness::Starting)]));
        assert_eq!((touched, picture.revision), ([(id(2), Parts::Whole)].into(), 7));
        let other = Delta { network: Some(overlay(3, "other", false)), ..Delta::of(id(3)) };
        let (touched, _) = picture.change(Changes { revision: 9, complete: true, networks: vec![other], ..Changes::default() });
        assert_eq!(picture.networks.keys().collect::<Vec<_>>(), [&id(3)]);
        assert_eq!(touched, [(id(2), Parts::Whole), (id(3), Parts::Whole)].into());
    }

    #[test]
    fn a_difference_changes_what_it_names_and_nothing_else() {
        let (mut picture, _) = first();
        let delta = Delta {
            tasks: vec![remote(2, 3, 2, Readiness::Ready)],
            removed_tasks: vec![TaskId::for_test(2)],
            peers: vec![peer(3)],
            removed_peers: vec![2],
            ..Delta::of(id(2))
        };
        let (touched, _) = picture.change(difference(8, delta));
        let tasks = [2, 3].map(TaskId::for_test).into();
        assert_eq!(touched, [(id(2), Parts::Some { tasks, services: BTreeSet::new() })].into());
        assert_eq!(picture.networks[&id(2)], back(&[1, 3], &[(1, 1, Readiness::Ready), (3, 2, Readiness::Ready)]));
        picture.change(difference(9, Delta { removed_services: vec![service1()], ..Delta::of(id(2)) }));
        assert!(picture.networks[&id(2)].services.is_empty());
        picture.change(difference(10, Delta { removed: true, ..Delta::of(id(2)) }));
        assert!(picture.networks.is_empty());
    }

    #[test]
    fn a_network_may_be_made_anew_by_a_difference() {
        let (mut picture, _) = first();
        let delta = Delta { complete: true, peers: vec![peer(1)], ..Delta::of(id(2)) };
        let (touched, _) = picture.change(difference(8, delta));
        assert_eq!(touched, [(id(2), Parts::Whole)].into());
        let expected = NetworkPicture { services: BTreeMap::new(), ..back(&[1], &[]) };
        assert_eq!(picture.networks[&id(2)], expected);
    }

    #[test]
    fn a_difference_to_what_is_not_known_is_a_stranger() {
        let (mut picture, _) = first();
        let before = picture.networks.clone();
        let (touched, strangers) = picture.change(difference(8, Delta { peers: vec![peer(1)], ..Delta::of(id(5)) }));
        assert_eq!((touched, strangers), (Touched::new(), vec![id(5)]));
        assert_eq!(picture.networks, before);
    }

    #[test]
    fn a_task_that_no_other_node_knows_need_not_be_cleared() {
        let (mut picture, _) = first();
        assert!(picture.is_known_elsewhere(&TaskId::for_test(1)));
        assert!(!picture.is_known_elsewhere(&TaskId::for_test(9)));
        picture.change(difference(8, Delta { removed_peers: vec![2], ..Delta::of(id(2)) }));
        assert!(!picture.is_known_elsewhere(&TaskId::for_test(1)));
        assert!(!picture.is_leaving(&TaskId::for_test(1)));
        picture.change(difference(9, Delta { tasks: vec![remote(2, 1, 1, Readiness::Leaving)], ..Delta::of(id(2)) }));
        assert!(picture.is_leaving(&TaskId::for_test(1)));
    }

    #[test]
    fn it_is_read_back_as_it_was_written() {
        let (picture, _) = first();
        let text = serde_json::to_vec(&picture).unwrap();
        assert_eq!(serde_json::from_slice::<Picture>(&text).unwrap(), picture);
    }
}
