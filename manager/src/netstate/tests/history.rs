//! Histories of a cluster, drawn: what nodes are told by differences is what there is.

use super::world::*;
use crate::netstate::dirty::Dirty;
use crate::netstate::index::Index;
use proptest::prelude::*;
use skep_proto::skep::NetworkChanges;
use skep_store::View;
use skep_types::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone)]
enum Step {
    Node { number: u64, place: u8, down: bool },
    RemoveNode(u64),
    Network { number: u64, ingress: bool, allocated: bool },
    RemoveNetwork(u64),
    Service { number: u64, vips: BTreeSet<u64>, names: BTreeSet<u64> },
    RemoveService(u64),
    Task { number: u64, on: u64, networks: BTreeSet<u64> },
    Report(u64, usize),
    Want(u64),
    RemoveTask(u64),
    Take(u64),
    Acknowledge(u64),
    Anew,
}

fn some_networks() -> impl Strategy<Value = BTreeSet<u64>> {
    prop::collection::btree_set(1u64..4, 0..3)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u64..5, 0u8..4, any::<bool>()).prop_map(|(number, place, down)| Step::Node { number, place, down }),
        1 => (1u64..5).prop_map(Step::RemoveNode),
        3 => (1u64..4, any::<bool>(), any::<bool>()).prop_map(|(number, ingress, allocated)| Step::Network { number, ingress, allocated }),
        1 => (1u64..4).prop_map(Step::RemoveNetwork),
        3 => (1u64..4, some_networks(), some_networks()).prop_map(|(number, vips, names)| Step::Service { number, vips, names }),
        1 => (1u64..4).prop_map(Step::RemoveService),
        5 => (1u64..7, 1u64..5, some_networks()).prop_map(|(number, on, networks)| Step::Task { number, on, networks }),
        5 => (1u64..7, 0usize..14).prop_map(|(number, state)| Step::Report(number, state)),
        2 => (1u64..7).prop_map(Step::Want),
        1 => (1u64..7).prop_map(Step::RemoveTask),
        4 => (1u64..5).prop_map(Step::Take),
        2 => (1u64..5).prop_map(Step::Acknowledge),
        1 => Just(Step::Anew),
    ]
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Node { number, place, down } => {
                let underlay = format!("192.0.2.{place}");
                let place = match place {
                    0 => None,
                    1 => Some((0, underlay.as_str())),
                    _ => Some((number as u32, underlay.as_str())),
                };
                self.put_node(number, place, if down { NodeState::Down } else { NodeState::Ready });
            }
            Step::RemoveNode(number) => self.remove(Kind::Node, node(number).as_str()),
            Step::Network { number, ingress, allocated } => self.put_network(number, ingress, allocated),
            Step::RemoveNetwork(number) => self.remove(Kind::Network, network(number).as_str()),
            Step::Service { number, vips, names } => {
                let vips: Vec<_> = vips.into_iter().map(|number| (number, "10.0.0.7/24")).collect();
                self.put_service(number, &vips, &names.into_iter().collect::<Vec<_>>());
            }
            Step::RemoveService(number) => self.remove(Kind::Service, ServiceId::for_test(number).as_str()),
            Step::Task { number, on, networks } => {
                if self.tables.task(&task(number)).is_none() {
                    self.put_task(number, on, &networks.into_iter().collect::<Vec<_>>(), TaskState::Pending);
                }
            }
            Step::Report(number, state) => self.report(number, TaskState::ALL[state]),
            Step::Want(number) => self.want(number, TaskState::Shutdown),
            Step::RemoveTask(number) => self.remove(Kind::Task, task(number).as_str()),
            Step::Take(number) => self.take(number),
            Step::Acknowledge(number) => self.acknowledge(number),
            Step::Anew => {
                self.index = self.index.renewed(&View::from(self.tables.clone()));
                self.streams.values_mut().for_each(|stream| stream.dirty = Dirty::everything());
            }
        }
    }
}

/// As a complete state, whatever order it came in.
fn picture_of(changes: NetworkChanges) -> Picture {
    let mut picture = Picture::default();
    picture.apply(changes);
    picture
}

impl World {
    /// A message that the node does not get, as when its connection breaks: it asks anew, and still has what it had.
    fn lose(&mut self, number: u64) {
        let id = node(number);
        if let Some(stream) = self.streams.get_mut(&id) {
            drop(self.index.difference(&id, std::mem::take(&mut stream.dirty)));
            stream.dirty = Dirty::everything();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// With gossip a node that missed how a network began refused everything that was said of it from then on, for good
    /// (moby/moby#53437). Here whoever missed anything is told everything, and knows what there is.
    #[test]
    fn moby_53437_whoever_missed_a_message_knows_what_there_is_after_the_next(steps in prop::collection::vec((step(), any::<bool>()), 1..80)) {
        let mut world = World::new();
        (1..5).for_each(|number| world.follow(number));
        for (step, is_lost) in steps {
            match step {
                Step::Take(number) if is_lost => world.lose(number),
                other => world.step(other),
            }
        }
        world.take_all();
        let truth = Index::new(&world.view());
        for (id, stream) in &world.streams {
            prop_assert_eq!(&stream.picture, &picture_of(truth.complete(id)));
        }
    }

    #[test]
    fn differences_lead_to_what_a_complete_state_made_anew_says(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        (1..5).for_each(|number| world.follow(number));
        for step in steps {
            world.step(step);
        }
        world.take_all();
        let anew = Index::new(&world.view());
        for (id, stream) in &world.streams {
            prop_assert_eq!(&stream.picture, &picture_of(anew.complete(id)));
            prop_assert_eq!(&stream.picture, &picture_of(world.index.complete(id)));
        }
        // Nothing is waited for that a new leader does not wait for, and nothing is kept of what is gone, once all know that.
        (1..5).for_each(|number| world.acknowledge(number));
        let waits = |index: &Index| -> BTreeMap<NetworkId, BTreeSet<NodeId>> {
            index.networks.iter().map(|(id, net)| (id.clone(), net.acks.nodes().cloned().collect())).collect()
        };
        prop_assert_eq!(waits(&world.index), waits(&anew));
        prop_assert_eq!(world.index.leaving.keys().collect::<BTreeSet<_>>(), anew.leaving.keys().collect::<BTreeSet<_>>());
        prop_assert_eq!(world.index.nodes.keys().collect::<BTreeSet<_>>(), anew.nodes.keys().collect::<BTreeSet<_>>());
        prop_assert_eq!(world.index.wanting.keys().collect::<BTreeSet<_>>(), anew.wanting.keys().collect::<BTreeSet<_>>());
    }
}
